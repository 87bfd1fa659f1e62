"Synthetic widefield images: the same everywhere, their classes to be seen"
import csv
import re
from collections import defaultdict

import numpy as np
import pytest
from tqdm import tqdm

from mirage_nb.phantoms import writing
from mirage_nb.phantoms.uwf import _CLASSES, _phantom_uwf, make_phantom_uwf

SPLITS = 'train', 'val', 'test'


@pytest.fixture(scope='module')
def retinas(tmp_path_factory):
    return make_phantom_uwf(tmp_path_factory.mktemp('d')/'Phantom_UWF', patients=75, pictures=2, size=(64, 80))


def rows(path):
    with open(path, newline='') as f: return list(csv.DictReader(f))


def test_a_bar_shows_how_far_the_drawing_is(tmp_path, capfd, monkeypatch):
    "If it takes long: here at once"
    monkeypatch.setattr(writing, 'tqdm', lambda n, **more: tqdm(n, **{**more, 'delay': 0}))
    make_phantom_uwf(tmp_path/'Phantom_UWF', patients=25, pictures=1, size=(32, 32))
    assert re.search(r'drawing phantoms: 100%.* 25/25 ', capfd.readouterr().err)


@pytest.mark.slow
def test_class_folders_of_the_widefield_set(retinas):
    table = rows(retinas/'labels.csv')
    assert {str(p.relative_to(retinas)) for p in retinas.rglob('*.png')} == {r['image'] for r in table}
    split, label = defaultdict(set), defaultdict(set)
    for r in table:
        assert r['image'] == f"{r['split']}/{r['label']}/{r['id']}.png"
        split[r['patient']].add(r['split']); label[r['patient']].add(r['label'])
    assert all(len(v) == 1 for v in (*split.values(), *label.values()))
    for s in SPLITS: assert {p.name for p in (retinas/s).iterdir()} == set(_CLASSES)
    assert {r['eye'] for r in table} == {'OD', 'OS'}


def test_lesions_can_be_seen():
    "Blood is darker and drusen are brighter than what surrounds them"
    for p in range(10):
        m = _phantom_uwf(1, p, 0)
        green = m['image'][..., 1].astype(float)
        for kind, sign in (('blood', -1), ('pale', 1)):
            if m['label'] not in {'blood': ('DR', 'RVO'), 'pale': ('AMD',)}[kind]: continue
            there = m['marks'][kind] > 0.7
            assert sign*(green[there].mean() - np.median(green[~there & (green > 40)])) > 5, (p, m['label'], kind)
