"How often tests call equal models different, where images of a patient resemble each other: 5 in 100"
import numpy as np
import pytest

from benchmarks.levels import rates
from mirage_nb.eval.comparing.bootstrap import compare_means
from mirage_nb.eval.comparing.results import holm

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('g', [10, 30, 100])
def test_levels_with_clustered_images(g):
    found = rates(g, 400)
    by_patient = [v for k, v in found.items() if 'by image' not in k]
    by_image = [v for k, v in found.items() if 'by image' in k]
    assert len(by_patient) == 3 and max(by_patient) <= .083, found  # .05 and three standard errors
    if g >= 30: assert min(by_patient) >= .02, found
    assert np.subtract(by_image, by_patient).min() > .01 and np.mean(by_image) > .065, found


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
