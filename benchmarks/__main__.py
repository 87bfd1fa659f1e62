"Table of all benchmarks: python -m benchmarks [name ...]"
import importlib
import sys
import time
from pathlib import Path

from mirage_nb.core import unknown

HEAD = f"{'what':62} {'plain':>9} {'ours':>9} {'ratio':>7} {'aim':>5}  outputs"


def line(r: dict) -> str:
    aim, u = f"{r['aim']:.1f}" if r['aim'] else '-', r.get('unit', 's')
    return f"{r['what']:62} {r['plain_s']:8.4f}{u} {r['ours_s']:8.4f}{u} {r['ratio']:6.1f}x {aim:>5}  {r['same']}"


def main(names: list[str]) -> int:
    known = sorted(p.stem.removeprefix('bench_') for p in Path(__file__).parent.glob('bench_*.py'))
    for name in names:
        if name not in known:
            print(unknown('benchmark', name, known), file=sys.stderr)
            return 2
    print(HEAD + '\n' + '-' * len(HEAD), flush=True)
    for name in names or known:
        start = time.perf_counter()
        print(f'... {name}', end='\r', file=sys.stderr, flush=True)
        for r in importlib.import_module(f'benchmarks.bench_{name}').run(): print(line(r), flush=True)
        print(f'... {name} took {time.perf_counter() - start:.0f} s', file=sys.stderr, flush=True)
    return 0


sys.exit(main(sys.argv[1:]))
