"Every published form of a checkpoint loads through the one reader: the original numbers, and a true report."
import argparse
import pickle
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from mirage_nb.models.checkpoints import Checkpoint, _pick_state, load_weights, read_checkpoint
from mirage_nb.models.classification import cls_model, start_classifier
from mirage_nb.models.cnn import CnnEncoder
from mirage_nb.models.loading import load_model
from mirage_nb.models.mae import MAE
from mirage_nb.models.mirage import Modality, MultiViT
from mirage_nb.models.mirage_mae import MultiMAE
from mirage_nb.models.positions import resize_positions, resize_row
from mirage_nb.models.pretraining import pretrain_model
from mirage_nb.models.segmentation import seg_model, start_segmenter
from mirage_nb.models.tensors import infer_architecture
from mirage_nb.models.vit import ViT
from mirage_nb.models.zoo import ENCODERS, _vit_record, build_encoder, encoder_record
from mirage_nb.sources.weights import known_weights

pytestmark = pytest.mark.slow

SMALL = {'d': 384, 'depth': 12, 'heads': 6}


@pytest.fixture(scope='module')
def image(): return {'image': torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))}


def close(a, b, rtol=1e-4): torch.testing.assert_close(a, b, rtol=rtol, atol=rtol*float(b.abs().mean()))


def timm_model(name, **options):
    "A network of timm with random weights that leave no token, norm or bias trivial"
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **options).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.ndim < 2 or 'token' in n or 'pos_embed' in n: p.add_(0.1*torch.randn_like(p))
    return model


@torch.no_grad()
def agree(vit, model, x):
    "Both give the same tokens after the last norm"
    close(vit.eval().norm(vit(x)), model.forward_features(x['image']))


def saved(path, content):
    torch.save(content, path)
    return path


def test_timm_and_deit(image, tmp_path):
    model, vit = timm_model('deit_small_patch16_224', img_size=64), build_encoder('vit_small_patch16', size=64)
    report = load_weights(vit, saved(tmp_path/'deit.pth', {'model': model.state_dict()}))
    assert (report.new, report.unused, report.resized) == ([], ['head.weight', 'head.bias'], [])
    agree(vit, model, image)


@pytest.mark.slow
def test_distilled_deit(image, tmp_path):
    model = timm_model('deit_small_distilled_patch16_224', img_size=64)
    path = saved(tmp_path/'deit.pth', {'model': model.state_dict()})
    agree(load_model(path).model, model, image)  # the distillation token is read off the tensors
    plain = build_encoder('vit_small_patch16', size=64)
    report = load_weights(plain, path)
    assert report.resized == ['pos_embed'] and 'dist_token' in report.unused and not report.new
    state = model.state_dict()
    assert torch.equal(plain.pos_embed[:, 0], state['pos_embed'][:, 0])
    assert torch.equal(plain.pos_embed[:, 1:], state['pos_embed'][:, 2:])


def official(state, chunks=0):
    "Names as DINOv2 writes them: below `backbone.`, blocks in chunks by option, heads beside"
    def name(k):
        k = k.replace('reg_token', 'register_tokens')
        if chunks and k.startswith('blocks.'): k = f'blocks.{int(k.split(".")[1])//chunks}.{k[7:]}'
        return f'backbone.{k}'
    d = state['cls_token'].shape[-1]
    return {**{name(k): v for k, v in state.items()}, 'backbone.mask_token': torch.zeros(1, d),
            'dino_head.mlp.0.weight': torch.zeros(4, d)}


@pytest.mark.slow
@pytest.mark.parametrize('chunks', [0, 4])
@pytest.mark.parametrize('name', ['vit_small_patch14_dinov2', 'vit_small_patch14_reg4_dinov2'])
def test_dinov2_teacher(name, chunks, tmp_path):
    "RETFound's DINOv2 form: layer scale, patch 14, registers, {'teacher': ...}"
    model = timm_model(name, img_size=56)
    state = model.state_dict()
    n, k = state['pos_embed'].shape[1], 16
    ready = load_model(saved(tmp_path/'teacher.pth', {'teacher': official(state, chunks), 'iteration': 3}))
    assert infer_architecture(read_checkpoint(tmp_path/'teacher.pth').state)['layer_scale']
    assert ready.model.registers == (4 if 'reg' in name else 0) and ready.model.grid == (4, 4)
    x = {'image': torch.rand(1, 3, 56, 56)}
    agree(ready.model, model, x)
    larger = ViT(size=(56, 84), patch=14, **SMALL, layer_scale=1., registers=ready.model.registers)
    report = load_weights(larger, tmp_path/'teacher.pth')
    assert report.resized == ['pos_embed'] and larger.pos_embed.shape[1] == 1 + 24
    assert n in (k, k + 1) and {'mask_token', 'dino_head.mlp.0.weight'} == set(report.unused)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'head'), [('densenet121', 'classifier'), ('resnet50', 'fc')])
def test_torchvision(name, head, tmp_path):
    "A torchvision network fits strictly but for its classifier; so does the U-Net's encoder of medical_mae"
    net = torchvision.models.get_model(name, weights=None).eval()
    enc = CnnEncoder(name).eval()
    report = load_weights(enc, saved(tmp_path/'net.pth', net.state_dict()), may_be_new=())
    assert report.unused == [f'{head}.weight', f'{head}.bias']
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): close(getattr(net, head)(enc.read({'image': x}).summary), net(x))
    unet = pretrain_model(f'mae_cnn_{name}')
    report = load_weights(enc, saved(tmp_path/'unet.pth', {'model': unet.state_dict(), 'epoch': 1}), may_be_new=())
    assert all(k.startswith(('model.decoder.', 'model.segmentation_head.')) for k in report.unused)
    ready = load_model(tmp_path/'unet.pth')
    with torch.no_grad(): close(ready.model.read({'image': x}).summary, enc.read({'image': x}).summary)
    assert ready.reconstruct({'image': x})['image'].shape == x.shape


@pytest.mark.slow
def test_medical_mae_and_uspec(tmp_path):
    "A pre-training file with its settings: model and encoder alike, found by size; official MAE files have no decoder"
    torch.manual_seed(0)
    made = pretrain_model('mae_vit_small_patch16_dec512d2b', size=64)
    args = argparse.Namespace(model='mae_vit_small_patch16_dec512d2b', mask_ratio=0.9, norm_pix_loss=True)
    path = saved(tmp_path/'mae.pth', {'model': made.state_dict(), 'args': args, 'epoch': 799})
    ready = load_model(path)
    assert (ready.model.mask_ratio, ready.model.norm_pix, len(ready.model.decoder_blocks)) == (0.9, True, 2)
    x, keys = {'image': torch.rand(2, 3, 64, 64)}, torch.arange(2)
    made.eval()
    with torch.no_grad(): close(ready.model(x, keys, .5).patches, made(x, keys, .5).patches)
    tuned = build_encoder('vit_small_patch16', size=96, global_pool=True, drop_path=.2)
    report = load_weights(tuned, path)
    assert (report.new, report.resized) == (['fc_norm.weight', 'fc_norm.bias'], ['pos_embed'])
    enc = saved(tmp_path/'encoder.pth', {'model': made.encoder_state()})
    report = load_weights(pretrain_model('mae_vit_small_patch16', size=64), enc)
    assert report.new and all(k.startswith(('decoder_', 'mask_token')) for k in report.new)


def test_fine_tuned_classifier(tmp_path):
    "A published classifier gives its encoder, pooled as it was trained; its last layer is told as unused"
    state = build_encoder('vit_small_patch16', size=32, global_pool=True).state_dict()
    head = {'head.weight': torch.ones(5, 384), 'head.bias': torch.ones(5)}
    ready = load_model(saved(tmp_path/'tuned.pth', {'model': state | head}))
    assert ready.model.global_pool
    assert load_weights(ready.model, tmp_path/'tuned.pth').unused == list(head)


def test_retfound_dinov2_can_be_tuned(tmp_path, monkeypatch):
    "RETFound's DINOv2 form starts a classifier: layer scale, registers and the norm of the class token come with it"
    e = encoder_record('RETFound_dinov2')
    assert (e.d, e.depth, e.heads, e.patch, e.build.keywords['layer_scale']) == (1024, 24, 16, 14, 1e-5)
    monkeypatch.setitem(ENCODERS, 'RETFound_dinov2', _vit_record(e.name, 64, 2, 2, patch=14, layer_scale=1e-5))
    for registers in (0, 4):
        options = {'pool': 'cls', 'size': (28, 42), **({'registers': 4} if registers else {})}
        torch.manual_seed(registers)
        source = ViT(56, 14, d=64, depth=2, heads=2, layer_scale=.5, registers=registers)
        nn.init.normal_(source.norm.weight)
        path = saved(tmp_path/f'{registers}.pth', {'teacher': official(source.state_dict())})
        model = cls_model('RETFound_dinov2', 3, **options).eval()
        report = start_classifier(model, path)
        assert report.resized == ['pos_embed'] and not report.new
        assert {'mask_token', 'dino_head.mlp.0.weight'} == set(report.unused)
        assert model.encoder.blocks[1].ls2.gamma.eq(.5).all() and model.norm.weight.equal(source.norm.weight)
        like = ViT((28, 42), 14, d=64, depth=2, heads=2, layer_scale=.5, registers=registers).eval()
        load_weights(like, path)
        x = {'image': torch.rand(2, 3, 28, 42)}
        with torch.no_grad(): close(model(x), model.head(like.features(x)))
    other = cls_model('RETFound_dinov2', 3, size=(28, 28))
    with pytest.raises(ValueError, match='does not fit'): start_classifier(other, path)
    tuned = cls_model('vit_small_patch16', 3, 'cls', (28, 28), 14, registers=4, layer_scale=1.)
    assert tuned.encoder.registers == 4 and 'blocks.0.ls1.gamma' in tuned.encoder.state_dict()


def multimae_b(**size):
    "MultiMAE as published: colour, depth and semantic maps"
    rgb, depth = Modality('rgb', 16, 64, channels=3), Modality('depth', 16, 64)
    return MultiMAE([rgb, depth, Modality('semseg', 4, 16, classes=133)], decoder={'d': 32, 'heads': 4}, **size)


def test_multimae_is_a_start_for_mirage(tmp_path):
    size = {'d': 48, 'depth': 3, 'heads': 4}
    source = multimae_b(**size)
    path = saved(tmp_path/'multimae-b.pth', {'model': source.state_dict(), 'args': argparse.Namespace()})
    mirage = MultiMAE([Modality(k, 8, 32) for k in ('bscan', 'slo')], decoder={'d': 16, 'heads': 4}, **size)
    report = load_weights(mirage, path)
    assert {k.split('.')[0] for k in report.new} == {'input_adapters', 'output_adapters'}
    assert {k.split('.')[0] for k in report.loaded} == {'encoder', 'global_tokens'}
    assert all(k.startswith(('input_adapters.', 'output_adapters.')) for k in report.unused)
    assert torch.equal(mirage.encoder[2].attn.qkv.weight, source.encoder[2].attn.qkv.weight)
    with pytest.raises(ValueError, match='102 tensors are missing'): load_weights(mirage, path, may_be_new=())


def test_mae_is_a_start_for_mirage(tmp_path):
    "blocks. -> encoder.; what MIRAGE has besides is new"
    source = MAE(size=32, patch=8, d=48, depth=3, heads=4, decoder_d=16, decoder_depth=1, decoder_heads=4)
    mirage = MultiViT([Modality('bscan', 8, 32)], d=48, depth=3, heads=4)
    report = load_weights(mirage, saved(tmp_path/'mae.pth', {'model': source.state_dict()}))
    assert {k.split('.')[0] for k in report.loaded} == {'encoder'} and len(report.loaded) == 3*12
    for ours, theirs in zip(mirage.encoder, source.blocks, strict=True):
        for k, v in theirs.state_dict().items(): assert torch.equal(ours.state_dict()[k], v)
    with pytest.raises(ValueError, match="'width': 48, 'depth': 3.*'width': 24, 'depth': 3"):
        load_weights(MultiViT([Modality('bscan', 8, 32)], d=24, depth=3, heads=4), tmp_path/'mae.pth')


# ------------------------------------------------------------------ names below other names, and other forms of files

SIZE = {'d': 48, 'depth': 2, 'heads': 4}


def below(begin, state, **more): return {**{begin + k: v for k, v in state.items()}, **more}


def tensors(state): return {k: v.detach().clone() for k, v in state.items()}


LIGHTNING = {'epoch': 3, 'global_step': 900, 'pytorch-lightning_version': '2.4.0', 'loops': {'fit_loop': {}},
             'callbacks': {"ModelCheckpoint{'monitor': 'val'}": {'best_model_score': torch.tensor(.5)}},
             'optimizer_states': [{'state': {0: {'exp_avg': torch.ones(9)}}, 'param_groups': [{'params': [0]}]}],
             'lr_schedulers': [], 'hyper_parameters': {'lr': 1e-3, 'mask_ratio': .9, 'norm_pix_loss': True}}
FORMS = {  # what the tensors of a model become -> what the report says of it
    'bare': (lambda s: s, ''),
    'model': (lambda s: {'model': s, 'epoch': 3}, 'model'),
    'model_state_dict': (lambda s: {'epoch': 3, 'model_state_dict': s, 'loss': .1}, 'model_state_dict'),
    'net': (lambda s: {'net': s}, 'net'),
    'nested': (lambda s: {'checkpoint': {'weights': s}}, 'checkpoint weights'),
    'module': (lambda s: {'state_dict': below('module.', s)}, 'state_dict module.'),
    'backbone': (lambda s: below('backbone.', s), 'backbone.'),
    'encoder': (lambda s: below('encoder.', s, **{'head.weight': torch.ones(3, 48)}), 'encoder.'),
    'any word': (lambda s: {'anything': below('my.own.wrapper.', s)}, 'anything my.own.wrapper.'),
    'wrapped twice': (lambda s: {'net': below('module.model.backbone.', s)}, 'net module. model.backbone.'),
    'compiled': (lambda s: {'model': below('_orig_mod.', s)}, 'model _orig_mod.'),
    'Lightning': (lambda s: {**LIGHTNING, 'state_dict': below('model.', s, **{'head.weight': torch.ones(2, 48)})},
                  'state_dict model.'),
    'averaged': (lambda s: {'model_ema': {k: v + 1 for k, v in s.items()}, 'model': s}, 'model'),
    'teacher': (lambda s: {'student': {k: v + 1 for k, v in s.items()}, 'teacher': below('backbone.', s)},
                'teacher backbone.'),
    'contrastive': (lambda s: {'state_dict': {**below('module.encoder_q.', s), **below('module.encoder_k.', {
        k: v + 1 for k, v in s.items()}), 'module.queue': torch.ones(4, 9)}}, 'state_dict module. encoder_q.'),
    'training': (lambda s: {'model': s, 'optimizer': {'state': {i: {'exp_avg': v} for i, v in enumerate(s.values())}},
                            'optimizer_state_dict': {k: torch.ones(2) for k in (*s, 'more')}}, 'model'),
    'arrays': (lambda s: {'model': {k: v.numpy() for k, v in s.items()}}, 'model')}


def made_vit(): return ViT((32, 32), 8, **SIZE)


def made_mirage(): return MultiViT([Modality('bscan', 8, 32), Modality('slo', 8, 32)], **SIZE)


@pytest.mark.parametrize('build', [made_vit, made_mirage], ids=['vit', 'mirage'])
@pytest.mark.parametrize('form', FORMS)
def test_a_model_is_found_below_any_name(form, build, tmp_path):
    "The same tensors come out of every form; by name and by the tensors alone; the report says what was stripped"
    torch.manual_seed(0)
    source = build()
    wrap, said = FORMS[form]
    path = saved(tmp_path/'w.pth', wrap(tensors(source.state_dict())))
    for model in (build(), load_model(path, heads=4).model):
        report = load_weights(model, path)
        assert not report.new and report.stripped == said
        assert report.summary().get('taken from below', '') == said
        for k, v in model.state_dict().items(): assert torch.equal(v, source.state_dict()[k]), k


@pytest.mark.parametrize('begin', ['', 'model.', 'module.wrapped.'])
def test_the_hub_form(begin, tmp_path):
    "Safetensors with a wrapper's names, as the hub has them: a pre-training model, its decoders, its settings' absence"
    both = [Modality('bscan', 8, 32), Modality('slo', 8, 32)]
    source = MultiMAE(both, decoder={'d': 16, 'heads': 4}, **SIZE)
    save_file(below(begin, tensors(source.state_dict())), tmp_path/'model.safetensors', {'format': 'pt'})
    ready = load_model(tmp_path/'model.safetensors', heads=4, decoder_heads=4)
    assert {m.name for m in ready.model.outputs} == {'bscan', 'slo'}
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in ready.model.state_dict().items())
    assert load_weights(MultiViT(both[:1], **SIZE), tmp_path/'model.safetensors').stripped == begin


HUB = {'patch_embed.proj.': 'embeddings.patch_embeddings.projection.', 'pos_embed': 'embeddings.position_embeddings',
       'cls_token': 'embeddings.cls_token', 'register_tokens': 'embeddings.register_tokens', 'norm.': 'layernorm.',
       'attn.proj.': 'attention.output.dense.', 'decoder_blocks.': 'decoder.decoder_layers.',
       'blocks.': 'encoder.layer.'}
HUB_VIT = {'mlp.fc1.': 'intermediate.dense.', 'mlp.fc2.': 'output.dense.', 'norm1.': 'layernorm_before.',
           'norm2.': 'layernorm_after.'}


def hub_form(state, begin, dino):
    "Names of the transformers library, as its 4.57 writes them: queries, keys and values apart, a decoder beside"
    found = {}
    for k, v in state.items():
        for ours, theirs in HUB.items(): k = re.sub(rf'(^|\.){re.escape(ours)}', rf'\1{theirs}', k) if (
            ours != 'norm.' or k.startswith('norm.')) else k
        for ours, theirs in ({'ls1.gamma': 'layer_scale1.lambda1', 'ls2.gamma': 'layer_scale2.lambda1'} if dino
                             else HUB_VIT).items(): k = k.replace(ours, theirs)
        if k.startswith(('decoder_', 'mask_token')): k = f'decoder.{k}'
        elif not k.startswith('decoder.'): k = begin + k
        if '.attn.qkv.' not in k: found[k] = v
        else: found |= {k.replace('attn.qkv', f'attention.attention.{part}'): w.clone() for part, w in zip(
            ('query', 'key', 'value'), v.chunk(3), strict=True)}
    return found


@pytest.mark.parametrize('dino', [False, True], ids=['vit', 'dinov2'])
@pytest.mark.parametrize('begin', ['', 'vit.'])
def test_the_hub_form_of_vision_transformers(begin, dino, tmp_path):
    "The transformers library names and splits tensors its own way; the decoder of a masked autoencoder stands beside"
    torch.manual_seed(0)
    options = {'layer_scale': .5, 'registers': 4} if dino else {}
    mae = MAE(size=32, patch=8, **SIZE, decoder_d=16, decoder_depth=1, decoder_heads=4)
    source = ViT(32, 8, **SIZE, **options) if dino else mae
    state = hub_form(source.state_dict(), begin, dino)
    assert f'{begin}encoder.layer.1.attention.attention.key.bias' in state and not any('qkv' in k for k in state)
    save_file(tensors(state), tmp_path/'model.safetensors', {'format': 'pt'})
    ready = load_model(tmp_path/'model.safetensors', heads=4, decoder_heads=4).model
    assert type(ready) is type(source) and ready.state_dict().keys() == source.state_dict().keys()
    for k, v in source.state_dict().items(): assert torch.equal(ready.state_dict()[k], v), k


@pytest.mark.parametrize('begin', ['net.', 'state.model.encoder.'])
def test_convolutional_networks_below_other_names(begin, tmp_path):
    source = CnnEncoder('resnet50').state_dict()
    path = saved(tmp_path/'r.pt', {'net': below(begin, source, **{'head.weight': torch.ones(3, 2048)})})
    ready = load_model(path)
    assert isinstance(ready.model, CnnEncoder)
    assert torch.equal(ready.model.state_dict()['layer4.2.conv3.weight'], source['layer4.2.conv3.weight'])


OF_TWO = {'moco': ('module.encoder_q.', 'module.encoder_k.'), 'moco v3': ('base_encoder.', 'momentum_encoder.'),
          'byol': ('online_network.encoder.', 'target_network.encoder.'),
          'mmselfsup': ('online_net.0.', 'target_net.0.')}


@pytest.mark.slow
@pytest.mark.parametrize('swapped', [False, True], ids=['', 'the follower first'])
@pytest.mark.parametrize('form', OF_TWO)
def test_of_two_networks_the_one_that_learns_is_taken(form, swapped, tmp_path):
    "With what stands beside them: heads, a queue of keys, prototypes"
    source, (learns, follows) = CnnEncoder('resnet50').state_dict(), OF_TWO[form]
    parts = [below(learns, source), below(follows, {k: torch.zeros_like(v) for k, v in source.items()})]
    beside = {'module.queue': torch.ones(8, 16), 'module.queue_ptr': torch.zeros(1, dtype=torch.long),
              f'{learns}fc.0.weight': torch.ones(4, 2048), 'prototypes.weight': torch.ones(30, 8)}
    state = {k: v for part in parts[::-1 if swapped else 1] for k, v in part.items()} | beside
    enc = CnnEncoder('resnet50')
    report = load_weights(enc, saved(tmp_path/'two.pth', {'epoch': 200, 'state_dict': state}), may_be_new=())
    assert learns.removeprefix('module.') in report.stripped
    assert all(torch.equal(enc.state_dict()[k], v) for k, v in source.items())


@pytest.mark.slow
@pytest.mark.parametrize('swapped', [False, True], ids=['', 'the follower first'])
def test_networks_under_keys_of_their_own(swapped, tmp_path):
    source = CnnEncoder('resnet50').state_dict()
    both = [('online_network_state_dict', below('encoder.', source)),
            ('target_network_state_dict', below('encoder.', {k: torch.zeros_like(v) for k, v in source.items()}))]
    enc = CnnEncoder('resnet50')
    load_weights(enc, saved(tmp_path/'byol.pth', dict(both[::-1] if swapped else both)), may_be_new=())
    assert all(torch.equal(enc.state_dict()[k], v) for k, v in source.items())


@pytest.mark.slow
@pytest.mark.parametrize('begin', ['', 'module.densenet121.'])
def test_densenet_under_the_names_of_its_first_files(begin, tmp_path):
    "torchvision's file of ImageNet weights, and that of a tuned network with epoch, lossMIN and state_dict"
    source = CnnEncoder('densenet121').state_dict()
    old = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)\.', r'\1.\2.', k): v for k, v in source.items()}
    assert old.keys() != source.keys()
    state = below(begin, old, **{f'{begin}classifier.0.weight': torch.ones(14, 1024)})
    content = {'epoch': 3, 'lossMIN': .1, 'state_dict': state} if begin else state
    enc = CnnEncoder('densenet121')
    load_weights(enc, saved(tmp_path/'old.pth', content), may_be_new=())
    assert all(torch.equal(enc.state_dict()[k], v) for k, v in source.items())
    assert isinstance(load_model(tmp_path/'old.pth').model, CnnEncoder)


def test_a_unet_below_another_name(tmp_path):
    "A masked autoencoder on a U-Net stays one, whatever its names stand below"
    unet = pretrain_model('mae_cnn_densenet121')
    ready = load_model(saved(tmp_path/'u.pt', {'state_dict': below('net.', unet.state_dict())}))
    assert type(ready.model) is type(unet) and 'model.decoder.blocks.0.conv1.0.weight' in ready.model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize('begin', ['', 'anything.model.'])
def test_networks_of_timm_below_other_names(begin, tmp_path):
    "And with positions of a grid that is not square, which timm takes for a square one"
    source = build_encoder('timm:vit_tiny_patch16_224', size=(64, 144))  # 4 x 9 patches: as many as 6 x 6
    path = saved(tmp_path/'t.pth', {'net': below(begin, source.net.state_dict())})
    for size, same in (((64, 144), True), ((96, 96), False)):
        net = build_encoder('timm:vit_tiny_patch16_224', size=size)
        with torch.no_grad(): source.net.pos_embed.copy_(ViT((64, 144), 16, d=192, depth=1, heads=3).pos_embed)
        saved(path, {'net': below(begin, source.net.state_dict())})
        assert not load_weights(net, path).new
        want = source.net.pos_embed if same else resize_row(source.net.pos_embed, (4, 9), (6, 6))
        close(net.net.pos_embed, want)


def test_heads_below_other_names(tmp_path):
    "A published segmentation head, and the last layer of a classifier, are found as the encoder is"
    source = seg_model('mirage_tiny', 4, 'convnext', (64, 64))
    state = {**source.encoder.state_dict(), **below('output_adapters.semseg.', source.head.state_dict())}
    model = seg_model('mirage_tiny', 4, 'convnext', (64, 64))
    report = start_segmenter(model, saved(tmp_path/'s.pth', {'net': below('model.', state)}))
    assert not report.new and not report.unused and report.stripped == 'net model.'
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    encoder = build_encoder('vit_small_patch16', size=32, global_pool=True).state_dict()
    path = saved(tmp_path/'c.pth', {'net': below('module.', encoder | {
        'head.weight': torch.ones(3, 384), 'head.bias': torch.ones(3)})})
    tuned = cls_model('vit_small_patch16', 3, 'global', (32, 32), global_pool=True)
    start_classifier(tuned, path, keep_head=list('abc'))
    assert tuned.head.weight.eq(1).all()


def test_endings_do_not_matter(tmp_path):
    source = made_vit()
    state = tensors(source.state_dict())
    for name in ('A.SAFETENSORS', 'model.bin', 'weights.pth', 'no_ending'): save_file(state, tmp_path/name)
    for name in ('B.PTH', 'B.safetensors', 'B.CKPT', 'b'): saved(tmp_path/name, {'model': state})
    for path in tmp_path.iterdir():
        assert read_checkpoint(path).state.keys() == state.keys(), path.name
        assert not load_weights(made_vit(), path).new


def renamed(path, old, new):
    "A file of torch.save whose pickle names a module otherwise"
    with zipfile.ZipFile(path) as f: parts = {n: f.read(n) for n in f.namelist()}
    assert any(old.encode() in v for n, v in parts.items() if n.endswith('data.pkl'))
    with zipfile.ZipFile(path, 'w') as f:
        for n, v in parts.items(): f.writestr(n, v.replace(old.encode(), new.encode()) if n.endswith('data.pkl') else v)
    return path


@pytest.mark.parametrize('core', ['numpy._core', 'numpy.core'])
def test_values_of_numpy(core, tmp_path):
    "Numbers and arrays of NumPy beside the weights, as NumPy 1 and 2 name them; paths of any Python and system"
    values = {'f': np.float64(.5), 'i': np.int64(3), 'b': np.bool_(True), 'c': np.float32(2), 's': np.str_('word'),
              'day': np.datetime64('2024-05-01'), 'mean': np.arange(6.).reshape(2, 3), 'order': np.asfortranarray(
                  np.arange(6).reshape(2, 3)), 'half': np.ones(3, np.float16), 'names': np.array(['a', 'bc']),
              'objects': np.array(['a', None], object), 'none': np.zeros((0, 4)), 'args': argparse.Namespace(
                  n=np.int32(1), out=Path('runs')), 'rows': np.array([(1, 2.)], [('a', 'i4'), ('b', 'f8')])}
    path = saved(tmp_path/'n.pth', {'model': tensors(made_vit().state_dict()), **values})
    renamed(path, 'numpy._core', core)
    renamed(path, 'pathlib', 'pathlib._local') if core == 'numpy.core' else None
    found = read_checkpoint(path)
    assert len(found.state) == len(made_vit().state_dict()) and found.meta['args'].out == Path('runs')
    for k, v in values.items():
        if k == 'args': continue
        assert np.array_equal(found.meta[k], v) and getattr(found.meta[k], 'dtype', 0) == v.dtype, k


class _Calls:
    "A pickle that calls a function as it is read"
    def __init__(self, function, *args): self.call = function, args

    def __reduce__(self): return self.call


def begun(shape): return _Calls(np.zeros(1).__reduce__()[0], np.ndarray, shape, b'b')


@pytest.mark.parametrize(('value', 'said'), [
    (_Calls(eval, '1'), 'eval'), (_Calls(np.fromfile, 'x'), 'numpy.fromfile'), (_Calls(np.load, 'x'), 'numpy.load'),
    (_Calls(np.memmap, 'x', 'u1', 'w+', 0, (9,)), 'numpy.memmap'), (_Calls(getattr, 'a', 'load'), 'getattr'),
    (_Calls(pickle.loads, b'x'), 'loads'), (_Calls(Path.write_text, Path('x'), 'harm'), 'getattr')],
    ids=lambda v: v if isinstance(v, str) else '')
def test_functions_beside_the_list_are_refused(value, said, tmp_path, monkeypatch):
    "The list holds no function of NumPy, Python or a path that reads, writes or runs"
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path/'evil.pth', {'model': tensors(made_vit().state_dict()), 'more': value})
    with pytest.raises(ValueError, match=f'evil.pth is refused: it would call .*{said}'): read_checkpoint(path)
    assert [p.name for p in tmp_path.iterdir()] == ['evil.pth']


def test_an_array_cannot_claim_memory(tmp_path):
    "The size of an array comes with its values; a claim of terabytes is refused at once"
    start = time.perf_counter()
    for shape in ((10**13,), (10**6, 10**6)):
        path = saved(tmp_path/'bomb.pth', {'model': tensors(made_vit().state_dict()), 'more': begun(shape)})
        with pytest.raises(ValueError, match='bomb.pth cannot be read'): read_checkpoint(path)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize('content', [{'epoch': 3}, {0: torch.ones(2)}, [torch.ones(2)], torch.ones(3),
                                     {'optimizer': {'state': {'a': torch.ones(2)}}}], ids=str)
def test_a_file_without_a_model(content, tmp_path):
    path = saved(tmp_path/'w.pth', content)
    with pytest.raises(ValueError, match='w.pth holds no model: looked for named tensors at the top and'):
        read_checkpoint(path)


# ------------------------------------------------------------------ positions of a grid that is not square

@pytest.mark.parametrize('size', [(64, 96), (32, 128), (128, 288), (64, 64), (96, 32)])
def test_positions_show_their_grid(size, tmp_path):
    "Rows and columns of a file are read off its positions: 16 x 36 are as many as 24 x 24"
    torch.manual_seed(0)
    source = MAE(size=size, patch=8, **SIZE, decoder_d=16, decoder_depth=1, decoder_heads=4)
    path = saved(tmp_path/'w.pth', {'model': source.state_dict()})
    assert load_model(path, heads=4, decoder_heads=4).model.grid == source.grid
    with torch.no_grad(): source.pos_embed.add_(.05*torch.randn(source.pos_embed.shape))  # learned
    saved(path, {'model': source.encoder_state()})
    assert load_model(path, heads=4).model.grid == source.grid
    other = ViT((192, 192), 8, **SIZE)
    report = load_weights(other, path)
    want = resize_row(source.pos_embed, source.grid, (24, 24))
    assert torch.equal(other.pos_embed, want) and report.resized == ['pos_embed']
    same = ViT(size, 8, **SIZE)
    assert not load_weights(same, path).resized and torch.equal(same.pos_embed, source.pos_embed)


def test_positions_of_mirage_that_are_not_square(tmp_path):
    "Theirs have rows and columns in the file: they are brought to the model's grid, and said"
    source = MultiViT([Modality('bscan', 8, 64)], **SIZE)
    wide = resize_positions(source.input_adapters['bscan'].pos_emb, (4, 12))
    state = tensors(source.state_dict()) | {'input_adapters.bscan.pos_emb': wide}
    report = load_weights(source, saved(tmp_path/'w.pth', {'net': below('model.', state)}))
    assert report.resized == ['input_adapters.bscan.pos_emb'] and report.stripped == 'net model.'
    assert load_model(tmp_path/'w.pth', heads=4).encode({'bscan': torch.rand(1, 1, 32, 96)}).grid == (4, 12)


def test_positions_without_a_pattern(tmp_path):
    "Nothing tells the grid of random positions that are no square: said so, with the way out"
    source = ViT((64, 96), 8, **SIZE)
    nn.init.normal_(source.pos_embed)
    path = saved(tmp_path/'w.pth', source.state_dict())
    with pytest.raises(ValueError, match=r'97 positions, which are no square grid.*size=\(rows, columns\)'):
        load_model(path, heads=4)
    same = ViT((64, 96), 8, **SIZE)
    load_weights(same, path)
    assert torch.equal(same.pos_embed, source.pos_embed)
    with pytest.raises(ValueError, match=r'pos_embed is \(1, 97, 48\) there and \(1, 65, 48\) here'):
        load_weights(ViT((64, 64), 8, **SIZE), path)


OLDER = (r'(denselayer\d+\.(?:norm|conv))(\d)\.', r'\1.\2.')  # names that torchvision's own DenseNets have


def fine_tuned(state, n, layer='head', width=8):
    return {'model': {**state, f'{layer}.weight': torch.ones(n, width), f'{layer}.bias': torch.ones(n)}, 'epoch': 9}


def two_networks(learns, follows, state, head):
    layers = {f'{learns}{head}.{i}.weight': torch.ones(8, 8) for i in (0, 2)}
    return {'epoch': 200, 'state_dict': below(learns, state) | below(follows, state) | layers}


def moco(state, head): return two_networks('module.encoder_q.', 'module.encoder_k.', state, head)


def byol(state): return two_networks('online_network.', 'target_network.', state, 'projection')


def swav(state):
    return below('module.', state, **{'module.projection_head.0.weight': torch.ones(8, 8),
                                      'module.prototypes.weight': torch.ones(30, 8)})


def lossmin(state):
    old = below('module.densenet121.', {re.sub(*OLDER, k): v for k, v in state.items()})
    return {'epoch': 9, 'lossMIN': .1, 'best_loss': .1,
            'state_dict': old | {'module.densenet121.classifier.0.weight': torch.ones(14, 8)}}


NIH = 'tuned classifier, 14 outputs'
TABLE = {  # name of published weights -> model whose tensors they hold, form of the file, what the report says of it
    'medical_mae_vit_s': ('mae_vit_small_patch16_dec512d2b', lambda s: {'model': s}, 'MAE with its decoder, ViT-S/16'),
    'medical_mae_vit_b': ('mae_vit_base_patch16_dec512d8b', lambda s: {'model': s}, 'MAE with its decoder, ViT-B/16'),
    'medical_mae_vit_s_imagenet': ('mae_vit_small_patch16_dec512d2b', lambda s: {'model': s},
                                   'MAE with its decoder, ViT-S/16'),
    **{f'medical_mae_vit_{k}_{data}': ('', lambda s, n=n: fine_tuned(s, n),
                                       f'ViT-{k.upper()}/16, tuned classifier, {n} outputs (head dropped)')
       for k in 'sb' for data, n in (('nih', 14), ('chexpert', 5), ('covidx', 4))},
    'medical_mae_vit_s_imagenet_nih': ('', lambda s: fine_tuned(s, 14), f'ViT-S/16, {NIH} (head dropped)'),
    'deit_small': ('', lambda s: fine_tuned(s, 1000), 'ViT-S/16, ImageNet classifier, 1000 outputs (head dropped)'),
    'deit_small_nih': ('', lambda s: fine_tuned(s, 14), f'ViT-S/16, {NIH} (head dropped)'),
    'medical_mae_densenet121': ('mae_cnn_densenet121', lambda s: {'model': s},
                                'MAE on a U-Net, with its decoder, DenseNet-121'),
    **{f'medical_mae_densenet121{k}_nih': ('', lambda s: fine_tuned(s, 14, 'classifier'),
                                           f'torchvision DenseNet-121, {NIH} (head dropped)') for k in ('', '_mocov2')},
    'medical_mae_densenet121_mocov2': ('', lambda s: moco(s, 'classifier'), 'MoCo v2 (query encoder), DenseNet-121'),
    'densenet121_imagenet': ('', lambda s: {re.sub(*OLDER, k): v for k, v in s.items()} | {
        'classifier.weight': torch.ones(1000, 8)},
        'torchvision DenseNet-121, older names, ImageNet classifier, 1000 outputs (head dropped)'),
    'medical_mae_densenet121_imagenet_nih': ('', lossmin, 'torchvision DenseNet-121, older names, training file with '
                                             f'epoch, lossMIN and state_dict, {NIH} (head dropped)'),
    'medical_mae_resnet50_mocov2': ('', lambda s: moco(s, 'fc'), 'MoCo v2 (query encoder), ResNet-50'),
    'medical_mae_resnet50_byol': ('', byol, 'BYOL (online network), ResNet-50'),
    'medical_mae_resnet50_swav': ('', swav, 'SwAV, ResNet-50'),
    **{f'medical_mae_resnet50_{k}_nih': ('', lambda s: fine_tuned(s, 14, 'fc'),
                                         f'torchvision ResNet-50, {NIH} (head dropped)')
       for k in ('mocov2', 'byol', 'swav')}}


def test_the_table_is_whole():
    listed = {k for k, w in known_weights().items() if 'medical_mae' in w.page or k == 'densenet121_imagenet'}
    assert listed == set(TABLE)


@pytest.mark.parametrize('name', TABLE)
def test_every_checkpoint_of_medical_mae_by_name_and_form(name):
    "Each form, made without values, goes into the model that its name says, whole; the report names the form"
    made, wrap, said = TABLE[name]
    with torch.device('meta'):
        enc = build_encoder(known_weights()[name].model)
        state = dict((pretrain_model(made) if made else enc).state_dict())
        content = wrap(state)
    found, where = _pick_state(content, Path(name))
    report = load_weights(enc, Checkpoint(found, {k: 0 for k in content if k not in where}, Path(name), '', where))
    assert report.summary()['form'] == said
    assert set(report.loaded) | {'fc_norm.weight', 'fc_norm.bias'} >= set(enc.state_dict())


@pytest.mark.parametrize('name', ['medical_mae_resnet50_swav', 'medical_mae_densenet121_imagenet_nih',
                                  'medical_mae_vit_s_covidx'])
def test_files_of_medical_mae_by_name(name, tmp_path, monkeypatch):
    "As they lie in the folder of weights"
    monkeypatch.setenv('MIRAGE_WEIGHTS', str(tmp_path))
    weights = known_weights()[name]
    source = build_encoder(weights.model).state_dict()
    saved(tmp_path/weights.kept_as, TABLE[name][1](tensors(source)))
    ready = load_model(name).model.state_dict()
    assert all(torch.equal(ready[k], v) for k, v in source.items())


def test_a_kept_head_is_told(tmp_path):
    encoder = build_encoder('vit_small_patch16', size=32, global_pool=True)
    head = {'head.weight': torch.ones(4, 384), 'head.bias': torch.ones(4)}
    path = saved(tmp_path/'covidx.pth', {'model': encoder.state_dict() | head})
    for keep, said in ((), 'dropped'), ('abcd', 'kept'):
        model = cls_model('vit_small_patch16', 4, 'global', size=[32, 32], global_pool=True)
        report = start_classifier(model, path, tuple(keep))
        assert report.summary()['form'] == f'ViT-S/16, tuned classifier, 4 outputs (head {said})'


def test_only_weights_that_a_model_takes_have_to_be_finite(tmp_path):
    "A file with a text encoder holds a mask of minus infinity; a last layer counts when it is taken"
    model = cls_model('vit_small_patch16', 4, 'global', size=[32, 32], global_pool=True)
    own = model.encoder.state_dict()
    mask = torch.full((77, 77), -torch.inf).triu(1)
    for name, save in ('a.safetensors', save_file), ('a.pth', lambda d, p: torch.save({'model': d}, p)):
        save({**own, 'text.attn_mask': mask}, tmp_path/name)
        assert load_weights(model.encoder, tmp_path/name).unused == ['text.attn_mask']
    path = saved(tmp_path/'bad.pth', {**own, 'norm1.weight': own['blocks.0.norm1.weight']*torch.nan})
    load_weights(model.encoder, path)
    path = saved(tmp_path/'bad.pth', {**own, 'blocks.0.norm1.weight': own['blocks.0.norm1.weight']*torch.nan})
    with pytest.raises(ValueError, match=r'bad.pth: 384 of 384 values of blocks.0.norm1.weight are NaN or infinite'):
        load_weights(model.encoder, path)
    head = {'head.weight': torch.ones(4, 384), 'head.bias': torch.full((4,), torch.nan)}
    path = saved(tmp_path/'head.pth', {**own, **head})
    start_classifier(model, path)
    with pytest.raises(ValueError, match='head.pth: 4 of 4 values of head.bias are NaN'):
        start_classifier(model, path, tuple('abcd'))
    segmenter = seg_model('mirage_tiny', 3)
    bad = {f'output_adapters.semseg.{k}': v*torch.nan for k, v in segmenter.head.state_dict().items()
           if v.is_floating_point()}
    path = saved(tmp_path/'seg.pth', {**segmenter.encoder.state_dict(), **bad})
    with pytest.raises(ValueError, match=r'seg.pth: .* are NaN'): start_segmenter(segmenter, path)
