"Bootstrap intervals"
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from mirage_nb.eval.segmentation.summary import summarise
from mirage_nb.eval.stats import mean_draws


class Class(NamedTuple):
    index: int
    value: int
    label: str
    group: str


def scores_of(dice, group='layer', label='RNFL'):
    n = len(dice)
    return pd.DataFrame(dict(ID=[f'V{i}' for i in range(n)], Class=label, group=group, Dice=dice, IoU=dice, HD95=dice,
                             slices=1, present=1, undefined=0, missed=0, false=0, neither=0, convention='strict'))


def patients(dice, each=3, spread=.01, seed=0):
    "Scores of several alike volumes of each patient, and whose they are"
    scores = scores_of((dice[:, None] + np.random.default_rng(seed).normal(0, spread, (len(dice), each))).ravel())
    return scores, {f'V{i}': f'P{i//each}' for i in range(len(scores))}


@pytest.mark.slow
def test_few_patients_are_covered():
    "The 95 % interval holds the true mean in about 95 of 100 experiments; percentiles do in 85"
    g, held, old = np.random.default_rng(0), 0, 0
    for i in range(200):
        scores, who = patients(g.normal(.8, .05, 8), seed=i)
        row = summarise(scores, ['Dice'], who, n=300, seed=i).iloc[0]
        held += row.low <= .8 <= row.high
        low, high = np.quantile(mean_draws(scores[['Dice']].to_numpy(), np.arange(24)//3, 300, i), [.025, .975])
        old += low <= .8 <= high
    assert .92 <= held/200 <= .98 and old/200 < .91


def test_interval_by_volume_is_too_sure():
    scores, who = patients(np.random.default_rng(0).normal(.8, .05, 10), 20, .001)
    (_, wide), (_, narrow) = (next(summarise(scores, ['Dice'], w).iterrows()) for w in (who, None))
    assert wide.high - wide.low > 3*(narrow.high - narrow.low)


def test_draws_are_fast_and_repeat():
    values, unit = np.random.default_rng(0).random((500, 1)), np.arange(500)
    start = time.process_time()
    first = mean_draws(values, unit, 10_000, 4)
    assert time.process_time() - start < 1
    np.testing.assert_array_equal(first, mean_draws(values, unit, 10_000, 4))
    assert (first != mean_draws(values, unit, 10_000, 5)).any()


@pytest.mark.parametrize('n,note', [
    (1, 'one volume only: no interval'), (3, 'only 3 volumes: the interval is a poor guide'), (6, '')])
def test_few_volumes_are_said(n, note):
    row = summarise(scores_of(np.linspace(0.7, 0.9, n))).iloc[0]
    assert row.note == note and row.n == n and np.isnan(row.low) == (n == 1)


def test_absent_class_is_listed_not_averaged():
    absent = scores_of([0.0, 0.0, np.nan, np.nan, np.nan, np.nan], 'lesion', 'Fluid').assign(present=0)
    table = summarise(pd.concat([scores_of([0.9] * 6), absent]), metrics=['Dice'])
    rows = table.set_index('Class')
    assert rows.loc['mean', 'mean'] == pytest.approx(0.9) and 'absent' in rows.loc['Fluid', 'note']
    assert rows.loc['Fluid', 'left_out'] == 4 and list(table['Class']) == ['RNFL', 'Fluid', 'mean']
