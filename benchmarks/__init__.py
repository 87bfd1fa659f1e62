"Speed, each time beside a straightforward version measured in the same run"
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Failed(Exception):
    "A process that a benchmark started, with what it wrote on stderr"


def alternate(
    *versions: Callable[[], object],  # that do the same work
    rounds: int = 9
) -> list[float]:                     # median seconds of each
    "Time versions of a job in turn, so that a slow moment of the machine meets all of them"
    for f in versions: f()
    seconds: list[list[float]] = [[] for _ in versions]
    for _ in range(rounds):
        for f, taken in zip(versions, seconds, strict=True):
            start = time.perf_counter()
            f()
            taken.append(time.perf_counter() - start)
    return [statistics.median(s) for s in seconds]


def ending(
    code: int,   # return code of a process, not 0
    stderr: str
) -> str:
    "Say in a few lines why a process ended"
    lines = [v for v in stderr.splitlines() if v.strip()][-20:]
    if code >= 0: return '\n'.join(lines or [f'exit code {code}, without a message'])
    name = signal.Signals(-code).name
    why = f'killed by {name}' + (': often lack of memory' if name == 'SIGKILL' else '')
    return '\n'.join([*lines, why])


def in_process(
    *words: object,             # after `python`
    env: dict[str, str] | None = None
) -> str:                       # what the process wrote on stdout
    "Run Python in a process of its own, and raise `Failed` with its own message if it fails"
    called = [sys.executable, *map(str, words)]
    done = subprocess.run(called, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if done.returncode: raise Failed(f'python {" ".join(called[1:])}\n{ending(done.returncode, done.stderr)}')
    return done.stdout


def row(
    what: str,
    plain: float | None,         # seconds; None: nothing to compare with
    ours: float,                 # seconds
    same: str,                   # difference of the outputs
    aim: float | None = None,    # ratio aimed at
    unit: str = 's',             # of both
    limit: float | None = None   # that ours is to stay below, in the same unit
) -> dict[str, object]:
    "One line of the table"
    return {'what': what, 'plain': plain, 'ours': ours, 'ratio': None if plain is None else plain/ours, 'aim': aim,
            'limit': limit, 'same': same, 'unit': unit}
