"Wilcoxon's signed-rank test against known answers"
import numpy as np
import pytest

from mirage_nb.eval.comparing.across import paired_wilcoxon


def test_wilcoxon_counts_all_signs():
    d = np.array([1., -2, 3, 4, 5, 6, 7])  # against all 2^7 choices of signs
    signs = np.array(np.meshgrid(*[[0, 1]] * 7)).reshape(7, -1)
    sums = (signs * np.arange(1, 8)[:, None]).sum(0)
    exact = min(1, 2 * (sums <= 2).mean())
    assert paired_wilcoxon(d, d * 0).p == pytest.approx(exact)
