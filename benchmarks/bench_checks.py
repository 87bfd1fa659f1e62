"""Check 100,000 tiny files in one go and again, and search 100,000 feature vectors for near duplicates.

    python -m benchmarks.bench_checks            # 100,000 of each
    python -m benchmarks.bench_checks 10000
"""
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mirage_nb.data.near_duplicates import similar_pairs
from mirage_nb.data.opened import open_images


class Clock:
    "Seconds since it was made: wall time, and CPU time of this process and of those that have ended"
    def __init__(self) -> None: self.wall, self.cpu = time.perf_counter(), self.spent()

    @staticmethod
    def spent() -> float:
        "Return user and system time, seconds"
        both = (resource.getrusage(k) for k in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(u.ru_utime + u.ru_stime for u in both)

    def __str__(self) -> str:
        return f'{time.perf_counter() - self.wall:.1f} s, {self.spent() - self.cpu:.1f} s of CPU time'


def memory() -> int:
    "Return the most memory of this process so far, MB"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024


def check(n: int, root: Path) -> None:
    "Open n files twice; the second time nothing is read"
    os.environ['MIRAGE_RUNS'] = f'{root}/runs'
    rng, files = np.random.default_rng(0), [root/f'{i % 20}'/f'{i:06d}.png' for i in range(n)]
    for k in range(20): (root/f'{k}').mkdir(exist_ok=True)
    for p in files:
        Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(p, compress_level=1)
        os.utime(p, (10**9, 10**9))
    found = []
    for turn in ('first', 'second'):
        clock = Clock()
        found.append(open_images(files))
        print(f'{n:,} files, {turn} time: {clock}, {memory()} MB')
    assert found[0] == found[1] and not any(f.fault for f in found[0])


def search(n: int) -> None:
    "Search n vectors with 100 copies, and compare a part with all products"
    x = torch.nn.functional.normalize(torch.randn(n, 480, generator=torch.Generator().manual_seed(0)), dim=1)
    x[n//2:n//2 + 100] = x[:100]
    clock = Clock()
    pairs = similar_pairs(x)
    print(f'{n:,} vectors of 480: {clock}, {memory()} MB, {len(pairs)} pairs')
    part = x[:2000]
    clock = Clock()
    plain = int(((part@x.T) >= .97).sum())
    print(f'all products of 2,000 of them: {clock}, x {n/4000:.0f} for all pairs')
    assert len(pairs) == 100 and plain == 2000 + 100


if __name__ == '__main__':
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder: check(count, Path(folder))
    search(count)
