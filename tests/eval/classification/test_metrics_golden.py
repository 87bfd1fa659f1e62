"Metrics of classification equal the recorded ones; tables, sizes and names are read from the folder"
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mirage_nb.eval.classification.intervals import with_intervals
from mirage_nb.eval.classification.metrics import MACRO, WEIGHTED, compute_metrics, count_table
from mirage_nb.eval.classification.predictions import check_predictions

folder = Path(os.environ.get('MIRAGE_GOLDEN') or Path(__file__).parents[2]/'golden')/'segmentation_eval'
expected = json.loads((folder/'classification_expected.json').read_text())
ONE = {  # the published means weigh classes by prevalence, those of the second system alike
    'bacc': ('balanced accuracy', 'all'), 'auroc': ('AUROC', WEIGHTED), 'ap': ('AP', WEIGHTED), 'f1': ('F1', WEIGHTED),
    'mcc': ('MCC', 'all')}
OTHER = {'accuracy': ('accuracy', 'all'), 'hamming': ('Hamming loss', 'all'), 'jaccard': ('Jaccard index', MACRO),
         'kappa': ("Cohen's kappa", 'all'), 'auroc': ('AUROC', MACRO), 'aupr': ('PR area', MACRO)}


def columns(table, letter): return [c for c in table if c[0] == letter and c[1:].isdigit()]


def recorded(name):
    "A recorded table in the form of the contract"
    t = pd.read_csv(folder/f'classification_{name}.csv')
    head = pd.DataFrame({'id': [f'i{i}' for i in range(len(t))], 'patient': ''})
    if 'label' in t:
        scores = t[columns(t, 'p')].rename(columns=lambda c: f'score:{c[1:]}')
        return pd.concat([head.assign(label=t.label.astype(int)), scores], axis=1)
    truth = t[columns(t, 'y')].rename(columns=lambda c: f'label:{c[1:]}')
    return pd.concat([head, truth, t[columns(t, 's')].rename(columns=lambda c: f'score:{c[1:]}')], axis=1)


def scores(name):
    parts = count_table(check_predictions(recorded(name)))
    return with_intervals(compute_metrics(parts), None, parts.classes).set_index(['metric', 'Class'])['mean']


def test_golden_tables_are_there():
    assert {p.stem.removeprefix('classification_') for p in folder.glob('classification_*.csv')} == set(expected)


@pytest.mark.parametrize('name', [k for k, v in expected.items() if 'bacc' in v])
def test_golden_one_label(name):
    ours, theirs = scores(name), expected[name]
    assert set(theirs) == {*ONE, 'macro'} and set(theirs['macro']) == set(OTHER)
    for known, names in ((theirs, ONE), (theirs['macro'], OTHER)):
        assert {k: ours[v] for k, v in names.items()} == pytest.approx({k: known[k] for k in names}, abs=1e-9)


@pytest.mark.parametrize('name', [k for k, v in expected.items() if 'auroc_per_class' in v])
def test_golden_several_labels(name):
    ours, theirs = scores(name)['AUROC'], expected[name]
    recorded = np.array(theirs['auroc_per_class'], float)  # null: undefined, not 0 (defects.md 9)
    np.testing.assert_allclose(ours.drop([MACRO, WEIGHTED]), recorded, atol=1e-9)
    assert np.isnan(recorded).any() and ours[MACRO] == pytest.approx(theirs['mean_auroc_over_defined'], abs=1e-9)
