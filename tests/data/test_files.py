"Images of any kind are read alike, damaged ones are named"
import numpy as np
import pytest
from PIL import Image

from mirage_nb.data.files import read_image, unit_range
from mirage_nb.data.manifest import classes_of, read_manifest
from mirage_nb.data.segmentation import SegDataset, seg_table

SIZE = (48, 32)


def dataset(root, split='train', **options):
    manifest = read_manifest('Tiny')
    return SegDataset(seg_table(manifest, split), classes_of(manifest, root), **{'size': SIZE} | options)


@pytest.mark.parametrize('keep', [0, 8, 40, 0.5, 0.9], ids=str)
@pytest.mark.parametrize('kind', ['bscan', 'semseg'])
def test_damaged_png(tiny, kind, keep):
    f = tiny/'train'/kind/'P1a_1.png'
    data = f.read_bytes()
    f.write_bytes(data[:int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf'{kind}/P1a_1.png \(\d+ bytes\) cannot be read as an image: .*Copy it'):
        dataset(tiny)[0]


def test_flipped_bit(tiny):
    f = tiny/'train/bscan/P1a_1.png'
    data = bytearray(f.read_bytes())
    data[len(data)//2] ^= 1
    f.write_bytes(data)
    with pytest.raises(ValueError, match='P1a_1.png .* cannot be read as an image'): dataset(tiny)[0]


def test_colour(tiny):
    for kind, apart in (('bscan', 64), ('semseg', 1)):
        f = tiny/'train'/kind/'P1a_1.png'
        x = read_image(f)
        Image.fromarray(np.stack([x, x, x], -1)).save(f)
        assert np.array_equal(read_image(f), x)
        colour = np.stack([x, x, x], -1)
        colour[7, 9, 2] ^= apart
        Image.fromarray(colour).save(f)
        with pytest.raises(ValueError, match=rf'{kind}/P1a_1.png is in colour: .* first at row 7, column 9 with'):
            dataset(tiny)[0]
        Image.fromarray(x).save(f)


def test_kinds_of_grey(tmp_path):
    "8 and 16 bit, with and without opacity, palette, in every format, are one picture"
    x = np.random.default_rng(0).integers(20, 220, (9, 14), np.uint8)
    image = Image.fromarray(x)
    want = (x - x.min()) / np.float32(int(x.max()) - int(x.min()))
    wide = x.astype(np.uint16)
    kinds = {'a.png': image, 'b.png': image.convert('RGBA'), 'c.png': image.convert('LA'), 'd.bmp': image,
             'e.png': Image.fromarray(wide * 257), 'f.tif': Image.fromarray(wide), 'g.tiff': image,
             'h.png': image.convert('P'), 'k.gif': image, 'l.pgm': image, 'm.ppm': image.convert('RGB')}
    for name, kind in kinds.items():
        kind.save(tmp_path/name)
        got = unit_range(read_image(tmp_path/name))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-6, err_msg=name)
    Image.fromarray(want).save(tmp_path/'i.tif')
    with pytest.raises(ValueError, match='i.tif holds pixels of mode F'): unit_range(read_image(tmp_path/'i.tif'))
    image.save(tmp_path/'j.tif', save_all=True, append_images=[image])
    with pytest.raises(ValueError, match='j.tif holds 2 pages'): unit_range(read_image(tmp_path/'j.tif'))


def test_sixteen_bit_mask(tiny):
    f = tiny/'train/semseg/P1a_1.png'
    y = read_image(f).astype(np.uint16)
    Image.fromarray(y).save(f)
    assert np.array_equal(dataset(tiny).read(0)[1], y // 80)
    Image.fromarray(y * 4).save(f)
    with pytest.raises(ValueError, match='P1a_1.png holds grey value 640; a mask takes 0 to 255'): dataset(tiny)[0]


def holes(path):
    x = np.random.default_rng(0).random((24, 32), np.float32)
    x[3, 4] = np.nan
    Image.fromarray(x).save(path)


def test_a_picture_of_nan_is_never_black(tmp_path):
    holes(tmp_path/'x.tif')
    with pytest.raises(ValueError, match=r'x\.tif holds pixels that are NaN'): read_image(tmp_path/'x.tif', 3)
    head = 'NDims = 2\nDimSize = 2 1\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n'
    (tmp_path/'x.mha').write_bytes(head.encode() + np.array([1, np.inf], '<f4').tobytes())
    with pytest.raises(ValueError, match=r'x\.mha holds pixels that are NaN'): read_image(tmp_path/'x.mha', 3)
