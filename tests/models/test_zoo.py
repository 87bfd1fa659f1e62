"Encoders by name, as published"
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mirage_nb.models.checkpoints import export_encoder, load_weights
from mirage_nb.models.loading import load_model
from mirage_nb.models.mirage import MODALITIES
from mirage_nb.models.pretraining import pretrain_model, save_pretrain_model
from mirage_nb.models.zoo import ENCODERS, build_encoder
from mirage_nb.phantoms.oct import _phantom_volume


@pytest.fixture(scope='module')
def image(): return {'image': torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))}


def below(tensors, prefix): return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def close(a, b, rtol=1e-4): torch.testing.assert_close(a, b, rtol=rtol, atol=rtol*float(b.abs().mean()))


def test_names_of_large_models():
    "The keys of RETFound and of MAE's large encoder are those of the named ones"
    with torch.device('meta'):
        retfound, large = build_encoder('RETFound_mae').state_dict(), build_encoder('vit_large_patch16').state_dict()
        mae = pretrain_model('mae_vit_large_patch16').state_dict()
    assert retfound.keys() ^ large.keys() == {'norm.weight', 'norm.bias', 'fc_norm.weight', 'fc_norm.bias'}
    assert large.keys() <= mae.keys() and all(v.shape == mae[k].shape for k, v in large.items())


def test_mirage_as_published(golden):
    "Read, encoded and drawn as recorded; what no tensor tells is asked for"
    c = json.loads((golden/'mirage.json').read_text())['config']
    pre, path = load_file(golden/'mirage_pretrain.safetensors'), next(golden.glob('MIRAGE-*.pth'))
    with pytest.raises(ValueError, match='how many attention heads an encoder of width'): load_model(path)
    ready, x = load_model(path, heads=c['heads']), below(pre, 'input.')
    assert {m.name: m.patch for m in ready.modalities} == {'bscan': c['patch'], 'slo': c['patch'],
                                                           'bscanlayermap': c['lm_patch']}
    with torch.no_grad(): seen = ready.model.read(x)
    close(seen.summary, pre['features_all_modalities'][:, -1])
    assert seen.patches.shape == pre['features_all_modalities'][:, :-1].shape
    for k, v in below(pre, 'pred_full.').items(): close(ready.model.reconstruct(x)[k], v)
    unit = {k: v if k == 'bscanlayermap' else v.sigmoid() for k, v in x.items()}
    drawn = ready.reconstruct({k: v.numpy() for k, v in unit.items()})
    for k, v in ready.model.reconstruct(unit).items():
        assert torch.equal(drawn[k], v.argmax(1)) if k == 'bscanlayermap' else torch.allclose(drawn[k], v)


def test_mae_as_published(golden):
    c = json.loads((golden/'mae.json').read_text())['config']
    pre, path = load_file(golden/'mae_pretrain.safetensors'), next(golden.glob('mae_*checkpoint.pth'))
    ready = load_model(path, heads=c['heads'], decoder_heads=c['dheads'])
    for ratio, recorded in below(pre, 'pred.').items():
        with torch.no_grad(): out = ready.model({'image': pre['input']}, noise=pre['noise'], mask_ratio=float(ratio))
        close(out.patches, recorded.gather(1, out.ids[..., None].expand_as(out.patches)))


@pytest.mark.slow
def test_published_triplet(shared_data, tmp_path):
    "uint8 arrays as they lie on disk, any subset, and nothing of the caller's is changed"
    torch.manual_seed(0)
    keywords = {'name': 'mirage_tiny'}
    ready = load_model(save_pretrain_model(pretrain_model(**keywords), tmp_path/'tiny.safetensors', keywords))
    folder = next(p for p in (shared_data/'mirage_example').iterdir() if p.is_dir())
    images = {k: np.load(folder/f'{k}.npy') for k in MODALITIES}
    assert ready.encode(images).grid == (32, 32)
    images = {k: v[::4, ::4].copy() for k, v in images.items()}  # the rest on small ones
    before = {k: v.copy() for k, v in images.items()}
    for names in (MODALITIES, ('slo',), ('bscanlayermap', 'bscan')):
        given = {k: images[k] for k in names}
        assert ready.encode(given).patches.shape[0] == 1
        drawn = ready.reconstruct(given)
        assert set(drawn) == set(MODALITIES) and list(given) == list(names)
        assert drawn['bscanlayermap'].max() < 13 and all(v.isfinite().all() for v in drawn.values())
    assert all((images[k] == v).all() for k, v in before.items())
    two = ready.encode({k: np.stack([v, v]) for k, v in images.items()})
    assert torch.allclose(two.summary, ready.encode(images).summary.expand(2, -1), atol=1e-5)


def test_exported_encoder_of_mirage_tiny(tmp_path):
    "Under 20 MB with its adapters, and any model with this encoder starts from it"
    keywords = {'name': 'mirage_tiny', 'modalities': list(MODALITIES)}
    model = pretrain_model(**keywords)
    path = export_encoder(model, tmp_path/'encoder.safetensors', {'encoder': keywords})
    assert path.stat().st_size < 20e6
    report = load_weights(build_encoder(**keywords), path, may_be_new=())
    assert not report.unused and set(report.loaded) == set(model.encoder_state())
    assert load_model(path).about['encoder'] == keywords
    again = pretrain_model(**keywords)
    assert all(k.startswith('output_adapters.') for k in load_weights(again, path).new)


def test_every_named_encoder_has_the_protocol():
    with torch.device('meta'):
        for name, record in ENCODERS.items():
            enc = build_encoder(name)
            layers = {enc.layer_of(n) for n, _ in enc.named_parameters()}
            behind = record.family == 'vit'  # its norm
            assert layers == set(range(record.depth + 1 + behind)), name
            for how in ('embeddings', 'probe', 'full'): enc.freeze(how)
            assert all(p.requires_grad for p in enc.parameters())


def drawn_dice(bscans, masks, classes):
    "Dice of each layer and of fluid, drawn by the linear layer of the shipped weights, over all pixels"
    model, overlap, sizes = load_model('mirage_tiny').model.eval(), np.zeros(9), np.zeros(9)
    for bscan, mask in zip(bscans, masks, strict=True):
        with torch.no_grad(): scores = model.draw_classes(torch.from_numpy(bscan)[None, None]/255)
        drawn = classes[torch.nn.functional.interpolate(scores, (256, 256), mode='bilinear').argmax(1)[0].numpy()]
        for k in range(9):
            overlap[k] += (drawn[mask == k] == k).sum()
            sizes[k] += (drawn == k).sum() + (mask == k).sum()
    return 2*overlap/sizes


def test_shipped_weights_draw_layers_of_other_phantoms():
    "Of eyes of another seed, in the usual style"
    volumes = [_phantom_volume(7, p, slices=2) for p in (0, 1, 2, 3)]
    bscans, masks = (np.concatenate([v[k] for v in volumes]) for k in ('bscan', 'semseg'))
    classes = np.where(np.arange(13) < 9, np.arange(13), 0)
    assert drawn_dice(bscans.astype(np.float32), classes[masks], classes)[1:8].mean() > 0.6


def test_shipped_weights_draw_layers_of_real_scans(shared_data):
    "Without any training on them: Duke's test patient, classes mapped by name, cysts and subretinal fluid to fluid"
    folder = shared_data/'Duke_DME'/'test'
    bscans, masks = [], []
    for file in sorted((folder/'bscan').iterdir()):
        bscan, mask = Image.open(file).convert('L'), Image.open(folder/'semseg'/file.name)
        bscans.append(np.asarray(bscan.resize((256, 256), Image.Resampling.BILINEAR), np.float32))
        masks.append(np.asarray(mask.resize((256, 256), Image.Resampling.NEAREST)))
    classes = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 8, 8, 0, 0])
    dice = drawn_dice(bscans, masks, classes)
    assert dice[1:8].mean() > 0.75 and dice[8] > 0.5
