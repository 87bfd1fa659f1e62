"Pre-training: several processes, machines, precisions and options give the numbers of one plain process; it resumes"
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import asdict, fields, replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mirage_nb import launch
from mirage_nb.core import write_json
from mirage_nb.jobs import pretrain
from mirage_nb.recipes import override, pretrain_recipe
from mirage_nb.runs import start_run
from mirage_nb.train import loop

OPTIONS = {'dataset': 'Phantom_OCT', 'size': 32, 'epochs': 2, 'batch_size': 4, 'precision': 'fp32', 'look_every': 1,
           'keep_every': 1, 'keep_last': 1}
STEPS = 2  # an epoch: 8 samples


def settings(**changed): return override(pretrain_recipe('pre_mirage_small'), **{**OPTIONS, **changed})


@pytest.fixture
def plain(home): return pretrain.train_pretrain(settings(), home/'plain')


def numbers(history): return history.drop(columns=list(loop.TIMES))


def close(a, b, rel=1e-4):
    assert len(a) == len(b) and list(a) == list(b)
    for k in (k for k in a if 'loss' in k): assert a[k].tolist() == pytest.approx(b[k].tolist(), rel=rel), k


def equal_runs(folder, other):
    pd.testing.assert_frame_equal(*(numbers(pd.read_csv(f/'history.csv')) for f in (folder, other)), check_exact=True)
    names = sorted(str(p.relative_to(other)) for p in other.rglob('*.safetensors'))
    assert names == sorted(str(p.relative_to(folder)) for p in folder.rglob('*.safetensors'))
    assert [n for n in names if 'looks' in n] and 'encoder.safetensors' in names
    for n in names:
        x, y = load_file(folder/n), load_file(other/n)
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), f'{n} differs'


# ------------------------------------------------------------------ options that change no number

@pytest.mark.parametrize('changed', [{'accumulate': 2}, {'workers': 2}, {'checkpointing': True}])
def test_options_that_change_nothing(plain, home, changed):
    other = pretrain.train_pretrain(settings(**changed), home/'other')
    close(other, plain, rel=1e-12 if 'workers' in changed else 1e-4)


def test_bf16_is_near_fp32(plain, home):
    half = pretrain.train_pretrain(settings(precision='bf16'), home/'half')
    close(half, plain, rel=0.05)
    assert half.loss.tolist() != plain.loss.tolist(), 'it was not bf16'


@pytest.mark.slow
def test_compiled_is_near_plain(plain, home):
    close(pretrain.train_pretrain(settings(compile=True), home/'other'), plain, rel=1e-3)


def test_repeats_are_views_of_their_own(home):
    history = pretrain.train_pretrain(settings(repeats=2, epochs=1, warmup_epochs=0.), home/'run')
    assert len(history) == 1 and history.loss.notna().all()
    steps = loop.epoch_batches(8, pretrain.pretrain_settings(settings(repeats=2)), 1)
    assert len(steps) == 2*STEPS and len({pair for s in steps for pair in s[0]}) == 16


# ------------------------------------------------------------------ several processes

@pytest.mark.slow
@pytest.mark.parametrize('changed', [{}, {'strategy': 'fsdp'}, {'strategy': 'fsdp', 'accumulate': 2}])
def test_two_processes_are_one(plain, home, changed):
    two = launch.train(settings(processes=2, clip=1., **changed), home/'two')
    close(two, plain)
    a, b = (load_file(home/k/'encoder.safetensors') for k in ('plain', 'two'))
    assert a.keys() == b.keys() and max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-3
    log = [json.loads(line) for line in (home/'two'/'progress.jsonl').read_text().splitlines()]
    assert [r['epoch'] for r in log if 'seconds' in r] == [1, 2], 'both processes wrote'
    assert log[0]['processes'] == 2


STARTS = {  # how processes are started from outside: words before the module, which takes the folder
    'two machines': [sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--nproc_per_node', '1',
                     '--master_addr', 'localhost', '--master_port', '29511', '--node_rank', '{rank}', '-m'],
    'accelerate': [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2',
                   '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--module']}


@pytest.mark.slow
@pytest.mark.parametrize('how', STARTS)
def test_started_from_outside(plain, home, how):
    folder = home/'two'
    write_json(folder/'settings.json', {'stage': 'pretrain_multimae', 'settings': asdict(settings())})
    ranks = (0, 1) if how == 'two machines' else (0,)
    words = [[w.format(rank=r) for w in STARTS[how]] + ['mirage_nb.launch', str(folder)] for r in ranks]
    started = [subprocess.Popen(w, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for w in words]
    said = [p.communicate(timeout=240)[0] for p in started]
    assert [p.returncode for p in started] == [0]*len(started), said
    close(pd.read_csv(folder/'history.csv'), plain)
    assert json.loads((folder/'progress.jsonl').read_text().splitlines()[0])['processes'] == 2


@pytest.mark.slow
def test_submitted_by_submitit(plain, home):
    pytest.importorskip('submitit')
    close(launch.train(settings(processes=2, slurm='local'), home/'two'), plain)
    assert list((home/'two'/'slurm').glob('*_0_log.out'))


@pytest.mark.slow
def test_failing_job_says_why(home):
    pytest.importorskip('submitit')
    with pytest.raises(RuntimeError, match="no modality 'oct'.*_log.out"):
        launch.train(settings(processes=2, slurm='local', modalities=['oct']), home/'two')


# ------------------------------------------------------------------ killed

def die(): os.kill(os.getpid(), signal.SIGKILL)


def at(n, owner, name, act):
    "Replace a function: at its n-th call, `act` happens instead"
    old, calls = getattr(owner, name), iter(range(1, 1_000_000))
    setattr(owner, name, lambda *a, **k: act(old, *a, **k) if next(calls) == n else old(*a, **k))


PLANS = {  # in the middle of what the process dies
    'the first look': lambda: at(1, pretrain, 'save_look', lambda f, *a: die()),
    'a step': lambda: at(2, loop.Trainer, 'train_step', lambda f, *a: (f(*a), die())),
    'a look': lambda: at(2, pretrain, 'save_look', lambda f, *a: (f(*a), die())),
    'a checkpoint, the older one not yet gone': lambda: at(2, pretrain, 'save_pretrain_model',
                                                           lambda f, *a, **k: (f(*a, **k), die())),
    'the end': lambda: at(1, pretrain, 'export_encoder', lambda f, *a: die())}


def work(folder, data, plan='', **changed):
    os.environ |= {'MIRAGE_DATA': str(data), 'MIRAGE_RUNS': str(folder.parent)}
    torch.set_num_threads(1)
    fit = pretrain.pretrain_settings
    pretrain.pretrain_settings = lambda cfg: replace(fit(cfg), save_every=0.)
    if plan: PLANS[plan]()
    pretrain.train_pretrain(settings(**changed), folder)


@pytest.mark.slow
@pytest.mark.parametrize('plan', PLANS)
def test_killed_in(plan, home, phantoms, plain):
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mirage_nb.jobs.pretrain', 'torch._dynamo'])
    for wanted, p in ((-signal.SIGKILL, plan), (0, '')):
        child = context.Process(target=work, args=(home/'run', phantoms, p))
        child.start()
        child.join(120)
        assert child.exitcode == wanted
    equal_runs(home/'run', home/'plain')


KILLED = '''
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from mirage_nb import launch
from mirage_nb.jobs import pretrain
from mirage_nb.train import loop
fit, step, steps = pretrain.pretrain_settings, loop.Trainer.train_step, []
pretrain.pretrain_settings = lambda cfg: replace(fit(cfg), save_every=0.)

def train_step(*a):
    if os.environ.get('RANK') == sys.argv[2] and len(steps) == 3: os.kill(os.getpid(), signal.SIGKILL)
    steps.append(1)
    return step(*a)

loop.Trainer.train_step = train_step
launch.train_here(Path(sys.argv[1]))
'''


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['ddp', 'fsdp'])
def test_one_of_two_processes_killed(plain, home, strategy):
    "The others end, and two processes, or one, go on to the numbers of an undisturbed run"
    folder = home/'two'
    write_json(folder/'settings.json', {'stage': 'pretrain_multimae', 'settings': asdict(settings(strategy=strategy))})
    (home/'killed.py').write_text(KILLED)
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    for victim in ('1', ''):
        done = subprocess.run([*torchrun, str(home/'killed.py'), str(folder), victim], capture_output=True, text=True,
                              timeout=240)
        assert bool(done.returncode) == bool(victim), done.stderr[-2000:]
    events = [json.loads(line) for line in (folder/'progress.jsonl').read_text().splitlines()]
    said = [(e['event'], e['epoch'], e['step']) for e in events if 'event' in e]
    assert said in [[('started', 0, 0), ('resumed', 1, step)] for step in (0, 1)]  # the kill may cut off a save
    close(pd.read_csv(folder/'history.csv'), plain)


SAME = '''
import sys
from pathlib import Path
from mirage_nb.launch import train_here
train_here(Path(sys.argv[1]))
'''


@pytest.mark.slow
def test_same_seed_same_numbers_whatever_the_hash_seed(home):
    started = []
    for i in (1, 2):
        write_json(home/f'{i}'/'settings.json', {'stage': 'pretrain_multimae', 'settings': asdict(settings())})
        started.append(subprocess.Popen([sys.executable, '-c', SAME, str(home/f'{i}')], stderr=subprocess.DEVNULL,
                                        env={**os.environ, 'PYTHONHASHSEED': f'{i}'}))
    assert [p.wait(120) for p in started] == [0, 0]
    equal_runs(home/'1', home/'2')


# ------------------------------------------------------------------ any part of the data, any option

@pytest.mark.parametrize('names', [['bscan'], ['slo', 'bscanlayermap']])
def test_any_modalities(home, names):
    history = pretrain.train_pretrain(settings(epochs=1, warmup_epochs=0., modalities=names), home/'run')
    assert {k for k in history if k.startswith('loss_')} == {f'loss_{k}' for k in names}


OTHER = {'dataset': 'Other', 'recipe': 'pre_mirage', 'model': 'mirage_base', 'weights': 'w.pth', 'size': 64,
         'modalities': ['bscan'], 'uniform_modalities': True, 'norm_pix': True, 'crop': [0.5, 1.], 'shares': [1.],
         'schedule': 'half_cycle', 'betas': [0.9, 0.99], 'clip': 2., 'checkpointing': True, 'compile': True,
         'precision': 'bf16', 'slurm': 'gpu', 'strategy': 'fsdp', 'mask_ratio': 0.5}


def test_any_changed_option_is_another_run(home):
    cfg = settings()
    own = start_run('pretrain_multimae', asdict(cfg), {'data': 'x'}).folder
    folders = []
    for f in fields(cfg):
        new = OTHER[f.name] if f.name in OTHER else getattr(cfg, f.name) + 1
        changed = asdict(cfg) | {f.name: new}
        folders.append(start_run('pretrain_multimae', changed, {'data': 'x'}).folder)
    assert own not in folders and len(set(folders)) == len(folders) == len(fields(cfg))
