"Draws of splits that earlier versions made: the same patients, to the last one"
import hashlib

import numpy as np
import pandas as pd
import pytest

from mirage_nb.data.manifest import SPLITS
from mirage_nb.data.splits import divide, draw_splits, few_label_subset, hash_splits, save_splits
from mirage_nb.recipes.data_options import parse_splits
from mirage_nb.storage import hash_file


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


# ------------------------------------------------------------------ what the option `splits` asks for

@pytest.mark.parametrize('k', range(1, 5))
def test_folds_share_no_patient_and_hold_every_label(k):
    who = np.repeat(np.arange(60), 3)
    t = pd.DataFrame({'id': [f'i{i}' for i in range(180)], 'patient': [f'P{w}' for w in who], 'split': '',
                      'label': np.where(who < 4, 'rare', 'common')})
    split, how = divide(t, parse_splits(f'fold {k} of 4'), 'x')
    assert how == f'drawn by patient (60): fold {k} of 4 is the test'
    found = t.assign(split=split).groupby('patient').agg({'split': ['nunique', 'first'], 'label': 'first'})
    assert (found['split', 'nunique'] == 1).all()
    assert pd.crosstab(found['split', 'first'], found['label', 'first']).to_dict() == {
        'common': {'train': 28, 'val': 14, 'test': 14}, 'rare': {'train': 2, 'val': 1, 'test': 1}}


def test_each_patient_is_tested_in_one_fold_and_chosen_by_in_one():
    t = people_with(n=23).assign(split='train')  # what the dataset says does not count
    folds = [divide(t, parse_splits(f'fold {k} of 5'), 'x')[0] for k in range(1, 6)]
    for role in ('test', 'val'): assert (sum((f == role).astype(int) for f in folds) == 1).all()
    again = divide(t.sample(frac=1, random_state=0), parse_splits('fold 1 of 5'), 'x')[0]
    assert again.sort_index().tolist() == folds[0].tolist(), 'the order of the table counts for nothing'


def test_draws_follow_from_the_name_or_the_seed():
    t = people_with(n=40).assign(split='')
    def draw(text, name): return divide(t, parse_splits(text), name)[0].tolist()
    assert draw('0.7/0.15/0.15', 'A') == draw('', 'A') != draw('', 'B')
    seeded = draw('0.7/0.15/0.15, seed 3', 'A')
    assert seeded == draw('0.7/0.15/0.15, seed 3', 'B') != draw('0.7/0.15/0.15, seed 4', 'A')


def test_missing_validation_comes_from_train_alone():
    t = people_with(n=40)
    t = t.assign(split=np.where(t.patient.str.endswith('1'), 'test', 'train'))
    split, how = divide(t, parse_splits(''), 'x')
    assert how == 'drawn by patient (40): 5 of the 36 in train became val, which was missing'
    assert ((split == 'test') == (t.split == 'test')).all()
    assert t.assign(split=split).groupby('patient').split.nunique().max() == 1
    assert t[split == 'val'].patient.nunique() == 5  # of 36


def test_unknown_patients_are_said():
    t = people_with(n=40).assign(split='', patient='')
    with pytest.warns(UserWarning, match='x: splits are drawn by image, because no patient is known'):
        assert divide(t, parse_splits(''), 'x', 'image')[1].startswith('drawn by image (')


@pytest.mark.parametrize('n, shares', [(3, {1: 3}), (4, {2: 1, 1: 2}), (20, {14: 1, 3: 2})])
def test_few_patients(n, shares):
    t = pd.DataFrame({'id': range(n), 'patient': [f'P{i}' for i in range(n)], 'split': ''})
    assert divide(t, parse_splits(''), 'x')[0].value_counts().value_counts().to_dict() == shares


def test_too_few_patients():
    t = pd.DataFrame({'id': list('abcd'), 'patient': ['P', 'P', 'Q', 'Q'], 'split': ''})
    with pytest.raises(ValueError, match='2 patients are too few for 0.34/0.33/0.33: none is in test. Ask for other'):
        divide(t, parse_splits(''), 'x')
    with pytest.raises(ValueError, match='3 folds take 3 patients or more; there are 2'):
        divide(t, parse_splits('fold 1 of 3'), 'x')


def test_a_file_divides_as_the_run_did(tmp_path):
    t = people_with(n=20).assign(split='')
    split, how = divide(t, parse_splits('fold 2 of 5'), 'x')
    tables = {s: t[split == s] for s in SPLITS}
    shown = save_splits(tables, how, tmp_path).value
    assert hash_file(tmp_path/'splits.csv') == hash_splits(tables) and shown['SHA-256'] == hash_splits(tables)[:16]
    again, how = divide(t.iloc[::-1], parse_splits(f'{tmp_path}/splits.csv'), 'another name')
    assert again.sort_index().tolist() == split.tolist() and how == f'read from {tmp_path}/splits.csv'
    assert save_splits(tables, '', tmp_path/'new').value.tolist() == ["the dataset's own"]
    assert not (tmp_path/'new').exists()


@pytest.mark.parametrize('change, text', [
    (lambda s: s.iloc[1:], 'splits.csv has no split for 1 images: i0. It is of another dataset, or images were added'),
    (lambda s: pd.concat([s, s.head(1).assign(id='new')]), 'lists, and the dataset lacks, 1 images: new'),
    (lambda s: pd.concat([s, s.head(1)]), 'line 12: i0 is listed twice; keep one of its lines'),
    (lambda s: s.assign(split='vall'), "splits.csv, line 2: no split 'vall'. Did you mean 'val'"),
    (lambda s: s.drop(columns='split'), "no column 'split'")])
def test_faults_of_a_file_of_splits(tmp_path, change, text):
    t = pd.DataFrame({'id': [f'i{k}' for k in range(10)], 'patient': '', 'split': ''})
    change(t.assign(split='train')).to_csv(tmp_path/'splits.csv', index=False)
    with pytest.raises(ValueError, match=text): divide(t, parse_splits(str(tmp_path/'splits.csv')), 'x')


# ------------------------------------------------------------------ sites

@pytest.mark.parametrize('site', ['Lyon', 'Wien', 'Oslo'])
def test_a_site_is_left_out_whole(site, tmp_path):
    t = people_with(n=60).assign(split='')
    t['site'] = t.patient.map(lambda p: ('Lyon', 'Wien', 'Oslo')[int(p[1:]) % 3])
    split, how = divide(t, parse_splits(f'leave out {site}'), 'x')
    assert ((split == 'test') == (t.site == site)).all() and f'the site {site} is the test' in how
    found = t.assign(split=split).groupby('patient').split.agg(['nunique', 'first'])
    counts = found['first'].value_counts().to_dict()
    assert (found['nunique'] == 1).all() and counts == {'train': 34, 'test': 20, 'val': 6}
    save_splits({s: t[split == s] for s in SPLITS}, how, tmp_path)
    assert set(pd.read_csv(tmp_path/'splits.csv').site) == {'Lyon', 'Wien', 'Oslo'}
    other = divide(t, parse_splits(f'leave out {site}, seed 4'), 'x')[0]
    assert ((other == 'test') == (split == 'test')).all() and not other.equals(split)


def test_a_site_that_is_not_known():
    t = people_with(n=60).assign(split='')
    with pytest.raises(ValueError, match='splits: no site is known, so .Lyon. cannot be left out. State it in a manif'):
        divide(t.assign(site=''), parse_splits('leave out Lyon'), 'x')
    with pytest.raises(ValueError, match="splits: no site 'lyon'. Did you mean 'Lyon'"):
        divide(t.assign(site='Lyon'), parse_splits('leave out lyon'), 'x')
    with pytest.raises(ValueError, match='without Lyon no patient is left'):
        divide(t.assign(site='Lyon'), parse_splits('leave out Lyon'), 'x')
