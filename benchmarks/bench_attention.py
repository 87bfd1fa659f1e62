"Attention over few tokens in bfloat16 on a CPU, forward and backward, beside PyTorch's fused one; 2 threads"
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import alternate, row
from mirage_nb.models.layers import _attention
from mirage_nb.models.precision import pick_precision

THREADS = 2
SHAPES = {'visible tokens of mirage_base': (8, 12, 99, 99, 64), 'its decoders, among themselves': (8, 8, 256, 256, 32),
          'its decoders, of the visible': (8, 8, 256, 99, 32), 'visible tokens of ViT-L': (8, 16, 50, 50, 64)}


def compare(what: str, b: int, heads: int, n: int, m: int, d: int) -> dict:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(b, heads, t, d, generator=g).bfloat16().requires_grad_() for t in (n, m, m))

    def once(f: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            out = f(q, k, v)
            out.sum().backward()
            return out.detach()
        return step
    plain, ours = once(F.scaled_dot_product_attention), once(_attention)
    far = float((plain().float() - ours().float()).abs().max())
    return row(f'{what}: {b} x {heads} heads, {n} to {m}', *alternate(plain, ours), f'within {far:.0e}')


def run() -> list[dict]:
    if pick_precision('auto') != 'bf16' or torch.cuda.is_available(): return []  # nothing that is taken here
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    rows = [compare(what, *shape) for what, shape in SHAPES.items()]
    torch.set_num_threads(before)
    return rows
