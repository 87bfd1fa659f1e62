"Start-up: the help of the command line beside the import of PyTorch, for which a help text could wait; processor time"
import json
import os

from benchmarks import ROOT, in_process, row


def cpu_seconds(*words: str) -> float:
    "Least processor time of three starts of Python"
    taken = []
    for _ in range(3):
        before = os.times()
        in_process(*words)
        after = os.times()
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(taken)


def first_cell(name: str) -> str:
    "Return the first cell of a notebook, which imports what the others need"
    notebook = json.loads((ROOT/'nbs'/name).read_text('utf-8'))
    return next(''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'code')


def run() -> list[dict]:
    "Rows for the table of benchmarks"
    plain = cpu_seconds('-c', 'import torch')
    help_s = cpu_seconds('-m', 'mirage_nb.runs', '--help')
    first = cpu_seconds('-c', 'import mirage_nb, mirage_nb.runs')
    cell = cpu_seconds('-c', first_cell('30_seg_tune.ipynb'))
    same = 'processor time'
    return [row('mirage-nb --help (plain: import torch)', plain, help_s, same, limit=1.5),
            row('import mirage_nb.runs (plain: import torch)', plain, first, same, limit=1.5),
            row('first cell of 30_seg_tune (plain: import torch)', plain, cell, same, limit=1.5)]
