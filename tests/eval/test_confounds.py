"What is predicted without looking at an image"
import re

import numpy as np
import pandas as pd
import pytest

from mirage_nb.data.opened import ImageFacts
from mirage_nb.eval.confounds import cheap_facts, confound_table, confound_verdicts

pytestmark = pytest.mark.slow


def dataset(n=120, seed=0, **changed):
    "Files, facts, labels and patients, of which nothing gives the label away unless it is said"
    rng = np.random.default_rng(seed)
    sick = rng.random(n) < .5
    rows = {'rows': np.full(n, 496), 'mean': rng.random(n), 'border': rng.random(n)}
    rows |= {k: f(sick, rng) for k, f in changed.items()}
    facts = [ImageFacts(pixels='png L', size=9000, cols=768, **{k: v[i].item() for k, v in rows.items()})
             for i in range(n)]
    return [f'x/{k:04d}.png' for k in range(n)], facts, np.where(sick, 'AMD', 'normal'), [f'P{k//2}' for k in range(n)]


@pytest.mark.parametrize('fact, changed', [
    ('mean brightness', {'mean': lambda s, r: s*.2 + r.random(len(s))*.3}),
    ('image size', {'rows': lambda s, r: np.where(s & (r.random(len(s)) < .9), 512, 496)}),
    ('borders', {'border': lambda s, r: np.where(s, .5, r.random(len(s)))})])  # not monotonic: in the middle
def test_each_fact_is_found_and_said(fact, changed):
    files, facts, label, who = dataset(**changed)
    table = confound_table(cheap_facts(files, facts), {'label': label}, who, resamples=200)
    alone = table[~table.fact.str.contains('and')].set_index('fact')
    assert alone.auroc.idxmax() == fact and alone.auroc[fact] > .7 and alone.low[fact] > .5
    texts = [v.text for v in confound_verdicts(table) if v.level == 'warning']
    assert len(texts) == 1 and re.match(f'The {fact} alone predicts? the label: AUROC 0.', texts[0])


def test_nothing_is_said_where_nothing_is_given_away():
    files, facts, label, who = dataset()
    table = confound_table(cheap_facts(files, facts), {'label': label, 'split': ['']*120, 'site': ['A']*120}, who)
    assert set(table.target) == {'label'} and (table.low < .55).all() and (table.low < table.high).all()
    assert [v.level for v in confound_verdicts(table)] == ['note']


def test_patients_are_not_learnt_by_heart():
    "Brightness tells the patient, and the label is of patients: that is no confound of new patients"
    rng = np.random.default_rng(1)
    of = np.repeat(rng.random(20), 8)
    facts = [ImageFacts(pixels='png L', rows=9, cols=9, mean=float(m)) for m in of]
    label = np.repeat(rng.permutation(['AMD', 'normal']*10), 8)
    files, who = [f'{k:04d}.png' for k in range(160)], [f'P{k//8}' for k in range(160)]
    row = confound_table(cheap_facts(files, facts), {'label': label}, who).set_index('fact').loc['mean brightness']
    alone = confound_table(cheap_facts(files, facts), {'label': label}, [f'{k}' for k in range(160)])
    assert row.low < .5 and row.patients == 20 and alone.set_index('fact').auroc['mean brightness'] > .95


def test_names_without_the_words_that_are_asked_for():
    files = [f'{c}_{k:03d}.png' for c in ('AMD', 'normal') for k in range(20)]
    facts = [ImageFacts(pixels='png L', size=k) for k in range(40)]
    assert list(cheap_facts(files, facts, ['AMD', 'normal'])) == ['file size']
    assert 'name pattern' in cheap_facts(files, facts)
    table = confound_table(cheap_facts(files, facts), {'label': [f.split('_')[0] for f in files]}, files, resamples=100)
    assert table.set_index('fact').auroc['name pattern'] == 1


def test_a_class_of_one_patient_is_not_measured():
    files, facts, label, _ = dataset(40)
    assert confound_table(cheap_facts(files, facts), {'label': label}, list(label)).empty
    assert isinstance(confound_table({}, {'label': label}, list(label)), pd.DataFrame)
