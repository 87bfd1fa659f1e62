"A large frozen encoder is kept once, and a model without it is whole again when it is read"
import pytest
import torch
from safetensors import safe_open

from mirage_nb.models import encoder_store
from mirage_nb.models.checkpoints import encoder_part, read_checkpoint
from mirage_nb.models.classification import cls_model, load_cls_model
from mirage_nb.models.encoder_store import EncoderMissing
from mirage_nb.models.segmentation import load_seg_model, seg_model
from mirage_nb.models.tuning import choose_training, save_tuned_model

KINDS = {'seg': (seg_model, load_seg_model, dict(name='mirage_tiny', n_classes=3, head='linear', size=[32, 32])),
         'cls': (cls_model, load_cls_model, dict(name='vit_small_patch16', n_classes=3, size=[32, 32], pool='global'))}


@pytest.fixture
def store(home, monkeypatch):
    "Every encoder counts as large"
    monkeypatch.setattr(encoder_store, '_SHARED_FROM', 1)
    return home/'runs'/'encoders'


def made(kind, how, path, seed=0):
    build, _, keywords = KINDS[kind]
    torch.manual_seed(seed)
    model = build(**keywords)
    choose_training(model, how, 1, 2)
    return model, save_tuned_model(model, path, keywords)


def names(path):
    with safe_open(path, 'pt') as f: return set(f.keys())


@pytest.mark.parametrize('kind', KINDS)
def test_probe_is_its_head_and_the_hash_of_its_encoder(kind, store, home):
    model, path = made(kind, 'probe', home/'runs'/'a'/'best.safetensors')
    assert names(path) and not [k for k in names(path) if k.startswith('encoder.')]
    again, about = KINDS[kind][1](path)
    whole = model.state_dict()
    assert again.state_dict().keys() == whole.keys() and len(about['encoder_sha256']) == 64
    assert all(torch.equal(v, whole[k]) for k, v in again.state_dict().items())
    assert encoder_part(read_checkpoint(path)).state.keys() == model.encoder.state_dict().keys()


def test_one_file_for_all_probes_of_an_encoder(store, home):
    for i in range(2): made('cls', 'probe', home/'runs'/f'{i}'/'best.safetensors')
    assert len(list(store.iterdir())) == 1
    made('cls', 'probe', home/'runs'/'2'/'best.safetensors', seed=1)
    assert len(list(store.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize('how', ['full', 'last', 'lora'])
def test_trained_encoder_stays_in_the_file(how, store, home):
    _, path = made('cls', how, home/'runs'/'a'/'best.safetensors')
    assert [k for k in names(path) if k.startswith('encoder.')] and not store.exists()


def test_small_encoder_stays_in_the_file(home):
    _, path = made('cls', 'probe', home/'runs'/'a'/'best.safetensors')
    assert [k for k in names(path) if k.startswith('encoder.')]


def test_lost_encoder_is_named(store, home):
    _, path = made('cls', 'probe', home/'runs'/'a'/'best.safetensors')
    file, = store.iterdir()
    lost = file.rename(home/'lost.safetensors')
    with pytest.raises(EncoderMissing, match=f'holds a head alone, and its encoder {file.name} is not in .*encoders'):
        load_cls_model(path)
    store.mkdir(exist_ok=True)
    file.write_bytes(lost.read_bytes()[:-4] + b'\0\0\0\1')
    with pytest.raises(EncoderMissing, match='has changed since'): load_cls_model(path)
