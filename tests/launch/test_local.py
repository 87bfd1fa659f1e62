"Several processes, micro-batches, precisions and hash seeds: the numbers are those of one plain process"
import errno
import fcntl
import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict, replace

import pandas as pd
import pytest
import submitit
from safetensors.torch import load_file

from mirage_nb.data.manifest import read_manifest
from mirage_nb.launch import local as launch_local
from mirage_nb.launch import slurm
from mirage_nb.launch import worker as launch_worker
from mirage_nb.recipes.pretraining import MultiMAERecipe, pretrain_recipe
from mirage_nb.recipes.segmentation import SegRecipe, seg_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.storage import write_json
from mirage_nb.tasks import segmentation as tasks_segmentation
from mirage_nb.train.loop import _TIMES

pytestmark = pytest.mark.slow
OPTIONS = {'dataset': 'Phantom_OCT', 'head': 'convnext', 'size': 64, 'epochs': 3, 'batch_size': 4, 'drop_path': 0.2,
           'lr': 1e-4, 'precision': 'fp32', 'baselines': False}
NUMBERS = ['loss', 'mIoU', 'valid_loss']


def settings(**changed): return override(seg_recipe(read_manifest('Phantom_OCT').recipe), **{**OPTIONS, **changed})


@pytest.fixture
def plain(home): return tasks_segmentation.train_seg(settings(), home/'plain')


def close(a, b, rel=1e-4, numbers=NUMBERS):
    assert len(a) == len(b)
    for k in numbers: assert a[k].tolist() == pytest.approx(b[k].tolist(), rel=rel), k
    if 'mIoU' in numbers: assert a.mIoU.argmax() == b.mIoU.argmax(), 'another best epoch'


def test_two_processes_are_one(plain, home):
    two = launch_local.launch_training(settings(processes=2), home/'two')
    close(two, plain)
    a, b = (load_file(home/k/'best.safetensors') for k in ('plain', 'two'))
    assert a.keys() == b.keys() and max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-3
    assert sorted(p.name for p in (home/'two').glob('*.tmp')) == []
    log = [json.loads(line) for line in (home/'two'/'progress.jsonl').read_text().splitlines()]
    assert [r['epoch'] for r in log if 'mIoU' in r or 'score' in r] == [1, 2, 3], 'both processes wrote'


def test_two_processes_with_kept_views(home):
    options = {'tune': 'probe', 'cached_views': 2}
    one = launch_local.launch_training(settings(**options), home/'one')
    close(launch_local.launch_training(settings(**options, processes=2), home/'two'), one)


@pytest.mark.parametrize('changed', [{'accumulate': 2}, {'accumulate': 4}, {'workers': 2}])
def test_micro_batches_and_workers_change_nothing(plain, home, changed):
    other = tasks_segmentation.train_seg(settings(**changed), home/'other')
    close(other, plain, rel=1e-4 if 'accumulate' in changed else 1e-12)


def test_bf16_is_near_fp32(plain, home):
    half = tasks_segmentation.train_seg(settings(precision='bf16'), home/'half')
    close(half, plain, rel=0.05, numbers=['loss', 'valid_loss'])
    assert half.loss.tolist() != plain.loss.tolist(), 'it was not bf16'


def test_failing_launch_says_why(home):
    "Also in a folder whose name has a space"
    with pytest.raises(RuntimeError) as e: launch_local.launch_training(settings(processes=2, head='convnet'), home/'my pairs')
    assert "no head 'convnet'. Did you mean 'convnext'?" in str(e.value) and 'launch.log' in str(e.value)
    assert 'training in 2 processes failed: ' in str(e.value)


BAD = '''
import sys, os
from pathlib import Path
from mirage_nb.recipes.segmentation import SegRecipe
from mirage_nb.storage import read_json
from mirage_nb.tasks import segmentation as seg

def seg_step(*a, f=seg._seg_step):
    step = f(*a)
    return lambda model, batch: step(model, batch)*(float('nan') if BAD_ID in batch['id'] else 1.)

BAD_ID = sys.argv[2]
seg._seg_step = seg_step
folder = Path(sys.argv[1])
seg.train_seg(SegRecipe(**read_json(folder/'settings.json')), folder)
'''


def test_bad_loss_in_one_of_two_processes(home):
    "Neither process waits for ever for the other, and both name the sample"
    folder, cfg = home/'two', settings(epochs=1)
    folder.mkdir()
    (folder/'settings.json').write_text(json.dumps(asdict(cfg)))
    (home/'bad.py').write_text(BAD)
    ids = tasks_segmentation.load_seg_data(read_manifest('Phantom_OCT')).tables['train'].id
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    done = subprocess.run([*torchrun, str(home/'bad.py'), str(folder), ids[0]], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode
    said = [line for line in done.stderr.splitlines() if 'FloatingPointError: loss is nan' in line]
    assert said and all(ids[0] in line for line in said), done.stderr[-2000:]
    assert all(sum(k in line for k in ids) <= 2 for line in said), 'samples are named that were not in the bad batch'
    assert (folder/'state.pt').exists()


SAME = '''
import sys
from pathlib import Path
from mirage_nb.recipes.segmentation import SegRecipe
from mirage_nb.storage import read_json
from mirage_nb.tasks import segmentation as seg
folder = Path(sys.argv[1])
seg.train_seg(SegRecipe(**read_json(folder/'settings.json')), folder)
'''


def test_same_seed_same_numbers_whatever_the_hash_seed(home):
    started = []
    for i in (1, 2):
        folder = home/f'{i}'
        folder.mkdir()
        (folder/'settings.json').write_text(json.dumps(asdict(settings(epochs=2))))
        started.append(subprocess.Popen([sys.executable, '-c', SAME, str(folder)], stderr=subprocess.DEVNULL,
                                        env={**os.environ, 'PYTHONHASHSEED': f'{i}'}))
    assert [p.wait(120) for p in started] == [0, 0]
    a, b = (pd.read_csv(home/f'{i}'/'history.csv').drop(columns=[*_TIMES]) for i in (1, 2))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert (home/'1'/'best.safetensors').read_bytes() == (home/'2'/'best.safetensors').read_bytes()


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
    monkeypatch.setattr(launch_worker, '_PATIENCE', 0.)
    monkeypatch.setitem(launch_worker.JOBS, 'seg_tune', (SegRecipe, lambda cfg, folder: trained.append(folder)))
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
    with launch_worker.hold_folder(home/'run', 'training'): assert 'is on a disk without locks' in caplog.text


# ------------------------------------------------------------------ Slurm

@pytest.fixture
def cluster(tmp_path, monkeypatch):
    "A Slurm that keeps what is submitted, as job 77, and says what alive.txt says"
    made = tmp_path/'cluster'
    made.mkdir()
    for name, line in {'sbatch': f'cat "$1" >> {made}/batch.txt; echo Submitted batch job 77', 'srun': 'exit 1',
                       'sacct': 'exit 1', 'squeue': f'cat {made}/alive.txt'}.items():
        (made/name).write_text(f'#!/bin/sh\n{line}\n')
        (made/name).chmod(0o755)
    (made/'alive.txt').touch()
    monkeypatch.setenv('PATH', f'{made}:{os.environ["PATH"]}')
    return made


def slurm_settings(**changed):
    return replace(pretrain_recipe('pre_mirage', MultiMAERecipe), nodes=2, workers=6, **changed)


def done_at_once(folder):
    "In place of following a job: its tasks are done"
    def follow(runs, end, record, epochs):
        for i in range(2): (folder/'slurm'/f'77_{i}_result.pkl').write_bytes(pickle.dumps(('success', None)))
        (folder/'history.csv').write_text('epoch,loss\n1,2.5\n')
    return follow


def test_slurm_gets_what_is_asked_for(home, cluster, monkeypatch):
    folder = home/'my run'
    monkeypatch.setattr(slurm, 'follow_progress', done_at_once(folder))
    asked = 'gpu,gpus=a100:4,time=2-00:00:00,account=abc,qos=long,mem=200G,constraint=big,exclusive'
    assert launch_local.launch_training(slurm_settings(slurm=asked), folder).loss.tolist() == [2.5]
    lines = set((cluster/'batch.txt').read_text().splitlines())
    for want in ('partition=gpu', 'gpus-per-node=a100:4', 'time=2880', 'account=abc', 'qos=long', 'mem=200G',
                 'exclusive', 'constraint=big', 'nodes=2', 'ntasks-per-node=1', 'cpus-per-task=8'):
        assert f'#SBATCH --{want}' in lines
    command = next(k for k in lines if k.startswith('srun'))
    assert '--cpus-per-task=8' in command and f"'{folder}/slurm'" in command
    sent = submitit.SlurmJob(folder/'slurm', '77', range(2)).submission()
    assert sent._timeout_countdown > 10_000 and sent.function.folder == folder


def test_slurm_without_gpus(home, cluster, monkeypatch, caplog):
    monkeypatch.setattr(slurm, 'follow_progress', done_at_once(home/'run'))
    launch_local.launch_training(slurm_settings(slurm='cpu,cpus=3'), home/'run')
    text = (cluster/'batch.txt').read_text()
    assert '--gpus' not in text and 'cpus-per-task=3' in text and 'time=1440' in text
    assert "slurm is 'cpu,cpus=3' and asks for no GPUs; with gpus=N" in caplog.text


def test_living_job_is_followed(home, cluster, monkeypatch, caplog):
    folder, cfg = home/'run', slurm_settings(slurm='gpu,gpus=1')
    def lost(*a): raise KeyboardInterrupt
    monkeypatch.setattr(slurm, 'follow_progress', lost)
    def submitted(): return (cluster/'batch.txt').read_text().count('#!/bin/bash')
    for alive, n in (('', 1), ('RUNNING', 1), ('', 2)):
        (cluster/'alive.txt').write_text(alive)
        with pytest.raises(KeyboardInterrupt): launch_local.launch_training(cfg, folder)
        assert submitted() == n and ('job 77 was submitted before and lives' in caplog.text) == (alive == 'RUNNING')
        caplog.clear()
    (cluster/'alive.txt').unlink()
    with pytest.raises(RuntimeError, match='squeue does not say whether job 77 of .*run still runs: .*alive.txt'):
        launch_local.launch_training(cfg, folder)
    (cluster/'alive.txt').write_text('PENDING')
    monkeypatch.setattr(slurm, 'follow_progress', done_at_once(folder))
    assert launch_local.launch_training(cfg, folder).loss.tolist() == [2.5] and submitted() == 2


def test_processes_end_when_the_one_that_started_them_is_gone():
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    code = f'from mirage_nb.launch.worker import _exit_with_parent; _exit_with_parent({gone.pid})'
    done = subprocess.run([sys.executable, '-c', code], timeout=60)
    assert done.returncode == 1
