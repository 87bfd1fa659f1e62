"Each benchmark can be started: what it measures is still there"
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = ('import importlib, sys\n'
        'for name in sys.argv[1:]: assert callable(importlib.import_module(f"benchmarks.{name}").run), name')


@pytest.mark.slow
def test_benchmarks_are_imported():
    "In a process of its own, for they change the environment of PyTorch"
    names = [p.stem for p in sorted((ROOT/'benchmarks').glob('bench_*.py'))]
    words = [sys.executable, '-W', 'ignore', '-c', CODE, *names]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert names and not done.returncode, done.stderr[-2000:]
