"Any encoder, any head: a step, a save and a load; what trains; layers for learning rates that fall with depth"
import pytest
import torch

from mirage_nb.models.checkpoints import save_weights
from mirage_nb.models.classification import cls_model, load_cls_model, start_classifier
from mirage_nb.models.heads.segmentation import HEADS
from mirage_nb.models.segmentation import SegModel, load_seg_model, seg_model, start_segmenter
from mirage_nb.models.tuning import choose_training, save_tuned_model
from mirage_nb.models.zoo import ENCODERS, _cnn_record, _mirage_record, _vit_record, build_encoder, encoder_record
from mirage_nb.train.optim import param_groups

pytestmark = pytest.mark.slow

HEAD_OPTIONS = {'convnext': {'embed_dim': 64, 'depth': 1}, 'segmenter': {'embed_dim': 24, 'num_heads': 2},
                'dpt': {'layer_dims': (4, 6, 8, 12), 'feature_dim': 8}}
SIZES = {  # rows and columns of the images, by encoder; not square where the encoder takes that
    'mirage': (32, 48), 'ViT': (32, 48), 'RETFound_mae': (32, 48), 'RETFound_dinov2': (28, 42), 'USPEC': (32, 48),
    'medical_mae_vit': (32, 48), 'densenet121': (64, 96), 'resnet50': (64, 96),
    'timm:vit_tiny_patch16_224': (32, 48), 'timm:vit_small_patch14_reg4_dinov2.lvd142m': (28, 42),
    'timm:vit_small_patch16_dinov3.lvd1689m': (32, 48), 'timm:eva02_tiny_patch14_224': (28, 42),
    'timm:swin_tiny_patch4_window7_224': (64, 96), 'timm:convnext_atto': (64, 96), 'timm:resnet18': (64, 96),
    'timm:efficientnet_b0': (64, 96)}
HEAVY = ('densenet121', 'resnet50', 'timm:vit_small_patch14_reg4_dinov2.lvd142m',
         'timm:vit_small_patch16_dinov3.lvd1689m',
         'timm:swin_tiny_patch4_window7_224', 'timm:efficientnet_b0', 'timm:resnet18', 'timm:convnext_atto',
         'timm:eva02_tiny_patch14_224')
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in SIZES]
SMALL = (  # the families of the zoo, small: their names, options and heads are those of the large ones
    _mirage_record('mirage', 24, 4, 3, 32, 8), _vit_record('ViT', 24, 4, 3, patch=8),
    _vit_record('RETFound_mae', 24, 4, 3, patch=8, global_pool=True),
    _vit_record('RETFound_dinov2', 24, 4, 3, patch=14, layer_scale=1e-5),
    _vit_record('USPEC', 24, 4, 3, patch=8, global_pool=True),
    _vit_record('medical_mae_vit', 24, 4, 3, patch=8, global_pool=True), _cnn_record('densenet121', 1024),
    _cnn_record('resnet50', 2048))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for r in SMALL: monkeypatch.setitem(ENCODERS, r.name, r)
    torch.manual_seed(0)


def segmenter(name, head):
    keywords = {'name': name, 'n_classes': 3, 'head': head, 'size': SIZES[name], 'head_options': HEAD_OPTIONS.get(head)}
    return seg_model(**keywords), keywords


def images(name, b=2):
    return torch.randn(b, encoder_record(name).channels, *SIZES[name])


def step(model, x, y):
    "One step of training; names of the tensors that it moves"
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(param_groups(model, 0.05, 0.75), lr=0.1)
    for _ in range(2):  # adapters start with a matrix of zeros: the other moves in the second step
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x, torch.arange(len(y))), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('name', NAMES)
def test_segmentation(name, head, tmp_path):
    model, keywords = segmenter(name, head)
    x = {'bscan': images(name)}
    moved = step(model, x, torch.randint(3, (2, *SIZES[name])))
    assert any(k.startswith('encoder.') for k in moved) and any(k.startswith('head.') for k in moved)
    again, about = load_seg_model(save_tuned_model(model, tmp_path/'a.safetensors', keywords, note='x'))
    with torch.no_grad(): scores = model.eval()(x)
    assert scores.shape == (2, 3, *SIZES[name]) and torch.equal(again(x), scores) and about['note'] == 'x'
    maps = model.features(x)
    torch.testing.assert_close(model({}, maps=maps, size=SIZES[name]), scores)


@pytest.mark.parametrize('name', NAMES)
def test_classification(name, tmp_path):
    for pool in ('global', 'token_mix'):
        keywords = {'name': name, 'n_classes': 3, 'pool': pool, 'size': SIZES[name]}
        model = cls_model(**keywords)
        x = {model.encoder.modality: images(name)}
        assert {'head.weight', 'head.bias'} <= step(model, x, torch.tensor([0, 2]))
        again, _ = load_cls_model(save_tuned_model(model, tmp_path/f'{pool}.safetensors', keywords))
        with torch.no_grad(): assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize('tune', ['full', 'embeddings', 'probe', 'last', 'lora'])
@pytest.mark.parametrize('name', NAMES)
def test_what_trains(name, tune, tmp_path):
    "The tensors that move are those of the layers that are to train; a file of ours is that of an ordinary model"
    model, keywords = segmenter(name, 'linear')
    choose_training(model, tune, last_blocks=1, lora_rank=2)
    x, depth = {'bscan': images(name)}, model.depth
    moved = step(model, x, torch.randint(3, (2, *SIZES[name])))
    inside = {model.layer_of(k) for k in moved if k.startswith('encoder.')}
    assert {'head.final_layer.weight', 'head.final_layer.bias'} <= moved
    if tune == 'full': assert inside >= set(range(depth + 1))
    if tune == 'embeddings': assert inside and inside <= {0, depth + 1}
    if tune == 'probe': assert not inside
    if tune == 'last': assert inside and inside <= {depth, depth + 1}
    if tune == 'lora': assert inside and all('lora_' in k for k in moved if k.startswith('encoder.'))
    again, _ = load_seg_model(save_tuned_model(model, tmp_path/'a.safetensors', keywords))
    with torch.no_grad(): torch.testing.assert_close(again(x), model.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_layer_decay_covers_every_parameter_once(name):
    for model in (segmenter(name, 'linear')[0], cls_model(name, 3, size=SIZES[name])):
        groups = param_groups(model, 0.05, 0.5)
        named = [n for g in groups for n in g['names']]
        assert sorted(named) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
        scales = {g['lr_scale'] for g in groups}
        assert scales >= {0.5**(model.depth + 1 - i) for i in (0, 1, model.depth)} and max(scales) == 1
        decayed = [n for g in groups if g['weight_decay'] for n in g['names']]
        assert decayed and not [n for n in decayed if n.endswith(('.bias', 'cls_token', 'pos_embed'))]


@pytest.mark.parametrize('name', NAMES[1:])
def test_weights_go_from_one_kind_of_model_to_the_other(name, tmp_path):
    "From a bare encoder's file, from a classifier's, and from a segmentation model's"
    model, keywords = segmenter(name, 'linear')
    classifier = cls_model(name, 3, size=SIZES[name])
    start_classifier(classifier, save_tuned_model(model, tmp_path/'seg.safetensors', keywords))
    other = segmenter(name, 'linear')[0]
    start_segmenter(other, save_tuned_model(classifier, tmp_path/'cls.safetensors', {'name': name, 'n_classes': 3}))
    bare = build_encoder(name, size=SIZES[name])
    report = start_segmenter(segmenter(name, 'linear')[0], save_weights(bare, tmp_path/'bare.safetensors', {}))
    assert set(report.loaded) == set(bare.state_dict())
    for k, v in model.encoder.state_dict().items(): assert torch.equal(v, other.encoder.state_dict()[k]), k


def test_heads_take_what_an_encoder_of_the_user_gives():
    "An encoder is one class: `read` and `maps`"
    from mirage_nb.models.encoder import Encoded, Encoder

    class Pixels(Encoder):
        entry = ('color.',)

        def __init__(self):
            super().__init__(d=8, depth=1)
            self.color, self.blocks = torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.ModuleList([torch.nn.Linear(8, 8)])

        def maps(self, x, keys=None, taps=(-1,)):
            return [self.blocks[0](self.color(x['image']).movedim(1, -1)).movedim(-1, 1) for _ in taps]

        def read(self, x, keys=None):
            m = self.maps(x)[0]
            return Encoded(m.flatten(2).mT, m.mean((2, 3)), m.shape[-2:])

    for head in HEADS:
        model = SegModel(Pixels(), 3, head, HEAD_OPTIONS.get(head))
        assert model({'bscan': torch.rand(2, 3, 16, 24)}).shape == (2, 3, 16, 24)


def test_head_of_several_layers(monkeypatch):
    "Of a network whose maps shrink it gets the channels of each, and the maps as they are"
    class Two(torch.nn.Module):
        taps = (1, 3)

        def __init__(self, d, n_classes):
            super().__init__()
            self.score = torch.nn.ModuleList([torch.nn.Conv2d(c, n_classes, 1) for c in d])

        def forward(self, maps, keys=None):
            fine, coarse = (score(m) for score, m in zip(self.score, maps, strict=True))
            return fine + torch.nn.functional.interpolate(coarse, fine.shape[-2:])

    monkeypatch.setitem(HEADS, 'two', Two)
    for name, widths in (('resnet50', [512, 2048]), ('mirage', [24, 24])):
        model = SegModel(build_encoder(name, size=SIZES[name]), 3, 'two')
        assert [s.in_channels for s in model.head.score] == widths
        assert model({'bscan': images(name)}).shape == (2, 3, *SIZES[name])
    monkeypatch.setattr(Two, 'taps', (1, 11))
    with pytest.raises(ValueError, match="the head 'two' reads the layer 11 of an encoder with 4; it has 0 to 3"):
        SegModel(build_encoder('resnet50'), 3, 'two')


def test_sizes_that_a_model_does_not_take():
    for name, size, words in (('ViT', (33, 48),
                               'patch 8 does not divide an image of 33 x 48 pixels .* nearest size that fits: 32 x 48'),
                              ('resnet50', (16, 64), 'resnet50 halves an image five times; 16 x 64 pixels'),
                              ('timm:vit_tiny_patch16_224', (33, 48), 'the nearest size that it takes is 32 x 48')):
        with pytest.raises(ValueError, match=words): seg_model(name, 3, size=size)


def test_weights_of_the_hub_without_a_network(monkeypatch):
    "The message says what to download and what to do with it"
    from huggingface_hub import constants

    from mirage_nb.models.zoo import weights_file
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    name = 'timm:vit_small_patch14_reg4_dinov2.lvd142m'
    with pytest.raises(ConnectionError, match=r'On a machine with a network, download https\S+model.safetensors '):
        weights_file('timm', name)
