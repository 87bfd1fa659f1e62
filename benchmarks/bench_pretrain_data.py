"Triplets of pre-training: read, augment, batch, one thread; and beside it what a training step of mirage_base takes"
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode

from benchmarks import alternate, row
from mirage_nb.data.augment.affine import PairAugment, augment_pairs, draw_pairs
from mirage_nb.data.augment.crops import CropAugment, _crop_resize, _CropDraw, _draw_crops
from mirage_nb.data.packed import _open_packed, pack
from mirage_nb.data.paired import _MODALITIES, PairedDataset, folder_pairs
from mirage_nb.data.segmentation import collate
from mirage_nb.models.mirage import Modality
from mirage_nb.models.mirage_mae import MultiMAE
from mirage_nb.randomness import sample_key
from mirage_nb.train.losses import pretrain_losses

B, SIZE, MAP, SAMPLES = 8, 512, 128, 16
SIZES = {'bscan': (SIZE, SIZE), 'slo': (SIZE, SIZE), 'bscanlayermap': (MAP, MAP)}
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def make_set(folder: Path) -> None:
    "Speckle under layers, as the published arrays are: 8 bits, (512, 512)"
    rng = np.random.default_rng(0)
    for k in _MODALITIES: (folder/k).mkdir()
    for i in range(SAMPLES):
        lines = 120 + 25*np.arange(12)[:, None] + 20*np.sin(np.arange(SIZE)/90 + rng.random())
        y = (np.arange(SIZE)[:, None] > lines[:, None]).sum(0).astype(np.uint8)
        x = ((20 + 15*y)*rng.gamma(6, 1/6, y.shape)).clip(0, 255).astype(np.uint8)
        for k, v in zip(_MODALITIES, (x, x.T, y), strict=True): np.save(folder/k/f'S{i:02d}.npy', v)


def per_sample(folder: Path, epoch: int, i: int) -> dict[str, Tensor]:
    "One sample by torchvision, one step after the other"
    x = {k: torch.from_numpy(np.load(folder/k/f'S{i:02d}.npy'))[None] for k in _MODALITIES}
    d = draw_pairs([sample_key(0, epoch, f'S{i:02d}')], PairAugment())
    shift, angle, shear = float(d.shift), float(d.angle.rad2deg()), float(d.shear.rad2deg())
    right, down = float(d.right)*SIZE, float(d.down)*SIZE
    for k in _MODALITIES:
        is_map, face = k == 'bscanlayermap', k == 'slo'
        if not is_map: x[k] = TF.to_dtype(x[k], torch.float32, scale=True)
        if d.flip: x[k] = TF.horizontal_flip(x[k])
        how = InterpolationMode.NEAREST if is_map else InterpolationMode.BILINEAR
        x[k] = TF.affine(x[k], 0. if face else angle, [right, 0. if face else down], float(d.zoom),
                         [0. if face else shear, 0.], how, fill=[0.])
        if is_map: x[k] = TF.resize(x[k], [MAP, MAP], InterpolationMode.NEAREST_EXACT)[0]
        else: x[k] = (x[k] + shift).clamp(0, 1)
    return x


def ours(ds: PairedDataset, epoch: int) -> dict:
    "A batch by the library"
    return augment_pairs(collate([ds[(epoch, i)] for i in range(B)]), PairAugment(), SIZES)


def apart(a: dict, b: dict) -> str:
    "How far two batches are apart"
    far = max(float((a[k] - b[k]).abs().flatten()[::7].quantile(0.99)) for k in ('bscan', 'slo'))
    other = (a['bscanlayermap'] != b['bscanlayermap']).float().mean()
    return f'99 % of pixels within {far:.0e}, maps {other:.1%} apart'  # torchvision resamples maps twice


def crop_row(c: int, side: int, size: int = 224) -> dict:
    "Random resized crops of a batch of images"
    x = torch.randint(0, 256, (B, c, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    d = _draw_crops(range(B), [(side, side)]*B, CropAugment(scale=(0.5, 1)))

    def plain() -> Tensor:
        views = []
        for v, box, flip in zip(x, d.box.tolist(), d.flip, strict=True):
            v = TF.to_dtype(v, torch.float32, scale=True)
            v = TF.resized_crop(v, *box, [size, size], InterpolationMode.BICUBIC)
            views.append(TF.horizontal_flip(v) if flip else v)
        return torch.stack(views).clamp(0, 1)
    seconds = alternate(plain, lambda: _crop_resize(x, _CropDraw(*d), (size, size)))
    same = f'{(plain() - _crop_resize(x, d, (size, size))).abs().max():.0e}'
    return row(f'crops of {c} x {side} x {side} to {size}, a batch of {B}', *seconds, same)


def train_step(precision: torch.dtype, batch: dict) -> Callable[[], float]:
    "A step of pre-training: forward, loss, backward, AdamW"
    torch.manual_seed(0)
    kinds = [Modality('bscan', 32, SIZE), Modality('slo', 32, SIZE), Modality('bscanlayermap', 8, MAP, classes=13)]
    model = MultiMAE(kinds, d=768, depth=12, heads=12).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    x, keys = {k: batch[k].to(DEVICE) for k in _MODALITIES}, batch['key']

    def step() -> float:
        with torch.autocast(DEVICE, precision, enabled=precision != torch.float32):
            predicted, masks = model(x, keys)
            loss = sum(pretrain_losses(predicted, x, masks, model.patches).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()
    return step


def data_rows() -> tuple[list[dict], dict, float]:
    "Rows of reading and augmenting, a batch, and the seconds it takes"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_set(folder)
        files = PairedDataset(folder_pairs(folder))
        packed = PairedDataset(_open_packed(pack(files.pairs, folder/'packed', quiet=True)))
        plain, cold, mapped = alternate(lambda: default_collate([per_sample(folder, 1, i) for i in range(B)]),
                                        lambda: ours(files, 1), lambda: ours(packed, 1))
        batch = ours(packed, 1)
        same = apart(batch, default_collate([per_sample(folder, 1, i) for i in range(B)]))
    rows = [row(f'{B} triplets of {SIZE} x {SIZE}, {how} (plain: torchvision)', plain, seconds,
                f'{B/plain:.0f} and {B/seconds:.0f} samples/s, {same}', 8)
            for how, seconds in (('files', cold), ('packed', mapped))]
    return rows, batch, mapped


def run() -> Iterator[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, batch, reading = data_rows()
    yield from rows
    yield from (crop_row(c, n) for c, n in ((1, 64), (1, 1024), (3, 512)))
    torch.set_num_threads(threads)
    for kind in (torch.float32, torch.bfloat16):
        seconds, = alternate(train_step(kind, batch), rounds=2)
        yield row(f'step of mirage_base, {str(kind)[6:]}, {DEVICE}, batch {B} (ours: the data)', seconds, reading,
                  f'{B/seconds:.1f} samples/s trained by {threads} threads, {B/reading:.0f} read by one')
