"Classification: agreement with scikit-learn, resampling, calibration, thresholds, and tables with faults"
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from mirage_nb.eval.classification.decisions import decide
from mirage_nb.eval.classification.intervals import image_units, with_intervals
from mirage_nb.eval.classification.metrics import (
    ALL,
    MACRO,
    WEIGHTED,
    _sensitivity_at,
    _specificity_at,
    compute_metrics,
    count_table,
    undefined_classes,
)
from mirage_nb.eval.classification.predictions import (
    _example_predictions,
    check_predictions,
    to_scores,
)
from mirage_nb.eval.classification.ranks import cumulate_ranks, rank_scores
from mirage_nb.eval.classification.report import evaluate_table
from mirage_nb.eval.stats import draw_counts


def drawn(k, n=120, seed=0, single=True, ties=10):
    "Random predictions; scores of few values, so that many are equal"
    g = np.random.default_rng(seed)
    z = g.normal(size=(n, k))*2
    p = np.round(to_scores(z, single)*ties)/ties if ties else to_scores(z, single)
    if single: p = np.where(p.sum(1, keepdims=True) > 0, p, 1/k)/np.maximum(p.sum(1, keepdims=True), 1e-9)
    if single: p[p.sum(1) == 0] = 1/k
    names = [f'c{i}' for i in range(k)]
    head = pd.DataFrame({'id': [f'i{i:03}' for i in range(n)], 'patient': [f'p{v}' for v in g.integers(n//4, size=n)]})
    scores = pd.DataFrame(p, columns=[f'score:{c}' for c in names])
    if single: truth = pd.DataFrame({'label': np.array(names)[np.r_[np.arange(k), g.integers(k, size=n - k)]]})
    else:
        y = (g.random((n, k)) < .4).astype(float)
        truth = pd.DataFrame(np.where(g.random((n, k)) < .1, np.nan, y), columns=[f'label:{c}' for c in names])
    return check_predictions(pd.concat([head, truth, scores], axis=1))


def ours(pred, counts=None):
    parts = count_table(pred)
    return with_intervals(compute_metrics(parts, counts), None, parts.classes).set_index(['metric', 'Class'])['mean']


def pr_area(y, p, w):
    precision, recall, _ = sk.precision_recall_curve(y, p, sample_weight=w)
    return sk.auc(recall, precision)


def by_class(pred, w):
    "What scikit-learn says of each class, from its known labels"
    out, said = {}, decide(pred)
    for j, c in enumerate(pred.classes):
        at = ~np.isnan(pred.y[:, j])
        y, p, d, v = pred.y[at, j], pred.p[at, j], said[at, j], w[at]
        f = {'AUROC': sk.roc_auc_score(y, p, sample_weight=v), 'AP': sk.average_precision_score(y, p, sample_weight=v),
             'PR area': pr_area(y, p, v), 'F1': sk.f1_score(y, d, sample_weight=v),
             'precision': sk.precision_score(y, d, sample_weight=v, zero_division=0),
             'sensitivity': sk.recall_score(y, d, sample_weight=v),
             'specificity': sk.recall_score(1 - y, ~d, sample_weight=v),
             'Jaccard index': sk.jaccard_score(y, d, sample_weight=v)}
        if not pred.single: f |= {
            'balanced accuracy': sk.balanced_accuracy_score(y, d, sample_weight=v),
            'MCC': sk.matthews_corrcoef(y, d, sample_weight=v),
            "Cohen's kappa": sk.cohen_kappa_score(y, d, sample_weight=v)}
        out |= {(m, c): value for m, value in f.items()}
    return out


def of_all(pred, w):
    if pred.single:
        true, said = pred.y.argmax(1), pred.p.argmax(1)
        values = {'accuracy': sk.accuracy_score, 'balanced accuracy': sk.balanced_accuracy_score,
                  'MCC': sk.matthews_corrcoef, "Cohen's kappa": sk.cohen_kappa_score}
        hamming = sk.hamming_loss(pred.y, np.eye(len(pred.classes))[said], sample_weight=w)
        return {m: f(true, said, sample_weight=w) for m, f in values.items()} | {'Hamming loss': hamming}
    known, right = ~np.isnan(pred.y), pred.y == decide(pred)
    some = known.any(1)
    return {'Hamming loss': 1 - (right*w[:, None])[known].sum()/(known*w[:, None]).sum(),
            'exact match': np.average((right | ~known).all(1)[some], weights=w[some])}


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('ties', [0, 10])
@pytest.mark.parametrize('k,single', [(2, True), (3, True), (6, True), (1, False), (5, False)])
def test_agrees_with_scikit_learn(k, single, ties, weighted):
    pred = drawn(k, single=single, ties=ties, seed=k)
    w = np.random.default_rng(1).integers(0, 4, len(pred)).astype(float) if weighted else np.ones(len(pred))
    got, expected = ours(pred, w[None]), by_class(pred, w)
    pos = pd.Series((np.nan_to_num(pred.y)*w[:, None]).sum(0), pred.classes)
    for m in dict.fromkeys(m for m, _ in expected):
        values = pd.Series({c: expected[m, c] for c in pred.classes})
        np.testing.assert_allclose(got[m][list(pred.classes)], values, atol=1e-10, err_msg=m)
        np.testing.assert_allclose(got[m, MACRO], values.mean(), atol=1e-10, err_msg=m)
        np.testing.assert_allclose(got[m, WEIGHTED], (values*pos).sum()/pos.sum(), atol=1e-10, err_msg=m)
    for m, v in of_all(pred, w).items(): assert got[m, ALL] == pytest.approx(v, abs=1e-10), m


def test_counts_are_repeated_rows():
    "A resample by counts is the table with its rows written so many times"
    pred = drawn(3, seed=4)
    units = image_units(pred)
    counts = next(draw_counts(units.g, 3, seed=2))
    values = compute_metrics(count_table(pred, units.of), counts)
    for i in range(3):
        rows = np.repeat(np.arange(len(pred)), counts[i][units.of].astype(int))
        again = replace(pred, table=pred.table.iloc[rows], y=pred.y[rows], p=pred.p[rows], z=pred.z[rows])
        expected = compute_metrics(count_table(again))
        for m, v in values.items(): np.testing.assert_allclose(v[i], expected[m][0], atol=1e-10, err_msg=m)


def test_sensitivity_at_specificity_by_trying_every_threshold():
    g = np.random.default_rng(0)
    for _ in range(20):
        y, p = g.integers(0, 2, 60).astype(float), np.round(g.random(60), 1)
        s = cumulate_ranks(rank_scores(y, p, np.arange(60), 60), np.ones((60, 1)))
        pairs = [((p >= t)[y == 1].mean(), (p < t)[y == 0].mean()) for t in [*p, 2.]]
        for at in (.5, .8, .95):
            assert _sensitivity_at(s, at)[0] == pytest.approx(max(a for a, b in pairs if b >= at - 1e-9))
            assert _specificity_at(s, at)[0] == pytest.approx(max(b for a, b in pairs if a >= at - 1e-9))


def test_order_of_rows_does_not_matter():
    pred = drawn(4, seed=3)
    rows = np.random.default_rng(0).permutation(len(pred))
    mixed = replace(pred, table=pred.table.iloc[rows], y=pred.y[rows], p=pred.p[rows], z=pred.z[rows])
    np.testing.assert_allclose(ours(mixed), ours(pred), atol=1e-12)


def test_undefined_is_named_and_a_true_zero_counts():  # defects.md 9
    "A class that is ranked wholly wrongly has AUROC 0 and is in the mean; one without positives is not"
    y = pd.DataFrame({'label:wrong': [1, 1, 0, 0], 'label:right': [0, 1, 0, 1], 'label:never': 0, 'label:always': 1,
                      'label:blank': np.nan})
    p = pd.DataFrame({'score:wrong': [.1, .2, .8, .9], 'score:right': [.1, .9, .2, .8], 'score:never': .3,
                      'score:always': .4, 'score:blank': .5})
    pred = check_predictions(pd.concat([pd.DataFrame({'id': list('abcd'), 'patient': ''}), y, p], axis=1))
    auroc = ours(pred)['AUROC']
    assert auroc['wrong'] == 0 and auroc['right'] == 1 and auroc[MACRO] == auroc[WEIGHTED] == .5
    assert auroc[['never', 'always', 'blank']].isna().all()
    assert undefined_classes(pred) == {'never': 'the truth never has it', 'always': 'the truth always has it',
                                       'blank': 'no label is known'}
    scores = evaluate_table(pred, n=100)
    assert scores.notes.note['never'] == 'undefined: the truth never has it'
    assert set(scores.undefined) == {'never', 'always', 'blank'} and scores.means['AUROC, mean (macro)'] == .5


def test_class_that_is_never_predicted_costs():
    pred = check_predictions(_example_predictions().assign(**{'score:AMD': 0., 'score:NORMAL': .4, 'score:DME': .6})
                             .drop(columns=['logit:AMD', 'logit:NORMAL', 'logit:DME']))
    got = ours(pred)
    assert got['precision', 'AMD'] == got['F1', 'AMD'] == 0 and got['F1', MACRO] == pytest.approx(got['F1', 'DME']/3)
