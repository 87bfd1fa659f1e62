"Losses of contrastive and self-distilled pre-training are those that lightly 1.6.0 computes of the same inputs"
import pytest
import torch
import torch.nn.functional as F

from mirage_nb.train.view_losses import contrastive_loss, distillation_loss, koleo_loss, patch_loss


def wave(*shape, step): return (torch.arange(torch.Size(shape).numel())*step).sin().view(*shape)


def test_contrast_with_a_queue():
    q, k, queue = (F.normalize(x, dim=1) for x in (wave(4, 6, step=.7), wave(4, 6, step=1.1), wave(5, 6, step=1.7)))
    assert contrastive_loss(q[None], k[None], queue, .2).item() == pytest.approx(2.389259, rel=1e-5)


def test_distillation():
    teacher, student, centre = wave(2, 4, 6, step=.9), wave(5, 4, 6, step=1.3), wave(6, step=.3)*.1
    found = distillation_loss(student, ((teacher - centre)/.07).softmax(-1), .1)
    assert found.item() == pytest.approx(9.200555, rel=1e-5)


def test_hidden_patches():
    hidden = torch.tensor([[True, False, True], [False, True, False]])
    found = patch_loss(wave(3, 6, step=1.3), (wave(3, 6, step=.9)/.07).softmax(-1), hidden, .1)
    assert found.item() == pytest.approx(5.793861, rel=1e-5)


def test_spread_of_features(): assert koleo_loss(wave(6, 4, step=1.9)).item() == pytest.approx(0.307325, rel=1e-5)
