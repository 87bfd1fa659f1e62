"Signs, signed ranks and effect sizes against known answers"
import numpy as np
import pytest

from mirage_nb.eval.comparing.across import cliffs_delta, effect_sizes, paired_wilcoxon, sign_test

# Hollander and Wolfe (1973), page 29: depression before and after therapy; the example of R's wilcox.test
BEFORE = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
AFTER = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]


def test_wilcoxon_counts_all_signs():
    d = np.array([1., -2, 3, 4, 5, 6, 7])  # against all 2^7 choices of signs
    signs = np.array(np.meshgrid(*[[0, 1]] * 7)).reshape(7, -1)
    sums = (signs * np.arange(1, 8)[:, None]).sum(0)
    exact = min(1, 2 * (sums <= 2).mean())
    assert paired_wilcoxon(d, d * 0).p == pytest.approx(exact)


def test_wilcoxon_of_r():
    "V = 40, p = 0.01953 one-sided; estimate 0.46, interval 0.010 to 0.786"
    found = paired_wilcoxon(BEFORE, AFTER)
    assert found.p == pytest.approx(2*0.01953125) and found.evidence.one_sided(0)[0] == pytest.approx(0.01953125)
    assert (found.difference, found.low, found.high) == pytest.approx((.46, .010, .786))
    assert effect_sizes(BEFORE, AFTER).rank_biserial == pytest.approx((40 - 5)/45)


def test_equivalence_by_signed_ranks():
    rng = np.random.default_rng(0)
    a = rng.normal(0.8, 0.05, 20)
    found = paired_wilcoxon(a + rng.normal(0, 0.002, 20), a).within(0.01)
    low, high = found.evidence.interval(.90)
    assert -.01 < low < high < .01 and found.p_equivalent < .05 and found.verdict == 'equivalent within 0.01'


def test_signs_as_scipy():
    from scipy.stats import binomtest
    for wins, losses in ((5, 0), (3, 2), (9, 1)):
        assert sign_test(wins, losses) == pytest.approx(binomtest(wins, wins + losses).pvalue)
    found = paired_wilcoxon(np.arange(5.) + 1, np.zeros(5))
    assert found.test == 'sign test' and found.p == 2/32 and found.verdict == 'too few datasets (5)'


def test_cliffs_delta_counts_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(6, size=13), rng.integers(6, size=9)
    pairs = np.sign(a[:, None] - b).mean()
    assert cliffs_delta(a, b) == pytest.approx(pairs) == pytest.approx(-cliffs_delta(b, a))
