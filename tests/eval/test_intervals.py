"Intervals against textbooks, and their coverage on simulated test sets"
import re

import numpy as np
import pytest
from scipy import stats as sp

from benchmarks import coverage
from mirage_nb.eval.classification.metrics import CLS_METRICS
from mirage_nb.eval.classification.report import _LOSSES
from mirage_nb.eval.classification.support import Support, units_behind
from mirage_nb.eval.intervals import IntervalRule, confidence_interval
from mirage_nb.eval.segmentation.summary import _rule


def interval(value, se, df, m, rule):
    return confidence_interval(*(np.array([float(v)]) for v in (value, se, df, m)), rule)[:, 0]


def test_published_example():
    "Newcombe 1998, Statistics in Medicine 17, 857, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29"
    for right, n, low, high in ((81, 263, .2553, .3662), (15, 148, .0624, .1605), (1, 29, .0061, .1718)):
        p = right/n
        found = interval(p, np.sqrt(p*(1 - p)/n), 1e9, n, IntervalRule())
        np.testing.assert_allclose(found, (low, high), atol=6e-5)
    np.testing.assert_allclose(interval(0, 0, 1, 20, IntervalRule()), (0, .1684), atol=6e-5)  # its exact method


@pytest.mark.parametrize('right,n', [(0, 3), (5, 5), (0, 300), (300, 300)])
def test_bounds_are_those_of_scipy(right, n):
    exact = sp.binomtest(right, n).proportion_ci(method='exact')
    np.testing.assert_allclose(interval(right/n, 0, 1, n, IntervalRule()), (exact.low, exact.high), atol=1e-12)


@pytest.mark.slow
def test_intervals_cover():
    "On 150 simulated test sets of 30 patients; percentiles do not, as of a class that is nearly always right"
    setting = next(k for k in coverage.SETTINGS if 'AUROC 0.99' in k)
    found = coverage.measure(setting, 30, 150)
    kept = {k: r for k, r in found.items() if r['covers'] is not None}
    assert len(kept) > 15 and all(r['percentiles'] < .9 for k, r in found.items() if k in ('AUROC', 'sensitivity'))
    assert not {k: r['covers'] for k, r in kept.items() if k not in coverage.LOSSES and not .92 <= r['covers'] <= .985}
    assert all(found[k]['percentiles'] + .04 < found[k]['covers'] for k in coverage.LOSSES)
    assert all(found[k]['covers'] is None for k in found if k.startswith('ECE'))


@pytest.mark.slow
def test_intervals_of_segmentations_cover():
    """Of 200 simulated test sets of 10 patients 95 of 100 hold the truth, give or take three standard errors of such a
    share; a rare lesion may leave too few patients for any interval"""
    tables = 200
    error = (.95*.05/tables)**.5  # 1.5 %, so that the limits are 90.4 and 99.6 %
    found = coverage.measure('segmentation', 10, tables)
    assert not {k: r['covers'] for k, r in found.items() if 'lesion' not in k and abs(r['covers'] - .95) > 3*error}
    assert found['Dice of the layer']['percentiles'] < .92 and found['Dice of the lesion']['without'] > 0


OF_ALL = {'accuracy', 'balanced accuracy', 'MCC', "Cohen's kappa", 'NLL', 'Brier score'}  # a metric of the whole table


def page_cells():
    "Of each cell of the page: setting, metric, patients, how often the interval covers in 100"
    setting, sizes = '', []
    for line in coverage.PAGE.read_text(encoding='utf-8').splitlines():
        parts = [p.strip() for p in line.strip('|').split('|')]
        if line.startswith('**') and line.endswith('**'): setting = line.strip('*')
        elif line.startswith('| metric | true |'): sizes = [int(p) for p in parts[2:]]
        elif sizes and len(parts) == len(sizes) + 2:
            for size, text in zip(sizes, parts[2:], strict=True):
                if found := re.match(r'\*\*(\d+)\*\*', text): yield setting, parts[0], size, int(found[1])


def patients_behind(setting, metric, patients):
    "The rule of a metric, and how many patients are expected to count for it"
    if setting == 'Segmentation':
        has = .3 if 'lesion' in metric else 1
        name = next((m for m in ('HD95', 'Dice') if m in metric), '')
        rule = _rule(name)
        return rule, patients*has
    rules = {k.format(at='90'): m.rule for k, m in CLS_METRICS.items()} | _LOSSES
    shares, _, column = coverage.SETTINGS[next(k for k in coverage.SETTINGS if k[1:] == setting[1:])]
    share = np.array(shares)
    by = {'positive': share, 'negative': 1 - share, 'predicted': share, 'rejected': 1 - share,
          'rarer': np.minimum(share, 1 - share)}
    support = Support(patients, {k: v*patients for k, v in by.items()}, np.full((2, len(share)), 1/len(share)))
    found = units_behind(support, rules[metric], 1 if metric in OF_ALL else len(share) + 2)
    return rules[metric], found[0 if len(found) == 1 else column]


def test_where_the_page_says_that_intervals_do_not_cover_the_report_says_too_few():
    low = [(s, m, n) for s, m, n, covers in page_cells() if covers < 93 and n >= 30 and not s.startswith('Difference')]
    assert len(low) > 5, 'the tables of the page were not read'
    for setting, metric, n in low:
        rule, behind = patients_behind(setting, metric, n)
        assert behind < rule.few, f'{setting}: {metric} of {n} patients: {behind:.0f} count, {rule.few} are enough'
