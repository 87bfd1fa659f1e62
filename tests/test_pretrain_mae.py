"Pre-training of masked autoencoders of one modality: what an epoch holds, where pictures come from, what is kept"
import numpy as np
import pytest
from PIL import Image

from mirage_nb.jobs import pretrain
from mirage_nb.recipes import override, pretrain_recipe
from mirage_nb.train.loop import epoch_batches


def pictures(folder, n=8, seed=0):
    "n different pictures in a folder"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        Image.fromarray(rng.integers(0, 255, (36, 40, 3), dtype=np.uint8)).save(folder/f'{i:02d}.png')
    return folder


def settings(folder, **changed):
    return override(pretrain_recipe('pre_mae_small'), dataset=str(folder), size=32, precision='fp32', **changed)


# ------------------------------------------------------------------ what an epoch holds

@pytest.mark.parametrize('repeats', [1, 4])
def test_repeats_are_views_of_one_picture(home, repeats):
    "A batch of b views holds b/repeats pictures, and an epoch each picture `repeats` times, under keys of their own"
    cfg = settings(pictures(home/'films'), repeats=repeats, batch_size=8)
    task, seen = pretrain.mae_task(cfg), []
    for step in epoch_batches(len(task.train), pretrain.pretrain_settings(cfg), 3):
        batch = task.collate([task.train[k] for k in step[0]])
        assert len(batch['id']) == 8 and len(set(batch['id'])) == 8//repeats
        assert len(set(map(int, batch['key']))) == 8
        views = task.views(batch)['image']
        assert len({round(float(v.double().mean()), 9) for v in views}) == 8
        seen += batch['id']
    assert len(set(seen)) == 8 and all(seen.count(i) == repeats for i in seen)


def test_an_epoch_is_drawn_once(home, monkeypatch):
    task, drawn = pretrain.mae_task(settings(pictures(home/'films'), repeats=4)), []
    module = pretrain.MixedDataset.__module__
    real = __import__(module, fromlist=['stretch']).stretch
    monkeypatch.setattr(f'{module}.stretch', lambda *a: drawn.append(a) or real(*a))
    for view in range(4): [task.train[4 + view, i] for i in range(8)]
    assert len(drawn) == 1
