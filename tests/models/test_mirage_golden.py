"The MIRAGE encoder, the segmentation heads, losses, groups and schedules agree with the recorded numbers."
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from mirage_nb.models.checkpoints import load_weights, read_checkpoint
from mirage_nb.models.heads.segmentation import HEADS
from mirage_nb.models.mirage import Modality, MultiViT, _bscan_only
from mirage_nb.models.segmentation import SegModel, start_segmenter
from mirage_nb.models.tensors import infer_architecture
from mirage_nb.models.tuning import choose_training
from mirage_nb.train.losses import _gen_dice, seg_loss
from mirage_nb.train.optim import half_cycle, param_groups, set_lr, warmup_cosine

HEAD_KEYS = ('preds_per_patch', 'depth', 'embed_dim', 'num_heads', 'hooks', 'layer_dims', 'feature_dim')


@pytest.fixture(scope='module')
def facts(golden): return json.loads((golden/'mirage.json').read_text())


@pytest.fixture(scope='module')
def pre(golden): return load_file(golden/'mirage_pretrain.safetensors')


@pytest.fixture(scope='module')
def seg(golden): return load_file(golden/'mirage_segmentation.safetensors')


def below(tensors, prefix): return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def modalities(c, scale=1):
    return [Modality('bscan', c['patch'], c['img']*scale), Modality('slo', c['patch'], c['img']*scale),
            Modality('bscanlayermap', c['lm_patch'], c['lm_img']*scale, classes=c['ncls'], class_width=c['cls_emb'])]


def size_of(c): return {'d': c['dim'], 'depth': c['depth'], 'heads': c['heads']}


def seg_model_of(facts, seg, head):
    "Model with the recorded head, before any weights are loaded, and how much larger its images are"
    c = facts['config']
    scale = seg[f'{head}.input'].shape[-1]//c['img']
    options = {k: v for k, v in facts['segmentation'][head]['kwargs'].items() if k in HEAD_KEYS}
    return SegModel(MultiViT(_bscan_only(modalities(c, scale)), **size_of(c)), c['nseg'], head, options)


def published(name):
    "Published name of a parameter of ours"
    inside = name.startswith('encoder.')
    return name.removeprefix('encoder.') if inside else f'output_adapters.semseg.{name.removeprefix("head.")}'


def loaded(facts, golden, seg, head):
    "That model with the recorded weights, through the reader that users have"
    model = seg_model_of(facts, seg, head)
    ckpt = next(golden.glob('MIRAGE-*.pth'))
    start_segmenter(model, ckpt)
    recorded = below(seg, f'{head}.state.')
    model.load_state_dict({k: recorded.get(published(k), v) for k, v in model.state_dict().items()})
    return model.eval()


def close(a, b, rtol=1e-4): torch.testing.assert_close(a, b, rtol=rtol, atol=rtol*float(b.abs().mean()))


def match_tokens(ours, theirs):
    "Reorder a sample's tokens to stand as in the record, which keeps the order of a random draw; each is used once"
    nearest = (ours[:, None] - theirs[None]).abs().amax(-1).argmin(0)
    assert sorted(nearest.tolist()) == list(range(len(ours)))
    return ours[nearest]


def test_encoder_features(facts, pre):
    enc = MultiViT(modalities(facts['config']), **size_of(facts['config'])).eval()
    enc.load_state_dict({k: v for k, v in below(pre, 'state.').items() if not k.startswith('output_adapters.')})
    x = below(pre, 'input.')
    for batch, name in ((x, 'features_all_modalities'), ({'bscan': x['bscan']}, 'features_bscan')):
        with torch.no_grad(): out = enc(batch)
        assert out.shape == pre[name].shape
        close(out[:, -1], pre[name][:, -1])  # the global token is last
        for ours, theirs in zip(out, pre[name], strict=True): close(match_tokens(ours, theirs), theirs)


@pytest.mark.parametrize('head', HEADS)
def test_head_logits(head, facts, golden, seg):
    model, facts_head = loaded(facts, golden, seg, head), facts['segmentation'][head]
    x = {'bscan': seg[f'{head}.input']}
    with torch.no_grad(): logits = model.head(model.features(x)) if head == 'dpt' else model(x)
    assert list(logits.shape) == facts_head['raw_shape']
    stride = facts_head['logits_stride']
    close(logits[..., ::stride, ::stride], seg[f'{head}.logits'])


@pytest.mark.parametrize('head', HEADS)
def test_head_losses(head, facts, golden, seg):
    record = facts['segmentation'][head]
    if record['cegdice'] is None: pytest.skip('no loss recorded: its published scores are not of the size of the image')
    labels = [str(i) for i in range(facts['config']['nseg'])]
    with torch.no_grad(): logits = loaded(facts, golden, seg, head)({'bscan': seg[f'{head}.input']})
    for name, key in (('CEGDice', 'cegdice'), ('CE', 'ce')):
        assert float(seg_loss(name, labels)(logits, seg[f'{head}.target'])) == pytest.approx(record[key], rel=1e-4)


@pytest.mark.parametrize('head', HEADS)
def test_published_keys(head, facts, golden, seg):
    "What is new and what is not used are the recorded keys; the resized positions are the recorded ones"
    model, record = seg_model_of(facts, seg, head), facts['segmentation'][head]
    report = start_segmenter(model, next(golden.glob('MIRAGE-*.pth')))
    state = {published(k): v for k, v in model.state_dict().items()}
    assert {k for k in state if k not in report.loaded} == set(record['missing'])
    assert {k for k in report.unused if not k.startswith('output_adapters.')} == set(record['unexpected'])
    for k in report.resized: close(state[k], seg[f'{head}.state.{k}'])


def test_published_checkpoint_loads_strictly(facts, golden, pre):
    ckpt = read_checkpoint(next(golden.glob('MIRAGE-*.pth')))
    c = facts['config']
    assert infer_architecture(ckpt.state) == {'width': c['dim'], 'depth': c['depth'], 'patch': {
        'bscan': c['patch'], 'slo': c['patch'], 'bscanlayermap': c['lm_patch']}}
    assert type(ckpt.meta['args']).__name__ == 'Namespace'
    enc = MultiViT(modalities(c), **size_of(c))
    report = load_weights(enc, ckpt, may_be_new=())
    assert not report.new and all(k.startswith('output_adapters.') for k in report.unused)
    for k, v in below(pre, 'state.').items(): assert torch.equal(ckpt.state[k], v)


def test_layer_decay_groups(facts, golden, seg):
    record = facts['segmentation']['layer_decay_groups']
    decay = max(g['weight_decay'] for g in record)
    scales = sorted({g['lr_scale'] for g in record})
    groups = param_groups(seg_model_of(facts, seg, 'convnext'), decay, scales[-2]/scales[-1])
    ours = {published(n): (g['weight_decay'], round(g['lr_scale'], 9)) for g in groups for n in g['names']}
    assert ours == {n: (g['weight_decay'], round(g['lr_scale'], 9)) for g in record for n in g['params']}


def test_what_trains_when_frozen(facts, seg):
    model = seg_model_of(facts, seg, 'convnext')
    choose_training(model, 'embeddings')
    ours = {published(n) for n, p in model.named_parameters() if p.requires_grad}
    assert ours == set(facts['segmentation']['trainable_when_encoder_frozen'])


def test_segmentation_trajectory(facts, golden, seg):
    "The record's gradient norms are those of the published recipe, whose encoder blocks are frozen"
    model, record = loaded(facts, golden, seg, 'convnext'), facts['segmentation']
    choose_training(model, 'embeddings')
    scales = sorted({g['lr_scale'] for g in record['layer_decay_groups']})
    groups = param_groups(model, max(g['weight_decay'] for g in record['layer_decay_groups']), scales[-2]/scales[-1])
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    loss_of = seg_loss('CEGDice', [str(i) for i in range(facts['config']['nseg'])])
    for row in record['convnext_trajectory']:
        set_lr(optimizer, row['lr'])
        loss = loss_of(model({'bscan': seg['convnext.input']}), seg['convnext.target'])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float('inf'))
        optimizer.step(); optimizer.zero_grad()
        assert loss.item() == pytest.approx(row['loss'], rel=1e-3)
        assert float(norm) == pytest.approx(row['grad_norm'], rel=2e-3)


def test_generalised_dice(facts, golden):
    t = load_file(golden/'losses.safetensors')
    assert _gen_dice(t['logits'], t['target']).tolist() == pytest.approx(facts['cegdice']['per_image_gdice'], rel=1e-5)
    value = seg_loss('CEGDice', [str(i) for i in range(t['logits'].shape[1])])(t['logits'], t['target'])
    assert float(value) == pytest.approx(facts['cegdice']['value'], rel=1e-5)


def test_schedules(facts):
    s = facts['schedules']
    a = s['cosine_warm_args']
    n, warm = a['epochs']*a['steps_per_epoch'], a['warmup_epochs']*a['steps_per_epoch']
    ours = [warmup_cosine(i, n, warm, a['base'], a['final'], a['start_warmup_value']) for i in range(n)]
    assert ours == pytest.approx(s['cosine_warm'], rel=1e-9)
    steps = s['cosine_steps']  # its arguments are not recorded: read them off the curve
    warm, base = steps.index(max(steps)) + 1, max(steps)
    share = 0.5*(1 + math.cos(math.pi*(len(steps) - 1 - warm)/(len(steps) - warm)))
    final = (steps[-1] - share*base)/(1 - share)
    ours = [warmup_cosine(i, len(steps), warm, base, final) for i in range(len(steps))]
    assert ours == pytest.approx(steps, rel=1e-9)
    a = s['mae_half_cycle_args']
    for epoch, lr, second in s['mae_half_cycle']:
        ours = half_cycle(epoch, a['epochs'], a['warmup_epochs'], a['lr'], a['min_lr'])
        assert (ours, ours*a['second_group_lr_scale']) == pytest.approx((lr, second), rel=1e-9)
