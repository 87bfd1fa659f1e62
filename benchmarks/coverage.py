"""Coverage of the kit's 95 % intervals, measured on simulated test sets of which the true value is known.

    python -m benchmarks.coverage              # writes the tables into docs/intervals.md: about ten minutes of one core
    python -m benchmarks.coverage --tables 50  # fewer simulated test sets, shown and not written

A finished setting is kept in a temporary folder, so that a second call goes on where the first was stopped.
"""
import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from mirage_nb.eval.classification.calibration import Calibration
from mirage_nb.eval.classification.intervals import sample
from mirage_nb.eval.classification.metrics import CLS_METRICS, compute_metrics, count_table
from mirage_nb.eval.classification.predictions import Predictions, to_scores
from mirage_nb.eval.classification.support import count_support
from mirage_nb.eval.intervals import PLAIN, IntervalRule
from mirage_nb.eval.segmentation.summary import paired_differences, summarise
from mirage_nb.eval.stats import mean_draws, percentile_interval

PAGE = Path(__file__).parents[1]/'docs/intervals.md'
LEVEL, RESAMPLES, TRUTH = .95, 400, 60_000  # TRUTH: patients that the true values are computed from
SETTINGS = {  # prevalences, distance of the classes, columns that are shown
    'two classes, half of the patients ill, AUROC 0.87': ((.5, .5), 1.13, 1),
    'two classes, a tenth of the patients ill, AUROC 0.87': ((.9, .1), 1.13, 1),
    'two classes, half of the patients ill, AUROC 0.99': ((.5, .5), 2.33, 1),
    'four classes (50, 30, 15, 5 %), mean of the classes': ((.5, .3, .15, .05), 1.5, 4)}
HIDDEN = 'PR area', 'Jaccard index', 'Hamming loss'  # as AP, F1, accuracy
LOSSES = {'NLL': IntervalRule(0, np.inf, 'all'), 'Brier score': IntervalRule(0, np.inf, 'all')}
ECE = 'ECE, 15 bins of equal width'
DIFFERENCES = 'AUROC', 'balanced accuracy', 'MCC'


# ------------------------------------------------------------------ simulated classifications

def simulate(patients, shares, distance, seed, models=1):
    "Test sets of one to eight images a patient, whose labels and scores resemble each other"
    g, k = np.random.default_rng(seed), len(shares)
    unit = np.repeat(np.arange(patients), np.minimum(1 + g.poisson(2, patients), 8))
    own, other = (g.choice(k, p=shares, size=n) for n in (patients, len(unit)))
    y = np.eye(k)[np.where(g.random(len(unit)) < .85, own[unit], other)]
    hard = g.normal(size=(patients, k))[unit]*np.sqrt(.5)
    out = []
    for i in range(models):  # the second model is a little worse, and finds the same patients hard
        x = distance*(1 - .1*i)*y + hard + g.normal(size=y.shape)*np.sqrt(.5)
        z = 1.3*distance*x + np.log(shares)  # overconfident by 1.3
        out.append(Predictions(pd.DataFrame(index=unit), tuple('abcdefgh'[:k]), True, y, to_scores(z, True), z))
    return out, unit


def counted(pred, unit):
    "All numbers of a table for any counts, and the patients that they rest on"
    parts, calibration = count_table(pred, unit), Calibration(pred, unit)
    return lambda counts: {**compute_metrics(parts, counts), **calibration(counts)}, count_support(parts.cells)


def difference(preds, unit):
    "Differences of the metrics of two models for any counts"
    parts = [count_table(p, unit) for p in preds]
    def f(counts):
        a, b = (compute_metrics(p, counts) for p in parts)
        return {k: a[k] - b[k] for k in DIFFERENCES}
    return f, count_support(parts[0].cells)


def true_values(shares, distance, models=1):
    preds, unit = simulate(TRUTH, shares, distance, 10**6, models)
    f = (counted(preds[0], unit*0) if models == 1 else difference(preds, unit*0))[0]
    return {k: v[0] for k, v in f(np.ones((1, 1))).items()}


def classification_rows(patients, shares, distance, column, seed, models=1):
    "Intervals of one simulated test set: name -> (low, high, percentile low, percentile high)"
    preds, unit = simulate(patients, shares, distance, [seed, patients, len(shares)], models)
    f, support = counted(preds[0], unit) if models == 1 else difference(preds, unit)
    point, sampled, rows = f(np.ones((1, patients))), sample(f, support, RESAMPLES, seed), {}
    rules = {k.format(at='90'): m.rule for k, m in CLS_METRICS.items()} | LOSSES
    for name, (value,) in point.items():
        at = column if len(value) > 1 else 0
        rule = None if name.startswith('ECE') else PLAIN if models > 1 else rules[name]
        old = percentile_interval(sampled.draws[name][:, [at]], LEVEL)[:, 0] if not np.isnan(value[at]) else (np.nan,)*2
        rows[name] = (*sampled.bounds(name, value, rule, LEVEL)[:, at], *old)
    if models == 1:  # with one label per image, balanced accuracy has the interval of the mean sensitivity
        recall = sampled.bounds('sensitivity', point['sensitivity'][0], rules['sensitivity'], LEVEL)[:, -2]
        rows['balanced accuracy'] = (*recall, *rows['balanced accuracy'][2:])
    return rows


# ------------------------------------------------------------------ simulated segmentations

def volumes(patients, seed):
    "Scores of two models: a layer, and a lesion that three patients of ten have and that is missed in 15 of 100"
    g = np.random.default_rng(seed)
    unit = np.repeat(np.arange(patients), g.integers(1, 3, patients))
    def spread(): return g.normal(size=patients)[unit]*np.sqrt(.7) + g.normal(size=len(unit))*np.sqrt(.3)
    hard, has = spread(), (g.random(patients) < .3)[unit]
    models = []
    for i in range(2):
        u, v, missed = .8*hard + .6*spread(), spread(), g.random(len(unit)) < .15
        layer = 1/(1 + np.exp(-(2.6 - .1*i + .7*u))), np.exp(1.2 - .6*u)
        lesion = np.where(missed, 0, 1/(1 + np.exp(-(.5 + v)))), np.where(missed, 200., np.exp(2 - .5*v))
        head = dict(ID=[f'V{j}' for j in range(len(unit))], slices=1, undefined=0, convention='strict')
        models.append(pd.concat([pd.DataFrame(dict(
            head, Class=name, group=name, Dice=np.where(at, dice, np.nan), HD95=np.where(at, hd, np.nan), present=at))
            for name, at, (dice, hd) in (('layer', has | True, layer), ('lesion', has, lesion))]))
    return models, {f'V{j}': str(p) for j, p in enumerate(unit)}, unit


def segmentation_truth():
    (a, b), _, _ = volumes(TRUTH*2, 10**6)
    means = {(c, m): a.loc[a.Class == c, m].mean() for c in ('layer', 'lesion') for m in ('Dice', 'HD95')}
    gap = means['layer', 'Dice'] - b.loc[b.Class == 'layer', 'Dice'].mean()
    return {f'{m} of the {c}': v for (c, m), v in means.items()} | {'difference of Dice, layer': gap}


def segmentation_rows(patients, seed):
    (a, b), who, unit = volumes(patients, [seed, patients])
    found = summarise(a, ['Dice', 'HD95'], who, n=RESAMPLES, seed=seed).set_index(['metric', 'Class'])
    gaps = paired_differences((a, b), 'Dice', who, n=RESAMPLES, seed=seed).set_index('Class')
    def old(values):
        return tuple(percentile_interval(mean_draws(values[:, None], unit, RESAMPLES, seed), LEVEL)[:, 0])
    def values(t, c, m): return t.loc[t.Class == c, m].to_numpy(float)
    rows = {f'{m} of the {c}': (*found.loc[(m, c), ['low', 'high']].astype(float), *old(values(a, c, m)))
            for m in ('Dice', 'HD95') for c in ('layer', 'lesion')}
    name = next(k for k in gaps.index if k in ('mean of layers', 'mean'))
    rows['difference of Dice, layer'] = (*gaps.loc[name, ['low', 'high']].astype(float),
                                         *old(values(a, 'layer', 'Dice') - values(b, 'layer', 'Dice')))
    return rows


# ------------------------------------------------------------------ coverage

def coverage(rows, truth):
    "Share of the intervals that hold the true value, kit and percentiles, mean width, share of tables without interval"
    out = {}
    for name in rows[0]:
        x, true = np.array([r[name] for r in rows], float), float(truth[name])
        some, old = ~np.isnan(x[:, 0]), ~np.isnan(x[:, 2])
        low, high = x[some, 0] - 1e-9, x[some, 1] + 1e-9
        out[name] = dict(true=true, covers=float(((low <= true) & (true <= high)).mean()) if some.any() else None,
                         percentiles=float(((x[old, 2] <= true) & (true <= x[old, 3])).mean()) if old.any() else None,
                         width=float((high - low).mean()) if some.any() else None, without=float(1 - some.mean()))
    return out


def measure(setting, patients, tables):
    "Coverage of every number of a setting"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of classes that a small test set lacks
        if setting == 'segmentation':
            return coverage([segmentation_rows(patients, i) for i in range(tables)], segmentation_truth())
        models = 2 if setting.startswith('difference') else 1
        shares, distance, column = SETTINGS[setting.partition(': ')[2] or setting]
        truth = {k: v[column if len(v) > 1 else 0] for k, v in true_values(shares, distance, models).items()}
        rows = [classification_rows(patients, shares, distance, column, i, models) for i in range(tables)]
    return coverage(rows, truth)


def plan(tables):
    "What is simulated: setting, patients, test sets"
    few = max(tables*3//5, 1)
    first = next(iter(SETTINGS))
    for setting in (*SETTINGS, f'difference of two models: {first}'):
        for patients in (10, 30, 100, 300): yield setting, patients, few if patients == 300 else tables
    for patients in (5, 10, 30, 100, 300): yield 'segmentation', patients, few if patients == 300 else tables


def run(tables, folder):
    "Measure what is missing in the folder, with progress"
    found, steps, start = {}, list(plan(tables)), time.perf_counter()
    for i, (setting, patients, n) in enumerate(steps):
        path = folder/f'{"".join(c for c in setting if c.isalnum())}_{patients}_{n}.json'
        print(f'{i}/{len(steps)} {time.perf_counter() - start:5.0f} s  {setting}, {patients} patients', file=sys.stderr)
        if not path.exists(): path.write_text(json.dumps(measure(setting, patients, n)))
        found.setdefault(setting, {})[patients] = json.loads(path.read_text())
    return found


def cell(r):
    if r['covers'] is None: return f"none ({100*r['percentiles']:.0f})" if r['percentiles'] is not None else 'none'
    rare = f", none {100*r['without']:.0f} %" if r['without'] >= .005 else ''
    return f"**{100*r['covers']:.0f}** ({100*r['percentiles']:.0f}) {r['width']:.2g}{rare}"


def page_tables(found):
    "The tables of the page as Markdown"
    lines = []
    for setting, by in found.items():
        names = [k for k in next(iter(by.values())) if k not in HIDDEN and (not k.startswith('ECE') or k == ECE)]
        lines += ['', f'**{setting[0].upper()}{setting[1:]}**', '', f"| metric | true | {' | '.join(map(str, by))} |",
                  '|---'*(len(by) + 2) + '|']
        for k in names:
            lines.append(f"| {k} | {by[min(by)][k]['true']:.3g} | {' | '.join(cell(r[k]) for r in by.values())} |")
    return '\n'.join(lines[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tables', type=int, default=500, help='simulated test sets of each setting')
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir())/'coverage')
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    text = page_tables(run(args.tables, args.folder))
    if args.tables < 500: return print(text)
    before, mark, rest = PAGE.read_text().partition('<!-- tables: python -m benchmarks.coverage -->\n')
    PAGE.write_text(f'{before}{mark}\n{text}\n\n<!-- end -->{rest.partition("<!-- end -->")[2]}')
    print(f'written: {PAGE.name}')


if __name__ == '__main__': main()
