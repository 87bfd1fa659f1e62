"Linear probe of mirage_base, 20 epochs: the encoder asked every epoch, against asked once an image"
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import row
from mirage_nb.models.classification import cls_model
from mirage_nb.models.tuning import choose_training
from mirage_nb.train.features import CachedFeatures, FeatureStore, fill_store

N, SIZE, CLASSES, EPOCHS, BATCH, LR = 8, 256, 4, 20, 4, 1e-3
AIM = 15.


def images() -> tuple[torch.Tensor, torch.Tensor]:
    "Speckle whose grain tells the classes apart"
    g = torch.Generator().manual_seed(0)
    y = torch.arange(N) % CLASSES
    x = torch.rand(N, 1, SIZE, SIZE, generator=g)
    return torch.stack([F.avg_pool2d(v[None], 2*int(k) + 1, 1, int(k))[0] for v, k in zip(x, y, strict=True)]), y


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    m = cls_model('mirage_base', CLASSES, size=(SIZE, SIZE))
    choose_training(m, 'probe')
    return m.train()


def orders() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [batch for _ in range(EPOCHS) for batch in torch.randperm(N, generator=g).split(BATCH)]


def plain(m: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    "As one writes it: images through the frozen encoder in every step"
    opt = torch.optim.AdamW(m.head.parameters(), lr=LR)
    for at in orders():
        with torch.no_grad(): v = m.pooled({'bscan': x[at]})
        F.cross_entropy(m.head(v), y[at]).backward()
        opt.step()
        opt.zero_grad()
    return m.head.weight.detach().clone()


def kept(m: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, folder: Path) -> torch.Tensor:
    "Each image once, its features on disk; then the head alone"
    def encode(keys: list[str]) -> torch.Tensor:
        with torch.no_grad(): return m.summaries({'bscan': x[[int(k) for k in keys]]})

    names = [str(i) for i in range(N)]
    data = CachedFeatures(names, fill_store(FeatureStore(folder), names, encode, BATCH)[None], y)
    opt = torch.optim.AdamW(m.head.parameters(), lr=LR)
    for at in orders():
        batch = data.__getitems__(at.tolist())[0]
        F.cross_entropy(m.head(m.vector(batch['features']).detach()), batch['label']).backward()
        opt.step()
        opt.zero_grad()
    return m.head.weight.detach().clone()


def run() -> list[dict]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    x, y = images()
    m = model()
    with torch.no_grad(): m.pooled({'bscan': x[:BATCH]})  # warm
    first, other = model(), model()
    times = [time.process_time()]  # of this process alone: one thread, whoever else is on the machine
    a = plain(m, x, y)
    times.append(time.process_time())
    with tempfile.TemporaryDirectory() as tmp:
        b = kept(first, x, y, Path(tmp))
        times.append(time.process_time())
        kept(other, x, y, Path(tmp))  # another head, seed or setting
        times.append(time.process_time())
    slow, once, again = (t1 - t0 for t0, t1 in zip(times, times[1:], strict=False))
    torch.set_num_threads(before)
    far = f'weights of the head differ by {(a - b).abs().max():.0e}'
    what = f'linear probe, mirage_base, {EPOCHS} epochs'
    return [row(f'{what}: features kept', slow, once, far, AIM),
            row(f'{what}: another head on the same features', slow, again, far, AIM)]
