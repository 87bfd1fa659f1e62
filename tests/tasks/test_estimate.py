"An estimate changes no number of the training, and is of the right size"
import random
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

from mirage_nb.recipes.explain import Explain
from mirage_nb.records import finish_run, provenance, start_run
from mirage_nb.storage import read_json, write_json
from mirage_nb.tasks.classification import ClassificationTask
from mirage_nb.tasks.estimate import (
    _CONSTANT,
    Estimate,
    _count,
    _count_maps,
    estimate_explanation,
    estimate_training,
)
from mirage_nb.tasks.explain import plan_explanation, sum_up_explanation
from mirage_nb.tasks.protocol import train
from mirage_nb.tasks.segmentation import SegmentationTask
from mirage_nb.tasks.settings import choose_settings

SMALL = {'dataset': 'Phantom_OCT', 'epochs': 2, 'size': 64, 'batch_size': 4, 'precision': 'fp32'}
KINDS = {'seg_tune': (SegmentationTask, {'baselines': False}),
         'cls_tune': (ClassificationTask, {'tune': 'full', 'lr': 1e-3, 'probes': False, 'baselines': False})}


def started(stage, **more):
    kind, own = KINDS[stage]
    cfg, manifest = choose_settings(stage, {**SMALL, **own, **more})
    task = kind.from_settings(cfg, manifest)
    return task, start_run(stage, asdict(cfg), task.sources(), label='x')


@pytest.mark.parametrize('stage', KINDS)
def test_numbers_of_the_training_stay(home, stage):
    task, run = started(stage)
    task.model.train(False)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    weights = {k: v.clone() for k, v in task.model.state_dict().items()}
    found = estimate_training(task, run)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert all(torch.equal(v, weights[k]) for k, v in task.model.state_dict().items())
    assert all(p.grad is None for p in task.model.parameters()) and not task.model.training
    assert isinstance(found, Estimate) and found.kept < found.disk and 0 < found.seconds < 600
    histories = [train(task, run.folder), train(started(stage)[0], home/'plain')]
    numbers = [h.drop(columns=['seconds', 'samples_per_s', 'waiting']) for h in histories]
    pd.testing.assert_frame_equal(*numbers, check_exact=True)
    assert estimate_training(task, run) is None, 'it is finished'


def test_the_run_compares_it_with_the_time_that_it_took(home, capsys):
    task, run = started('cls_tune', epochs=200)
    guess = estimate_training(task, run)
    assert 'measuring how long a step takes' in capsys.readouterr().err, 'nobody knows what it waits for'
    assert '(less, if it stops early)' in repr(guess), 'the recipe has patience'
    assert read_json(run.folder/'run.json')['estimated_seconds'] == pytest.approx(guess.seconds, abs=.06)
    write_json(run.folder/'run.json', {**read_json(run.folder/'run.json'), 'estimated_seconds': 180.2})
    finish_run(run, {'train_seconds': 202.4})
    assert provenance(run).value['training'] == '3 min 22 s (estimated 3 min 0 s)'


def test_more_epochs_take_longer(home):
    times = [estimate_training(*started('cls_tune', epochs=n)).seconds for n in (10, 1000)]
    assert times[1] > 20*times[0]


@pytest.mark.parametrize('stage', KINDS)
def test_what_follows_the_training_is_counted(home, stage):
    task, run = started(stage, baselines=True)
    with_baselines = estimate_training(task, run)
    alone = estimate_training(*started(stage))
    assert with_baselines.after > alone.after > 15, 'the report, and the test'
    assert with_baselines.seconds < 20*alone.seconds, 'the training is the same'


@pytest.mark.parametrize('stage', KINDS)
def test_the_same_training_from_random_weights_is_counted(home, stage):
    during, after = _count(started(stage, random_start=True)[0])
    plain, rest = _count(started(stage)[0])
    assert during == plain and during in after and during not in rest and len(after) == len(rest) + 2


@pytest.mark.slow
def test_the_head_of_a_baseline_is_timed_and_not_taken_for_its_share_of_the_weights(home):
    "the head of mirage_tiny has a tenth of the weights, and about half of the time of a step"
    short, long = (estimate_training(*started('seg_tune', baselines=True, epochs=n)) for n in (2, 2000))
    share = (long.after - short.after)/(long.seconds - short.seconds)
    assert 0.2 < share < 1.2, 'it was 0.1, and a validation once a training'


def test_of_several_processes_there_is_none(home):
    assert 'not done by this process alone' in estimate_training(*started('seg_tune', processes=2))


def test_an_explanation_is_estimated_and_says_what_a_gain_is(home):
    "More images take longer"
    task, run = started('cls_tune', epochs=2)
    train(task, run.folder)
    def job(**more): return plan_explanation(Explain(**{
        'weights': str(run.folder/'best.safetensors'), 'dataset': 'Phantom_OCT', 'methods': 'grad_cam,occlusion',
        'shown': 2, 'scored': 4, **more}), None)
    one, few, plain = job(), job(scored=2), job(scores=False)
    assert _count_maps(plain) == (2, 0)
    assert all(a > b > 0 for a, b in zip(_count_maps(one), _count_maps(few), strict=True))
    assert estimate_explanation(one, run).seconds > _CONSTANT['report']
    assert one.panels() and one.study is not None
    assert '0 is chance, and higher is better' in sum_up_explanation(one, 'a model')['summary'][1]
    one.kept = run.folder
    assert estimate_explanation(one, run) is None, 'it goes on'
