"Masks are written and read without loss"
import numpy as np
import pytest
from PIL import Image

from mirage_nb.data.manifest import ClassInfo, classes_of, read_manifest
from mirage_nb.data.masks import read_mask, write_mask


def test_masks_round_trip(tiny, tmp_path):
    classes = classes_of(read_manifest('Tiny'), tiny)
    y = np.random.default_rng(0).integers(0, 3, (30, 20))
    assert np.array_equal(read_mask(write_mask(tmp_path/'p.png', y, classes), classes), y)
    with pytest.raises(ValueError, match='p.png: class 3 of a set with classes 0 to 2'):
        write_mask(tmp_path/'p.png', y + 1, classes)


# ------------------------------------------------------------------ masks with a palette

RED_GREEN = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
Y = np.random.default_rng(1).integers(0, 3, (30, 20), np.uint8)


def palette_mask(path, colours):
    image = Image.fromarray(Y)
    image.putpalette([v for c in colours for v in c])
    image.save(path)
    assert Image.open(path).mode == 'P'
    return path


def with_values(*values): return [ClassInfo(i, v, f'c{v}', 'layer') for i, v in enumerate(values)]


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.tif'])
def test_indices_of_a_palette_of_colours_are_the_classes(tmp_path, suffix):
    assert np.array_equal(read_mask(palette_mask(tmp_path/f'p{suffix}', RED_GREEN), with_values(0, 1, 2)), Y)
    assert np.array_equal(read_mask(tmp_path/f'p{suffix}', with_values(2, 1, 0)), 2 - Y), 'indices are grey values'


@pytest.mark.parametrize('greys, values, expected', [
    ((0, 80, 160), (0, 80, 160), Y), ((160, 80, 0), (0, 80, 160), 2 - Y),  # a palette of greys: what is shown
    ((0, 127, 255), (0, 1, 2), Y),                                         # greys that no class has: the indices
    ((0, 2, 1), (0, 1, 2), (3 - Y) % 3)])                                  # both would do: what is shown
def test_palettes_of_greys(tmp_path, greys, values, expected):
    path = palette_mask(tmp_path/'p.png', [(v, v, v) for v in greys])
    assert np.array_equal(read_mask(path, with_values(*values)), expected)


def test_index_that_no_class_has(tmp_path):
    with pytest.raises(ValueError, match='p.png holds grey value 2 .*; its classes are 0 c0, 1 c1'):
        read_mask(palette_mask(tmp_path/'p.png', RED_GREEN), with_values(0, 1))


def test_colours_without_a_palette_are_refused(tmp_path):
    Image.open(palette_mask(tmp_path/'p.png', RED_GREEN)).convert('RGB').save(tmp_path/'rgb.png')
    with pytest.raises(ValueError, match='rgb.png is in colour'): read_mask(tmp_path/'rgb.png', with_values(0, 1, 2))
