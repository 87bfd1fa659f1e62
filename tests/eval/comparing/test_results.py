"Holm's correction against known answers, and verdicts of families"
from dataclasses import replace

import numpy as np
import pytest

from mirage_nb.eval.comparing.bootstrap import compare_means
from mirage_nb.eval.comparing.results import adjust_family, count_outcomes, holm

WHY = 'statsmodels is a development requirement'


def test_holm_known_answers():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.9]), [1, 1])
    assert len(holm([])) == 0


def test_holm_as_statsmodels():
    tests = pytest.importorskip('statsmodels.stats.multitest', reason=WHY)
    p = np.random.default_rng(0).random(40)**3
    np.testing.assert_allclose(holm(p), tests.multipletests(p, method='holm')[1])


def test_equivalence_is_two_one_sided_t_tests():
    from scipy.stats import ttest_1samp
    tests = pytest.importorskip('statsmodels.stats.weightstats', reason=WHY)
    rng = np.random.default_rng(0)
    a = rng.normal(size=40)
    b = a + rng.normal(0, .3, 40)
    found = compare_means(a, b, n=20_000).within(.2)
    assert found.p == pytest.approx(ttest_1samp(a - b, 0).pvalue, rel=.03)
    assert found.p_equivalent == pytest.approx(tests.ttost_paired(a, b, -.2, .2)[0], rel=.1)
    assert found.verdict == 'equivalent within 0.2'


def test_correction_changes_verdicts():
    rng = np.random.default_rng(1)
    a = rng.normal(size=30)
    one = compare_means(a + .12 + rng.normal(0, .3, 30), a)
    assert .01 < one.p < .05 and one.verdict == 'first better than second'
    family = adjust_family([one]*6 + [replace(one, p=np.nan)])
    assert family[0].p_holm == pytest.approx(6*one.p) and family[0].verdict == 'no difference shown'
    assert family[6].verdict == 'not computed' and count_outcomes(family).ties.to_list() == [6, 6]
