"Intervals by patient cover the truth, and comparisons are paired"
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mirage_nb.eval.classification.intervals import bootstrap, image_units
from mirage_nb.eval.classification.metrics import ALL, compute_metrics, count_table
from mirage_nb.eval.classification.paired import compare
from mirage_nb.eval.classification.predictions import _example_predictions, check_predictions, to_scores
from mirage_nb.eval.classification.report import evaluate_table
from mirage_nb.eval.stats import resample

# ------------------------------------------------------------------ intervals


@pytest.mark.slow
def test_interval_by_patient_covers_the_true_auroc():
    "In about 95 of 100 experiments; by image it does not, with four alike images per patient"
    held, narrow = 0, 0
    true = 0.814  # of two normal distributions 1.2649 apart, sqrt(1.6): normal cdf of 1.2649/sqrt(2)
    for i in range(120):
        g = np.random.default_rng(i)
        y = np.repeat(g.integers(0, 2, 60), 4)
        y[:8] = [0]*4 + [1]*4
        z = 1.2649*y + np.repeat(g.normal(size=60), 4)*np.sqrt(.9) + g.normal(size=240)*np.sqrt(.1)
        p = to_scores(np.stack([0*z, z], 1), True)
        table = pd.DataFrame({'id': [f'{i}' for i in range(240)], 'patient': np.repeat(np.arange(60), 4).astype(str),
                              'label': np.array(['a', 'b'])[y], 'score:a': p[:, 0], 'score:b': p[:, 1]})
        for by_image in (False, True):
            pred = check_predictions(table.assign(patient='') if by_image else table)
            units = image_units(pred)
            parts = count_table(pred, units.of)
            def auroc(c, parts=parts): return {'x': compute_metrics(parts, c)['AUROC']}
            draws = resample(auroc, units.g, 300, i)['x'][:, 1]
            low, high = np.nanquantile(draws, [.025, .975])
            if by_image: narrow += low <= true <= high
            else: held += low <= true <= high
    assert .89 <= held/120 <= .99 and narrow/120 < .8


def test_bootstrap_is_fast():
    "10,000 resamples of every metric, 1000 images of four classes, by patient"
    pred = check_predictions(_example_predictions(patients=250, classes=list('abcd')))
    start = time.perf_counter()
    rows = bootstrap(pred)
    assert time.perf_counter() - start < 20 and rows.n.eq(250).all() and rows.unit.eq('by patient').all()


def test_units_say_what_they_are():
    table = _example_predictions()
    some = table.patient.where(table.index > 4, '')
    for patient, words, g in ((table.patient, 'by patient', 60),
                              ('', 'by image (patients not known: too narrow if a', None),
                              ('P1', 'by image (one patient only: too narrow)', None),
                              (some, 'by patient (5 images without one, each as a patient)', None)):
        units = image_units(check_predictions(table.assign(patient=patient)))
        assert units.label.startswith(words) and units.g == (g or units.g)
    assert 'too narrow' in evaluate_table(table.assign(patient=''), n=100).unit


def test_few_patients_are_said():
    table = _example_predictions()
    two = table[(table.label != 'AMD') | table.patient.isin(table.patient[table.label == 'AMD'].unique()[:2])]
    notes = bootstrap(check_predictions(two), n=300).set_index(['metric', 'Class']).note
    assert notes['AUROC', 'AMD'].startswith('only 2 positive patients: the interval is a poor guide; ')
    assert '% of the resamples lack it' in notes['AUROC', 'AMD'] and notes['AUROC', 'DME'] == ''
    pair = pd.concat([table[:1], table[table.label != table.label[0]][:1]]).assign(patient='')
    notes = bootstrap(check_predictions(pair), n=100).set_index(['metric', 'Class']).note
    assert notes['accuracy', ALL] == 'only 2 images: the interval is a poor guide'


@pytest.mark.slow
def test_equal_models_seldom_differ():
    "Two models of the same skill: p below 0.05 about once in 20 experiments"
    below = 0
    for i in range(60):
        a, b = (check_predictions(_example_predictions(i, patients=40)) for _ in range(2))
        g = np.random.default_rng(1000 + i)
        a, b = (replace(p, p=to_scores(p.z + g.normal(size=p.z.shape)*2, True)) for p in (a, b))
        below += compare(a, b, ['AUROC'], n=300, seed=i).p[0] < .05
    assert below <= 8


def test_second_table_is_paired_by_id():
    "Rows in another order are the same table; another truth, image or class is an error"
    t = _example_predictions()
    a, b = check_predictions(t), check_predictions(t.sample(frac=1, random_state=0))
    assert compare(a, b, ['AUROC', 'MCC'], n=100).difference.abs().max() < 1e-12
    for other, said in ((t[1:], "the second table lacks 1 images, as 'test000L_0'"),
                        (t.assign(label=t.label.to_numpy()[::-1]), 'is not the same in the two tables'),
                        (t.rename(columns=lambda c: c.replace('AMD', 'CNV')).replace({'label': {'AMD': 'CNV'}}),
                         'the second NORMAL, CNV, DME')):
        with pytest.raises(ValueError) as e: compare(a, check_predictions(other), n=100)
        assert said in str(e.value)
