"A cross-validation is summarised when its folds are finished, and only runs that belong together are"
import pandas as pd
import pytest

from mirage_nb.commands.folds import describe_folds
from mirage_nb.commands.index import describe_runs
from mirage_nb.core import runs_dir
from mirage_nb.records import finish_run, start_run


@pytest.fixture
def finish(home):
    "Finish a run of one fold by its score"
    def fold(k, score, of=3, seed=0, stage='seg_tune', weights='w', **settings):
        splits = f'leave out {k}' if isinstance(k, str) else f'fold {k} of {of}' if of else ''
        run = start_run(stage, {'dataset': 'Mine', 'splits': splits, 'seed': seed, **settings},
                        {'manifest': 'm', 'data': f'of fold {k}', 'weights': weights}, label='x')
        beside = {'mean position': {'Dice, mean': .1, 'IoU': .1}}
        finish_run(run, {'means': {'fine-tuned': {'Dice, mean': score}} | beside})
        return run
    return fold


def test_folds_are_summarised_when_all_are_finished(finish):
    for k, score in ((1, .6), (2, .7)): finish(k, score)
    assert describe_folds() == ('1 cross-validation:\nseg_tune on Mine, 3 folds: 2 finished; still to run: '
                                'splits="fold 3 of 3"\n')
    finish(3, .8)
    text = describe_folds()
    assert 'fine-tuned: Dice, mean 0.700, SD 0.100, from 0.600 to 0.800\n' in text
    assert 'mean position: Dice, mean 0.100, SD 0.000' in text and 'IoU' not in text
    assert 'Two folds share most of their training images' in text and 'no confidence interval' in text
    assert text in describe_runs() and 'SD 0.100' in (runs_dir()/'index.html').read_text()


@pytest.mark.parametrize('other', [dict(seed=1), dict(of=4), dict(weights='v'), dict(stage='cls_tune')])
def test_runs_that_differ_otherwise_are_no_folds_of_one_training(finish, other):
    for k in (1, 2): finish(k, .6)
    finish(3, .9, **other)
    assert '2 cross-validations' in describe_folds() and 'fold 3 of 3' in describe_folds()


def test_a_run_without_folds_is_in_no_summary(finish):
    finish(0, .5, of=0)
    assert describe_folds() == '' and 'cross-validation' not in describe_runs()


def test_runs_that_leave_out_a_site_each_are_summarised_and_the_worst_site_is_named(finish):
    splits = pd.DataFrame({'id': list('abcd'), 'split': 'train', 'site': ['Lyon', 'Oslo', 'Rome', '']})
    for k, score in (('Lyon', .8), ('Oslo', .6)): splits.to_csv(finish(k, score).folder/'splits.csv', index=False)
    assert 'each of 3 sites left out once: 2 finished; still to run: splits="leave out Rome"\n' in describe_folds()
    splits.to_csv(finish('Rome', .7).folder/'splits.csv', index=False)
    text = describe_folds()
    assert 'Dice, mean 0.700, SD 0.100, from 0.600 (Oslo) to 0.800 (Lyon)\n' in text
    assert 'standard deviation over the sites' in text and text in describe_runs()
