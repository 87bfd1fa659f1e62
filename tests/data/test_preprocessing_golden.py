"Evaluation transforms equal the recorded ones, from the file on disk to the tensor"
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mirage_nb.data.files import read_image, unit_range
from mirage_nb.data.manifest import ClassInfo
from mirage_nb.data.masks import read_mask
from mirage_nb.data.preprocessing import _extractor_layermap, _extractor_view, _resize_mask, eval_view


@pytest.fixture(scope='module')
def recorded(golden): return load_file(golden/'preprocessing.safetensors')


def only(recorded, start):
    "The one recorded array whose name starts so; what follows is its size"
    [name] = [k for k in recorded if k.startswith(start)]
    return recorded[name]


def classes_between(values, classes):
    "Class table that a mask and its classes imply"
    pairs = np.unique(np.stack([values.ravel(), classes.ravel()]), axis=1).T
    assert len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == len(pairs)
    return [ClassInfo(int(c), int(v), f'class {c}', 'layer') for v, c in pairs]


def save(array, path):
    Image.fromarray(array).save(path)
    return path


def test_golden_segmentation_view(recorded, tmp_path):
    image, mask = (save(recorded[f'seg.raw_{k}'], tmp_path/f'{k}.png') for k in ('bscan', 'semseg'))
    x, y = only(recorded, 'seg.bscan_'), only(recorded, 'seg.semseg_')
    classes = classes_between(_resize_mask(recorded['seg.raw_semseg'], y.shape), y)
    got_x, got_y = eval_view(unit_range(read_image(image)), read_mask(mask, classes), x.shape[-2:])
    assert got_x.shape == x.shape
    np.testing.assert_allclose(got_x, x, atol=1e-6)
    np.testing.assert_array_equal(got_y, y)


def test_golden_extractor_view(recorded, tmp_path):
    x, y = only(recorded, 'wrap.bscan_'), only(recorded, 'wrap.layermap_')
    image = save(recorded['wrap.raw_bscan'], tmp_path/'x.png')
    np.testing.assert_allclose(_extractor_view(read_image(image), x.shape)[0], x, atol=1e-4)
    np.testing.assert_array_equal(_extractor_layermap(recorded['wrap.raw_layermap'], y.shape), y)
