"Phantom_OCT as a dataset: the same everywhere, in the published layout, and hard enough to learn from"
import csv
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirage_nb.phantoms.oct import (
    _CLASS_OF_LAYER,
    _CLASSES,
    _GREYS,
    _LAYERS,
    _LESIONS,
    _assign_split,
    _disease_from_lesions,
    _draw_disease,
    _phantom_volume,
    make_phantom_oct,
)
from mirage_nb.storage import hash_file

KINDS = 'bscan', 'semseg', 'slo', 'bscanlayermap'
SPLITS = 'train', 'val', 'test'


def pixels(file): return np.array(Image.open(file))


@pytest.fixture(scope='module')
def made(tmp_path_factory): return make_phantom_oct(tmp_path_factory.mktemp('data')/'Phantom_OCT')


@pytest.fixture(scope='module')
def rows(made):
    with open(made/'labels.csv', newline='') as f: return list(csv.DictReader(f))


def in_new_process(code, wait=True):
    job = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    return job.communicate(timeout=300)[0] if wait else job


@pytest.mark.slow
def test_same_in_another_process_and_among_more_patients(tmp_path):
    code = ('import hashlib; from mirage_nb.phantoms.oct import _phantom_volume as f; v = f(3, 9, 1, 2, (96, 128));'
            'every = b"".join(v[k].tobytes() for k in ("bscan", "semseg", "layermap", "slo"));'
            'print(hashlib.sha256(every).hexdigest())')
    assert len({in_new_process(code) for _ in range(2)}) == 1
    few, more = (make_phantom_oct(tmp_path/str(n), seed=3, patients=n, slices=1, size=(64, 64)) for n in (12, 16))
    files = {p.relative_to(few) for p in few.rglob('*.png')}
    assert files < {p.relative_to(more) for p in more.rglob('*.png')}
    assert all(hash_file(few/f) == hash_file(more/f) for f in files)
    assert not np.array_equal(_phantom_volume(0, 1, slices=1)['bscan'], _phantom_volume(1, 1, slices=1)['bscan'])


@pytest.mark.parametrize('patient', range(8))
def test_layers_in_order_and_classes_follow_them(patient):
    v = _phantom_volume(5, patient, slices=5)
    layer, semseg = v['layermap'].astype(int), v['semseg']
    assert set(np.unique(layer)) <= set(range(len(_LAYERS)))
    assert (np.diff(layer, axis=1) >= 0).all() and (layer[:, 0] == 0).all()
    plain = semseg < _CLASSES.index('Cyst')
    assert np.array_equal(semseg[plain], _CLASS_OF_LAYER[layer[plain]])
    for name, holds in (('Cyst', (4, 6)), ('SRF', (9,)), ('PED', (10,)), ('Drusen', (10,))):
        assert np.isin(layer[semseg == _CLASSES.index(name)], holds).all(), name


@pytest.mark.parametrize('size', [(256, 256), (128, 200), (320, 256)])
def test_any_size(size):
    v = _phantom_volume(0, 3, slices=2, size=size)
    assert v['bscan'].shape == v['semseg'].shape == v['layermap'].shape == (2, *size) and v['slo'].shape == size
    assert {v[k].dtype for k in ('bscan', 'semseg', 'layermap', 'slo')} == {np.dtype('uint8')}


@pytest.mark.slow
def test_labels_follow_from_the_lesions(made, rows):
    by_volume = defaultdict(set)
    for r in rows:
        mask = pixels(made/r['split']/'semseg'/f"{r['id']}.png")
        counts = {name: int((mask == _GREYS[_CLASSES.index(name)]).sum()) for name in _LESIONS}
        assert counts == {name: int(r[name]) for name in _LESIONS}
        seen = {name for name, n in counts.items() if n}
        assert r['label_slice'] == _disease_from_lesions(seen)
        by_volume[r['volume'], r['label']] |= seen
    assert all(label == _disease_from_lesions(seen) for (_, label), seen in by_volume.items())
    assert all(label == _draw_disease(0, int(v[1:4])) for v, label in by_volume)  # no lesion of the plan went unseen


@pytest.mark.slow
def test_published_layout(made, rows):
    info = json.loads((made/'INFO.json').read_text())
    assert [c['value'] for c in info.values()] == list(_GREYS) and [c['label'] for c in info.values()] == list(_CLASSES)
    ids = {s: {r['id'] for r in rows if r['split'] == s} for s in SPLITS}
    assert len({r['id'] for r in rows}) == len(rows)
    for s in SPLITS:
        for kind in KINDS: assert {p.stem for p in (made/s/kind).iterdir()} == ids[s]
    for r in rows[::5]:
        b, m, _, lm = (pixels(made/r['split']/kind/f"{r['id']}.png") for kind in KINDS)
        assert b.shape == m.shape == lm.shape == (256, 256) and b.dtype == np.uint8
        assert set(np.unique(m)) <= set(_GREYS) and lm.max() < len(_LAYERS) and b.max() > 100
        assert f"{r['volume']}_{int(r['slice']):02d}" == r['id'] and r['volume'].startswith(r['patient'])


@pytest.mark.slow
def test_splits_keep_patients_apart_and_hold_every_lesion(rows):
    split = {r['patient']: r['split'] for r in rows}
    assert all(split[r['patient']] == r['split'] == _assign_split(int(r['patient'][1:])) for r in rows)
    share = {s: sum(v == s for v in split.values())/len(split) for s in SPLITS}
    assert 0.5 < share['train'] < 0.7 and 0.1 < share['val'] < 0.2 and 0.2 < share['test'] < 0.3
    for s in SPLITS:
        for name in _LESIONS: assert sum(int(r[name]) > 30 for r in rows if r['split'] == s) >= 3, (s, name)
    assert {r['eye'] for r in rows} == {'OD', 'OS'}


def test_vessels_of_the_slo_cast_the_shadows():
    v = _phantom_volume(2, 1, slices=64)
    crossing = v['slo'][v['rows']].astype(float)  # what the en-face picture shows along each B-scan
    deep = np.where(v['semseg'] == _CLASSES.index('Photoreceptors'), v['bscan'], 0.).sum(1)
    deep /= np.maximum((v['semseg'] == _CLASSES.index('Photoreceptors')).sum(1), 1)
    own = [np.corrcoef(a - np.median(a), b - np.median(b))[0, 1] for a, b in zip(crossing, deep, strict=True)]
    other = [np.corrcoef(a, b)[0, 1] for a, b in zip(crossing, np.roll(deep, 20, axis=0), strict=True)]
    assert np.mean(own) > 0.25 and np.mean(own) > np.mean(other) + 0.25, (np.mean(own), np.mean(other))
    dark = v['vessels'][v['rows']] > 0.6
    assert deep[dark].mean() < 0.8*deep[~dark].mean()


@pytest.mark.slow
def test_mean_position_is_a_poor_guess(made, rows):
    maps = {s: np.stack([pixels(made/s/'bscanlayermap'/f"{r['id']}.png") for r in rows if r['split'] == s])
            for s in ('train', 'test')}
    lines = np.stack([(maps['train'] < k).sum(1) for k in range(1, len(_LAYERS))]).mean(1)
    guess = _CLASS_OF_LAYER[(np.arange(256)[:, None] >= lines[:, None]).sum(0)]
    truth = _CLASS_OF_LAYER[maps['test']]
    dice = [2*((truth == k) & (guess == k)).sum()/((truth == k).sum() + (guess == k).sum()*len(truth))
            for k in range(1, _CLASSES.index('Cyst'))]
    assert np.mean(dice) < 0.35, dice
    thick = {k: np.median((truth == k).sum(1)) for k in range(1, _CLASSES.index('Cyst'))}
    assert min(thick.values()) >= 4, thick


@pytest.mark.slow
def test_layers_can_be_seen(made, rows):
    "Neighbouring layers differ by more than the noise of a short stretch of the boundary, in nearly all pictures"
    seen = []
    for r in rows[::4]:
        b, m = (pixels(made/r['split']/kind/f"{r['id']}.png") for kind in ('bscan', 'semseg'))
        layers = [b[m == _GREYS[k]] for k in range(1, _CLASSES.index('Cyst'))]
        for one, two in zip(layers, layers[1:], strict=False):
            seen.append(abs(one.mean() - two.mean())/np.sqrt((one.var() + two.var())/2))
    assert np.quantile(seen, 0.1) > 0.3 and np.median(seen) > 0.8, np.quantile(seen, [0.1, 0.5])


@pytest.mark.slow
def test_killed_in_the_middle_leaves_nothing_that_is_taken_as_whole(tmp_path):
    folder = tmp_path/'Phantom_OCT'
    code = f'from mirage_nb.phantoms.oct import make_phantom_oct; make_phantom_oct({str(folder)!r}, patients=60)'
    job = in_new_process(code, wait=False)
    limit = time.monotonic() + 300
    while len(list(tmp_path.rglob('*.png'))) < 20 and time.monotonic() < limit: time.sleep(0.02)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert len(list(tmp_path.rglob('*.png'))) >= 20 and not folder.exists()
    assert (make_phantom_oct(folder, patients=12, volumes=1, slices=1, size=(64, 64))/'labels.csv').exists()


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    code = ('from mirage_nb.phantoms.oct import make_phantom_oct as m;'
            f'print(m({str(tmp_path/"P")!r}, patients=12, slices=2, size=(64, 64)))')
    jobs = [in_new_process(code, wait=False) for _ in range(2)]
    assert {job.communicate(timeout=300)[0] for job in jobs} == {f'{tmp_path/"P"}\n'}
    assert not any(job.returncode for job in jobs)
    assert [p.name for p in tmp_path.iterdir()] == ['P']


def test_changed_settings_and_foreign_folders_are_refused(tmp_path):
    made = make_phantom_oct(tmp_path/'Phantom_OCT', patients=12, volumes=1, slices=1, size=(64, 64))
    before = hash_file(made/'labels.csv')
    with pytest.raises(FileExistsError, match='Delete that folder or name another one'): make_phantom_oct(made, seed=1)
    assert hash_file(made/'labels.csv') == before
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'photo.png').touch()
    with pytest.raises(FileExistsError, match='something that is not a phantom'): make_phantom_oct(tmp_path/'mine')
    (tmp_path/'empty').mkdir()
    assert (make_phantom_oct(tmp_path/'empty', patients=12, volumes=1, slices=1, size=(64, 64))/'INFO.json').exists()


def test_manifest_agrees():
    file = Path(__file__).parents[2]/'data_manifests'/'Phantom_OCT.toml'
    m = tomllib.loads(file.read_text())
    assert [(c['value'], c['label']) for c in m['classes']] == list(zip(_GREYS, _CLASSES, strict=True))
    assert [c['label'] for c in m['classes'] if c['group'] == 'lesion'] == list(_LESIONS)
