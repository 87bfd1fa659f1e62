"Utilisation of a GPU by steps of training and by encoding, beside plain PyTorch in bf16; nothing without a GPU"
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import set_fused_attn
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import alternate, row
from benchmarks.bench_mae import PlainMAE as PlainImageMAE
from benchmarks.bench_mae import sizes
from benchmarks.bench_pretrain import PlainMAE as PlainMultiMAE
from benchmarks.bench_pretrain import plain_loss
from benchmarks.bench_tune import PlainModel
from benchmarks.bench_tune import plain_loss as plain_seg_loss
from mirage_nb.models.classification import cls_model
from mirage_nb.models.inference import InferenceModel
from mirage_nb.models.precision import compile_blocks
from mirage_nb.models.pretraining import pretrain_model
from mirage_nb.models.segmentation import seg_model
from mirage_nb.models.zoo import build_encoder, encoder_record
from mirage_nb.randomness import sample_key
from mirage_nb.train.loop import fit
from mirage_nb.train.losses import patch_mse, pretrain_losses, seg_loss
from mirage_nb.train.optim import param_groups
from mirage_nb.train.settings import FitSettings

PEAKS = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'L40S': 362e12}  # dense products in bf16, as they are sold
TRAIN_AIM, ENCODE_AIM, LR, STEPS = 40., 50., 1e-5, 4  # per cent; steps that are timed together
BF16 = partial(torch.autocast, 'cuda', torch.bfloat16)
Loss = Callable[[nn.Module], Tensor]
Case = tuple[nn.Module, Loss, nn.Module, Loss]  # ours and the plain one, each with the loss of a batch


def peak() -> float:
    "Products a second that the card is sold with; of an unknown card, those of a large product"
    name = torch.cuda.get_device_name()
    return next((v for k, v in PEAKS.items() if k in name), 0.) or measured_peak()


def measured_peak(n: int = 8192) -> float:
    "Operations a second of a large product of random matrices in bf16"
    a, b = (torch.randn(n, n, device='cuda', dtype=torch.bfloat16) for _ in range(2))
    return 2*n**3/alternate(partial(synchronised, lambda: a @ b, 10), rounds=3)[0]*10


def synchronised(f: Callable[[], object], n: int = 1) -> None:
    "Do a job, several times in a row, and wait for the GPU"
    for _ in range(n): f()
    torch.cuda.synchronize()


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).cuda()


def keys(b: int) -> Tensor:
    return torch.tensor([sample_key(0, 0, i) for i in range(b)])


def multimae(name: str, b: int) -> Case:
    "MIRAGE: three modalities, 98 of 768 tokens shown"
    model, e = pretrain_model(name, size=512), encoder_record(name)
    plain = PlainMultiMAE(list(model.patches), model.patches, e.d, e.depth, e.heads)
    plain.load_state_dict(model.state_dict())
    x = {k: images(b, 1, 512, 512) for k in ('bscan', 'slo')}
    x['bscanlayermap'] = torch.randint(13, (b, 128, 128), generator=torch.Generator().manual_seed(0)).cuda()
    with torch.no_grad(), BF16(): masks = model.cuda()(x, keys(b))[1]

    hidden = {k: v.cpu() for k, v in masks.items()}  # drawn by a thread that reads ahead

    def ours(m: nn.Module) -> Tensor:
        with BF16(): predicted, used = m(x, keys(b), hidden)
        return torch.stack([*pretrain_losses(predicted, x, used, model.patches).values()]).sum()

    def theirs(m: nn.Module) -> Tensor:
        with BF16(): return plain_loss(m(x, masks), x, masks)
    return model, ours, plain, theirs


def image_mae(name: str, b: int) -> Case:
    "Masked autoencoder of images of 224 pixels, a quarter of the patches shown"
    model = pretrain_model(name)
    plain = PlainImageMAE(*sizes(name, model))
    plain.load_state_dict(model.state_dict())
    x, noise = images(b, 3, 224, 224), images(b, 196)

    def ours(m: nn.Module) -> Tensor:
        with BF16(): out = m({'image': x}, keys(b))
        return patch_mse(*out, x, model.patch, norm_pix=True)

    def theirs(m: nn.Module) -> Tensor:
        with BF16(): return m(x, noise)
    return model, ours, plain, theirs


def classifier(name: str, plain: str, b: int) -> Case:
    "Classifier of images of 224 pixels"
    x, y = images(b, 3, 224, 224), torch.arange(b, device='cuda') % 5
    rate = {} if 'dense' in plain else {'drop_path': 0.2}

    def ours(m: nn.Module) -> Tensor:
        with BF16(): return F.cross_entropy(m({'image': x}, keys(b)), y)

    def theirs(m: nn.Module) -> Tensor:
        with BF16(): return F.cross_entropy(m(x), y)
    set_fused_attn(False)
    other = timm.create_model(plain, num_classes=5, **({'drop_path_rate': 0.2} if rate else {}))
    set_fused_attn(True)
    return cls_model(name, 5, size=(224, 224), **rate), ours, other, theirs


def segmenter(name: str, b: int) -> Case:
    "B-scans of 512 pixels, nine classes, ConvNeXt head"
    e, loss = encoder_record(name), seg_loss('CEGDice', [str(i) for i in range(9)])
    x = images(b, 1, 512, 512)
    mask = (x[:, 0]*9).long()

    def ours(m: nn.Module) -> Tensor:
        with BF16(): scores = m({'bscan': x}, keys(b))
        return loss(scores, mask.byte())

    def theirs(m: nn.Module) -> Tensor:
        with BF16(): scores = m(x)
        return plain_seg_loss(scores.float(), mask)
    return seg_model(name, 9, 'convnext', (512, 512), drop_path=0.1), ours, PlainModel(e.d, e.depth, e.heads), theirs


CASES: Mapping[str, Callable[[], Case]] = {
    'masked autoencoder ViT-L, batch 256': lambda: image_mae('mae_vit_large_patch16', 256),
    'fine-tuning of ViT-L, 224 pixels, batch 128': lambda: classifier('RETFound_mae', 'vit_large_patch16_224', 128),
    'pre-training of mirage_base, batch 256': lambda: multimae('mirage_base', 256),
    'segmentation tuning of mirage_large, 512 pixels, batch 32': lambda: segmenter('mirage_large', 32),
    'pre-training of mirage_large, batch 256': lambda: multimae('mirage_large', 256),
    'fine-tuning of DenseNet-121, 224 pixels, batch 128': lambda: classifier('densenet121', 'densenet121', 128)}


def step(model: nn.Module, loss_of: Loss, **options: Any) -> Callable[[], Tensor]:
    "A step of AdamW"
    groups = param_groups(model.cuda().train(), 0.05) if options else model.cuda().train().parameters()
    optimizer = torch.optim.AdamW(groups, lr=LR, **options)

    def take() -> Tensor:
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()
    return take


def operations(f: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as count: f()
    return count.get_total_flops()


def train_rows(what: str, case: Callable[[], Case]) -> Iterator[dict]:
    "A step beside the plain one, and compiled"
    torch.manual_seed(0)
    model, ours, plain, theirs = case()
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fast, slow = step(model, ours, fused=True), step(plain, theirs)
    todo, most = operations(fast), peak()

    def line(how: str, seconds: list[float]) -> dict:
        used = 100*todo*STEPS/seconds[1]/most
        return row(f'{what}: {how}', *(s/STEPS for s in seconds), f'{used:.0f} % of the peak (aim {TRAIN_AIM:.0f}), '
                   f'{todo*STEPS/seconds[1]/1e12:.0f} TFLOP/s, {weights/1e6:.0f} M weights')
    timed = [partial(synchronised, f, STEPS) for f in (slow, fast)]
    seconds = alternate(*timed, rounds=2)
    yield line('bf16', seconds)
    if 'Dense' in what: return  # without blocks: the whole network would be compiled
    compile_blocks(model)
    yield line('bf16, compiled', [seconds[0], alternate(timed[1], rounds=2)[0]])


def encode_rows(name: str, n: dict[int, int]) -> Iterator[dict]:
    "Encoding from the memory of the processor, 512 pixels; images by batch"
    encoder, e = build_encoder(name, size=[512, 512], modalities=['bscan']).eval().cuda(), encoder_record(name)
    plain = PlainModel(e.d, e.depth, e.heads)
    plain.load_state_dict(encoder.state_dict(), strict=False)
    plain = plain.eval().cuda()
    model = InferenceModel(encoder, precision='auto')
    for b, many in n.items():
        x = torch.randint(256, (many, 1, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

        def tokens(x: Tensor = x, b: int = b) -> Tensor:
            found = []
            for part in x.split(b):
                with torch.no_grad(), BF16():
                    adapter, v = plain.input_adapters['bscan'], (part.float()/255).cuda()
                    t = (adapter.proj(v) + adapter.pos_emb).flatten(2).transpose(1, 2)
                    t = torch.cat([t, plain.global_tokens.expand(len(t), -1, -1)], 1)
                    found.append(plain.encoder(t).float())
            return torch.cat(found)

        def encode(x: Tensor = x, b: int = b) -> Tensor: return model.encode({'bscan': x}, b).patches
        here = model.prepare({'bscan': x[:b]})
        encoder_in_bf16 = model._encoder

        def forward(m: nn.Module = encoder_in_bf16, here: dict = here) -> None:
            with torch.inference_mode(), BF16(): m.read(here)
        near = F.cosine_similarity(encode().float(), tokens()[:, :-1].float(), dim=-1).min()
        seconds = alternate(*(partial(synchronised, f) for f in (tokens, encode)), rounds=3)
        alone = alternate(partial(synchronised, forward, STEPS), rounds=3)[0]/STEPS*many/b
        with torch.inference_mode(): todo = operations(forward)*many/b
        used, best = (100*todo/s/peak() for s in (seconds[1], alone))
        aim = f' (aim {ENCODE_AIM:.0f})' if b >= 64 else ''
        yield row(f'encoding by {name}, {many} images of 512 pixels, batch {b}', *seconds,
                  f'{used:.0f} % of the peak{aim}, {best:.0f} % eager from its memory; {many/seconds[1]:.0f} images/s, '
                  f'cosine {near:.5f}')
        if b < 64: continue
        compiled = InferenceModel(encoder, precision='auto', compiled=True)

        def faster(x: Tensor = x, b: int = b, m: InferenceModel = compiled) -> Tensor:
            return m.encode({'bscan': x}, b).patches
        near = F.cosine_similarity(faster().float(), tokens()[:, :-1].float(), dim=-1).min()
        taken = alternate(partial(synchronised, faster), rounds=3)[0]
        alone = alternate(partial(synchronised, partial(forward, compiled._encoder), STEPS), rounds=3)[0]/STEPS*many/b
        used, best = (100*todo/s/peak() for s in (taken, alone))
        yield row(f'the same with compile=True, batch {b}', seconds[0], taken,
                  f'{used:.0f} % of the peak{aim}, {best:.0f} % without reading; {many/taken:.0f} images/s, '
                  f'cosine {near:.5f}')


def small_rows(name: str = 'mirage_tiny') -> Iterator[dict]:
    "A small encoder, one image at a time: eager, compiled, as a CUDA graph"
    encoder = build_encoder(name, size=[256, 256], modalities=['bscan']).eval().cuda()
    x = {'bscan': images(1, 1, 256, 256)}

    def read() -> Tensor:
        with torch.inference_mode(), BF16(): return encoder.read(x).patches
    eager, = alternate(partial(synchronised, read, 20), rounds=3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): read()
    replayed, = alternate(partial(synchronised, graph.replay, 20), rounds=3)
    compile_blocks(encoder)
    compiled, = alternate(partial(synchronised, read, 20), rounds=3)
    for how, s in (('compiled', compiled), ('as a CUDA graph', replayed)):
        yield row(f'{name}, 256 pixels, batch 1: {how}', eager/20, s/20, 'plain: eager')


class Pictures(Dataset):
    "Pictures in the memory of the processor"
    def __init__(self, n: int):
        self.x = torch.rand(256, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        self.n = n

    def __len__(self) -> int: return self.n

    def __getitem__(self, asked: tuple[int, int]) -> dict[str, Any]:
        return {'x': self.x[asked[1] % len(self.x)], 'id': str(asked[1]), 'key': sample_key(0, *asked)}


def loop_rows(name: str = 'mae_vit_large_patch16', b: int = 256, steps: int = 8) -> Iterator[dict]:
    "The training loop, with reading and copying to the GPU, beside its steps alone"
    torch.manual_seed(0)
    model, ours, _, _ = image_mae(name, b)
    taken, = alternate(partial(synchronised, step(model, ours, fused=True), steps), rounds=1)

    def loss_of(m: nn.Module, batch: dict[str, Any]) -> Tensor:
        return patch_mse(*m({'image': batch['x']}, batch['key']), batch['x'], model.patch, norm_pix=True)
    with tempfile.TemporaryDirectory() as folder:
        for workers in (0, 4):
            s = FitSettings(epochs=3, batch_size=b, lr=LR, precision='bf16', workers=workers)
            last = fit(model, Pictures(b*steps), loss_of, None, None, s, Path(folder)/str(workers))[-1]
            yield row(f'{name}, batch {b}, {steps} steps of the loop, {workers} workers (plain: steps alone)', taken,
                      b*steps/last['samples_per_s'], f"{last['samples_per_s']:.0f} images/s, "
                      f"{100*last['waiting']:.0f} % of the time waiting for data")


def run() -> Iterator[dict]:
    if not torch.cuda.is_available(): return
    held = torch.empty(2**30, dtype=torch.uint8, device='cuda')
    copied, = alternate(partial(synchronised, held.clone, 4), rounds=3)
    yield row(f'{torch.cuda.get_device_name()}: copy of 1 GiB', None, copied/4,
              f'{8*2**30/copied/1e12:.1f} TB/s read and written; a product of 8192 in bf16: '
              f'{measured_peak()/1e12:.0f} TFLOP/s, the card: {peak()/1e12:.0f}')
    del held
    yield from encode_rows('mirage_large', {1: 64, 8: 256, 64: 1024})
    yield from small_rows()
    yield from loop_rows()
    for what, case in CASES.items(): yield from train_rows(what, case)
