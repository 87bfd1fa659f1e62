"Several processes, micro-batches, precisions and hash seeds: the numbers are those of one plain process"
import json
import os
import subprocess
import sys
from dataclasses import asdict

import pandas as pd
import pytest
from safetensors.torch import load_file

from mirage_nb.anonymity import hide_folder, hide_names, note_hidden, own_names
from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.segmentation import load_seg_data
from mirage_nb.launch import local as launch_local
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.storage import write_json
from mirage_nb.train.loop import _TIMES
from tests.tasks.samples import train_each, train_seg, two_processes

pytestmark = pytest.mark.slow
OPTIONS = {'dataset': 'Phantom_OCT', 'head': 'convnext', 'size': 64, 'epochs': 3, 'batch_size': 4, 'drop_path': 0.2,
           'lr': 1e-4, 'precision': 'fp32', 'baselines': False}
NUMBERS = ['loss', 'mIoU', 'valid_loss']


def settings(**changed): return override(seg_recipe(read_manifest('Phantom_OCT').recipe), **{**OPTIONS, **changed})


@pytest.fixture(scope='module')
def plain_run(at_home, tmp_path_factory):
    "Folder of one plain process, which all others are compared with"
    with at_home(tmp_path_factory.mktemp('plain')) as folder: train_seg(settings(), folder/'run')
    return folder/'run'


def close(a, b, rel=1e-4, numbers=NUMBERS):
    assert len(a) == len(b)
    for k in numbers: assert a[k].tolist() == pytest.approx(b[k].tolist(), rel=rel), k
    if 'mIoU' in numbers: assert a.mIoU.argmax() == b.mIoU.argmax(), 'another best epoch'


LEFT = '''
import atexit, os, sys

def note():
    group = sys.modules.get('torch.distributed')
    if 'RANK' in os.environ and group:
        with open(f"{os.environ['LEFT']}/{os.environ['RANK']}", 'w') as file: file.write(str(group.is_initialized()))

atexit.register(note)
'''


def test_two_processes_are_one(plain, plain_run, home, monkeypatch):
    "And each has left the other before Python ends: threads of a group that is still there can abort it"
    (home/'left').mkdir()
    (home/'left'/'sitecustomize.py').write_text(LEFT)
    monkeypatch.setenv('LEFT', str(home/'left'))
    monkeypatch.setenv('PYTHONPATH', str(home/'left'), prepend=os.pathsep)
    two = launch_local.launch_training(settings(processes=2), home/'two')
    assert [(home/'left'/rank).read_text() for rank in '01'] == ['False', 'False']
    close(two, plain)
    a, b = (load_file(k/'best.safetensors') for k in (plain_run, home/'two'))
    assert a.keys() == b.keys() and max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-3
    assert sorted(p.name for p in (home/'two').glob('*.tmp')) == []
    log = [json.loads(line) for line in (home/'two'/'progress.jsonl').read_text().splitlines()]
    assert [r['epoch'] for r in log if 'mIoU' in r or 'score' in r] == [1, 2, 3], 'both processes wrote'


def test_two_processes_with_kept_views(home):
    changed = settings(tune='probe', cached_views=2)
    one = launch_local.launch_training(changed, home/'one')
    write_json(home/'two'/'settings.json', {'stage': 'seg_tune', 'settings': asdict(changed)})
    assert two_processes(train_each, [home/'two']) == [0, 0]
    close(pd.read_csv(home/'two'/'history.csv'), one)


@pytest.mark.parametrize('changed', [{'accumulate': 2}, {'accumulate': 4}, {'workers': 2}])
def test_micro_batches_and_workers_change_nothing(plain, home, changed):
    other = train_seg(settings(**changed), home/'other')
    close(other, plain, rel=1e-4 if 'accumulate' in changed else 1e-12)


def test_bf16_is_near_fp32(plain, home):
    half = train_seg(settings(precision='bf16'), home/'half')
    close(half, plain, rel=0.05, numbers=['loss', 'valid_loss'])
    assert half.loss.tolist() != plain.loss.tolist(), 'it was not bf16'


def test_failing_launch_says_why(home):
    "Also in a folder whose name has a space"
    cfg = settings(processes=2, head='convnet')
    with pytest.raises(RuntimeError) as e: launch_local.launch_training(cfg, home/'my pairs')
    assert "no head 'convnet'. Did you mean 'convnext'?" in str(e.value) and 'launch.log' in str(e.value)
    assert 'training in 2 processes failed: ' in str(e.value)


BAD = '''
import sys, os
from pathlib import Path
from mirage_nb.recipes.segmentation import SegRecipe
from mirage_nb.storage import read_json
from mirage_nb.tasks.protocol import train
from mirage_nb.tasks.segmentation import SegmentationTask

class BadTask(SegmentationTask):
    def step(self, model, batch):
        return super().step(model, batch)*(float('nan') if sys.argv[2] in batch['id'] else 1.)

folder = Path(sys.argv[1])
train(BadTask.from_settings(SegRecipe(**read_json(folder/'own.json'))), folder)
'''


def test_the_log_of_a_launch_hides_names(home):
    "What the processes have written stays in the run's folder, without names"
    cfg, folder = settings(processes=2, head='convnet'), home/'hidden'
    with own_names():
        hide_names(True)
        hide_folder(folder)
        note_hidden({'ValueError': 'qwertyuiop'})  # a word of the log
        with pytest.raises(RuntimeError, match='ValueError'): launch_local.launch_training(cfg, folder)
    assert 'ValueError' not in (said := (folder/'launch.log').read_text()) and 'qwertyuiop' in said


def test_bad_loss_in_one_of_two_processes(home):
    "Neither process waits for ever for the other, and both name the sample"
    folder, cfg = home/'two', settings(epochs=1)
    folder.mkdir()
    (folder/'own.json').write_text(json.dumps(asdict(cfg)))
    (home/'bad.py').write_text(BAD)
    ids = load_seg_data(read_manifest('Phantom_OCT')).tables['train'].id
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    done = subprocess.run([*torchrun, str(home/'bad.py'), str(folder), ids[0]], capture_output=True, text=True,
                          timeout=300)
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
from mirage_nb.tasks.protocol import train
from mirage_nb.tasks.segmentation import SegmentationTask
folder = Path(sys.argv[1])
train(SegmentationTask.from_settings(SegRecipe(**read_json(folder/'own.json'))), folder)
'''


def test_same_seed_same_numbers_whatever_the_hash_seed(plain_run, home):
    folder, seed = home/'run', '2' if os.environ.get('PYTHONHASHSEED') == '1' else '1'  # of this process: another
    folder.mkdir()
    (folder/'own.json').write_text(json.dumps(asdict(settings())))
    done = subprocess.run([sys.executable, '-c', SAME, str(folder)], capture_output=True, text=True, timeout=600,
                          env={**os.environ, 'PYTHONHASHSEED': seed})
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (pd.read_csv(f/'history.csv').drop(columns=[*_TIMES]) for f in (plain_run, folder))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert (plain_run/'best.safetensors').read_bytes() == (folder/'best.safetensors').read_bytes()


ABORTS = '''
import atexit, os
if os.environ.get('RANK') == '1': atexit.register(os.abort)
'''


def test_a_crash_after_the_end_loses_nothing(home, monkeypatch, caplog):
    "Of one of two processes that have trained to the end"
    (home/'sitecustomize.py').write_text(ABORTS)
    monkeypatch.setenv('PYTHONPATH', str(home), prepend=os.pathsep)
    assert len(launch_local.launch_training(settings(processes=2, epochs=1), home/'two')) == 1
    assert 'training in 2 processes is complete, but ended badly: process 1 ended by SIGABRT' in caplog.text
