"Reading and augmenting a pair of 1024 x 1024: B-scan and mask as PNG on disk, tensors of a training step out"
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torchvision.transforms import InterpolationMode

from benchmarks import alternate, row
from mirage_nb.data.manifest import ClassInfo
from mirage_nb.data.preprocessing import _draw_crop
from mirage_nb.data.segmentation import SegDataset, folder_table
from mirage_nb.randomness import keyed_generator

SIZE, LAYERS, ID = (1024, 1024), 9, 'P1_1'
CLASSES = [ClassInfo(i, 28 * i, f'layer {i}', 'layer') for i in range(LAYERS)]


def make_pair(folder: Path) -> None:
    "Layers under speckle: an image whose PNG is as hard to unpack as a real one (0.9 MB, masks some kB)"
    rng, (h, w) = np.random.default_rng(0), SIZE
    col = np.arange(w)
    depth = np.stack([300 + 40 * k + 20 * np.sin(col / 130 + k) for k in range(LAYERS - 1)])  # (layers - 1, w)
    mask = (np.arange(h)[:, None, None] > depth).sum(1).astype(np.uint8)
    tissue = np.array([20, 150, 100, 130, 70, 60, 180, 200, 40])[mask]
    image = (tissue * rng.gamma(6, 1 / 6, SIZE)).clip(0, 255).astype(np.uint8)
    for kind, pixels in (('bscan', image), ('semseg', 28 * mask)):
        for suffix in ('png', 'tif'):  # TIFF: without compression
            (folder/suffix/kind).mkdir(parents=True)
            Image.fromarray(pixels).save(folder/suffix/kind/f'{ID}.{suffix}')


def make_set(folder: Path, suffix: str, keep_mb: int) -> SegDataset:
    "Open the pair of one format, with or without room to keep it decoded"
    table = folder_table(folder/suffix/'bscan').assign(semseg=[folder/suffix/'semseg'/f'{ID}.{suffix}'])
    return SegDataset(table, CLASSES, size=SIZE, augment=True, keep_mb=keep_mb)


def separate_steps(
    folder: Path,
    epoch: int,
    per_pixel: bool, # classes by a Python call a pixel, as published code has it, or by a table
    suffix: str = 'png'
) -> tuple[torch.Tensor, torch.Tensor]:
    "The same work written as one thinks of it: read, map, stretch, flip, resize, crop"
    x = np.array(Image.open(folder/suffix/'bscan'/f'{ID}.{suffix}').convert('L'))
    y = np.array(Image.open(folder/suffix/'semseg'/f'{ID}.{suffix}').convert('L'))
    index = {c.value: c.index for c in CLASSES}
    if per_pixel:
        y = np.vectorize(index.get)(y)
        x = x.astype(np.float64)
    else:
        table = np.zeros(256, np.int64)
        for value, i in index.items(): table[value] = i
        y, x = table[y], x.astype(np.float32)
    x = (x - x.min()) / (x.max() - x.min())
    xt, yt = torch.from_numpy(x)[None], torch.from_numpy(y)[None]
    flipped, top, left, frame = _draw_crop(SIZE, keyed_generator(0, epoch, ID))
    if flipped: xt, yt = TF.hflip(xt), TF.hflip(yt)
    xt = TF.resize(xt, list(frame), InterpolationMode.BILINEAR, antialias=False)
    yt = TF.resize(yt, list(frame), InterpolationMode.NEAREST)
    xt, yt = TF.crop(xt, top, left, *SIZE), TF.crop(yt, top, left, *SIZE)
    return xt.float().contiguous(), yt[0].contiguous()


def difference(a: dict, b: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, int]:
    "Largest difference of the image's pixels, and the number of other pixels in the mask"
    return (a['bscan'] - b[0]).abs().max().item(), int((a['semseg'] != b[1]).sum())


def run() -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pair(folder)
        first, later, raw = (make_set(folder, *k) for k in (('png', 0), ('png', 512), ('tif', 0)))
        kinds = {_draw_crop(SIZE, keyed_generator(0, e, ID))[0]: e for e in range(32)}
        epochs = [kinds[False], kinds[True]]  # one of each: as drawn, and flipped
        apart = [difference(ds[(e, 0)], separate_steps(folder, e, True)) for e in epochs for ds in (first, later, raw)]
        plain, table_s, cold, kept, decode, plain_raw, cold_raw = alternate(
            lambda: [separate_steps(folder, e, True) for e in epochs],
            lambda: [separate_steps(folder, e, False) for e in epochs],
            lambda: [first[(e, 0)] for e in epochs], lambda: [later[(e, 0)] for e in epochs],
            lambda: [np.asarray(Image.open(folder/'png'/k/f'{ID}.png')) for k in ('bscan', 'semseg') for _ in epochs],
            lambda: [separate_steps(folder, e, True, 'tif') for e in epochs], lambda: [raw[(e, 0)] for e in epochs])
    torch.set_num_threads(threads)
    n = len(epochs)
    image, mask = (max(d) for d in zip(*apart, strict=True))
    same = f'image {image:.0e}, mask {mask} pixels'
    floor = f'{same}; PNG alone takes {decode/n:.4f} s'
    return [row(f'pair of 1024 x 1024, {what}', slow/n, fast/n, more, aim) for what, slow, fast, more, aim in (
        ('first epoch (plain: a call a pixel)', plain, cold, floor, 8),
        ('first epoch, TIFF without compression (the same)', plain_raw, cold_raw, same, 8),
        ('later epochs (plain: a call a pixel)', plain, kept, same, 8),
        ('first epoch (plain: look-up table)', table_s, cold, same, None),
        ('later epochs (plain: look-up table)', table_s, kept, same, None))]
