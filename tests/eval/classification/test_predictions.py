"Tables of predictions: checked, grouped, merged, saved"
import warnings

import numpy as np
import pandas as pd
import pytest

from mirage_nb.eval.classification.predictions import (
    _example_predictions,
    check_predictions,
    map_classes,
    pool_predictions,
    read_predictions,
    to_scores,
)

# ------------------------------------------------------------------ tables that are not as they should be


def cell(row, column, value): return lambda t: t.astype({column: object}).assign(
    **{column: [value if i == row else v for i, v in enumerate(t[column])]})


BAD = {  # what is wrong: how, what is said
    'no rows': (lambda t: t[:0], 'has no rows; one row per image is needed'),
    'no patient': (lambda t: t.drop(columns='patient'), 'lacks the column patient; it has id, eye, split, label'),
    'patient misspelt': (lambda t: t.rename(columns={'patient': 'pateint'}), "score:DME, logit:NORMAL, logit:AMD, "
                                                                    "logit:DME. Did you mean 'pateint'? `patient`"),
    'no label, no id': (lambda t: t.drop(columns=['id', 'label']), 'lacks the columns id, label (or label:CLASS'),
    'no scores': (lambda t: t[['id', 'patient', 'label']], 'lacks the column score:CLASS, one per class'),
    'one score': (lambda t: t[['id', 'patient', 'label', 'score:AMD']], 'has a score for AMD only'),
    'duplicate id': (cell(3, 'id', 'test000L_0'), "id 'test000L_0': this id occurs 2 times; an image is scored once"),
    'empty id': (cell(3, 'id', None), 'row 4: id is empty'),
    'label unknown': (cell(3, 'label', 'AMDD'), "no class 'AMDD'. Did you mean 'AMD'? Known: NORMAL, AMD, DME"),
    'label empty': (cell(3, 'label', None), 'label is empty; leave the row out, or use label:CLASS'),
    'NaN score': (cell(3, 'score:AMD', np.nan), 'score:AMD is nan, which is not a number; the model'),
    'inf score': (cell(3, 'score:AMD', np.inf), 'score:AMD is inf, which is not a number'),
    'text score': (cell(3, 'score:AMD', 'high'), 'score:AMD is high, which is not a number'),
    'score of 2': (cell(3, 'score:AMD', 2.), 'score:AMD is 2; a score is a probability in [0, 1]'),
    'negative score': (cell(3, 'score:AMD', -.1), 'score:AMD is -0.1; a score is a probability'),
    'sum': (cell(3, 'score:AMD', 0.), 'with one label per image they sum to 1 (softmax)'),
    'NaN logit': (cell(3, 'logit:AMD', np.nan), 'or leave the logit columns out'),
    'logit of something else': (cell(3, 'logit:AMD', 20.), 'but the logits give'),
    'one class': (lambda t: t[t.label == 'AMD'], 'is AMD; nothing can be distinguished'),
    'two forms': (lambda t: t.assign(**{'label:AMD': 1}), 'has `label` and label:AMD'),
    'logit of other classes': (lambda t: t.drop(columns='logit:AMD'), 'logit: stands for NORMAL, DME, score: for')}


@pytest.mark.parametrize('what', BAD)
def test_bad_table_is_refused(what, tmp_path):
    "The message names the file and the row, and says what would be right"
    change, said = BAD[what]
    file = tmp_path/'p.csv'
    change(_example_predictions()).to_csv(file, index=False)
    with pytest.raises(ValueError) as e: read_predictions(file)
    assert str(file) in str(e.value) and said in str(e.value), e.value
    if what in ('label unknown', 'NaN score', 'text score', 'score of 2', 'sum', 'logit of something else'):
        assert f"id '{_example_predictions().id[3]}'" in str(e.value)


def test_a_misspelt_column_that_may_be_left_out_is_warned_of():
    "Rows of all splits would be scored together"
    t = _example_predictions()
    with pytest.warns(UserWarning, match="no column split, which may be left out. Did you mean 'spilt'"):
        check_predictions(t.rename(columns={'split': 'spilt'}))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_predictions(t.drop(columns='split').assign(site='A', age=70))


def test_image_in_two_splits_and_files_that_are_no_tables(tmp_path):
    t = _example_predictions()
    with pytest.raises(ValueError, match="this id occurs in the splits test and val"):
        check_predictions(pd.concat([t, t[:1].assign(split='val')]))
    (tmp_path/'empty.csv').touch()
    (tmp_path/'image.csv').write_bytes(bytes(range(256))*20)
    for name in ('empty.csv', 'image.csv'):
        with pytest.raises(ValueError, match=f'{name}.*'): read_predictions(tmp_path/name)
    with pytest.raises(FileNotFoundError, match='no table of predictions'): read_predictions(tmp_path/'none.csv')
    with pytest.raises(ValueError, match="no split 'tset'. Did you mean 'test'"):
        t.to_csv(tmp_path/'t.csv', index=False)
        read_predictions(tmp_path/'t.csv', 'tset')


def test_names_survive_the_file(tmp_path):
    "A class called NA, ids that look like numbers, patients with leading zeros"
    t = _example_predictions(classes=['NA', 'None', '01'])
    t['patient'] = t.patient.str[-3:]
    t.to_csv(tmp_path/'t.csv', index=False)
    pred = read_predictions(tmp_path/'t.csv')
    assert pred.classes == ('NA', 'None', '01') and '007' in set(pred.table.patient)
    np.testing.assert_allclose(pred.p, check_predictions(t).p)


def test_library_policies_hold_under_this_pandas():  # defects.md 12
    "An uncertain -1 is refused, a missing label is left out, and the caller's table is not changed"
    t = _example_predictions(single=False)
    before = t.copy()
    pred = check_predictions(t)
    pd.testing.assert_frame_equal(t, before)
    assert np.isnan(pred.y).sum() == t[['label:NORMAL', 'label:AMD', 'label:DME']].isna().sum().sum() > 0
    with pytest.raises(ValueError, match='an uncertain -1 needs a policy first'):
        check_predictions(t.assign(**{'label:AMD': t['label:AMD'].fillna(-1)}))


def test_groups():
    t = _example_predictions()
    pred = check_predictions(t)
    patients, _ = pool_predictions(pred, 'patient')
    expected = t.groupby('patient', sort=False)['score:AMD'].mean()
    np.testing.assert_allclose(patients.p[:, 1], expected, atol=1e-6)
    assert list(patients.table.id) == list(expected.index)
    with pytest.raises(ValueError, match="no level 'slice'"): pool_predictions(pred, 'slice')
    several = check_predictions(_example_predictions(single=False))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        eyes, _ = pool_predictions(several, 'eye')
    first = several.table.patient.eq('test000') & several.table.eye.eq('L')
    assert np.array_equal(eyes.y[0], np.fmax.reduce(several.y[first]), equal_nan=True)


def test_merged_classes_are_a_softmax_over_fewer():
    t = _example_predictions()
    ill = check_predictions(map_classes(t, {'AMD': 'ill', 'DME': 'ill'}))
    z = t[['logit:NORMAL', 'logit:AMD', 'logit:DME']].to_numpy()
    merged = np.stack([z[:, 0], np.logaddexp(z[:, 1], z[:, 2])], 1)
    np.testing.assert_allclose(ill.p, to_scores(merged, True), atol=1e-5)
    here = t.assign(label=t.label.replace({'AMD': 'ill', 'DME': 'ill'}))  # labels of a coarser set, scores of a finer
    np.testing.assert_allclose(check_predictions(map_classes(here, {'AMD': 'ill', 'DME': 'ill'})).p, ill.p)
