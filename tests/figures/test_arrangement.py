"Flat B-scans are drawn large enough, and no title runs into its neighbour"
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from mirage_nb.data.manifest import ClassInfo
from mirage_nb.figures.explain import ExplainedPanel, show_explanations
from mirage_nb.figures.prediction import show_gallery

CLASSES = [ClassInfo(0, 0, 'Background', 'background'), ClassInfo(1, 60, 'RNFL', 'layer')]
SIZES = [(178, 502), (124, 384), (128, 128)]
METHODS = 'AttnLRP', 'Grad-CAM', 'attention rollout', 'integrated gradients', 'occlusion'


def gallery(size, folder):
    rng, mask = np.random.default_rng(0), np.zeros(size, np.uint8)
    mask[size[0]//3:size[0]//2] = 60
    Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder/'scan.png')
    Image.fromarray(mask).save(folder/'mask.png')
    row = {'image': folder/'scan.png', 'file': 'mask.png', 'uncertainty': .2, 'far': True}
    rows = pd.DataFrame([row | {'id': f'patient_{i:03d}/volume_12/slice_{i:03d}'} for i in range(6)])
    return show_gallery(rows, folder, CLASSES)


def explanation(size, folder):
    heat = np.random.default_rng(0).random((8, 8))
    panel = ExplainedPanel('a', 'patient_003/volume_12/slice_003\ntrue DME, predicted DME 0.91', np.zeros((*size, 3)),
                           dict.fromkeys(METHODS, heat))
    return show_explanations([panel]*2)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('draw', [gallery, explanation])
def test_images_are_large_and_titles_apart(draw, size, tmp_path):
    fig = draw(size, tmp_path)
    FigureCanvasAgg(fig).draw()
    shown = [ax for ax in fig.axes if ax.images]
    for ax in shown:
        box = ax.get_window_extent()
        assert box.height/box.width == pytest.approx(size[0]/size[1], rel=.01)
        assert box.height > 110, f'{box.width:.0f} x {box.height:.0f} points of the screen'
    titles = [t.get_window_extent() for ax in shown for t in (ax.title, ax._left_title) if t.get_text()]
    assert len(titles) >= 6 and not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2))
