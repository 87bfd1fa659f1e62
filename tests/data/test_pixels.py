"Every reader gives the pixels that a viewer shows, or refuses the file"
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.data.classification import ClsDataset
from mirage_nb.data.files import check_image, image_size, read_image
from mirage_nb.data.image_index import index_images
from mirage_nb.data.input_spec import InputSpec
from mirage_nb.data.manifest import classes_of, read_manifest
from mirage_nb.data.opened import file_faults, open_images
from mirage_nb.data.paired import FilePairs
from mirage_nb.data.segmentation import SegDataset, seg_table
from mirage_nb.eval.segmentation.predict import mask_rows
from mirage_nb.eval.segmentation.report import score_folder

TURN = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.T,
        6: np.rot90, 7: lambda x: np.rot90(x, 2).T, 8: lambda x: np.rot90(x, -1)}  # what a camera stores


def png(x, kind):
    "A PNG of 16 bits; kind 0: grey, 2: RGB, 4: grey with opacity, 6: RGB with opacity"
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in x)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', *x.shape[1::-1], 16, kind, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


def tiff(x, photometric=1, planar=1, packed=False):
    "A TIFF of one strip, or of one for each channel; photometric 0: zero is white"
    parts = [np.ascontiguousarray(p).astype(x.dtype.newbyteorder('<')).tobytes()
             for p in (np.moveaxis(x, -1, 0) if planar == 2 else [x])]
    if packed: parts = [zlib.compress(p) for p in parts]
    (h, w), c, at = x.shape[:2], x.shape[2] if x.ndim == 3 else 1, 8
    offsets = [at := at + len(p) if i else 8 for i, p in enumerate(['', *parts[:-1]])]
    tags = {256: w, 257: h, 258: [8*x.itemsize]*c, 259: 8 if packed else 1, 262: photometric, 273: offsets, 277: c,
            278: h, 279: [len(p) for p in parts], 284: planar}
    body, out, tail = b''.join(parts), b'', b''
    body += b'\0'*(len(body) % 2)
    behind = 8 + len(body) + 2 + 12*len(tags) + 4
    for tag, v in tags.items():
        v, kind = v if isinstance(v, list) else [v], 'I' if tag in (273, 279) else 'H'
        data = struct.pack(f'<{len(v)}{kind}', *v)
        if len(data) > 4: tail, data = tail + data, struct.pack('<I', behind + len(tail))
        out += struct.pack('<HHI', tag, 4 if kind == 'I' else 3, len(v)) + data.ljust(4, b'\0')
    return b'II*\0' + struct.pack('<I', 8 + len(body)) + body + struct.pack('<H', len(tags)) + out + b'\0'*4 + tail


def rgb(x): return np.stack([x]*3, -1)


def voc(x):
    "The classes as indices of a palette of colours"
    image = Image.fromarray(x).convert('P')
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    image.paste(Image.fromarray(x), None)
    return image


def as_tiff(image, path, **options):
    "A TIFF, whatever its name"
    image.save(path, 'TIFF', **options)


def turned(x, tag, path, kind='PNG'):
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(np.ascontiguousarray(TURN[tag](x))).save(path, kind, exif=exif)


def thumbnail(x):
    small = Image.fromarray(x[::4, ::4])
    small.encoderinfo = {'tiffinfo': {254: 1}}
    return small


LOSSLESS = {
    'grey': lambda x, f: Image.fromarray(x).save(f), '16 bit': lambda x, f: f.write_bytes(png(x, 0)),
    'colour': lambda x, f: Image.fromarray(rgb(x)).save(f),
    'opacity': lambda x, f: Image.fromarray(x).convert('LA').save(f),
    '16 bit colour': lambda x, f: f.write_bytes(png(rgb(x), 2)),
    '16 bit with opacity': lambda x, f: f.write_bytes(png(np.stack([x, x | 7], -1), 4)),
    '16 bit colour with opacity': lambda x, f: f.write_bytes(png(np.dstack([rgb(x), 0*x.astype(int) + 65535]), 6)),
    '16 bit colour, tiff': lambda x, f: f.write_bytes(tiff(rgb(x.astype(np.uint16)), 2)),
    '16 bit colour, packed tiff': lambda x, f: f.write_bytes(tiff(rgb(x.astype(np.uint16)), 2, packed=True)),
    'channels apart': lambda x, f: f.write_bytes(tiff(rgb(x), 2, 2, packed=True)),
    'zero is white': lambda x, f: f.write_bytes(tiff(255 - x, 0)),
    '16 bit, zero is white': lambda x, f: f.write_bytes(tiff(65535 - x.astype(np.uint16), 0)),
    '16 bit, zero is white, packed': lambda x, f: f.write_bytes(tiff(65535 - x.astype(np.uint16), 0, packed=True)),
    'grey palette': lambda x, f: Image.fromarray(x).convert('P').save(f),
    'inks': lambda x, f: as_tiff(Image.fromarray(x).convert('CMYK'), f),
    **{f'turned by {t}': lambda x, f, t=t: turned(x, t, f) for t in TURN},
    **{f'tiff turned by {t}': lambda x, f, t=t: turned(x, t, f, 'TIFF') for t in TURN},
    'with a thumbnail': lambda x, f: as_tiff(Image.fromarray(x), f, save_all=True, append_images=[thumbnail(x)]),
}


@pytest.mark.parametrize('kind', LOSSLESS)
def test_image_mask_and_prediction_are_what_a_viewer_shows(tiny, kind):
    manifest = read_manifest('Tiny')
    classes, table = classes_of(manifest, tiny), seg_table(manifest, 'train')
    image, mask = table.bscan[0], table.semseg[0]
    x, y = read_image(image), read_image(mask)
    predictions = tiny/'predictions'
    predictions.mkdir()
    for k, m in zip(table.id, table.semseg, strict=True): (predictions/f'{k}.png').write_bytes(m.read_bytes())
    for shown, file in ((x, image), (y, mask), (y, predictions/f'{table.id[0]}.png')): LOSSLESS[kind](shown, file)
    check_image(image)
    assert image_size(image) == x.shape
    found_x, found_y = SegDataset(table, classes, size=(32, 48)).read(0)
    assert np.array_equal(found_x, x) and np.array_equal(found_y, y//80)
    row = next(mask_rows(table, predictions, classes))
    assert np.array_equal(row[3], y//80)
    pairs = FilePairs(['a'], {'bscan': [image], 'bscanlayermap': [mask]}, {'bscanlayermap': 161})
    if '16 bit' in kind:
        with pytest.raises(ValueError, match='holds uint16; it takes uint8'): pairs.plane('bscan', 0)
    else: assert np.array_equal(pairs.plane('bscan', 0), x) and np.array_equal(pairs.plane('bscanlayermap', 0), y)
    seen = read_image(image, 3)
    assert seen.shape == (40, 60, 3) and np.array_equal(seen[..., 0], seen[..., 2])
    if '16 bit' not in kind: assert np.array_equal(seen[..., 0], x)
    assert index_images(tiny/'train', tiny/'listing.safetensors').faults == {}


def test_indices_of_a_palette_are_classes(tiny):
    (tiny/'INFO.json').write_text('{"0": {"value": 0, "label": "a"}, "1": {"value": 1, "label": "b"}, '
                                  '"2": {"value": 2, "label": "c"}}')
    manifest = read_manifest('Tiny')
    classes, table = classes_of(manifest, tiny), seg_table(manifest, 'train')
    y = np.random.default_rng(0).integers(0, 3, (40, 60), np.uint8)
    for file in table.semseg: voc(y).save(file)
    assert np.array_equal(SegDataset(table, classes, size=(8, 8)).read(0)[1], y)
    assert score_folder(table, tiny/'train'/'semseg', classes).means['Dice, mean'] == 1
    wide = png(rgb(y), 2)
    for file in table.semseg: file.write_bytes(wide)
    assert score_folder(table, tiny/'train'/'semseg', classes).means['Dice, mean'] == 1


def test_inks_of_a_jpeg_and_a_preview_behind_it(tmp_path):
    x = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    Image.fromarray(rgb(x)).convert('CMYK').save(tmp_path/'inks.jpg', quality=100)
    Image.fromarray(x).save(tmp_path/'preview.jpg', 'MPO', save_all=True, append_images=[Image.fromarray(255 - x)],
                            quality=100)
    table = pd.DataFrame({'id': ['inks', 'preview'], 'image': [tmp_path/'inks.jpg', tmp_path/'preview.jpg']})
    data = ClsDataset(table, (), InputSpec(size=(64, 80), channels=3))
    for i in (0, 1):
        assert np.abs(data.read(i)[..., 0].astype(int) - x).max() <= 3
        assert np.abs(read_image(table.image[i]).astype(int) - x).max() <= 3
    assert not file_faults(table.image, open_images(table.image))


def test_a_scan_with_a_tint_is_grey_and_a_mask_is_not(tiny):
    manifest = read_manifest('Tiny')
    classes, table = classes_of(manifest, tiny), seg_table(manifest, 'train')
    x, data = read_image(table.bscan[0]), SegDataset(table, classes, size=(8, 8))
    Image.fromarray(np.stack([x + 3, x, x - 3], -1)).save(table.bscan[0])
    assert np.abs(data.read(0)[0].astype(int) - x).max() <= 1
    y = read_image(table.semseg[1])
    Image.fromarray(np.stack([y + 3, y, y], -1)).save(table.semseg[1])
    with pytest.raises(ValueError, match='is in colour: its channels differ'): data.read(1)


def test_a_mask_that_is_a_jpeg_is_refused_whatever_its_name(tiny):
    table, classes = seg_table(read_manifest('Tiny'), 'train'), classes_of(read_manifest('Tiny'), tiny)
    Image.fromarray(read_image(table.semseg[0])).save(table.semseg[0], 'JPEG')
    with pytest.raises(ValueError, match='P1a_1.png is compressed as JPEG, whatever its name'):
        SegDataset(table, classes, size=(8, 8)).read(0)


@pytest.mark.parametrize('packed', [False, True])
def test_sixteen_bit_channels_one_after_the_other_are_refused(tmp_path, packed):
    f = tmp_path/'a.tif'
    f.write_bytes(tiff(rgb(np.arange(12, dtype=np.uint16).reshape(3, 4)), 2, 2, packed))
    for look in (read_image, check_image, lambda p: read_image(p, 3)):
        with pytest.raises(ValueError, match='stores channels of 16 bits one after the other'): look(f)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', '.bmp', '.webp', '.gif', '.pgm', '.mha'])
def test_what_the_reader_refuses_the_first_look_refuses(tmp_path, suffix):
    "a cut file, wherever it is cut, is found by header and by the check before a training"
    f = tmp_path/f'x{suffix}'
    x = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    head = b'NDims = 2\nDimSize = 64 64\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n'
    f.write_bytes(head + x.tobytes()) if suffix == '.mha' else Image.fromarray(x).save(f)
    check_image(f)
    whole = f.read_bytes()
    for part in (.3, .6, .9, .99):
        f.write_bytes(whole[:int(len(whole)*part)])
        for look in (lambda p: read_image(p, 3), check_image):
            with pytest.raises(ValueError, match=f'x{suffix}'): look(f)
        assert file_faults([f], open_images([f]))


@pytest.mark.parametrize('swapped', [True, False])
def test_predictions_of_another_shape(tiny, swapped):
    manifest = read_manifest('Tiny')
    classes, table, folder = classes_of(manifest, tiny), seg_table(manifest, 'test'), tiny/'predictions'
    folder.mkdir()
    for k, m in zip(table.id, table.semseg, strict=True):
        y = read_image(m)
        Image.fromarray(np.ascontiguousarray(y.T) if swapped else np.kron(y, np.ones((2, 2), np.uint8))).save(
            folder/f'{k}.png')
    if swapped:
        with pytest.raises(ValueError, match='slice P4a_1: the prediction is of 60 x 40 .*mask of 40 x 60 .*: '
                                             'rows and columns are swapped'): score_folder(table, folder, classes)
        return
    with pytest.warns(UserWarning, match='3 of 3 predictions are not of the size .* P4a_1 is of 80 x 120 '
                                         '.*, its mask of 40 x 60 '): scores = score_folder(table, folder, classes)
    assert scores.means['Dice, mean'] == 1


@pytest.mark.parametrize('suffix', ['.PNG', '.tif', '.BMP'])
def test_predictions_in_another_format(tiny, suffix):
    manifest = read_manifest('Tiny')
    classes, table, folder = classes_of(manifest, tiny), seg_table(manifest, 'test'), tiny/'predictions'
    folder.mkdir()
    for k, m in zip(table.id, table.semseg, strict=True): Image.fromarray(read_image(m)).save(folder/f'{k}{suffix}')
    assert score_folder(table, folder, classes).means['Dice, mean'] == 1
