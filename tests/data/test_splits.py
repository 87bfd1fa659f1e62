"Draws of splits that earlier versions made: the same patients, to the last one"
import hashlib

import numpy as np
import pandas as pd
import pytest

from mirage_nb.data.manifest import SPLITS
from mirage_nb.data.splits import draw_splits, few_label_subset


def images(seed):
    "One to five images of each of 150 patients, with six labels from rare to common"
    rng = np.random.default_rng(seed)
    has = rng.random((150, 6)) < np.geomspace(.03, .5, 6)
    who = np.repeat(np.arange(150), rng.integers(1, 6, 150))
    t = pd.DataFrame({'id': [f'i{i}' for i in range(len(who))], 'patient': [f'P{w}' for w in who]})
    t = t.join(pd.DataFrame(has[who].astype(float), columns=[f'label:L{k}' for k in range(6)]))
    return t.assign(split=np.where(has[who, 5], 'test', 'train'))


SHARES = {'labels': {'train': .6, 'val': .15, 'test': .25}, 'patients': {'val': .13, 'test': .2}, 'images': {'val': .2}}


@pytest.mark.parametrize('by, seed, recorded', [
    ('labels', 0, 'bdad066f94656c73'),
    ('patients', 0, '9ef0ccbbffa4bd99'),
    ('images', 0, '89c4cce6dc0f4130'),
    ('labels', 1, '676de894966d8f33'),
    ('patients', 1, '5956582a967fbae5'),
    ('images', 1, '828883cecf410029')
])
def test_seeds_give_the_patients_that_they_gave(by, seed, recorded):
    t = images(int(seed))
    split = draw_splits(t, SHARES[by], f'set{seed}' if by == 'labels' else seed, by=by)
    assert hashlib.sha256(' '.join(split).encode()).hexdigest()[:16] == recorded
    assert t.assign(split=split).groupby('patient').split.nunique().max() == 1 or by == 'patients'
    shuffled = t.sample(frac=1, random_state=1)
    again = draw_splits(shuffled, SHARES[by], f'set{seed}' if by == 'labels' else seed, by=by)
    assert again.sort_index().tolist() == split.tolist()


def people_with(labels=14, n=400, seed=0):
    "1 to 4 images of each patient with many combinations of labels, from rare to common ones"
    rng = np.random.default_rng(seed)
    has = rng.random((n, labels)) < np.geomspace(.02, .4, labels)
    who = np.repeat(np.arange(n), rng.integers(1, 5, n))
    t = pd.DataFrame({'id': [f'i{i}' for i in range(len(who))], 'patient': [f'P{w}' for w in who]})
    return t.join(pd.DataFrame(has[who].astype(float), columns=[f'label:L{k}' for k in range(labels)]))


@pytest.mark.parametrize('shares', [(.5, .2, .3), (.7, .1, .2), (.8, .2, 0)])
def test_shares_hold_with_many_labels(shares):
    t = people_with()
    split = draw_splits(t, dict(zip(SPLITS, shares, strict=True)), 'x')
    one = t.assign(split=split).groupby('patient').agg(
        {'split': ['first', 'nunique'], **{c: 'max' for c in t if ':' in c}}).droplevel(1, axis=1)
    one.columns = ['split', 'n', *one.columns[2:]]
    assert (one.n == 1).all(), 'by patient'
    labels = one.filter(like='label:')
    for s, share in zip(('train', 'val', 'test'), shares, strict=True):
        assert abs((one.split == s).sum() - share*len(one)) <= 1, s
        assert ((labels[one.split == s].sum() - share*labels.sum()).abs() <= np.maximum(3, labels.sum()*.06)).all(), s
    shuffled = t.sample(frac=1, random_state=0)
    again = draw_splits(shuffled, dict(zip(SPLITS, shares, strict=True)), 'x')
    assert again.sort_index().equals(split) and set(split.map(type)) == {str}
    assert not draw_splits(t, dict(zip(SPLITS, shares, strict=True)), 'y').equals(split)


def test_a_class_of_one_patient_is_trained_on():
    t = pd.DataFrame({'label': [*'a'*150, *'b'*40, *'c'*7, *'def']}).assign(patient='')
    t['id'] = [f'i{k}' for k in t.index]
    split = draw_splits(t, {'train': .5, 'val': .2, 'test': .3}, 'x')
    assert split.value_counts().to_dict() == {'train': 100, 'test': 60, 'val': 40}
    assert (split[t.label.isin(['d', 'e', 'f'])] == 'train').all()
    many = pd.crosstab(t.label, split).loc[['a', 'b'], ['train', 'val', 'test']]
    assert (abs(many - np.outer([150, 40], [.5, .2, .3])) < 4).all(axis=None)
    three = draw_splits(t[t.label.isin(['d', 'e', 'f'])], {'train': .4, 'val': .3, 'test': .3}, 'x')
    assert three.tolist() == ['train']*3, 'nobody to change places with'


def test_few_shots_are_of_as_many_patients_as_there_are():
    t = pd.DataFrame({'label': [*'a'*60, *'b'*18], 'patient': [f'P{k//6}' for k in range(78)],
                      'id': [f'i{k:02}' for k in range(78)]})
    few = few_label_subset(t, ('a', 'b'), 5, seed=1)
    assert few.groupby('label').patient.nunique().to_dict() == {'a': 5, 'b': 3}
    assert few.label.value_counts().to_dict() == {'a': 5, 'b': 5}
    again = few_label_subset(t.sample(frac=1, random_state=0), ('a', 'b'), 5, seed=1)
    assert again.id.sort_values().tolist() == list(few.id)
    more = few_label_subset(t, ('a', 'b'), 12, seed=1)
    assert set(few.id) < set(more.id) and more.patient[more.label == 'a'].value_counts().max() == 2
    assert set(few_label_subset(t, ('a', 'b'), 5, seed=2).id) != set(few.id)
    one = pd.get_dummies(t.label).add_prefix('label:').astype(float).assign(id=t.id, patient=t.patient)
    one.loc[:29, 'label:a'] = 0.  # without any finding
    assert few_label_subset(one, ('a', 'b'), .5).groupby(['label:a', 'label:b']).patient.nunique().tolist() == [5, 3, 5]
