"Volumes of every kind of scanner file; damaged files are named, whatever their bytes do to the parsers"
import os
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from mirage_nb.data.scanners.reading import parts_of_scan, read_identified, read_volume, scanner_kind
from mirage_nb.data.scanners.volume import DamagedFile, Spacing
from tests.data.scanners.made import ENDINGS, LINES, SECRETS, WHO, WRITERS, H, N, W, e2e_bytes, pixels

STATED = Spacing(.0039, .0118, .24)


@pytest.fixture(autouse=True)
def keys(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))


def made(folder, kind, seed=0):
    if kind == 'e2e': pytest.importorskip('oct_converter', reason="pip install 'mirage_nb[scanners]'")
    path = folder/f'scan{ENDINGS[kind]}'
    WRITERS[kind](path, seed)
    return path


@pytest.mark.filterwarnings('ignore:a key for pseudonyms')
@pytest.mark.parametrize('kind', WRITERS)
def test_kinds(tmp_path, kind):
    who, (v,) = read_identified(made(tmp_path, kind))
    if kind == 'fundus':
        assert v.slo.shape == (H, W, 3) and not len(v.bscans) and v.slo_spacing == (.0039, .0118)
    else: assert v.bscans.shape == (N, H, W)
    if kind in ('vol', 'xml', 'fda', 'dicom', 'mat', 'mhd', 'nifti'):  # without loss
        assert np.abs(v.bscans.astype(int) - pixels()).max() <= (kind == 'vol')
    assert v.spacing == {'mat': None, 'e2e': None, 'fundus': None}.get(kind, v.spacing)  # stated nowhere
    if kind in ('vol', 'xml', 'dicom', 'mhd'): assert v.spacing == STATED
    if kind in ('fda', 'fds', 'nifti'):
        assert np.allclose((v.spacing.depth, v.spacing.across, v.spacing.between), (.0039, .0118, .24))
    assert v.laterality == (None if kind in ('mat', 'mhd', 'nifti') else 'OD')
    rows = {k: float(x[1, 5]) for k, x in v.layers.items()}
    assert rows == {'vol': LINES, 'xml': LINES}.get(kind, rows)
    if kind in ('fda', 'fds', 'e2e'): assert rows == {'ILM': 2., 'BM': 12.}
    assert (v.slo is not None) == (kind in ('vol', 'xml', 'fda', 'fds', 'e2e', 'fundus'))
    assert v.pseudonym[0] == ('U' if kind in ('mat', 'mhd', 'nifti') else 'P')
    shown = f'{who!r} {v!r} {v.ids} {v}'.lower()
    assert not [s for s in SECRETS if s in shown]


@pytest.mark.filterwarnings('ignore:a key for pseudonyms')
def test_one_patient_in_all_formats(tmp_path):
    names = {read_volume(made(tmp_path, k)).pseudonym for k in ('vol', 'xml', 'fda', 'fds', 'dicom', 'fundus')}
    assert len(names) == 1
    os.environ['MIRAGE_KEYS'] = str(tmp_path/'other keys')
    assert read_volume(tmp_path/'scan.vol').pseudonym not in names


@pytest.mark.filterwarnings('ignore:a key for pseudonyms')
@pytest.mark.parametrize('kind', WRITERS)
def test_damaged_bytes(tmp_path, kind):
    "Cut at any place and with any bit changed, a file is read or called damaged; nothing of its content is told"
    path = made(tmp_path, kind)
    raw, whole = path.read_bytes(), read_volume(path)
    rng, n, faults = np.random.default_rng(0), 4 if kind == 'e2e' else 40, 0
    cuts = [raw[:int(k)] for k in np.linspace(0, len(raw) - 1, n)]
    at = [*range(0, min(len(raw), 8*n), 8), *rng.integers(0, len(raw), n)]
    flips = [raw[:k] + bytes([raw[k] ^ 1 << int(rng.integers(8))]) + raw[k + 1:] for k in at]
    for content in (*cuts, *flips):
        path.write_bytes(content)
        if not scanner_kind(path): continue  # no mark and no name says what it is
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('error')  # what a parser says holds values of the file
                v = read_volume(path)
        except DamagedFile as e:
            faults += 1
            assert str(path) in str(e) and path.name not in e.what and not [s for s in SECRETS if s in e.what.lower()]
        else: assert v.sha256 != whole.sha256 and (v.bscans.ndim == 3)
    assert faults > 2


@pytest.mark.filterwarnings('ignore:a key for pseudonyms')
def test_offsets(tmp_path):
    path = made(tmp_path, 'vol')
    raw = bytearray(path.read_bytes())
    at = 2048 + 12*16 + 2048 + 4*(H*W - 1) + 3  # the last byte of the last pixel of the first B-scan
    raw[at] = 0xbf                              # its sign
    path.write_bytes(raw)
    fault = r'scan.vol cannot be read: B-scan 1 of 3 holds -.*Bytes of the file have changed'
    with pytest.raises(DamagedFile, match=fault) as e: read_volume(path)
    assert e.value.offset == at - 3


def test_missing_parts(tmp_path):
    path = made(tmp_path, 'xml')
    parts = parts_of_scan(path, 'xml')
    assert len(parts) == N + 1 and all(p.exists() for p in parts)
    parts[2].unlink()
    with pytest.raises(DamagedFile, match='B-scan 2 of 3: its image file is not beside the XML'): read_volume(path)
    path = made(tmp_path, 'mhd')
    path.with_suffix('.raw').unlink()
    with pytest.raises(DamagedFile, match='the file of its pixels is not beside it'): read_volume(path)


def test_e2e_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'oct_converter.readers', None)
    (tmp_path/'scan.e2e').write_bytes(e2e_bytes())
    fault = r"\.e2e files take it. Install it: pip install 'mirage_nb\[scanners\]'"
    with pytest.raises(ModuleNotFoundError, match=fault): read_volume(tmp_path/'scan.e2e')


@pytest.mark.filterwarnings('ignore:a key for pseudonyms')
def test_content_before_name(tmp_path):
    for kind, name in (('vol', 'a.bin'), ('dicom', 'IM000001'), ('fda', 'b.vol')):
        WRITERS[kind](tmp_path/name)
        assert read_volume(tmp_path/name).bscans.shape == (N, H, W)


@pytest.mark.filterwarnings('ignore:a key for pseudonyms')
def test_real_vol(shared_data):
    "Pixels, SLO and boundaries of a real file are those that another program wrote of it"
    folder = shared_data/'oct_slo_pairs'
    v = read_volume(folder/'octolyzer_Linescan_1.vol')
    assert np.array_equal(v.bscans[0], np.asarray(Image.open(folder/'Linescan_1_bscan.png')))
    assert np.array_equal(v.slo, np.asarray(Image.open(folder/'Linescan_1_slo.png')))
    rows = np.load(folder/'Linescan_1_boundaries.npy')
    assert list(v.layers) == ['ILM', 'BM'] and v.laterality == 'OD' and v.pattern == 'line'
    for i, k in enumerate(v.layers): np.testing.assert_array_equal(v.layers[k][0], rows[i])
    assert (round(v.spacing.depth, 6), round(v.spacing.across, 5), v.spacing.between) == (.003872, .01182, None)
    assert np.allclose(v.positions, [[0, 384, 768, 384]]) and v.slo.shape == (768, 768)
    assert WHO.last not in v.name
