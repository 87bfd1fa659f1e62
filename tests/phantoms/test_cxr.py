"Phantom chest radiographs and ultra-widefield pictures as datasets: the same everywhere, and hard enough to learn from"
import csv
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mirage_nb.data.chest.readers import read_chest
from mirage_nb.phantoms import cxr
from mirage_nb.phantoms.cxr import _LABELS, _draw_film, _phantom_cxr, make_phantom_cxr
from mirage_nb.phantoms.uwf import _phantom_uwf, make_phantom_uwf
from mirage_nb.storage import hash_file

SPLITS = 'train', 'val', 'test'


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    return make_phantom_cxr(tmp_path_factory.mktemp('d')/'Phantom_CXR', patients=80, films=3, size=64)


@pytest.fixture(scope='module')
def retinas(tmp_path_factory):
    return make_phantom_uwf(tmp_path_factory.mktemp('d')/'Phantom_UWF', patients=75, pictures=2, size=(64, 80))


def rows(path):
    with open(path, newline='') as f: return list(csv.DictReader(f))


@pytest.mark.slow
def test_same_in_another_process():
    code = ('import hashlib; from mirage_nb.phantoms.cxr import _phantom_cxr as cxr\n'
            'from mirage_nb.phantoms.uwf import _phantom_uwf as uwf\n'
            'for f in (cxr, uwf): print(hashlib.sha256(f(3, 9, 1)["image"].tobytes()).hexdigest())')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert out == [hashlib.sha256(f(3, 9, 1)['image'].tobytes()).hexdigest() for f in (_phantom_cxr, _phantom_uwf)]
    assert not np.array_equal(_phantom_cxr(0, 1)['image'], _phantom_cxr(1, 1)['image'])


@pytest.mark.slow
def test_more_patients_leave_the_earlier_ones(tmp_path):
    few, more = (make_phantom_cxr(tmp_path/f'c{n}', patients=n, films=1, size=32) for n in (40, 45))
    assert all(hash_file(p) == hash_file(more/'images'/p.name) for p in (few/'images').iterdir())
    assert rows(few/'table.csv') == rows(more/'table.csv')[:len(rows(few/'table.csv'))]
    few, more = (make_phantom_uwf(tmp_path/f'u{n}', patients=n, pictures=1, size=(32, 40)) for n in (25, 30))
    assert all(hash_file(p) == hash_file(more/p.relative_to(few)) for p in few.rglob('*.png'))


def test_films_of_a_patient_share_the_chest_and_not_the_light():
    one, two = (_draw_film(0, 3, k) for k in (0, 1))
    assert one.width == two.width and one.stout == two.stout and one.place != two.place
    assert not np.array_equal(_phantom_cxr(0, 3, 0)['image'], _phantom_cxr(0, 3, 1)['image'])


@pytest.mark.parametrize('size', [64, 200])
def test_any_size_and_masks_where_the_labels_say(size):
    for p in range(6):
        m = _phantom_cxr(0, p, 0, size)
        assert m['image'].shape == (size, size) and m['image'].dtype == np.uint8
        assert {k for k, v in m['labels'].items() if v} == set(m['masks'])
        for k, mask in m['masks'].items(): assert mask.shape == (size, size) and 0.002 < mask.mean() < 0.5, k
    u = _phantom_uwf(0, 2, 0, (size, size + 16))
    assert u['image'].shape == (size, size + 16, 3) and u['image'].dtype == np.uint8


def test_findings_change_the_film_where_they_are():
    "A film with its findings against the same film without them: what differs lies at the mask"
    plain, seen = cxr._draw_film, 0

    def healthy(*key): return cxr._Film(**{**vars(plain(*key)), 'labels': dict.fromkeys(_LABELS, 0)})
    for p in range(40):
        sick = _phantom_cxr(0, p, 0)
        kinds = {k for k in sick['masks'] if k != 'Cardiomegaly'}
        if kinds != {'Nodule'}: continue
        cxr._draw_film = healthy
        try: same = _phantom_cxr(0, p, 0)
        finally: cxr._draw_film = plain
        apart = np.abs(sick['image'].astype(float) - same['image'])
        assert apart[sick['masks']['Nodule']].mean() > 3*apart[~sick['masks']['Nodule']].mean()
        seen += 1
    assert seen >= 2


@pytest.mark.slow
def test_splits_keep_patients_apart_and_hold_every_finding(films):
    table = read_chest('Phantom_CXR', films)
    assert table.groupby('patient').split.nunique().max() == 1
    share = table.drop_duplicates('patient').split.value_counts(normalize=True)
    assert share.to_dict() == {'train': 0.6, 'val': 0.15, 'test': 0.25}
    for k in _LABELS:
        for s in SPLITS: assert (table[f'label:{k}'][table.split == s] == 1).sum() >= 3, (k, s)
    assert 0.02 < table.filter(like='label:').isna().to_numpy().mean() < 0.09
    none = (table.filter(like='label:') != 1).all(axis=1).mean()
    assert 0.25 < none < 0.55, none
    acute = table[['label:Effusion', 'label:Consolidation', 'label:Pneumothorax']].max(axis=1) == 1
    assert (table.view[acute] == 'AP').mean() > (table.view[~acute] == 'AP').mean() + 0.15


@pytest.mark.slow
def test_pixels_alone_say_little(films, retinas):
    "A linear model of small pictures is far from perfect, and what is easy in a chest is easier"
    table = read_chest('Phantom_CXR', films)
    x = np.stack([np.asarray(Image.open(p).resize((16, 16))).ravel()/255 for p in table.image])
    train, auc = (table.split != 'test').to_numpy(), {}
    for k in _LABELS:
        y = table[f'label:{k}'].to_numpy()
        a, b = train & ~np.isnan(y), ~train & ~np.isnan(y)
        model = LogisticRegression(C=0.01, max_iter=300).fit(x[a], y[a])
        auc[k] = roc_auc_score(y[b], model.predict_proba(x[b])[:, 1])
    assert auc['Cardiomegaly'] > 0.8 and auc['Nodule'] < 0.75 and auc['Pneumothorax'] < 0.85, auc
    t = rows(retinas/'labels.csv')
    x = np.stack([np.asarray(Image.open(retinas/r['image']).resize((20, 16))).ravel()/255 for r in t])
    y, train = np.array([r['label'] for r in t]), np.array([r['split'] != 'test' for r in t])
    assert LogisticRegression(C=0.01, max_iter=300).fit(x[train], y[train]).score(x[~train], y[~train]) < 0.6


def test_another_content_is_not_overwritten(films):
    with pytest.raises(FileExistsError, match='Delete that folder or name another one'):
        make_phantom_uwf(films, patients=25)
    with pytest.raises(OSError, match='nothing is left there'): make_phantom_cxr(films/'table.csv'/'x', patients=40)
