"Datasets that tests of several modules read"
import json

import numpy as np
import pytest
from PIL import Image

from tests.data.samples import LABELS, VALUES, write_triplets


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    "Dataset Tiny in MIRAGE_DATA: 3 volumes to train on, one to validate, one to test"
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    root, rng = tmp_path/'Tiny', np.random.default_rng(0)
    for split, volumes in (('train', ('P1a', 'P1b', 'P2a')), ('val', ('P3a',)), ('test', ('P4a',))):
        for d in ('bscan', 'semseg'): (root/split/d).mkdir(parents=True)
        for stem in [f'{v}_{s}' for v in volumes for s in (1, 2, 10)]:
            Image.fromarray(rng.integers(20, 200, (40, 60), np.uint8)).save(root/split/'bscan'/f'{stem}.png')
            Image.fromarray(rng.choice(np.array(VALUES, np.uint8), (40, 60))).save(root/split/'semseg'/f'{stem}.png')
    info = {str(i): {'value': v, 'label': s} for i, (v, s) in enumerate(zip(VALUES, LABELS, strict=True))}
    (root/'INFO.json').write_text(json.dumps(info))
    return root


@pytest.fixture
def triplets(tmp_path): return write_triplets(tmp_path/'set')
