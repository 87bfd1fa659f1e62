"A tuning step of mirage_base: forward, loss, backward, AdamW; 4 B-scans of 512 x 512, convnext head, 2 threads"
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import alternate, in_process, row
from mirage_nb.models.checkpoints import Checkpoint
from mirage_nb.models.segmentation import seg_model, start_segmenter
from mirage_nb.models.tuning import choose_training
from mirage_nb.train.losses import seg_loss
from mirage_nb.train.optim import param_groups

B, SIZE, PATCH, CLASSES, LR, THREADS = 4, 512, 32, 9, 1e-5, 2
STEPS = {'plain': 'plain, float32, blocks frozen', 'blocks': 'bf16, blocks frozen', 'encoder': 'bf16, encoder frozen',
         'kept': 'bf16, tokens of the frozen encoder kept'}
AIMS = {'blocks': 2.4, 'encoder': 3.2, 'kept': 4.6}


class PlainBlock(nn.Module):
    "Transformer block with the attention written out"
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.attn = nn.ModuleDict({'qkv': nn.Linear(d, 3*d), 'proj': nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({'fc1': nn.Linear(d, 4*d), 'fc2': nn.Linear(4*d, d)})

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        qkv = self.attn['qkv'](self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (d // self.heads)**-0.5).softmax(-1)
        x = x + self.attn['proj']((weights @ v).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp['fc2'](F.gelu(self.mlp['fc1'](self.norm2(x))))


class PlainConvNeXtBlock(nn.Module):
    "Channels first, turned round for the norm and the two linear layers"
    def __init__(self, d: int):
        super().__init__()
        self.dwconv = nn.Conv2d(d, d, 7, padding=3, groups=d)
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(d, 4*d), nn.Linear(4*d, d)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + self.pwconv2(F.gelu(self.pwconv1(y))).permute(0, 3, 1, 2)


class PlainHead(nn.Module):
    def __init__(self, d: int, n_classes: int, channels: int = 384, side: int = 4, depth: int = 4):
        super().__init__()
        self.channels, self.side = channels, side
        self.proj_dec = nn.Linear(d, channels * side**2)
        self.blocks = nn.Sequential(*[PlainConvNeXtBlock(channels) for _ in range(depth)])
        self.final_layer = nn.Conv2d(channels, n_classes, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        b, n, _ = tokens.shape
        rows, s = round(n**0.5), self.side
        x = self.proj_dec(tokens).reshape(b, rows, rows, s, s, self.channels)
        x = x.permute(0, 5, 1, 3, 2, 4).reshape(b, self.channels, rows*s, rows*s)
        return self.final_layer(self.blocks(x))


class PlainModel(nn.Module):
    "MIRAGE for B-scans with a ConvNeXt head as one writes it first, under the same names of weights"
    def __init__(self, d: int = 768, depth: int = 12, heads: int = 12):
        super().__init__()
        adapter = nn.Module()
        adapter.proj = nn.Conv2d(1, d, PATCH, stride=PATCH)
        adapter.register_buffer('pos_emb', torch.zeros(1, d, SIZE // PATCH, SIZE // PATCH))
        self.input_adapters = nn.ModuleDict({'bscan': adapter})
        self.global_tokens = nn.Parameter(torch.zeros(1, 1, d))
        self.encoder = nn.Sequential(*[PlainBlock(d, heads) for _ in range(depth)])
        self.output_adapters = nn.ModuleDict({'semseg': PlainHead(d, CLASSES)})

    def forward(self, x: Tensor) -> Tensor:
        adapter = self.input_adapters['bscan']
        t = (adapter.proj(x) + adapter.pos_emb).flatten(2).transpose(1, 2)
        t = self.encoder(torch.cat([t, self.global_tokens.expand(len(t), -1, -1)], 1))
        return F.interpolate(self.output_adapters['semseg'](t[:, :-1]), x.shape[-2:], mode='bilinear')


def plain_loss(scores: Tensor, y: Tensor) -> Tensor:
    "Half cross-entropy, half generalised Dice, from one-hot masks"
    p = scores.softmax(1)
    hot = F.one_hot(y, CLASSES).permute(0, 3, 1, 2).float()
    volume = hot.sum((2, 3))
    w = 1 / volume.clamp(min=1)**2 * (volume > 0)
    w = torch.where(volume > 0, w, w.amax(1, keepdim=True))
    both, total = (w * (p*hot).sum((2, 3))).sum(1), (w * (p + hot).sum((2, 3))).sum(1)
    return 0.5*F.cross_entropy(scores, y) + 0.5*(1 - (2*both + 1e-5) / (total + 1e-5)).mean()


def batch() -> tuple[Tensor, Tensor]:
    "Speckle over tilted layers, and their classes"
    g = torch.Generator().manual_seed(0)
    depth = torch.arange(SIZE)[:, None] + torch.arange(SIZE)*torch.rand(B, 1, 1, generator=g)/4
    y = (depth*CLASSES/SIZE/1.3).long().clamp(max=CLASSES - 1)
    return torch.rand(B, 1, SIZE, SIZE, generator=g)*(0.2 + y[:, None]/CLASSES), y


def plain_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    "float32, encoder blocks frozen"
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.05)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = plain_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()
    return step


def our_step(model: nn.Module, x: Tensor, y: Tensor, tune: str, kept: bool) -> Callable[[], Tensor]:
    "The library's parts put together as its loop does, in bf16"
    choose_training(model.train(), tune)
    optimizer = torch.optim.AdamW(param_groups(model, 0.05, 0.75), lr=LR, fused=True)
    loss_of, mask = seg_loss('CEGDice', [str(i) for i in range(CLASSES)]), y.byte()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): maps = model.features({'bscan': x}) if kept else None

    def step() -> Tensor:
        with torch.autocast('cpu', torch.bfloat16): scores = model({'bscan': x}, maps=maps)
        loss = loss_of(scores, mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()
    return step


def prepare(name: str, state: Mapping[str, Tensor]) -> tuple[Callable[[Tensor], Tensor], Callable[[], Tensor]]:
    "A model's scores of a batch, and its step"
    x, y = batch()
    if name == 'plain':
        model = PlainModel()
        model.load_state_dict(state)
        return model, plain_step(model, x, y)
    model = seg_model('mirage_base', CLASSES, 'convnext', (SIZE, SIZE))
    start_segmenter(model, Checkpoint(dict(state), {}, Path('initial'), ''))
    tune = 'embeddings' if name == 'blocks' else 'probe'
    return lambda x: model({'bscan': x}), our_step(model, x, y, tune, kept=name == 'kept')


def first_weights() -> Mapping[str, Tensor]:
    torch.manual_seed(0)
    state = seg_model('mirage_base', CLASSES, 'convnext', (SIZE, SIZE)).state_dict()
    return {f'output_adapters.semseg.{k[5:]}' if k.startswith('head.') else k.removeprefix('encoder.'): v
            for k, v in state.items()}  # published names


def peak_gib(name: str) -> float:
    "Largest memory of a process that does three steps"
    return float(in_process('-m', 'benchmarks.bench_tune', name))


def run() -> list[dict]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    state, x = first_weights(), batch()[0]
    scores, steps = zip(*(prepare(name, state) for name in STEPS), strict=True)
    with torch.no_grad(): first = [f(x) for f in scores]
    losses = [step().item() for step in steps]
    seconds = alternate(*steps, rounds=5)
    torch.set_num_threads(before)
    rows, plain_gib = [], peak_gib("plain")
    for i, (name, what) in enumerate(STEPS.items()):
        if name == 'plain': continue
        same = (f'float32 scores {(first[i] - first[0]).abs().max():.0e}, loss {abs(losses[i]/losses[0] - 1):.1%}, '
                f'peak memory {peak_gib(name):.1f} GiB for {plain_gib:.1f}')
        rows.append(row(f'tuning step: {what}', seconds[0], seconds[i], same, AIMS[name]))
    return rows


if __name__ == '__main__':
    torch.set_num_threads(THREADS)
    step = prepare(sys.argv[1], first_weights())[1]
    for _ in range(3): step()
    # not getrusage: its peak starts from that of the parent process
    print(int(re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) / 2**20)
