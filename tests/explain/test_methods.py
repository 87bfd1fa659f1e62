"Maps of all methods lie where the answer is known to come from"
import pytest
import torch

from mirage_nb.explain.methods import METHODS, methods_for, relevance_maps
from mirage_nb.explain.targets import ClassTarget, RegionTarget
from mirage_nb.models.classification import cls_model
from mirage_nb.models.segmentation import seg_model

SIZE = 128
BLIND = {'last_layer_attn', 'attention_rollout', 'transformer_attribution', 'rollout', 'last_layer', 'second_layer',
         'grad_cam'}  # to places, with random weights: attention is then alike everywhere


@pytest.fixture(scope='module', params=['mirage_tiny', 'resnet50'])
def segmenter(request):
    torch.manual_seed(0)
    model = seg_model(request.param, 3, head='linear', size=[SIZE, SIZE])
    return model, {'bscan': torch.rand(2, 1 if request.param == 'mirage_tiny' else 3, SIZE, SIZE)}


def quarters(maps):
    "Share of the size of a map in the upper left and in the lower right quarter of each image"
    size, half = maps.abs(), SIZE//2
    both = torch.stack([size[:, :half, :half].sum((1, 2)), size[:, half:, half:].sum((1, 2))], 1)
    return both/size.sum((1, 2))[:, None]


@pytest.mark.slow
def test_relevance_of_a_region_lies_at_the_region(segmenter):
    "Each image of the batch has a region of its own: the target must not be mixed up between versions of the images"
    model, x = segmenter
    mask, half = torch.zeros(2, SIZE, SIZE, dtype=torch.bool), SIZE//2
    mask[0, :half - 16, :half - 16] = mask[1, half + 16:, half + 16:] = True
    for name in methods_for(model, x):
        if name in BLIND: continue
        more = {'occlusion': {'window': 32, 'stride': 32}, 'integrated_gradients': {'steps': 8}}.get(name, {})
        share = quarters(relevance_maps(model, x, RegionTarget(1, mask), name, **more))
        nearer = share[:, 0] - share[:, 1]
        assert nearer[0] > nearer[1] + .1, (name, share)


def test_the_model_stays_as_it_was():
    "A probe in training: frozen encoder, gradients, mode"
    model = cls_model('mirage_tiny', 3, size=[32, 32])
    model.encoder.freeze('probe')
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    x = {'bscan': torch.rand(1, 1, 32, 32)}
    for name in METHODS:
        with torch.no_grad(): maps = [relevance_maps(model, x, ClassTarget(i), name) for i in range(3)]
        assert max(m.std() for m in maps) > 0, f'{name} has no gradient in a frozen encoder'  # Grad-CAM: of some
    assert model.encoder.frozen == 'probe' and model.training
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not x['bscan'].requires_grad
