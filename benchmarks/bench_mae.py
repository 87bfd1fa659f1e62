"A pre-training step of masked autoencoders: forward, loss, backward, AdamW; 224 x 224, mask ratio 0.75, 2 threads"
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import alternate, in_process, row
from mirage_nb.models.pretraining import pretrain_model
from mirage_nb.models.zoo import encoder_record
from mirage_nb.train.losses import patch_mse
from mirage_nb.train.optim import param_groups

THREADS, LR, DECAY, BETAS = 2, 1e-4, 0.05, (0.9, 0.95)
BATCHES = {'mae_vit_small_patch16': 32, 'mae_vit_base_patch16': 16, 'mae_vit_large_patch16': 8}
AIM = 2.


def has_bf16() -> bool:
    "Whether the processor multiplies bfloat16 itself; others imitate it, slowly"
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class PlainMAE(nn.Module):
    "Masked autoencoder of timm's parts as one writes it first, under the published names of weights"
    def __init__(self, d: int, depth: int, heads: int, dd: int, ddepth: int, dheads: int,
                 n: int = 196, patch: int = 16):
        super().__init__()
        self.patch = patch
        self.patch_embed = PatchEmbed(224, patch, 3, d)
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, d)), nn.Parameter(torch.zeros(1, 1, dd))
        self.pos_embed = nn.Parameter(torch.zeros(1, n + 1, d), requires_grad=False)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, n + 1, dd), requires_grad=False)

        def blocks(width: int, count: int, h: int) -> nn.ModuleList:
            norm = partial(nn.LayerNorm, eps=1e-6)
            return nn.ModuleList([Block(width, h, 4., qkv_bias=True, norm_layer=norm) for _ in range(count)])

        self.blocks, self.norm = blocks(d, depth, heads), nn.LayerNorm(d, eps=1e-6)
        self.decoder_embed = nn.Linear(d, dd)
        self.decoder_blocks, self.decoder_norm = blocks(dd, ddepth, dheads), nn.LayerNorm(dd, eps=1e-6)
        self.decoder_pred = nn.Linear(dd, patch**2 * 3)

    def forward(self, x: Tensor, noise: Tensor, ratio: float = 0.75) -> Tensor:
        "Loss: every patch is embedded and predicted, then most are left out"
        t = self.patch_embed(x) + self.pos_embed[:, 1:]
        b, n, d = t.shape
        keep = int(n * (1 - ratio))
        order = noise.argsort(1)
        back = order.argsort(1)
        t = t.gather(1, order[:, :keep, None].expand(-1, -1, d))
        t = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1), t], 1)
        for block in self.blocks: t = block(t)
        t = self.decoder_embed(self.norm(t))
        z = torch.cat([t[:, 1:], self.mask_token.expand(b, n - keep, -1)], 1)
        z = z.gather(1, back[..., None].expand(-1, -1, z.shape[-1]))
        z = torch.cat([t[:, :1], z], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks: z = block(z)
        predicted = self.decoder_pred(self.decoder_norm(z))[:, 1:]
        p = self.patch
        true = x.reshape(b, 3, 224//p, p, 224//p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, n, -1)
        true = (true - true.mean(-1, keepdim=True)) / (true.var(-1, keepdim=True) + 1e-6).sqrt()
        mask = (back >= keep).float()
        return (((predicted - true)**2).mean(-1) * mask).sum() / mask.sum()


def plain_step(state: Mapping[str, Tensor], x: Tensor, noise: Tensor, d: int, depth: int, heads: int, *decoder: int) \
        -> Callable[[], Tensor]:
    "float32, AdamW as PyTorch gives it"
    model = PlainMAE(d, depth, heads, *decoder)
    model.load_state_dict(state)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, betas=BETAS,
                                  weight_decay=DECAY)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(x, noise)
        loss.backward()
        optimizer.step()
        return loss.detach()
    return step


def our_step(model: nn.Module, x: Tensor, noise: Tensor) -> Callable[[], Tensor]:
    "The library's parts put together as its loop does; bf16 where the processor has it"
    optimizer = torch.optim.AdamW(param_groups(model.train(), DECAY), lr=LR, betas=BETAS, fused=True)

    def step() -> Tensor:
        with torch.autocast('cpu', torch.bfloat16) if has_bf16() else nullcontext():
            out = model({'image': x}, noise=noise)
        loss = patch_mse(*out, x, model.patch, norm_pix=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()
    return step


def batch(b: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(b, 3, 224, 224, generator=g), torch.rand(b, 196, generator=g)


def sizes(name: str, model: nn.Module) -> tuple[int, ...]:
    e = encoder_record(name.removeprefix('mae_'))
    first = model.decoder_blocks[0]
    return e.d, e.depth, e.heads, first.norm1.weight.numel(), len(model.decoder_blocks), first.attn.heads


def peak_gib(name: str, b: int) -> float:
    "Largest memory of a process that does two steps"
    return float(in_process('-m', 'benchmarks.bench_mae', name, b))


def compare(name: str, b: int) -> dict:
    torch.manual_seed(0)
    model, (x, noise) = pretrain_model(name), batch(b)
    plain = plain_step(model.state_dict(), x, noise, *sizes(name, model))
    ours = our_step(model, x, noise)
    with FlopCounterMode(display=False) as count: first = plain()
    off = abs(ours().item() / first.item() - 1)
    seconds = alternate(plain, ours, rounds=2)
    speed = count.get_total_flops() / seconds[1] / 1e9
    kind = 'bf16' if has_bf16() else 'float32'
    return row(f'{name}, batch {b}: timm, {kind}', *seconds, f'loss {off:.0e}, {speed:.0f} GFLOP/s', AIM)


def run() -> list[dict]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    rows = [compare(name, b) for name, b in BATCHES.items()]
    torch.set_num_threads(before)
    return rows


if __name__ == '__main__':
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    step = our_step(pretrain_model(sys.argv[1]), *batch(int(sys.argv[2])))
    for _ in range(2): step()
    # not getrusage: its peak starts from that of the parent process
    print(int(re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) / 2**20)
