"Thresholds are chosen on validation and never on the test"
import numpy as np

from mirage_nb.eval.classification.predictions import _example_predictions, check_predictions
from mirage_nb.eval.classification.report import evaluate_table
from mirage_nb.eval.classification.thresholds import choose_thresholds

# ------------------------------------------------------------------ calibration and thresholds


def test_thresholds_and_temperature_do_not_see_the_test_labels():
    val, test = _example_predictions(1, split='val'), _example_predictions()
    turned = test.assign(label=test.label.to_numpy()[::-1])
    a, b = (evaluate_table(t, val, n=100) for t in (test, turned))
    assert a.temperature == b.temperature and (a.thresholds.threshold == b.thresholds.threshold).all()
    assert not np.allclose(a.thresholds['mean'], b.thresholds['mean'])
    assert a.means != b.means and a.means == evaluate_table(test, n=100).means  # nor does validation touch the metrics


def test_class_that_validation_lacks_has_no_threshold():
    val = _example_predictions(1, split='val')
    cuts = choose_thresholds(check_predictions(val[val.label != 'AMD']))
    assert np.isnan(cuts[1]) and not np.isnan(cuts[[0, 2]]).any()
    scores = evaluate_table(_example_predictions(), val[val.label != 'AMD'], n=100)
    assert scores.thresholds[scores.thresholds.Class == 'AMD'][['threshold', 'mean']].isna().all(axis=None)
