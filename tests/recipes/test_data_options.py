"How splits may be asked for, and faults accepted"
import pytest

from mirage_nb.recipes.classification import ClsRecipe
from mirage_nb.recipes.data_options import SplitPlan, parse_splits, waived
from mirage_nb.recipes.segmentation import SegRecipe


@pytest.mark.parametrize('text, plan', [
    ('', SplitPlan()), ('0.7/0.15/0.15', SplitPlan(shares=(.7, .15, .15))), ('.8/.2/0', SplitPlan(shares=(.8, .2, 0.))),
    ('fold 5 of 5', SplitPlan(fold=(5, 5))), ('fold  1 of 10,  seed 7', SplitPlan(fold=(1, 10), seed=7)),
    ('0.5/0.25/0.25, seed 0', SplitPlan(shares=(.5, .25, .25), seed=0)), ('a b/S.CSV', SplitPlan(file='a b/S.CSV')),
    ('leave out Lyon Sud, seed 2', SplitPlan(site='Lyon Sud', seed=2))])
def test_what_is_asked_for(text, plan):
    assert parse_splits(text) == plan and bool(plan) == bool(text)


@pytest.mark.parametrize('kind', [SegRecipe, ClsRecipe])
@pytest.mark.parametrize('text, said', [
    ('2/5', "splits takes the parts of train, val and test as '0.7/0.15/0.15', a fold as 'fold 2 of 5'"),
    ('val', "or a file splits.csv of an earlier run, got 'val'"), ('0.7/0.3', 'takes the parts of train, val and test'),
    ('0.7/0.2/0.2', 'the parts of train, val and test sum to 1'), ('0/0.5/0.5', 'and train has some'),
    ('fold 0 of 5', "from 'fold 1 of 5' to 'fold 5 of 5', got 'fold 0 of 5'"),
    ('fold 1 of 2', "of three folds or more one is the test, from 'fold 1 of 3'")])
def test_what_cannot_be_read_is_refused_with_the_other_options(kind, text, said):
    with pytest.raises(ValueError) as e: kind(splits=text)
    assert said in str(e.value) and str(e.value).startswith('splits')


@pytest.mark.parametrize('kind', [SegRecipe, ClsRecipe])
def test_only_faults_that_have_a_name_can_be_accepted(kind):
    assert waived(kind(waive='patients, constant').waive) == ('patients', 'constant')
    with pytest.raises(ValueError, match="waive: no fault that can be accepted 'all'. .*near_duplicates, patients"):
        kind(waive='all')
