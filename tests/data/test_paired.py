"Triplets of pre-training: found, paired and checked by id, packed, and changed at random on the device"
import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode

from mirage_nb.data import packed
from mirage_nb.data.augment.affine import (
    PairAugment,
    _warp_images,
    _warp_maps,
    augment_pairs,
    draw_pairs,
    source_matrix,
)
from mirage_nb.data.augment.crops import CropAugment, _crop_together, _draw_crops, crop_views
from mirage_nb.data.packed import _main, _open_packed, open_pairs, pack, verify_packed
from mirage_nb.data.paired import _MODALITIES, FilePairs, PairedDataset, _check_pairs, folder_pairs, table_pairs
from mirage_nb.data.segmentation import collate
from mirage_nb.randomness import sample_key
from mirage_nb.recipes.pretraining import MultiMAERecipe, pretrain_recipe
from mirage_nb.storage import read_json, write_json
from mirage_nb.tasks.pretrain import pretrain_task
from mirage_nb.tasks.pretrain_mirage import _load_paired_data

SIZES = {'bscan': (64, 64), 'slo': (64, 64), 'bscanlayermap': (16, 16)}
IDS = [f'S{i}' for i in range(6)]


def write_triplets(folder, ids=IDS, size=(64, 64)):
    "Triplets in the published layout: (h, w) and (1, h, w) arrays, and images"
    for k in _MODALITIES: (folder/k).mkdir(parents=True)
    for i, id in enumerate(ids):
        rng = np.random.default_rng(i)
        y = np.sort(rng.integers(0, 13, size, np.uint8), axis=0)
        x = y*15 + rng.integers(0, 40, size, np.uint8)
        for k, v in zip(_MODALITIES, (x, rng.integers(0, 255, size, np.uint8), y), strict=True):
            if i % 3 == 2: Image.fromarray(v).save(folder/k/f'{id}.png')
            else: np.save(folder/k/f'{id}.npy', v[None] if i % 3 else v)
    return folder


@pytest.fixture
def triplets(tmp_path): return write_triplets(tmp_path/'set')


def batch_of(ds, epoch=0, which=None): return collate([ds[(epoch, i)] for i in (which or range(len(ds)))])


def same(a, b): return all(torch.equal(a[k], b[k]) for k in _MODALITIES)


# ------------------------------------------------------------------ the published layout

def test_both_shapes_and_images_read_alike(triplets, tmp_path):
    ds = PairedDataset(folder_pairs(triplets))
    assert [len(ds), *ds.ids] == [6, *IDS] and ds.pairs.modalities == _MODALITIES
    first = batch_of(ds)
    assert {first[k].dtype for k in _MODALITIES} == {torch.uint8}
    assert first['bscan'].shape == (6, 1, 64, 64) and first['bscanlayermap'].shape == (6, 64, 64)
    for k in _MODALITIES:
        for i, id in enumerate(IDS):
            np.save(triplets/k/f'{id}.npy', ds.pairs.plane(k, i))
            (triplets/k/f'{id}.png').unlink(missing_ok=True)
    assert same(first, batch_of(PairedDataset(folder_pairs(triplets))))


def test_published_triplet(shared_data, tmp_path):
    source, id = shared_data/'mirage_example'/'67115144RFITNV', '67115144RFITNV'
    for k in _MODALITIES:
        (tmp_path/k).mkdir()
        (tmp_path/k/f'{id}.npy').symlink_to(source/f'{k}.npy')
    ds = PairedDataset(folder_pairs(tmp_path))
    table = _check_pairs(ds, quiet=True).set_index('modality')
    assert table.loc['bscanlayermap', 'most'] == 11 and (table.rows == 512).all()
    out = augment_pairs(batch_of(ds), sizes={'bscanlayermap': (128, 128)})
    assert out['bscan'].shape == out['slo'].shape == (1, 1, 512, 512) and out['bscanlayermap'].shape == (1, 128, 128)
    assert out['bscan'].max() <= 1 and set(out['bscanlayermap'].unique().tolist()) <= set(range(12))
    plain = augment_pairs(batch_of(ds), None)
    assert torch.equal(plain['slo'][0, 0], torch.from_numpy(np.load(source/'slo.npy'))/255)


def test_phantoms_are_pairs(home, phantoms):
    ds = PairedDataset(open_pairs(phantoms/'Phantom_OCT'/'train'))
    assert len(ds) == 8 and len(_check_pairs(ds, quiet=True)) == 3
    assert augment_pairs(batch_of(ds), sizes=SIZES)['bscanlayermap'].max() <= 12


@pytest.mark.parametrize('asked', [['slo'], ['bscanlayermap', 'bscan']])
def test_any_subset(triplets, asked):
    (triplets/'bscanlayermap'/'S3.npy').rename(triplets/'bscanlayermap'/'T3.npy')
    if 'bscanlayermap' in asked: (triplets/'bscan'/'S3.npy').rename(triplets/'bscan'/'T3.npy')
    sample = PairedDataset(folder_pairs(triplets, asked))[0]
    assert list(sample) == ['id', 'key', *asked]
    out = augment_pairs(collate([sample]), sizes=SIZES)
    every = augment_pairs(batch_of(PairedDataset(folder_pairs(write_triplets(triplets/'whole'))), which=[0]), sizes=SIZES)
    assert all(torch.equal(out[k], every[k]) for k in asked), 'a modality depends on those beside it'


# ------------------------------------------------------------------ what can be wrong with files

def jpeg(p): Image.fromarray(np.zeros((64, 64), np.uint8)).save(p)


FAULTS = {  # what is done to the files, what reading says
    'missing partner': (lambda d: [(d/'slo'/f'{k}.npy').unlink() for k in ('S0', 'S4')],
                        r'slo lacks 2 of 6: S0, S4\. A sample takes all of bscan, slo, bscanlayermap'),
    'two lack each other': (lambda d: (d/'bscan'/'S1.npy').rename(d/'bscan'/'X.npy'),
                            'bscan lacks 1 of 7: S1; slo lacks 1 of 7: X; bscanlayermap lacks 1 of 7: X'),
    'shape': (lambda d: np.save(d/'bscan'/'S1.npy', np.zeros((3, 64, 64), np.uint8)),
              r'bscan/S1.npy is of shape \(3, 64, 64\); it takes \(rows, columns\)'),
    'size': (lambda d: np.save(d/'bscan'/'S1.npy', np.zeros((32, 64), np.uint8)),
             'bscan/S1.npy is 32 x 64, .*bscan/S0.npy 64 x 64; a batch takes one size'),
    'no pixels': (lambda d: np.save(d/'bscan'/'S1.npy', np.zeros((0, 64), np.uint8)), r'S1.npy is of shape \(0, 64\)'),
    'type': (lambda d: np.save(d/'slo'/'S1.npy', np.zeros((64, 64), np.float32)), 'slo/S1.npy holds float32; it takes'),
    '16 bits': (lambda d: Image.fromarray(np.full((64, 64), 999, np.uint16)).save(d/'slo'/'S2.png'),
                'slo/S2.png holds uint16; it takes uint8'),
    'colour': (lambda d: Image.fromarray(np.arange(64*64*3, dtype=np.uint8).reshape(64, 64, 3)).save(d/'slo'/'S2.png'),
               'slo/S2.png is in colour'),
    'class outside': (lambda d: np.save(d/'bscanlayermap'/'S1.npy', np.full((64, 64), 13, np.uint8)),
                      r'bscanlayermap/S1.npy holds class 13 \(4096 pixels, first at row 0, column 0\); it takes 0'),
    'cut array': (lambda d: (d/'slo'/'S1.npy').write_bytes((d/'slo'/'S1.npy').read_bytes()[:-9]),
                  r'slo/S1.npy is damaged or no array of numpy \(4215 bytes\): it ends after 4087 of 4096 values'),
    'cut head': (lambda d: (d/'slo'/'S1.npy').write_bytes(b'\x93NUMPY\x01\x00v'), 'slo/S1.npy is damaged or no array'),
    'no array': (lambda d: (d/'slo'/'S1.npy').write_bytes(b'hello'), 'slo/S1.npy is damaged or no array of numpy'),
    'empty file': (lambda d: (d/'slo'/'S1.npy').write_bytes(b''), r'slo/S1.npy is damaged or no array.* \(0 bytes'),
    'objects': (lambda d: np.save(d/'slo'/'S1.npy', np.array([{}]), allow_pickle=True), 'slo/S1.npy is damaged'),
    'cut image': (lambda d: (d/'slo'/'S2.png').write_bytes((d/'slo'/'S2.png').read_bytes()[:-2000]), 'slo/S2.png'),
    'twice': (lambda d: jpeg(d/'slo'/'S1.png'), 'slo/S1.png and S1.npy have one id; keep one of them'),
    'map as JPEG': (lambda d: jpeg(d/'bscanlayermap'/'S9.jpg'), 'bscanlayermap/S9.jpg cannot be a mask'),
    'empty folder': (lambda d: [p.unlink() for p in (d/'slo').iterdir()], 'slo is empty: no file in it ends in .npy'),
}


@pytest.mark.parametrize('what', FAULTS)
def test_fault_is_named(triplets, what):
    spoil, said = FAULTS[what]
    spoil(triplets)
    with pytest.raises(ValueError, match=said): _check_pairs(PairedDataset(folder_pairs(triplets)), quiet=True)


def test_hash_names_all_that_cannot_be_learnt_from(triplets):
    "Also a picture of another size, before a training starts"
    for what in ('size', 'class outside', 'cut image'): FAULTS[what][0](triplets)
    with pytest.raises(ValueError, match=r'(?s)3 of 18 pictures cannot be used:.*S1.npy is 32 x 64, .*S0.npy 64 x 64.*'
                       'S1.npy holds class 13.*S2.png'):
        folder_pairs(triplets).content()


def test_training_processes_do_not_read_all_data_first(triplets, monkeypatch):
    read = []
    monkeypatch.setattr(FilePairs, 'content', lambda self: read.append(1) or 'hash')
    task = pretrain_task(replace(pretrain_recipe('pre_mirage_small', MultiMAERecipe), dataset=str(triplets)))
    assert not read and task.sources['data train'] == 'hash' == task.sources['data train'] and read == [1]


def test_no_folder(tmp_path, triplets):
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere'): folder_pairs(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='holds none of the folders bscan, slo'): folder_pairs(triplets/'slo')
    with pytest.raises(FileNotFoundError, match="no modality 'enface'. Known: bscan, slo"):
        folder_pairs(triplets, ['enface'])


def test_tables(triplets, tmp_path):
    rows = pd.DataFrame({'id': IDS, **{k: [f'set/{k}/{i}.{"png" if n % 3 == 2 else "npy"}' for n, i in enumerate(IDS)]
                                       for k in _MODALITIES}})
    def table(t): t.to_csv(tmp_path/'t.csv', index=False); return open_pairs(tmp_path/'t.csv')
    assert table(rows[::-1]).content() == folder_pairs(triplets).content()
    gap = rows.assign(slo=[*rows.slo[:2], None, *rows.slo[3:]])
    with pytest.raises(ValueError, match='slo lacks 1 of 6: S2'): table(gap)
    with pytest.raises(ValueError, match='1 ids in more than one row: S5'): table(pd.concat([rows, rows[-1:]]))
    with pytest.raises(ValueError, match='t.csv is empty'): table(rows[:0])
    with pytest.raises(KeyError, match="no column 'id'"): table(rows.drop(columns='id'))
    with pytest.raises(KeyError, match='no column of bscan, slo, bscanlayermap; it has id'): table(rows[['id']])
    with pytest.raises(ValueError, match='1 of 6 rows have no id, the first is row 3 below the head; name each sample'):
        table(rows.assign(id=[*IDS[:2], '', *IDS[3:]]))
    named = table(rows.assign(id=['NA', 'null', '1', 'nan', '02', 'None']))
    assert named.ids == ['02', '1', 'NA', 'None', 'nan', 'null'] and named.files['slo'][2].name == 'S0.npy'
    with pytest.raises(FileNotFoundError): PairedDataset(table(rows.replace('set/bscan/S0.npy', 'set/bscan/gone.npy')))
    assert table_pairs(rows, ['slo']).modalities == ('slo',)


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


def test_crops_belong_to_the_sample_and_follow_torchvision():
    x = torch.randint(0, 256, (5, 3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    keys = torch.tensor([sample_key(2, i) for i in range(5)])
    settings = CropAugment(scale=(0.1, 1))
    out = crop_views({'image': x, 'key': keys}, settings, (32, 40))['image']
    d = _draw_crops(keys.tolist(), [(60, 90)]*5, settings)
    for i, box in enumerate(d.box.tolist()):
        alone = crop_views({'image': x[i:i + 1], 'key': keys[i:i + 1]}, settings, (32, 40))['image'][0]
        want = TF.resized_crop(x[i], *box, [32, 40], InterpolationMode.BICUBIC)
        assert torch.equal(alone, out[i])
        assert torch.equal(out[i], (want.flip(-1) if d.flip[i] else want)/255)
    apart = (_crop_together(x, d, (32, 40)) - 255*out).abs()  # as on a GPU
    assert apart.max() < 2.1 and apart.mean() < 0.1
    several = crop_views({'image': [x[0], x[1, :, :20]], 'key': keys[:2]}, settings, (32, 40))['image']
    assert torch.equal(several[0], out[0])
    with pytest.raises(TypeError, match="'image' is float32; augmentation takes uint8"):
        crop_views({'image': x/255, 'key': keys}, settings, (8, 8))


# ------------------------------------------------------------------ packed sets

def files_of(folder): return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_packed_set_gives_what_the_files_gave(triplets, tmp_path):
    pairs = folder_pairs(triplets)
    out = pack(pairs, tmp_path/'out', quiet=True)
    assert list(files_of(out)) == ['bscan.npy', 'bscanlayermap.npy', 'digests.npy', 'ids.txt', 'packed.json', 'slo.npy']
    assert not list(tmp_path.glob('*.part')) and verify_packed(_open_packed(out), quiet=True) == 6
    a, b = PairedDataset(pairs), PairedDataset(open_pairs(out))
    assert same(batch_of(a), batch_of(b)) and torch.equal(batch_of(a)['key'], batch_of(b)['key'])
    assert b.pairs.content() == pairs.content()
    assert isinstance(b.pairs.arrays['slo'].base, np.memmap) or isinstance(b.pairs.arrays['slo'], np.memmap)
    assert len(pickle.dumps(b.pairs)) < 1000 and same(batch_of(a), batch_of(pickle.loads(pickle.dumps(b))))
    assert list(PairedDataset(_open_packed(out, ['slo']), ids=['S4', 'S2'])[1]) == ['id', 'key', 'slo']
    before = (out/'slo.npy').stat().st_mtime_ns
    assert pack(pairs, out, quiet=True) == out and (out/'slo.npy').stat().st_mtime_ns == before


def test_sizes_are_made_equal(triplets, tmp_path, caplog):
    x, y = np.zeros((128, 32), np.uint8), np.full((128, 32), 12, np.uint8)
    x[:, 16:], y[:, 16:] = 255, 3
    np.save(triplets/'bscan'/'S0.npy', x)
    np.save(triplets/'bscanlayermap'/'S0.npy', y)
    got = _open_packed(pack(folder_pairs(triplets), tmp_path/'out', quiet=True))
    assert 'bscan: 1 of 6 resized to 64 x 64' in caplog.text
    assert np.unique(got.plane('bscanlayermap', 0)).tolist() == [3, 12]
    assert got.plane('bscan', 0).shape == (64, 64) and 0 < got.plane('bscan', 0)[5, 32] < 255
    small = _open_packed(pack(folder_pairs(triplets), tmp_path/'small', (16, 24), quiet=True))
    assert {small.plane(k, 1).shape for k in _MODALITIES} == {(16, 24)}
    with pytest.raises(ValueError, match='class 200'):
        np.save(triplets/'bscanlayermap'/'S5.npy', np.full((64, 64), 200, np.uint8))
        (triplets/'bscanlayermap'/'S5.png').unlink(missing_ok=True)
        pack(folder_pairs(triplets), tmp_path/'wrong', quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_interrupted_packing_goes_on(tmp_path, how):
    ids = [f'V{i:03d}' for i in range(60)]
    source, whole = write_triplets(tmp_path/'set', ids), tmp_path/'whole'
    pack(folder_pairs(source), whole, quiet=True)
    code = ('import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler);'
            'from mirage_nb.data import packed, paired; plain = packed._resize_plane;'
            'packed._resize_plane = lambda *a: (time.sleep(0.01), plain(*a))[1];'
            'packed.pack(paired.folder_pairs(sys.argv[1]), sys.argv[2], every=5)')
    job = subprocess.Popen([sys.executable, '-c', code, str(source), str(tmp_path/'out')], stderr=subprocess.DEVNULL)
    done = tmp_path/'out.part'/'done.json'
    for _ in range(6000):
        if done.exists() and read_json(done) >= 10: break
        time.sleep(0.005)
    job.send_signal(how)
    job.wait()
    assert not (tmp_path/'out').exists() and 10 <= read_json(done) < 60
    with pytest.raises(ValueError, match=r'out.part is incomplete: \d+ of 60 samples are packed. The command'):
        open_pairs(tmp_path/'out')
    pack(folder_pairs(source), tmp_path/'out', quiet=True)
    assert files_of(whole) == files_of(tmp_path/'out') and not done.exists()


def test_packing_refuses(triplets, tmp_path, monkeypatch):
    pairs, out = folder_pairs(triplets), tmp_path/'out'
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'a').touch()
    with pytest.raises(FileExistsError, match='full is there and is not this set packed'): pack(pairs, tmp_path/'full')
    usage = packed.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as m:
        m.setattr(packed.shutil, 'disk_usage', lambda p: usage._replace(free=1000))
        with pytest.raises(OSError, match='out takes 0.0 GiB, and 0.0 are free. Free space, or ask for a smaller size'):
            pack(pairs, out)
    assert not list(tmp_path.glob('out*'))
    (triplets/'slo'/'S1.npy').write_bytes(b'hello')
    (triplets/'bscan'/'S2.png').write_bytes(b'hello')
    with pytest.raises(ValueError, match='(?s)2 files cannot be packed:.*bscan/S2.png.*slo/S1.npy'): pack(pairs, out)
    assert not list(tmp_path.glob('out*'))


def test_mended_files_let_a_conversion_go_on(triplets, tmp_path, caplog):
    "All that cannot be used is named at once; what is packed must not change, what is not may"
    whole = files_of(pack(folder_pairs(triplets), tmp_path/'whole', quiet=True))
    spoilt = {triplets/k: (triplets/k).read_bytes() for k in ('slo/S2.png', 'slo/S5.png', 'bscanlayermap/S4.npy')}
    (triplets/'slo'/'S5.png').write_bytes(spoilt[triplets/'slo/S5.png'][:-2000])
    np.save(triplets/'bscanlayermap'/'S4.npy', np.full((64, 64), 13, np.uint8))
    Image.fromarray(np.arange(64*64*3, dtype=np.uint8).reshape(64, 64, 3)).save(triplets/'slo'/'S2.png')
    with pytest.raises(ValueError, match=r'(?s)3 files cannot be packed; mend them, .* goes on after 2 of 6 samples:.*'
                       'S2.png is in colour.*S4.npy holds class 13.*S5.png'):
        pack(folder_pairs(triplets), tmp_path/'out', quiet=True)
    assert 'S2.png is in colour' in caplog.text and read_json(tmp_path/'out.part'/'done.json') == 2
    for file, good in spoilt.items(): file.write_bytes(good)
    before = (triplets/'bscan'/'S1.npy').stat()
    os.utime(triplets/'bscan'/'S1.npy', ns=(1, 1))
    with pytest.raises(FileExistsError, match=r'(?s)1 files have changed since they were packed in .*out.part.*S1.npy'):
        pack(folder_pairs(triplets), tmp_path/'out', quiet=True)
    os.utime(triplets/'bscan'/'S1.npy', ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FileExistsError, match='out.part is the start of another conversion. Delete it'):
        pack(folder_pairs(triplets, ['slo']), tmp_path/'out', quiet=True)
    found = files_of(pack(folder_pairs(triplets), tmp_path/'out', quiet=True))
    assert {k for k in whole if whole[k] != found[k]} == {'packed.json'} and whole.keys() == found.keys()  # dates
    assert pack(folder_pairs(triplets), tmp_path/'out', quiet=True) == tmp_path/'out'


def test_heads_name_all_that_are_wrong(triplets, tmp_path):
    Image.fromarray(np.full((64, 64), 999, np.uint16)).save(triplets/'slo'/'S2.png')
    Image.fromarray(np.zeros((64, 64), np.float32)).save(triplets/'bscan'/'S2.tif')
    (triplets/'bscan'/'S2.png').unlink()
    np.save(triplets/'slo'/'S1.npy', np.zeros((64, 64), np.float32))
    np.save(triplets/'slo'/'S3.npy', np.zeros((3, 64, 64), np.uint8))
    table = pd.DataFrame({k: map(str, v) for k, v in folder_pairs(triplets).files.items()}).assign(id=IDS)
    table.loc[4, 'slo'] = str(tmp_path/'gone.npy')
    with pytest.raises(ValueError, match=r'(?s)5 files cannot be packed:.*S2.tif holds pixels of mode F.*S1.npy holds '
                       r'float32.*S2.png holds uint16; it takes uint8.*S3.npy is of shape \(3, 64, 64\).*gone.npy'):
        pack(table_pairs(table), tmp_path/'out', quiet=True)
    assert not list(tmp_path.glob('out*'))


def test_unfinished_set_as_a_dataset(triplets, tmp_path):
    (triplets/'slo'/'S5.png').write_bytes((triplets/'slo'/'S5.png').read_bytes()[:-2000])
    with pytest.raises(ValueError, match='S5.png'): pack(folder_pairs(triplets), tmp_path/'out', quiet=True)
    for name in ('out', 'out.part'):
        with pytest.raises(ValueError, match='out.part is incomplete: 5 of 6 samples are packed'):
            _load_paired_data(str(tmp_path/name))


@pytest.mark.parametrize('spoil, said', [
    (lambda d: write_json(d/'packed.json', read_json(d/'packed.json') | {'version': 2}),
     'out is a packed set of version 2, and this kit reads version 1; pack it again'),
    (lambda d: write_json(d/'packed.json', [1]), 'packed.json is not of a packed set'),
    (lambda d: (d/'packed.json').write_text('{"format"'), 'packed.json is not JSON'),
    (lambda d: (d/'packed.json').unlink(), 'holds none of the folders|no packed set'),
    (lambda d: (d/'slo.npy').unlink(), 'slo.npy is missing; pack the set again'),
    (lambda d: (d/'slo.npy').write_bytes((d/'slo.npy').read_bytes()[:-5]), 'slo.npy is damaged'),
    (lambda d: np.save(d/'slo.npy', np.zeros((5, 64, 64), np.uint8)), r'slo.npy is uint8 of shape \(5, 64, 64\)'),
    (lambda d: (d/'ids.txt').write_text('S0\n'), 'ids.txt names 1 samples, packed.json says 6')])
def test_packed_set_that_is_not_whole(triplets, tmp_path, spoil, said):
    out = pack(folder_pairs(triplets), tmp_path/'out', quiet=True)
    spoil(out)
    with pytest.raises((ValueError, FileNotFoundError), match=said): open_pairs(out)


def test_changed_pixels_are_found(triplets, tmp_path):
    out = pack(folder_pairs(triplets), tmp_path/'out', quiet=True)
    x = np.load(out/'bscan.npy', mmap_mode='r+')
    x[3, 5, 5] ^= 1
    x.flush()
    with pytest.raises(ValueError, match='1 pictures are not what was packed: bscan of S3'): verify_packed(_open_packed(out))


def test_command(triplets, tmp_path, capsys):
    assert _main([str(triplets), str(tmp_path/'out'), '--modalities', 'slo', 'bscan', '--size', '32x48']) == 0
    said = capsys.readouterr().out
    assert said.startswith(f'{tmp_path/"out"}: 6 samples')
    assert _open_packed(tmp_path/'out').modalities == ('slo', 'bscan')
    assert json.loads(said.split('\n', 1)[1])['slo']['resized'] == 6
    assert _main([str(tmp_path/'nowhere'), str(tmp_path/'x')]) == 1
    assert capsys.readouterr().err == f'no folder {tmp_path/"nowhere"}\n'
    assert _main([str(triplets), str(tmp_path/'x'), '--modalities', 'sol']) == 1
    assert "no modality 'sol'. Did you mean 'slo'?" in capsys.readouterr().err
    with pytest.raises(SystemExit): _main([str(triplets), str(tmp_path/'x'), '--size', '0'])
    assert "argument --size: invalid _parse_size value: '0'" in capsys.readouterr().err
    done = subprocess.run([sys.executable, '-m', 'mirage_nb.data.packed', '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and 'FOLDER' in done.stdout and 'The same command goes on' in done.stdout
