"""Evaluation of one volume (49 slices, 496 x 768, nine classes) against MONAI per slice and class.

Both sides run on one thread: ours uses no more, and torch's threads make the plain side slower on a busy machine.
"""
import time
import warnings
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import gaussian_filter1d

from benchmarks import row
from mirage_nb.eval.segmentation.scores import pool_volumes, score_slices


class Class(NamedTuple):
    index: int
    value: int
    label: str
    group: str = 'layer'


def curves(g, n, w, smooth, size):
    "n smooth curves of w columns"
    return size * gaussian_filter1d(g.standard_normal((n, w + 8*smooth)), smooth, axis=1)[:, 4*smooth:-4*smooth]


def blob(shape, y, x, ry, rx):
    rows, columns = np.ogrid[:shape[0], :shape[1]]
    return ((rows - y) / ry)**2 + ((columns - x) / rx)**2 < 1


def volume(slices=49, shape=(496, 768), layers=8, error=2., seed=0):
    "Layered maps with fluid, and predictions whose boundaries err by a few pixels; some fluid is missed"
    g, out = np.random.default_rng(seed), []
    rows = np.arange(shape[0])[:, None]
    for i in range(slices):
        depth = 130 + curves(g, 1, shape[1], 90, 400) + np.linspace(0, 190, layers - 1)[:, None]
        true_edge = np.sort(depth + curves(g, layers - 1, shape[1], 40, 30), 0)
        pred_edge = np.sort(true_edge + curves(g, layers - 1, shape[1], 12, 5*error), 0)
        true, pred = ((rows >= e[:, None]).sum(0).astype(np.uint8) for e in (true_edge, pred_edge))
        for _ in range(g.integers(0, 5)):
            y, x, ry, rx = g.uniform((170, 60, 5, 8), (300, shape[1] - 60, 25, 60))
            true[blob(shape, y, x, ry, rx)] = layers
            if g.random() < 0.8: pred[blob(shape, y + 2*g.normal(), x + 3*g.normal(), ry*1.05, rx*0.95)] = layers
        out.append(('P1', i, true, pred))
    return out


def plain(rows, n):
    "One-hot masks, MONAI and sums, slice by slice and class by class"
    scores = np.zeros((n, 3))
    for c in range(n):
        hit = total = union = 0
        distances = []
        for _, _, true, pred in rows:
            t, p = torch.from_numpy(true) == c, torch.from_numpy(pred) == c
            hit, total, union = hit + (t & p).sum(), total + t.sum() + p.sum(), union + (t | p).sum()
            if t.any() and p.any():
                distances.append(compute_hausdorff_distance(p[None, None], t[None, None], include_background=True,
                                                            percentile=95).item())
            elif not t.any() and not p.any(): distances.append(0.)
        scores[c] = 2*hit / (total + 1e-6), hit / (union + 1e-6), np.mean(distances)
    return scores


def ours(rows, n):
    classes = [Class(i, i, f'class {i}') for i in range(n)]
    return pool_volumes(score_slices(rows, classes, 'published'))[['Dice', 'IoU', 'HD95']].to_numpy()


def timed(f, *args):
    start = time.perf_counter()
    out = f(*args)
    return time.perf_counter() - start, out


def compare(what, error, repeats):
    "A row of the table: median times of alternating runs, largest difference of the scores"
    rows, times = volume(error=error), []
    plain(rows[:1], 9), ours(rows[:1], 9)  # imports and caches are nobody's time
    for _ in range(repeats):
        (a, expected), (b, got) = timed(plain, rows, 9), timed(ours, rows, 9)
        times.append((a, b))
    plain_s, ours_s = (median(t) for t in zip(*times, strict=True))
    gap = np.abs(got - expected).max(0)
    return row(f'Dice, IoU, HD95 of 49 slices 496 x 768, 9 classes: {what}', plain_s, ours_s,
               f'Dice {gap[0]:.0e}, IoU {gap[1]:.0e}, HD95 {gap[2]:.0e} px', 5.)


def run(repeats=3):
    "Rows for the table of benchmarks"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return [compare('a fair prediction, 2 px off', 2., repeats), compare('a poor one, 15 px off', 15., repeats)]
    finally: torch.set_num_threads(threads)
