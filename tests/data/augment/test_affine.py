"Images of a sample are turned and scaled together, at random by its key alone"
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode

from mirage_nb.data.augment.affine import (
    PairAugment,
    _warp_images,
    _warp_maps,
    augment_pairs,
    draw_pairs,
    source_matrix,
)
from mirage_nb.data.paired import _MODALITIES, PairedDataset, folder_pairs
from mirage_nb.data.segmentation import collate
from mirage_nb.randomness import sample_key
from tests.data.samples import batch_of, same

SIZES = {'bscan': (64, 64), 'slo': (64, 64), 'bscanlayermap': (16, 16)}


# ------------------------------------------------------------------ augmentation

def test_result_belongs_to_the_sample(triplets):
    "Whatever else is in the batch, whoever reads, whichever modalities are asked for"
    ds = PairedDataset(folder_pairs(triplets), seed=5)
    every = augment_pairs(batch_of(ds, 3), sizes=SIZES)
    for i in range(6):
        assert same({k: every[k][i:i + 1] for k in _MODALITIES}, augment_pairs(batch_of(ds, 3, [i]), sizes=SIZES))
    order = [4, 1, 5]
    loader = DataLoader(ds, sampler=[(3, i) for i in order], batch_size=3, num_workers=2, collate_fn=collate)
    assert same({k: every[k][order] for k in _MODALITIES}, augment_pairs(next(iter(loader)), sizes=SIZES))
    assert not torch.equal(every['bscan'], augment_pairs(batch_of(ds, 4), sizes=SIZES)['bscan'])
    with torch.autocast('cpu', torch.bfloat16): assert same(every, augment_pairs(batch_of(ds, 3), sizes=SIZES))


@pytest.mark.slow
def test_same_in_two_processes(triplets):
    code = ('import sys, hashlib; from mirage_nb.data.augment.affine import augment_pairs;'
            'from mirage_nb.data.segmentation import collate;'
            'from mirage_nb.data.paired import PairedDataset, folder_pairs;'
            'ds = PairedDataset(folder_pairs(sys.argv[1]));'
            'b = augment_pairs(collate([ds[(1, i)] for i in range(3)]), sizes={"bscanlayermap": (16, 16)});'
            'print(hashlib.sha256(b"".join(b[k].numpy().tobytes() for k in sorted(ds.modalities))).hexdigest())')
    def hash_in(n):
        env = {**os.environ, 'PYTHONHASHSEED': n, 'OMP_NUM_THREADS': n}
        job = [sys.executable, '-c', code, str(triplets)]
        return subprocess.run(job, env=env, capture_output=True, text=True).stdout
    found = [hash_in('1'), hash_in('2')]
    assert len(found[0]) == 65 and found[0] == found[1]


def test_evaluation_is_not_random(triplets):
    ds = PairedDataset(folder_pairs(triplets))
    a, b = (augment_pairs(batch_of(ds, epoch), None, SIZES) for epoch in (0, 7))
    assert same(a, b) and torch.equal(a['slo'], batch_of(ds)['slo']/255)
    assert torch.equal(a['bscanlayermap'], batch_of(ds)['bscanlayermap'][:, 2::4, 2::4])
    quiet = PairAugment(flip=0, degrees=0, translate=0, scale=(1, 1), shear=0, shift=0)
    still = augment_pairs(batch_of(ds), quiet, SIZES)
    assert torch.equal(still['bscanlayermap'], a['bscanlayermap'])
    for k in ('bscan', 'slo'): assert (still[k] - a[k]).abs().max() < 1e-5


def test_maps_keep_their_ids():
    y = torch.tensor([0, 3, 7, 12], dtype=torch.uint8)[torch.randint(4, (32, 96, 80))]
    m = source_matrix(draw_pairs(range(32), PairAugment(degrees=180, scale=(0.3, 3))), 80/96)
    for size in ((96, 80), (24, 20), (131, 37)): assert set(_warp_maps(y, size, m).unique().tolist()) <= {0, 3, 7, 12}


@pytest.mark.parametrize('side', [512, 320])
def test_map_stays_on_its_picture(side):
    "A picture made of the map, moved at full size, shows what the map shows that was moved to a quarter"
    rows, cols = np.indices((side, side))/side
    y = torch.from_numpy(np.digitize(rows + 0.1*np.sin(9*cols), np.linspace(0.2, 0.9, 12)).astype(np.uint8))
    batch = {'key': torch.tensor([sample_key(i) for i in range(8)]), 'bscanlayermap': y.expand(8, -1, -1),
             'bscan': (20*y)[None, None].expand(8, -1, -1, -1)}
    out = augment_pairs(batch, PairAugment(shift=0), {'bscanlayermap': (side//4, side//4)})
    centre = out['bscan'][:, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3)[..., [5, 6, 9, 10]]*255/20
    sure = (centre - centre.round()).abs().amax(-1) < 0.01
    sure &= centre.amax(-1) - centre.amin(-1) < 0.01
    assert sure.float().mean() > 0.7
    assert torch.equal(centre[..., 0].round()[sure], out['bscanlayermap'][sure].float())
    turned = [PairAugment(shift=0, flip=f, degrees=0, translate=0, scale=(1, 1), shear=0) for f in (0, 1)]
    a, b = (augment_pairs(batch, s, {'bscanlayermap': (side//4, side//4)}) for s in turned)
    assert torch.allclose(a['bscan'].flip(-1), b['bscan'], atol=1e-4)


@pytest.mark.parametrize('size', [(128, 128), (96, 160)])
@pytest.mark.parametrize('face', [False, True])
def test_recipe_is_what_torchvision_does(size, face):
    "Flip, then affine by the published ranges, then the shift; within 2e-4 away from the source's edge"
    (h, w), d = size, draw_pairs(range(12), PairAugment())
    x = torch.randint(0, 256, (12, 1, h, w), dtype=torch.uint8)
    ours = _warp_images(x, size, source_matrix(d, w/h, face), d.shift.float())
    for i in range(12):
        v = (x[i].flip(-1) if d.flip[i] else x[i])/255
        move = dict(angle=0. if face else math.degrees(d.angle[i]), scale=float(d.zoom[i]),
                    translate=[float(d.right[i])*w, 0. if face else float(d.down[i])*h],
                    shear=[0. if face else math.degrees(d.shear[i]), 0.], interpolation=InterpolationMode.BILINEAR)
        theirs = (TF.affine(v, **move) + d.shift[i]).clamp(0, 1)
        assert (ours[i] - theirs).abs().max() < 2e-4


def test_draws_follow_the_recipe():
    d = draw_pairs([sample_key(k) for k in range(3000)], PairAugment())
    for v, most in ((d.angle.rad2deg(), 10), (d.right, 0.1), (d.down, 0.1), (d.zoom - 1, 0.1), (d.shear.rad2deg(), 5)):
        assert 0.95*most < v.abs().max() <= most and v.mean().abs() < 0.06*most
        assert abs(v.std()/most - 3**-0.5) < 0.03
    assert abs(d.flip.double().mean() - 0.5) < 0.03 and abs(d.shift.std() - 0.1) < 0.005
    numbers = torch.stack([v.double() for v in d])
    assert (torch.corrcoef(numbers) - torch.eye(7)).abs().max() < 0.08


@pytest.mark.parametrize('wrong, said', [
    ({'flip': 50.}, 'flip is a probability'), ({'scale': (1.1, 0.9)}, 'scale goes from above 0 up'),
    ({'degrees': -10.}, 'degrees is from 0 to 180, not -10'), ({'translate': 10.}, 'translate is from 0 to 1, not 10')])
def test_wrong_settings(wrong, said):
    with pytest.raises(ValueError, match=said): PairAugment(**wrong)


def test_images_of_another_size_are_resized(triplets):
    out = augment_pairs(batch_of(PairedDataset(folder_pairs(triplets))), sizes={'bscan': (96, 48), 'slo': (32, 32)})
    assert out['bscan'].shape == (6, 1, 96, 48) and out['slo'].shape == (6, 1, 32, 32)
    assert out['bscanlayermap'].shape == (6, 64, 64)
