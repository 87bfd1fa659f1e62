"Files that claim more than they hold are refused from their heads, in bounded memory, with the numbers"
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mirage_nb.data.files import check_image, image_size, read_image
from mirage_nb.models.checkpoints import Checkpoint, read_checkpoint, rebuild_model, save_weights
from mirage_nb.models.vit import ViT
from mirage_nb.storage import read_text
from tests.fuzz_harness import limits


def png(path, w, h):
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)
    chunks = chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(bytes(99))) + chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunks)


def npy(path, shape):
    with open(path, 'wb') as f:
        np.lib.format.write_array_header_1_0(f, {'descr': '|u1', 'fortran_order': False, 'shape': shape})
        f.write(bytes(10))


@pytest.mark.parametrize('side', [9000, 40_000, 2**31 - 1])
def test_image_heads(side, tmp_path):
    png(tmp_path/'a.png', side, side)
    for read in (lambda p: read_image(p, 3), check_image, image_size):
        with limits(), pytest.raises(ValueError, match=r'a.png .* cannot be read as an image'): read(tmp_path/'a.png')


@pytest.mark.parametrize('shape', [(10**6, 10**6), (-1, 5), (2**62, 4), (10**12,)])
def test_npy_heads(shape, tmp_path):
    npy(tmp_path/'a.npy', shape)
    with limits(), pytest.raises(ValueError, match='a.npy'): read_image(tmp_path/'a.npy', 1)


@pytest.mark.parametrize('size', ['900000 900000', '-10 -10', 'a b', '0 5', '10 10'])
def test_mha_heads(size, tmp_path):
    head = f'NDims = 2\nDimSize = {size}\nElementType = MET_UCHAR\nCompressedData = True\nElementDataFile = LOCAL\n'
    (tmp_path/'a.mha').write_bytes(head.encode() + zlib.compress(bytes(10**7)))
    with limits(), pytest.raises(ValueError, match='a.mha'): read_image(tmp_path/'a.mha', 1)


@pytest.mark.parametrize('side', [400, 9000, 13_000])
def test_tiff_heads(side, tmp_path):
    Image.fromarray(np.zeros((24, 20), np.uint8)).save(tmp_path/'a.tif')
    raw = (tmp_path/'a.tif').read_bytes()
    for tag in (256, 257):  # width and height
        at = raw.index(struct.pack('<HHI', tag, 4, 1) if struct.pack('<HHI', tag, 4, 1) in raw
                       else struct.pack('<HHI', tag, 3, 1))
        raw = raw[:at + 8] + struct.pack('<I', side) + raw[at + 12:]
    (tmp_path/'a.tif').write_bytes(raw)
    for read in (lambda p: read_image(p, 1), check_image):
        with limits(), pytest.raises(ValueError, match=r'a.tif .* cannot be read as an image: its head claims'):
            read(tmp_path/'a.tif')


def test_packed_volumes(tmp_path, monkeypatch):
    import gzip

    from mirage_nb.data.scanners import arrays
    from mirage_nb.data.scanners.reading import read_volume
    from tests.data.scanners import made
    made.write_mhd(tmp_path/'a.mhd')
    head = (tmp_path/'a.mhd').read_text().replace('a.raw', 'a.zraw')
    (tmp_path/'a.mhd').write_text(head.replace('ElementType', 'CompressedData = True\nElementType'))
    whole = zlib.compress((tmp_path/'a.raw').read_bytes())
    for content, fault in ((zlib.compress(bytes(10**8)), 'unpacks to more than the 1,440 bytes'),
                           (whole[:-2], 'unpacks to less than the 1,440 bytes')):
        (tmp_path/'a.zraw').write_bytes(content)
        with limits(), pytest.raises(ValueError, match=fault): read_volume(tmp_path/'a.mhd')
    (tmp_path/'a.zraw').write_bytes(whole)
    assert read_volume(tmp_path/'a.mhd').bscans.shape == (3, 20, 24)
    monkeypatch.setattr(arrays, '_MOST', 10**6)
    (tmp_path/'a.nii.gz').write_bytes(gzip.compress(bytes(10**7)))
    with limits(), pytest.raises(ValueError, match='a.nii.gz .* unpacked it has more than 1,000,000 bytes'):
        read_volume(tmp_path/'a.nii.gz')


def test_packed_checkpoint(tmp_path):
    torch.save({'model': {'w': torch.zeros(10**6)}}, tmp_path/'a.pth')
    with zipfile.ZipFile(tmp_path/'a.pth') as a, zipfile.ZipFile(tmp_path/'b.pth', 'w', zipfile.ZIP_DEFLATED) as b:
        for k in a.infolist(): b.writestr(k.filename, a.read(k))
    for read in (read_checkpoint, Checkpoint.peek):
        with limits(), pytest.raises(ValueError, match=r'b.pth has [\d,]+ bytes and unpacks to 4,[\d,]+: a checkpoint'):
            read(tmp_path/'b.pth')


def test_tensors_without_values(tmp_path):
    torch.save({'model': {'w': torch.zeros(1).expand(10**6, 10**6)}}, tmp_path/'a.pth')
    for read in (read_checkpoint, Checkpoint.peek):
        with limits(), pytest.raises(ValueError, match=r'a.pth: w claims \(1000000, 1000000\), 4,000,000,'):
            read(tmp_path/'a.pth')


@pytest.mark.parametrize('words', [{'d': 10**6}, {'d': -1}, {'depth': 10**6}, {'depth': -1}, {'size': 10**6},
                                   {'heads': 0}, {'patch': 0}, {'x': 1}])
def test_models_of_any_stated_size(words, tmp_path):
    bare = {'size': 16, 'patch': 8, 'd': 8, 'depth': 1, 'heads': 1}
    file = save_weights(ViT(**bare), tmp_path/'a.safetensors', {'encoder': bare | words})
    with limits(), pytest.raises(ValueError, match='a.safetensors'): rebuild_model(file, {'encoder': ViT})


@pytest.mark.parametrize('about', ['no json', '[1]', '{"encoder": 3}', '{"encoder": {"d": "x"}}', '['*20_000])
def test_descriptions_that_are_none(about, tmp_path):
    from safetensors.torch import save_file
    save_file({'a': torch.zeros(1)}, tmp_path/'a.safetensors', {'about': about})
    with limits(), pytest.raises(ValueError, match='a.safetensors'):
        rebuild_model(tmp_path/'a.safetensors', {'encoder': ViT})


def test_integer_keys(tmp_path):
    torch.save({'model': {0: torch.zeros(1)}}, tmp_path/'a.pth')
    with pytest.raises(ValueError, match='a.pth holds no model'): read_checkpoint(tmp_path/'a.pth')


def test_packed_text(tmp_path, monkeypatch):
    import gzip

    from mirage_nb import storage
    monkeypatch.setattr(storage, '_MOST', 10**6)
    (tmp_path/'t.csv').write_bytes(gzip.compress(b'a'*10**7))
    with pytest.raises(ValueError, match='t.csv .* unpacked it has more than 1000000'): read_text(tmp_path/'t.csv')
