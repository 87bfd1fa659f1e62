"""How often the tests of `eval.comparing` call equal models different, on simulated test sets: 5 in 100 is right.

    python -m benchmarks.levels              # writes the table into docs/comparing.md: about six minutes of one core
    python -m benchmarks.levels --tables 100 # fewer simulated test sets, shown and not written
"""
import argparse
import re
from pathlib import Path

import numpy as np
import pandas as pd

from mirage_nb.eval.comparing.accuracy import compare_accuracy
from mirage_nb.eval.comparing.auroc import compare_auroc
from mirage_nb.eval.comparing.bootstrap import compare_means

PAGE = Path(__file__).parents[1]/'docs/comparing.md'
PATIENTS, TABLES = (10, 30, 100, 300), 2000


def equal_models(rng, g):
    "Patients with one to four images; what a model gets wrong, it gets wrong in most images of a patient"
    patient = np.repeat(np.arange(g), rng.integers(1, 5, g))
    m, sick = len(patient), rng.random(g) < .4
    y = np.where(rng.random(m) < .85, sick[patient], ~sick[patient]).astype(float)
    hard = rng.normal(0, .7, g)[patient]
    scores = [1.2*y + hard + rng.normal(0, .6, g)[patient] + rng.normal(0, .6, m) for _ in range(2)]
    return patient, y, scores


def p_values(rng, g, n=400):
    "p-values of one simulated test set: by patient, and as if images were independent"
    patient, y, scores = equal_models(rng, g)
    right = [(s > .6) == (y > 0) for s in scores]
    error = [np.exp(-(s - y)**2) for s in scores]
    return {'AUROC (Obuchowski)': compare_auroc(y, *scores, patient)[0].p,
            'AUROC by image (DeLong)': compare_auroc(y, *scores)[0].p,
            'accuracy (Durkalski)': compare_accuracy(*right, patient).p,
            'accuracy by image (McNemar)': compare_accuracy(*right).p,
            'a mean (bootstrap)': compare_means(*error, patient, n=n).p,
            'a mean by image (bootstrap)': compare_means(*error, n=n).p}


def rates(g, tables):
    "Share of simulated test sets in which each test says p < 0.05"
    found = [p_values(np.random.default_rng((g, i)), g) for i in range(tables)]
    return {k: float(np.mean([f[k] < .05 for f in found])) for k in found[0]}


def main():
    ask = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ask.add_argument('--tables', type=int, default=TABLES, help='simulated test sets for each number of patients')
    tables = ask.parse_args().tables
    table = pd.DataFrame({f'{g} patients': rates(g, tables) for g in PATIENTS})
    lines = ['| test | ' + ' | '.join(table.columns) + ' |', '|---'*(len(table.columns) + 1) + '|']
    lines += [f'| {row[0]} | ' + ' | '.join(f'{100*v:.1f} %' for v in row[1:]) + ' |' for row in table.itertuples()]
    print('\n'.join(lines))
    if tables != TABLES: return
    text = PAGE.read_text(encoding='utf-8')
    text = re.sub(r'^\| test \|.*?(?=\n\n)', lambda _: '\n'.join(lines), text, flags=re.S | re.M)
    PAGE.write_text(text, encoding='utf-8')


if __name__ == '__main__': main()
