"Mixed images have mixed labels, missing ones too"
import torch

from mirage_nb.data.augment.mix import Mix, mix_batch
from mirage_nb.randomness import sample_key
from mirage_nb.train.losses import _bce_loss, soft_targets


def test_mixed_soft_targets_with_missing_labels_train():
    "Mixing, missing labels and scores of 50 together: the loss and its gradient are finite"
    x, keys = torch.rand(6, 3, 16, 16), [sample_key(0, 0, i) for i in range(6)]
    y = torch.tensor([[1., 0], [0, float('nan')], [1, 1], [float('nan')]*2, [0, 1], [1, 0]])
    mixed, t = mix_batch(x, y, keys, Mix())
    assert mixed.isfinite().all() and t.isnan().any() and not t.isnan().all() and t[~t.isnan()].max() <= 1
    scores = torch.full((6, 2), 50., requires_grad=True)
    loss = _bce_loss(scores, t)
    loss.backward()
    assert loss.isfinite() and scores.grad.isfinite().all() and (scores.grad[t.isnan()] == 0).all()
    blend = mix_batch(x, soft_targets(torch.tensor([0, 1, 2, 0, 1, 2]), 3, 0.1), keys, Mix())[1]
    torch.testing.assert_close(blend.sum(1), torch.ones(6))
