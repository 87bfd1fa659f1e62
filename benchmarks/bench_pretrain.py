"A pre-training step of MIRAGE: forward, losses, backward, AdamW; three modalities, 98 of 768 tokens shown, 2 threads"
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import alternate, row
from benchmarks.bench_tune import PlainBlock
from mirage_nb.models.mirage_mae import MultiMAE
from mirage_nb.models.positions import sincos_positions
from mirage_nb.models.precision import pick_precision
from mirage_nb.models.pretraining import pretrain_model
from mirage_nb.randomness import sample_key
from mirage_nb.train.losses import pretrain_losses
from mirage_nb.train.optim import param_groups

B, SIZE, CLASSES, LR, THREADS = 8, 512, 13, 1e-5, 2
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


class PlainCross(nn.Module):
    "Cross-attention written out"
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads, self.q, self.kv, self.proj = heads, nn.Linear(d, d), nn.Linear(d, 2*d), nn.Linear(d, d)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        (b, n, d), h = x.shape, self.heads
        q = self.q(x).reshape(b, n, h, d//h).transpose(1, 2)
        k, v = self.kv(context).reshape(b, -1, 2, h, d//h).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)*(d//h)**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class PlainDecoder(nn.Module):
    "One modality, from the encoder's tokens"
    def __init__(self, names: list[str], d_encoder: int, outputs: int, d: int = 256):
        super().__init__()
        self.names = names  # a ParameterDict has an order of its own
        self.proj_context, self.mask_token = nn.Linear(d_encoder, d), nn.Parameter(torch.zeros(1, 1, d))
        self.task_embeddings = nn.ParameterDict({k: torch.zeros(1, 1, d) for k in names})
        self.register_buffer('pos_emb', sincos_positions(d, SIZE//32, SIZE//32))
        self.decoder, self.mlp = PlainCross(d, 8), nn.ModuleDict({'fc1': nn.Linear(d, 4*d), 'fc2': nn.Linear(4*d, d)})
        self.query_norm, self.context_norm, self.out_norm = (nn.LayerNorm(d, eps=1e-6) for _ in range(3))
        self.decoder_transformer = nn.Sequential(*[PlainBlock(d, 8) for _ in range(2)])
        self.out_proj = nn.Linear(d, outputs)

    def forward(self, t: Tensor, keep: Tensor, back: Tensor, own: int) -> Tensor:
        t, shown, n = self.proj_context(t), keep.shape[1], back.shape[1]//len(self.names)
        blank = self.mask_token.expand(len(t), back.shape[1] - shown, -1)
        every = torch.cat([t[:, :shown], blank], 1).gather(1, back[..., None].expand(-1, -1, t.shape[-1]))
        places = self.pos_emb.flatten(2).transpose(1, 2)
        every = every + torch.cat([places + e for e in (self.task_embeddings[k] for k in self.names)], 1)
        context = torch.cat([every.gather(1, keep[..., None].expand(-1, -1, t.shape[-1])), t[:, shown:]], 1)
        x = self.decoder(self.query_norm(every[:, own*n:(own + 1)*n]), self.context_norm(context))
        x = x + self.mlp['fc2'](F.gelu(self.mlp['fc1'](self.out_norm(x))))
        return self.out_proj(self.decoder_transformer(x))


class PlainMAE(nn.Module):
    "MIRAGE in pre-training as one writes it first, under the same names of weights: every patch is embedded"
    def __init__(self, names: list[str], patches: Mapping[str, int], d: int = 768, depth: int = 12, heads: int = 12):
        super().__init__()
        self.names, self.patches, self.input_adapters = names, patches, nn.ModuleDict()
        for k in names:
            a = nn.Module()
            if k == 'bscanlayermap': a.class_emb = nn.Embedding(CLASSES, 64)
            a.proj = nn.Conv2d(64 if k == 'bscanlayermap' else 1, d, patches[k], stride=patches[k])
            a.register_buffer('pos_emb', sincos_positions(d, SIZE//32, SIZE//32))
            self.input_adapters[k] = a
        self.global_tokens = nn.Parameter(torch.zeros(1, 1, d))
        self.encoder = nn.Sequential(*[PlainBlock(d, heads) for _ in range(depth)])
        outputs = {k: (CLASSES if k == 'bscanlayermap' else 1)*patches[k]**2 for k in names}
        self.output_adapters = nn.ModuleDict({k: PlainDecoder(names, d, outputs[k]) for k in names})

    def forward(self, x: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        row = []
        for k in self.names:
            a = self.input_adapters[k]
            v = a.class_emb(x[k].long()).permute(0, 3, 1, 2) if k == 'bscanlayermap' else x[k]
            row.append((a.proj(v) + a.pos_emb).flatten(2).transpose(1, 2))
        tokens, hidden = torch.cat(row, 1), torch.cat([masks[k] for k in self.names], 1)
        order = hidden.int().argsort(dim=1, stable=True)
        keep, back = order[:, :int((~hidden[0]).sum())], order.argsort(1)
        t = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        t = self.encoder(torch.cat([t, self.global_tokens.expand(len(t), -1, -1)], 1))
        out = {}
        for i, k in enumerate(self.names):
            y, p, r = self.output_adapters[k](t, keep, back, i), self.patches[k], SIZE//32
            y = y.reshape(len(y), r, r, -1, p, p).permute(0, 3, 1, 4, 2, 5)
            out[k] = y.reshape(len(y), -1, r*p, r*p)
        return out


def plain_loss(out: Mapping[str, Tensor], x: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
    "Error of every pixel, times the mask at full size"
    total = torch.zeros((), device=DEVICE)
    for k, y in out.items():
        e = F.cross_entropy(y, x[k].long(), reduction='none') if y.shape[1] > 1 else (y - x[k]).square().mean(1)
        side = int(masks[k].shape[1]**0.5)
        at = F.interpolate(masks[k].float().reshape(-1, 1, side, side), e.shape[-2:])[:, 0]
        total = total + ((e*at).sum((1, 2))/at.sum((1, 2)).clamp(min=1)).mean()
    return total


def batch(model: MultiMAE) -> tuple[dict[str, Tensor], Tensor]:
    "Speckle, and layers"
    g = torch.Generator().manual_seed(0)
    x = {k: torch.rand(B, 1, SIZE, SIZE, generator=g) for k in ('bscan', 'slo')}
    x['bscanlayermap'] = torch.randint(CLASSES, (B, SIZE//4, SIZE//4), generator=g)
    return {k: v.to(DEVICE) for k, v in x.items()}, torch.tensor([sample_key(0, i) for i in range(B)])


def steps(model: MultiMAE, plain: PlainMAE) -> dict[str, Callable[[], float]]:
    "The same step in several ways, each on its own weights"
    x, keys = batch(model)
    with torch.no_grad(): masks = model(x, keys)[1]
    unfused = torch.optim.AdamW(plain.parameters(), lr=LR, betas=(0.9, 0.95), foreach=False, fused=False)
    fused = torch.optim.AdamW(param_groups(model, 0.05), lr=LR, betas=(0.9, 0.95), fused=True)

    def one(optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> float:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def ours(kind: torch.dtype) -> Tensor:
        with torch.autocast(DEVICE, kind, enabled=kind != torch.float32): predicted, used = model(x, keys)
        return sum(pretrain_losses(predicted, x, used, model.patches).values(), torch.zeros((), device=DEVICE))

    made = {'plain': lambda: one(unfused, lambda: plain_loss(plain(x, masks), x, masks)),
            'float32': lambda: one(fused, lambda: ours(torch.float32))}
    if pick_precision('auto') == 'fp32': return made  # this processor only imitates bf16, many times slower
    return made | {'bf16': lambda: one(fused, lambda: ours(torch.bfloat16))}


def run() -> list[dict]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = pretrain_model('mirage_base', size=SIZE).to(DEVICE)
    assert isinstance(model, MultiMAE)
    plain = PlainMAE(list(model.patches), model.patches).to(DEVICE)
    plain.load_state_dict(model.state_dict())
    made = steps(model, plain)
    first = {k: f() for k, f in made.items()}
    seconds = dict(zip(made, alternate(*made.values(), rounds=2), strict=True))
    torch.set_num_threads(before)
    same = f'loss {abs(first["float32"]/first["plain"] - 1):.0e} apart'
    return [row(f'step of mirage_base, batch {B}, {k} (plain: float32)', seconds['plain'], seconds[k],
                f'{B/seconds["plain"]:.2f} and {B/seconds[k]:.2f} samples/s, {same}', 2. if k == 'bf16' else None)
            for k in made if k != 'plain']
