"Interquartile mean and probability of improvement as defined by Agarwal et al. (2021)"
import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from mirage_nb.eval.comparing.improvement import interquartile_mean, probability_of_improvement


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return [{f'D{j}': rng.normal(0.7 + shift + j/20, 0.05, 5) for j in range(4)} for shift in (0.03, 0.)]


def test_iqm_is_the_mean_of_the_middle_half(scores):
    whole = np.concatenate(list(scores[0].values()))
    found = interquartile_mean(scores[0])
    assert found.value == pytest.approx(trim_mean(whole, .25)) and found.low < found.value < found.high


def test_improvement_is_the_mean_of_mann_whitney(scores):
    a, b = scores
    found = probability_of_improvement(a, b)
    assert found.value == pytest.approx(np.mean([mannwhitneyu(a[k], b[k]).statistic/25 for k in a]))
    assert 0 < found.low < found.value < found.high <= 1
    assert probability_of_improvement(b, a).value == pytest.approx(1 - found.value)
    assert found == probability_of_improvement(a, b) and probability_of_improvement(a, a).value == .5


def test_intervals_are_those_of_a_bootstrap_within_datasets(scores):
    rng = np.random.default_rng(1)
    draws = trim_mean(np.concatenate([rng.choice(v, (4000, 5)) for v in scores[0].values()], 1), .25, axis=1)
    found = interquartile_mean(scores[0])
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [.025, .975]), abs=2e-3)


def test_datasets_weigh_the_same_whatever_their_seeds():
    few, many = ({'A': [.2]*2, 'B': [.4]*k, 'C': [.6]*2, 'D': [.8]*2} for k in (2, 8))
    assert interquartile_mean(few, n=10).value == pytest.approx(interquartile_mean(many, n=10).value) == .5
