"Volumes are classified by their slices: training, resuming, test, prediction, refusals, and a lesion in one slice"
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mirage_nb.data.classification import load_labelled
from mirage_nb.data.manifest import read_manifest
from mirage_nb.eval.classification.volumes import VolumeClassifier
from mirage_nb.figures.prediction import show_gallery
from mirage_nb.models.classification import load_volume_model
from mirage_nb.models.heads.volumes import SLICE_POOLS
from mirage_nb.phantoms.vol import make_phantom_vol
from mirage_nb.recipes.classification import FewShot, cls_recipe
from mirage_nb.recipes.prediction import Predict
from mirage_nb.recipes.settings import override
from mirage_nb.storage import write_json
from mirage_nb.tasks.ensemble import Member
from mirage_nb.tasks.predict import plan_prediction, predict, sum_up
from mirage_nb.tasks.protocol import train
from mirage_nb.tasks.settings import few_shot_recipe
from mirage_nb.tasks.volume_classification import VolumeTask, classification_task

pytestmark = pytest.mark.slow


def settings(**changed):
    "A short training on small volumes"
    plain = dict(dataset='Phantom_VOL', size=64, epochs=3, precision='fp32', probes=False)
    return override(cls_recipe('cls_volume'), **plain | changed)


@pytest.fixture(scope='module')
def home(at_home, tmp_path_factory):
    "A folder with small volumes and a finished training"
    with at_home(tmp_path_factory.mktemp('volumes')) as folder:
        import os
        make_phantom_vol(f"{os.environ['MIRAGE_DATA']}/Phantom_VOL", patients=28, slices=3, size=(64, 64))
        task = classification_task(settings())
        train(task, folder/'run')
        task.test(folder/'run')
        write_json(folder/'run'/'run.json', {'stage': 'cls_tune', 'settings': asdict(task.settings),
                                             'sources': {'data': task.data.sha256}})
        write_json(folder/'run'/'result.json', {'means': {}})
        yield folder


@pytest.mark.parametrize('slices', SLICE_POOLS)
def test_resumed_as_if_whole(home, tmp_path, monkeypatch, slices):
    "A training that was stopped twice has the weights of one that was not"
    cfg = settings(slices=slices)
    train(classification_task(cfg), tmp_path/'whole')
    step, calls = VolumeTask.step, []
    def cut(self, model, batch):
        calls.append(1)
        if len(calls) in (2, 4): raise KeyboardInterrupt
        return step(self, model, batch)
    monkeypatch.setattr(VolumeTask, 'step', cut)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt): train(classification_task(cfg), tmp_path/'cut')
    train(classification_task(cfg), tmp_path/'cut')
    same = [load_volume_model(tmp_path/k/'best.safetensors')[0].state_dict() for k in ('whole', 'cut')]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in same), strict=True))


def test_another_dataset_is_scored_by_volume(home, tmp_path):
    "Rows are the test volumes of the other dataset, with its number of slices"
    other = make_phantom_vol(tmp_path/'Other', seed=5, patients=28, slices=4, size=(64, 64))
    manifest = Path(__file__).resolve().parents[2]/'data_manifests'/'Phantom_VOL.toml'
    shutil.copy(manifest, other/'manifest.toml')
    shutil.copytree(home/'run', tmp_path/'run', ignore=shutil.ignore_patterns('*_test.csv', 'result.json'))
    task = classification_task(settings(test_dataset=str(other)))
    scores = task.test(tmp_path/'run')
    table = pd.read_csv(tmp_path/'run'/'predictions_test.csv')
    assert len(scores.pred) == len(table) and (table.slices == 4).all()
    assert table.id.is_unique and set(table.dataset) == {'Other'}


def test_rows_are_volumes(home):
    task = classification_task(settings())
    table = pd.read_csv(home/'run'/'predictions_test.csv', dtype={'patient': str})
    assert list(table.id) == list(task.data.splits['test'].id) and (table.slices == 3).all()
    assert table.patient.str.fullmatch(r'P\d+').all() and set(table.eye) <= {'OD', 'OS'}
    sides = task.data.table.groupby('patient').split.nunique()
    assert (sides == 1).all()
    weights = task.slice_table(home/'run')
    assert np.allclose(weights.groupby('volume').weight.sum(), 1, atol=1e-5)
    assert (weights.groupby('volume')['first'].sum() == 1).all()
    assert 'volumes of' in task.headline(pd.DataFrame({'epoch': [1]}), task.test(home/'run'))


def test_prediction_of_a_folder(home, tmp_path):
    "A folder of slices becomes a row a volume, with the scores of the test; a broken slice takes out its volume alone"
    task = classification_task(settings())
    folder = tmp_path/'new'
    for r in task.data.splits['test'].itertuples():
        for p in r.images: (folder/r.id).mkdir(parents=True, exist_ok=True); shutil.copy(p, folder/r.id/p.name)
    first, *others = task.data.splits['test'].itertuples()
    (folder/first.id/first.images[1].name).write_bytes(b'')
    found = predict(home/'run', folder, tmp_path/'out').set_index('id')
    own = pd.read_csv(home/'run'/'predictions_test.csv').set_index('id')
    assert list(found.index) == [f'{r.id}/{r.id}' for r in others]
    assert np.allclose(found['score:DME'], own.loc[[r.id for r in others], 'score:DME'], atol=1e-4)
    assert len(pd.read_csv(tmp_path/'out'/'slices.csv')) == 3*len(others)
    assert first.id in pd.read_csv(tmp_path/'out'/'unreadable.csv').id[0]


def test_report_of_a_prediction_speaks_of_volumes(home, tmp_path):
    "The report of a prediction counts volumes, and names the slice that decided above its picture and in its tables"
    table = classification_task(settings()).data.splits['test']
    for r in table.itertuples():
        for p in r.images: (tmp_path/'new').mkdir(exist_ok=True); shutil.copy(p, tmp_path/'new'/p.name)
    job = plan_prediction(Predict(images=str(tmp_path/'new')), [home/'run'])
    rows = job.predict(tmp_path/'out')
    said = sum_up(job, rows)
    assert all('image' not in k for k in [*said['summary'], *(v['text'] for v in said['verdicts'][-3:])]), said
    decided = dict(zip(table.id, rows.set_index('id').loc[list(table.id), 'slice'], strict=True))
    assert job.volume_table(rows)['slice'].to_dict() == decided
    fig = show_gallery(rows, tmp_path/'out', unit=job.unit)
    assert all(f'slice {k}, weight ' in fig.description for k in decided.values()), fig.description


def test_refusals(home, tmp_path):
    with pytest.raises(ValueError, match='classifies volumes, by their slices together'): Member.open(home/'run')
    with pytest.raises(ValueError, match='take cls_small, or 31_cls_tune with shots='):
        few_shot_recipe(FewShot(recipe='cls_volume'))
    for bad, text in (
            (dict(tune='full', lr=1e-4), 'take tune=probe'), (dict(cached_views=-1), 'cached_views=0 or more'),
            (dict(keep_head=True), 'trains a new head'), (dict(probes=True, published_probes=True), 'single images')):
        with pytest.raises(ValueError, match=text): replace(settings(), **bad)
    with pytest.raises(ValueError, match='load_volume_model'):
        from mirage_nb.models.classification import load_cls_model
        load_cls_model(home/'run'/'best.safetensors')
    assert isinstance(VolumeClassifier.open(home/'run'/'best.safetensors'), VolumeClassifier)


def test_drawn_splits_keep_volumes_whole(home, tmp_path):
    "Class folders without patients and splits are divided by volume"
    from PIL import Image
    rng = np.random.default_rng(0)
    for c in ('AMD', 'normal'):
        for v in range(8):
            for k in range(3):
                (tmp_path/'Eyes'/c).mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(tmp_path/'Eyes'/c/f'{c}x{v}_{k}.png')
    with pytest.warns(UserWarning, match='drawn by volume'):
        data = load_labelled(read_manifest(tmp_path/'Eyes'), splits='0.5/0.25/0.25', volumes=True)
    assert data.unit == 'volume' and len(data.table) == 16 and set(data.splits) == {'train', 'val', 'test'}
    assert (data.table.slices == 3).all()


@pytest.mark.long
def test_lesion_in_one_slice(at_home, tmp_path, monkeypatch):
    "Of volumes whose cysts are in one slice of sixteen, max finds them and their slices, the mean does not"
    with at_home(tmp_path):
        monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
        labels = pd.read_csv(make_phantom_vol(tmp_path/'Phantom_VOL')/'labels.csv')
        found, stores = {}, {}
        for how in ('mean', 'max'):
            task = classification_task(settings(slices=how, size=256, epochs=100))
            task.stores = stores
            train(task, tmp_path/how)
            found[how] = task.predict(tmp_path/how, 'test')
    score = {k: roc_auc_score(p.label == 'DME', p['score:DME']) for k, p in found.items()}
    assert score['max'] > .9 and score['mean'] < .75, score
    ill = found['max'][found['max'].label == 'DME']
    assert ill['slice'].isin(labels.id[labels.label_slice == 'DME']).mean() > .7
