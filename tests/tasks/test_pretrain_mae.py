"Pre-training of masked autoencoders of one modality: what an epoch holds, what is kept"
from dataclasses import replace

import pytest

from mirage_nb.data import image_sets as data_image_sets
from mirage_nb.models.loading import load_model
from mirage_nb.recipes.pretraining import MAERecipe, pretrain_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.storage import write_json
from mirage_nb.tasks import pretrain as tasks_pretrain
from mirage_nb.tasks import pretrain_mae as tasks_pretrain_mae
from mirage_nb.tasks.pretrain_mae import MAETask
from mirage_nb.tasks.protocol import train
from mirage_nb.train.loop import _epoch_batches
from tests.tasks.samples import pictures


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


# ------------------------------------------------------------------ what is kept, and how long it warms up

@pytest.mark.slow
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
