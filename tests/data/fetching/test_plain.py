"A download from a plain address comes whole, whatever the server does, or says what is wrong"
import os
import re

import pytest

from mirage_nb.data.fetching.plain import download_plain
from tests.data.fetching.servers import Site, serving

CONTENT = os.urandom(300_000)


def get(tmp_path, path='/a.bin', timeout=0.3, **manners):
    "What a download leaves, and what the server was asked for"
    site = Site({'/a.bin': CONTENT}, **manners)
    with serving(site) as address:
        download_plain(address + path, tmp_path/'a.bin', timeout=timeout, pause=0.01)
    assert [p.name for p in tmp_path.iterdir()] == ['a.bin']  # no part is left
    return (tmp_path/'a.bin').read_bytes(), [r for _, _, r in site.asked]


def test_plain_file(tmp_path): assert get(tmp_path) == (CONTENT, [None])


def test_redirect(tmp_path):
    got, asked = get(tmp_path, '/old', redirect={'/old': '/older', '/older': '/a.bin'})
    assert got == CONTENT and len(asked) == 3


@pytest.mark.parametrize('manners, parts', [
    ({'cut': [98_304, 49_152]}, [None, 'bytes=98304-', 'bytes=147456-']),             # it ends too early, twice
    ({'cut': [98_304], 'length': [300_000], 'stall': [5]}, [None, 'bytes=98304-']),   # it stalls
    ({'cut': [98_304], 'status': [None, 503, 429]}, [None] + ['bytes=98304-']*3),     # it is overloaded for a while
], ids=['cut', 'stall', 'overloaded'])
def test_broken_connection_is_taken_up_again(tmp_path, manners, parts):
    assert get(tmp_path, **manners) == (CONTENT, parts)


def test_lies_about_length(tmp_path):
    with pytest.raises(ConnectionError, match='295 kB are kept'):
        get(tmp_path, length=[400_000], status=[None] + [503]*9)
    (tmp_path/'a.bin.part').unlink()
    got, _ = get(tmp_path, length=[200_000])  # what it keeps back, nobody can know: the checks of the content find it
    assert got == CONTENT[:200_000]


def test_server_without_ranges_begins_again(tmp_path):
    assert get(tmp_path, cut=[98_304], ranges=False) == (CONTENT, [None, 'bytes=98304-'])


def test_changed_file_is_not_spliced(tmp_path):
    got, asked = get(tmp_path, cut=[98_304], tag=['"v1"', '"v2"', '"v2"'])
    assert got == CONTENT and asked[1] == 'bytes=98304-'


def test_part_that_is_longer_than_the_file_is_begun_again(tmp_path):
    site = Site({'/a.bin': CONTENT}, cut=[98_304], tag='')
    with serving(site) as address:
        with pytest.raises(ConnectionError, match='404: the file is not there'):
            site.manners['status'] = [None, 404]
            download_plain(f'{address}/a.bin', tmp_path/'a.bin', pause=0.01)
        with open(tmp_path/'a.bin.part', 'ab') as f: f.write(bytes(300_000))
        download_plain(f'{address}/a.bin', tmp_path/'a.bin', pause=0.01)
    assert (tmp_path/'a.bin').read_bytes() == CONTENT


def test_part_of_another_address_is_not_used(tmp_path):
    with serving(Site({'/a.bin': CONTENT}, cut=98_304, length=len(CONTENT), status=[None, 404])) as address:
        with pytest.raises(ConnectionError): download_plain(f'{address}/a.bin', tmp_path/'a.bin', pause=0.01)
    assert (tmp_path/'a.bin.part').stat().st_size == 98_304
    assert get(tmp_path) == (CONTENT, [None])


def test_errors_say_what_the_server_answers(tmp_path):
    with pytest.raises(ConnectionError, match='the server answers 404: the file is not there. 127.0.0.1 may be closed'):
        get(tmp_path, '/none')
    with pytest.raises(ConnectionError, match='the server answers 403: it refuses'): get(tmp_path, status=403)
    with pytest.raises(ConnectionError, match='the connection breaks'): get(tmp_path, status=500)
    with pytest.raises(ConnectionError, match=re.escape('98.3 kB are kept, and the same command goes on from there')):
        get(tmp_path, cut=[98_304], status=[None] + [503]*9)
    with pytest.raises(ConnectionError, match='the connection breaks'):
        download_plain('http://127.0.0.1:9/a.bin', tmp_path/'b.bin', pause=0.01)
