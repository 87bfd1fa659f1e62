"Folders of tiny pictures: listed once, opened later, beside a walk that opens or asks for each file at each start"
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import row
from mirage_nb.data.image_index import index_images

FILES, MANY, A_FOLDER, LIMIT_S = 100_000, 876_000, 500, 2.


def make_tree(root: Path, n: int) -> None:
    "Pictures of 8 x 8, 500 in a folder, of two levels: 16 files under many names, which are made faster than files"
    root.mkdir(parents=True)
    kinds, rng = [root.parent/f'made{i}.png' for i in range(16)], np.random.default_rng(0)
    for file in kinds: Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
    for i in range(n):
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


def ask(root: Path) -> int:
    "Walk the tree and ask for size and time of each file, to find what has changed"
    return sum(os.stat(os.path.join(top, name)).st_size >= 0 for top, _, names in os.walk(root) for name in names)


def many(root: Path) -> dict:
    "Open the listing of as many files as large sets have"
    index = root.parent/'many.safetensors'
    make_tree(root, MANY)
    listed, best = len(index_images(root, index)), [float('inf')]*2
    for _ in range(3):
        for i, f in enumerate((lambda: ask(root), lambda: len(index_images(root, index)))):
            start = time.process_time()
            found = f()
            best[i] = min(best[i], time.process_time() - start)
            assert found == listed == MANY
    what = f'{MANY:,} pictures, later starts (plain: a walk that asks for each)'
    return row(what, *best, 'same files; processor time', limit=LIMIT_S)


def timed(f, *args, **options):
    start = time.perf_counter()
    out = f(*args, **options)
    return time.perf_counter() - start, out


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as name:
        root, index = Path(name).resolve()/'tree', Path(name)/'tree.safetensors'
        make_tree(root, FILES)
        plain_s, walked = min((timed(plain, root) for _ in range(2)), key=lambda t: t[0])
        first_s, listing = timed(index_images, root, index)
        later_s, again = min((timed(index_images, root, index) for _ in range(5)), key=lambda t: t[0])
        fresh_s, checked = timed(index_images, root, index, refresh=True)
        many_row = many(Path(name).resolve()/'many'/'tree')
        same = len(walked) == len(again) and all(again.path(i) == Path(walked[i][0]) and
                                                 tuple(again.shape[i]) == walked[i][1] for i in range(0, FILES, 97))
        equal = f'{"same" if same and listing.digest() == checked.digest() else "OTHER"} paths and sizes'
        kb = index.stat().st_size/1024
    return [row(f'{FILES:,} pictures, first start: listed with hashes', plain_s, first_s, equal),
            row(f'{FILES:,} pictures, later starts: listing opened', plain_s, later_s, f'{equal}; {kb:,.0f} KiB', 10.),
            row(f'{FILES:,} pictures, a start that looks for changes', plain_s, fresh_s, equal), many_row]
