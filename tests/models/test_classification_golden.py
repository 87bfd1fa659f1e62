"Classification agrees with the recorded numbers: pooling heads, ViT classifiers, layer-decay groups, images."
import json

import pytest
import torch
from safetensors.torch import load_file

from mirage_nb.models.checkpoints import load_weights
from mirage_nb.models.classification import start_classifier
from mirage_nb.models.encoder import Encoded
from mirage_nb.models.heads.classification import _POOLS, ClsHead, ClsModel
from mirage_nb.models.mirage import Modality, MultiViT
from mirage_nb.models.tuning import choose_training
from mirage_nb.models.vit import ViT
from mirage_nb.train.optim import param_groups


def below(tensors, prefix): return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def close(a, b, rtol=1e-4): torch.testing.assert_close(a, b, rtol=rtol, atol=rtol*float(b.abs().mean()))


@pytest.fixture(scope='module')
def heads(golden): return load_file(golden/'mirage_classification.safetensors')


@pytest.fixture(scope='module')
def pretrained(golden): return load_file(golden/'mirage_pretrain.safetensors')


@pytest.fixture(scope='module')
def config(golden): return json.loads((golden/'mirage.json').read_text())['config']


def test_every_pooling_is_recorded(heads): assert {k.split('.')[0] for k in heads} == set(_POOLS)


@pytest.mark.parametrize('pool', _POOLS)
def test_pooling_heads(heads, pretrained, config, pool):
    "On the recorded tokens, the global token last"
    t = pretrained['features_bscan']
    head = ClsHead(config['dim'], len(heads[f'{pool}.head.bias']), pool)
    head.load_state_dict({k: v for k, v in below(heads, f'{pool}.').items() if k != 'logits'})
    from mirage_nb.models.heads.classification import summarise_tokens as summaries
    close(head(summaries(Encoded(t[:, :-1], t[:, -1], (1, t.shape[1] - 1)))), heads[f'{pool}.logits'])


@pytest.mark.parametrize('pool', _POOLS)
def test_whole_classifier(heads, pretrained, config, pool):
    "From the recorded image to the recorded logits"
    c = config
    encoder = MultiViT([Modality('bscan', c['patch'], c['img'])], d=c['dim'], depth=c['depth'], heads=c['heads'])
    model = ClsModel(encoder, len(heads[f'{pool}.head.bias']), pool).eval()
    load_weights(model.encoder, below_checkpoint(pretrained))
    model.load_state_dict(model.state_dict() | {k: v for k, v in below(heads, f'{pool}.').items() if k != 'logits'})
    close(model({'bscan': pretrained['input.bscan']}), heads[f'{pool}.logits'])


@pytest.mark.parametrize('pool', _POOLS)
def test_tuned_mirage_with_its_last_layer(heads, pretrained, config, pool, tmp_path):
    c, file = config, tmp_path/'tuned.pth'
    top = {k: v for k, v in below(heads, f'{pool}.').items() if k.startswith(('norm.', 'head.'))}
    torch.save({'model': below(pretrained, 'state.') | top}, file)
    encoder = MultiViT([Modality('bscan', c['patch'], c['img'])], d=c['dim'], depth=c['depth'], heads=c['heads'])
    model = ClsModel(encoder, len(top['head.bias']), pool).eval()
    start_classifier(model, file, names(len(top['head.bias'])))
    close(model({'bscan': pretrained['input.bscan']}), heads[f'{pool}.logits'])


def below_checkpoint(pretrained):
    from pathlib import Path

    from mirage_nb.models.checkpoints import Checkpoint
    return Checkpoint(below(pretrained, 'state.'), {}, Path('mirage_pretrain.safetensors'), '')


@pytest.mark.parametrize('recorded, pool, norm', [('global_pool', 'global', 'fc_norm'), ('cls_token', 'cls', 'norm')])
def test_vit_classifiers(golden, recorded, pool, norm):
    c, t = json.loads((golden/'mae.json').read_text())['config'], load_file(golden/'vit_classifier.safetensors')
    state, x = below(t, f'{recorded}.state.'), t[f'{recorded}.input']
    shape = {k: c[v] for k, v in (('patch', 'patch'), ('d', 'dim'), ('depth', 'depth'), ('heads', 'heads'))}
    encoder = ViT(size=x.shape[-2:], channels=x.shape[1], **shape)
    model = ClsModel(encoder, len(state['head.bias']), pool, 'pooled').eval()
    own = {f'encoder.{k}': v for k, v in state.items() if not k.startswith(('head.', f'{norm}.'))}
    top = {k.replace(norm, 'norm'): v for k, v in state.items() if k.startswith(('head.', f'{norm}.'))}
    model.load_state_dict(model.state_dict() | own | top)
    close(model.pooled({'image': x}), t[f'{recorded}.features'])
    close(model({'image': x}), t[f'{recorded}.logits'])


def names(n): return [f'class {i}' for i in range(n)]


@pytest.mark.parametrize('outer', ['', 'backbone.', 'module.'])
@pytest.mark.parametrize('recorded, pool, other', [('global_pool', 'global', 'cls'), ('cls_token', 'cls', 'global')])
def test_published_classifier_with_its_last_layer(golden, recorded, pool, other, outer, tmp_path):
    "A file of a tuned classifier gives the recorded logits; with other classes or pooling it is refused"
    c, t = json.loads((golden/'mae.json').read_text())['config'], load_file(golden/'vit_classifier.safetensors')
    state, x = below(t, f'{recorded}.state.'), t[f'{recorded}.input']
    file = tmp_path/'tuned.pth'
    torch.save({'model': {f'{outer}{k}': v for k, v in state.items()}, 'epoch': 75}, file)
    shape = {k: c[v] for k, v in (('patch', 'patch'), ('d', 'dim'), ('depth', 'depth'), ('heads', 'heads'))}
    def model(n=c['ncls'], pool=pool):
        return ClsModel(ViT(size=x.shape[-2:], channels=x.shape[1], **shape), n, pool, 'pooled').eval()
    ours = model()
    report = start_classifier(ours, file, names(4))
    close(ours({'image': x}), t[f'{recorded}.logits'])
    assert 'head.weight' in report.loaded and not report.unused
    for wrong, words in ((model(n=5), r'head.weight is .* and \(classes, width\) here is \(5, '),
                         (model(pool=other), "has no norm of a classifier with pool"),
                         (model(pool='token_mix'), "has no norm of a classifier with pool")):
        before = wrong.head.weight.clone()
        with pytest.raises(ValueError, match=words): start_classifier(wrong, file, names(4))
        assert wrong.head.weight.equal(before)
    torch.save({'model': {k: v for k, v in state.items() if not k.startswith('head')}}, file)
    with pytest.raises(ValueError, match='has no head of a classifier'): start_classifier(ours, file, names(4))


def test_layer_decay_groups(golden):
    "Names and rates of a fine-tuned ViT, as recorded"
    facts = json.loads((golden/'mae.json').read_text())
    key = next(k for k in facts if k.startswith('layer_decay_'))
    factor, c = float(key.split('_')[2]), facts['config']
    model = ClsModel(ViT(size=c['img'], patch=c['patch'], d=c['dim'], depth=c['depth'], heads=c['heads']), c['ncls'],
                     'global', 'pooled')
    choose_training(model, 'full')
    decay = next(g['weight_decay'] for g in facts[key] if g['weight_decay'])
    def form(name): return ('fc_' + name) if name.startswith('norm.') else name.removeprefix('encoder.')
    ours = {(round(g['lr_scale'], 9), g['weight_decay'], form(n)) for g in param_groups(model, decay, factor)
            for n in g['names']}
    theirs = {(round(g['lr_scale'], 9), g['weight_decay'], n) for g in facts[key] for n in g['params']}
    assert ours == theirs
