"McNemar's test against statsmodels, R and published tables; Durkalski's by its formula"
import numpy as np
import pytest
from scipy.stats import chi2

from mirage_nb.eval.comparing.accuracy import compare_accuracy, mcnemar_p

WHY = 'statsmodels is a development requirement'


@pytest.mark.parametrize('b,c', [(0, 0), (1, 0), (5, 5), (3, 12), (86, 150)])
def test_mcnemar_as_statsmodels(b, c):
    tables = pytest.importorskip('statsmodels.stats.contingency_tables', reason=WHY)
    table = [[40, b], [c, 30]]
    assert mcnemar_p(b, c, 'exact') == pytest.approx(tables.mcnemar(table, exact=True).pvalue)
    if b != c: assert mcnemar_p(b, c, 'corrected') == pytest.approx(tables.mcnemar(table, exact=False).pvalue)


def test_mcnemar_of_r():
    "mcnemar.test(matrix(c(794, 86, 150, 570), 2)): approval ratings, Agresti (1990)"
    assert mcnemar_p(150, 86, 'corrected') == pytest.approx(4.115e-05, rel=1e-3)


def test_mid_p_of_fagerland():
    "Fagerland, Lydersen and Laake (2013): airway hyper-responsiveness before and after transplantation, 1 and 7"
    assert (round(mcnemar_p(1, 7, 'exact'), 3), round(mcnemar_p(1, 7), 3)) == (.070, .039)


def test_durkalski_formula():
    rng = np.random.default_rng(0)
    patient = rng.integers(12, size=60)
    a, b = rng.random(60) < .8, rng.random(60) < .6
    share = [(a[patient == p].astype(int) - b[patient == p]).mean() for p in sorted(set(patient))]
    found = compare_accuracy(a, b, patient)
    assert found.p == pytest.approx(chi2.sf(np.sum(share)**2/np.sum(np.square(share)), 1))
    assert found.n == 12 and found.test == "Durkalski's test, by patient"


def test_interval_of_independent_images():
    "Agresti and Min (2005): half an image is added to each cell, then Wald's interval"
    a, b = np.arange(100) < 80, (np.arange(100) >= 10) & (np.arange(100) < 75)
    b[95:] = True  # 15 right by the first alone, 5 by the second alone
    n, b_, c_ = 102, 15.5, 5.5
    d = (b_ - c_)/n
    half = 1.959964*((b_ + c_) - (b_ - c_)**2/n)**.5/n
    found = compare_accuracy(a, b)
    assert (found.low, found.high) == pytest.approx((d - half, d + half))


def test_same_decisions_are_no_proof_of_equivalence():
    right = np.arange(12) < 6
    found = compare_accuracy(right, right)
    assert found.p == 1 and found.low < 0 < found.high and found.within(0.05).verdict == 'no difference shown'
