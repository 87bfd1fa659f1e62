"""Overhead of a sweep: 200 cells of a pipeline that does nothing, beside the same processes one after the other.

    python -m benchmarks.bench_sweep            # 200 cells of 0.1 s, 4 at once
    python -m benchmarks.bench_sweep 50
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from benchmarks import row
from mirage_nb.storage import write_json
from mirage_nb.sweeps import processes
from mirage_nb.sweeps.cells import Cell
from mirage_nb.sweeps.page import Page
from mirage_nb.sweeps.running import run_cells
from mirage_nb.sweeps.tables import SweepProgress

JOBS, SECONDS = 4, .1
STUB = '''
import json, os, sys, time
desk = sys.argv[1]
seed = json.load(open(desk + "/cell.json"))["values"]["seed"]
folder = os.path.join(os.path.dirname(os.path.dirname(desk)), "stub", "A", str(seed))
os.makedirs(folder)
time.sleep(%s)
json.dump({"settings": {"seed": seed}, "identity": str(seed)}, open(folder + "/run.json", "w"))
json.dump({"means": {"Dice": seed}}, open(folder + "/result.json", "w"))
json.dump({"folder": folder, "error": ""}, open(desk + "/outcome.json", "w"))
'''


def notebook(folder: Path) -> str:
    "Write a notebook that has parameters and nothing else"
    cell = {'cell_type': 'code', 'metadata': {'tags': ['parameters']}, 'source': 'seed = 0 # number'}
    write_json(folder/'30_stub.ipynb', {'cells': [cell], 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5})
    return str(folder/'30_stub.ipynb')


def run(n: int = 200) -> list[dict[str, object]]:
    "Time n cells with their page, and the bare processes"
    with tempfile.TemporaryDirectory() as tmp, patch.dict(os.environ, MIRAGE_RUNS=f'{tmp}/runs'):
        root, words = Path(tmp), [sys.executable, '-S', '-c', STUB % SECONDS]
        cells = [Cell(notebook(root), {'seed': i}) for i in range(n)]
        for i in range(8): write_json(root/'bare'/'.cells'/str(i)/'cell.json', {'values': {'seed': i}})
        start = time.perf_counter()
        for i in range(8): subprocess.run([*words, str(root/'bare'/'.cells'/str(i))], check=True)
        plain = (time.perf_counter() - start)/8
        page = Page(root/'sweep', SweepProgress('bench', JOBS))
        start, used = time.perf_counter(), time.process_time()
        with patch.object(processes, 'cell_command', lambda desk: [*words, str(desk)]):
            states = run_cells(cells, JOBS, page)
        ours, used = (time.perf_counter() - start)/n*JOBS, (time.process_time() - used)/n
        same = [json.loads((s.folder/'result.json').read_text())['means']['Dice'] for s in states if s.folder]
    done = same == [*range(n)] and {s.state for s in states} == {'finished'}
    told = f'{"all finished" if done else "NOT all finished"}, {used:.4f} s of computing for each'
    return [row(f'{n} cells of a stub, {JOBS} at once: seconds of a place for a cell', plain, ours, told)]


if __name__ == '__main__':
    for r in run(int(sys.argv[1]) if len(sys.argv) > 1 else 200):
        print(f"{r['what']}: {r['ours']:.3f} s, bare process {r['plain']:.3f} s: overhead "
              f"{r['ours'] - r['plain']:.3f} s; {r['same']}")
