"Bootstrap intervals"
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from mirage_nb.eval.segmentation.summary import summarise
from mirage_nb.eval.stats import bootstrap_ci


class Class(NamedTuple):
    index: int
    value: int
    label: str
    group: str


def scores_of(dice, group='layer', label='RNFL'):
    n = len(dice)
    return pd.DataFrame(dict(ID=[f'V{i}' for i in range(n)], Class=label, group=group, Dice=dice, IoU=dice, HD95=dice,
                             slices=1, present=1, undefined=0, missed=0, false=0, neither=0, convention='strict'))


def test_bootstrap_covers():
    "The 95 % interval holds the true mean in about 95 of 100 experiments, patients with three alike volumes each"
    g, held = np.random.default_rng(0), 0
    for i in range(400):
        patient = g.normal(0.8, 0.05, 30)
        values = (patient[:, None] + g.normal(0, 0.01, (30, 3))).ravel()
        _, low, high = bootstrap_ci(values, np.repeat(np.arange(30), 3), n=1000, seed=i)
        held += low <= 0.8 <= high
    assert 0.91 <= held / 400 <= 0.975


def test_bootstrap_by_value_is_too_sure():
    values, patient = np.repeat(np.random.default_rng(0).normal(0.8, 0.05, 10), 20), np.repeat(np.arange(10), 20)
    wide, narrow = bootstrap_ci(values, patient), bootstrap_ci(values)
    assert wide[2] - wide[1] > 3*(narrow[2] - narrow[1])


def test_bootstrap_is_fast_and_repeats():
    values = np.random.default_rng(0).random(500)
    start = time.perf_counter()
    first = bootstrap_ci(values, n=10_000, seed=4)
    assert time.perf_counter() - start < 1
    assert first == bootstrap_ci(values, n=10_000, seed=4) != bootstrap_ci(values, n=10_000, seed=5)


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
