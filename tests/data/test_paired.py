"Triplets of pre-training: found, paired and checked by id, packed, and changed at random on the device"
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mirage_nb.data.augment.affine import (
    augment_pairs,
)
from mirage_nb.data.faults import DataFaults, refuse
from mirage_nb.data.packed import open_pairs, pack
from mirage_nb.data.paired import _MODALITIES, FilePairs, PairedDataset, folder_pairs, table_pairs
from mirage_nb.data.segmentation import collate
from mirage_nb.recipes.pretraining import MultiMAERecipe, pretrain_recipe
from mirage_nb.tasks.paired_sets import load_paired_data
from mirage_nb.tasks.pretrain_mirage import MirageTask
from tests.data.samples import IDS, batch_of, same, write_triplets

SIZES = {'bscan': (64, 64), 'slo': (64, 64), 'bscanlayermap': (16, 16)}


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


def test_layer_maps_with_a_palette_of_colours(triplets):
    "The indices are the class ids; elsewhere colours are no grey values"
    ds = PairedDataset(folder_pairs(triplets))
    plain, i = batch_of(ds), IDS.index('S2')
    for k in ('bscanlayermap', 'slo'):
        image = Image.fromarray(ds.pairs.plane(k, i))
        image.putpalette([v for c in range(256) for v in (c, 255 - c, 7*c % 256)])
        image.save(triplets/k/'S2.png')
        if k == 'bscanlayermap': assert same(plain, batch_of(PairedDataset(folder_pairs(triplets))))
    with pytest.raises(ValueError, match='slo/S2.png is in colour'): folder_pairs(triplets).plane('slo', i)


def test_published_triplet(shared_data, tmp_path):
    source, id = shared_data/'mirage_example'/'67115144RFITNV', '67115144RFITNV'
    for k in _MODALITIES:
        (tmp_path/k).mkdir()
        (tmp_path/k/f'{id}.npy').symlink_to(source/f'{k}.npy')
    ds = PairedDataset(folder_pairs(tmp_path))
    assert ds.pairs.faults() == [] and ds.pairs.plane('bscanlayermap', 0).max() == 11
    out = augment_pairs(batch_of(ds), sizes={'bscanlayermap': (128, 128)})
    assert out['bscan'].shape == out['slo'].shape == (1, 1, 512, 512) and out['bscanlayermap'].shape == (1, 128, 128)
    assert out['bscan'].max() <= 1 and set(out['bscanlayermap'].unique().tolist()) <= set(range(12))
    plain = augment_pairs(batch_of(ds), None)
    assert torch.equal(plain['slo'][0, 0], torch.from_numpy(np.load(source/'slo.npy'))/255)


def test_phantoms_are_pairs(home, phantoms):
    ds = PairedDataset(open_pairs(phantoms/'Phantom_OCT'/'train'))
    assert len(ds) == 8 and ds.pairs.faults() == []
    assert augment_pairs(batch_of(ds), sizes=SIZES)['bscanlayermap'].max() <= 12


@pytest.mark.parametrize('asked', [['slo'], ['bscanlayermap', 'bscan']])
def test_any_subset(triplets, asked):
    (triplets/'bscanlayermap'/'S3.npy').rename(triplets/'bscanlayermap'/'T3.npy')
    if 'bscanlayermap' in asked: (triplets/'bscan'/'S3.npy').rename(triplets/'bscan'/'T3.npy')
    sample = PairedDataset(folder_pairs(triplets, asked))[0]
    assert list(sample) == ['id', 'key', *asked]
    out = augment_pairs(collate([sample]), sizes=SIZES)
    whole = PairedDataset(folder_pairs(write_triplets(triplets/'whole')))
    every = augment_pairs(batch_of(whole, which=[0]), sizes=SIZES)
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
             'bscan/S1.npy is of 32 x 64 .*, .*bscan/S0.npy of 64 x 64 pixels; a batch takes one size'),
    'no pixels': (lambda d: np.save(d/'bscan'/'S1.npy', np.zeros((0, 64), np.uint8)), r'S1.npy is of shape \(0, 64\)'),
    'type': (lambda d: np.save(d/'slo'/'S1.npy', np.zeros((64, 64), np.float32)), 'slo/S1.npy holds float32; it takes'),
    '16 bits': (lambda d: Image.fromarray(np.full((64, 64), 999, np.uint16)).save(d/'slo'/'S2.png'),
                'slo/S2.png holds uint16; it takes uint8'),
    'colour': (lambda d: Image.fromarray(np.arange(64*64*3, dtype=np.uint8).reshape(64, 64, 3)).save(d/'slo'/'S2.png'),
               'slo/S2.png is in colour'),
    'class outside': (lambda d: np.save(d/'bscanlayermap'/'S1.npy', np.full((64, 64), 13, np.uint8)),
                      r'bscanlayermap/S1.npy holds class 13 \(4096 pixels, first at row 0, column 0\); it takes 0'),
    'cut array': (lambda d: (d/'slo'/'S1.npy').write_bytes((d/'slo'/'S1.npy').read_bytes()[:-9]),
                  r'slo/S1.npy is damaged, or not an array of NumPy \(4215 bytes\): it ends after 4087 of 4096 values'),
    'cut head': (lambda d: (d/'slo'/'S1.npy').write_bytes(b'\x93NUMPY\x01\x00v'), 'S1.npy is damaged, or not an array'),
    'no array': (lambda d: (d/'slo'/'S1.npy').write_bytes(b'hello'), 'S1.npy is damaged, or not an array of NumPy'),
    'empty file': (lambda d: (d/'slo'/'S1.npy').write_bytes(b''), r'S1.npy \(0 bytes\) cannot be read: the file is'),
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
    with pytest.raises(ValueError, match=said): refuse(folder_pairs(triplets).faults(), 'set', 18)


def test_hash_names_all_that_cannot_be_learnt_from(triplets):
    "Also a picture of another size, before a training starts"
    for what in ('size', 'class outside', 'cut image'): FAULTS[what][0](triplets)
    with pytest.raises(ValueError, match=r'(?s)3 faults in 18 files.*S2.png.*S1.npy holds class 13.*S1.npy is of 32 x '
                       '64 .*S0.npy of 64 x'):
        folder_pairs(triplets).content()


def test_all_faults_of_pairs_are_one_error(triplets):
    "Missing partners, damaged files and constant images together; the second start opens nothing"
    (triplets/'slo'/'S0.npy').unlink()
    FAULTS['cut image'][0](triplets)
    np.save(triplets/'bscan'/'S4.npy', np.full((64, 64), 9, np.uint8))
    cfg = replace(pretrain_recipe('pre_mirage_small', MultiMAERecipe), dataset=str(triplets))
    with pytest.raises(DataFaults, match='waive=constant,missing_partners,unreadable accepts constant, a') as e:
        MirageTask.from_settings(cfg).sources()
    assert sorted(e.value.table.kind) == ['constant image', 'missing partner', 'truncated']
    task = MirageTask.from_settings(replace(cfg, waive='constant,missing_partners,unreadable', val_fraction=0.))
    with pytest.warns(UserWarning, match='3 faults accepted'): assert task.sources()
    assert task.train.ids == ['S1', 'S3', 'S4', 'S5']


def test_training_processes_do_not_read_all_data_first(triplets, monkeypatch):
    read = []
    monkeypatch.setattr(FilePairs, 'content', lambda self: read.append(1) or 'hash')
    task = MirageTask.from_settings(replace(pretrain_recipe('pre_mirage_small', MultiMAERecipe), dataset=str(triplets)))
    assert task.train and not read
    assert task.sources()['data train'] == 'hash' == task.sources()['data train'] and read == [1]


def test_no_folder(tmp_path, triplets):
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere'): folder_pairs(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='holds none of the folders bscan, slo.*these by mirage-nb import'):
        folder_pairs(triplets/'slo')
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


# ------------------------------------------------------------------ packed sets

def test_unfinished_set_as_a_dataset(triplets, tmp_path):
    (triplets/'slo'/'S5.png').write_bytes((triplets/'slo'/'S5.png').read_bytes()[:-2000])
    with pytest.raises(ValueError, match='S5.png'): pack(folder_pairs(triplets), tmp_path/'out', quiet=True)
    for name in ('out', 'out.part'):
        with pytest.raises(ValueError, match='out.part is incomplete: 5 of 6 samples are packed'):
            load_paired_data(MultiMAERecipe(dataset=str(tmp_path/name)))


@pytest.mark.filterwarnings('ignore:a key for pseudonyms')
def test_volumes_become_pairs_once(tmp_path, monkeypatch):
    "A folder of scanner files is taken as it is; what lacks a modality is named with the option that asks for less"
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))
    def load(**options): return load_paired_data(MultiMAERecipe(dataset=str(tmp_path/'eyes'), **options))
    (tmp_path/'eyes').mkdir()
    for i, name in enumerate(('Doe', 'Roe')):
        x = np.random.default_rng(i).integers(0, 255, (20, 30, 2), np.uint8)
        nibabel.Nifti1Image(x, np.eye(4)).to_filename(tmp_path/'eyes'/f'{name}.nii')
    with pytest.raises(ValueError, match='4 B-scans of 2 volumes left out.*less by modalities=bscan,slo, or .*import'):
        load()
    found = [load(modalities='bscan', val_fraction=0.5) for _ in range(2)]
    assert found[0].name == 'eyes' and len(found[0].train.ids) == 4 and found[0].sources() == found[1].sources()
    assert len({k[:13] for k in found[0].held}) == 1 and len(found[0].held) == 2  # one patient
    (tmp_path/'eyes'/'Poe.vol').write_bytes(b'HSF-OCT-103')
    with pytest.raises(ValueError, match='1 fault in .*waive=unreadable leaves out unreadable') as e:
        load(modalities='bscan').sources()
    assert 'unread_' in str(e.value) and 'Poe' not in str(e.value)
    assert not any(k in str(p) for p in (tmp_path/'runs').rglob('*') for k in ('Doe', 'Roe', 'Poe'))
