"Every file is opened once before a training, and all faults are one error"
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.data import opened
from mirage_nb.data.classification import load_labelled
from mirage_nb.data.faults import DataFaults, Fault
from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.opened import AS_BYTES, open_images
from mirage_nb.data.segmentation import load_seg_data
from mirage_nb.recipes.data_options import waived
from tests.data.samples import MANIFEST


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch): monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))


def noise(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 32), np.uint8)).save(path)
    return path


def spoil(tiny):
    "One fault of each kind that images with masks can have"
    train, names = tiny/'train', [f'{v}_{s}' for v in ('P1a', 'P1b', 'P2a') for s in (1, 2, 10)]
    files = {k: train/'bscan'/f'{k}.png' for k in names}
    files['P1a_1'].write_bytes(b'')
    files['P1a_2'].write_bytes(b'no image at all')
    files['P1a_10'].write_bytes(files['P1a_10'].read_bytes()[:900])
    Image.new('RGB', (60, 40), (9, 99, 200)).save(files['P1b_1'])
    Image.fromarray(np.full((40, 60), 7, np.uint8)).save(files['P1b_2'])
    masks = {k: train/'semseg'/f'{k}.png' for k in names}
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(masks['P1b_10'])
    Image.fromarray(np.full((40, 60), 77, np.uint8)).save(masks['P2a_1'])
    Image.fromarray(np.full((40, 60), 300, np.uint16)).save(masks['P2a_2'])
    masks['P2a_10'].unlink()
    shutil.copy(files['P2a_1'], tiny/'test'/'bscan'/'P4a_1.png')


EVERY = {'empty file': 'P1a_1', 'unreadable': 'P1a_2', 'truncated': 'P1a_10', 'wrong type': 'P1b_1',
         'constant image': 'P1b_2', 'wrong size': 'P1b_10', 'unknown mask value': 'P2a_1', 'out of range': 'P2a_2',
         'image without a mask': 'P2a_10', 'image in two splits': 'P2a_1 = P4a_1'}


def test_one_error_names_a_fault_of_each_kind(tiny):
    spoil(tiny)
    with pytest.raises(DataFaults) as e: load_seg_data(read_manifest('Tiny'), '', ())
    found = {r.kind: os.path.basename(r.file).removesuffix('.png') for r in e.value.table.itertuples()}
    assert found == EVERY
    text = str(e.value)
    assert ('10 faults in 28 files. Repair or remove the files. waive=constant,duplicates,unreadable,without_mask '
            'accepts constant and duplicates, and leaves out unreadable and without_mask.') in text
    assert all(f'{kind} (1):\n  ' in text for kind in EVERY)
    with pytest.raises(DataFaults, match='8 faults'):
        load_seg_data(read_manifest('Tiny'), '', ['constant', 'duplicates'])
    with pytest.raises(DataFaults, match='4 faults'):  # of a type, size or value that nobody can mean
        load_seg_data(read_manifest('Tiny'), '', waived('constant,duplicates,unreadable,without_mask'))


def test_files_without_a_readable_image_are_left_out_if_that_is_asked_for(tiny):
    (tiny/'train/bscan/P1a_2.png').write_bytes(b'')
    (tiny/'train/semseg/P1b_1.png').write_bytes(b'no image')
    with pytest.raises(DataFaults, match='2 faults .*waive=unreadable leaves out unreadable'):
        load_seg_data(read_manifest('Tiny'), '', ())
    with pytest.warns(UserWarning, match='2 faults accepted'):
        left = load_seg_data(read_manifest('Tiny'), '', waived('unreadable')).tables['train']
    assert len(left) == 7 and not {'P1a_2', 'P1b_1'} & set(left.id)


def test_a_class_that_no_training_mask_holds(tiny):
    for p in (tiny/'train'/'semseg').iterdir():
        y = np.array(Image.open(p))
        Image.fromarray(np.where(y == 160, 0, y).astype(np.uint8)).save(p)
    text = r'Fluid \(160\) is in no training mask, so it cannot be learnt; it is in val, test'
    with pytest.raises(DataFaults, match=text): load_seg_data(read_manifest('Tiny'), '', ())
    with pytest.warns(UserWarning, match='1 fault accepted'): load_seg_data(read_manifest('Tiny'), '', ['absent_class'])


def test_patients_of_two_splits_stop_a_training(tiny):
    (tiny/'manifest.toml').write_text(MANIFEST + "patient = '^(P[0-9]+)'")
    for d in ('bscan', 'semseg'): (tiny/'train'/d/'P1b_1.png').rename(tiny/'test'/d/'P1b_1.png')
    with pytest.warns(UserWarning, match='patient P1'), pytest.raises(DataFaults, match='waive=patients accepts p'):
        load_seg_data(read_manifest('Tiny'), '', ())
    with pytest.warns(UserWarning, match='patient P1'):
        data = load_seg_data(read_manifest('Tiny'), '', waived('patients, constant'))
    assert data.leaks.what.tolist() == ['P1']


def test_labels_and_files_are_named_together(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    rows = []
    for split in ('train', 'val', 'test'):
        for i in range(6): rows.append((f'{split}{i}', split, ('AMD', 'DME')[i % 2]))
    table = pd.DataFrame(rows, columns=['id', 'split', 'dx'])
    for i, k in enumerate(table.id): noise(tmp_path/'Eyes'/f'{k}.png', i)
    (tmp_path/'Eyes'/'test1.png').write_bytes((tmp_path/'Eyes'/'test1.png').read_bytes()[:99])
    (tmp_path/'Eyes'/'train5.png').unlink()
    table.loc[table.id == 'val3', 'dx'] = 'CNV'
    table.to_csv(tmp_path/'Eyes'/'t.csv', index=False)
    facts = ''.join(f'{k} = "x"\n' for k in ('title', 'modality', 'source', 'licence', 'citation', 'get'))
    (tmp_path/'Eyes'/'manifest.toml').write_text(
        f'task = "classification"\nlayout = "table"\n{facts}[labels]\ntable = "t.csv"\nimage = "{{id}}.png"\n'
        'label = "dx"\nsplit = "split"\nclasses = ["AMD", "DME", "drusen"]\n')
    with pytest.raises(DataFaults) as e: load_labelled(read_manifest('Eyes'))
    assert e.value.table.kind.tolist() == ['class never present', 'label outside the list', 'missing file', 'truncated']
    text = 'train5.png is not there, or several files have its name\n  Get them, or leave them out by waive=unreadable'
    assert text in str(e.value)
    with pytest.raises(DataFaults, match='2 faults'), pytest.warns(UserWarning, match='2 faults accepted'):
        load_labelled(read_manifest('Eyes'), waived('unreadable'))
    listed = list[Fault]()
    left = load_labelled(read_manifest('Eyes'), waived('unreadable'), found=listed).table
    assert len(left) == 16 and len(listed) == 4 and not {'test1', 'train5'} & set(left.id)
    assert "no class 'CNV'" in str(e.value) and 'it is the label of 1 image, the first is ' in str(e.value)
    assert 'no image of class drusen in train' in str(e.value) and 'it is in no split' in str(e.value)


def test_sites_of_names_and_of_a_column(tiny, tmp_path):
    (tiny/'manifest.toml').write_text(MANIFEST + "site = '^P([0-9])'\n")
    data = load_seg_data(read_manifest('Tiny'), 'leave out 2')
    assert set(data.tables['test'].volume) == {'P2a'} and 'the site 2 is the test' in data.drawn
    (tiny/'manifest.toml').write_text(MANIFEST + "site = '^Q([0-9])'\n")
    with pytest.raises(ValueError, match="'site' .* does not fit the file 'P1a'"):
        load_seg_data(read_manifest('Tiny'), 'leave out 2')
    table = pd.DataFrame({'id': [f'i{k}' for k in range(40)], 'dx': ['AMD', 'DME']*20, 'place': ['A']*4 + ['B']*36})
    for i, k in enumerate(table.id): noise(tmp_path/'Eyes'/f'{k}.png', i)
    table.to_csv(tmp_path/'Eyes'/'t.csv', index=False)
    facts = ''.join(f'{k} = "x"\n' for k in ('title', 'modality', 'source', 'licence', 'citation', 'get'))
    (tmp_path/'Eyes'/'manifest.toml').write_text(
        f'task = "classification"\nlayout = "table"\n{facts}[labels]\ntable = "t.csv"\nimage = "{{id}}.png"\n'
        'label = "dx"\nsite = "place"\n')
    found = load_labelled(read_manifest('Eyes'), splits='leave out A')
    assert sorted(found.splits['test'].id) == ['i0', 'i1', 'i2', 'i3']


def test_a_copy_that_was_pressed_again_stops_a_training(tiny):
    for i, p in enumerate(sorted(tiny.glob('*/bscan/*.png'))):  # structures, not noise
        small = np.random.default_rng(i).integers(20, 200, (8, 12), np.uint8)
        Image.fromarray(small).resize((60, 40), Image.Resampling.BICUBIC).save(p)
    load_seg_data(read_manifest('Tiny'), '', ())
    x = Image.open(tiny/'train'/'bscan'/'P2a_2.png')
    x.point(lambda v: v*.9 + 9).save(tiny/'test'/'bscan'/'P4a_1.png')
    with pytest.raises(DataFaults, match='waive=near_duplicates accepts') as e:
        load_seg_data(read_manifest('Tiny'), '', ())
    assert e.value.table.kind.tolist() == ['near duplicate in two splits']
    assert 'P2a_2.png (train) and ' in str(e.value) and 'P4a_1.png (test) are nearly the same image' in str(e.value)
    load_seg_data(read_manifest('Tiny'), '', ['near_duplicates'])


# ------------------------------------------------------------------ what is kept

def test_a_second_start_reads_only_what_changed(tmp_path, monkeypatch):
    files = [noise(tmp_path/'a'/f'{i}.png', i) for i in range(20)]
    for f in files: os.utime(f, ns=(0, 10**18))
    first = open_images(files)
    seen = []
    look = opened._look
    monkeypatch.setattr(opened, '_look', lambda p, *rest: seen.append(p) or look(p, *rest))
    assert open_images(files) == first and not seen
    os.utime(noise(files[4], 99), ns=(0, 10**18 + 1))
    again = open_images(files)
    assert seen == [str(files[4])] and again[4].sha256 != first[4].sha256
    assert open_images(files[:2], opened.AS_STORED)[0].pixels == 'png L' and len(seen) == 3, 'another reader'


def test_a_file_that_has_just_changed_is_read_again(tmp_path):
    f = noise(tmp_path/'a.png')
    first, = open_images([f])
    stamp = f.stat().st_mtime_ns
    x = np.array(Image.open(f))
    Image.fromarray(x[::-1]).save(f)
    os.utime(f, ns=(stamp, stamp))
    assert open_images([f])[0].sha256 != first.sha256


def test_a_cache_that_cannot_be_written_or_read_is_no_fault(tmp_path, monkeypatch, caplog):
    files = [noise(tmp_path/f'{i}.png', i) for i in range(3)]
    for f in files: os.utime(f, ns=(0, 10**18))
    first = open_images(files)
    shard = opened._shard(str(files[0]))
    lines = shard.read_text().splitlines()
    shard.write_text('\n'.join([lines[0][:50], *lines[1:], 'x']))
    assert open_images(files) == first
    (tmp_path/'plain').touch()
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'plain'))
    assert open_images(files) == first and 'facts of images are not kept for the next time' in caplog.text


def test_order_threads_and_repeats_change_nothing(tmp_path):
    files = [noise(tmp_path/f'{i}.png', i) for i in range(70)]
    files += files[:3]
    assert open_images(files, AS_BYTES, threads=7)[::-1] == open_images(files[::-1], AS_BYTES, threads=1)
