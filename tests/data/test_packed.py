"Packed sets give what the files gave, go on after a kill, and say what is wrong"
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mirage_nb.data import packed
from mirage_nb.data.packed import _main, _open_packed, open_pairs, pack, verify_packed
from mirage_nb.data.paired import _MODALITIES, PairedDataset, folder_pairs, table_pairs
from mirage_nb.storage import read_json, write_json
from tests.data.samples import IDS, batch_of, same, write_triplets

# ------------------------------------------------------------------ packed sets


def files_of(folder): return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_packed_set_gives_what_the_files_gave(triplets, tmp_path):
    pairs = folder_pairs(triplets)
    out = pack(pairs, tmp_path/'out', quiet=True)
    assert list(files_of(out)) == ['bscan.npy', 'bscanlayermap.npy', 'digests.npy', 'ids.txt', 'packed.json', 'slo.npy']
    assert not list(tmp_path.glob('*.part')) and verify_packed(_open_packed(out), quiet=True) == 6
    a, b = PairedDataset(pairs), PairedDataset(open_pairs(out))
    assert same(batch_of(a), batch_of(b)) and torch.equal(batch_of(a)['key'], batch_of(b)['key'])
    assert b.pairs.content() == pairs.content()
    assert isinstance(b.pairs.arrays['slo'].base, np.memmap) or isinstance(b.pairs.arrays['slo'], np.memmap)
    assert len(pickle.dumps(b.pairs)) < 1000 and same(batch_of(a), batch_of(pickle.loads(pickle.dumps(b))))
    assert list(PairedDataset(_open_packed(out, ['slo']), ids=['S4', 'S2'])[1]) == ['id', 'key', 'slo']
    before = (out/'slo.npy').stat().st_mtime_ns
    assert pack(pairs, out, quiet=True) == out and (out/'slo.npy').stat().st_mtime_ns == before


def test_sizes_are_made_equal(triplets, tmp_path, caplog):
    x, y = np.zeros((128, 32), np.uint8), np.full((128, 32), 12, np.uint8)
    x[:, 16:], y[:, 16:] = 255, 3
    np.save(triplets/'bscan'/'S0.npy', x)
    np.save(triplets/'bscanlayermap'/'S0.npy', y)
    got = _open_packed(pack(folder_pairs(triplets), tmp_path/'out', quiet=True))
    assert 'bscan: 1 of 6 resized to 64 x 64' in caplog.text
    assert np.unique(got.plane('bscanlayermap', 0)).tolist() == [3, 12]
    assert got.plane('bscan', 0).shape == (64, 64) and 0 < got.plane('bscan', 0)[5, 32] < 255
    small = _open_packed(pack(folder_pairs(triplets), tmp_path/'small', (16, 24), quiet=True))
    assert {small.plane(k, 1).shape for k in _MODALITIES} == {(16, 24)}
    with pytest.raises(ValueError, match='class 200'):
        np.save(triplets/'bscanlayermap'/'S5.npy', np.full((64, 64), 200, np.uint8))
        (triplets/'bscanlayermap'/'S5.png').unlink(missing_ok=True)
        pack(folder_pairs(triplets), tmp_path/'wrong', quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_interrupted_packing_goes_on(tmp_path, how):
    ids = [f'V{i:03d}' for i in range(60)]
    source, whole = write_triplets(tmp_path/'set', ids), tmp_path/'whole'
    pack(folder_pairs(source), whole, quiet=True)
    code = ('import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler);'
            'from mirage_nb.data import packed, paired; plain = packed._resize_plane;'
            'packed._resize_plane = lambda *a: (time.sleep(0.01), plain(*a))[1];'
            'packed.pack(paired.folder_pairs(sys.argv[1]), sys.argv[2], every=5)')
    job = subprocess.Popen([sys.executable, '-c', code, str(source), str(tmp_path/'out')], stderr=subprocess.DEVNULL)
    done = tmp_path/'out.part'/'done.json'
    for _ in range(6000):
        if done.exists() and read_json(done) >= 10: break
        time.sleep(0.005)
    job.send_signal(how)
    job.wait()
    assert not (tmp_path/'out').exists() and 10 <= read_json(done) < 60
    with pytest.raises(ValueError, match=r'out.part is incomplete: \d+ of 60 samples are packed. Run the command'):
        open_pairs(tmp_path/'out')
    pack(folder_pairs(source), tmp_path/'out', quiet=True)
    assert files_of(whole) == files_of(tmp_path/'out') and not done.exists()


def test_packing_refuses(triplets, tmp_path, monkeypatch):
    pairs, out = folder_pairs(triplets), tmp_path/'out'
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'a').touch()
    with pytest.raises(FileExistsError, match='full exists and is not this dataset'): pack(pairs, tmp_path/'full')
    usage = packed.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as m:
        m.setattr(packed.shutil, 'disk_usage', lambda p: usage._replace(free=1000))
        with pytest.raises(OSError, match='out takes 0.0 GiB, and 0.0 are free. Free space, or ask for a smaller size'):
            pack(pairs, out)
    assert not list(tmp_path.glob('out*'))
    (triplets/'slo'/'S1.npy').write_bytes(b'hello')
    (triplets/'bscan'/'S2.png').write_bytes(b'hello')
    with pytest.raises(ValueError, match='(?s)2 files cannot be packed:.*bscan/S2.png.*slo/S1.npy'): pack(pairs, out)
    assert not list(tmp_path.glob('out*'))


def test_a_conversion_continues_with_repaired_files(triplets, tmp_path, caplog):
    "All that cannot be used is named at once; what is packed must not change, what is not may"
    whole = files_of(pack(folder_pairs(triplets), tmp_path/'whole', quiet=True))
    spoilt = {triplets/k: (triplets/k).read_bytes() for k in ('slo/S2.png', 'slo/S5.png', 'bscanlayermap/S4.npy')}
    (triplets/'slo'/'S5.png').write_bytes(spoilt[triplets/'slo/S5.png'][:-2000])
    np.save(triplets/'bscanlayermap'/'S4.npy', np.full((64, 64), 13, np.uint8))
    Image.fromarray(np.arange(64*64*3, dtype=np.uint8).reshape(64, 64, 3)).save(triplets/'slo'/'S2.png')
    with pytest.raises(ValueError, match=r'(?s)3 files cannot be packed; repair them.* continues after 2 of 6 samples.*'
                       'S2.png is in colour.*S4.npy holds class 13.*S5.png'):
        pack(folder_pairs(triplets), tmp_path/'out', quiet=True)
    assert 'S2.png is in colour' in caplog.text and read_json(tmp_path/'out.part'/'done.json') == 2
    for file, good in spoilt.items(): file.write_bytes(good)
    before = (triplets/'bscan'/'S1.npy').stat()
    os.utime(triplets/'bscan'/'S1.npy', ns=(1, 1))
    with pytest.raises(FileExistsError, match=r'(?s)1 files have changed since they were packed in .*out.part.*S1.npy'):
        pack(folder_pairs(triplets), tmp_path/'out', quiet=True)
    os.utime(triplets/'bscan'/'S1.npy', ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FileExistsError, match='out.part is the start of another conversion. Delete it'):
        pack(folder_pairs(triplets, ['slo']), tmp_path/'out', quiet=True)
    found = files_of(pack(folder_pairs(triplets), tmp_path/'out', quiet=True))
    assert {k for k in whole if whole[k] != found[k]} == {'packed.json'} and whole.keys() == found.keys()  # dates
    assert pack(folder_pairs(triplets), tmp_path/'out', quiet=True) == tmp_path/'out'


def test_heads_name_all_that_are_wrong(triplets, tmp_path):
    Image.fromarray(np.full((64, 64), 999, np.uint16)).save(triplets/'slo'/'S2.png')
    Image.fromarray(np.zeros((64, 64), np.float32)).save(triplets/'bscan'/'S2.tif')
    (triplets/'bscan'/'S2.png').unlink()
    np.save(triplets/'slo'/'S1.npy', np.zeros((64, 64), np.float32))
    np.save(triplets/'slo'/'S3.npy', np.zeros((3, 64, 64), np.uint8))
    table = pd.DataFrame({k: map(str, v) for k, v in folder_pairs(triplets).files.items()}).assign(id=IDS)
    table.loc[4, 'slo'] = str(tmp_path/'gone.npy')
    with pytest.raises(ValueError, match=r'(?s)5 files cannot be packed:.*S2.tif holds pixels of mode F.*S1.npy holds '
                       r'float32.*S2.png holds uint16; it takes uint8.*S3.npy is of shape \(3, 64, 64\).*gone.npy'):
        pack(table_pairs(table), tmp_path/'out', quiet=True)
    assert not list(tmp_path.glob('out*'))


@pytest.mark.parametrize('spoil, said', [
    (lambda d: write_json(d/'packed.json', read_json(d/'packed.json') | {'version': 2}),
     'out is a packed dataset of version 2, and this kit reads version 1; pack it again'),
    (lambda d: write_json(d/'packed.json', [1]), 'packed.json does not describe a packed dataset'),
    (lambda d: (d/'packed.json').write_text('{"format"'), 'packed.json is not JSON'),
    (lambda d: (d/'packed.json').unlink(), 'holds none of the folders|no packed set'),
    (lambda d: (d/'slo.npy').unlink(), 'slo.npy is missing; pack the set again'),
    (lambda d: (d/'slo.npy').write_bytes((d/'slo.npy').read_bytes()[:-5]), 'slo.npy is damaged'),
    (lambda d: np.save(d/'slo.npy', np.zeros((5, 64, 64), np.uint8)), r'slo.npy is uint8 of shape \(5, 64, 64\)'),
    (lambda d: (d/'ids.txt').write_text('S0\n'), 'ids.txt names 1 samples, packed.json says 6')])
def test_packed_set_that_is_not_whole(triplets, tmp_path, spoil, said):
    out = pack(folder_pairs(triplets), tmp_path/'out', quiet=True)
    spoil(out)
    with pytest.raises((ValueError, FileNotFoundError), match=said): open_pairs(out)


def test_changed_pixels_are_found(triplets, tmp_path):
    out = pack(folder_pairs(triplets), tmp_path/'out', quiet=True)
    x = np.load(out/'bscan.npy', mmap_mode='r+')
    x[3, 5, 5] ^= 1
    x.flush()
    with pytest.raises(ValueError, match='1 images are not what was packed: bscan of S3'):
        verify_packed(_open_packed(out))


@pytest.mark.slow
def test_command(triplets, tmp_path, capsys):
    assert _main([str(triplets), str(tmp_path/'out'), '--modalities', 'slo', 'bscan', '--size', '32x48']) == 0
    said = capsys.readouterr().out
    assert said.startswith(f'{tmp_path/"out"}: 6 samples')
    assert _open_packed(tmp_path/'out').modalities == ('slo', 'bscan')
    assert json.loads(said.split('\n', 1)[1])['slo']['resized'] == 6
    assert _main([str(tmp_path/'nowhere'), str(tmp_path/'x')]) == 1
    assert capsys.readouterr().err == f'no folder {tmp_path/"nowhere"}\n'
    assert _main([str(triplets), str(tmp_path/'x'), '--modalities', 'sol']) == 1
    assert "no modality 'sol'. Did you mean 'slo'?" in capsys.readouterr().err
    for words, text in {('--size', '0'): "argument --size: '0' is no size; it takes pixels above 0, as 512",
                        ('--size', '12xa'): "argument --size: '12xa' is no size",
                        ('--classes', 'x=0'): "argument --classes: 'x=0' names no number of classes"}.items():
        with pytest.raises(SystemExit): _main([str(triplets), str(tmp_path/'x'), *words])
        assert text in ' '.join(capsys.readouterr().err.split())
    done = subprocess.run([sys.executable, '-m', 'mirage_nb.data.packed', '--help'], capture_output=True, text=True)
    text = ' '.join(done.stdout.split())
    assert done.returncode == 0 and 'FOLDER' in text and 'same command continues' in text


def test_a_part_that_was_damaged_between_two_starts(tmp_path, monkeypatch, caplog):
    "What is damaged is packed again, and the set is that of one run"
    pairs = folder_pairs(write_triplets(tmp_path/'set'))
    whole, calls, real = pack(pairs, tmp_path/'whole', quiet=True), [], packed._resize_plane

    def stop(*args):
        calls.append(1)
        if len(calls) == 3*len(pairs.modalities) + 1: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(packed, '_resize_plane', stop)
    with pytest.raises(KeyboardInterrupt): pack(pairs, tmp_path/'out', quiet=True)
    monkeypatch.setattr(packed, '_resize_plane', real)
    file = tmp_path/'out.part'/f'{pairs.modalities[0]}.npy'
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1  # of the third sample
    file.write_bytes(raw)
    again = pack(pairs, tmp_path/'out', quiet=True)
    assert '3 samples that are packed, those from number 3 on are damaged' in caplog.text
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    assert verify_packed(open_pairs(again), quiet=True) == len(pairs.ids)
