"Several seeds: what is refused, what is said, and two seeds of a tiny training from start to report"
import pandas as pd
import pytest

from mirage_nb import runs
from mirage_nb.eval.seed_scores import join_seeds
from mirage_nb.eval.seeds import each_seed
from mirage_nb.phantoms.oct import make_phantom_oct
from mirage_nb.records import open_run
from mirage_nb.storage import read_json
from mirage_nb.tasks.ensemble import Ensemble
from mirage_nb.tasks.estimate import Estimate
from mirage_nb.tasks.seeds import TrainedSeeds, find_seeds
from mirage_nb.tasks.settings import choose_settings

SMALL = {'dataset': 'Phantom_OCT', 'recipe': 'cls_small', 'epochs': 2, 'size': 64, 'probes': False, 'baselines': True}


@pytest.mark.parametrize(('stage', 'given', 'text'), [
    ('seg_tune', {'seeds': 0}, 'seeds is from 1 to 50, not 0'),
    ('seg_tune', {'seeds': 51}, 'seeds is from 1 to 50, not 51'),
    ('cls_tune', {'seeds': 'five'}, "seeds takes a whole number, got 'five'"),
    ('cls_tune', {'seeds': 3, 'epochs': 0, 'keep_head': True, 'weights': 'w.pth'}, 'seeds=3 repeats a training')])
def test_seeds_that_make_no_sense(home, stage, given, text):
    with pytest.raises(ValueError) as e: choose_settings(stage, {'dataset': 'Phantom_OCT', **given})
    assert text in str(e.value)
    with pytest.raises(ValueError) as e: runs.run_notebook(stage, {'dataset': 'Phantom_OCT', **given}, quiet=True)
    assert text in str(e.value) and not (home/'runs').exists()


def test_processes_of_each_seed(home):
    "Several processes train one seed after another: nothing is refused"
    cfg, _ = choose_settings('seg_tune', {'dataset': 'Phantom_OCT', 'seeds': 3, 'processes': 2})
    assert (cfg.seeds, cfg.processes, cfg.seed) == (3, 2, 0)


def test_estimate_says_all_seeds():
    one, five = (str(Estimate(60, 1e9, 1e6, 1e6, 'CPU', seeds=k, after=40)) for k in (1, 5))
    assert 'takes about 60 seconds on this CPU, with test, baselines' in one
    assert 'and report about 100 seconds from here; about 1.0 GB' in one
    assert 'and report about 100 seconds from here, the 5 seeds to come about 8.5 minutes; about' in five


@pytest.mark.slow
def test_two_seeds_and_their_report(execute, home, monkeypatch):
    "Two trainings, a report of both, and what takes that report for a run"
    folders = [execute('cls_tune', **SMALL, seed=k)['run'].folder for k in (0, 1)]
    joint = execute('seeds', run=str(folders[1]), seeds=[0, 1])['here'].folder
    result, own = (read_json(p/'result.json') for p in (joint, folders[0]))
    assert joint.parent == home/'runs'/'seeds'/'Phantom_OCT' and result['seeds'] == [0, 1]
    assert [(joint/p).resolve() for p in result['runs'].values()] == [p.resolve() for p in folders]
    means = [read_json(p/'result.json')['means']['linear probe']['AUROC, mean (macro)'] for p in folders]
    found = result['over_seeds']['linear probe']['AUROC, mean (macro)']
    assert result['means']['linear probe']['AUROC, mean (macro)'] == pytest.approx(sum(means)/2, abs=1e-5)
    assert (found['least'], found['most']) == pytest.approx((min(means), max(means)), abs=1e-5)
    assert found['low'] is None, 'a class of one patient has no interval of AUROC'
    assert found['seeds'] == 2 and found['unit'] == 'by patient'
    known = {k: v for k, v in result['over_seeds']['linear probe'].items() if v['low'] is not None}
    assert known and all(v['low'] <= v['mean'] <= v['high'] for v in known.values())
    assert {'majority class', 'probe of a random encoder'} <= set(result['over_seeds'])
    assert any('One seed (0)' in v['text'] for v in own['verdicts'])
    assert not any('One seed' in v['text'] for v in result['verdicts'])
    assert [m.run.folder.resolve() for m in Ensemble.open(each_seed([joint])).members] == [p.resolve() for p in folders]
    assert 'the best of the 2 seeds named by run=' in runs.tuned_run(joint, 'Phantom_OCT', 'cls_tune').how
    for p in (*folders, joint): (p/'report.html').write_text('a page')  # which the runner writes
    values = {**runs.parameter_values(runs.find_notebook('cls_tune')), **SMALL}
    for k, p in enumerate(folders): runs.remember_run(runs.run_key('cls_tune', values | ({'seed': k} if k else {})), p)
    report = {**runs.parameter_values(runs.find_notebook('seeds')), 'run': str(folders[0]), 'seeds': [0, 1]}
    runs.remember_run(runs.run_key('seeds', report), joint)
    monkeypatch.setattr(runs, '_execute', lambda *a: 'a kernel was started')
    assert runs.run('cls_tune', **SMALL, seeds=2).metrics == result['means']  # nothing is started


@pytest.mark.slow
def test_seeds_of_images_that_have_changed_since(home, execute, phantoms, tmp_path, monkeypatch):
    "The scores are of the tables that the runs wrote; images that they were not tested on are not drawn"
    small = dict(recipe='seg_small', size=64, epochs=1, baselines=False, head='linear', dataset='Phantom_OCT')
    run = execute('seg_tune', **small)['run'].folder
    before = execute('seeds', run=str(run), resamples=100)
    assert before['trained'].cases() is not None
    make_phantom_oct(tmp_path/'other'/'Phantom_OCT', patients=12, volumes=1, slices=1, size=(96, 80), seed=7)
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path/'other'))
    after = TrainedSeeds(find_seeds(open_run(run)))
    assert after.cases() is None
    pd.testing.assert_frame_equal(join_seeds(after.scores(100)), before['joint'])
