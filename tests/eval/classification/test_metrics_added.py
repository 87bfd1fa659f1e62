"A classification metric is one function and one record: means, intervals, tables and files follow"
import numpy as np
import pandas as pd
import pytest

from mirage_nb.eval.classification.metrics import ALL, CLS_METRICS, MACRO, WEIGHTED, ClsMetric
from mirage_nb.eval.classification.paired import compare
from mirage_nb.eval.classification.predictions import _example_predictions, check_predictions
from mirage_nb.eval.classification.report import evaluate_table, save_cls_scores


def youden(c): return c.tally.tp/c.tally.pos + c.tally.tn/c.tally.neg - 1


def error_rate(c): return 1 - c.right/c.images


def top_share(s, at): return s.tp[0]/s.pos


NEW = {'Youden index': ClsMetric(from_decisions=youden),
       'error rate': ClsMetric(from_decisions=error_rate, labels='one'),
       'share at {at}': ClsMetric(from_ranks=top_share)}


@pytest.fixture
def extended(monkeypatch):
    for name, record in NEW.items(): monkeypatch.setitem(CLS_METRICS, name, record)


@pytest.mark.parametrize('single', [True, False])
def test_new_metrics_are_in_tables_and_files(single, extended, tmp_path):
    pred = check_predictions(_example_predictions(single=single))
    scores = evaluate_table(pred, n=200, at=.8)
    rows = pd.read_csv(next(p for p in save_cls_scores(scores, tmp_path) if p.name == 'test_metrics.csv'))
    rows = rows.set_index(['metric', 'Class'])
    each = rows['mean'].unstack()
    expected = each.loc['sensitivity'] + each.loc['specificity'] - 1
    np.testing.assert_allclose(each.loc['Youden index', list(pred.classes)], expected[list(pred.classes)])
    assert each.loc['Youden index', MACRO] == pytest.approx(each.loc['Youden index', list(pred.classes)].mean())
    assert {MACRO, WEIGHTED} <= set(rows.loc['share at 80'].index)
    assert (rows.loc['Youden index'].low <= rows.loc['Youden index', 'mean']).all()
    assert ('error rate' in rows.index.get_level_values(0)) == single
    if single: assert rows.loc[('error rate', ALL), 'mean'] == pytest.approx(1 - rows.loc[('accuracy', ALL), 'mean'])
    assert {'Youden index', 'share at 80'} <= set(scores.table.index)


def test_new_metric_is_compared(extended):
    pred = check_predictions(_example_predictions())
    rows = compare(pred, pred, ['Youden index', 'error rate'], n=50)
    assert list(rows.metric) == ['Youden index', 'error rate'] and rows.difference.abs().max() == 0


def test_undefined_class_stays_out_of_the_mean(extended):
    table = _example_predictions(single=False)
    pred = check_predictions(table.assign(**{'label:AMD': 0.}))
    each = evaluate_table(pred, n=20).summary.set_index(['metric', 'Class'])['mean']['Youden index']
    assert np.isnan(each['AMD']) and each[MACRO] == pytest.approx(each[['NORMAL', 'DME']].mean())


def test_other_rows_stay(extended, monkeypatch):
    pred = check_predictions(_example_predictions())
    with_new = evaluate_table(pred, n=50).summary
    for name in NEW: monkeypatch.delitem(CLS_METRICS, name)
    without = evaluate_table(pred, n=50).summary
    kept = with_new[~with_new.metric.isin({'Youden index', 'error rate', 'share at 90'})].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, without)
    assert len(kept) < len(with_new)


@pytest.mark.parametrize('given,text', [
    ({}, 'one of the two'), ({'from_decisions': youden, 'labels': 'all'}, "no labels 'all'"),
    ({'from_ranks': top_share, 'from_decisions': youden}, 'one of the two')])
def test_record_is_checked(given, text):
    with pytest.raises(ValueError, match=text): ClsMetric(**given)
