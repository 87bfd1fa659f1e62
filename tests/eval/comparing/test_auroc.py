"DeLong's worked example, and Obuchowski's variance against her equations written out"
import numpy as np
import pytest
from scipy.stats import chi2

from mirage_nb.eval.comparing.auroc import auroc_covariance, compare_auroc
from mirage_nb.eval.comparing.bootstrap import patient_units

# DeLong, DeLong and Clarke-Pearson (1988): albumin, total protein, K-G score and outcome of ovarian cancer, as printed
# in the documentation of SAS/STAT, PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves"
OVARIAN = np.array('''
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
'''.split(), float).reshape(-1, 4)
OUTCOME, ALBUMIN, PROTEIN, SCORE = OVARIAN[:, 3], OVARIAN[:, 0], OVARIAN[:, 1], 10 - OVARIAN[:, 2]


def test_delong_worked_example():
    scores = np.stack([ALBUMIN, SCORE, PROTEIN])[:, :, None]
    area, cov = auroc_covariance(OUTCOME[:, None], scores, patient_units(None, 43))
    np.testing.assert_allclose(area[0], [.7366, .7258, .6478], atol=5e-5)
    np.testing.assert_allclose(np.diag(cov[0, :, 0])**.5, [.0927, .1028, .1000], atol=5e-5)
    contrast = np.array([[1, -1, 0], [0, -1, 1]])  # both against the score
    d, v = contrast @ area[0], contrast @ cov[0, :, 0] @ contrast.T
    chi = d @ np.linalg.solve(v, d)
    assert (round(chi, 4), round(chi2.sf(chi, 2), 4)) == (2.5340, .2817)


def test_delong_pairs_and_their_intervals():
    a, b = (compare_auroc(OUTCOME, x, SCORE)[0] for x in (ALBUMIN, PROTEIN))
    np.testing.assert_allclose([a.difference, a.evidence.se, a.low, a.high, a.p], [.0108, .0953, -.1761, .1976, .9102],
                               atol=5e-5)
    np.testing.assert_allclose([b.difference, b.evidence.se, b.p], [-.0780, .1046, .4561], atol=5e-5)
    assert a.test == "DeLong's test, by image" and a.verdict == 'no difference shown'


def obuchowski(y, a, b, patient):
    "Obuchowski (1997), equations of section 2, by loops: variance of the difference"
    pos, neg = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    win = {k: np.array([[np.sign(s[i] - s[j])/2 + .5 for j in neg] for i in pos]) for k, s in (('a', a), ('b', b))}
    auc = {k: w.mean() for k, w in win.items()}
    who = sorted(set(patient))
    ten = {k: [sum(w.mean(1)[i] - auc[k] for i in range(len(pos)) if patient[pos[i]] == p) for p in who]
           for k, w in win.items()}
    one = {k: [sum(w.mean(0)[j] - auc[k] for j in range(len(neg)) if patient[neg[j]] == p) for p in who]
           for k, w in win.items()}
    m, n, clusters = len(pos), len(neg), len(who)
    i10, i01 = len({patient[i] for i in pos}), len({patient[j] for j in neg})

    def cov(r, s):
        s10 = i10/((i10 - 1)*m)*np.dot(ten[r], ten[s])
        s01 = i01/((i01 - 1)*n)*np.dot(one[r], one[s])
        s11 = clusters/(clusters - 1)*np.dot(ten[r], one[s])
        back = clusters/(clusters - 1)*np.dot(ten[s], one[r])
        return s10/m + s01/n + (s11 + back)/(m*n)
    return cov('a', 'a') + cov('b', 'b') - 2*cov('a', 'b')


@pytest.mark.parametrize('images', [1, 3])
def test_obuchowski_equations(images):
    rng = np.random.default_rng(images)
    patient = np.repeat(np.arange(20), images)
    y = rng.integers(2, size=len(patient)).astype(float)
    a, b = (np.round(y + rng.normal(size=len(y)) + rng.normal(size=20)[patient], 1) for _ in range(2))  # with ties
    found, alone = compare_auroc(y, a, b, patient)[0], compare_auroc(y, a, b)[0]
    assert found.evidence.se**2 == pytest.approx(obuchowski(y, a, b, patient))
    assert (found.p == alone.p) == (images == 1) == found.test.startswith('DeLong')


def test_mean_of_classes_varies_as_a_bootstrap_of_patients():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 3)
    label = rng.integers(3, size=60)[patient]
    y = np.eye(3)[label]
    a, b = (y*s + rng.normal(size=(60, 3))[patient] + rng.normal(size=y.shape) for s in (2, 1.5))
    found = compare_auroc(y, a, b, patient)[-1]
    draws = []
    units = patient_units(None, 180)
    for _ in range(300):
        at = (rng.integers(60, size=60)[:, None]*3 + np.arange(3)).ravel()
        draws.append(np.subtract(*auroc_covariance(y[at], np.stack([a[at], b[at]]), units)[0].mean(0)))
    assert found.evidence.se == pytest.approx(np.std(draws)*(60/59)**.5, rel=.12)


def test_unknown_labels_and_rare_classes():
    y = np.array([1, 0, np.nan, 1, 0, 0, 0, 0, 0, 0], float)
    found = compare_auroc(np.stack([y, y*0], 1), np.random.default_rng(0).random((10, 2)), np.zeros((10, 2)))
    known = ~np.isnan(y)
    alone = compare_auroc(y[known], np.random.default_rng(0).random((10, 2))[known, 0], np.zeros(9))[0]
    assert found[0].difference == pytest.approx(alone.difference)
    assert found[0].verdict == 'too few images (2) with the label' and found[1].note == 'undefined: no positive image'
    assert np.isnan(found[1].p) and found[-1].first == found[0].first  # the mean leaves it out
    assert found[-1].note == 'without 1 undefined class'
