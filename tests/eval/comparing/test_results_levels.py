"How often tests call equal models different, where images of a patient resemble each other: 5 in 100"
import numpy as np
import pytest

from mirage_nb.eval.comparing.accuracy import compare_accuracy
from mirage_nb.eval.comparing.auroc import compare_auroc
from mirage_nb.eval.comparing.bootstrap import compare_means
from mirage_nb.eval.comparing.results import holm

pytestmark = pytest.mark.slow


def equal_models(rng, g):
    "Patients with one to four images; what a model gets wrong, it gets wrong in most images of a patient"
    patient = np.repeat(np.arange(g), rng.integers(1, 5, g))
    m, sick = len(patient), rng.random(g) < .4
    y = np.where(rng.random(m) < .85, sick[patient], ~sick[patient]).astype(float)
    hard = rng.normal(0, .7, g)[patient]
    scores = [1.2*y + hard + rng.normal(0, .6, g)[patient] + rng.normal(0, .6, m) for _ in range(2)]
    return patient, y, scores


def p_values(rng, g):
    "p-values of one experiment, by patient and by image"
    patient, y, scores = equal_models(rng, g)
    right = [(s > .6) == (y > 0) for s in scores]
    error = [np.exp(-(s - y)**2) for s in scores]
    return {'AUROC': compare_auroc(y, *scores, patient)[0].p, 'AUROC by image': compare_auroc(y, *scores)[0].p,
            'accuracy': compare_accuracy(*right, patient).p, 'accuracy by image': compare_accuracy(*right).p,
            'mean': compare_means(*error, patient, n=300).p}


@pytest.mark.parametrize('g', [10, 30, 100])
def test_levels_with_clustered_images(g):
    found = [p_values(np.random.default_rng((g, i)), g) for i in range(400)]
    rates = {k: np.mean([f[k] < .05 for f in found]) for k in found[0]}
    assert all(rates[k] <= .08 for k in ('AUROC', 'accuracy', 'mean')), rates  # .05 and three standard errors
    if g >= 30: assert min(rates[k] for k in ('AUROC', 'accuracy', 'mean')) >= .02, rates
    assert rates['AUROC by image'] > rates['AUROC'] + .02, rates
    assert rates['accuracy by image'] > rates['accuracy'] + .01, rates


def test_holm_keeps_the_error_of_a_family():
    "Eight comparisons of equal models: hardly ever more than 5 families in 100 hold a false claim"
    rng, false = np.random.default_rng(0), []
    for _ in range(300):
        hard = rng.normal(size=40)
        scores = [hard + rng.normal(0, .5, 40) for _ in range(9)]
        p = [compare_means(s, scores[0], n=200).p for s in scores[1:]]
        false.append([min(p) < .05, holm(p).min() < .05])
    plain, corrected = np.mean(false, 0)
    assert plain > .12 and corrected <= .088, (plain, corrected)
