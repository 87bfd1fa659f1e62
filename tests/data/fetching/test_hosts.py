"Google Drive and the hub, played by local servers: what is kept of a fetch that was killed, who is let in"
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mirage_nb.data.fetch import fetch
from tests.data.fetching.servers import Site, drive, hub, proxying, serving

UNSET = 'HF_TOKEN', 'HF_HUB_OFFLINE', 'NO_PROXY', 'no_proxy'
CONTENT = b'PT' + os.urandom(2_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def command(name, home, *words, **env):
    "A fetch in a process of its own"
    own = {'MIRAGE_DATA': home/'data', 'MIRAGE_WEIGHTS': home/'weights', 'HF_HOME': home/'hf', 'HOME': home,
           'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_XET': '1', **env}
    clean = {k: v for k, v in os.environ.items() if k not in UNSET}
    return subprocess.Popen([sys.executable, '-m', 'mirage_nb.data.fetch', name, '--accept', *words], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=clean | {k: str(v) for k, v in own.items()})


def kill_after(process, sent, site, least):
    "Kill a fetch when a file on the disk has so many bytes; gives what the site was asked for"
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        if any(p.stat().st_size >= least for p in list(sent()) if p.is_file()): break
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    site.manners['pause'] = 0
    site.asked, before = [], site.asked
    return before


def finished(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    "A certificate for Google's hosts, and its key, in one file; good for a day"
    if not shutil.which('openssl'): pytest.skip('openssl is missing: it makes the certificate of the played Drive')
    folder = tmp_path_factory.mktemp('certificate')
    names = 'subjectAltName=DNS:drive.google.com,DNS:drive.usercontent.google.com,DNS:github.com'
    words = 'req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -addext'.split()
    subprocess.run(['openssl', *words, names, '-keyout', folder/'key.pem', '-out', folder/'cert.pem'], check=True,
                   capture_output=True)
    (folder/'both.pem').write_text((folder/'key.pem').read_text() + (folder/'cert.pem').read_text())
    return folder/'both.pem'


@pytest.mark.slow
def test_drive_killed_and_taken_up_again(tmp_path, certificate):
    site = Site({}, special=drive(CONTENT), step=2**16, pause=0.05)
    with proxying(site, certificate) as proxy:
        env = {'HTTPS_PROXY': proxy, 'REQUESTS_CA_BUNDLE': certificate.with_name('cert.pem')}
        kill_after(command('USPEC-ViT-L', tmp_path, **env), lambda: tmp_path.rglob('*.part'), site, 600_000)
        out = finished(command('USPEC-ViT-L', tmp_path, **env))
    assert (tmp_path/'weights'/'USPEC-ViT-L.pt').read_bytes() == CONTENT and 'terms: none stated' in out
    assert [r for _, p, r in site.asked if r], 'it began again instead of going on'
    assert not (tmp_path/'weights'/'.fetch'/'USPEC-ViT-L').exists()


@pytest.mark.slow
def test_a_plain_address_of_weights_killed_and_taken_up_again(tmp_path, certificate):
    site = Site({'/j-morano/MIRAGE/releases/download/weights/MIRAGE-Base.pth': CONTENT}, step=2**16, pause=0.05)
    with proxying(site, certificate) as proxy:
        env = {'HTTPS_PROXY': proxy, 'REQUESTS_CA_BUNDLE': certificate.with_name('cert.pem')}
        kill_after(command('MIRAGE-Base', tmp_path, **env), lambda: tmp_path.rglob('*.part'), site, 600_000)
        finished(command('MIRAGE-Base', tmp_path, **env))
    assert (tmp_path/'weights'/'MIRAGE-Base.pth').read_bytes() == CONTENT
    assert [r for _, _, r in site.asked if r], 'it began again instead of going on'
    assert not (tmp_path/'weights'/'.fetch'/'MIRAGE-Base').exists()


@pytest.fixture
def home(tmp_path, monkeypatch):
    for k in ('data', 'weights'): monkeypatch.setenv(f'MIRAGE_{k.upper()}', str(tmp_path/k))
    for k in UNSET: monkeypatch.delenv(k, raising=False)
    return tmp_path


def test_drive_that_refuses(home, certificate, monkeypatch):
    page = b'<!DOCTYPE html><p class="uc-error-subcaption">Too many users have viewed or downloaded this file.</p>'
    with proxying(Site({}, page=page), certificate) as proxy:
        monkeypatch.setenv('HTTPS_PROXY', proxy)
        monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(certificate.with_name('cert.pem')))
        with pytest.raises(ConnectionError, match='Too many users have viewed.*tomorrow.*the folder: --from FOLDER'):
            fetch('USPEC-ViT-L', True)
    assert not list((home/'weights').glob('USPEC*'))


def test_drive_without_ranges_begins_again(home, certificate, monkeypatch):
    site = Site({}, special=drive(CONTENT), ranges=False)
    desk = home/'weights'/'.fetch'/'USPEC-ViT-L'/'coming'
    desk.mkdir(parents=True)
    (desk/'USPEC.pt12345678.part').write_bytes(CONTENT[:1000])
    with proxying(site, certificate) as proxy:
        monkeypatch.setenv('HTTPS_PROXY', proxy)
        monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(certificate.with_name('cert.pem')))
        assert fetch('USPEC-ViT-L', True).read_bytes() == CONTENT
    assert 'bytes=1000-' in [r for _, _, r in site.asked]


@pytest.mark.slow
def test_hub_killed_and_taken_up_again(tmp_path):
    site = Site({}, special=hub(CONTENT, SHA256), step=2**16, pause=0.05)
    with serving(site) as address:
        kill_after(command('EVA-X-S', tmp_path, HF_ENDPOINT=address), lambda: tmp_path.rglob('*.part'), site, 600_000)
        finished(command('EVA-X-S', tmp_path, HF_ENDPOINT=address))
    assert (tmp_path/'weights'/'EVA-X-S.pt').read_bytes() == CONTENT
    assert [bool(r) for c, _, r in site.asked if c == 'GET'] == [True], site.asked


def test_gated_hub(home, monkeypatch):
    from huggingface_hub import constants
    site = Site({}, special=hub(CONTENT, SHA256, 'good'), tag='')
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(home/'token'))
    with serving(site) as address:
        monkeypatch.setenv('HF_ENDPOINT', address)
        with pytest.raises(PermissionError, match='set the variable HF_TOKEN to it. It is not set'):
            fetch('RETFound_mae_meh', True)
        monkeypatch.setenv('HF_TOKEN', 'bad')
        with pytest.raises(PermissionError, match='The account of the token that is set has not been let in'):
            fetch('RETFound_mae_meh', True)
        monkeypatch.setenv('HF_TOKEN', 'good')
        assert fetch('RETFound_mae_meh', True).read_bytes() == CONTENT
    site.manners['special'] = hub(CONTENT[::-1], SHA256, 'good')  # other bytes than the hub's own hash says
    with serving(site) as address, pytest.raises(ValueError, match='has the SHA256 .* is published'):
        monkeypatch.setenv('HF_ENDPOINT', address)
        fetch('RETFound_mae_shanghai', True)
    written = [p for p in home.rglob('*') if p.is_file()]
    assert written and not any(b'good' in p.read_bytes() for p in written if p.suffix == '.json')
