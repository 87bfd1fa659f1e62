"Masked pre-training of MIRAGE agrees with the recorded numbers: predictions, losses, groups, trajectory, checkpoint."
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mirage_nb.models.checkpoints import load_weights
from mirage_nb.models.mirage import Modality
from mirage_nb.models.mirage_mae import MultiMAE, _draw_masks
from mirage_nb.randomness import sample_key
from mirage_nb.train.losses import pretrain_losses
from mirage_nb.train.optim import _decays, param_groups, set_lr


@pytest.fixture(scope='module')
def facts(golden): return json.loads((golden/'mirage.json').read_text())


@pytest.fixture(scope='module')
def tensors(golden): return load_file(golden/'mirage_pretrain.safetensors')


@pytest.fixture
def x(tensors): return below(tensors, 'input.')


@pytest.fixture
def masks(tensors): return below(tensors, 'mask.')


def below(tensors, prefix): return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def fresh(facts):
    "Model of the recorded size, with first weights"
    c = facts['config']
    both = [Modality(k, c['patch'], c['img']) for k in ('bscan', 'slo')]
    layers = Modality('bscanlayermap', c['lm_patch'], c['lm_img'], classes=c['ncls'], class_width=c['cls_emb'])
    return MultiMAE([*both, layers], keep=c['keep'], d=c['dim'], depth=c['depth'], heads=c['heads'],
                    decoder={'d': c['dec_dim'], 'depth': c['dec_depth'], 'heads': c['dec_heads']})


@pytest.fixture
def model(facts, tensors):
    made = fresh(facts)
    made.load_state_dict(below(tensors, 'state.'))
    return made


def agree(ours, recorded):
    assert set(ours) == set(recorded)
    for k, v in recorded.items():
        torch.testing.assert_close(ours[k], v, rtol=1e-4, atol=1e-4*float(v.abs().mean()))


def test_masked_predictions(model, x, masks, tensors):
    with torch.no_grad(): predicted, used = model(x, masks=masks)
    agree(predicted, below(tensors, 'pred_masked.'))
    assert list(used) == list(model.input_adapters) and all(torch.equal(used[k], masks[k].bool()) for k in used)


def test_predictions_of_everything(model, x, tensors):
    agree(model.reconstruct(x), below(tensors, 'pred_full.'))


def test_predictions_from_a_b_scan(model, x, masks, tensors):
    "A modality that is wholly masked and one that is not given are the same to the model, in any order of the dict"
    recorded = below(tensors, 'pred_bscan_only.')
    agree(model.reconstruct({'bscan': x['bscan']}), recorded)
    hidden = {k: torch.full_like(m, k != 'bscan') for k, m in reversed(masks.items())}
    agree(model.reconstruct(dict(reversed(x.items())), hidden), recorded)


def test_losses(model, facts, x, masks):
    with torch.no_grad(): predicted, used = model(x, masks=masks)
    for given, name in ((used, 'losses_masked'), (None, 'losses_unmasked')):
        losses = pretrain_losses(predicted, x, given, model.patches)
        assert {k: v.item() for k, v in losses.items()} == pytest.approx(facts[name], rel=1e-4)
    normalised = pretrain_losses(predicted, x, used, model.patches, norm_pix=['bscan'])['bscan']
    assert normalised.item() == pytest.approx(facts['loss_norm_pix_bscan'], rel=1e-4)


def test_loss_with_a_sample_wholly_visible(model, facts, x, masks):
    predicted, used = model(x, masks=masks)
    used['slo'] = used['slo'].index_fill(0, torch.tensor([0]), False)
    losses = pretrain_losses(predicted, x, used, model.patches)
    assert losses['slo'].item() == pytest.approx(facts['loss_slo_first_sample_fully_visible'], rel=1e-4)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_nothing_masked_trains_nothing(model, x, masks):
    "0/0 would be hidden in the loss and show in the gradient"
    predicted, used = model(x, masks={k: 0*m for k, m in masks.items()})
    losses = pretrain_losses(predicted, x, used, model.patches)
    sum(losses.values()).backward()
    assert not any(v.item() for v in losses.values())
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_parameters_and_tokens(model, facts, x):
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == facts['n_params']
    with torch.no_grad(): _, used = model(x, torch.arange(len(x['bscan'])))
    assert {k: m.shape[1] for k, m in used.items()} == facts['tokens_per_domain']
    assert sum((~m).sum(1) for m in used.values()).tolist() == [facts['config']['keep']]*facts['config']['B']


def test_optimizer_groups(model, facts):
    record = facts['optimizer_groups']
    groups = param_groups(model, max(g['weight_decay'] for g in record))
    ours = {n: (g['weight_decay'], g['lr_scale']) for g in groups for n in g['names']}
    assert ours == {n: (g['weight_decay'], g['lr_scale']) for g in record for n in g['params']}


def test_no_weight_decay(model, facts):
    """The recorded set names parameters, buffers, and whole modules: of these the recorded optimizer takes no notice"""
    named, parameters = set(facts['no_weight_decay']), dict(model.named_parameters())
    inside = {n for n in named if n not in parameters and n not in dict(model.named_buffers())}
    assert inside <= {n for n, _ in model.named_modules()}
    assert {n for n, p in parameters.items() if p.ndim > 1 and not _decays(model, n, p)} == named & parameters.keys()


def test_trajectory(model, facts, x, masks):
    decay = max(g['weight_decay'] for g in facts['optimizer_groups'])
    optimizer = torch.optim.AdamW(param_groups(model, decay), betas=(0.9, 0.95), eps=1e-8)
    for row in facts['train_trajectory']:
        set_lr(optimizer, row['lr'])
        predicted, used = model(x, masks=masks)
        loss = sum(pretrain_losses(predicted, x, used, model.patches).values())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float('inf'))
        optimizer.step(); optimizer.zero_grad()
        assert (loss.item(), norm.item()) == pytest.approx((row['loss'], row['grad_norm']), rel=1e-3)


def test_published_checkpoint_loads_strictly(facts, golden, tensors, x, masks):
    model = fresh(facts)
    first = {k: v.clone() for k, v in model.state_dict().items() if k.endswith('pos_emb')}
    report = load_weights(model, next(golden.glob('MIRAGE-*.pth')), may_be_new=())
    assert not (report.new or report.unused or report.resized)
    for k, v in first.items(): torch.testing.assert_close(v, model.state_dict()[k])  # computed as published
    agree(model.reconstruct(x, masks), below(tensors, 'pred_masked.'))


def test_first_weights(facts):
    "Xavier for every matrix, with queries, keys and values apart; biases 0; embeddings and tokens narrow"
    torch.manual_seed(0)
    for name, p in fresh(facts).named_parameters():
        last = name.split('.')[-1]
        if 'norm' in name: assert (p == (last == 'weight')).all(), name
        elif last == 'bias': assert not p.any(), name
        elif 'emb' in name or 'token' in name: assert 0 < p.abs().max() < 0.1 and 0.01 < p.std() < 0.03, name
        else:
            rows, width = p.flatten(1).shape
            rows //= {'qkv': 3, 'kv': 2}.get(name.split('.')[-2], 1)
            assert p.abs().max().item() == pytest.approx((6/(rows + width))**0.5, rel=0.02), name


DRAW = '''
import torch
from mirage_nb.models.mirage import Modality
from mirage_nb.models.mirage_mae import MultiMAE
from mirage_nb.randomness import sample_key
mae = MultiMAE([Modality(k, 4, 16) for k in ('bscan', 'slo', 'x')], keep=9, uniform_modalities={u}, d=8, depth=1,
               heads=2, decoder=dict(d=8, heads=2))
x = {{k: torch.rand(4, 1, 16, 16) for k in set(['x', 'slo', 'bscan'])}}
masks = mae(x, torch.tensor([sample_key(0, i) for i in range(4)]))[1]
text = str([(k, m.nonzero().tolist()) for k, m in masks.items()])
'''


@pytest.mark.slow
@pytest.mark.parametrize('uniform', [False, True])
def test_masks_in_another_process(uniform):
    "The order of a set depends on PYTHONHASHSEED; what is drawn does not"
    code, space = DRAW.format(u=uniform), {}
    exec(code, space)
    other = subprocess.run([sys.executable, '-c', code + 'print(text)'], capture_output=True, text=True, check=True,
                           env={**os.environ, 'PYTHONHASHSEED': '7', 'OMP_NUM_THREADS': '1'})
    assert other.stdout.strip() == space['text']


def test_order_of_samples_does_not_matter():
    sizes, keys = {'bscan': 49, 'slo': 30}, [sample_key(0, i) for i in range(64)]
    there, back = _draw_masks(sizes, 40, keys, 0.3), _draw_masks(sizes, 40, keys[::-1], 0.3)
    for k in sizes: assert torch.equal(there[k], back[k].flip(0))
