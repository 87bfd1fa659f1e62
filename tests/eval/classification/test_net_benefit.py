"Net benefit by hand, with unknown labels, and bands that draw patients"
import numpy as np
import pandas as pd
import pytest

from mirage_nb.eval.classification.net_benefit import decision_curves
from mirage_nb.eval.classification.predictions import check_predictions


@pytest.fixture
def pred():
    "Forty patients with five like images each, several labels, some not known"
    g = np.random.default_rng(0)
    y = np.repeat(g.random((40, 2)) < .3, 5, axis=0).astype(float)
    p = np.clip(.3 + .3*y + .2*g.standard_normal(y.shape), .001, .999)
    y[::7, 1] = np.nan
    return check_predictions(pd.DataFrame({
        'id': [f'i{k}' for k in range(200)], 'patient': [f'P{k//5}' for k in range(200)],
        **{f'score:{c}': p[:, j] for j, c in enumerate('ab')}, **{f'label:{c}': y[:, j] for j, c in enumerate('ab')}}))


@pytest.mark.parametrize('t', [.05, .3, .5, .8])
def test_by_hand(pred, t):
    rows = decision_curves(pred, [t], n=20).set_index('Class')
    for j, c in enumerate('ab'):
        known = ~np.isnan(pred.y[:, j])
        y, treat = pred.y[known, j] == 1, pred.p[known, j] >= t
        odds = t/(1 - t)
        model, every = ((use & y).mean() - odds*(use & ~y).mean() for use in (treat, np.ones_like(treat)))
        expected = [model, every, model - max(every, 0)]
        np.testing.assert_allclose(rows.loc[c, ['model', 'all', 'gain']].astype(float), expected)


def test_bands_draw_patients(pred):
    "Images of a patient are alike, so bands by patient are wider than by image"
    alone = check_predictions(pred.table.assign(patient=pred.table.id))
    by_patient, by_image = (decision_curves(x, [.1, .2], n=500) for x in (pred, alone))
    width = [(t.high - t.low).to_numpy() for t in (by_patient, by_image)]
    assert (width[0] > 1.4*width[1]).all()
