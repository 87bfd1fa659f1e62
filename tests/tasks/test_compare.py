"Comparisons of methods from folders of runs: what is found, what is refused, and what the tables hold"
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from mirage_nb.anonymity import hide_names
from mirage_nb.eval.classification.metrics import ALL, MACRO
from mirage_nb.eval.classification.predictions import check_predictions, read_predictions
from mirage_nb.eval.classification.report import evaluate_table
from mirage_nb.eval.segmentation.summary import summarise
from mirage_nb.recipes.comparison import Compare
from mirage_nb.records import finish_run, start_run
from mirage_nb.spreadsheets import save_table
from mirage_nb.storage import read_json, write_json
from mirage_nb.tasks.collect import _draw_predictions, _table_result, find_runs, read_runs
from mirage_nb.tasks.compare import comparison_result, paper_tables, plan_comparison

PLAIN = {'dataset': 'Eyes', 'model': 'tiny', 'lr': .1, 'workers': 0}


def make_cls(home, name, skill=1., finished=True, table=None, **settings):
    "The folder of a classification, as far as a comparison reads it"
    folder, s = home/'cls_tune'/'Eyes'/name, PLAIN | {'seed': 0} | settings
    write_json(folder/'run.json', {'stage': 'cls_tune', 'settings': s, 'sources': {}})
    if finished: write_json(folder/'result.json', {'means': {}})
    table = _draw_predictions(skill, 0, sum(name.encode())) if table is None else table
    save_table(table, folder/'predictions_test.csv')
    return folder


def make_seg(home, name, dice, data='ab', true=100, **settings):
    "The folder of a segmentation: two patients, one lesion; the second volume does not have it"
    folder, s = home/'seg_tune'/'OCT'/name, PLAIN | {'dataset': 'OCT', 'seed': 0} | settings
    write_json(folder/'run.json', {'stage': 'seg_tune', 'settings': s, 'sources': {'data': data}})
    write_json(folder/'result.json', {'means': {}})
    ids = [f'v{i}' for i in range(len(dice))]
    table = pd.DataFrame({'ID': ids, 'Class': 'SRF', 'group': 'lesion', 'Dice': dice, 'HD95': 4.,
                          'convention': 'strict', 'patient': [f'p{i}' for i in range(len(dice))]})
    save_table(pd.concat([table, table.assign(convention='published', Dice=0.)]), folder/'test_volumes.csv')
    save_table(pd.DataFrame({'id': [f'{k}_0' for k in ids], 'volume': ids, 'Class': 'SRF', 'true': true}),
               folder/'test_slices.csv')
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path))
    return tmp_path


def test_a_stage_and_a_dataset_name_all_finished_runs(home):
    for i in range(2):
        make_cls(home, f'a{i}', 1., model='tiny', seed=i)
        make_cls(home, f'b{i}', 2., model='large', seed=i, workers=3)
    make_cls(home, 'unfinished', model='large', seed=2, finished=False)
    write_json(home/'cls_tune'/'Eyes'/'few'/'run.json', {'stage': 'few_shot', 'settings': {}})
    plan = plan_comparison(Compare(runs='cls_tune/Eyes', metrics='AUROC', resamples=200))
    assert plan.methods == ['large', 'tiny']  # the best first; workers tell no methods apart
    assert {len(plan.study.of('Eyes', m)) for m in plan.methods} == {2}
    found = comparison_result(plan)
    assert found['summary'][0].startswith('Eyes: large has the best AUROC, 0.')
    said = [v['text'] for v in found['verdicts']]
    assert any(t.startswith('large better than tiny: AUROC +') for t in said), said
    assert '1 run left out: not finished' in said and any(t.startswith('1 run left out: of few_shot') for t in said)
    assert len(find_runs(['cls_tune/*/a*'])[0]) == 2


def test_synthetic_images_of_compared_runs_are_told_once(home):
    "Of runs and of tables that lie in the folder of a run"
    folders = [make_cls(home, k, skill, model=k) for k, skill in (('tiny', 1.), ('large', 2.), ('huge', 3.))]
    for folder in folders[1:]: write_json(folder/'result.json', {'synthetic': ['Phantom_OCT']})
    plans = [plan_comparison(Compare(runs='cls_tune/Eyes', metrics='AUROC', resamples=200)),
             plan_comparison(Compare(tables=[f'{f.name}={f/"predictions_test.csv"}' for f in folders], resamples=200))]
    for plan in plans:
        result = finish_run(start_run('compare', vars(plan.settings), {}, label=str(len(plan.settings.tables))),
                            comparison_result(plan), plan.folders)
        said = [v['text'] for v in read_json(result)['verdicts'] if v['text'].startswith('Synthetic images (phantoms)')]
        assert len(said) == 1 and said[0].count('Phantom_OCT') == 1


def test_a_sweep_stands_for_its_runs(home):
    folders = [make_cls(home, k, model=k) for k in ('tiny', 'large')]
    make_cls(home, 'another', model='other')
    sweep = home/'sweep'/'all'/'heads-0a1b2c3d'
    write_json(sweep/'run.json', {'stage': 'sweep', 'settings': {}})
    with pytest.raises(ValueError, match='is not finished, or only listed its runs'): find_runs(['sweep/all'])
    write_json(sweep/'result.json', {'runs': [str(f.relative_to(home)) for f in folders]})
    assert set(find_runs(['sweep/all'])[0]) == {*folders} == set(find_runs(['plans/heads.toml'])[0])
    with pytest.raises(FileNotFoundError, match="no run is in 'other.toml'"): find_runs(['other.toml'])


def test_one_seed_is_no_method_and_other_settings_are_listed(home):
    make_cls(home, 'a', 3., head='convnext', epochs=2, baselines=False, table=_draw_predictions(4., 0, 1))
    make_cls(home, 'b', .2, head='linear', epochs=1, baselines=True, table=_draw_predictions(.2, 0, 2))
    plan = plan_comparison(Compare(runs='cls_tune/Eyes', metrics='AUROC', resamples=200))
    found = comparison_result(plan)
    said = [v['text'] for v in found['verdicts']]
    assert plan.tests[0].outcome in ('win', 'loss') and set(plan.methods) == {'linear', 'convnext'}
    assert said[0].startswith('The methods differ in more than their names say: epochs (convnext: 2; linear: 1). A ')
    assert 'good' not in {v['level'] for v in found['verdicts']}, said
    assert any('these two trained models differ on these images' in t for t in said), said
    assert found['summary'][0].split(';')[1] == ' one seed shows nothing about methods'
    assert 'better than' not in ' '.join(found['summary'])
    assert any('one seed' in t for t in plan.difference_table().notes)


def test_an_anonymised_run_is_compared_with_a_plain_one(home, monkeypatch):
    monkeypatch.setenv('MIRAGE_KEYS', str(home/'keys'))
    for k, skill in (('linear', 1.), ('convnext', 2.)): make_cls(home, k, table=_draw_predictions(skill, 0, 3), head=k)
    file = home/'cls_tune'/'Eyes'/'convnext'/'predictions_test.csv'
    hide_names(True)
    try:
        hidden = read_predictions(file).table
        hide_names(False)
        save_table(hidden, file)
        with pytest.raises(ValueError, match='Add anonymise=True to this comparison'):
            plan_comparison(Compare(runs='cls_tune/Eyes'))
        hide_names(True)
        assert len(plan_comparison(Compare(runs='cls_tune/Eyes', metrics='AUROC', resamples=100)).methods) == 2
    finally: hide_names(False)


def test_other_test_images_are_refused_with_all_that_differs(home):
    table = _draw_predictions(1., 0, 0)
    other = table.iloc[2:].assign(label=lambda t: t.label.where(t.index != 5, 'DME' if t.label[5] != 'DME' else 'AMD'),
                                  patient=lambda t: t.patient.where(t.index != 7, 'Q'))
    make_cls(home, 'a', table=table)
    make_cls(home, 'b', table=pd.concat([other, other[:1].assign(id='new')]), model='large')
    with pytest.raises(ValueError) as e: plan_comparison(Compare(runs='cls_tune/Eyes'))
    for text in ('Eyes: not the same test images as those of tiny, seed 0 (a)',
                 'large, seed 0 (b): 2 images missing: P000_0', '1 image that the first has not: new',
                 'another label or mask in 1 image', 'another patient in 1 image'):
        assert text in str(e.value), e.value


@pytest.mark.parametrize(('change', 'text'), [
    ({'true': 90}, 'another label or mask in 2 images: v0_0, v1_0 (SRF 100, here SRF 90)'),
    ({'data': 'cd'}, 'the hash of images and masks is cd, not ab')])
def test_other_masks_are_refused(home, change, text):
    make_seg(home, 'a', [.5, .6])
    make_seg(home, 'b', [.7, .8], head='dpt', **change)
    with pytest.raises(ValueError, match=re.escape(text)): plan_comparison(Compare(runs='seg_tune/OCT'))


def test_runs_that_by_does_not_tell_apart_are_refused(home):
    folders = [make_cls(home, k, lr=lr) for k, lr in (('a', .1), ('b', .2))]
    assert [r.method for r in read_runs(folders)] == ['lr=0.1', 'lr=0.2']
    with pytest.raises(ValueError, match='a and b are both tiny on Eyes with seed 0; they differ in lr. Add lr to by='):
        read_runs(folders, ['model'])
    folders.append(make_seg(home, 'c', [.5, .6]))
    with pytest.raises(ValueError, match='compare one kind at a time'): read_runs(folders)
    with pytest.raises(ValueError, match='runs: none can be compared: u is not finished'):
        find_runs([str(make_cls(home, 'u', finished=False))])


def test_a_misspelt_column_of_scores_is_named(tmp_path):
    save_table(pd.DataFrame({'ID': ['a'], 'Clas': ['RNFL'], 'Dice': [.5]}), tmp_path/'scores.csv')
    with pytest.raises(ValueError, match="it has ID, Clas, Dice. Did you mean 'Clas'"):
        _table_result(tmp_path/'scores.csv', 'mine', 'Eyes')


def test_undefined_values_and_single_seeds_stand_beneath(home):
    make_seg(home, 'a', [.5, None, .7, .6, .8, .7])
    for seed in range(2): make_seg(home, f'b{seed}', [.6, None, .8, .7, .9, .8], lr=.2, seed=seed)
    plan = plan_comparison(Compare(runs='seg_tune/OCT', resamples=200))
    assert list(plan.study.metrics) == ['Dice', 'HD95']
    means = plan.study.scores['OCT', 'Dice', 'lr=0.2']
    assert means.mean == pytest.approx(.76) and means.undefined == 2
    assert plan.main_table().notes[-1] == '1 to 2 seeds; 6 patients; undefined values left out: 3.'
    said = [v['text'] for v in comparison_result(plan)['verdicts']]
    assert any(t.startswith('One seed proves nothing: lr=0.1 has one seed') for t in said)
    worst = plan.study.metrics['HD95']
    assert not worst.higher_is_better and worst.digits == 2


def test_one_run_has_the_interval_of_its_report(home):
    "Its images are in no order, another method has its own, and the lesion is in no mean, as the truth lacks it"
    table = _draw_predictions(1., 0, 3, patients=12).sample(frac=1, random_state=1)
    make_cls(home, 'a', table=table)
    other = _draw_predictions(2., 0, 4, patients=12)
    make_cls(home, 'b', table=other, model='large')
    study = plan_comparison(Compare(runs='cls_tune/Eyes', metrics='AUROC,balanced accuracy')).study
    own = evaluate_table(check_predictions(table)).summary.set_index(['metric', 'Class'])
    assert study.results[0].source == 'a' and list(study.results[1].images.id) == list(table.id)
    for metric, name in (('AUROC', MACRO), ('balanced accuracy', ALL)):
        found = study.scores['Eyes', metric, 'tiny']
        assert [found.mean, *found.patient_interval(.95)] == pytest.approx(
            own.loc[(metric, name), ['mean', 'low', 'high']].to_list(), abs=1e-9), metric
    rng, rows = np.random.default_rng(0), []
    for i in rng.permutation(9):
        scores = ('RNFL', 'layer', .9 - rng.random()/5), ('INL', 'layer', .8 - rng.random()/5), ('SRF', 'lesion', 0.)
        for c, group, dice in scores:
            rows.append({'ID': f'v{i}', 'Class': c, 'group': group, 'Dice': dice, 'HD95': 9*rng.random(), 'slices': 1,
                         'present': int(group == 'layer'), 'undefined': 0, 'convention': 'strict',
                         'patient': f'p{i//2}'})
    volumes = pd.DataFrame(rows)
    for k, lr in (('a', .1), ('b', .2)):
        folder = make_seg(home, k, [.5], lr=lr)
        save_table(volumes, folder/'test_volumes.csv')
    study = plan_comparison(Compare(runs='seg_tune/OCT')).study
    patients = dict(zip(volumes.ID, volumes.patient, strict=True))
    report = summarise(volumes, patients=patients).set_index(['metric', 'Class'])
    for metric in ('Dice', 'HD95'):
        found = study.scores['OCT', metric, 'lr=0.1']
        assert [found.mean, *found.patient_interval(.95)] == pytest.approx(
            report.loc[(metric, 'mean'), ['mean', 'low', 'high']].to_list(), abs=1e-9), metric


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('pdflatex'), reason='there is no LaTeX here')
def test_tables_compile(home):
    for k, model in (('a', 'tiny_50%'), ('b', 'large & {new} #1')): make_cls(home, k, model=model)
    plan = plan_comparison(Compare(runs='cls_tune/Eyes', resamples=100))
    tables = [t.latex(caption, f'tab:{k}') for k, (caption, t) in paper_tables(plan).items()]
    (home/'all.tex').write_text('\n'.join([
        r'\documentclass{article}\usepackage{booktabs}\begin{document}', *tables, r'\end{document}']), encoding='utf-8')
    done = subprocess.run(['pdflatex', '-halt-on-error', '-interaction=nonstopmode', 'all.tex'], cwd=home,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-800:]
