"A classification that is fast enough for a test, and what tests do with tasks"
from dataclasses import replace

import numpy as np
from PIL import Image

from mirage_nb.data.classification import load_labelled
from mirage_nb.data.manifest import read_manifest
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
