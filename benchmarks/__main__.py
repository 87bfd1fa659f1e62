"Table of all benchmarks, each in a process of its own: python -m benchmarks [name ...]"
import importlib
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import ROOT, ending
from mirage_nb.core import unknown

ALONE = '--alone'  # before the name of the one benchmark that is measured in this process
HEAD = f"{'what':66} {'plain':>10} {'ours':>10} {'ratio':>7} {'aim':>6} {'':6}  outputs"


def line(r: dict) -> str:
    "A row as text: a ratio has an aim, or our side a limit"
    unit, plain, ratio, aim, met = r['unit'], '-', '-', '-', ''
    if r['ratio'] is not None: plain, ratio = f"{r['plain']:.4f}{unit}", f"{r['ratio']:.1f}x"
    if r['aim']: aim, met = f"{r['aim']:.1f}x", 'met' if r['ratio'] >= r['aim'] else 'MISSED'
    if r['limit']: aim, met = f"<{r['limit']:g}{unit}", 'met' if r['ours'] < r['limit'] else 'MISSED'
    ours = f"{r['ours']:.4f}{unit}"
    return f"{r['what']:66} {plain:>10} {ours:>10} {ratio:>7} {aim:>6} {met:6}  {r['same']}"


def measure(name: str) -> None:
    "Print the rows of one benchmark, or that this machine has nothing for it"
    rows = 0
    for r in importlib.import_module(f'benchmarks.bench_{name}').run():
        print(line(r), flush=True)
        rows += 1
    if not rows: print(f'{name}: nothing to measure on this machine', flush=True)


def start(name: str) -> str:
    "Measure one benchmark in another process, and return why it failed, if it did"
    begun = time.perf_counter()
    print(f'... {name}', end='\r', file=sys.stderr, flush=True)
    words = [sys.executable, '-m', 'benchmarks', ALONE, name]
    done = subprocess.run(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    how = 'failed after' if done.returncode else 'took'
    print(f'... {name} {how} {time.perf_counter() - begun:.0f} s', file=sys.stderr, flush=True)
    return ending(done.returncode, done.stderr) if done.returncode else ''


def main(names: list[str]) -> int:
    "Measure benchmarks one after another; one that fails stops no other"
    if names[:1] == [ALONE]:
        measure(names[1])
        return 0
    known = sorted(p.stem.removeprefix('bench_') for p in Path(__file__).parent.glob('bench_*.py'))
    for name in names:
        if name not in known:
            print(unknown('benchmark', name, known), file=sys.stderr)
            return 2
    print(HEAD + '\n' + '-' * len(HEAD), flush=True)
    chosen = names or known
    failed = {name: why for name in chosen if (why := start(name))}
    for name, why in failed.items(): print(f'\n{name} FAILED:\n{why}', file=sys.stderr)
    if failed: print(f'\n{len(failed)} of {len(chosen)} benchmarks failed: {", ".join(failed)}', file=sys.stderr)
    return int(bool(failed))


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
