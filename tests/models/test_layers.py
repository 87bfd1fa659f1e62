"What holds for every encoder: checkpointing changes memory and no number, samples are alone, freezing freezes."
import pytest
import torch

from mirage_nb.models.cnn import CnnEncoder
from mirage_nb.models.encoder import Encoded
from mirage_nb.models.mae import MAE
from mirage_nb.models.pretraining import pretrain_model
from mirage_nb.models.zoo import build_encoder
from mirage_nb.randomness import sample_key

KEYS = torch.tensor([sample_key(0, 0, i) for i in range(3)])
GREY = {k: torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(i)) for i, k in enumerate(('bscan', 'slo'))}
COLOUR = {'image': torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))}
SMALL = {'size': 64, 'drop_path': .5}
CROSS = {'decoder_d': 48, 'decoder_depth': 2, 'decoder_heads': 4, 'cross_attention': True, 'share': .5}
MODELS = {
    'vit_small_patch16': (lambda: build_encoder('vit_small_patch16', **SMALL), COLOUR),
    'mae_vit_small_patch16': (lambda: pretrain_model('mae_vit_small_patch16', **SMALL), COLOUR),
    'cross attention': (lambda: MAE(**SMALL, d=96, depth=3, heads=3, **CROSS), COLOUR),
    'mirage_tiny encoder': (lambda: build_encoder('mirage_tiny', modalities=['bscan', 'slo'], **SMALL), GREY),
    'mirage_tiny': (lambda: pretrain_model('mirage_tiny', modalities=['bscan', 'slo'], keep=9, **SMALL), GREY)}
ENCODERS = {
    'vit_small_patch16': (lambda: build_encoder('vit_small_patch16', **SMALL), COLOUR),
    'mirage_tiny': (lambda: build_encoder('mirage_tiny', modalities=['bscan', 'slo'], **SMALL), GREY),
    'resnet50': (lambda: CnnEncoder('resnet50'), COLOUR)}


def total(out):
    "One number that depends on everything a model gives"
    if isinstance(out, torch.Tensor): return out.float().square().mean() if out.requires_grad else 0
    return sum(total(v) for v in (out.values() if isinstance(out, dict) else out))


def step(model, x):
    "Loss, gradients, and bytes kept for the backward pass"
    kept = {}
    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): loss = total(model(x, KEYS))
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, sum(kept.values())


@pytest.mark.parametrize('name', MODELS)
def test_checkpointing_changes_no_number(name):
    torch.manual_seed(0)
    make, x = MODELS[name]
    model = make().train()
    loss, gradients, kept = step(model, x)
    model.checkpointing = True
    again, same, less = step(model, x)
    assert again == loss and less < 0.7*kept
    assert same.keys() == gradients.keys() and all(torch.equal(same[k], g) for k, g in gradients.items())


@pytest.mark.parametrize('name', ENCODERS)
def test_read(name):
    "A sample is read alike in any batch; patches, summary and grid agree with one another"
    make, x = ENCODERS[name]
    enc = make().eval()
    with torch.no_grad(): seen, alone = enc.read(x, KEYS), enc.read({k: v[[1]] for k, v in x.items()}, KEYS[[1]])
    assert isinstance(seen, Encoded)
    b, n, d = seen.patches.shape
    assert (b, d) == (3, enc.d) and seen.summary.shape == (b, d) and n == seen.grid[0]*seen.grid[1]*len(x)
    torch.testing.assert_close(alone.patches, seen.patches[[1]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.summary, seen.summary[[1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', [k for k in ENCODERS if k != 'resnet50'])
def test_drop_path_follows_the_sample(name):
    make, x = ENCODERS[name]
    enc = make().train()
    with torch.no_grad():
        there = enc.read(x, KEYS).summary
        back = enc.read({k: v.flip(0) for k, v in x.items()}, KEYS.flip(0)).summary
        other = enc.read(x, KEYS + 1).summary
    torch.testing.assert_close(back.flip(0), there, rtol=1e-4, atol=1e-4)
    assert (other - there).abs().max() > 1e-3


@pytest.mark.parametrize('how', ['full', 'embeddings', 'probe'])
@pytest.mark.parametrize('name', ENCODERS)
def test_frozen_parts_stay_as_they_are(name, how):
    "A step of training, running statistics included"
    torch.manual_seed(0)
    make, x = ENCODERS[name]
    enc, head = make(), torch.nn.Linear(1, 1)
    enc.freeze(how)
    enc.train()
    before = {k: v.clone() for k, v in enc.state_dict().items()}
    seen = enc.read(x, KEYS)
    loss = (seen.patches.square().mean() + seen.summary.mean())*head(torch.ones(1)).sum()
    loss.backward()
    trained = [p for p in enc.parameters() if p.requires_grad]
    torch.optim.SGD([*trained, *head.parameters()], lr=0.1).step()
    changed = {enc.layer_of(k) for k, v in enc.state_dict().items() if not torch.equal(v, before[k])}
    inside = set(range(1, enc.depth + 1))
    assert {'full': inside <= changed, 'embeddings': changed == {0}, 'probe': not changed}[how], changed
    assert bool(trained) == (how != 'probe')
