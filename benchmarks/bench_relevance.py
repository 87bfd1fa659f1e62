"Relevance by the rules of Chefer et al. 2021: a batch at once, one image at a time, and the published way; 2 threads"
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import alternate, in_process, row
from mirage_nb.explain.attention import attention_maps
from mirage_nb.explain.targets import ClassTarget
from mirage_nb.models.classification import cls_model
from mirage_nb.models.heads.classification import ClsModel

THREADS, METHOD = 2, 'transformer_attribution'
SIZES = {'ViT-L': ('vit_large_patch16', 8, 24)} # name, images, blocks


def divide(a: Tensor, b: Tensor) -> Tensor:
    "a/b, 0 where b is 0, with b kept 1e-9 away from 0"
    return torch.where(b == 0, 0., a/(b + torch.where(b < 0, -1e-9, 1e-9)))


class PlainRelevance:
    "The published way, written plainly: one image, each layer run again with gradients for its rule"
    def __init__(self, model: ClsModel, image: Tensor):  # (1, 3, h, w)
        self.model, self.encoder = model, model.encoder
        self.scale = (self.encoder.d//self.encoder.blocks[0].attn.heads)**-0.5
        with torch.no_grad(): t = self.encoder.tokens({'image': image})
        self.steps: list[dict[str, Tensor]] = []
        for block in self.encoder.blocks: t = self.forward(block, t.requires_grad_())
        self.final = model.norm(t)[:, 0]
        self.logits = model.head(self.final)

    def forward(self, block: torch.nn.Module, x: Tensor) -> Tensor:
        "A block whose steps are kept"
        b, n, d = x.shape
        heads = block.attn.heads
        x1 = block.norm1(x)
        q, k, v = block.attn.qkv(x1).view(b, n, 3, heads, d//heads).permute(2, 0, 3, 1, 4)
        a = ((q @ k.mT)*self.scale).softmax(-1)
        out = (a @ v).transpose(1, 2).reshape(b, n, d)
        y = block.attn.proj(out)
        middle = x + y
        x2 = block.norm2(middle)
        hidden = F.gelu(block.mlp.fc1(x2))
        z = block.mlp.fc2(hidden)
        self.steps.append({'x': x, 'x1': x1, 'q': q, 'k': k, 'v': v, 'a': a, 'out': out, 'y': y, 'middle': middle,
                           'x2': x2, 'hidden': hidden, 'z': z})
        return middle + z

    def linear(self, layer: torch.nn.Linear, x: Tensor, r: Tensor) -> Tensor:
        "Alpha 1: both products of equal sign, each by a gradient"
        x = x.detach()
        up, down = x.clamp(min=0).requires_grad_(), x.clamp(max=0).requires_grad_()
        z1, z2 = F.linear(up, layer.weight.clamp(min=0)), F.linear(down, layer.weight.clamp(max=0))
        s = divide(r, (z1 + z2).detach())
        return up.detach()*torch.autograd.grad(z1, up, s)[0] + down.detach()*torch.autograd.grad(z2, down, s)[0]

    def product(self, a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        "Half to each factor"
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        z = a @ b
        ga, gb = torch.autograd.grad(z, (a, b), divide(r, z.detach()))
        return (a*ga).detach()/2, (b*gb).detach()/2

    def residual(self, a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        "In proportion, then with the totals' ratio"
        a, b = a.detach(), b.detach()
        s = divide(r, a + b)
        ra, rb = a*s, b*s
        sa, sb = ra.sum(), rb.sum()
        whole = divide(r.sum(), sa.abs() + sb.abs())
        return ra*divide(sa.abs()*whole, sa), rb*divide(sb.abs()*whole, sb)

    def block(self, block: torch.nn.Module, s: dict[str, Tensor], r: Tensor) -> tuple[Tensor, Tensor]:
        "Relevance of a block's input, and of its attention"
        r1, r2 = self.residual(s['middle'], s['z'], r)
        r2 = self.linear(block.mlp.fc1, s['x2'], self.linear(block.mlp.fc2, s['hidden'], r2))
        r1, r2 = self.residual(s['x'], s['y'], r1 + r2)
        r2 = self.linear(block.attn.proj, s['out'], r2)
        b, heads, n, d = s['v'].shape
        ra, rv = self.product(s['a'], s['v'], r2.view(b, n, heads, d).transpose(1, 2))
        rq, rk = self.product(s['q'], s['k'].mT, ra)
        rows = torch.stack([rq, rk.mT, rv]).permute(1, 3, 0, 2, 4).reshape(b, n, -1)
        return r1 + self.linear(block.attn.qkv, s['x1'], rows), ra

    def map(self) -> Tensor:  # (1, patches)
        "transformer_attribution of the predicted class"
        one = F.one_hot(self.logits.argmax(1), self.logits.shape[1]).float()
        gradients = torch.autograd.grad(self.logits, [s['a'] for s in self.steps], one)
        r = torch.zeros_like(self.steps[-1]['z'])
        r[:, 0] = self.linear(self.model.head, self.final, one)
        joint = torch.eye(r.shape[1])[None]
        eye = joint.clone()
        for block, s, g in zip(reversed(self.encoder.blocks), reversed(self.steps), reversed(gradients), strict=True):
            r, ra = self.block(block, s, r)
            joint = joint @ (eye + (g*ra).clamp(min=0).mean(1))
        return joint[:, 0, 1:]


def setting(name: str, b: int, depth: int) -> tuple[ClsModel, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = cls_model(name, 5, pool='cls', size=(224, 224)).eval().requires_grad_(False)
    model.encoder.blocks = model.encoder.blocks[:depth]
    return model, {'image': torch.randn(b, 3, 224, 224)}


def compare(what: str, name: str, b: int, depth: int) -> list[dict]:
    model, x = setting(name, b, depth)

    def once() -> Tensor: return attention_maps(model, x, ClassTarget(), METHOD)[:, ::16, ::16].flatten(1)

    def singly() -> Tensor:
        return torch.cat([attention_maps(model, {'image': i[None]}, ClassTarget(), METHOD) for i in x['image']])

    def plain() -> Tensor: return torch.cat([PlainRelevance(model, i[None]).map() for i in x['image']])

    found, want = once(), plain()
    gib = [peak_gib(name, k, depth) for k in (b, 1)]
    far = float((found - want).abs().max()/want.abs().max())
    off = f'within {far:.0e} of the largest; peak memory {gib[0]:.1f} GiB, of one image {gib[1]:.1f} GiB'
    batched, single, published = alternate(once, singly, plain, rounds=1)
    return [row(f'{what}, batch {b}: the published way', published, batched, off),
            row(f'{what}, batch {b}: one image at a time', single, batched, off)]


def peak_gib(name: str, b: int, depth: int) -> float:
    "Largest memory of a process that makes the maps of a batch"
    return float(in_process('-m', 'benchmarks.bench_relevance', name, b, depth))


def run() -> list[dict]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    rows = [r for what, size in SIZES.items() for r in compare(what, *size)]
    torch.set_num_threads(before)
    return rows


if __name__ == '__main__':
    torch.set_num_threads(THREADS)
    classifier, images = setting(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    make: Callable[..., Tensor] = attention_maps
    make(classifier, images, ClassTarget(), METHOD)
    # not getrusage: its peak starts from that of the parent process
    print(int(re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) / 2**20)
