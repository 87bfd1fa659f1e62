"Classification: agreement with scikit-learn, resampling, calibration, thresholds, and tables with faults"
import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from mirage_nb.eval.classification.calibration import (
    Calibration,
    _ece,
    apply_temperature,
    fit_temperature,
    reliability_curve,
    stated_answers,
)
from mirage_nb.eval.classification.decisions import decide
from mirage_nb.eval.classification.intervals import bootstrap, compare, image_units, with_intervals
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
    map_classes,
    pool_predictions,
    read_predictions,
    to_scores,
)
from mirage_nb.eval.classification.ranks import cumulate_ranks, rank_scores
from mirage_nb.eval.classification.report import evaluate_table
from mirage_nb.eval.classification.thresholds import choose_thresholds
from mirage_nb.eval.stats import draw_counts, resample


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
    return with_intervals(compute_metrics(parts, counts), {}, parts.classes).set_index(['metric', 'Class'])['mean']


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


# ------------------------------------------------------------------ intervals

@pytest.mark.slow
def test_interval_by_patient_covers_the_true_auroc():
    "In about 95 of 100 experiments; by image it does not, with four alike images a patient"
    held, narrow = 0, 0
    true = 0.814  # of two normal distributions 1.2649 apart, sqrt(1.6): normal cdf of 1.2649/sqrt(2)
    for i in range(120):
        g = np.random.default_rng(i)
        y = np.repeat(g.integers(0, 2, 60), 4)
        y[:8] = [0]*4 + [1]*4
        z = 1.2649*y + np.repeat(g.normal(size=60), 4)*np.sqrt(.9) + g.normal(size=240)*np.sqrt(.1)
        p = to_scores(np.stack([0*z, z], 1), True)
        table = pd.DataFrame({'id': [f'{i}' for i in range(240)], 'patient': np.repeat(np.arange(60), 4).astype(str),
                              'label': np.array(['a', 'b'])[y], 'score:a': p[:, 0], 'score:b': p[:, 1]})
        for by_image in (False, True):
            pred = check_predictions(table.assign(patient='') if by_image else table)
            units = image_units(pred)
            parts = count_table(pred, units.of)
            draws = resample(lambda c, parts=parts: {'x': compute_metrics(parts, c)['AUROC']}, units.g, 300, i)['x'][:, 1]
            low, high = np.nanquantile(draws, [.025, .975])
            if by_image: narrow += low <= true <= high
            else: held += low <= true <= high
    assert .89 <= held/120 <= .99 and narrow/120 < .8


def test_bootstrap_is_fast():
    "10,000 resamples of every metric, 1000 images of four classes, by patient"
    pred = check_predictions(_example_predictions(patients=250, classes=list('abcd')))
    start = time.perf_counter()
    rows = bootstrap(pred)
    assert time.perf_counter() - start < 20 and rows.n.eq(250).all() and rows.unit.eq('by patient').all()


def test_units_say_what_they_are():
    table = _example_predictions()
    some = table.patient.where(table.index > 4, '')
    for patient, words, g in ((table.patient, 'by patient', 60),
                              ('', 'by image (patients not known: too narrow if a', None),
                              ('P1', 'by image (one patient only: too narrow)', None),
                              (some, 'by patient (5 images without one count as their own)', None)):
        units = image_units(check_predictions(table.assign(patient=patient)))
        assert units.label.startswith(words) and units.g == (g or units.g)
    assert 'too narrow' in evaluate_table(table.assign(patient=''), n=100).line('x')


def test_few_patients_are_said():
    table = _example_predictions()
    two = table[(table.label != 'AMD') | table.patient.isin(table.patient[table.label == 'AMD'].unique()[:2])]
    notes = bootstrap(check_predictions(two), n=300).set_index(['metric', 'Class']).note
    assert notes['AUROC', 'AMD'].startswith('only 2 positive patients: the interval is a poor guide; ')
    assert '% of the resamples lack it' in notes['AUROC', 'AMD'] and notes['AUROC', 'DME'] == ''
    pair = pd.concat([table[:1], table[table.label != table.label[0]][:1]]).assign(patient='')
    notes = bootstrap(check_predictions(pair), n=100).set_index(['metric', 'Class']).note
    assert notes['accuracy', ALL] == 'only 2 images: the interval is a poor guide'


@pytest.mark.slow
def test_equal_models_seldom_differ():
    "Two models of the same skill: p below 0.05 about once in 20 experiments"
    below = 0
    for i in range(60):
        a, b = (check_predictions(_example_predictions(i, patients=40)) for _ in range(2))
        g = np.random.default_rng(1000 + i)
        a, b = (replace(p, p=to_scores(p.z + g.normal(size=p.z.shape)*2, True)) for p in (a, b))
        below += compare(a, b, ['AUROC'], n=300, seed=i).p[0] < .05
    assert below <= 8


# ------------------------------------------------------------------ calibration and thresholds

@pytest.mark.parametrize('single', [True, False])
@pytest.mark.parametrize('t', [.5, 3.])
def test_temperature_is_found_again(single, t):
    "Labels drawn from the scores are calibrated; logits times t need the temperature t"
    g, n, k = np.random.default_rng(0), 6000, 4
    z = g.normal(size=(n, k))*1.5
    p = to_scores(z, single)
    y = np.eye(k)[(p.cumsum(1) > g.random((n, 1))).argmax(1)] if single else (g.random((n, k)) < p).astype(float)
    head = pd.DataFrame({'id': np.arange(n).astype(str), 'patient': ''})
    several = {f'label:{c}': v for c, v in zip('abcd', y.T, strict=True)}
    truth = {'label': np.array(list('abcd'))[y.argmax(1)]} if single else several
    right = check_predictions(head.assign(**truth, **{f'score:{c}': v for c, v in zip('abcd', p.T, strict=True)}))
    away = replace(right, z=z*t, p=to_scores(z*t, single))
    found = fit_temperature(away)
    assert found.value == pytest.approx(t, rel=.06) and not found.note
    errors = [_ece(reliability_curve(stated_answers(q))) for q in (right, away, apply_temperature(away, found.value))]
    assert errors[0] < .02 < errors[1] and errors[2] < .02


def test_calibration_by_hand():
    pred = check_predictions(pd.DataFrame({
        'id': list('abcd'), 'patient': '', 'label': ['x', 'x', 'y', 'y'], 'score:x': [.9, .9, .9, .2],
        'score:y': [.1, .1, .1, .8]}))
    got = {k: float(v[0, 0]) for k, v in Calibration(pred, bins=10)().items()}
    assert got['ECE, 10 bins of equal width'] == pytest.approx((abs(2.7 - 2) + abs(.8 - 1))/4)
    assert got['Brier score'] == pytest.approx((2*.02 + 2*.81 + 2*.04)/4)
    assert got['NLL'] == pytest.approx(-(2*np.log(.9) + np.log(.1) + np.log(.8))/4)


def test_thresholds_and_temperature_do_not_see_the_test_labels():
    val, test = _example_predictions(1, split='val'), _example_predictions()
    turned = test.assign(label=test.label.to_numpy()[::-1])
    a, b = (evaluate_table(t, val, n=100) for t in (test, turned))
    assert a.temperature == b.temperature and (a.thresholds.threshold == b.thresholds.threshold).all()
    assert not np.allclose(a.thresholds['mean'], b.thresholds['mean'])
    assert a.means != b.means and a.means == evaluate_table(test, n=100).means  # nor does validation touch the metrics


def test_class_that_validation_lacks_has_no_threshold():
    val = _example_predictions(1, split='val')
    cuts = choose_thresholds(check_predictions(val[val.label != 'AMD']))
    assert np.isnan(cuts[1]) and not np.isnan(cuts[[0, 2]]).any()
    scores = evaluate_table(_example_predictions(), val[val.label != 'AMD'], n=100)
    assert scores.thresholds[scores.thresholds.Class == 'AMD'][['threshold', 'mean']].isna().all(axis=None)


# ------------------------------------------------------------------ tables that are not as they should be

def cell(row, column, value): return lambda t: t.astype({column: object}).assign(
    **{column: [value if i == row else v for i, v in enumerate(t[column])]})


BAD = {  # what is wrong: how, what is said
    'no rows': (lambda t: t[:0], 'has no rows; a row an image is needed'),
    'no patient': (lambda t: t.drop(columns='patient'), 'lacks the column patient; it has id, eye, split, label'),
    'no label, no id': (lambda t: t.drop(columns=['id', 'label']), 'lacks the columns id, label (or label:CLASS'),
    'no scores': (lambda t: t[['id', 'patient', 'label']], 'lacks the column score:CLASS, one a class'),
    'one score': (lambda t: t[['id', 'patient', 'label', 'score:AMD']], 'has a score for AMD only'),
    'duplicate id': (cell(3, 'id', 'test000L_0'), "id 'test000L_0': this id is there 2 times; an image is scored once"),
    'empty id': (cell(3, 'id', None), 'row 4: id is empty'),
    'label unknown': (cell(3, 'label', 'AMDD'), "no class 'AMDD'. Did you mean 'AMD'? Known: NORMAL, AMD, DME"),
    'label empty': (cell(3, 'label', None), 'label is empty; leave the row out, or use label:CLASS'),
    'NaN score': (cell(3, 'score:AMD', np.nan), 'score:AMD is nan, which is no number; the model'),
    'inf score': (cell(3, 'score:AMD', np.inf), 'score:AMD is inf, which is no number'),
    'text score': (cell(3, 'score:AMD', 'high'), 'score:AMD is high, which is no number'),
    'score of 2': (cell(3, 'score:AMD', 2.), 'score:AMD is 2; a score is a probability in [0, 1]'),
    'negative score': (cell(3, 'score:AMD', -.1), 'score:AMD is -0.1; a score is a probability'),
    'sum': (cell(3, 'score:AMD', 0.), 'with one label an image they sum to 1 (softmax)'),
    'NaN logit': (cell(3, 'logit:AMD', np.nan), 'or leave the logit columns out'),
    'logit of something else': (cell(3, 'logit:AMD', 20.), 'but the logits give'),
    'one class': (lambda t: t[t.label == 'AMD'], 'is AMD; nothing can be told apart'),
    'two forms': (lambda t: t.assign(**{'label:AMD': 1}), 'has `label` and label:AMD'),
    'logit of other classes': (lambda t: t.drop(columns='logit:AMD'), 'logit: stands for NORMAL, DME, score: for')}


@pytest.mark.parametrize('what', BAD)
def test_bad_table_is_refused(what, tmp_path):
    "The message names the file and the row, and says what would be right"
    change, said = BAD[what]
    file = tmp_path/'p.csv'
    change(_example_predictions()).to_csv(file, index=False)
    with pytest.raises(ValueError) as e: read_predictions(file)
    assert str(file) in str(e.value) and said in str(e.value), e.value
    if what in ('label unknown', 'NaN score', 'text score', 'score of 2', 'sum', 'logit of something else'):
        assert f"id '{_example_predictions().id[3]}'" in str(e.value)


def test_image_in_two_splits_and_files_that_are_no_tables(tmp_path):
    t = _example_predictions()
    with pytest.raises(ValueError, match="this id is there in the splits test and val"):
        check_predictions(pd.concat([t, t[:1].assign(split='val')]))
    (tmp_path/'empty.csv').touch()
    (tmp_path/'image.csv').write_bytes(bytes(range(256))*20)
    for name in ('empty.csv', 'image.csv'):
        with pytest.raises(ValueError, match=f'{name}.*'): read_predictions(tmp_path/name)
    with pytest.raises(FileNotFoundError, match='no table of predictions'): read_predictions(tmp_path/'none.csv')
    with pytest.raises(ValueError, match="no split 'tset'. Did you mean 'test'"):
        t.to_csv(tmp_path/'t.csv', index=False)
        read_predictions(tmp_path/'t.csv', 'tset')


def test_names_survive_the_file(tmp_path):
    "A class called NA, ids that look like numbers, patients with leading zeros"
    t = _example_predictions(classes=['NA', 'None', '01'])
    t['patient'] = t.patient.str[-3:]
    t.to_csv(tmp_path/'t.csv', index=False)
    pred = read_predictions(tmp_path/'t.csv')
    assert pred.classes == ('NA', 'None', '01') and '007' in set(pred.table.patient)
    np.testing.assert_allclose(pred.p, check_predictions(t).p)


def test_library_policies_hold_under_this_pandas():  # defects.md 12
    "An uncertain -1 is refused, a missing label is left out, and the caller's table is not changed"
    t = _example_predictions(single=False)
    before = t.copy()
    pred = check_predictions(t)
    pd.testing.assert_frame_equal(t, before)
    assert np.isnan(pred.y).sum() == t[['label:NORMAL', 'label:AMD', 'label:DME']].isna().sum().sum() > 0
    with pytest.raises(ValueError, match='an uncertain -1 needs a policy first'):
        check_predictions(t.assign(**{'label:AMD': t['label:AMD'].fillna(-1)}))


def test_groups():
    t = _example_predictions()
    pred = check_predictions(t)
    patients, _ = pool_predictions(pred, 'patient')
    expected = t.groupby('patient', sort=False)['score:AMD'].mean()
    np.testing.assert_allclose(patients.p[:, 1], expected, atol=1e-6)
    assert list(patients.table.id) == list(expected.index)
    with pytest.raises(ValueError, match="no level 'slice'"): pool_predictions(pred, 'slice')
    several = check_predictions(_example_predictions(single=False))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        eyes, _ = pool_predictions(several, 'eye')
    first = several.table.patient.eq('test000') & several.table.eye.eq('L')
    assert np.array_equal(eyes.y[0], np.fmax.reduce(several.y[first]), equal_nan=True)


def test_merged_classes_are_a_softmax_over_fewer():
    t = _example_predictions()
    ill = check_predictions(map_classes(t, {'AMD': 'ill', 'DME': 'ill'}))
    z = t[['logit:NORMAL', 'logit:AMD', 'logit:DME']].to_numpy()
    merged = np.stack([z[:, 0], np.logaddexp(z[:, 1], z[:, 2])], 1)
    np.testing.assert_allclose(ill.p, to_scores(merged, True), atol=1e-5)
    here = t.assign(label=t.label.replace({'AMD': 'ill', 'DME': 'ill'}))  # labels of a coarser set, scores of a finer
    np.testing.assert_allclose(check_predictions(map_classes(here, {'AMD': 'ill', 'DME': 'ill'})).p, ill.p)


def test_second_table_is_paired_by_id():
    "Rows in another order are the same table; another truth, image or class is an error"
    t = _example_predictions()
    a, b = check_predictions(t), check_predictions(t.sample(frac=1, random_state=0))
    assert compare(a, b, ['AUROC', 'MCC'], n=100).difference.abs().max() < 1e-12
    for other, said in ((t[1:], "the second table lacks 1 images, as 'test000L_0'"),
                        (t.assign(label=t.label.to_numpy()[::-1]), 'is not the same in the two tables'),
                        (t.rename(columns=lambda c: c.replace('AMD', 'CNV')).replace({'label': {'AMD': 'CNV'}}),
                         'the second NORMAL, CNV, DME')):
        with pytest.raises(ValueError) as e: compare(a, check_predictions(other), n=100)
        assert said in str(e.value)
