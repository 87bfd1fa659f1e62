"One process trains in a folder at a time, and ends with the one that started it"
import errno
import fcntl
import subprocess
import sys
from dataclasses import asdict

import pytest

from mirage_nb import locks
from mirage_nb.data.manifest import read_manifest
from mirage_nb.launch import local as launch_local
from mirage_nb.launch import worker as launch_worker
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.storage import write_json
from mirage_nb.tasks import protocol as tasks_protocol

OPTIONS = {'dataset': 'Phantom_OCT', 'head': 'convnext', 'size': 64, 'epochs': 3, 'batch_size': 4, 'drop_path': 0.2,
           'lr': 1e-4, 'precision': 'fp32', 'baselines': False}


def settings(**changed): return override(seg_recipe(read_manifest('Phantom_OCT').recipe), **{**OPTIONS, **changed})


HOLDER = '''
import fcntl, sys, time
file = open(sys.argv[1], 'a+')
fcntl.lockf(file, fcntl.LOCK_EX)
file.write('process 7 on a node')
file.flush()
print('held', flush=True)
time.sleep(600)
'''


@pytest.fixture
def holder(home):
    "Another process that trains in a folder"
    (home/'run').mkdir()
    process = subprocess.Popen([sys.executable, '-c', HOLDER, str(home/'run'/'.training.lock')], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'held\n'
    yield process
    process.kill()
    process.communicate()


def test_one_training_in_a_folder(home, holder, monkeypatch):
    "Another command is told who is there, and may train as soon as that process is gone, however it ended"
    trained = []
    monkeypatch.setattr(locks, '_PATIENCE', 0.)
    monkeypatch.setattr(tasks_protocol, '_fit', lambda task, folder: trained.append(folder))
    said = 'run is in use by process 7 on a node.*Wait until that ends, or end it'
    with pytest.raises(RuntimeError, match=said): launch_local.launch_training(settings(), home/'run')
    write_json(home/'run'/'settings.json', {'stage': 'seg_tune', 'settings': asdict(settings())})
    with pytest.raises(RuntimeError, match=said): launch_worker.train_here(home/'run')
    monkeypatch.setenv('RANK', '1')
    launch_worker.train_here(home/'run')
    monkeypatch.delenv('RANK')
    holder.kill()
    holder.wait()
    launch_worker.train_here(home/'run')
    launch_local.launch_training(settings(), home/'run')
    assert trained == [home/'run']*3


def test_disk_without_locks(home, monkeypatch, caplog):
    def no_locks(*a): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'lockf', no_locks)
    with locks.hold_folder(home/'run', 'training'): assert 'is on a disk without locks' in caplog.text


# ------------------------------------------------------------------ Slurm

@pytest.mark.slow
def test_processes_end_when_the_one_that_started_them_is_gone():
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    code = f'from mirage_nb.launch.worker import _exit_with_parent; _exit_with_parent({gone.pid})'
    done = subprocess.run([sys.executable, '-c', code], timeout=300)
    assert done.returncode == 1
