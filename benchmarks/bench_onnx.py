"A segmentation model run by onnxruntime, in float32 and int8, beside PyTorch in float32: 512 x 512 B-scans; 2 threads"
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import alternate, row
from mirage_nb.models.segmentation import seg_model
from mirage_nb.models.tuning import save_tuned_model
from mirage_nb.tasks.export import export_onnx

THREADS, SIZE, BATCHES = 2, 512, (1, 8)


def session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    ready = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda x: ready.run(None, {'image': x})[0]


def run() -> list[dict]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    keywords = {'name': 'mirage_tiny', 'n_classes': 4, 'head': 'convnext', 'size': [SIZE, SIZE]}
    model, rows = seg_model(**keywords).eval(), list[dict]()
    classes = [{'index': i, 'value': i, 'label': str(i), 'group': 'layer'} for i in range(4)]
    with tempfile.TemporaryDirectory() as tmp:
        file = save_tuned_model(model, Path(tmp)/'model.safetensors', keywords, classes=classes, precision='fp32')
        exact = session(export_onnx(file, Path(tmp)/'exact.onnx'))
        small = session(export_onnx(file, Path(tmp)/'int8.onnx', int8=True))

    def ours(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode(): return model({'bscan': torch.from_numpy(x)}).softmax(1).numpy()
    for b in BATCHES:
        x = np.random.default_rng(b).random((b, 1, SIZE, SIZE), np.float32)
        seconds, wanted = alternate(*(partial(f, x) for f in (ours, exact, small)), rounds=5), ours(x)
        for name, taken, f in (('float32', seconds[1], exact), ('int8', seconds[2], small)):
            found = f(x)
            same = f'probabilities within {np.abs(found - wanted).max():.0e}, ' \
                   f'{(found.argmax(1) == wanted.argmax(1)).mean():.2%} of classes'
            rows.append(row(f'ONNX {name}, segmentation, batch {b}: PyTorch float32', seconds[0], taken, same))
    torch.set_num_threads(before)
    return rows
