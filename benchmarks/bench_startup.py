"Start-up: the help of the command line beside the import of PyTorch, for which a help text could wait; processor time"
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import row


def cpu_seconds(*words: str) -> float:
    "Least processor time of three starts of Python"
    taken = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        after = os.times()
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(taken)


def first_cell(name: str) -> str:
    "Return the first cell of a notebook, which imports what the others need"
    notebook = json.loads((Path(__file__).parents[1]/'nbs'/name).read_text('utf-8'))
    return next(''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'code')


def run() -> list[dict]:
    "Rows for the table of benchmarks"
    plain = cpu_seconds('-c', 'import torch')
    help_s = cpu_seconds('-m', 'mirage_nb.runs', '--help')
    first = cpu_seconds('-c', 'import mirage_nb, mirage_nb.runs')
    cell = cpu_seconds('-c', first_cell('30_seg_tune.ipynb'))
    def told(seconds: float) -> str: return 'below 1.5 s' if seconds < 1.5 else 'OVER 1.5 s'
    return [row('mirage-nb --help, beside import torch', plain, help_s, told(help_s), 2.),
            row('import mirage_nb.runs, beside import torch', plain, first, told(first), 2.),
            row('first cell of 30_seg_tune, beside import torch', plain, cell, told(cell))]
