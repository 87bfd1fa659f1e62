"Temperatures and calibration errors"
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mirage_nb.eval.classification.calibration import (
    Calibration,
    _ece,
    apply_temperature,
    fit_temperature,
    reliability_curve,
    stated_answers,
)
from mirage_nb.eval.classification.predictions import check_predictions, to_scores

# ------------------------------------------------------------------ calibration and thresholds


@pytest.mark.parametrize('single', [True, False])
@pytest.mark.parametrize('t', [.5, 3.])
def test_temperature_is_found_again(single, t):
    "Labels drawn from the scores are calibrated; logits times t need the temperature t"
    g, n, k = np.random.default_rng(0), 6000, 4
    z = g.normal(size=(n, k))*1.5
    p = to_scores(z, single)
    y = np.eye(k)[(p.cumsum(1) > g.random((n, 1))).argmax(1)] if single else (g.random((n, k)) < p).astype(float)
    head = pd.DataFrame({'id': np.arange(n).astype(str), 'patient': ''})
    several = {f'label:{c}': v for c, v in zip('abcd', y.T, strict=True)}
    truth = {'label': np.array(list('abcd'))[y.argmax(1)]} if single else several
    right = check_predictions(head.assign(**truth, **{f'score:{c}': v for c, v in zip('abcd', p.T, strict=True)}))
    away = replace(right, z=z*t, p=to_scores(z*t, single))
    found = fit_temperature(away)
    assert found.value == pytest.approx(t, rel=.06) and not found.note
    errors = [_ece(reliability_curve(stated_answers(q))) for q in (right, away, apply_temperature(away, found.value))]
    assert errors[0] < .02 < errors[1] and errors[2] < .02


def test_calibration_by_hand():
    pred = check_predictions(pd.DataFrame({
        'id': list('abcd'), 'patient': '', 'label': ['x', 'x', 'y', 'y'], 'score:x': [.9, .9, .9, .2],
        'score:y': [.1, .1, .1, .8]}))
    got = {k: float(v[0, 0]) for k, v in Calibration(pred, bins=10)().items()}
    assert got['ECE, 10 bins of equal width'] == pytest.approx((abs(2.7 - 2) + abs(.8 - 1))/4)
    assert got['Brier score'] == pytest.approx((2*.02 + 2*.81 + 2*.04)/4)
    assert got['NLL'] == pytest.approx(-(2*np.log(.9) + np.log(.1) + np.log(.8))/4)
