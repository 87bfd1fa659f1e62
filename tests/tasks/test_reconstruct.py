"What cannot be reconstructed is said before anything is computed; a finished run is found again"
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.anonymity import hide_names, hide_text
from mirage_nb.commands.shortcut import run_key
from mirage_nb.data.unlabelled import named_rows
from mirage_nb.models.checkpoints import save_weights
from mirage_nb.models.loading import load_model
from mirage_nb.models.zoo import build_encoder
from mirage_nb.recipes.pipelines import find_notebook, parameter_values
from mirage_nb.recipes.reconstruct import Reconstruct
from mirage_nb.storage import write_json
from mirage_nb.tasks.autoencoder_images import find_autoencoder, load_autoencoder
from mirage_nb.tasks.reconstruct import plan_reconstruction
from mirage_nb.tasks.settings import choose_settings


def test_weights_without_a_decoder(tmp_path):
    keywords = {'name': 'mirage_tiny', 'modalities': ['bscan'], 'size': 32}
    file = save_weights(build_encoder(**keywords), tmp_path/'encoder.safetensors', {'encoder': keywords})
    assert not hasattr(load_model(file).model, 'reconstruct')
    with pytest.raises(ValueError, match='holds an encoder alone and predicts no images; give the file of its pre-tra'):
        load_autoencoder(Reconstruct(weights=str(file)))


def test_run_of_another_stage(tmp_path):
    write_json(tmp_path/'run.json', {'stage': 'seg_tune', 'settings': {}, 'sources': {}})
    write_json(tmp_path/'result.json', {})
    with pytest.raises(ValueError, match='is a run of seg_tune and holds no autoencoder'):
        find_autoencoder(Reconstruct(run=str(tmp_path)))


def test_one_error_names_all_that_is_not_there(tmp_path):
    wrong = {'images': str(tmp_path/'nowhere'), 'weights': str(tmp_path/'no.pth'), 'reference': str(tmp_path/'none')}
    with pytest.raises(ValueError) as e: choose_settings('reconstruct', wrong)
    assert all(k in str(e.value) for k in ('nowhere', 'no.pth', 'reference: no file or folder'))
    cfg = choose_settings('reconstruct', {'images': str(tmp_path)})[0]
    assert cfg.dataset == '' and cfg.weights == 'mirage_tiny', 'images stand in place of a dataset'


def test_images_that_cannot_be_read(tmp_path):
    (tmp_path/'a.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='none of 1 image can be read'):
        plan_reconstruction(Reconstruct(images=str(tmp_path), dataset=''))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)).save(tmp_path/'b.png')
    job = plan_reconstruction(Reconstruct(images=str(tmp_path), dataset='', examples=1, draws=1, box=(0, 0, 20, 20)))
    assert list(job.lost.id) == ['a'] and job.shown()[0].shape == (40, 50)


def test_pseudonyms_change_no_number(tmp_path, monkeypatch):
    "Random masks and artefacts follow from the real names, and so do the files of a folder of masks"
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))
    made = np.random.default_rng(0).integers(0, 255, (2, 40, 50), dtype=np.uint8)
    for name, x in zip(('Roe_01', 'Doe_02'), made, strict=True):
        for folder in ('images', 'masks'):
            (tmp_path/folder).mkdir(exist_ok=True)
            Image.fromarray(x).save(tmp_path/folder/f'{name}.png')
    found = []
    for on in (False, True):
        hide_names(on)
        job = plan_reconstruction(Reconstruct(images=str(tmp_path/'images'), dataset='', artefacts=['noise'], scored=2,
                                              rounds=1, draws=2))
        found.append((job.hidden(next(job.table.itertuples())), job.scores(tmp_path/str(on)),
                      job.examples_of_artefacts()[1][1]))
        inner = Reconstruct(images=str(tmp_path/'images'), dataset='', region=str(tmp_path/'masks'))
        assert plan_reconstruction(inner).hidden(next(job.table.itertuples())).any()
    hide_names(False)
    (masks, table, image), (others, hidden, same) = found
    assert masks.equal(others) and np.array_equal(image, same) and 'Doe' not in ' '.join(hidden.id)
    np.testing.assert_array_equal(table.select_dtypes('number'), hidden.select_dtypes('number'))


def test_the_report_of_a_wrong_name_does_not_show_it(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))
    hide_names(True)
    with pytest.raises(ValueError, match="only: no image 'Poe'") as e:
        named_rows(pd.DataFrame({'id': ['a']}), ['Poe'], 'only')
    assert 'Poe' not in hide_text(str(e.value))
    hide_names(False)


def test_shortcut_sees_changed_images(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path/'b.png')
    values = parameter_values(find_notebook('reconstruct')) | {'images': str(tmp_path)}
    first = run_key('reconstruct', values)
    assert first and run_key('reconstruct', values) == first
    Image.fromarray(np.ones((9, 9), np.uint8)).save(tmp_path/'b.png')
    assert run_key('reconstruct', values) != first != run_key('reconstruct', values | {'box': [0, 0, 1, 1]})
