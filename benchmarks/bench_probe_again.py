"A second linear probe of a ViT-L whose features of 1,000 images are kept, with its weights hashed at each use and once"
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks import in_process, row
from mirage_nb.models import encoder_store
from mirage_nb.models.checkpoints import export_encoder
from mirage_nb.models.zoo import build_encoder
from mirage_nb.recipes.classification import cls_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.tasks.baselines import random_probe_settings
from mirage_nb.tasks.classification import ClassificationTask
from mirage_nb.tasks.protocol import train

NAME, D, COUNTS, AIM_S = 'vit_large_patch16', 1024, {'train': 600, 'val': 150, 'test': 250}, 10.


def make_images(folder: Path) -> None:
    "Noise in two classes, which are told apart by brightness"
    rng = np.random.default_rng(0)
    for split, n in COUNTS.items():
        for i in range(n):
            home = folder/split/'ab'[i % 2]
            home.mkdir(parents=True, exist_ok=True)
            values = rng.integers(0, 150 + 100*(i % 2), (32, 32, 3), np.uint8)
            Image.fromarray(values).save(home/f'{split}{i}.png')


def make_task(folder: Path, seed: int) -> ClassificationTask:
    changed = {'dataset': str(folder/'Noise'), 'model': NAME, 'weights': str(folder/'vit.safetensors'), 'tune': 'probe',
               'cached_views': 0, 'epochs': 10, 'batch_size': 64, 'size': 224, 'seed': seed, 'waive': 'patients'}
    return ClassificationTask.from_settings(override(cls_recipe('cls_probe_mirage'), **changed))


def fill(task: ClassificationTask) -> None:
    "Keep features of every image, as a first run would have: the encoder itself takes an hour of two cores"
    for data in task._sets_of(list(COUNTS)).values():
        rng, n = torch.Generator().manual_seed(0), len(data)
        bright = torch.tensor([k == 'b' for k in data.table.label])[:, None, None]
        keys = [f'{sha}--1' for sha in data.table.sha256]
        task.features.store.add(keys, torch.randn(n, 3, D, generator=rng) + bright)


def second_run(folder: Path, once: bool) -> dict[str, float]:
    "Train and test a probe in this process, with its baselines"
    hashing, counts, start = encoder_store._hash_tensors, [0], time.perf_counter()

    def hashes(state: dict[str, torch.Tensor]) -> str:
        counts[0] += 1
        if not once: encoder_store._HASHES.clear()
        return hashing(state)
    task = make_task(folder, seed=0)
    with patch.object(encoder_store, '_hash_tensors', hashes):
        if not once: encoder_store.weights_version = lambda model: (object(),)
        task.sources()
        train(task, folder/f'run_{once}')
        scores = task.test(folder/f'run_{once}')
        task.baselines(folder/f'run_{once}')
    assert scores is not None
    return {'seconds': time.perf_counter() - start, 'hashes': counts[0],
            'score': scores.means['balanced accuracy']}


def measure(folder: Path, what: str) -> dict[str, float]:
    out = in_process('-m', 'benchmarks.bench_probe_again', folder, what, env={'MIRAGE_RUNS': str(folder/'runs')})
    return json.loads(out.splitlines()[-1])


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        make_images(folder/'Noise')
        torch.manual_seed(0)
        export_encoder(build_encoder(NAME), folder/'vit.safetensors', {'encoder': {'name': NAME}})
        measure(folder, 'fill')
        before, after = measure(folder, 'each'), measure(folder, 'once')
    hashes, scores = ([f[k] for f in (before, after)] for k in ('hashes', 'score'))
    same = f'hashes of weights {hashes[0]}, {hashes[1]}; ' \
           f'balanced accuracy {scores[0]:.3f}, {scores[1]:.3f}'
    return [row('second probe of ViT-L, features of 1,000 images kept', before['seconds'], after['seconds'], same,
                limit=AIM_S)]


if __name__ == '__main__':
    home, what = Path(sys.argv[1]), sys.argv[2]
    if what == 'fill':
        first = make_task(home, seed=0)
        fill(first)
        other = first.with_settings(random_probe_settings(first.settings))
        other.input_spec = first.input_spec
        fill(other)
        print(json.dumps(dataclasses.asdict(first.input_spec)))
    else: print(json.dumps(second_run(home, what == 'once')))
