"Listing of nested folders: killed and resumed, damaged files, changes; and a small one that is opened at once"
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mirage_nb.core import log
from mirage_nb.data import image_index as module
from mirage_nb.data.image_index import _inspect_file, _read_journal, index_images
from tests.data.samples import write_nested


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    "What was looked at before the kill is not looked at again, and the result is that of one run"
    root, index = write_nested(tmp_path/'t', 600), tmp_path/'i.safetensors'
    slow = ('import sys, time; import mirage_nb.data.image_index as m; look = m._inspect_file\n'
            'def slowly(*a): time.sleep(0.005); return look(*a)\n'
            'm._inspect_file = slowly; all = m._inspect_files\n'
            'm._inspect_files = lambda *a: all(*a, batch=64)\n'
            'm.index_images(sys.argv[1], sys.argv[2], threads=1)')
    job = subprocess.Popen([sys.executable, '-c', slow, root, index])
    journal, limit = index.with_suffix('.journal'), time.monotonic() + 300
    while len(_read_journal(journal)) < 128 and time.monotonic() < limit: time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    done = len(_read_journal(journal))
    assert 128 <= done < 600 and not index.exists()
    looked, real = [], module._inspect_file
    module._inspect_file = lambda *a: looked.append(a[0]) or real(*a)
    try: listing = index_images(root, index)
    finally: module._inspect_file = real
    assert len(listing) == 600 and len(looked) == 600 - done and not journal.exists()
    assert listing.digest() == index_images(root, tmp_path/'other.safetensors').digest()


def test_later_starts_touch_no_file(tmp_path, monkeypatch):
    root, index = write_nested(tmp_path/'t', 100), tmp_path/'i.safetensors'
    first = index_images(root, index)
    for name in ('_inspect_file', '_scan_folder'): monkeypatch.setattr(module, name, lambda *a: 1/0)
    again = index_images(root, index)
    assert [again.name(i) for i in range(100)] == [first.name(i) for i in range(100)]
    assert again.digest() == first.digest()


def test_refresh_reads_only_what_changed(tmp_path, monkeypatch, caplog):
    root, index = write_nested(tmp_path/'t', 100), tmp_path/'i.safetensors'
    old = index_images(root, index)
    Image.new('RGB', (40, 30)).save(old.path(3))
    os.remove(old.path(4))
    Image.new('L', (7, 7)).save(root/'new.png')
    (root/'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 and no more')
    looked, real = [], module._inspect_file
    monkeypatch.setattr(module, '_inspect_file', lambda *a: looked.append(a[0]) or real(*a))
    with caplog.at_level('INFO', log.name): new = index_images(root, index, refresh=True)
    assert len(looked) == 3 and len(new) == 100 and list(new.faults) == ['broken.jpg']
    assert '2 new, 1 changed, 1 gone, 1 damaged' in caplog.text and 'broken.jpg' in caplog.text
    names = [new.name(i) for i in range(100)]
    assert tuple(new.shape[names.index(old.name(3))]) == (40, 30) and old.name(4) not in names and 'new.png' in names
    looked.clear()
    index_images(root, index, refresh=True)
    assert not looked                      # damaged files are not read again either


def test_a_changed_folder_renews_the_listing(tmp_path, monkeypatch, caplog):
    "Files that came, went or were renamed are noticed at the next start, and nothing else is read"
    root, index = write_nested(tmp_path/'t', 200), tmp_path/'i.safetensors'
    first, looked, real = index_images(root, index), [], module._inspect_file
    monkeypatch.setattr(module, '_inspect_file', lambda *a: looked.append(a[0]) or real(*a))
    last = first.name(199)
    for change, n, read in ((lambda: Image.new('L', (7, 7)).save(root/'s0'/'0'/'new.png'), 201, 1),
                            (lambda: (root/'s0'/'0'/'new.png').unlink(), 200, 0),
                            (lambda: (root/last).rename((root/last).with_name('other.png')), 200, 1),
                            (lambda: (root/'notes.txt').touch(), 200, 0)):
        change()
        looked.clear(), caplog.clear()
        assert len(index_images(root, index, renew=False)) == len(first)
        with caplog.at_level('INFO', log.name): first = index_images(root, index)
        assert (len(first), len(looked)) == (n, read) and 'has changed: its listing is renewed' in caplog.text
        caplog.clear()
        with caplog.at_level('INFO', log.name): index_images(root, index)
        assert not caplog.text
    assert first.digest() == index_images(root, tmp_path/'other.safetensors').digest()


def test_a_listing_of_before_is_renewed(tmp_path):
    "Listings without times of folders are taken up, and no file is read again"
    root, index = write_nested(tmp_path/'t', 20), tmp_path/'i.safetensors'
    listing = index_images(root, index)
    module._save_index(replace(listing, folders={}), index)
    again = index_images(root, index)
    assert again.digest() == listing.digest() and again.folders == listing.folders


@pytest.mark.parametrize('kind', ['png', 'jpg', 'tif', 'bmp'])
def test_copies_that_broke_off_are_found(tmp_path, kind):
    file = tmp_path/f'x.{kind}'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)).save(file)
    whole = file.read_bytes()
    assert _inspect_file(str(file), len(whole), 0)[3:] == (70, 90, '')
    for part in (0, 3, 100, len(whole)//2, len(whole) - 40):
        file.write_bytes(whole[:part])
        found = _inspect_file(str(file), part, 0)
        if kind == 'png' and part > len(whole) - 50: continue  # all pixels are there
        assert found.fault and str(tmp_path) not in found.fault, (kind, part, found)


def test_real_pictures(shared_data, tmp_path):
    listing = index_images(shared_data, tmp_path/'i.safetensors')
    assert len(listing) > 1000
    for i in range(0, len(listing), 97):
        with Image.open(listing.path(i)) as image: assert image.size == tuple(listing.shape[i]), listing.name(i)


def test_names_that_are_no_text(tmp_path):
    root = tmp_path/'t'
    root.mkdir()
    for name in ('é ü.png', 'two  blanks.png', "quote'.png"): Image.new('L', (4, 4)).save(root/name)
    listing = index_images(root, tmp_path/'i.safetensors')
    assert {listing.name(i) for i in range(3)} == {p.name for p in root.iterdir()}
    assert all(listing.path(i).exists() for i in range(3))
