"What a GPU computes is what a processor computes, and a training there can be repeated and resumed; needs a GPU"
import math

import pytest
import torch
from torch.utils.data import Dataset

from mirage_nb.explain.methods import METHODS, methods_for
from mirage_nb.explain.targets import ClassTarget
from mirage_nb.launch.local import launch_training
from mirage_nb.models.classification import cls_model
from mirage_nb.models.heads.volumes import SLICE_POOLS, VolumeHead, fill_bags
from mirage_nb.models.inference import InferenceModel
from mirage_nb.models.pretraining import pretrain_model
from mirage_nb.models.segmentation import seg_model
from mirage_nb.models.zoo import build_encoder
from mirage_nb.randomness import sample_key
from mirage_nb.recipes.segmentation import SegRecipe
from mirage_nb.train.loop import _TIMES, fit
from mirage_nb.train.losses import patch_mse, pretrain_losses, seg_loss
from mirage_nb.train.settings import FitSettings

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here, or pytest without --gpu')
CLASSES = ['a', 'b', 'c', 'd']
KEYS = torch.tensor([sample_key(0, 0, i) for i in range(4)])


def images(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def segmenter(head, name='mirage_tiny'):
    loss, x = seg_loss('CEGDice', CLASSES), images(4, 1, 64, 64)
    return (seg_model(name, 4, head, (64, 64), drop_path=0.2),
            lambda m, d: loss(m({'bscan': x.to(d)}, KEYS), (x[:, 0]*4).byte().to(d)))


def classifier(name, **more):
    x, y = images(4, 3, 64, 64), torch.arange(4)
    return (cls_model(name, 4, size=(64, 64), **more),
            lambda m, d: torch.nn.functional.cross_entropy(m({'image': x.to(d)}, KEYS), y.to(d)))


def mirage():
    x = {k: images(4, 1, 64, 64) for k in ('bscan', 'slo')}
    x['bscanlayermap'] = torch.randint(13, (4, 32, 32), generator=torch.Generator().manual_seed(0))
    model = pretrain_model('mirage_tiny', size=64, patch=16, keep=12)

    def loss(m, d):
        here = {k: v.to(d) for k, v in x.items()}
        predicted, masks = m(here, KEYS)
        return torch.stack([*pretrain_losses(predicted, here, masks, model.patches).values()]).sum()
    return model, loss


def autoencoder(name):
    x, model = images(4, 3, 64, 64), pretrain_model(name, **({'size': 64} if 'vit' in name else {}))

    def loss(m, d):
        out = m({'image': x.to(d)}, KEYS)
        if 'cnn' in name: return (out.image - x.to(d)).square().mean()
        return patch_mse(*out, x.to(d), model.patch, norm_pix=True)
    return model, loss


CASES = {'mirage': mirage, 'mae': lambda: autoencoder('mae_vit_small_patch16'),
         'cnn_mae': lambda: autoencoder('mae_cnn_resnet50'),
         'vit': lambda: classifier('vit_small_patch16', drop_path=0.2), 'densenet': lambda: classifier('densenet121'),
         **{head: lambda head=head: segmenter(head) for head in ('linear', 'convnext', 'segmenter', 'dpt')}}


def loss_and_gradients(model, loss, device, precision=None):
    "Of one batch, the gradients in one vector on the processor"
    model = model.to(device).train()
    with torch.autocast('cuda', precision or torch.bfloat16, enabled=precision is not None): value = loss(model, device)
    value.backward()
    g = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return value.item(), g


@pytest.fixture
def exact():
    "float32 in convolutions too, which PyTorch computes in TF32 on a GPU by itself"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False): yield


@needs_gpu
@pytest.mark.usefixtures('exact')
@pytest.mark.parametrize('name', CASES)
def test_losses_and_gradients_are_those_of_a_processor(name):
    "In float32, with masks and drop path drawn by the same keys; in bf16 to its three digits"
    torch.manual_seed(0)
    model, loss = CASES[name]()
    value, g = loss_and_gradients(model, loss, 'cpu')
    there, h = loss_and_gradients(model, loss, 'cuda')
    assert there == pytest.approx(value, rel=1e-4) and (h - g).norm() < 2e-3*g.norm()
    half, k = loss_and_gradients(model, loss, 'cuda', torch.bfloat16)
    near = 0.3 if name in ('cnn_mae', 'densenet') else 0.9  # batch norm of random weights spreads what bf16 rounds
    assert half == pytest.approx(value, rel=3e-2) and torch.cosine_similarity(k, g, dim=0) > near


class Scans(Dataset):
    "Twelve B-scans of 64 pixels with masks"
    def __len__(self): return 12

    def __getitem__(self, asked):
        epoch, i = asked
        x = images(1, 64, 64, seed=i)
        return {'x': x, 'y': (x[0]*4).byte(), 'id': str(i), 'key': sample_key(0, epoch, i)}


def trained(folder, stop_at=None, **settings):
    "Losses by epoch of a segmenter, whose training may be stopped at a step and taken up"
    torch.manual_seed(0)
    model, calls = seg_model('mirage_tiny', 4, 'convnext', (64, 64), drop_path=0.2), []
    loss = seg_loss('CEGDice', CLASSES)

    def step(m, b):
        calls.append(1)
        if len(calls) == stop_at: raise KeyboardInterrupt
        return loss(m({'bscan': b['x']}, b['key']), b['y'])
    s = FitSettings(epochs=3, batch_size=4, lr=1e-3, **settings)
    rows = fit(model, Scans(), step, lambda m, a: {'score': 1.}, None, s, folder)
    return [{k: v for k, v in r.items() if k not in _TIMES} for r in rows]


@needs_gpu
@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
def test_a_training_is_repeated_and_resumed_to_rounding(precision, tmp_path):
    "Attention and upsampling add in any order on a GPU"
    whole = trained(tmp_path/'a', precision=precision)
    assert whole[-1]['loss'] < whole[0]['loss'] and all(math.isfinite(r['loss']) for r in whole)
    with pytest.raises(KeyboardInterrupt): trained(tmp_path/'c', stop_at=5, precision=precision)
    for again in (trained(tmp_path/'b', precision=precision), trained(tmp_path/'c', precision=precision)):
        far = max(abs(a['loss']/b['loss'] - 1) for a, b in zip(again, whole, strict=True))
        print('apart', precision, far)
        assert far < 1e-2


@needs_gpu
def test_a_training_with_deterministic_algorithms_is_repeated_to_the_last_bit(tmp_path):
    "As docs/speed.md states"
    torch.use_deterministic_algorithms(True)
    try: whole, again = (trained(tmp_path/k, precision='bf16') for k in 'ab')
    finally: torch.use_deterministic_algorithms(False)
    assert whole == again


@needs_gpu
def test_a_compiled_training_is_the_same_to_rounding(tmp_path):
    plain, compiled = (trained(tmp_path/str(c), precision='bf16', compile=c) for c in (False, True))
    assert [r['loss'] for r in compiled] == pytest.approx([r['loss'] for r in plain], rel=2e-2)


@needs_gpu
@pytest.mark.usefixtures('exact')
def test_encoding_is_that_of_a_processor():
    "In the stated tolerance; from lists, bytes and floats, in memory of the processor or on the GPU"
    torch.manual_seed(0)
    encoder, x = build_encoder('mirage_tiny', size=[64, 64], modalities=['bscan']), images(5, 1, 64, 64)
    wanted = InferenceModel(encoder).encode({'bscan': x}, 2).patches
    exact, fast = InferenceModel(encoder).to('cuda'), InferenceModel(encoder, precision='auto').to('cuda')
    assert fast.precision in ('bf16', 'fp16')
    assert torch.allclose(exact.encode({'bscan': x}, 2).patches.cpu(), wanted, atol=1e-3)
    for given in (x, x.cuda(), [*x.numpy()[:, 0]]):
        found = fast.encode({'bscan': given}, 2).patches
        assert torch.cosine_similarity(found.cpu(), wanted, dim=-1).min() > 0.9999
    many = images(12, 1, 64, 64)
    each = torch.cat([exact.encode({'bscan': v}, 2).patches for v in many.split(2)])
    assert torch.allclose(exact.encode({'bscan': many}, 2).patches, each, atol=1e-4)  # recorded from the third on
    seen = (x*255).byte()
    found = [exact.encode({'bscan': v}).patches for v in (seen, seen.float()/255)]
    assert torch.allclose(*found, atol=1e-5)


@needs_gpu
def test_a_model_that_waits_inside_is_not_recorded():
    encoder, x = build_encoder('mirage_tiny', size=[64, 64], modalities=['bscan']), images(12, 1, 64, 64)
    plain, calls = encoder.read, []

    def waiting(batch):
        calls.append(float(batch['bscan'].sum().item()))
        return plain(batch)
    model = InferenceModel(encoder.cuda())
    wanted = model.encode({'bscan': x}, 2).patches
    encoder.read = waiting
    assert torch.allclose(model.encode({'bscan': x}, 2).patches, wanted, atol=1e-4) and len(calls) >= 6
    assert torch.cuda.current_stream() == torch.cuda.default_stream() and torch.rand(3, device='cuda').max() < 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_a_model_on_another_gpu_is_recorded_there():
    "Without the name of its device, the graph would be empty and give the third batch again"
    encoder, x = build_encoder('mirage_tiny', size=[64, 64], modalities=['bscan']), images(12, 1, 64, 64)
    wanted = InferenceModel(encoder).encode({'bscan': x}, 2).patches
    assert torch.allclose(InferenceModel(encoder).to('cuda:1').encode({'bscan': x}, 2).patches.cpu(), wanted, atol=1e-2)


@needs_gpu
@pytest.mark.usefixtures('exact')
def test_maps_of_relevance_are_those_of_a_processor():
    torch.manual_seed(0)  # large weights of the last layer: a map of nearly 0 is rounding alone
    model = cls_model('vit_small_patch16', 4, size=(64, 64), head_init_std=20.).eval()
    x = {'image': images(2, 3, 64, 64)}
    for name in methods_for(model, x):
        maps = [METHODS[name].maps(model.to(d), {k: v.to(d) for k, v in x.items()}, ClassTarget(1)).cpu()
                for d in ('cpu', 'cuda')]
        near = 1e-2 if maps[0].norm() > .1 else 1e-1  # what is left of a sum of 1 is rounded most
        assert (maps[0] - maps[1]).norm() < near*maps[0].norm(), name


@pytest.mark.parametrize('device', ['meta', pytest.param('cuda', marks=needs_gpu)])
@pytest.mark.parametrize('pool', SLICE_POOLS)
def test_kept_slices_come_to_the_device_of_their_head(pool, device):
    "Features are kept on the processor; the device meta, which computes nothing, refuses them as a GPU does"
    bags, head = fill_bags([torch.rand(3, 3, 8), torch.rand(2, 3, 8)]), VolumeHead(8, 4, slices=pool).to(device)
    if device == 'cuda': head.fit_scale(bags)
    for mode in (True, False): assert head.train(mode)(bags, KEYS[:2]).device.type == device


def test_more_processes_than_gpus_are_refused(tmp_path, monkeypatch):
    "Two processes cannot share a GPU: NCCL would fail after minutes"
    if not torch.cuda.is_available(): monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    n = torch.cuda.device_count() + 1
    with pytest.raises(ValueError, match=rf'processes={n}, and this machine has .* take processes={n - 1}'):
        launch_training(SegRecipe(dataset='Phantom_OCT', weights='random', processes=n), tmp_path/'run')
    assert not (tmp_path/'run').exists()
