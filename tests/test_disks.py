"""Disks that are full, quotas that are used up, folders that cannot be written: one message, and nothing is lost.

MIRAGE_DISKS=all runs every pipeline on every size of disk, which takes half an hour; the default takes seconds."""
import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from starts import PIPELINES, Starter, left_behind, results

from mirage_nb.disks import explain_disk_error

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == 'win32', reason='no forks here')]
ALL = os.environ.get('MIRAGE_DISKS') == 'all'
RAW = re.compile(r'\[Errno|Traceback|does not appear to be JSON|inline_container|IoError')


@pytest.fixture(scope='module')
def starter(tmp_path_factory):
    made = Starter(tmp_path_factory.mktemp('starts'))
    yield made
    made.close()


@pytest.fixture(scope='module')
def whole(starter, tmp_path_factory):
    "Numbers of a run that nothing has disturbed, by pipeline; each is made once"
    made = {}

    def numbers(name):
        if name not in made:
            runs = tmp_path_factory.mktemp('whole')
            code, said = starter.run(name, runs)
            assert code == 0, said
            made[name] = results(runs)
        return made[name]
    return numbers


def check_message(code, said, runs, what='No space left on device', remedy='Free space, or choose'):
    "One message that names the file, the place and the remedy"
    assert code == 1 and not RAW.search(said), said
    assert f'cannot write {runs}' in said and what in said and remedy in said and 'MIRAGE_RUNS' in said, said
    assert [k for k in left_behind(runs) if not k.endswith('state.pt')] == []


@contextlib.contextmanager
def small_disk(folder, megabytes):
    "A disk of some size, and how to make it larger"
    if not hasattr(os, 'geteuid') or os.geteuid() != 0: pytest.skip('only root may mount a small disk')
    folder.mkdir()
    words = ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(folder)]
    made = subprocess.run(words, capture_output=True, text=True)
    if made.returncode: pytest.skip(f'a small disk cannot be mounted here: {made.stderr.strip()}')
    try: yield lambda mb: subprocess.run(['mount', '-o', f'remount,size={mb}m', str(folder)], check=True)
    finally: subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.parametrize('name', PIPELINES if ALL else ['seg_tune'])
@pytest.mark.parametrize('megabytes', [1, 4, 8, 16, 24, 40, 60] if ALL else [24])
def test_a_full_disk(name, megabytes, starter, whole, tmp_path):
    "The run ends with the message, and with more space the same command ends with the numbers of an undisturbed run"
    runs = tmp_path/'disk'
    with small_disk(runs, megabytes) as enlarge:
        code, said = starter.run(name, runs)
        if code: check_message(code, said, runs)
        enlarge(2000)
        code, said = starter.run(name, runs)
        assert code == 0, said
        assert left_behind(runs) == [] and results(runs) == whole(name)


STAGES = {'seg_eval': ['split=test'], 'cls_eval': ['resamples=100'],
          'predict': ['images={data}/Phantom_OCT/test/bscan', 'task=segmentation', 'save_probabilities=true']}


@pytest.fixture(scope='module')
def tuned(starter, tmp_path_factory):
    "A disk of 200 MB with a finished fine-tuning of each task, and a function that leaves it some bytes"
    folder = tmp_path_factory.mktemp('tuned')/'disk'
    with small_disk(folder, 200):
        for name in ('seg_tune', 'cls_tune'):
            code, said = starter.run(name, folder)
            assert code == 0, said

        def leave(n):
            with open(folder/'filler', 'wb', buffering=0) as f:
                while (k := shutil.disk_usage(folder).free - n) > 0: f.write(bytes(min(k, 2**20)))
        yield folder, leave


@pytest.mark.parametrize('stage, share', [(k, n) for k in STAGES for n in (0, .05, .2, .4, .6, .8, .95)] if ALL else
                         [('seg_eval', 0), ('cls_eval', .8), ('predict', .4)])
def test_a_full_disk_below_what_builds_on_a_run(stage, share, starter, tuned):
    "Evaluations and predictions end with the message, and with space they end with the numbers of an undisturbed run"
    folder, leave = tuned
    words = [stage, *STAGES[stage]]
    before = {p for p in folder.rglob('*') if p.is_file()}
    assert starter.run(words, folder)[0] == 0
    whole, size = results(folder), sum(p.stat().st_size for p in folder.rglob('*') if p.is_file() and p not in before)
    shutil.rmtree(folder/stage), shutil.rmtree(folder/'.finished', ignore_errors=True)
    leave(int(share*size))
    code, said = starter.run(words, folder)
    (folder/'filler').unlink()
    check_message(code, said, folder)
    code, said = starter.run(words, folder)
    assert code == 0, said
    assert left_behind(folder) == [] and results(folder) == whole


def test_files_that_may_not_be_large(starter, whole, tmp_path):
    "As a quota refuses them: the limit of the system on the size of a file (ulimit -f), which needs no mount"
    code, said = starter.run('seg_tune', tmp_path/'runs', largest=2*10**6)
    check_message(code, said, tmp_path/'runs', 'File too large', 'Allow larger files (ulimit -f), or choose')
    code, said = starter.run('seg_tune', tmp_path/'runs')
    assert code == 0, said
    assert left_behind(tmp_path/'runs') == [] and results(tmp_path/'runs') == whole('seg_tune')


@pytest.mark.parametrize('place', ['/proc/runs', '/sys/runs', 'file/runs'])
def test_runs_that_cannot_be_made(place, starter, tmp_path):
    "Where no folder can be made, and below a file"
    (tmp_path/'file').touch()
    runs = tmp_path/place
    if not runs.parent.exists(): pytest.skip(f'there is no {runs.parent} here')
    code, said = starter.run('seg_tune', runs)
    assert code == 1 and not RAW.search(said), said
    assert re.search(rf'cannot write {runs}\S*: .*\. Choose another folder by MIRAGE_RUNS', said), said


@pytest.mark.parametrize('stage', ['seg_tune', *STAGES])
def test_runs_on_a_disk_that_is_mounted_read_only(stage, starter, tmp_path):
    "Before anything is computed"
    with small_disk(tmp_path/'disk', 1):
        subprocess.run(['mount', '-o', 'remount,ro', str(tmp_path/'disk')], check=True)
        code, said = starter.run([stage, *STAGES.get(stage, [])], tmp_path/'disk')
    assert code == 1 and not RAW.search(said), said
    assert f'cannot write {tmp_path}/disk/.running: Read-only file system. Choose another folder by MIRAGE_RUNS' in said


def test_data_that_cannot_be_made(starter, tmp_path):
    "Phantoms are drawn where the data are"
    (tmp_path/'file').touch()
    code, said = starter.run(['cls_tune', 'dataset=Phantom_CXR'], tmp_path/'runs', MIRAGE_DATA=f'{tmp_path}/file/data')
    assert code == 1 and not RAW.search(said), said
    assert re.search(rf'cannot write {tmp_path}/file/data\S*: .*Choose another folder by MIRAGE_DATA', said), said


def test_what_only_saves_time_may_be_lost(starter, whole, tmp_path):
    "Kept features, facts of images and notes of finished runs: a warning each, and the same numbers"
    for name in ('features', 'checks', '.finished'): (tmp_path/name).touch()
    code, said = starter.run('probe', tmp_path)
    assert code == 0, said
    for what in ('features of images', 'facts of images', 'notes of finished runs'):
        assert said.count(f'{what} are not kept for the next time: cannot write {tmp_path}') <= 1
    numbers = {k: v for k, v in whole('probe').items() if not k.startswith('features/')}
    assert {k: v for k, v in results(tmp_path).items() if k not in ('features', 'checks', '.finished')} == numbers


def test_an_error_of_the_system_without_a_file():
    "As a library raises it: all disks are listed"
    if not Path('/dev/full').exists(): pytest.skip('no /dev/full here')
    with pytest.raises(OSError) as e, open('/dev/full', 'w') as f: f.write('x')
    said = explain_disk_error(e.value)
    assert said.startswith('a file cannot be written: No space left on device. Free are ') and '(MIRAGE_RUNS)' in said
