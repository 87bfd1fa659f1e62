"Every published form of a checkpoint loads through the one reader: the original numbers, and a true report."
import argparse

import pytest
import timm
import torch
import torchvision
from torch import nn

from mirage_nb.models.checkpoints import load_weights, read_checkpoint
from mirage_nb.models.classification import cls_model, start_classifier
from mirage_nb.models.cnn import CnnEncoder
from mirage_nb.models.loading import load_model
from mirage_nb.models.mae import MAE
from mirage_nb.models.mirage import Modality, MultiViT
from mirage_nb.models.mirage_mae import MultiMAE
from mirage_nb.models.pretraining import pretrain_model
from mirage_nb.models.tensors import infer_architecture
from mirage_nb.models.vit import ViT
from mirage_nb.models.zoo import ENCODERS, _vit_record, build_encoder, encoder_record

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
