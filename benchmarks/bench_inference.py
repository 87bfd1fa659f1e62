"Encoding of 512 x 512 B-scans by mirage_base of random weights, beside plain PyTorch in float32; 2 threads"
import os
import shutil
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import alternate, row
from benchmarks.bench_tune import SIZE, PlainModel
from mirage_nb.models.inference import InferenceModel
from mirage_nb.models.precision import autocast, pick_precision
from mirage_nb.models.zoo import build_encoder

THREADS, AIM, ROUNDS = 2, 2.5, {1: 5, 8: 2}  # by batch


def plain_encoder(state: dict[str, Tensor]) -> PlainModel:
    "The encoder as one writes it first, with the same weights; its head is not used"
    model = PlainModel()
    model.load_state_dict(state, strict=False)
    return model.eval()


def plain_tokens(model: PlainModel, x: Tensor) -> Tensor:
    adapter = model.input_adapters['bscan']
    with torch.no_grad():
        t = (adapter.proj(x) + adapter.pos_emb).flatten(2).transpose(1, 2)
        return model.encoder(torch.cat([t, model.global_tokens.expand(len(t), -1, -1)], 1))


def compare(b: int, plain: PlainModel, encoder: torch.nn.Module) -> list[dict]:
    x = torch.rand(b, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(b))
    exact, fast = InferenceModel(encoder, precision='fp32'), InferenceModel(encoder, precision='auto')

    def casting() -> Tensor:
        with torch.no_grad(), autocast(torch.device('cpu'), fast.precision): return encoder({'bscan': x})
    ready = [exact, fast]
    if shutil.which(os.environ.get('CXX', 'g++')):
        ready.append(InferenceModel(encoder, precision='auto', compiled=True))
    seconds = alternate(lambda: plain_tokens(plain, x), casting, *(partial(m.encode, {'bscan': x}, b) for m in ready),
                        rounds=ROUNDS[b])
    wanted = plain_tokens(plain, x)[:, :-1]
    rows = []
    for name, base, ours, aim in (('float32', 0, 2, None), (fast.precision, 0, 3, AIM),
                                  (f'{fast.precision}, beside casts at each call', 1, 3, None),
                                  (f'{fast.precision}, compiled', 0, 4, AIM))[:len(ready) + 1]:
        near = F.cosine_similarity(ready[ours - 2].encode({'bscan': x}, b).patches, wanted, dim=-1).min()
        rows.append(row(f'mirage_base, 512 pixels, batch {b}: {name}', seconds[base], seconds[ours],
                        f'cosine {near:.6f}', aim))
    return rows


def run() -> list[dict]:
    if pick_precision('auto', 'cpu') == 'fp32': return []  # nothing that is faster here
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    encoder = build_encoder('mirage_base', size=[SIZE, SIZE], modalities=['bscan']).eval()
    plain = plain_encoder(encoder.state_dict())
    rows = [r for b in ROUNDS for r in compare(b, plain, encoder)]
    torch.set_num_threads(before)
    return rows
