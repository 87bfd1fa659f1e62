"Pre-training: several processes, machines, precisions and options give the numbers of one plain process; it resumes"
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mirage_nb.data.packed import pack
from mirage_nb.data.paired import folder_pairs
from mirage_nb.eval.pretraining import read_snapshot_images
from mirage_nb.figures.pretraining import show_reconstruction, show_snapshots
from mirage_nb.launch import local as launch_local
from mirage_nb.models.architecture import build_like
from mirage_nb.models.checkpoints import read_checkpoint
from mirage_nb.models.loading import load_model
from mirage_nb.models.mirage_mae import _draw_masks
from mirage_nb.recipes.pretraining import MAERecipe, MultiMAERecipe, pretrain_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.records import _MACHINERY, start_run
from mirage_nb.storage import read_json, write_json
from mirage_nb.tasks import pretrain as tasks_pretrain
from mirage_nb.tasks import pretrain_mirage as tasks_pretrain_mirage
from mirage_nb.tasks.pretrain_mirage import MirageTask
from mirage_nb.tasks.protocol import train
from mirage_nb.train import loop as train_loop
from mirage_nb.train.devices import make_accelerator
from tests.tasks.samples import forkserver, train_each, two_processes

pytestmark = pytest.mark.slow

OPTIONS = {'dataset': 'Phantom_OCT', 'size': 32, 'epochs': 2, 'batch_size': 4, 'precision': 'fp32', 'eval_every': 1,
           'checkpoint_every': 1, 'keep_last': 1}
STEPS = 2  # an epoch: 8 samples


def settings(**changed): return override(pretrain_recipe('pre_mirage_small', MultiMAERecipe), **{**OPTIONS, **changed})


def train_pretrain(cfg, folder): return train(MirageTask.from_settings(cfg), folder)


@pytest.fixture(scope='module')
def plain_run(at_home, tmp_path_factory):
    "Folder of one plain process, which all others are compared with"
    with at_home(tmp_path_factory.mktemp('plain')) as folder: train_pretrain(settings(), folder/'run')
    return folder/'run'


def numbers(history): return history.drop(columns=list(train_loop._TIMES))


def close(a, b, rel=1e-4):
    assert len(a) == len(b) and list(a) == list(b)
    for k in (k for k in a if 'loss' in k): assert a[k].tolist() == pytest.approx(b[k].tolist(), rel=rel), k


def equal_runs(folder, other):
    pd.testing.assert_frame_equal(*(numbers(pd.read_csv(f/'history.csv')) for f in (folder, other)), check_exact=True)
    names = sorted(str(p.relative_to(other)) for p in other.rglob('*.safetensors'))
    assert names == sorted(str(p.relative_to(folder)) for p in folder.rglob('*.safetensors'))
    assert [n for n in names if 'snapshots' in n] and 'encoder.safetensors' in names
    for n in names:
        x, y = load_file(folder/n), load_file(other/n)
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), f'{n} differs'


# ------------------------------------------------------------------ options that change no number

@pytest.mark.parametrize('changed', [{'accumulate': 2}, {'workers': 2}, {'checkpointing': True}])
def test_options_that_change_nothing(plain, home, changed):
    other = train_pretrain(settings(**changed), home/'other')
    close(other, plain, rel=1e-4 if 'accumulate' in changed else 1e-12)


def test_bf16_is_near_fp32(plain, home):
    half = train_pretrain(settings(precision='bf16'), home/'half')
    close(half, plain, rel=0.05)
    assert half.loss.tolist() != plain.loss.tolist(), 'it was not bf16'


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.long)])
def test_compiled_is_near_plain(home, monkeypatch, backend):
    "Every block is traced and differentiated; to write, build and load C++ of them takes the compiler a minute more"
    built = nn.Module.compile
    monkeypatch.setattr(nn.Module, 'compile', lambda module: built(module, backend=backend))
    changed = {'modalities': ['bscan'], 'batch_size': 8, 'eval_every': 0}  # two steps of one shape, and one look
    plain, compiled = (train_pretrain(settings(compile=k, **changed), home/f'{k}') for k in (False, True))
    assert torch._dynamo.utils.counters['stats']['unique_graphs'], 'nothing was compiled'
    close(compiled.fillna(0.), plain.fillna(0.), rel=1e-3)
    a, b = (load_file(home/f'{k}'/'encoder.safetensors') for k in (False, True))
    differ = torch.cat([(a[k] - b[k]).abs().flatten() for k in a])
    assert differ.mean() < 1e-6, 'other gradients: AdamW moves each weight that learns by some 1e-4 in a step'


def test_repeats_are_views_of_their_own(home):
    history = train_pretrain(settings(repeated_augmentation=2, epochs=1, warmup_epochs=0.), home/'run')
    assert len(history) == 1 and history.loss.notna().all()
    steps = train_loop._epoch_batches(8, tasks_pretrain.pretrain_settings(settings(repeated_augmentation=2)), 1)
    assert len(steps) == 2*STEPS and len({pair for s in steps for pair in s[0]}) == 16


# ------------------------------------------------------------------ several processes

PARTLY = {'batch_size': 8, 'mask_ratio': 0.5, 'uniform_modalities': True}  # some samples are wholly visible
ON_TWO = {'ddp': {}, 'fsdp': {'strategy': 'fsdp'}, 'fsdp, accumulated': {'strategy': 'fsdp', 'accumulate': 2},
          'partly ddp': PARTLY | {'accumulate': 2}, 'partly fsdp': PARTLY | {'accumulate': 2, 'strategy': 'fsdp'}}


@pytest.fixture(scope='module')
def on_two(at_home, tmp_path_factory):
    "Runs of the same two processes, one after another"
    with at_home(tmp_path_factory.mktemp('on_two')) as home:
        for name, changed in ON_TWO.items():
            clip = {} if 'partly' in name else {'clip': 1.}
            write_json(home/name/'settings.json', {'stage': 'pretrain_multimae',
                                                   'settings': asdict(settings(processes=2, **clip, **changed))})
        assert two_processes(train_each, [home/k for k in ON_TWO]) == [0, 0]
    return home


@pytest.mark.parametrize('name', [k for k in ON_TWO if 'partly' not in k])
def test_two_processes_are_one(plain, plain_run, on_two, name):
    close(pd.read_csv(on_two/name/'history.csv'), plain)
    a, b = (load_file(k/'encoder.safetensors') for k in (plain_run, on_two/name))
    assert a.keys() == b.keys() and max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-3
    log = [json.loads(line) for line in (on_two/name/'progress.jsonl').read_text().splitlines()]
    assert [r['epoch'] for r in log if 'seconds' in r] == [1, 2], 'both processes wrote'
    assert log[0]['processes'] == 2


STARTS = {  # how processes are started from outside: words before the module, which takes the folder
    'two machines': [sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--nproc_per_node', '1',
                     '--master_addr', 'localhost', '--master_port', '29511', '--node_rank', '{rank}', '-m'],
    'accelerate': [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2',
                   '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--module']}


@pytest.mark.parametrize('how', STARTS)
def test_started_from_outside(plain, home, how):
    folder = home/'two'
    write_json(folder/'settings.json', {'stage': 'pretrain_multimae', 'settings': asdict(settings())})
    ranks = (0, 1) if how == 'two machines' else (0,)
    words = [[w.format(rank=r) for w in STARTS[how]] + ['mirage_nb.launch.worker', str(folder)] for r in ranks]
    started = [subprocess.Popen(w, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for w in words]
    said = [p.communicate(timeout=240)[0] for p in started]
    assert [p.returncode for p in started] == [0]*len(started), said
    close(pd.read_csv(folder/'history.csv'), plain)
    assert json.loads((folder/'progress.jsonl').read_text().splitlines()[0])['processes'] == 2


def test_submitted_by_submitit(plain, home):
    pytest.importorskip('submitit')
    close(launch_local.launch_training(settings(processes=2, slurm='local'), home/'two'), plain)
    assert list((home/'two'/'slurm').glob('*_0_log.out'))


def test_failing_job_says_why(home):
    pytest.importorskip('submitit')
    with pytest.raises(RuntimeError, match="no modality 'oct'.*_log.out"):
        launch_local.launch_training(settings(processes=2, slurm='local', modalities=['oct']), home/'two')


# ------------------------------------------------------------------ killed

def die(): os.kill(os.getpid(), signal.SIGKILL)


def at(n, owner, name, act):
    "Replace a function: at its n-th call, `act` happens instead"
    old, calls = getattr(owner, name), iter(range(1, 1_000_000))
    setattr(owner, name, lambda *a, **k: act(old, *a, **k) if next(calls) == n else old(*a, **k))


PLANS = {  # in the middle of what the process dies
    'the first look': lambda: at(1, tasks_pretrain.PretrainTask, 'save_snapshot', lambda f, *a: die()),
    'a step': lambda: at(2, train_loop._Trainer, 'train_step', lambda f, *a: (f(*a), die())),
    'a look': lambda: at(2, tasks_pretrain.PretrainTask, 'save_snapshot', lambda f, *a: (f(*a), die())),
    'a checkpoint, the older one not yet gone': lambda: at(2, tasks_pretrain, 'save_pretrain_model',
                                                           lambda f, *a, **k: (f(*a, **k), die())),
    'the end': lambda: at(1, tasks_pretrain, 'export_encoder', lambda f, *a: die())}


def work(folder, data, plan='', **changed):
    os.environ |= {'MIRAGE_DATA': str(data), 'MIRAGE_RUNS': str(folder.parent)}
    torch.set_num_threads(1)
    fit = tasks_pretrain.pretrain_settings
    tasks_pretrain.pretrain_settings = lambda cfg: replace(fit(cfg), save_every=0.)
    if plan: PLANS[plan]()
    train_pretrain(settings(**changed), folder)


@pytest.mark.parametrize('plan', PLANS)
def test_killed_in(plan, home, phantoms, plain_run):
    for wanted, p in ((-signal.SIGKILL, plan), (0, '')):
        child = forkserver().Process(target=work, args=(home/'run', phantoms, p))
        child.start()
        child.join(300)
        assert child.exitcode == wanted
    equal_runs(home/'run', plain_run)


def kill_second(folder):
    "Train as one of two processes, of which the second dies in its fourth step"
    fit, step, steps = tasks_pretrain.pretrain_settings, train_loop._Trainer.train_step, []
    tasks_pretrain.pretrain_settings = lambda cfg: replace(fit(cfg), save_every=0.)

    def train_step(*a):
        if os.environ['RANK'] == '1' and len(steps) == 3: die()
        steps.append(1)
        return step(*a)
    train_loop._Trainer.train_step = train_step
    train_each([folder])


@pytest.fixture(scope='module')
def killed(at_home, tmp_path_factory):
    "Runs of which one of two processes was killed, and which went on"
    with at_home(tmp_path_factory.mktemp('killed')) as home:
        folders = [home/'ddp', home/'fsdp']
        for f in folders:
            write_json(f/'settings.json', {'stage': 'pretrain_multimae', 'settings': asdict(settings(strategy=f.name))})
            codes = two_processes(kill_second, f)
            assert codes[0] and codes[1] == -signal.SIGKILL, 'the other goes on alone'
        assert two_processes(train_each, folders) == [0, 0]
    return home


@pytest.mark.parametrize('strategy', ['ddp', 'fsdp'])
def test_one_of_two_processes_killed(plain, killed, strategy):
    "The others end, and two processes go on to the numbers of an undisturbed run"
    events = [json.loads(line) for line in (killed/strategy/'progress.jsonl').read_text().splitlines()]
    said = [(e['event'], e['epoch'], e['step']) for e in events if e.get('event') in ('started', 'resumed')]
    assert said in [[('started', 0, 0), ('resumed', 1, step)] for step in (0, 1)]  # the kill may cut off a save
    close(pd.read_csv(killed/strategy/'history.csv'), plain)


SAME = '''
import sys
from pathlib import Path
from mirage_nb.launch.worker import train_here
train_here(Path(sys.argv[1]))
'''


def test_same_seed_same_numbers_whatever_the_hash_seed(plain_run, home):
    write_json(home/'run'/'settings.json', {'stage': 'pretrain_multimae', 'settings': asdict(settings())})
    seed = '2' if os.environ.get('PYTHONHASHSEED') == '1' else '1'  # this process has another, drawn at its start
    done = subprocess.run([sys.executable, '-c', SAME, str(home/'run')], capture_output=True, text=True, timeout=600,
                          env={**os.environ, 'PYTHONHASHSEED': seed})
    assert done.returncode == 0, done.stderr[-2000:]
    equal_runs(home/'run', plain_run)


# ------------------------------------------------------------------ any part of the data, any option

@pytest.mark.parametrize('names', [['bscan'], ['slo', 'bscanlayermap']])
def test_any_modalities(home, names):
    history = train_pretrain(settings(epochs=1, warmup_epochs=0., modalities=names), home/'run')
    assert {k for k in history if k.startswith('loss_')} == {f'loss_{k}' for k in names}


OTHER = {'splits': '0.8/0.1/0.1', 'waive': 'constant',
         'dataset': 'Other', 'recipe': 'pre_mirage', 'model': 'mirage_base', 'weights': 'w.pth', 'size': 80,
         'modalities': ['bscan'], 'uniform_modalities': True, 'norm_pix': True,
         'betas': [0.9, 0.99], 'clip': 2., 'checkpointing': True, 'compile': True,
         'precision': 'bf16', 'slurm': 'gpu', 'strategy': 'fsdp', 'mask_ratio': 0.5, 'val_fraction': 0.1,
         'outputs': ['slo'], 'loss_on': 'all', 'crop_scale': [0.5, 1.], 'sampling_weights': [1.], 'decode_ratio': 0.5}


@pytest.mark.parametrize('kind', [MultiMAERecipe, MAERecipe])
def test_any_changed_option_is_another_run(home, kind):
    "But those that say where it computes: the same run goes on there, and its record says so"
    cfg = settings() if kind is MultiMAERecipe else pretrain_recipe('pre_mae_small', kind)
    own = start_run('pretrain_multimae', asdict(cfg), {'data': 'x'}).folder
    folders, other = {}, OTHER | {'schedule': 'warmup_cosine' if kind is MAERecipe else 'half_cycle'}
    for f in fields(cfg):
        new = other[f.name] if f.name in other else getattr(cfg, f.name) + 1
        changed = asdict(cfg) | {f.name: new}
        folders[f.name] = start_run('pretrain_multimae', changed, {'data': 'x'}).folder
        if f.name in _MACHINERY: assert read_json(own/'run.json')['settings'][f.name] == new
    assert {k for k, v in folders.items() if v == own} == set(_MACHINERY)
    assert len(set(folders.values())) == len(folders) - len(_MACHINERY) + 1


def test_goes_on_with_as_many_processes_as_there_are(plain, home, monkeypatch):
    "Stopped on one process, it goes on by the same command on two, and a third time on one"
    step, steps = train_loop._Trainer.train_step, []

    def interrupted(*a):
        if len(steps) == 1: raise KeyboardInterrupt
        steps.append(1)
        return step(*a)

    def folder(n): return start_run('pretrain_multimae', asdict(settings(processes=n)), {'data': 'x'}).folder
    monkeypatch.setattr(train_loop._Trainer, 'train_step', interrupted)
    with pytest.raises(KeyboardInterrupt): launch_local.launch_training(settings(), folder(1))
    close(launch_local.launch_training(settings(processes=2), folder(2)), plain)
    events = [json.loads(line) for line in (folder(1)/'progress.jsonl').read_text().splitlines()]
    assert [(e['event'], e.get('processes')) for e in events if 'event' in e] == [
        ('started', 1), ('interrupted', None), ('resumed', 2)]
    assert read_json(folder(2)/'settings.json')['settings']['processes'] == 2


# ------------------------------------------------------------------ what is not learnt from, and the probe

def own_folder(phantoms, to, *splits):
    "Pairs of phantoms in a folder without a manifest, each split in a folder of its own, or one alone in the folder"
    for s in splits: shutil.copytree(phantoms/'Phantom_OCT'/s, to/s if len(splits) > 1 else to)
    return to


def looked_at(folder, **changed):
    "Task of a folder, and the numbers of a first look"
    cfg = settings(dataset=str(folder), **changed)
    task = MirageTask.from_settings(cfg)
    return task, task.save_snapshot(task.model.eval(), make_accelerator('fp32'), folder.parent/'look', 0)


def test_part_of_a_folder_is_held_out(home, phantoms):
    folder = own_folder(phantoms, home/'pairs', 'train')
    task, seen = looked_at(folder)
    assert len(task.shown) == 2 and len(task.train) == 6 and not set(task.shown.ids) & set(task.train.ids)
    assert len({i[:5] for i in task.shown.ids}) == 1, 'slices of one volume in both'
    assert {'valid_loss', 'valid_slo'} <= set(seen) and 'held out' in task.hashes
    task, seen = looked_at(folder, val_fraction=0.)
    assert task.shown is task.train and 'seen_loss' in seen and not [k for k in seen if 'valid' in k]
    write_table(folder/'labels.csv', [(i, 'one', 'ill') for i in task.train.ids], 'id,patient,label')
    assert looked_at(folder)[0].shown.ids == task.train.ids, 'one patient: nothing can be held out'


@pytest.mark.parametrize('packed', [False, True])
def test_splits_of_a_folder(home, phantoms, packed):
    folder = own_folder(phantoms, home/'pairs', 'train', 'val')
    if packed:
        for s in ('train', 'val'): pack(folder_pairs(folder/s), home/'packed'/s, quiet=True)
        folder = home/'packed'
    shutil.copy(phantoms/'Phantom_OCT'/'labels.csv', folder)
    task, seen = looked_at(folder)
    assert (len(task.train), len(task.shown)) == (8, 8) and set(task.hashes) == {'data train', 'data val', 'labels'}
    assert 'valid_loss' in seen and 0 <= seen['probe'] <= 1
    shutil.copytree(folder/'train', home/'both')
    shutil.copytree(folder/'val', home/'both'/'val')
    with pytest.raises(ValueError, match='both holds pairs, and so does its folder val/'): looked_at(home/'both')


def write_table(path, rows, head='id,label'):
    path.write_text('\n'.join([head, *(','.join(r) for r in rows)]) + '\n')


LABELS = {  # rows of labels.csv of training and held-out ids, and why there is no probe; '' for there is one
    'an empty cell': (lambda a, b: [(i, '' if i == a[0] else 'ill' if k % 2 else 'well')
                                    for k, i in enumerate(a + b)], ''),
    'training alone': (lambda a, b: [(i, 'ill' if k % 2 else 'well') for k, i in enumerate(a)],
                       'no image of 2 has a label'),
    'one class': (lambda a, b: [(i, 'ill') for i in a + b], "the training labels are all 'ill'"),
    'no label': (lambda a, b: [(i, '') for i in a + b], 'no row has a label'),
    'no column': (None, 'it has no column label')}


@pytest.mark.parametrize('case', LABELS)
def test_imperfect_labels_stop_nothing(home, phantoms, case, caplog):
    folder, (rows, why) = own_folder(phantoms, home/'pairs', 'train'), LABELS[case]
    before, _ = looked_at(folder)
    rows = rows(list(before.train.ids), list(before.shown.ids)) if rows else [(i,) for i in before.train.ids]
    write_table(folder/'labels.csv', rows, 'id,label' if len(rows[0]) == 2 else 'id')
    task, seen = looked_at(folder)
    assert ('probe' in seen) == (not why) and why in caplog.text and task.shown.ids == before.shown.ids
    assert (task.hashes == before.hashes) == (task.labels is None), 'other labels are another run'


# ------------------------------------------------------------------ samples that are wholly visible

@pytest.fixture
def partly(home): return train_pretrain(settings(**PARTLY), home/'partly')


def same_training(home, other):
    close(pd.read_csv(other/'history.csv'), pd.read_csv(home/'partly'/'history.csv'), rel=1e-5)
    a, b = (load_file(k/'encoder.safetensors') for k in (home/'partly', other))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-4


@pytest.mark.parametrize('accumulate', [2, 4])
def test_micro_batches_with_visible_samples(partly, home, accumulate):
    task = MirageTask.from_settings(settings(**PARTLY))
    counts = [task.counts(task.views(task.collate([task.train[0, i] for i in range(k, k + 4)]))) for k in (0, 4)]
    assert counts[0] != counts[1], 'these micro-batches weigh the same'
    train_pretrain(settings(**PARTLY, accumulate=accumulate), home/'other')
    same_training(home, home/'other')


@pytest.mark.parametrize('strategy', ['ddp', 'fsdp'])
def test_two_processes_with_visible_samples(partly, home, on_two, strategy):
    same_training(home, on_two/f'partly {strategy}')


# ------------------------------------------------------------------ what is predicted, and in which units

def test_normalised_patches_do_not_show_the_truth(home):
    train_pretrain(settings(epochs=1, warmup_epochs=0., norm_pix=True), home/'run')
    seen = read_snapshot_images(home/'run')[1]
    assert 'normalised.slo' in seen and 'cross.slo' not in seen and 'cross.bscanlayermap' in seen
    ready = load_model(home/'run'/'model.safetensors')
    assert ready.norm_pix and 'slo' not in ready.reconstruct({'bscan': torch.rand(1, 32, 32)})
    task = MirageTask.from_settings(settings(norm_pix=True))
    batch = task.plain(task.collate([task.shown[0, 0]]))
    x = {k: batch[k] for k in task.keywords['modalities']}
    model, key = task.model.eval(), torch.tensor([1])
    drawn = [tasks_pretrain_mirage._mirage_snapshot(model, {**x, 'slo': s}, key, ['bscan', 'slo'])
             for s in (x['slo'], x['slo']/2)]
    assert torch.equal(*(d['normalised.slo'] for d in drawn)), 'the picture from the B-scan alone shows the SLO image'


@pytest.mark.parametrize('changed', [{'modalities': ['bscan'], 'outputs': ['slo', 'bscanlayermap']},
                                     {'outputs': ['bscanlayermap'], 'loss_on': 'all'}])
def test_outputs_are_chosen(home, changed):
    cfg = settings(epochs=1, warmup_epochs=0., **changed)
    history = train_pretrain(cfg, home/'run')
    assert {k for k in history if k.startswith('loss_')} == {f'loss_{k}' for k in cfg.outputs}
    drawn = load_model(home/'run'/'model.safetensors').reconstruct({'bscan': torch.rand(1, 32, 32)})
    assert set(drawn) == set(cfg.outputs) and drawn['bscanlayermap'].shape == (1, 8, 8)
    show_snapshots(read_snapshot_images(home/'run'))
    ours = read_checkpoint(home/'run'/'model.safetensors')
    again = build_like(replace(ours, meta={}), {(192, 6): 3}, decoder_heads=4)  # as from elsewhere: tensors alone
    assert {m.name: (m.patch, m.classes) for m in again.outputs} == {
        k: (4, 13) if k == 'bscanlayermap' else (16, 0) for k in cfg.outputs}


def test_loss_on_all_pixels(home):
    cfg = settings(**PARTLY)
    some, every = (MirageTask.from_settings(override(cfg, loss_on=k)) for k in ('hidden', 'all'))
    batch = some.plain(some.collate([some.train[0, i] for i in range(4)]))
    a, b = (t.step(some.model.eval(), batch) for t in (some, every))
    made, _ = some.model({k: batch[k] for k in a}, batch['key'])
    assert b['slo'].item() == pytest.approx((made['slo'] - batch['slo']).square().mean().item(), rel=1e-5)
    assert a['slo'].item() != b['slo'].item() and every.counts(batch)['slo'] == 4
    for wrong, words in (({'loss_on': 'some'}, "no loss_on 'some'"),
                         ({'outputs': []}, 'outputs takes 1 value or more')):
        with pytest.raises(ValueError, match=words): settings(**wrong)
    with pytest.raises(KeyError, match="no modality 'oct'"):
        assert MirageTask.from_settings(settings(outputs=['oct'])).keywords


def test_masks_are_learnt_from_whole_bscans(home, phantoms):
    cfg = settings(supervised=3., modalities=['bscan', 'slo'], epochs=24, eval_every=0)
    history = train_pretrain(cfg, home/'run')
    assert {k for k in history if k.startswith('loss_')} == {'loss_bscan', 'loss_slo', 'loss_semseg'}
    assert history.loss_semseg.iloc[-1] < 0.8*history.loss_semseg[0] and 'valid_semseg' in history
    model = load_model(home/'run'/'model.safetensors').model.eval()
    task = MirageTask.from_settings(cfg)
    batch = task.plain(task.collate([task.shown[0, i] for i in range(4)]))
    right = (model.draw_classes(batch['bscan']).argmax(1) == batch['semseg']).float().mean()
    assert right > 0.5 and 'mask_head.linear.weight' not in load_file(home/'run'/'encoder.safetensors')
    onward = MirageTask.from_settings(replace(cfg, supervised=0., weights=str(home/'run'/'model.safetensors')))
    assert sorted(onward.loaded.unused) == ['mask_head.linear.bias', 'mask_head.linear.weight']
    train_pretrain(replace(onward.settings, epochs=1, warmup_epochs=0.), home/'masked')
    back = MirageTask.from_settings(replace(cfg, weights=str(home/'masked'/'model.safetensors')))
    assert sorted(back.loaded.new) == ['mask_head.linear.bias', 'mask_head.linear.weight'], 'decoders are new'
    assert task.train.pairs.classes['semseg'] == 13 and task.train.image('semseg', 0).max() < 13


def test_masks_that_cannot_be_learnt_from(home, phantoms):
    with pytest.raises(ValueError, match='draws masks from B-scans, and modalities has none'):
        settings(supervised=1., modalities=['slo'])
    shutil.copytree(phantoms/'Phantom_OCT'/'train', home/'pairs')
    with pytest.raises(FileNotFoundError, match='learns from masks, and .*pairs names no classes'):
        assert MirageTask.from_settings(settings(supervised=1., dataset=str(home/'pairs'))).data
    shutil.copytree(phantoms/'Phantom_OCT', home/'data'/'Own', dirs_exist_ok=True)
    shutil.rmtree(home/'data'/'Own'/'train')
    pack(folder_pairs(phantoms/'Phantom_OCT'/'train'), home/'data'/'Own'/'train', quiet=True)
    with pytest.raises(ValueError, match='semseg of a table or a packed set is not read'):
        assert MirageTask.from_settings(settings(supervised=1., dataset=str(home/'data'/'Own'))).data


def test_three_modalities_from_an_encoder_of_one(home):
    train_pretrain(settings(epochs=1, warmup_epochs=0., modalities=['bscan']), home/'one')
    task = MirageTask.from_settings(settings(weights=str(home/'one'/'encoder.safetensors')))
    new = {'.'.join(k.split('.')[:2]) for k in task.loaded.new}
    assert {k for k in new if k.startswith('input')} == {'input_adapters.slo', 'input_adapters.bscanlayermap'}
    assert not [k for k in task.loaded.new if k.startswith('encoder.')]


def test_classes_of_the_data(home, phantoms):
    pack(folder_pairs(phantoms/'Phantom_OCT'/'train', classes={'bscanlayermap': 20}), home/'packed', quiet=True)
    task = MirageTask.from_settings(settings(dataset=str(home/'packed')))
    assert task.keywords['classes'] == task.encoder['classes'] == 20
    assert task.model.output_adapters['bscanlayermap'].modality.classes == 20


def test_reconstruction_of_a_real_eye(shared_data):
    folder = next(p for p in (shared_data/'mirage_example').iterdir() if p.is_dir())
    eye = {k: np.load(folder/f'{k}.npy')[::2, ::2] for k in ('bscan', 'slo', 'bscanlayermap')}
    masks = _draw_masks(dict.fromkeys(eye, 256), 115, [1])
    fig = show_reconstruction(load_model('mirage_tiny'), {k: v[None] for k, v in eye.items()}, masks)
    assert len(fig.axes) == 9 and [ax.get_ylabel() for ax in fig.axes[::3]] == list(eye)
    if 'MIRAGE_FIGURE' in os.environ: fig.savefig(os.environ['MIRAGE_FIGURE'])


def test_notebook_says_what_it_looked_at(execute, home, phantoms):
    folder = own_folder(phantoms, home/'pairs', 'train')
    space = execute('pretrain_multimae', dataset=str(folder), size=32, epochs=1, warmup_epochs=0., batch_size=4,
                    val_fraction=0., norm_pix=True, outputs=['bscan', 'slo'])
    assert 'losses, training images' in space['card'] and 'validation' not in space['card']
    assert read_json(space['run'].folder/'result.json')['summary'][1].startswith('loss (training images)')
