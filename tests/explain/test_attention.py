"Maps of transformers agree with the recorded ones, and point at the patch that decides."
import gc
import json
import weakref

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.stats import binomtest

from mirage_nb.explain.alpha import AlphaFunctions
from mirage_nb.explain.attention import attention_maps
from mirage_nb.explain.targets import ClassTarget, RegionTarget
from mirage_nb.explain.trace import explained, trace
from mirage_nb.models.classification import cls_model
from mirage_nb.models.heads.classification import ClsModel
from mirage_nb.models.segmentation import seg_model
from mirage_nb.models.vit import ViT

PUBLISHED = ('transformer_attribution', 'rollout', 'full', 'last_layer', 'second_layer', 'last_layer_attn')
METHODS = (*PUBLISHED, 'attention_rollout', 'attnlrp')


def tiny_vit(pool='cls', classes=2, **options):
    encoder = ViT(**{'size': 32, 'patch': 8, 'd': 48, 'depth': 2, 'heads': 4, **options})
    return ClsModel(encoder, classes, pool, 'pooled').eval()


@pytest.fixture(scope='module')
def recorded(golden):
    "The recorded model, its tensors, and the side of its patches"
    facts, tensors = json.loads((golden/'explain.json').read_text()), load_file(golden/'explain_lrp.safetensors')
    c = facts['config']
    model = tiny_vit(classes=c['ncls'], size=c['img'], patch=c['patch'], d=c['dim'], depth=c['depth'], heads=c['heads'])
    state = {k.removeprefix('state.'): v for k, v in tensors.items() if k.startswith('state.')}
    own = {k if k.startswith(('norm.', 'head.')) else f'encoder.{k}': v for k, v in state.items()}
    assert not model.load_state_dict(own, strict=False).unexpected_keys
    model.norm.eps = facts['final_norm_eps']
    for block in model.encoder.blocks: block.norm1.eps = block.norm2.eps = facts['block_norm_eps']
    return model, tensors, c['patch']


@pytest.mark.parametrize('index', [None, 1])
@pytest.mark.parametrize('method', PUBLISHED)
def test_golden_maps(recorded, method, index):
    model, tensors, patch = recorded
    x = {'image': tensors['input']}
    torch.testing.assert_close(model(x).detach(), tensors['logits'], rtol=1e-4, atol=1e-4)
    want = tensors[f'{method}.{"predicted" if index is None else f"class{index}"}']
    found = attention_maps(model, x, ClassTarget(index), method)
    step = 1 if method == 'full' else patch
    found = found[:, ::step, ::step].flatten(1)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5*float(want.abs().max()))


def planted(n, seed):
    "Noise with one bright patch at a random place: red is class 0, blue class 1; and the number of the patch"
    g = torch.Generator().manual_seed(seed)
    image, where = 0.1*torch.randn(n, 3, 32, 32, generator=g), torch.randint(16, (n,), generator=g)
    y = torch.randint(2, (n,), generator=g)
    for i in range(n):
        r, c = divmod(int(where[i]), 4)
        image[i, 2*int(y[i]), 8*r:8*r + 8, 8*c:8*c + 8] += 2
    return {'image': image}, y, where


SEEDS = 10, 11, 12


def learn(pool, seed):
    "A model that has learned the colour of the bright patch, in a second"
    torch.manual_seed(seed)
    model = tiny_vit(pool, depth=3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        x, y, _ = planted(32, 1000*seed + step)
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope='module', params=['cls', 'global'])
def trained(request):
    "Models of several seeds"
    return [learn(request.param, seed) for seed in SEEDS]


def shares(models, make):
    "Share of new images for which something holds, by model; make returns it for images, classes and places of patches"
    return [float(make(model, *planted(32, 10**6 + seed)).float().mean())
            for model, seed in zip(models, SEEDS, strict=True)]


@pytest.mark.slow
def test_the_map_points_at_the_patch_that_decides(trained):
    "Each method more often than by chance (1 of 16), over three models: one-sided binomial test, 8 methods, p < 1e-6"
    assert shares(trained, lambda model, x, y, where: model(x).argmax(1) == y) == [1.]*len(SEEDS)
    for method in METHODS:
        def hits(model, x, y, where, method=method):
            maps = attention_maps(model, x, ClassTarget(), method)
            return F.avg_pool2d(maps[:, None], 8).flatten(1).argmax(1) == where
        found = shares(trained, hits)
        p = binomtest(round(32*sum(found)), 32*len(SEEDS), 1/16, 'greater').pvalue
        assert len(METHODS)*p < 1e-6, (method, found)
        if method in ('full', 'attention_rollout', 'attnlrp'): assert min(found) > .5, (method, found)  # of all blocks


@pytest.mark.slow
def test_the_sign_says_for_which_class_the_patch_speaks(trained):
    def signs(model, x, y, where):
        both = [attention_maps(model, x, ClassTarget(c.tolist()), 'attnlrp') for c in (y, 1 - y)]
        at = [F.avg_pool2d(m[:, None], 8).flatten(1).gather(1, where[:, None]) for m in both]
        return torch.stack([at[0] > 0, at[1] < 0])
    assert min(shares(trained, signs)) > 0.75  # by chance 0.5; in each model


class Held:
    "Lives as long as the graph of a run"


@pytest.mark.parametrize('method', METHODS)
def test_a_run_is_not_kept_in_memory(method):
    "A graph that holds itself is never freed: 90 MB an image of ViT-S"
    model, held = tiny_vit(), []

    def hold(_, args, out):
        one = Held()
        held.append(weakref.ref(one))
        out.register_hook(lambda g, one=one: None)
    model.encoder.blocks[0].register_forward_hook(hold)
    attention_maps(model, {'image': torch.rand(2, 3, 32, 32)}, ClassTarget(), method)
    gc.collect()
    assert held and held[0]() is None


@pytest.mark.parametrize('head', ['linear', 'convnext', 'segmenter', 'dpt'])
def test_every_segmentation_head_is_explained(head):
    torch.manual_seed(0)
    options = {'preds_per_patch': 4, 'embed_dim': 64, 'depth': 1} if head == 'convnext' else None
    model = seg_model('mirage_tiny', 3, head=head, size=(32, 32), modalities=['bscan', 'bscanlayermap'],
                      head_options=options)
    x = {'bscan': torch.rand(2, 1, 32, 32), 'bscanlayermap': torch.randint(0, 13, (2, 8, 8))}
    half = torch.zeros(2, 32, 32).bool()
    half[:, :16] = True
    for method in ('transformer_attribution', 'full', 'attnlrp'):
        upper, lower = (attention_maps(model, x, RegionTarget(1, m), method) for m in (half, ~half))
        assert upper.isfinite().all() and upper.shape == (2, 32, 32) and not torch.allclose(upper, lower)
        assert upper.amax((1, 2)).gt(0).all()
    assert attention_maps(model, x, RegionTarget(1, half), 'full', 'bscanlayermap').shape == (2, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize('name, size', [('vit_small_patch14_reg4_dinov2', 56), ('eva02_tiny_patch14_224', 56)])
def test_transformers_of_timm(name, size):
    torch.manual_seed(0)
    model, x = cls_model(f'timm:{name}', 3, size=(size, size), pool='cls'), {'image': torch.rand(2, 3, size, size)}
    with explained(model):
        t = trace(model, x, ClassTarget(1), AlphaFunctions())
        torch.testing.assert_close(t.relevance([t.tokens])[0].sum((1, 2)), torch.ones(2), rtol=1e-3, atol=1e-3)
    for method in ('transformer_attribution', 'full', 'attnlrp'):
        maps = attention_maps(model, x, ClassTarget(1), method)
        assert maps.shape == (2, size, size) and maps.isfinite().all() and maps.std((1, 2)).gt(0).all()


@pytest.mark.slow
@pytest.mark.parametrize('name, size', [('swin_tiny_patch4_window7_224', 224), ('convnext_atto', 64)])
def test_windows_and_convolutions_are_refused(name, size):
    model = cls_model(f'timm:{name}', 3, size=(size, size))
    with pytest.raises(TypeError, match=f'{name} has no blocks in which every token attends to all others, .*grad_cam'):
        attention_maps(model, {'image': torch.rand(1, 3, size, size)}, ClassTarget(1))
