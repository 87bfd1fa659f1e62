"Reading pictures at the size they are used at: a photograph of 12 megapixels, and a film"
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks import alternate, row
from mirage_nb.data.files import read_image

SIZE = 256


def make(folder: Path) -> tuple[Path, Path]:
    "A JPEG of 3072 x 3900 and a PNG of 1024 x 1024, both with structure and noise"
    rng = np.random.default_rng(0)
    smooth = np.array(Image.fromarray(rng.integers(40, 220, (96, 122, 3), dtype=np.uint8)).resize((3900, 3072)))
    photo = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    film = gaussian_filter(rng.normal(0, 1, (1024, 1024)), 8)*900 + 120 + rng.normal(0, 3, (1024, 1024))
    Image.fromarray(photo).save(folder/'photo.jpg', quality=92)
    Image.fromarray(np.clip(film, 0, 255).astype(np.uint8)).save(folder/'film.png')
    return folder/'photo.jpg', folder/'film.png'


def plain(path: Path) -> np.ndarray:
    "Decode all, then resize"
    with Image.open(path) as image:
        image = image.convert('RGB')
        part = SIZE/min(image.size)
        return np.asarray(image.resize((round(image.width*part), round(image.height*part)), Image.Resampling.BICUBIC))


def apart(a: np.ndarray, b: np.ndarray) -> str:
    return f'mean difference {np.abs(a.astype(int) - b).mean():.1f} of 255'


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as name:
        photo, film = make(Path(name))
        whole, fast = alternate(lambda: plain(photo), lambda: read_image(photo, 3, at_most=SIZE))
        slow, once = alternate(lambda: plain(film), lambda: read_image(film, 1, SIZE))
        same = apart(plain(photo), read_image(photo, 3, at_most=SIZE)), apart(plain(film), read_image(film, 1, SIZE))
    return [row('JPEG of 3072 x 3900 at 256', whole, fast, same[0]),
            row('PNG of 1024 x 1024 at 256', slow, once, same[1])]
