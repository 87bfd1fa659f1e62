"Files that change between the check of a dataset and their use, and files that hold other pixels than they say"
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from mirage_nb.data.classification import ClsDataset, load_labelled
from mirage_nb.data.folders import list_images, scan_folder
from mirage_nb.data.image_index import index_images
from mirage_nb.data.image_sets import ImageDataset
from mirage_nb.data.input_spec import InputSpec
from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.opened import open_images
from mirage_nb.data.paired import folder_pairs
from mirage_nb.data.pixels import read_header
from mirage_nb.data.segmentation import SegDataset, load_seg_data
from mirage_nb.data.unlabelled import unlabelled_images
from mirage_nb.eval.segmentation.predict import mask_rows
from mirage_nb.eval.segmentation.report import score_folder
from tests.data.samples import write_nested

CHANGED = 'has changed since its dataset was checked'


def other(path):
    "Another image of the same size, whose file may have the same number of bytes and the same time"
    s, x = os.stat(path), np.asarray(Image.open(path))
    Image.fromarray(np.ascontiguousarray(x[::-1, ::-1])).save(path)
    os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))


@pytest.fixture
def eyes(tmp_path):
    rng = np.random.default_rng(0)
    for k in ('train/AMD/a', 'train/AMD/b', 'train/normal/c', 'test/AMD/d', 'test/normal/e'):
        (path := tmp_path/'Eyes'/f'{k}.png').parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 32), np.uint8)).save(path)
    return tmp_path/'Eyes'


def test_no_feature_is_kept_under_the_hash_of_another_image(eyes):
    "The views that features are made of, and the samples of a training"
    data = load_labelled(read_manifest(eyes))
    images = ClsDataset(data.splits['train'], data.classes, InputSpec(size=(24, 32)))
    other(images.images[1])
    assert images[0, 0]['label'] == 0
    for read in (lambda: images.view(1, -1), lambda: images[0, 1]):
        with pytest.raises(ValueError, match=f'b.png {CHANGED}'): read()
    with pytest.raises(ValueError, match=CHANGED): ImageDataset(data.splits['train'])[0, 1]


def test_masks_that_are_replaced_are_not_scored_under_the_old_hash(tiny):
    data = load_seg_data(read_manifest('Tiny'))
    table = data.tables['test']
    assert score_folder(table, tiny/'test'/'semseg', data.classes).means
    other(table.semseg[0])
    with pytest.raises(ValueError, match=f'P4a_1.png {CHANGED}'):
        list(mask_rows(table, tiny/'test'/'semseg', data.classes))
    images = SegDataset(table, data.classes, size=(40, 60))
    with pytest.raises(ValueError, match=f'semseg.*P4a_1.png {CHANGED}'): images[0, 0]
    other(table.bscan[1])
    with pytest.raises(ValueError, match=f'bscan.*P4a_2.png {CHANGED}'): images[0, 1]


def test_pairs_that_change(triplets):
    pairs = folder_pairs(triplets)
    pairs.content()
    file = pairs.files['bscan'][0]
    x = np.load(file) if file.suffix == '.npy' else None
    if x is None: other(file)
    else: np.save(file, x[..., ::-1])
    with pytest.raises(ValueError, match=CHANGED): pairs.plane('bscan', 0)


def test_a_picture_written_over_in_place(tmp_path):
    "The time of its folder stays, and its own does not; the identity of the run follows"
    root, index = write_nested(tmp_path/'t', 12), tmp_path/'i.safetensors'
    old = index_images(root, index)
    images = ImageDataset(old)
    Image.fromarray(np.random.default_rng(5).integers(0, 255, (9, 9), np.uint8)).save(old.path(3))
    with pytest.raises(ValueError, match='has changed since its folder was listed'): images[0, 3]
    new = index_images(root, index)
    assert new.digest() != old.digest() and tuple(new.shape[3]) == (9, 9)
    assert index_images(root, index, renew=False).digest() == new.digest() and ImageDataset(new)[0, 3]['id']


def test_pixels_that_are_missing(tmp_path):
    "A PNG of 60 rows that says 64, and a JPEG that says twice its height, are faults of the first check"
    x = np.random.default_rng(0).integers(0, 255, (64, 48), np.uint8)
    f = io.BytesIO()
    Image.fromarray(x).save(f, 'JPEG')
    at = f.getvalue().index(b'\xff\xc0') + 5
    (tmp_path/'a.jpg').write_bytes(f.getvalue()[:at] + struct.pack('>HH', 128, 48) + f.getvalue()[at + 4:])
    def part(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = zlib.compress(b''.join(b'\0' + r.tobytes() for r in x[:60]))
    head = part(b'IHDR', struct.pack('>IIBBBBB', 48, 64, 8, 0, 0, 0, 0))
    (tmp_path/'b.png').write_bytes(b'\x89PNG\r\n\x1a\n' + head + part(b'IDAT', rows) + part(b'IEND', b''))
    (tmp_path/'c.mha').write_text('DimSize = 0 5\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n')
    Image.fromarray(x).save(tmp_path/'good.png')
    found = open_images(sorted(tmp_path.iterdir()))
    assert [bool(k.fault) for k in found] == [True, True, True, False]
    assert 'its data end before' in found[0].fault and '3,136 bytes of pixels' in found[1].fault
    assert "DimSize '0 5'" in found[2].fault


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no named pipes here')
def test_a_named_pipe_among_images_is_passed_over(tmp_path):
    "Who opens it waits for ever"
    Image.new('L', (8, 8)).save(tmp_path/'a.png')
    os.mkfifo(tmp_path/'b.png')
    with pytest.warns(UserWarning, match='b.png is a pipe or a device, and passed over'): found = list_images(tmp_path)
    assert list(found) == ['a']
    assert 'a pipe or a device' in open_images([tmp_path/'b.png'])[0].fault
    with pytest.raises(ValueError, match='a pipe or a device'): read_header(tmp_path/'b.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert list(unlabelled_images(tmp_path).id) == ['a'] and len(index_images(tmp_path, tmp_path/'i')) == 1


@pytest.mark.parametrize('name', ['a\rb', 'a\nb', 'a\x0bb', 'a\x7fb', 'a\u2028b', 'a\x85b'])
def test_names_that_end_a_line_of_a_table(name, tmp_path):
    Image.new('L', (8, 8)).save(tmp_path/f'{name}.png')
    with pytest.raises(ValueError, match='line break or another control character'): list_images(tmp_path)
    strange = []
    assert not scan_folder(tmp_path, strange=strange).files and 'control character' in strange[0]
