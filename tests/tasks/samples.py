"A classification that is fast enough for a test, and what tests do with tasks"
import multiprocessing
import os
import socket
from dataclasses import replace
from multiprocessing import connection

import numpy as np
import torch
from PIL import Image

from mirage_nb.data.classification import load_labelled
from mirage_nb.data.manifest import read_manifest
from mirage_nb.launch.worker import train_here
from mirage_nb.recipes.classification import cls_recipe
from mirage_nb.tasks.classification import ClassificationTask
from mirage_nb.tasks.protocol import train
from mirage_nb.tasks.segmentation import SegmentationTask
from mirage_nb.train.devices import make_accelerator


def settings(**changed):
    "Full tuning of a small model on small phantoms, fast enough for a test"
    plain = dict(dataset='Phantom_OCT', tune='full', size=48, epochs=3, lr=1e-3, precision='fp32', batch_size=6,
                 weights='random', probes=False, baselines=False)
    return replace(cls_recipe('cls_small'), **plain | changed)


def data(): return load_labelled(read_manifest('Phantom_OCT'))


def train_cls(cfg, folder): return train(ClassificationTask.from_settings(cfg), folder)


def train_seg(cfg, folder): return train(SegmentationTask.from_settings(cfg), folder)


def score(cfg, folder, data=None):
    "Scores of a trained model, read from its file"
    return ClassificationTask.from_settings(cfg, data=data).test(folder)


def validation_of(cfg, folder):
    "Validation numbers of the kept model, read from its file"
    task = ClassificationTask.from_settings(cfg)
    return task.validate(task.classifier(folder).model, make_accelerator('fp32'))


def pictures(folder, n=8, seed=0):
    "n different pictures in a folder"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        Image.fromarray(rng.integers(0, 255, (36, 40, 3), dtype=np.uint8)).save(folder/f'{i:02d}.png')
    return folder


# ------------------------------------------------------------------ processes of their own

PLACE = 'MIRAGE_DATA', 'MIRAGE_RUNS', 'OMP_NUM_THREADS'


def forkserver():
    "Starts processes that have imported the library: an import takes longer than a training of a test"
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mirage_nb.launch.worker', 'torch._dynamo', 'torch.distributed.fsdp'])
    return context


def train_each(folders):
    "Train the runs of some folders, one after another"
    for folder in folders: train_here(folder)


def _member(rank, port, place, act, args):
    "One of two processes: what torchrun says to it"
    os.environ |= {**place, 'RANK': f'{rank}', 'LOCAL_RANK': f'{rank}', 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2',
                   'MASTER_ADDR': 'localhost', 'MASTER_PORT': f'{port}'}
    torch.set_num_threads(1)
    act(*args)


def two_processes(act, *args):
    "Exit codes of two processes that find each other; as torchrun does, one that fails ends the other"
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    place = {k: os.environ[k] for k in PLACE}
    started = [forkserver().Process(target=_member, args=(rank, port, place, act, args)) for rank in (0, 1)]
    for p in started: p.start()
    try:
        while left := [p for p in started if p.is_alive()]:
            assert connection.wait([p.sentinel for p in left], timeout=240), 'they wait for each other'
            if any(p.exitcode for p in started):
                for p in left: p.terminate()
    finally:
        for p in started: p.kill()
    return [p.exitcode for p in started]
