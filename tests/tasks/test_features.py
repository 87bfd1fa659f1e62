"The page on features: what is refused before it starts, the encoder of a run, and when a finished page is still right"
import numpy as np
import pytest
import torch
from PIL import Image

from mirage_nb.commands.shortcut import run_key
from mirage_nb.models.checkpoints import export_encoder
from mirage_nb.models.zoo import build_encoder
from mirage_nb.recipes.features import FeatureReport
from mirage_nb.records import finish_run, start_run
from mirage_nb.tasks.features import _open_run_encoder, features_result, plan_features, token_picture
from mirage_nb.tasks.settings import choose_settings


@pytest.fixture
def folders(tmp_path, monkeypatch):
    "Two folders of images, of which one is brighter"
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    rng = np.random.default_rng(0)
    for k, name in enumerate(('one', 'two')):
        (tmp_path/name).mkdir()
        for i in range(12):
            x = np.array(Image.fromarray(rng.integers(20 + 80*k, 120 + 80*k, (6, 9), np.uint8)).resize((48, 32)))
            x[:2, :2], x[-2:, -2:] = 0, 255  # the encoder sees brightness between the darkest and the brightest pixel
            Image.fromarray(x).save(tmp_path/name/f'{i}.png')
    return tmp_path


def test_what_is_refused_before_anything_runs(folders):
    faults = (({'images': 'nowhere'}, 'no folder nowhere'), ({'weights': 'random'}, 'has learnt nothing'),
              ({'weights': 'lost.pth'}, 'no checkpoint lost.pth'), ({'dataset': 'Nothing'}, 'no dataset'),
              ({'run': str(folders)}, 'is not the folder of a run'))
    for params, error in faults:
        with pytest.raises((ValueError, KeyError, FileNotFoundError), match=error): choose_settings('features', params)
    few = FeatureReport(images=str(folders/'one'), most_images=4, colour_by=['site'], examples=0)
    (folders/'one'/'0.png').write_bytes(b'no image')
    assert plan_features(few).unreadable == 1
    with pytest.raises(ValueError, match='colour_by=site: it is the same of all images'): plan_features(few).points()
    for i in range(9): (folders/'one'/f'{i}.png').unlink()
    with pytest.raises(ValueError, match='3 images can be read; 4 or more are needed'): plan_features(few)


def test_the_key_of_a_page_follows_its_folders(folders):
    values = {'images': f"{folders/'one'},{folders/'two'}", 'dataset': 'one', 'weights': None}
    key = run_key('features', values)
    assert key and key == run_key('features', values)
    Image.new('L', (8, 8)).save(folders/'two'/'new.png')
    assert run_key('features', values) not in (key, None)
    assert run_key('features', {**values, 'weights': 'timm:resnet18'}) is None  # the hub is not looked at


@pytest.mark.slow
def test_two_folders_are_told_apart_by_their_brightness(folders):
    page = plan_features(FeatureReport(images=f"{folders/'one'},{folders/'two'}", resamples=100, examples=1))
    result = features_result(page, token_picture(page))
    texts = [v['text'] for v in result['verdicts'] if v['level'] == 'warning']
    assert any(t.startswith('The features tell the dataset: AUROC') and 'mean brightness AUROC' in t for t in texts)
    assert any('Patients are not known' in t for t in texts)


@pytest.mark.slow
def test_the_encoder_of_a_pretraining_is_taken(folders):
    torch.manual_seed(0)
    encoder = build_encoder('resnet50', size=32)
    run = start_run('pretrain_mae', {'dataset': 'one', 'model': 'cnn_mae_resnet50'}, {})
    export_encoder(encoder, run.folder/'encoder.safetensors', {'encoder': {'name': 'resnet50', 'size': 32}})
    finish_run(run, {})
    model, spec, sha = _open_run_encoder(str(run.folder))
    assert (spec.channels, spec.modality, len(sha)) == (3, 'image', 64)
    assert torch.equal(model.encoder.state_dict()['conv1.weight'], encoder.state_dict()['conv1.weight'])
    other = start_run('predict', {'dataset': 'one'}, {})
    finish_run(other, {})
    with pytest.raises(ValueError, match='is a predict; name a finished run'): _open_run_encoder(str(other.folder))
