"""Check tiny files beside their decoding alone, and again, and search feature vectors for near duplicates.

    python -m benchmarks.bench_checks 100000     # of each; the table takes 20,000
"""
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks import row
from mirage_nb.data.near_duplicates import similar_pairs
from mirage_nb.data.opened import open_images

N = 20_000


def timed(f: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    "Return wall seconds of a call, and what it gave"
    start = time.perf_counter()
    out = f(*args)
    return time.perf_counter() - start, out


def decode(files: list[Path]) -> int:
    "Decode each file once, as a data set that checks nothing would at its first pass"
    return sum(np.asarray(Image.open(p)).size for p in files)


def check(n: int, root: Path) -> list[dict]:
    "Open n files twice; the second time nothing is read"
    rng, files = np.random.default_rng(0), [root/f'{i % 20}'/f'{i:06d}.png' for i in range(n)]
    for k in range(20): (root/f'{k}').mkdir(exist_ok=True)
    for p in files:
        Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(p, compress_level=1)
        os.utime(p, (10**9, 10**9))
    with patch.dict(os.environ, MIRAGE_RUNS=f'{root}/runs'):
        (plain, _), (first, a) = timed(decode, files), timed(open_images, files)
        (later, _), (again, b) = timed(decode, files), timed(open_images, files)
    same = 'no fault, same facts' if a == b and not any(f.fault for f in a) else 'OTHER facts'
    return [row(f'{n:,} tiny files checked (plain: decoded)', plain, first, same),
            row(f'{n:,} tiny files checked again (plain: decoded again)', later, again, same)]


def search(n: int) -> dict:
    "Search n vectors with 100 copies, beside all products of a tenth of them"
    x = torch.nn.functional.normalize(torch.randn(n, 480, generator=torch.Generator().manual_seed(0)), dim=1)
    x[n//2:n//2 + 100] = x[:100]
    ours, pairs = timed(similar_pairs, x)
    part = x[:max(n//10, 100)]
    plain, found = timed(lambda: int(((part@x.T) >= .97).sum()))
    timed_part = f'plain: {len(part):,} vectors timed, times {n/len(part)/2:g}'
    same = f'{len(pairs)} pairs; {timed_part}' if len(pairs) == found - len(part) == 100 else 'OTHER pairs'
    return row(f'near duplicates among {n:,} vectors (plain: all products)', plain*n/len(part)/2, ours, same)


def run(n: int = N) -> Iterator[dict]:
    "Rows for the table of benchmarks"
    with tempfile.TemporaryDirectory() as folder: yield from check(n, Path(folder))
    yield search(n)


if __name__ == '__main__':
    for found in run(int(sys.argv[1]) if len(sys.argv) > 1 else N): print(found)
