"The bootstrap by patient is fast, repeats, and pairs the models"
import time

import numpy as np
import pytest

from mirage_nb.eval.comparing.bootstrap import compare_means, count_rows, paired_bootstrap, patient_units


def test_ten_thousand_resamples_of_a_thousand_images_take_seconds():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(300), 4)[:1000]
    a = rng.random(1000)
    start = time.perf_counter()
    first = compare_means(a + rng.normal(0, .1, 1000), a, patient)
    assert time.perf_counter() - start < 3
    assert first.n == 250


def test_pairs_cancel_what_patients_share():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=40)
    a, b = hard + .2 + rng.normal(0, .1, 40), hard + rng.normal(0, .1, 40)
    assert compare_means(a, b).verdict == 'first better than second'
    assert compare_means(a, rng.permutation(b)).verdict == 'no difference shown'
    assert compare_means(a, b, seed=3).low == compare_means(a, b, seed=3).low != compare_means(a, b, seed=4).low


def test_any_metric_agrees_with_the_mean_of_images():
    rng = np.random.default_rng(0)
    a, b, patient = rng.random(50), rng.random(50), np.repeat(np.arange(25), 2)
    units = patient_units(patient)
    slow = paired_bootstrap(*(count_rows(lambda rows, x=x: x[rows].mean(), units) for x in (a, b)), units, n=300)
    fast = compare_means(a, b, patient, n=300)
    assert (slow.low, slow.high, slow.p) == pytest.approx((fast.low, fast.high, fast.p))


def test_one_patient_has_no_interval():
    found = compare_means([.9, .8, .7], [.8, .7, .6], ['P1']*3)
    assert np.isnan(found.low) and np.isnan(found.p) and found.verdict == 'too few patients (1)'
