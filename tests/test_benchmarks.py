"Each benchmark can be started, cheap ones run, and one that fails stops no other"
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import line

ROOT = Path(__file__).resolve().parents[1]
CODE = ('import importlib, sys\n'
        'for name in sys.argv[1:]: assert callable(importlib.import_module(f"benchmarks.{name}").run), name')


def started(root: Path, *names: str) -> subprocess.CompletedProcess:
    "Start benchmarks as `make bench` does"
    paths = os.pathsep.join([str(root), str(ROOT)])
    return subprocess.run([sys.executable, '-m', 'benchmarks', *names], cwd=root, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': paths})


@pytest.mark.slow
def test_benchmarks_are_imported():
    "In a process of its own, for they change the environment of PyTorch"
    names = [p.stem for p in sorted((ROOT/'benchmarks').glob('bench_*.py'))]
    words = [sys.executable, '-W', 'ignore', '-c', CODE, *names]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert names and not done.returncode, done.stderr[-2000:]


@pytest.mark.slow
def test_cheap_benchmarks_run():
    "Their rows have both sides, and a ratio"
    done = started(ROOT, 'pictures')
    assert not done.returncode, done.stderr[-2000:]
    rows = done.stdout.splitlines()[2:]
    assert len(rows) == 2 and all('mean difference' in r and float(r[66:].split('x')[0].split()[-1]) > 0 for r in rows)


@pytest.mark.slow
def test_a_failing_benchmark_stops_no_other(tmp_path):
    "Its message, and that of its child, stand at the end; the exit code is 1"
    home = tmp_path/'benchmarks'
    home.mkdir()
    for name in ('__init__.py', '__main__.py'): shutil.copy(ROOT/'benchmarks'/name, home/name)
    first = "from benchmarks import in_process, row\ndef run():\n    yield row('before', 2., 1., 'same')\n"
    (home/'bench_bad.py').write_text(first + "    in_process('-c', 'raise SystemExit(\"no such card\")')\n")
    (home/'bench_dead.py').write_text("import os, signal\ndef run(): os.kill(os.getpid(), signal.SIGKILL)\n")
    (home/'bench_good.py').write_text(first)
    (home/'bench_none.py').write_text('def run(): return []\n')
    done = started(tmp_path)
    assert done.returncode == 1, done.stderr
    rows = done.stdout.splitlines()[2:]
    assert [r.split()[0] for r in rows] == ['before', 'before', 'none:'] and '2.0x' in rows[0]
    told = done.stderr
    assert 'no such card' in told.split('bad FAILED')[1] and 'SIGKILL: often lack of memory' in told
    assert told.splitlines()[-1] == '2 of 4 benchmarks failed: bad, dead'
    assert started(tmp_path, 'good').returncode == 0 and "'fast'" in started(tmp_path, 'fast').stderr


def test_rows_say_whether_an_aim_is_met():
    "A ratio has an aim, one side alone a limit"
    kept = {'what': 'x', 'plain': 4., 'ours': 2., 'ratio': 2., 'aim': 2.5, 'limit': None, 'same': '', 'unit': 's'}
    assert '2.0x   2.5x MISSED' in line(kept) and '1.9x met' in line({**kept, 'aim': 1.9})
    alone = {**kept, 'plain': None, 'ratio': None, 'aim': None, 'limit': 24., 'unit': 'GB'}
    assert line(alone).split() == ['x', '-', '2.0000GB', '-', '<24GB', 'met']
