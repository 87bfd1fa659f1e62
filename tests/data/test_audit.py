"Leaks between splits, and the hash of a data set"
import numpy as np
import pytest
from PIL import Image

from mirage_nb.data.audit import find_leaks, hash_content
from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.segmentation import seg_table
from tests.data.samples import MANIFEST


def content_of(table): return hash_content(table.id, {k: table[k] for k in ('bscan', 'semseg')})


def test_patient_leak(tiny):
    (tiny/'manifest.toml').write_text(MANIFEST + "patient = '^(P[0-9]+)'")
    for d in ('bscan', 'semseg'): (tiny/'train'/d/'P1b_1.png').rename(tiny/'test'/d/'P1b_1.png')
    tables = {s: seg_table(read_manifest('Tiny'), s) for s in ('train', 'val', 'test')}
    with pytest.warns(UserWarning, match='1 in more than one split, so scores are too high: patient P1 in train, test'):
        found = find_leaks(tables)
    assert found.to_dict('records') == [{'kind': 'patient', 'what': 'P1', 'splits': 'train, test'}]
    assert not len(find_leaks({s: tables[s] for s in ('train', 'val')}))


def test_image_leak(tiny):
    (tiny/'test/bscan/P4a_1.png').write_bytes((tiny/'train/bscan/P2a_2.png').read_bytes())
    tables = {s: seg_table(read_manifest('Tiny'), s) for s in ('train', 'val', 'test')}
    with pytest.warns(UserWarning, match='image P2a_2 = P4a_1 in train, test'): find_leaks(tables, contents=True)


def test_data_hash_sees_contents(tiny):
    manifest = read_manifest('Tiny')
    before = content_of(seg_table(manifest, 'val'))
    assert before == content_of(seg_table(manifest, 'val').iloc[::-1])
    f = tiny/'val/semseg/P3a_1.png'
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(f)
    assert content_of(seg_table(manifest, 'val')) != before
