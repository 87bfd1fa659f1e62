"Datasets fetched from a local server: killed at every stage and taken up again, refused if anything is wrong"
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import zipfile

import pytest

from mirage_nb.data.fetch import fetch, main
from mirage_nb.data.manifest import dataset_dir, read_manifest
from mirage_nb.locks import hold_folder
from tests.data.fetching.servers import Site, serving
from tests.data.fetching.test_hosts import command, finished, kill_after

MANIFEST = '''title = "A toy"
task = "segmentation"
modality = "bscan"
layout = "splits"
source = "https://example.org"
licence = "CC0"
citation = "none"
get = "ask"
[fetch]
files = [{files}]
'''
IMAGE = os.urandom(50_000)


def zipped(names, top='Toy/', image=IMAGE):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as z:
        for k in names: z.writestr(f'{top}{k}', image)
    return buffer.getvalue()


def tarred(names, top='', mode='w:gz', **more):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as t:
        for k in names:
            info = tarfile.TarInfo(f'{top}{k}')
            for a, b in more.items(): setattr(info, a, b)
            info.size = 0 if more.get('type', tarfile.REGTYPE) != tarfile.REGTYPE else len(IMAGE)
            t.addfile(info, io.BytesIO(IMAGE))
    return buffer.getvalue()


@pytest.fixture
def home(tmp_path, monkeypatch):
    "Folder of a user: data/ and weights/ are MIRAGE_DATA and MIRAGE_WEIGHTS"
    for k in ('data', 'weights'): monkeypatch.setenv(f'MIRAGE_{k.upper()}', str(tmp_path/k))
    return tmp_path


def toy(home, address, *files):
    "A manifest whose files are on a server"
    path = home/'Toy.toml'
    rows = ', '.join('{' + ', '.join(f'{k} = {json.dumps(v)}' for k, v in f.items()) + '}' for f in files)
    path.write_text(MANIFEST.format(files=rows.replace('URL', address)))
    return str(path)


def below(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


NAMES = [f'train/bscan/P{i}_1.png' for i in range(3)]


@pytest.mark.slow
def test_killed_while_parts_come_and_while_unpacking(home):
    names = [f'train/bscan/P{i}_1.png' for i in range(1200)]
    content = zipped(names, image=IMAGE[:2000])
    third = len(content)//3 + 1
    parts = {f'Toy_part_a{k}': content[i*third:(i + 1)*third] for i, k in enumerate('abc')}
    site = Site({f'/{k}': v for k, v in parts.items()}, step=2**16, pause=0.03)
    with serving(site) as address:
        path = toy(home, address, {'name': 'Toy.zip', 'url': 'URL/', 'parts': list(parts)})
        desk = home/'data'/'.fetch'/'Toy'
        kill_after(command(path, home), lambda: desk.rglob('Toy_part_ab.part'), site, third//2)
        assert not (home/'data'/'Toy').exists() and not list(desk.rglob('Toy.zip'))  # never joined before all are there
        (_, first, begun), (_, second, _) = kill_after(
            command(path, home), lambda: (desk/'unpacked').rglob('P50_1.png'), site, 0)
        assert (first, second) == ('/Toy_part_ab', '/Toy_part_ac') and begun
        assert not (home/'data'/'Toy').exists() and (desk/'Toy.zip').read_bytes() == content
        finished(command(path, home))
    assert site.asked == [] and not desk.exists()  # the archive was there, and verified
    assert below(home/'data'/'Toy') == sorted([*names, 'manifest.toml', 'provenance.json'])
    assert (home/'data'/'Toy'/names[-1]).read_bytes() == IMAGE[:2000]
    assert read_manifest('Toy').title == 'A toy' and dataset_dir(read_manifest('Toy')) == (home/'data'/'Toy').resolve()


def test_lists_and_archives_make_one_folder(home):
    site = Site({'/1.tar.gz': tarred(['images/1.png']), '/2.tar.gz': tarred(['images/2.png', '._2.png']),
                 '/list.txt': b'1.png'})
    with serving(site) as address:
        files = [{'name': k, 'url': f'URL/{k}'} for k in ('1.tar.gz', '2.tar.gz', 'list.txt')]
        place = fetch(toy(home, address, *files), True)
    assert below(place) == ['images/1.png', 'images/2.png', 'list.txt', 'manifest.toml', 'provenance.json']
    note = json.loads((place/'provenance.json').read_text())
    assert [f['name'] for f in note['files']] == ['1.tar.gz', '2.tar.gz', 'list.txt'] and note['terms'] == 'CC0'
    assert note['files'][0]['address'] == f'{address}/1.tar.gz' and len(note['files'][0]['sha256']) == 64


@pytest.mark.parametrize('name, content, text', [
    ('Toy.zip', b'<!DOCTYPE html><title>Sign in', 'Toy.zip is a web page: the server sent'),
    ('Toy.zip', zipped(NAMES[:2])[:-100], 'Toy.zip is cut off: the end of a zip file is missing'),
    ('Toy.tar.gz', tarred(NAMES[:3])[:-60_000], 'Toy.tar.gz is damaged or cut off'),
    ('Toy.tar', tarred(NAMES[:3], mode='w')[:51_712*2 - 512*2], 'Toy.tar is damaged or cut off'),
    ('Toy.tar.gz', tarred(['a'], type=tarfile.SYMTYPE, linkname='/etc/passwd'), "its member 'a' is a link"),
    ('Toy.tar.gz', tarred(['a'], type=tarfile.LNKTYPE, linkname='b'), "its member 'a' is a link"),
    ('Toy.tar.gz', tarred(['a'], type=tarfile.CHRTYPE), "its member 'a' is a device"),
    ('Toy.tar.gz', tarred(['../../a']), "its member '../../a' leads out of the folder"),
    ('Toy.tar', tarred(['/tmp_of_nobody/a'], mode='w'), "leads out of the folder"),
    ('Toy.zip', zipped(['a/b', 'a']), 'two members have the place of'),
], ids=lambda v: '' if isinstance(v, bytes) else None)
def test_nothing_is_left_of_a_bad_archive(home, name, content, text):
    with serving(Site({f'/{name}': content})) as address, pytest.raises(ValueError, match=text.replace('.', r'\.')):
        fetch(toy(home, address, {'name': name, 'url': f'URL/{name}'}), True)
    assert not (home/'data'/'Toy').exists() and not list((home/'data').rglob('*.png'))


def test_error_page_with_status_200_is_not_kept(home):
    good = zipped(NAMES[:2])
    with serving(Site({'/Toy.zip': good}, page=[b'<html><body>Service is down'])) as address:
        path = toy(home, address, {'name': 'Toy.zip', 'url': 'URL/Toy.zip'})
        with pytest.raises(ValueError, match='Toy.zip is a web page.*What came is removed'): fetch(path, True)
        assert below(fetch(path, True)) == sorted([*NAMES[:2], 'manifest.toml', 'provenance.json'])


def test_later_download_is_the_same_as_the_first(home):
    site = Site({'/Toy.zip': zipped(NAMES[:2])})
    with serving(site) as address:
        path = toy(home, address, {'name': 'Toy.zip', 'url': 'URL/Toy.zip'})
        shutil.rmtree(fetch(path, True))
        fetch(path, True)
        shutil.rmtree(home/'data'/'Toy')
        site.files['/Toy.zip'] = zipped(NAMES[:3])
        with pytest.raises(ValueError, match='The source has changed it, or this download'): fetch(path, True)
    assert not (home/'data'/'Toy').exists()


def test_published_size_and_checksum(home):
    file = {'name': 'a.txt', 'url': 'URL/a.txt'}
    with serving(Site({'/a.txt': b'abc'})) as address:
        for wrong, text in (({'size': 4}, '4 are published'), ({'checksum': 'sha256:000000'}, '000000 is published')):
            with pytest.raises(ValueError, match=text): fetch(toy(home, address, file | wrong), True)
        fetch(toy(home, address, file | {'size': 3, 'checksum': 'sha256:ba7816bf'}), True)


def test_brought_files_stay_and_are_verified(home):
    files = ({'name': 'table*.csv', 'bring': 'ask the clinic'}, {'name': 'files/', 'bring': 'ask the clinic'},
             {'name': 'list.txt', 'url': 'URL/list.txt'})
    with serving(Site({'/list.txt': b'1'})) as address:
        path = toy(home, address, *files)
        with pytest.raises(FileNotFoundError, match=r'(?s)Toy is not complete. Bring .*table\*.csv: ask.*files/: ask'):
            fetch(path, True)
        (home/'data'/'Toy'/'files'/'p1').mkdir(parents=True)
        (home/'data'/'Toy'/'table_2017.csv').write_text('<html>Please sign in</html>')
        with pytest.raises(FileNotFoundError, match='files/: ask the clinic'): fetch(path, True)  # it is empty
        (home/'data'/'Toy'/'files'/'p1'/'1.png').write_bytes(IMAGE)
        with pytest.raises(ValueError, match='table_2017.csv is a web page'): fetch(path, True)
        (home/'data'/'Toy'/'table_2017.csv').write_text('image,label\n')
        place = fetch(path, True)
    assert below(place) == ['files/p1/1.png', 'list.txt', 'manifest.toml', 'provenance.json', 'table_2017.csv']
    assert {f['name']: bool(f['address']) for f in json.loads((place/'provenance.json').read_text())['files']} == {
        'list.txt': True, 'table_2017.csv': False}


def test_what_a_user_has_is_not_replaced(home):
    with serving(Site({'/list.txt': b'1'})) as address:
        path = toy(home, address, {'name': 'a.csv', 'bring': 'ask'}, {'name': 'list.txt', 'url': 'URL/list.txt'})
        (home/'data'/'Toy').mkdir(parents=True)
        for k in ('a.csv', 'list.txt'): (home/'data'/'Toy'/k).write_text('mine')
        with pytest.raises(FileExistsError, match='holds list.txt already, and this command did not put it there'):
            fetch(path, True)
    assert (home/'data'/'Toy'/'list.txt').read_text() == 'mine'


def test_page_instead_of_a_part_is_not_kept(home):
    content = zipped(NAMES[:2])
    site = Site({'/p_aa': content[:9000], '/p_ab': content[9000:]}, page=[None, b'<html>busy</html>'])
    with serving(site) as address:
        path = toy(home, address, {'name': 'Toy.zip', 'url': 'URL/', 'parts': ['p_aa', 'p_ab']})
        with pytest.raises(ValueError, match='p_ab is a web page.*What came is removed'): fetch(path, True)
        assert (fetch(path, True)/NAMES[0]).read_bytes() == IMAGE
    assert [p for _, p, _ in site.asked] == ['/p_aa', '/p_ab', '/p_ab']


def test_interrupted_beside_what_a_user_brought(home, monkeypatch):
    with serving(Site({'/1.zip': zipped(NAMES[:2], '')})) as address:
        path = toy(home, address, {'name': 'a.csv', 'bring': 'ask'}, {'name': '1.zip', 'url': 'URL/1.zip'})
        (home/'data'/'Toy').mkdir(parents=True)
        (home/'data'/'Toy'/'a.csv').write_text('mine')
        def full(*words): raise OSError('no space left')
        with monkeypatch.context() as m, pytest.raises(OSError, match='no space left'):
            m.setattr('mirage_nb.data.fetch.write_provenance', full)  # the last file; the others are at their place
            fetch(path, True)
        assert (home/'data'/'Toy'/NAMES[0]).exists()
        place = fetch(path, True)
    assert below(place) == sorted(['a.csv', *NAMES[:2], 'manifest.toml', 'provenance.json'])
    assert (place/'a.csv').read_text() == 'mine'


def test_interrupted_at_the_last_lines(home, monkeypatch):
    (home/'Downloads').mkdir()
    (home/'Downloads'/'USPEC.pt').write_bytes(b'weights')
    with monkeypatch.context() as m, pytest.raises(OSError, match='no space left'):
        def full(*words): raise OSError('no space left')
        m.setattr('mirage_nb.data.fetch._install_weights', full)
        fetch('USPEC-ViT-L', True, home/'Downloads')
    shutil.rmtree(home/'Downloads')  # what is verified is not needed again
    assert not list((home/'weights').glob('USPEC*'))
    path = fetch('USPEC-ViT-L', True)
    assert path.read_bytes() == b'weights' and json.loads((home/'weights'/'USPEC-ViT-L.provenance.json').read_text())
    (home/'weights'/'.fetch'/'USPEC-ViT-L').mkdir()
    assert fetch('USPEC-ViT-L') == path and not list((home/'weights'/'.fetch').iterdir())


def test_brought_file_is_the_same_as_the_first(home):
    path = toy(home, '', {'name': 'a.csv', 'bring': 'ask'})
    (home/'data'/'Toy').mkdir(parents=True)
    (home/'data'/'Toy'/'a.csv').write_text('one')
    place = fetch(path, True)
    for k in ('provenance.json', 'manifest.toml'): (place/k).unlink()
    (place/'a.csv').write_text('two')
    with pytest.raises(ValueError, match='a.csv has the SHA-256 .* nothing was replaced'): fetch(path, True)


def test_what_is_typed_wrong(home, capsys):
    assert main(['AROI', '--accpet']) == 2 and 'no option --accpet' in capsys.readouterr().err
    assert main(['AROI', '--from']) == 2 and '--from takes a folder: --from FOLDER' in capsys.readouterr().err
    assert main(['AROI', 'AROJ', '--dry-run']) == 1 and '1 name of 2 failed' in capsys.readouterr().err
    assert main(['--where', 'AROJ']) == 1 and "Did you mean 'AROI'?" in capsys.readouterr().err
    assert main(['nowhere.toml', '--dry-run']) == 1 and 'no manifest nowhere.toml' in capsys.readouterr().err


def test_disk_that_is_too_small(home, monkeypatch):
    with serving(Site({})) as address:
        path = toy(home, address, {'name': 'Toy.zip', 'url': 'URL/Toy.zip', 'size': 10**15})
        with pytest.raises(OSError, match='Toy needs 2e\\+06 GB, and the disk of .* has'): fetch(path, True)


def hold(desk, held, done):
    with hold_folder(desk, 'fetch'):
        held.set()
        done.wait(30)


def test_second_command_waits_its_turn(home, monkeypatch):
    monkeypatch.setattr('mirage_nb.locks._PATIENCE', 0.)
    fork = multiprocessing.get_context('fork')
    held, done = fork.Event(), fork.Event()
    first = fork.Process(target=hold, args=(home/'data'/'.fetch'/'Toy', held, done))
    first.start()
    held.wait(30)
    with serving(Site({'/a.txt': b'a'})) as address:
        path = toy(home, address, {'name': 'a.txt', 'url': 'URL/a.txt'})
        with pytest.raises(RuntimeError, match='Toy is being fetched by another command. Wait until'): fetch(path, True)
        done.set()
        first.join()
        assert (fetch(path, True)/'a.txt').read_text() == 'a'


def test_machine_without_network_takes_files_of_a_folder(home, capsys):
    (home/'Downloads').mkdir()
    content = zipped(NAMES[:2], 'RETOUCH/')
    for k, part in (('a', content[:1000]), ('b', content[1000:])):
        (home/'Downloads'/f'RETOUCH_part_a{k}').write_bytes(part)
    assert main(['RETOUCH', '--from', str(home/'Downloads')]) == 1  # the terms are shown first
    shown = capsys.readouterr()
    assert 'terms: challenge data' in shown.out and 'cite: Bogunovic' in shown.out and 'add --accept' in shown.err
    assert main(['RETOUCH', '--accept', '--from', str(home/'Downloads')]) == 0
    assert below(home/'data'/'RETOUCH') == sorted([*NAMES[:2], 'provenance.json'])
    assert sorted(p.name for p in (home/'Downloads').iterdir()) == ['RETOUCH_part_aa', 'RETOUCH_part_ab']
