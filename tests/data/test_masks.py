"Masks are written and read without loss"
import numpy as np
import pytest

from mirage_nb.data.manifest import classes_of, read_manifest
from mirage_nb.data.masks import read_mask, write_mask


def test_masks_round_trip(tiny, tmp_path):
    classes = classes_of(read_manifest('Tiny'), tiny)
    y = np.random.default_rng(0).integers(0, 3, (30, 20))
    assert np.array_equal(read_mask(write_mask(tmp_path/'p.png', y, classes), classes), y)
    with pytest.raises(ValueError, match='p.png: class 3 of a set with classes 0 to 2'):
        write_mask(tmp_path/'p.png', y + 1, classes)
