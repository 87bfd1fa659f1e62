"Large tables: resamples in blocks and threads are those of one after the other, and as few as an interval needs"
from dataclasses import replace

import numpy as np
import pytest

from mirage_nb.eval.classification import metrics, ranks
from mirage_nb.eval.classification.calibration import Calibration
from mirage_nb.eval.classification.intervals import bootstrap, image_units, resampled_metrics
from mirage_nb.eval.classification.metrics import compute_metrics, count_table
from mirage_nb.eval.classification.net_benefit import decision_curves
from mirage_nb.eval.classification.predictions import _example_predictions, check_predictions
from mirage_nb.eval.classification.report import cls_reliability, evaluate_table
from mirage_nb.eval.draws import enough_draws
from mirage_nb.eval.stats import draw_counts, resample

PRED = check_predictions(_example_predictions(patients=20, single=False))
N = 1500  # more than one block


def repeated(pred, times):
    "A table with each row written so many times"
    rows = np.repeat(np.arange(len(pred)), times)
    table = pred.table.iloc[rows].reset_index(drop=True)
    return replace(pred, table=table, y=pred.y[rows], p=pred.p[rows], z=pred.z[rows])


@pytest.mark.parametrize('cells', [1, 2**18])
def test_blocks_are_resamples_of_rows(monkeypatch, cells):
    monkeypatch.setattr(ranks, '_CELLS', cells)
    units, seen = image_units(PRED), np.concatenate(list(draw_counts(image_units(PRED).g, N, seed=4)))
    parts = count_table(PRED, units.of)
    got = resample(lambda c: compute_metrics(parts, c), units.g, N, seed=4)
    for i in (0, 1023, 1024, N - 1):
        plain = compute_metrics(count_table(repeated(PRED, seen[i][units.of].astype(int))))
        for m, v in got.items(): np.testing.assert_allclose(v[i], plain[m][0], atol=1e-10, err_msg=m)


def test_calibration_is_that_of_rows():
    units = image_units(PRED)
    count, seen = Calibration(PRED, units.of), next(draw_counts(units.g, 3, seed=1))
    for name in ('NLL', 'Brier score', 'ECE, 15 bins of equal width'):
        for i in range(3):
            rows = repeated(PRED, seen[i][units.of].astype(int))
            np.testing.assert_allclose(count(seen)[name][i], Calibration(rows)()[name][0], atol=1e-10)


def test_only_what_is_asked_for_is_computed():
    every, some = compute_metrics(count_table(PRED)), compute_metrics(count_table(PRED), only=['AP', 'MCC'])
    assert set(some) == {'AP', 'MCC'} and 'AUROC' in every and metrics.MACRO
    for k, v in some.items(): np.testing.assert_array_equal(v, every[k])


def test_thresholds_of_any_order_are_one_curve():
    a, b = (decision_curves(PRED, at, n=50) for at in ([.2, .5], [.5, .2]))
    assert a.equals(b) and a.threshold.is_monotonic_increasing is False


def test_a_large_table_says_how_many_draws_it_took(monkeypatch):
    monkeypatch.setattr('mirage_nb.eval.draws._WORK', 1)
    scores = evaluate_table(PRED, n=1200)
    told = cls_reliability(scores).answer['resamples of the intervals']
    assert told.startswith('1,000 of 1,200: ') and enough_draws(1200, PRED.y.size) == 1000


def test_scores_in_resamples_of_a_large_table_have_the_intervals_of_its_report(monkeypatch):
    monkeypatch.setattr('mirage_nb.eval.draws._WORK', 1)
    rows = bootstrap(PRED, 1200).set_index(['metric', 'Class'])
    for key, s in resampled_metrics(PRED, 1200).items():
        assert len(s.draws) == 1000
        np.testing.assert_allclose(s.interval(), rows.loc[key, ['low', 'high']].to_numpy(float), atol=1e-12)
