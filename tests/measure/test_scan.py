"Which classes of the shipped manifests are layers of the retina, and what that does to its thickness"
from pathlib import Path

import numpy as np
import pytest

from mirage_nb.data.manifest import classes_of, read_manifest
from mirage_nb.data.scanners.volume import Spacing
from mirage_nb.measure.result import measure_volume
from mirage_nb.measure.scan import SegmentedVolume, layers_beneath, retinal_layers

ROOT = Path(__file__).resolve().parents[2]
SEGMENTED = [k for k in sorted(p.stem for p in (ROOT/'data_manifests').glob('*.toml'))
             if read_manifest(k).task == 'segmentation']
RETINA = {  # of each manifest: layers of the retina, and what lies below it
    'AROI': (['ILM-IPL/INL', 'IPL/INL-RPE', 'RPE-BM'], ['Under BM']),
    'Duke_DME': (['RNFL', 'GCL-IPL', 'INL'], []),
    'Duke_iAMD_labeled': (['ILM-Inner RPEDC', 'Inner RPEDC-Outer BM'], ['Below BM']),
    'GOALS': (['RNFL', 'GCIPL'], ['Choroid']),
    'Phantom_EYES': (['RNFL', 'GCL-IPL', 'INL', 'OPL-ONL', 'Photoreceptors', 'RPE'], []),
    'Phantom_OCT': (['RNFL', 'GCL-IPL', 'INL', 'OPL', 'ONL', 'Photoreceptors', 'RPE'], ['Choroid']),
    'RETOUCH': ([], []),
}


def classes(name):
    "The classes of a manifest, from a small copy of its INFO.json where the manifest names none"
    manifest, root = read_manifest(name), ROOT/'tests'/'golden'/'segmentation_eval'/name
    if manifest.classes or (root/'INFO.json').is_file(): return classes_of(manifest, root)
    assert manifest.lesions, f'{name}: nothing here names its classes'
    return ()


@pytest.mark.parametrize('name', SEGMENTED)
def test_layers_of_the_retina(name):
    assert name in RETINA, f'state in RETINA which classes of {name} are layers of the retina, and which lie below it'
    infos = classes(name)
    masks = np.arange(max(1, len(infos)), dtype=np.uint8).reshape(1, -1, 1)
    scan = SegmentedVolume(name, masks.shape, masks, infos)
    assert ([c.label for c in retinal_layers(scan)], [c.label for c in layers_beneath(scan)]) == RETINA[name]


def test_retina_of_aroi_ends_at_bruchs_membrane():
    x = np.zeros((7, 512, 64), np.uint8)
    for i, row in enumerate((100, 150, 210, 220), 1): x[:, row:] = i
    scan = SegmentedVolume('a', x.shape, x, classes('AROI'), spacing=Spacing(.0019, .0113, .12), eye='OD')
    found = measure_volume(scan, [3, 32])
    assert found.thickness.spans == 'ILM-IPL/INL to RPE-BM'
    assert found.central == pytest.approx(228)
