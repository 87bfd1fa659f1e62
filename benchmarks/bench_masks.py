"Masks of Duke_DME by a model that is tuned here for a few epochs: bf16, ONNX and int8 beside float32; 2 threads"
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import alternate, row
from benchmarks.bench_onnx import session
from mirage_nb.core import data_dir
from mirage_nb.data.masks import read_mask
from mirage_nb.data.segmentation import SegDataset
from mirage_nb.models.precision import autocast, cast_weights, pick_precision
from mirage_nb.models.segmentation import load_seg_model
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.recipes.settings import override, rows_cols
from mirage_nb.tasks.export import export_onnx
from mirage_nb.tasks.protocol import train
from mirage_nb.tasks.segmentation import SegmentationTask

DATASET, EPOCHS, THREADS, BATCH = 'Duke_DME', 3, 2, 8
Model = Callable[[np.ndarray], np.ndarray]  # (b, 1, h, w) -> (b, classes, h, w) probabilities


def tuned(folder: Path) -> tuple[SegmentationTask, Path]:
    "seg_small, for a few epochs"
    task = SegmentationTask.from_settings(override(seg_recipe('seg_small'), dataset=DATASET, epochs=EPOCHS))
    train(task, folder)
    return task, folder/'best.safetensors'


def models(file: Path, folder: Path) -> dict[str, Model]:
    model, _ = load_seg_model(file)

    def predict(kind: str, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), autocast(torch.device('cpu'), kind):
            return cast_weights(model, kind)({'bscan': torch.from_numpy(x)}).softmax(1).float().numpy()
    fast = pick_precision('auto', 'cpu')
    found: dict[str, Model] = {'float32': partial(predict, 'fp32')}
    if fast != 'fp32': found[fast] = partial(predict, fast)
    return found | {'ONNX float32': session(export_onnx(file, folder/'exact.onnx')),
                    'ONNX int8': session(export_onnx(file, folder/'int8.onnx', int8=True))}


def masks(f: Model, data: SegDataset, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    "Class indices at the size of each file; the argmax is that of the scores"
    found = []
    for start in range(0, len(data), BATCH):
        x = np.stack([data[i]['bscan'].numpy() for i in range(start, min(start + BATCH, len(data)))])
        found += list(torch.from_numpy(f(x)).clamp(min=1e-30).log())
    return [F.interpolate(p[None], s, mode='bilinear').argmax(1)[0].numpy() for p, s in zip(found, sizes, strict=True)]


def mean_dice(predicted: list[np.ndarray], truth: list[np.ndarray], n: int) -> float:
    "Mean over the classes but the first, all images together"
    p, y = (np.concatenate([m.ravel() for m in part]) for part in (predicted, truth))
    hit, total = np.bincount(y[p == y], minlength=n), np.bincount(p, minlength=n) + np.bincount(y, minlength=n)
    return float((2*hit[1:]/np.maximum(total[1:], 1)).mean())


def run() -> list[dict]:
    if not (data_dir()/DATASET).is_dir(): return []  # brought by hand
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as tmp:
        task, file = tuned(Path(tmp)/'run')
        table, classes = task.data.tables['test'], task.data.classes
        truth = [read_mask(m, classes) for m in table.semseg]
        data = SegDataset(table.assign(semseg=None), size=(size := rows_cols(task.settings.size)))
        ready = models(file, Path(tmp))
        found = {k: masks(f, data, [m.shape for m in truth]) for k, f in ready.items()}
        x = np.stack([data[i]['bscan'].numpy() for i in range(min(BATCH, len(data)))])
        seconds = dict(zip(ready, alternate(*(partial(f, x) for f in ready.values()), rounds=5), strict=True))
    torch.set_num_threads(before)
    dice, exact = {k: mean_dice(v, truth, len(classes)) for k, v in found.items()}, np.concatenate(
        [m.ravel() for m in found['float32']])
    return [row(f'masks of {DATASET}, {size[0]} pixels, batch {BATCH}: {k}', seconds['float32'], taken,
                f'{(np.concatenate([m.ravel() for m in found[k]]) == exact).mean():.3%} of pixels, '
                f'mean Dice {dice["float32"]:.4f}, {dice[k]:.4f}')
            for k, taken in seconds.items() if k != 'float32']
