"Copies that were resized, compressed or made brighter are found, and neighbours are not taken for copies"
import numpy as np
import pytest
import torch
from PIL import Image

from mirage_nb.data.near_duplicates import near_duplicates, numbered_neighbours, similar_pairs
from mirage_nb.data.opened import open_images

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch): monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))


CHANGES = {'pressed': lambda im, p: im.save(p.with_suffix('.jpg'), quality=60),
           'smaller': lambda im, p: im.resize((im.width*2//3, im.height*2//3)).save(p),
           'brighter': lambda im, p: im.point(lambda v: min(255, v*1.15 + 6)).save(p),
           'deeper': lambda im, p: Image.fromarray(np.asarray(im).astype(np.uint16)*200).save(p)}


@pytest.mark.parametrize('name, pattern', [('Duke_DME', '*/bscan/*.png'), ('noor_oct', '*/*/*.jpeg'),
                                           ('unam', '*/*.jpg'),
                                           ('cxr_nih_64px', 'val*/*/*.png'), ('kermany_biomarkers', 'bscan/*/*')])
def test_copies_of_real_images_are_found_and_nothing_else(shared_data, tmp_path, name, pattern):
    files = sorted((shared_data/name).glob(pattern))[:60]
    assert len(near_duplicates(files, open_images(files))) == 0
    of = {}
    for i, (change, make) in enumerate(CHANGES.items()):
        im = Image.open(files[7*i])
        make(im.convert('L'), path := tmp_path/f'{change}.png')
        of[change] = files[7*i], path if path.exists() else path.with_suffix('.jpg')
    every = files + [copy for _, copy in of.values()]
    pairs = near_duplicates(every, open_images(every))
    found = {(every[i], every[j]) for i, j in pairs[['first', 'second']].to_numpy(int)}
    assert found == set(of.values())


def test_pairs_are_those_of_all_products():
    x = torch.nn.functional.normalize(torch.randn(500, 200, generator=torch.Generator().manual_seed(0)), dim=1)
    x[400:450] = torch.nn.functional.normalize(x[:50]*(1 + .01*torch.arange(200.)/200), dim=1)
    for least in (.2, .9):
        plain = {tuple(p) for p in ((x@x.T).triu(1) >= least).nonzero().tolist()}
        for block in (64, 10_000):
            pairs = similar_pairs(x, least=least, block=block)
            assert {tuple(p) for p in pairs[['first', 'second']].to_numpy()} == plain
    pairs = similar_pairs(x[:400], x[400:])
    assert pairs['first'].sort_values().tolist() == list(range(50)) and (pairs['first'] == pairs.second).all()
    assert pairs.likeness.is_monotonic_decreasing and len(similar_pairs(x, most=7)) == 7


def test_neighbouring_slices_of_noor_are_seen(shared_data):
    files = sorted((shared_data/'noor_oct').glob('*/*/*.jpeg'))
    pairs = numbered_neighbours(files, open_images(files))
    assert pairs.likeness.median() > np.median(pairs.attrs['others']) + .2
