"Small data that tests of several modules read"
import numpy as np
import torch
from PIL import Image

from mirage_nb.data.paired import _MODALITIES
from mirage_nb.data.segmentation import collate

VALUES = (0, 80, 160)  # in the masks of Tiny
LABELS = ('Background', 'RNFL', 'Fluid')
IDS = [f'S{i}' for i in range(6)]  # of triplets
MANIFEST = '''
title = "Tiny"
task = "segmentation"
modality = "bscan"
layout = "splits"
source = "a test"
licence = "none"
citation = "none"
get = "made by a test"
'''


def write_triplets(folder, ids=IDS, size=(64, 64)):
    "Triplets in the published layout: (h, w) and (1, h, w) arrays, and images"
    for k in _MODALITIES: (folder/k).mkdir(parents=True)
    for i, id in enumerate(ids):
        rng = np.random.default_rng(i)
        y = np.sort(rng.integers(0, 13, size, np.uint8), axis=0)
        x = y*15 + rng.integers(0, 40, size, np.uint8)
        for k, v in zip(_MODALITIES, (x, rng.integers(0, 255, size, np.uint8), y), strict=True):
            if i % 3 == 2: Image.fromarray(v).save(folder/k/f'{id}.png')
            else: np.save(folder/k/f'{id}.npy', v[None] if i % 3 else v)
    return folder


def write_nested(root, n, a_folder=50):
    "n pictures under nested folders, 16 different ones under many names"
    root.mkdir(parents=True)
    kinds = []
    for i in range(16):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (6, 5 + i, 3), dtype=np.uint8)).save(root/f'm{i}.png')
        kinds.append((root/f'm{i}.png').read_bytes())
        (root/f'm{i}.png').unlink()
    for i in range(n):
        folder = root/f's{i//a_folder//4}'/f'{i//a_folder % 4}'
        folder.mkdir(parents=True, exist_ok=True)
        (folder/f'p{i:05d}.png').write_bytes(kinds[i % 16])
    return root


def batch_of(ds, epoch=0, which=None): return collate([ds[(epoch, i)] for i in (which or range(len(ds)))])


def same(a, b): return all(torch.equal(a[k], b[k]) for k in _MODALITIES)
