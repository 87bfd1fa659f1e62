"Pictures as samples: golden evaluation view, random numbers by key, several sets, several processes"
import random

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch.utils.data import DataLoader

from mirage_nb.data.augment.mix import Mix, mix_batch
from mirage_nb.data.augment.photo import PhotoEval, PhotoTrain, _seeded_generators
from mirage_nb.data.files import read_image
from mirage_nb.data.image_sets import ImageDataset, MixedDataset, collate_images
from mirage_nb.randomness import sample_key
from mirage_nb.train.losses import _bce_loss, soft_targets


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    "Three sets of 40, 10 and 3 pictures of several sizes"
    folder, out = tmp_path_factory.mktemp('sets'), {}
    for name, n in (('nih', 40), ('chexpert', 10), ('uwf', 3)):
        files = []
        for i in range(n):
            files.append(folder/f'{name}{i:02d}.png')
            rng = np.random.default_rng(i)
            Image.fromarray(rng.integers(0, 255, (40, 40 + 4*(i % 2), 3), dtype=np.uint8)).save(files[-1])
        norm = 'imagenet' if name == 'chexpert' else name
        table = pd.DataFrame({'id': [f.stem for f in files], 'image': files})
        out[name] = ImageDataset(table, name=name, norm=norm, load_size=32)
    return out


def test_golden_ultra_widefield_view(golden, tmp_path):
    recorded = load_file(golden/'preprocessing.safetensors')
    [name] = [k for k in recorded if k.startswith('uwf.eval_')]
    Image.fromarray(recorded['uwf.raw_rgb']).save(tmp_path/'x.png')
    view = PhotoEval(int(name.rpartition('_')[2]), 'uwf')(read_image(tmp_path/'x.png', 3))
    np.testing.assert_allclose(view, recorded[name].astype(np.float32), atol=2e-3)  # recorded in half precision


def test_evaluation_draws_nothing():
    "defects.md 1: the view of an evaluation is the same whatever the state of any generator, and moves none"
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    views = []
    for seed in (1, 2):
        random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        views.append(PhotoEval(32)(image, key=seed))
        assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
        assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(*views)


def test_training_views_follow_the_key_alone():
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    views = PhotoTrain(32, 'uwf', erase=0.5)
    keys = [sample_key(0, 0, i) for i in range(24)]
    there = [views(image, k) for k in keys]
    back = [views(image, k) for k in reversed(keys)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(there, back, strict=True))
    assert len({v.sum().item() for v in there}) == 24
    torch.manual_seed(5)
    free = torch.rand(3)
    torch.manual_seed(5)
    views(image, 1)
    assert torch.equal(torch.rand(3), free)


def test_an_error_inside_leaves_the_generators_alone():
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), _seeded_generators(3): torch.rand(1//0)
    assert torch.equal(torch.get_rng_state(), state)


def epoch(data, e, loaders):
    keys = {}
    for worker in range(loaders):
        mine = [(e, i) for i in range(len(data))][worker::loaders]
        for b in DataLoader(data, batch_sampler=[mine[j:j + 4] for j in range(0, len(mine), 4)],
                            collate_fn=collate_images):
            for i, k, x in zip(b['id'], b['key'], b['image'], strict=True): keys[i, int(k)] = x.float().mean().item()
    return keys


def test_one_and_two_processes_see_the_same_epoch(sets):
    weights = {'nih': 1, 'chexpert': 1, 'uwf': 1}
    one, two = (MixedDataset(sets, weights, samples=30, views=2, seed=4) for _ in range(2))
    assert epoch(one, 3, 1) == epoch(two, 3, 2) and len(epoch(one, 3, 1)) == 30
    assert epoch(one, 3, 1) != epoch(one, 4, 1)


def test_weights_are_shares_of_the_epoch(sets):
    m = MixedDataset(sets, {'nih': 0.5, 'chexpert': 0.3, 'uwf': 0.2}, samples=50)
    names = [list(sets)[k] for k in m.draw(2)[0]]
    assert {k: names.count(k) for k in sets} == {'nih': 25, 'chexpert': 15, 'uwf': 10}
    times = np.zeros(40, int)
    for e in range(8): times += np.bincount(m.draw(e)[1][m.draw(e)[0] == 0], minlength=40)
    assert (times == 5).all()              # 8 epochs of 25 are 5 passes through 40
    fewer = MixedDataset(sets, {'nih': 1, 'chexpert': 0, 'uwf': 0}, samples=7)
    assert {fewer[(0, i)]['dataset'] for i in range(7)} == {'nih'}


@pytest.mark.parametrize('views', [1, 3])
def test_repeated_augmentation_of_small_sets(sets, views):
    "defects.md 23: below 256 pictures there are as many samples as above"
    m = MixedDataset({'uwf': sets['uwf']}, samples=9, views=views)
    ids = [m[(0, i)]['id'] for i in range(9)]
    assert len(ids) == 9 and len({m[(0, i)]['key'] for i in range(9)}) == 9
    assert all(ids.count(i) == 3 for i in set(ids)) and len(set(ids)) == 3


def test_normalisation_of_each_set_reaches_the_batch(sets):
    m = MixedDataset(sets, samples=53)
    batch = collate_images([m[(0, i)] for i in range(53)])
    for name, mean in zip(batch['dataset'], batch['mean'], strict=True):
        assert torch.equal(mean, sets[name].mean)
    assert isinstance(batch['image'], list) and all(x.dtype == torch.uint8 and x.shape[1] == 32 for x in batch['image'])


def test_unreadable_picture_is_named(tmp_path):
    (tmp_path/'x.png').write_bytes(b'no picture')
    data = ImageDataset(pd.DataFrame({'id': ['x'], 'image': [tmp_path/'x.png']}))
    with pytest.raises(ValueError, match=r'x\.png \(10 bytes\) cannot be read as an image'): data[0]


def test_mixed_soft_targets_with_missing_labels_train():
    "Mixing, missing labels and scores of 50 together: the loss and its gradient are finite"
    x, keys = torch.rand(6, 3, 16, 16), [sample_key(0, 0, i) for i in range(6)]
    y = torch.tensor([[1., 0], [0, float('nan')], [1, 1], [float('nan')]*2, [0, 1], [1, 0]])
    mixed, t = mix_batch(x, y, keys, Mix())
    assert mixed.isfinite().all() and t.isnan().any() and not t.isnan().all() and t[~t.isnan()].max() <= 1
    scores = torch.full((6, 2), 50., requires_grad=True)
    loss = _bce_loss(scores, t)
    loss.backward()
    assert loss.isfinite() and scores.grad.isfinite().all() and (scores.grad[t.isnan()] == 0).all()
    blend = mix_batch(x, soft_targets(torch.tensor([0, 1, 2, 0, 1, 2]), 3, 0.1), keys, Mix())[1]
    torch.testing.assert_close(blend.sum(1), torch.ones(6))
