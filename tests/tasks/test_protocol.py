"One run of a pipeline reads each file once, and builds a model once for each purpose"
import collections
import hashlib
import shutil
import tomllib

import pytest
import safetensors.torch
import torch

from mirage_nb import sealed, spreadsheets
from mirage_nb.models import checkpoints
from mirage_nb.models.encoder import Encoder
from mirage_nb.phantoms.oct import make_phantom_oct
from mirage_nb.phantoms.uwf import make_phantom_uwf

CLS = dict(dataset='Phantom_OCT', recipe='cls_small', size=32, epochs=2, precision='fp32')


@pytest.fixture
def count(monkeypatch):
    "Calls of the lowest readers, by what is read, and of the encoders' constructors, those without weights apart"
    counts = collections.Counter()

    def watch(owner, name, key):
        old = getattr(owner, name)
        def counted(*a, **k):
            counts[key(*a)] += 1
            return old(*a, **k)
        monkeypatch.setattr(owner, name, counted)
    watch(tomllib, 'loads', lambda text: ('manifest', '') if '\ntask' in text else ('read', text))  # of weights
    watch(hashlib, 'file_digest', lambda f, *a: ('hashed', f.name))
    for owner in (checkpoints, sealed): watch(owner, 'safe_open', lambda path, *a: ('read', str(path)))
    watch(safetensors.torch, 'load_file', lambda path, *a: ('read', str(path)))
    peek = checkpoints.Checkpoint.peek
    def look(path):
        before, found = dict(counts), peek(path)  # at the shapes in its head, before anything is loaded
        counts.clear()
        counts.update(before)
        return found
    monkeypatch.setattr(checkpoints.Checkpoint, 'peek', staticmethod(look))
    watch(Encoder, '__init__', lambda *a: ('models', 'meta' if torch.get_default_device().type == 'meta' else ''))
    return counts


def check(count, models):
    "Every file was read once and hashed once; so many models were built"
    assert count['manifest', ''] == 1 and count['models', ''] == models
    assert {k: n for k, n in count.items() if k[0] in ('hashed', 'read') and n > 1} == {}


@pytest.mark.slow
def test_full_classification(execute, count):
    "Full fine-tuning also reads its best file, and probes the encoder as it was"
    execute('cls_tune', **CLS, tune='full', lr=1e-3)
    check(count, 4)


@pytest.mark.slow
def test_classification(execute, count, monkeypatch):
    """A probe and its random baseline. Of the finished run only the model that is described is built, and no image is
    encoded. An evaluation reads the tables of predictions once; no manifest, no weights and no model"""
    first = execute('cls_tune', **CLS, tune='probe')
    check(count, 2)
    count.clear()
    again = execute('cls_tune', **CLS, tune='probe')
    assert count['models', ''] == 1 and again['run'].finished
    for k in first['results']: assert again['results'][k].means == first['results'][k].means, k
    assert first['test'].table.equals(again['test'].table)

    tables, read = collections.Counter(), spreadsheets.read_text
    count.clear()
    monkeypatch.setattr(spreadsheets, 'read_text', lambda path: tables.update([str(path)]) or read(path))
    execute('cls_eval', run=str(first['run'].folder), resamples=100)
    assert len(tables) == 2 and set(tables.values()) == {1} and count['models', ''] == count['manifest', ''] == 0
    assert not [k for k in count if k[0] == 'read']


@pytest.mark.slow
def test_few_shot(execute, count):
    "A model for each of four subsets, as each draws its own head"
    execute('few_shot', dataset='Phantom_OCT', size=32, epochs=2, shots=[1., 2.], seeds=2, resamples=50)
    check(count, 4)


@pytest.mark.slow
def test_segmentation(home, phantoms, execute, count):
    "Training and best file, of the model and of its baseline; an evaluation or prediction reads the best file once"
    run = execute('seg_tune', dataset='Phantom_OCT', size=32, epochs=1, precision='fp32', head='linear')['run']
    check(count, 4)
    images = shutil.copytree(phantoms/'Phantom_OCT'/'test'/'bscan', home/'new')
    for stage, more in (('seg_eval', {}), ('predict', {'images': str(images)})):
        count.clear()
        execute(stage, run=str(run.folder), **more)
        check(count, 0 if stage == 'seg_eval' else 1)


@pytest.mark.slow
@pytest.mark.parametrize(('stage', 'options'), [
    ('pretrain_multimae', {}), ('pretrain_mae', {'dataset': 'Phantom_UWF'})])
def test_pretraining(home, execute, count, stage, options, monkeypatch):
    monkeypatch.setenv('MIRAGE_DATA', str(home/'data'))
    if options: make_phantom_uwf(home/'data'/'Phantom_UWF', patients=25, pictures=1, size=(40, 40))
    else: make_phantom_oct(home/'data'/'Phantom_OCT', patients=12, volumes=1, slices=2, size=(96, 80))
    execute(stage, size=32, epochs=1, warmup_epochs=0., batch_size=4, precision='fp32', **options)
    check(count, 1)
