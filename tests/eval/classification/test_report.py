"The report of a classification"
import pandas as pd
import pytest

from mirage_nb.eval.classification.predictions import _example_predictions, check_predictions, pool_predictions
from mirage_nb.eval.classification.report import cls_reliability, evaluate_table


def test_what_makes_two_images_the_same():
    "Its content where both tables know it, else its name and its dataset"
    test, val = _example_predictions(), _example_predictions(1, split='val')
    with pytest.raises(ValueError, match='tested on it. allow_leaks=True leaves these out'): evaluate_table(test, test)
    part = evaluate_table(test, pd.concat([val, test.head(3)]), n=50, allow_leaks=True)
    assert (len(part.valid), part.left_out) == (len(val), 3)
    none = evaluate_table(test, test, n=50, allow_leaks=True)
    assert none.valid is None and none.temperature is None and not len(none.thresholds)
    said = cls_reliability(none).answer['temperature and thresholds']
    assert said == f'none: all {len(test)} validation images are tested'
    away = evaluate_table(test.assign(dataset='A'), test.assign(dataset='B'), n=50)
    assert len(away.valid) == len(test) and cls_reliability(away).answer['patients in validation and test'] == 'none'
    sha = [str(i) for i in range(len(test))]
    new = evaluate_table(test.assign(sha256=sha), test.assign(sha256=[f'x{s}' for s in sha]), n=50)
    assert len(new.valid) == len(test)
    other_names = test.assign(sha256=sha, id=[f'n{s}' for s in sha], dataset='B')
    with pytest.raises(ValueError, match='cannot be tested on it'): evaluate_table(test.assign(sha256=sha), other_names)


@pytest.mark.parametrize('level', ['image', 'eye', 'patient'])
def test_patients_of_two_datasets_may_have_one_name(level):
    test = _example_predictions()
    pred, valid = (pool_predictions(check_predictions(test.assign(dataset=k)), level)[0] for k in 'AB')
    assert len(evaluate_table(pred, valid, n=50).valid) == len(valid)
