"Views of photographs are the published ones and follow the key alone"
import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from mirage_nb.data.augment.photo import PhotoEval, PhotoTrain, _seeded_generators
from mirage_nb.data.files import read_image
from mirage_nb.randomness import sample_key


def test_golden_ultra_widefield_view(golden, tmp_path):
    recorded = load_file(golden/'preprocessing.safetensors')
    [name] = [k for k in recorded if k.startswith('uwf.eval_')]
    Image.fromarray(recorded['uwf.raw_rgb']).save(tmp_path/'x.png')
    view = PhotoEval(int(name.rpartition('_')[2]), 'uwf')(read_image(tmp_path/'x.png', 3))
    np.testing.assert_allclose(view, recorded[name].astype(np.float32), atol=2e-3)  # recorded in half precision


def test_evaluation_draws_nothing():
    "defects.md 1: the view of an evaluation is the same whatever the state of any generator, and moves none"
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    views = []
    for seed in (1, 2):
        random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        views.append(PhotoEval(32)(image, key=seed))
        assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
        assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(*views)


def test_training_views_follow_the_key_alone():
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    views = PhotoTrain(32, 'uwf', erase=0.5)
    keys = [sample_key(0, 0, i) for i in range(24)]
    there = [views(image, k) for k in keys]
    back = [views(image, k) for k in reversed(keys)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(there, back, strict=True))
    assert len({v.sum().item() for v in there}) == 24
    torch.manual_seed(5)
    free = torch.rand(3)
    torch.manual_seed(5)
    views(image, 1)
    assert torch.equal(torch.rand(3), free)


def test_an_error_inside_leaves_the_generators_alone():
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), _seeded_generators(3): torch.rand(1//0)
    assert torch.equal(torch.get_rng_state(), state)


def test_highest_level_of_posterisation_keeps_a_bit():
    "timm asks for no bit there, which Pillow refuses"
    train = PhotoTrain(16, augment='rand-m9-mstd0.5-inc1')
    op, = (o for s in train.steps.transforms for o in getattr(s, 'ops', []) if o.name.startswith('Posterize'))
    assert [op.level_fn(level, {})[0] for level in (0, 5, 10)] == [4, 2, 1]
    op.prob, op.magnitude, op.magnitude_std = 1., 10, 0
    op(Image.new('RGB', (8, 8)))
