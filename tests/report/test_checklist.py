"Reporting checklists: what a run knows is filled in, what it does not know is named, and nothing is made up"
from dataclasses import asdict

import pandas as pd
import pytest

from mirage_nb.recipes.classification import cls_recipe
from mirage_nb.report.checklist import count_answers, fill_checklists

VERSIONS = {'mirage_nb': '0.1.0', 'torch': '2'}
COUNTS = pd.DataFrame({'images': [9, 4], 'patients': [3, 2]}, ['train', 'test'])


def filled(stage='cls_tune', result=None, counts=COUNTS, files=frozenset(), **changed):
    settings = asdict(cls_recipe('cls_small')) | {'dataset': 'OCTID', 'seed': 0} | changed
    means = {"probe": {"AUROC, mean (macro)": .9, "Brier": .1}}
    result = {"means": means, "summary": ["AUROC 0.900 [0.8, 1.0]"]} | (result or {})
    tables = fill_checklists({'stage': stage, 'settings': settings, 'versions': VERSIONS}, result, counts, {}, files)
    return {k.partition(' (')[0]: t.set_index('item') for k, t in tables.items()}, count_answers(tables)


def test_every_item_is_there_and_counted():
    tables, words = filled()
    assert {k: len(t) for k, t in tables.items()} == {'CLAIM 2024': 44, 'Metrics Reloaded': 12, 'TRIPOD+AI': 52}
    for name, t in tables.items():
        assert f'{name}: {(t.state == "from the run").sum()} of {len(t)} items from the run' in words
        assert (t.answer[t.state.isin(['from the run', 'in part', 'missing'])] != '').all()


@pytest.mark.parametrize('item, changed, state, part', [
    ('33', {}, 'missing', 'no other dataset'),
    ('33', {'test_dataset': 'Noor_Eye_Hospital'}, 'from the run', 'tested on Noor_Eye_Hospital'),
    ('32', {'test_dataset': 'Noor_Eye_Hospital'}, 'yours', ''),
    ('19', {'splits': 'fold 2 of 5'}, 'from the run', "'fold 2 of 5'"),
    ('20', {'waive': 'patients'}, 'missing', 'patients are not known'),
    ('27', {'ema': 0.99}, 'from the run', '0.99'),
    ('8', {'waive': 'constant'}, 'in part', 'faults accepted: constant')])
def test_answers_follow_the_settings(item, changed, state, part):
    row = filled(**changed)[0]['CLAIM 2024'].loc[item]
    assert row.state == state and part in row.answer


def test_unknown_patients_are_not_called_disjoint():
    claim = filled(counts=COUNTS.assign(patients=0))[0]['CLAIM 2024']
    assert claim.state['20'] == 'missing' and 'patients are not known' in claim.answer['29']


def test_seeds_and_graders_come_from_the_verdicts():
    said = [{'level': 'note', 'text': '3 seeds (0, 1, 2): mean AUROC 0.81 to 0.84'},
            {'level': 'warning', 'text': 'Only 2 patients tested'}]
    claim = filled(result={'verdicts': said})[0]['CLAIM 2024']
    assert claim.answer['30'].startswith('3 seeds (0, 1, 2)') and 'Only 2 patients' in claim.answer['40']
    one = filled(result={'verdicts': [{'level': 'note', 'text': 'One seed (0), and the interval overlaps'}]})[0]
    assert one['CLAIM 2024'].state['30'] == 'missing'
