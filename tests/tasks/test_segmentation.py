"A training may be killed at any moment; the same command then gives the numbers of an undisturbed one"
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.splits import hash_splits
from mirage_nb.disks import read_json_lines
from mirage_nb.eval.segmentation import predict
from mirage_nb.memory import run_peak
from mirage_nb.models import checkpoints
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.storage import hash_file, read_json
from mirage_nb.tasks import protocol as tasks_protocol
from mirage_nb.tasks import segmentation as tasks_segmentation
from mirage_nb.tasks.protocol import train
from mirage_nb.tasks.segmentation import SegmentationTask
from mirage_nb.train import loop as train_loop
from mirage_nb.train import state as train_state
from tests.tasks.samples import forkserver

OPTIONS = {'dataset': 'Phantom_OCT', 'head': 'convnext', 'size': 64, 'epochs': 3, 'batch_size': 2, 'drop_path': 0.2,
           'baselines': False}
STEPS = 4  # an epoch: 8 images


def settings(**changed): return override(seg_recipe(read_manifest('Phantom_OCT').recipe), **{**OPTIONS, **changed})


def tune(folder, **changed):
    "What the notebook does: train, then predict and score the test split"
    task = SegmentationTask.from_settings(settings(**changed))
    train(task, folder)
    task.test(folder)


def save_each_step():
    fit = tasks_segmentation._seg_fit_settings
    tasks_segmentation._seg_fit_settings = lambda cfg: replace(fit(cfg), save_every=0.)


# ------------------------------------------------------------------ processes that die

def die(): os.kill(os.getpid(), signal.SIGKILL)


def half(path, write):
    "Write a file, keep half of it, and die"
    write(path)
    os.truncate(path, os.path.getsize(path)//2)
    die()


def at(n, owner, name, act):
    "Replace a function: at its n-th call, `act` happens instead"
    old, calls = getattr(owner, name), iter(range(1, 1_000_000))
    setattr(owner, name, lambda *a, **k: act(old, *a, **k) if next(calls) == n else old(*a, **k))


def state_of(path): return 'state.pt' in str(path)


def at_state(n, act):
    "As `at`, for the n-th time that the state gets its name"
    old, calls = os.replace, iter(range(1, 1_000_000))
    os.replace = lambda a, b: act(old, a, b) if state_of(b) and next(calls) == n else old(a, b)


PLANS = {  # in the middle of what the process dies
    'a step': lambda: at(6, train_loop._Trainer, 'train_step', lambda f, *a: die()),
    'a step, the model changed already': lambda: at(6, train_loop._Trainer, 'train_step', lambda f, *a: (f(*a), die())),
    'a checkpoint': lambda: at(6, torch, 'save', lambda f, state, path: half(path, lambda p: f(state, p))),
    'a checkpoint, written but not named': lambda: at_state(6, lambda f, *a: die()),
    'a step after the checkpoint': lambda: at_state(6, lambda f, *a: (f(*a), die())),
    'the first checkpoint': lambda: at(1, torch, 'save', lambda f, state, path: half(path, lambda p: f(state, p))),
    'a validation': lambda: at(2, tasks_segmentation, 'validate_seg', lambda f, *a, **k: die()),
    'the best model': lambda: at(1, checkpoints, 'save_file', lambda f, s, p, m: half(p, lambda q: f(s, q, m))),
    'an epoch after the best model': lambda: at(1, tasks_segmentation, 'save_tuned_model',
                                                lambda f, *a, **k: (f(*a, **k), die())),
    'an end, the history written': lambda: at(1, tasks_protocol, 'save_table', lambda f, *a: (f(*a), die())),
    'a prediction': lambda: at(3, predict, 'write_mask', lambda f, *a: die()),
    'a prediction, written but not noted': lambda: at(6, predict, 'write_mask', lambda f, *a: (f(*a), die()))}


def work(folder, data, plan='', **changed):
    "A process of its own; with a plan it saves at each step, and dies if the plan says where"
    os.environ |= {'MIRAGE_DATA': str(data), 'MIRAGE_RUNS': str(folder.parent)}
    torch.set_num_threads(1)
    if plan: save_each_step()
    if plan in PLANS: PLANS[plan]()
    tune(folder, **changed)


@pytest.fixture(scope='module')
def processes():
    "Starts processes that have the library imported already"
    before = os.environ.get('OMP_NUM_THREADS')
    os.environ['OMP_NUM_THREADS'] = '1'

    def start(*args, **changed):
        p = forkserver().Process(target=work, args=args, kwargs=changed)
        p.start()
        return p
    yield start
    if before is None: del os.environ['OMP_NUM_THREADS']
    else: os.environ['OMP_NUM_THREADS'] = before


def exit_code(process):
    process.join(300)
    return process.exitcode


@pytest.fixture(scope='module')
def whole(processes, phantoms, tmp_path_factory):
    "An undisturbed run"
    folder = tmp_path_factory.mktemp('whole')
    assert exit_code(processes(folder, phantoms)) == 0
    return folder


def equal_runs(folder, other):
    a, b = (pd.read_csv(f/'history.csv').drop(columns=[*train_loop._TIMES]) for f in (folder, other))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    x, y = (load_file(f/'best.safetensors') for f in (folder, other))
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), 'the best models differ'
    names = sorted(p.name for p in (other/'predictions').glob('*.png'))
    assert names and names == sorted(p.name for p in (folder/'predictions').glob('*.png'))
    for n in [f'predictions/{n}' for n in names] + ['predictions.csv', 'test_volumes.csv', 'test_summary.csv']:
        assert (folder/n).read_bytes() == (other/n).read_bytes(), f'{n} differs'


@pytest.mark.slow
@pytest.mark.parametrize('plan', PLANS)
def test_killed_in(plan, processes, phantoms, whole, tmp_path):
    folder = tmp_path/'run'
    assert exit_code(processes(folder, phantoms, plan)) == -signal.SIGKILL
    assert exit_code(processes(folder, phantoms)) == 0
    equal_runs(folder, whole)


@pytest.mark.slow
def test_killed_from_outside_again_and_again(processes, phantoms, whole, tmp_path):
    folder, kills = tmp_path/'run', 0
    progress = folder/'progress.jsonl'

    def lines(): return len(progress.read_text().splitlines()) if progress.exists() else 0

    for _ in range(40):
        before, p = lines(), processes(folder, phantoms, 'save')
        while p.is_alive() and lines() < before + 4: time.sleep(0.001)
        if p.is_alive(): p.kill()
        if exit_code(p) == 0: break
        kills += 1
    assert kills >= 2, 'it was never killed, so nothing was tested'
    equal_runs(folder, whole)


@pytest.mark.slow
def test_checkpointing_changes_nothing_also_after_a_kill(processes, phantoms, whole, tmp_path):
    "A run that did not fit goes on with it, and its peak is that of all parts"
    folder = tmp_path/'run'
    assert exit_code(processes(folder, phantoms, 'a step')) == -signal.SIGKILL
    assert exit_code(processes(folder, phantoms, checkpointing=True)) == 0
    equal_runs(folder, whole)
    peaks = [row['peak_memory_gb']['process'] for row in read_json_lines(folder/'progress.jsonl')]
    assert run_peak(folder)['process'] >= max(peaks) > 0.1


@pytest.mark.slow
def test_workers_change_nothing_also_after_a_kill(processes, phantoms, whole, tmp_path):
    folder = tmp_path/'run'
    assert exit_code(processes(folder, phantoms, 'a step')) == -signal.SIGKILL
    assert exit_code(processes(folder, phantoms, workers=2)) == 0
    equal_runs(folder, whole)
    assert run_peak(folder)['workers'] > 0.01


@pytest.mark.slow
def test_kept_views_after_a_kill(processes, phantoms, tmp_path):
    views = {'tune': 'probe', 'cached_views': 2}
    assert exit_code(processes(tmp_path/'whole', phantoms, **views)) == 0
    assert exit_code(processes(tmp_path/'run', phantoms, 'a step', **views)) == -signal.SIGKILL
    assert exit_code(processes(tmp_path/'run', phantoms, **views)) == 0
    equal_runs(tmp_path/'run', tmp_path/'whole')


# ------------------------------------------------------------------ stopped, but not killed

def interrupt(*args, **k): raise KeyboardInterrupt


STOPS = {  # where the user's Ctrl-C arrives
    'before a step': lambda m: at_in(m, 6, train_loop._Trainer, 'train_step', lambda f, *a: interrupt()),
    'after a step of the optimizer': lambda m: at_in(m, 6, torch.optim.AdamW, 'step',
                                                     lambda f, *a, **k: (f(*a, **k), interrupt())),
    'in a validation': lambda m: at_in(m, 2, tasks_segmentation, 'validate_seg', interrupt),
    'before the best model': lambda m: at_in(m, 2, tasks_segmentation, 'save_tuned_model', interrupt),
    'while the best model is written': lambda m: at_in(m, 1, checkpoints, 'save_file', interrupt)}


def at_in(monkeypatch, n, owner, name, act):
    monkeypatch.setattr(owner, name, getattr(owner, name))  # so that it is put back
    at(n, owner, name, act)


@pytest.mark.slow
@pytest.mark.parametrize('stop', STOPS)
def test_interrupted(stop, whole, home):
    folder = home/'run'
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        STOPS[stop](m)
        tune(folder)
    assert 'interrupted' in (folder/'progress.jsonl').read_text()
    tune(folder)
    equal_runs(folder, whole)


def test_interrupt_keeps_the_last_step(home):
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        STOPS['before a step'](m)
        tune(home/'run')
    progress = train_state.load_training_state(home/'run'/'state.pt')['progress']
    assert (progress['epoch'], progress['step']) == (1, 1)  # the sixth step is the second of epoch 2


def test_no_test_before_the_training_has_ended(home):
    "An interrupted training has kept a model, whose predictions would stay when the training goes on"
    folder = home/'run'
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        STOPS['in a validation'](m)
        tune(folder)
    assert (folder/'best.safetensors').exists()
    with pytest.raises(RuntimeError, match='has not come to its end, and its model is not tested'):
        SegmentationTask.from_settings(settings()).test(folder)
    assert not (folder/'predictions').exists()


@pytest.mark.slow
def test_loss_that_is_no_number(whole, home, monkeypatch):
    folder, bad = home/'run', []

    def step(f, task, model, batch):
        bad.extend(batch['id'])
        return f(task, model, batch)*float('nan')

    with monkeypatch.context() as m, pytest.raises(FloatingPointError) as e:
        at_in(m, 7, SegmentationTask, 'step', step)
        tune(folder)
    assert 'loss is nan at epoch 2, step 3' in str(e.value) and all(k in str(e.value) for k in bad) and bad
    assert str(folder/'state.pt') in str(e.value)
    progress = train_state.load_training_state(folder/'state.pt')['progress']
    assert (progress['epoch'], progress['step']) == (1, 2), 'the state is not that of the last good step'
    tune(folder)  # with the samples mended
    equal_runs(folder, whole)


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 48 MB: room for one state of mirage_tiny, not for a second beside it"
    disk = tmp_path/'disk'
    disk.mkdir()
    if os.geteuid() != 0: pytest.skip('only root may mount a small disk')
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=48m', 'tmpfs', str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode: pytest.skip(f'a small disk cannot be mounted here: {mounted.stderr.strip()}')
    try: yield disk
    finally: subprocess.run(['umount', '-l', str(disk)], check=True)


@pytest.mark.slow
def test_full_disk(small_disk, whole, home, monkeypatch):
    folder = small_disk/'run'
    with monkeypatch.context() as m, pytest.raises(OSError) as e:
        m.setattr(tasks_segmentation, '_seg_fit_settings', tasks_segmentation._seg_fit_settings)
        save_each_step()
        tune(folder)
    said = r'cannot write \S*run/state\.pt \(more than .* MB\): .*; free .*; the earlier file is kept\. Free space'
    assert re.search(said, str(e.value)), e.value
    state = train_state.load_training_state(folder/'state.pt')
    assert state['progress']['step'] >= 1
    assert [p.name for p in folder.iterdir() if p.name.endswith('.tmp')] == [], 'half a file is left'
    subprocess.run(['mount', '-o', 'remount,size=200m', str(small_disk)], check=True)
    tune(folder)
    equal_runs(folder, whole)


# ------------------------------------------------------------------ a finished run

@pytest.mark.slow
def test_finished_training_is_not_repeated(home, monkeypatch):
    tune(home/'run')
    before = {p: p.read_bytes() for p in Path(home/'run').rglob('*') if p.is_file()}
    def never(*a, **k): raise AssertionError('this was done already')
    monkeypatch.setattr(train_loop._Trainer, 'train_step', never)
    monkeypatch.setattr(tasks_segmentation, 'validate_seg', never)
    monkeypatch.setattr(predict, 'write_mask', never)
    tune(home/'run')
    assert {p: p.read_bytes() for p in Path(home/'run').rglob('*') if p.is_file()} == before


# ------------------------------------------------------------------ few labels, and another start

@pytest.mark.slow
def test_random_start_differs_in_nothing_but_the_weights(home, monkeypatch):
    "The same few patients, order and head; it is part of the run, goes on after a break, and is not done twice"
    cfg = settings(weights='mirage_tiny', train_patients=2, random_start=True, epochs=2)
    task, steps = SegmentationTask.from_settings(cfg), []
    train(task, home/'run')
    task.test(home/'run')
    real = train_loop._Trainer.train_step

    def broken(*a):
        steps.append(1)
        if len(steps) == 2: raise RuntimeError('broken off')
        return real(*a)
    monkeypatch.setattr(train_loop._Trainer, 'train_step', broken)
    with pytest.raises(RuntimeError, match='broken off'): task.baselines(home/'run')
    found = task.baselines(home/'run')
    n = len(steps)
    assert list(found) == ['from random initialisation'] and task.baselines(home/'run').keys() == found.keys()
    assert len(steps) == n, 'a finished one is read'
    monkeypatch.setattr(train_loop._Trainer, 'train_step', real)
    alone = SegmentationTask.from_settings(replace(cfg, weights='random', random_start=False))
    train(alone, home/'alone')
    assert alone.test(home/'alone').means == found['from random initialisation'].means
    (first, *_), (other, *_) = task.samples(), alone.samples()
    assert first['id'] == other['id'] and torch.equal(first['bscan'], other['bscan'])
    assert {p.parent.name for p in (home/'run'/'baselines').glob('*.csv')} == {'baselines'}


def test_few_patients_are_drawn_by_the_seed(home):
    def learnt(**more): return set(SegmentationTask.from_settings(settings(**more)).data.tables['train'].patient)
    assert learnt(train_patients=2) == learnt(train_patients=2, lr=.5) < learnt(train_patients=3) < learnt()
    few, every = (SegmentationTask.from_settings(settings(train_patients=k)) for k in (2, 0))
    assert few.sources() == every.sources() and ' of 2 of 4 patients, by seed)' in few.data.few_words
    assert every.data.few_words == ''
    with pytest.raises(ValueError, match='train_patients asks for 9, and there are 4 to learn from: ask for 4 at most'):
        _ = SegmentationTask.from_settings(settings(train_patients=9)).data


# ------------------------------------------------------------------ folders without splits

@pytest.fixture
def loose(home, phantoms, monkeypatch):
    "MySet/images and MySet/masks, without splits, in MIRAGE_DATA"
    for old, new in (('bscan', 'images'), ('semseg', 'masks')):
        (home/'data'/'MySet'/new).mkdir(parents=True)
        for p in (phantoms/'Phantom_OCT').glob(f'*/{old}/*.png'): shutil.copy(p, home/'data'/'MySet'/new/p.name)
    shutil.copy(phantoms/'Phantom_OCT'/'INFO.json', home/'data'/'MySet')
    monkeypatch.setenv('MIRAGE_DATA', str(home/'data'))
    return home/'data'/'MySet'


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:MySet')
def test_drawn_splits_are_part_of_the_identity(loose):
    mine = {'dataset': 'MySet', 'waive': 'absent_class'}  # of twelve patients, some parts lack a class
    tasks = [SegmentationTask.from_settings(settings(**mine, splits=f'fold {k} of 4')) for k in (1, 2)]
    a, b = (t.sources() for t in tasks)
    assert a['splits'] != b['splits'] and a['data'] != b['data'] and a['manifest'] == b['manifest']
    assert a['splits'] == hash_splits(tasks[0].data.tables)
    assert 'splits' not in SegmentationTask.from_settings(settings()).sources(), 'those are of the dataset'
    assert settings(seed=1).splits == settings().splits, 'the seed of a run draws no splits'
    seeded = SegmentationTask.from_settings(settings(**mine, splits='fold 1 of 4', seed=5))
    assert seeded.sources()['splits'] == a['splits']


@pytest.mark.slow
def test_a_run_without_splits_end_to_end(loose, execute):
    "Trained on a fold, evaluated on that fold alone, and divided again by its file"
    small = dict(recipe='seg_small', size=64, epochs=1, baselines=False, head='linear', waive='absent_class')
    space = execute('seg_tune', dataset='MySet', splits='fold 2 of 4', **small)
    run, tables = space['run'].folder, space['data'].tables
    listed = pd.read_csv(run/'splits.csv').set_index('id').split.to_dict()
    assert listed == {k: s for s, t in tables.items() for k in t.id} and len(listed) == 24
    assert {s: len(t) for s, t in tables.items()} == {'train': 12, 'val': 6, 'test': 6}
    record = read_json(run/'run.json')
    assert record['sources']['splits'] == hash_file(run/'splits.csv')
    assert record['settings']['splits'] == 'fold 2 of 4'
    scored = execute('seg_eval', run=str(run), dataset='MySet')
    assert sorted(scored['scored'].table.id) == sorted(tables['test'].id), 'no image that was learnt from'
    assert scored['scores'].means == space['test'].means
    again = execute('seg_tune', dataset='MySet', splits=str(run/'splits.csv'), **small)
    assert again['run'].folder != run and again['test'].means == space['test'].means
    assert again['run'].sources['splits'] == record['sources']['splits']
