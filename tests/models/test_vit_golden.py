"The ViT classifier agrees with the recorded numbers: features, logits, positions, layer-decay groups."
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from mirage_nb.models.checkpoints import load_weights
from mirage_nb.models.vit import ViT
from mirage_nb.train.optim import half_cycle, param_groups, set_lr

POOLS = ('global_pool', 'cls_token')


@pytest.fixture(scope='module')
def facts(golden): return json.loads((golden/'mae.json').read_text())


@pytest.fixture(scope='module')
def tensors(golden): return load_file(golden/'vit_classifier.safetensors')


def below(tensors, prefix): return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def close(a, b, rtol=1e-4): torch.testing.assert_close(a, b, rtol=rtol, atol=rtol*float(b.abs().mean()))


def vit_of(facts, tensors, pool, kind=ViT):
    c, x = facts['config'], tensors[f'{pool}.input']
    return kind(size=x.shape[-2:], patch=c['patch'], channels=x.shape[1], d=c['dim'], depth=c['depth'],
                heads=c['heads'], global_pool=pool == 'global_pool').eval()


def logits_of(state, features): return F.linear(features, state['head.weight'], state['head.bias'])


@pytest.mark.parametrize('pool', POOLS)
def test_features_and_logits(facts, tensors, pool):
    state, model = below(tensors, f'{pool}.state.'), vit_of(facts, tensors, pool)
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith('head.')})
    with torch.no_grad(): features = model.features({'image': tensors[f'{pool}.input']})
    close(features, tensors[f'{pool}.features'])
    close(logits_of(state, features), tensors[f'{pool}.logits'])


@pytest.mark.parametrize('pool', POOLS)
def test_from_the_pretrained_checkpoint(facts, golden, tensors, pool):
    "The reader brings positions to the larger grid; what it leaves and lacks is what the record says"
    model, record = vit_of(facts, tensors, pool), facts[pool]
    report = load_weights(model, next(golden.glob('mae_*checkpoint.pth')))
    assert report.resized == ['pos_embed']
    assert set(report.new) == {k for k in record['missing'] if not k.startswith('head.')}
    assert set(report.unused) >= set(record['unexpected']) - {'pos_embed', 'decoder_pos_embed'}
    assert not set(report.unused) & set(model.state_dict())
    close(model.pos_embed.detach(), tensors[f'{pool}.state.pos_embed'])
    new = below(tensors, f'{pool}.state.')
    model.load_state_dict({k: v for k, v in new.items() if k.startswith(model.tail)}, strict=False)
    with torch.no_grad(): close(model.features({'image': tensors[f'{pool}.input']}), tensors[f'{pool}.features'])


@pytest.mark.parametrize('pool', POOLS)
def test_positions_are_resized_in_a_call(facts, golden, tensors, pool):
    "A model made for the size of pre-training reads the larger image as well"
    c, x = facts['config'], tensors[f'{pool}.input']
    small = ViT(size=c['img'], patch=c['patch'], channels=x.shape[1], d=c['dim'], depth=c['depth'], heads=c['heads'],
                global_pool=pool == 'global_pool').eval()
    load_weights(small, next(golden.glob('mae_*checkpoint.pth')))
    new = below(tensors, f'{pool}.state.')
    small.load_state_dict({k: v for k, v in new.items() if k.startswith(small.tail)}, strict=False)
    with torch.no_grad(): close(small.features({'image': x}), tensors[f'{pool}.features'])


class Tuned(ViT):
    "With a last layer, as a published classifier"
    def __init__(self, **options):
        super().__init__(**options)
        self.head = nn.Linear(self.d, 3)


def test_layer_decay_groups(facts, tensors):
    name = next(k for k in facts if k.startswith('layer_decay_'))
    record, decay = facts[name], float(name.split('_')[2])
    groups = param_groups(vit_of(facts, tensors, 'global_pool', Tuned), max(g['weight_decay'] for g in record), decay)
    ours = {n: (g['weight_decay'], pytest.approx(g['lr_scale'])) for g in groups for n in g['names']}
    assert ours == {n: (g['weight_decay'], g['lr_scale']) for g in record for n in g['params']}
    assert len(groups) == len(record)


def test_half_cycle_schedule(golden):
    record = json.loads((golden/'mirage.json').read_text())['schedules']
    a = record['mae_half_cycle_args']
    two = [{'params': [nn.Parameter(torch.zeros(1))]},
           {'params': [nn.Parameter(torch.zeros(1))], 'lr_scale': a['second_group_lr_scale']}]
    optimizer = torch.optim.AdamW(two)
    for epoch, *rates in record['mae_half_cycle']:
        set_lr(optimizer, half_cycle(epoch, a['epochs'], a['warmup_epochs'], a['lr'], a['min_lr']))
        assert [g['lr'] for g in optimizer.param_groups] == pytest.approx(rates, rel=1e-6)
