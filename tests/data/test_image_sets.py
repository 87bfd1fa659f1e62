"Pictures as samples: golden evaluation view, random numbers by key, several sets, several processes"

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mirage_nb.data.image_index import index_images
from mirage_nb.data.image_sets import ImageDataset, MixedDataset, collate_images
from tests.data.samples import write_nested


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


def test_a_file_that_is_gone_is_named(tmp_path):
    listing = index_images(write_nested(tmp_path/'t', 3), tmp_path/'i.safetensors')
    data = ImageDataset(listing, name='uwf')
    listing.path(1).unlink()
    with pytest.raises(FileNotFoundError, match=r'p00001\.png of uwf was deleted .* Restore it, or start'): data[1]
