"""Bootstrap of a classification's metrics by patient, up to 10,000 resamples, against scikit-learn in a loop.

The plain side draws the same patients by the same counts, which scikit-learn takes as weights of the images. It is
timed on part of the resamples, and its time multiplied; outputs are compared on that part. One thread on either side.
"""
import time

import numpy as np
import torch
from sklearn import metrics as sk

from benchmarks import row
from mirage_nb.eval.classification.intervals import image_units
from mirage_nb.eval.classification.metrics import MACRO, compute_metrics, count_table
from mirage_nb.eval.classification.predictions import _example_predictions, check_predictions
from mirage_nb.eval.draws import enough_draws
from mirage_nb.eval.stats import draw_counts, resample

N = 10_000
METRICS = 'AUROC', 'AP', 'F1', 'balanced accuracy', 'MCC'


def ranked(y, p, w):
    "AUROC and AP, means of classes"
    return [f(y, p, sample_weight=w) for f in (sk.roc_auc_score, sk.average_precision_score)]


def plain_single(pred, w):
    "Five metrics of one resample, one label per image"
    true, said = pred.y.argmax(1), pred.p.argmax(1)
    return [*ranked(pred.y, pred.p, w), sk.f1_score(true, said, average='macro', sample_weight=w),
            sk.recall_score(true, said, average='macro', sample_weight=w),
            sk.matthews_corrcoef(true, said, sample_weight=w)]


def plain_several(pred, w):
    "Two metrics of one resample, several labels per image, all known"
    return ranked(pred.y, pred.p, w)


def compare(what, table, plain, sample, aim, n=N):
    "A row of the table, of n resamples on either side; plain is timed on `sample` of them"
    pred = check_predictions(table)
    units = image_units(pred)
    counts = next(draw_counts(units.g, N, 0))[:sample]
    start = time.perf_counter()
    expected = np.array([plain(pred, w[units.of]) for w in counts])
    plain_s = (time.perf_counter() - start)*n/sample
    start = time.perf_counter()
    parts = count_table(pred, units.of)
    draws = resample(lambda c: compute_metrics(parts, c), units.g, n)  # every metric, not only those compared
    ours_s = time.perf_counter() - start
    macro = [*pred.classes, MACRO].index(MACRO)
    got = np.stack([draws[m][:sample, macro if draws[m].shape[1] > 1 else 0] for m in METRICS[:expected.shape[1]]], 1)
    far = f'largest difference {np.abs(got - expected).max():.0e}'
    return row(what, plain_s, ours_s, f'{far}; plain: {sample} of {n:,} draws timed, times {n/sample:g}', aim)


def run():
    "Rows for the table of benchmarks"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    four = _example_predictions(patients=250, classes=list('abcd'))
    many = _example_predictions(patients=1250, classes=[f'finding {i}' for i in range(14)], single=False)
    known = many.fillna({c: 0. for c in many if c.startswith('label:')})
    large = _example_predictions(patients=6000, classes=[f'finding {i}' for i in range(14)], single=False)
    large = large.fillna({c: 0. for c in large if c.startswith('label:')})
    try:
        return [compare(f'bootstrap: AUROC, AP, {len(large)} images, 14 labels, as many draws as needed', large,
                        plain_several, 5, 50., enough_draws(N, 14*len(large))),
                compare(f'bootstrap: 5 metrics, {len(four)} images, 4 classes', four, plain_single, 100, 50.),
                compare(f'bootstrap: AUROC, AP, {len(known)} images, 14 labels', known, plain_several, 40, 50.)]
    finally: torch.set_num_threads(threads)
