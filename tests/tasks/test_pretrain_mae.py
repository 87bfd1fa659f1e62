"Pre-training of masked autoencoders of one modality: what an epoch holds, where pictures come from, what is kept"
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mirage_nb.data import image_sets as data_image_sets
from mirage_nb.data.normalization import NORMS
from mirage_nb.models.loading import load_model
from mirage_nb.phantoms.uwf import make_phantom_uwf
from mirage_nb.recipes.pretraining import MAERecipe, pretrain_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.storage import write_json
from mirage_nb.tasks import pretrain as tasks_pretrain
from mirage_nb.tasks import pretrain_mae as tasks_pretrain_mae
from mirage_nb.tasks.pretrain_mae import MAETask
from mirage_nb.tasks.protocol import train
from mirage_nb.train.loop import _epoch_batches


def pictures(folder, n=8, seed=0):
    "n different pictures in a folder"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        Image.fromarray(rng.integers(0, 255, (36, 40, 3), dtype=np.uint8)).save(folder/f'{i:02d}.png')
    return folder


def settings(folder, **changed):
    cfg = pretrain_recipe('pre_mae_small', MAERecipe)
    return override(cfg, dataset=str(folder), size=32, precision='fp32', **changed)


# ------------------------------------------------------------------ what an epoch holds

@pytest.mark.parametrize('repeats', [1, 4])
def test_repeats_are_views_of_one_picture(home, repeats):
    "A batch of b views holds b/repeats pictures, and an epoch each picture `repeats` times, under keys of their own"
    cfg = settings(pictures(home/'films'), repeated_augmentation=repeats, batch_size=8)
    task, seen = MAETask.from_settings(cfg), []
    for step in _epoch_batches(len(task.train), tasks_pretrain.pretrain_settings(cfg), 3):
        batch = task.collate([task.train[k] for k in step[0]])
        assert len(batch['id']) == 8 and len(set(batch['id'])) == 8//repeats
        assert len(set(map(int, batch['key']))) == 8
        seen += batch['id']
    assert len(set(seen)) == 8 and all(seen.count(i) == repeats for i in seen)


def test_part_of_the_hidden_patches_is_predicted(home):
    cfg = settings(pictures(home/'films'), decode_ratio=.25, model='mae_vit_large_patch16_cross_attention')
    assert tasks_pretrain_mae._mae_keywords(cfg)['share'] == .25
    own = tasks_pretrain_mae._mae_keywords(replace(cfg, decode_ratio=None))
    assert 'share' not in own, "the model's own is a third"
    for wrong, words in (({'model': 'mae_vit_small_patch16'}, 'large_patch16_cross_attention can predict a part'),
                         ({'decode_ratio': 0.}, 'decode_ratio is above 0 and up to 1, not 0.0'),
                         ({'crop_scale': [.5]}, 'crop_scale takes 2 values')):
        with pytest.raises(ValueError, match=words): tasks_pretrain_mae._mae_keywords(override(cfg, **wrong))
    for other in ('mirage_tiny', 'mae_vit_smal_patch16'):
        with pytest.raises(KeyError, match=f"no model for this pre-training '{other}'"):
            MAETask.from_settings(override(cfg, model=other))


def test_an_epoch_is_drawn_once(home, monkeypatch):
    task, drawn = MAETask.from_settings(settings(pictures(home/'films'), repeated_augmentation=4)), []
    real = data_image_sets._permutation_slice
    monkeypatch.setattr(data_image_sets, '_permutation_slice', lambda *a: drawn.append(a) or real(*a))
    for view in range(4): task.collate([task.train[4 + view, i] for i in range(8)])
    assert len(drawn) == 1


# ------------------------------------------------------------------ where pictures come from

@pytest.fixture
def data(home, monkeypatch):
    "An empty MIRAGE_DATA, and the working directory in it"
    folder = home/'data'
    folder.mkdir()
    monkeypatch.setenv('MIRAGE_DATA', str(folder))
    monkeypatch.chdir(folder)
    return folder


def names(part): return sorted(part.id(i) for i in range(len(part)))


def class_folders(root, n=2):
    "Splits of two classes, all pictures different"
    for i, s in enumerate(('train', 'val', 'test')):
        for j, c in enumerate(('healthy', 'ill')): pictures(root/s/c, n, seed=10*i + j)
    return root


@pytest.mark.parametrize('as_path', [False, True])
def test_class_folders_give_their_training_split(data, as_path):
    folder = class_folders(data/'mine')
    found = tasks_pretrain_mae._load_image_set(str(folder) if as_path else 'mine', 32)
    assert names(found.train) == names(found.val) == ['healthy/00.png', 'healthy/01.png', 'ill/00.png', 'ill/01.png']
    assert {p.parts[-3] for p in (found.train.source.path(i) for i in range(4))} == {'train'}
    assert found.labels.label.tolist() == ['healthy']*2 + ['ill']*2


def test_splits_without_classes(data):
    for s in ('train', 'val', 'test'): pictures(data/'bare'/s, 3)
    found = tasks_pretrain_mae._load_image_set('bare', 32)
    assert (len(found.train), len(found.val), found.labels) == (3, 3, None)
    pictures(data/'tested'/'test', 2)
    with pytest.raises(ValueError, match='tested has test and no train to learn from; give the path'):
        tasks_pretrain_mae._load_image_set(str(data/'tested'), 32)


def test_a_name_is_a_dataset_before_it_is_a_folder_here(data):
    "The working directory may be MIRAGE_DATA itself"
    make_phantom_uwf(data/'Phantom_UWF', patients=25, pictures=1, size=(32, 40))
    for given in ('Phantom_UWF', str(data/'Phantom_UWF')):
        found = tasks_pretrain_mae._load_image_set(given, 32)
        assert found.norm == NORMS['uwf'] and len(found.val) < len(found.train) and found.labels is not None
    moved = (data/'Phantom_UWF').rename(pictures(data.parent/'elsewhere', 1)/'Phantom_UWF')
    (moved/'manifest.toml').unlink(missing_ok=True)
    again = tasks_pretrain_mae._load_image_set(str(moved), 32)
    assert (again.norm, again.sha256, len(again.train)) == (found.norm, found.sha256, len(found.train))
    pictures(data/'loose', 2)
    assert len(tasks_pretrain_mae._load_image_set('loose', 32).train) == 2
    with pytest.raises(KeyError, match="no dataset 'Phantom_UWG'. Did you mean 'Phantom_UWF'"):
        tasks_pretrain_mae._load_image_set('Phantom_UWG', 32)


def test_masks_are_no_pictures(data):
    for k in ('bscan', 'semseg'): pictures(data/'own'/'train'/k, 2)
    for given in (str(data/'own'), 'GOALS'):
        with pytest.raises(ValueError, match='is a set for segmentation and holds masks; give the path of the folder'):
            tasks_pretrain_mae._load_image_set(given, 32)
    assert len(tasks_pretrain_mae._load_image_set(str(data/'own'/'train'/'bscan'), 32).train) == 2
    for k in ('images', 'masks'): pictures(data/'plain'/k, 2)
    with pytest.raises(ValueError, match='plain is a set for segmentation and holds masks'):
        tasks_pretrain_mae._load_image_set(str(data/'plain'), 32)


def test_a_folder_states_its_numbers(data):
    folder = pictures(data/'scans', 2)
    plain = tasks_pretrain_mae._load_image_set('scans', 32)
    write_json(folder/'INFO.json', {'mean': [.5, .4, .3], 'std': [.2, .2, .1]})
    for given in ('scans', str(folder)):
        found = tasks_pretrain_mae._load_image_set(given, 32)
        assert found.norm == ((.5, .4, .3), (.2, .2, .1)) and found.sha256 != plain.sha256
        assert found.train.mean.tolist() == pytest.approx([.5, .4, .3]) and plain.norm == NORMS['imagenet']
    for wrong in ({'mean': [.5]*3}, {'mean': [.5], 'std': [.2]}, {'mean': 1, 'std': 2}, {'mean': [.5]*3, 'std': [0]*3}):
        write_json(folder/'INFO.json', wrong)
        with pytest.raises(ValueError, match=r'INFO.json: mean and std take three numbers each'):
            tasks_pretrain_mae._load_image_set('scans', 32)


def test_new_pictures_are_seen(data):
    folder = pictures(data/'scans'/'site', 3).parent
    first = tasks_pretrain_mae._load_image_set('scans', 32)
    pictures(folder/'site', 5)
    assert (len(first.train), len(tasks_pretrain_mae._load_image_set('scans', 32).train)) == (3, 5)


# ------------------------------------------------------------------ what is kept, and how long it warms up

def test_a_model_knows_its_numbers(data):
    "What reads the model later shifts and scales as the training did"
    write_json(pictures(data/'scans', 4)/'INFO.json', {'mean': [.5, .4, .3], 'std': [.2, .2, .1]})
    train(MAETask.from_settings(settings('scans', epochs=1, batch_size=4)), data/'run')
    for file in ('model', 'encoder'):
        ready = load_model(data/'run'/f'{file}.safetensors')
        assert ready.mean.flatten().tolist() == pytest.approx([.5, .4, .3])
        assert ready.std.flatten().tolist() == pytest.approx([.2, .2, .1])
    pictures(data/'others', 2, seed=1)
    mixture = settings('scans,others')
    assert 'mean' not in MAETask.from_settings(mixture).metadata(1)


@pytest.mark.parametrize(('epochs', 'warmup'), [(1, .5), (40, 20.), (800, 40.)])
def test_warm_up_takes_half_of_the_epochs_at_most(epochs, warmup):
    cfg = override(pretrain_recipe('uspec_vit_l', MAERecipe), epochs=epochs)
    assert tasks_pretrain.pretrain_settings(cfg).warmup_epochs == warmup
