"A folder of 100,000 tiny pictures: listed once, opened later, beside a walk that opens each file at each start"
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import row
from mirage_nb.data.image_index import index_images

FILES, A_FOLDER = 100_000, 500


def make_tree(root: Path) -> None:
    "Pictures of 8 x 8 in 200 folders of two levels: 16 files under many names, which are made faster than files"
    kinds, rng = [root.parent/f'made{i}.png' for i in range(16)], np.random.default_rng(0)
    for file in kinds: Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
    for i in range(FILES):
        folder = root/f'site_{i//A_FOLDER//10:02d}'/f'{i//A_FOLDER % 10}'
        if i % A_FOLDER == 0: folder.mkdir(parents=True)
        os.link(kinds[i % 16], folder/f'p{i:06d}.png')


def plain(root: Path) -> list[tuple[str, tuple[int, int]]]:
    "Walk the tree and open each picture, as a data set often does when it starts"
    out = []
    for top, _, names in os.walk(root):
        for name in names:
            with Image.open(os.path.join(top, name)) as image: out.append((os.path.join(top, name), image.size))
    return sorted(out)


def timed(f, *args, **options):
    start = time.perf_counter()
    out = f(*args, **options)
    return time.perf_counter() - start, out


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as name:
        root, index = Path(name).resolve()/'tree', Path(name)/'tree.safetensors'
        make_tree(root)
        plain_s, walked = min((timed(plain, root) for _ in range(2)), key=lambda t: t[0])
        first_s, listing = timed(index_images, root, index)
        later_s, again = min((timed(index_images, root, index) for _ in range(5)), key=lambda t: t[0])
        fresh_s, checked = timed(index_images, root, index, refresh=True)
        same = len(walked) == len(again) and all(again.path(i) == Path(walked[i][0]) and
                                                 tuple(again.shape[i]) == walked[i][1] for i in range(0, FILES, 97))
        equal = f'{"same" if same and listing.digest() == checked.digest() else "OTHER"} paths and sizes'
        kb = index.stat().st_size/1024
    return [row(f'{FILES:,} pictures, first start: listed with hashes', plain_s, first_s, equal),
            row(f'{FILES:,} pictures, later starts: listing opened', plain_s, later_s, f'{equal}; {kb:,.0f} KiB', 10.),
            row(f'{FILES:,} pictures, a start that looks for changes', plain_s, fresh_s, equal)]
