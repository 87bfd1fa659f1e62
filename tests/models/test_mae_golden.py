"Masked autoencoders agree with the recorded numbers: predictions, masks, losses, patch order, checkpoint, CNN masking."
import json

import pytest
import torch
from safetensors.torch import load_file

from mirage_nb.models.checkpoints import load_weights, read_checkpoint
from mirage_nb.models.cnn_mae import CnnMAE, _hide_patches
from mirage_nb.models.mae import MAE, count_visible, order_patches
from mirage_nb.models.patches import patchify, unpatchify
from mirage_nb.models.positions import token_grid
from mirage_nb.train.losses import _masked_mse, patch_mse


@pytest.fixture(scope='module')
def facts(golden): return json.loads((golden/'mae.json').read_text())


@pytest.fixture(scope='module')
def tensors(golden): return load_file(golden/'mae_pretrain.safetensors')


@pytest.fixture(scope='module')
def cnn(golden): return load_file(golden/'mae_cnn_masking.safetensors')


def below(tensors, prefix): return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def close(a, b, rtol=1e-4): torch.testing.assert_close(a, b, rtol=rtol, atol=rtol*float(b.abs().mean()))


def fresh(facts, channels, **options):
    c = facts['config']
    return MAE(size=c['img'], patch=c['patch'], channels=channels, d=c['dim'], depth=c['depth'], heads=c['heads'],
               decoder_d=c['ddim'], decoder_depth=c['ddepth'], decoder_heads=c['dheads'], **options)


@pytest.fixture(scope='module')
def model(facts, tensors):
    made = fresh(facts, tensors['input'].shape[1])
    made.load_state_dict(below(tensors, 'state.'))
    return made


def ratios(tensors): return [float(k) for k in below(tensors, 'pred.')]


def by_place(out):
    return torch.zeros_like(out.patches).scatter(1, out.ids[..., None].expand_as(out.patches), out.patches)


def test_fixed_positions(facts, tensors):
    own = fresh(facts, tensors['input'].shape[1]).state_dict()
    for k in ('pos_embed', 'decoder_pos_embed'): close(own[k], tensors[f'state.{k}'], 1e-5)


def test_patch_order(facts, tensors):
    x, patch = tensors['input'], facts['config']['patch']
    assert torch.equal(patchify(x, patch), tensors['patchify'])
    assert torch.equal(unpatchify(tensors['patchify'], patch, token_grid(x.shape[-2:], patch)), x)


def test_masks_and_predictions(model, tensors):
    "All patches, and the hidden ones alone as in training"
    x, noise = {'image': tensors['input']}, tensors['noise']
    for ratio in ratios(tensors):
        mask, recorded = tensors[f'mask.{ratio}'], tensors[f'pred.{ratio}']
        with torch.no_grad():
            every = model(x, noise=noise, mask_ratio=ratio, all_patches=True)
            hidden = model(x, noise=noise, mask_ratio=ratio)
        assert torch.equal(every.mask, mask.bool()) and torch.equal(hidden.mask, mask.bool())
        close(by_place(every), recorded)
        close(hidden.patches, recorded.gather(1, hidden.ids[..., None].expand_as(hidden.patches)))
        assert torch.equal(torch.zeros_like(mask).scatter(1, hidden.ids, 1.), mask)


@pytest.mark.parametrize('norm_pix', [0, 1])
@pytest.mark.parametrize('every', [False, True])
def test_losses(model, facts, tensors, norm_pix, every):
    for ratio in ratios(tensors):
        out = model({'image': tensors['input']}, noise=tensors['noise'], mask_ratio=ratio, all_patches=every)
        loss = patch_mse(out.patches, out.ids, out.mask, tensors['input'], model.patch, bool(norm_pix))
        assert loss.item() == pytest.approx(facts[f'ratio{ratio}_normpix{norm_pix}'], rel=1e-4)


def test_nothing_hidden_trains_nothing(model, tensors):
    "0/0 would be hidden in the loss and show in the gradient"
    for every in (False, True):
        model.zero_grad()
        out = model({'image': tensors['input']}, mask_ratio=0, all_patches=every)
        loss = patch_mse(out.patches, out.ids, out.mask, tensors['input'], model.patch, norm_pix=True)
        loss.backward()
        assert loss.item() == 0
        assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_published_checkpoint_loads_strictly(facts, golden, tensors):
    made = fresh(facts, tensors['input'].shape[1])
    path = next(golden.glob('mae_*checkpoint.pth'))
    assert 'args' in read_checkpoint(path).meta
    report = load_weights(made, path, may_be_new=())
    assert not (report.new or report.unused or report.resized)
    ratio = ratios(tensors)[0]
    x = {'image': tensors['input']}
    with torch.no_grad(): out = made(x, noise=tensors['noise'], mask_ratio=ratio, all_patches=True)
    close(by_place(out), tensors[f'pred.{ratio}'])


def test_picture_of_normalised_targets(facts, tensors):
    "A perfect prediction of normalised patches gives back the image"
    made, x = fresh(facts, tensors['input'].shape[1], norm_pix=True), tensors['input']
    made.load_state_dict(below(tensors, 'state.'))
    masks = {'image': tensors[f'mask.{ratios(tensors)[0]}']}
    drawn = made.reconstruct({'image': x}, masks)['image']
    hidden = _hide_patches(torch.ones_like(x), masks['image'], made.patch) == 0
    assert torch.equal(drawn[~hidden], x[~hidden])
    true, ours = patchify(x, made.patch), patchify(drawn, made.patch)
    predicted = below(tensors, 'pred.')[str(ratios(tensors)[0])]
    m = masks['image'].bool()
    spread = (true.var(-1, keepdim=True) + 1e-6).sqrt()
    close(ours[m], (predicted*spread + true.mean(-1, keepdim=True))[m])


def test_cnn_masking(cnn, facts):
    x, mask = cnn['input'], cnn['mask']
    patch = round((x.shape[2]*x.shape[3]/mask.shape[1])**.5)
    keep = int((mask == 0).sum(1)[0])
    assert torch.equal(order_patches(cnn['noise'], keep)[1], mask.bool())
    assert torch.equal(_hide_patches(x, mask, patch), cnn['masked_input'])
    model = CnnMAE(facts['cnn']['encoder'], channels=x.shape[1], patch=patch).eval()
    keys = list(model.state_dict())
    assert len(keys) == facts['cnn']['n_keys'] and set(facts['cnn']['state_keys_first']) <= set(keys)
    seen = {}
    model.model.register_forward_pre_hook(lambda m, args: seen.update(image=args[0]))
    assert count_visible(mask.shape[1], model.mask_ratio) == keep
    with torch.no_grad(): out = model({'image': x}, noise=cnn['noise'])
    assert torch.equal(seen['image'], cnn['masked_input']) and torch.equal(out.mask, mask.bool())
    loss = _masked_mse(out.image, x, None, patch)  # over all pixels
    assert loss.item() == pytest.approx((out.image - x).square().mean().item(), rel=1e-5)
