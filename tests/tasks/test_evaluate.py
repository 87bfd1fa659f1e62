"51_cls_eval on tables that somebody else made: what it writes, and that every number comes from the table"
import json
from ast import literal_eval

import numpy as np
import pandas as pd
import pytest

from mirage_nb.data.manifest import ClassInfo
from mirage_nb.eval.classification.predictions import (
    _example_predictions,
    parse_map,
    read_predictions,
)
from mirage_nb.eval.classification.report import evaluate_table
from mirage_nb.eval.classification.tables import level_table
from mirage_nb.recipes.classification import ClsEval
from mirage_nb.recipes.settings import override
from mirage_nb.runs import tuned_run
from mirage_nb.tasks.evaluate import _grey_map, load_eval_tables
from mirage_nb.tasks.settings import choose_settings


@pytest.fixture
def files(tmp_path):
    "Tables on disk: test, validation, a better model of the same images, and one without patients and logits"
    plain = _example_predictions().drop(columns=['patient', 'eye', 'split', 'logit:NORMAL', 'logit:AMD', 'logit:DME'])
    tables = {'test': _example_predictions(), 'val': _example_predictions(1, split='val'),
              'other': _example_predictions(skill=2.), 'plain': plain.assign(patient='')}
    for k, t in tables.items(): t.to_csv(tmp_path/f'{k}.csv', index=False)
    return {k: str(tmp_path/f'{k}.csv') for k in tables}


@pytest.mark.slow
def test_report_of_three_tables(execute, files, home):
    space = execute('cls_eval', predictions=files['test'], valid_predictions=files['val'], other=files['other'],
                    resamples=300, seed=3)
    run = space['here'].folder
    assert {p.name for p in run.glob('*.csv')} == {'levels.csv', 'comparison.csv', *(
        f'test_{k}.csv' for k in ('metrics', 'calibration', 'thresholds', 'confusion', 'curves', 'net_benefit'))}
    again = evaluate_table(read_predictions(files['test']), read_predictions(files['val']), seed=3, n=300)
    saved = pd.read_csv(run/'test_metrics.csv', keep_default_na=False, na_values=['nan'])
    np.testing.assert_allclose(saved['mean'].astype(float), again.summary['mean'], atol=1e-12)
    np.testing.assert_allclose(saved['low'].astype(float), again.summary['low'], atol=1e-12)
    result = json.loads((run/'result.json').read_text())
    assert result['means'] == again.means and result['summary'][0].endswith('95 % intervals by patient')
    beside = pd.read_csv(run/'comparison.csv')
    assert (beside.difference < 0).all() and (beside.p <= beside.p_holm).all() and (beside.p_holm < .05).all()
    record = json.loads((run/'run.json').read_text())
    assert set(record['sources']) == {'predictions', 'validation', 'other'}
    assert space['tables'].pred.classes == ('NORMAL', 'AMD', 'DME')


@pytest.mark.slow
def test_table_of_anybody(execute, files):
    "No patient, no logits, no validation: scored, and the report states what is not known"
    space = execute('cls_eval', predictions=files['plain'], class_map=['AMD > ill', 'DME > ill'], resamples=200)
    scores = space['scores']
    assert scores.pred.classes == ('NORMAL', 'ill') and scores.temperature is None and not len(scores.thresholds)
    assert scores.text.endswith('; 95 % intervals by image') and 'interval' not in scores.line('x')
    assert scores.table.index.name == '95 % intervals by image'
    answers = space['cls_reliability'](scores).answer
    assert 'too narrow if a patient has several images' in answers['unit of the intervals']
    assert answers['patients'] == 'not known' and 'no validation' in answers['temperature and thresholds']
    assert (level_table(scores, n=50).loc[['eye', 'patient'], 'note'].str.contains('has no patient')).all()
    assert not (space['here'].folder/'test_thresholds.csv').exists()


@pytest.mark.slow
def test_by_patient(execute, files):
    space = execute('cls_eval', predictions=files['test'], valid_predictions=files['val'], level='patient',
                    resamples=200)
    assert len(space['scores'].pred) == len(space['scores'].valid) == 60
    expected = _example_predictions().groupby('patient', sort=False)['score:AMD'].mean()
    np.testing.assert_allclose(space['scores'].pred.p[:, 1], expected, atol=1e-6)


def test_bad_parameters(execute, files, home):
    for bad, said in ((dict(predictions='nowhere.csv'), 'predictions: no file or folder /'),
                      (dict(predictions=files['test'], valid_predictions=files['test']), 'cannot be tested on it'),
                      (dict(predictions=files['test'], level='slice'), "no level 'slice'. Known: image, eye, patient"),
                      (dict(predictions=files['test'], class_map=['AMD']), "each entry is 'CLASS > NAME'"),
                      (dict(tuned_on='Duke_DME'), 'mirage-nb cls_tune dataset=Duke_DME')):
        with pytest.raises((ValueError, FileNotFoundError)) as e: execute('cls_eval', resamples=100, **bad)
        assert said in str(e.value)
    with pytest.raises(ValueError, match="no parameter 'prediction'. Did you mean 'predictions'"):
        override(ClsEval(), prediction='x')


def test_newest_finished_run_is_taken(home, monkeypatch):
    "A run of 31 by its interface: a finished folder with two tables in it"
    from mirage_nb.records import finish_run, start_run
    from mirage_nb.tasks.evaluate import load_eval_tables as eval_tables
    run = start_run('cls_tune', {'dataset': 'Noor'}, {}, label='vit')
    _example_predictions().to_csv(run.folder/'predictions_test.csv', index=False)
    _example_predictions(1, split='val').to_csv(run.folder/'predictions_val.csv', index=False)
    with pytest.raises(FileNotFoundError, match='no finished run on Noor'): tuned_run(None, 'Noor', 'cls_tune')
    finish_run(run, {})
    found = tuned_run(None, 'Noor', 'cls_tune')
    tables = eval_tables(override(ClsEval(), run=str(found.folder)))
    assert found.folder == run.folder and tables.valid is not None and tables.name == run.folder.name


def test_what_is_missing_is_said_with_the_faults_of_the_settings(home):
    for stage, bad, said in (
            ('predict', dict(images='nowhere', tuned_on='Mine', gallery=99),
             ['gallery is from 1 to 36, not 99', 'images: no file or folder /', 'tuned_on: no finished run on Mine']),
            ('cls_eval', dict(predictions='a.csv', other='b.csv', level='eyes'),
             ["no level 'eyes'. Did you mean 'eye'?", 'predictions: no file or folder', 'other: no file or']),
            ('seg_eval', dict(tuned_on='Mine', dataset='Phantom_OCD', split='tset'),
             ["no split 'tset'", "no dataset 'Phantom_OCD'", 'no finished run on Mine in'])):
        with pytest.raises(ValueError) as e: choose_settings(stage, bad)
        for text, line in zip(said, str(e.value).splitlines(), strict=True): assert text in line
    assert choose_settings('predict', {})[0].tuned_on == 'Phantom_OCT', 'on which a run is made if there is none'


def test_labels_without_a_score_get_a_class_map_to_check(files, tmp_path):
    table = pd.read_csv(files['plain']).assign(patient='')
    table['label'] = table.label.map({'NORMAL': 'healthy', 'AMD': 'amd', 'DME': 'DME'})
    table.to_csv(tmp_path/'named.csv', index=False)
    with pytest.raises(ValueError, match="no class 'amd'.*By their names alike are") as e:
        load_eval_tables(ClsEval(predictions=str(tmp_path/'named.csv')))
    said = str(e.value).partition('class_map="')[2].rstrip('"')
    assert said == "['NORMAL > healthy','AMD > amd']"
    assert read_predictions(tmp_path/'named.csv', names=parse_map(literal_eval(said))).classes[:2] == ('healthy', 'amd')


def test_map_of_grey_values_is_offered_to_fill_in():
    ours = [ClassInfo(0, 0, 'bg', 'background'), ClassInfo(1, 7, 'NFL', 'layer'), ClassInfo(2, 9, 'X', 'layer')]
    theirs = [ClassInfo(0, 3, 'Background', 'background'), ClassInfo(1, 50, 'RNFL', 'layer')]
    assert _grey_map('Mine', ours, theirs) == (
        'By their names, to be checked; for ? write one of 3 (Background), 50 (RNFL):\n[class_maps.Mine]\n'
        '0 = 3  # bg is Background\n7 = 50  # NFL is RNFL\n9 = ?  # X')
