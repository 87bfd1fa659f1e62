"What cannot be reconstructed is said before anything is computed; a finished run is found again"
import numpy as np
import pytest
from PIL import Image

from mirage_nb.commands.shortcut import run_key
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


def test_shortcut_sees_changed_images(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path/'b.png')
    values = parameter_values(find_notebook('reconstruct')) | {'images': str(tmp_path)}
    first = run_key('reconstruct', values)
    assert first and run_key('reconstruct', values) == first
    Image.fromarray(np.ones((9, 9), np.uint8)).save(tmp_path/'b.png')
    assert run_key('reconstruct', values) != first != run_key('reconstruct', values | {'box': [0, 0, 1, 1]})
