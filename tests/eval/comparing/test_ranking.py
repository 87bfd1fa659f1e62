"Demšar's worked example, R's and scipy's Friedman test, scikit-posthocs' Nemenyi test"
import numpy as np
import pandas as pd
import pytest

from mirage_nb.eval.comparing.ranking import rank_models

# Demšar (2006), table 6: AUROC of four variants of C4.5 on 14 datasets; one printed tie of the last but one has ranks
# 2 and 3 there, so the scores were rounded after they were ranked
C45 = pd.DataFrame(np.array('''
.763 .768 .771 .798  .599 .591 .590 .569  .954 .971 .968 .967  .628 .661 .654 .657  .882 .888 .886 .898
.936 .931 .916 .931  .661 .668 .609 .685  .583 .583 .563 .625  .775 .838 .866 .875  1 1 1 1
.940 .962 .965 .962  .619 .666 .614 .669  .972 .981 .9751 .975  .957 .978 .946 .970'''.split(),
                            float).reshape(14, 4), columns=['C4.5', 'C4.5+m', 'C4.5+cf', 'C4.5+m+cf'])

# Hollander and Wolfe (1973), page 140: three ways to round first base; the example of R's friedman.test
ROUNDING = np.array('''
5.40 5.50 5.55  5.85 5.70 5.75  5.20 5.60 5.50  5.55 5.50 5.40  5.90 5.85 5.70  5.45 5.55 5.60  5.40 5.40 5.35
5.45 5.50 5.35  5.25 5.15 5.00  5.85 5.80 5.70  5.25 5.20 5.10  5.65 5.55 5.45  5.60 5.35 5.45  5.05 5.00 4.95
5.50 5.50 5.40  5.45 5.55 5.50  5.55 5.55 5.35  5.45 5.50 5.55  5.50 5.45 5.25  5.65 5.60 5.40  5.70 5.65 5.55
6.30 6.30 6.25'''.split(), float).reshape(22, 3)


def test_worked_example_of_demsar():
    found = rank_models(C45)
    assert found.ranks.round(3).to_dict() == {'C4.5+m+cf': 1.964, 'C4.5+m': 2.0, 'C4.5+cf': 2.893, 'C4.5': 3.143}
    loose = rank_models(C45, level=.1)
    assert [round(f.critical_difference, 2) for f in (found, loose)] == [1.25, 1.12]
    plain = 12*14/(4*5)*((found.ranks**2).sum() - 4*5**2/4)  # without correction for ties, as in the paper
    assert round(plain, 2) == 9.28 and found.chi2 > plain
    assert found.groups == (('C4.5+m+cf', 'C4.5+m', 'C4.5+cf', 'C4.5'),)  # 3.143 - 1.964 = 1.18 < 1.25
    assert loose.groups == (('C4.5+m+cf', 'C4.5+m', 'C4.5+cf'), ('C4.5+cf', 'C4.5'))


def test_friedman_of_r_and_scipy():
    from scipy.stats import friedmanchisquare
    found = rank_models(pd.DataFrame(ROUNDING), higher_is_better=False)
    assert (found.chi2, found.p) == pytest.approx((11.142857, 0.003805), abs=1e-6)
    assert (found.ranks.sort_index()*22).to_list() == pytest.approx([53, 47, 32])
    assert (rank_models(C45).chi2, rank_models(C45).p) == pytest.approx(tuple(friedmanchisquare(*C45.to_numpy().T)))


@pytest.mark.slow  # its package takes two seconds to import
def test_nemenyi_as_scikit_posthocs():
    posthocs = pytest.importorskip('scikit_posthocs', reason='scikit-posthocs is a development requirement')
    found = rank_models(C45)
    theirs = posthocs.posthoc_nemenyi_friedman(C45).loc[found.pairs.index, found.pairs.columns]
    np.testing.assert_allclose(found.pairs, theirs, atol=1e-3)


def test_one_score_for_all():
    found = rank_models(pd.DataFrame(np.ones((5, 3)), columns=list('ABC')))
    assert found.p == 1 and found.verdict == 'no difference in rank shown (Friedman, p = 1, 5 datasets)'
