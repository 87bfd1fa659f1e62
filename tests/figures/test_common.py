"What all figures keep: true proportions, a legend of the colours that are seen, a description"
import inspect

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mirage_nb.data.manifest import ClassInfo
from mirage_nb.figures import classification, classification_scores, pretraining, segmentation
from mirage_nb.figures.common import DescribedFigure
from mirage_nb.figures.seeds import show_seed_curves
from mirage_nb.figures.segmentation import show_batch

CLASSES = [ClassInfo(0, 0, 'Background', 'background'), ClassInfo(1, 60, 'RNFL', 'layer'),
           ClassInfo(2, 120, 'INL', 'layer'), ClassInfo(3, 180, 'Cyst', 'lesion')]
DRAWN = [f for m in (classification, classification_scores, pretraining, segmentation)
         for k, f in vars(m).items() if k.startswith('show_') and f.__module__ == m.__name__]


@pytest.fixture(params=[(40, 120), (90, 60)], ids=['wide', 'tall'])
def drawn(request):
    "Two B-scans with masks, the figure of them, and its pixels"
    rng, shape = np.random.default_rng(0), request.param
    mask = np.zeros(shape, int)
    mask[4:14], mask[20:30, 5:50] = 1, 3
    samples = [{'id': f's{i}', 'bscan': rng.random((1, *shape)), 'semseg': mask} for i in range(2)]
    fig = show_batch(samples, CLASSES)
    fig.set_dpi(150)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return samples, fig, np.asarray(canvas.buffer_rgba())[..., :3]/255


def test_images_have_their_proportions(drawn):
    samples, fig, _ = drawn
    rows, cols = samples[0]['semseg'].shape
    for ax in fig.axes:
        box = ax.get_window_extent()
        assert box.height/box.width == pytest.approx(rows/cols, rel=1e-3)
    assert sum(ax.get_window_extent().width for ax in fig.axes) > .7*len(fig.axes)/2*fig.bbox.width, 'mostly margins'


def test_legend_has_the_colours_that_are_seen(drawn):
    samples, fig, pixels = drawn
    below = [ax for ax in fig.axes if not ax.get_title()]
    for patch in fig.legends[0].get_patches():
        c = next(c for c in CLASSES if c.label == patch.get_label())
        x, y = patch.get_window_extent().get_points().mean(0)
        swatch = pixels[round(len(pixels) - y), round(x)]
        images = [(ax.images[0].get_array(), s['semseg']) for ax, s in zip(below, samples, strict=True)]
        seen = np.concatenate([image[mask == c.index] for image, mask in images]).mean(0)
        assert np.abs(swatch - seen).max() < .01, f'{c.label}: {swatch} in the legend, {seen} in the image'
    assert [p.get_label() for p in fig.legends[0].get_patches()] == ['RNFL', 'Cyst']


@pytest.mark.parametrize('f', DRAWN, ids=lambda f: f.__name__)
def test_every_figure_says_what_it_shows(f):
    assert 'DescribedFigure' in str(inspect.signature(f).return_annotation)
    assert 'fig.description = ' in inspect.getsource(f) or 'return show_' in inspect.getsource(f)


def test_description_is_the_text_of_the_figure(drawn):
    assert isinstance(drawn[1], DescribedFigure) and repr(drawn[1]).endswith('its classes: s0, s1')


def test_one_epoch_is_a_point_over_a_whole_number():
    history = pd.DataFrame({'epoch': [1], 'loss': [.8], 'valid_loss': [.9], 'mIoU': [.2], 'bacc': [.4], 'lr': [1e-3],
                            'samples_per_s': [99.]})
    tried = pd.DataFrame({'epoch': [1], 'valid_loss': [.8], 'probe': [.5]})
    for fig in (segmentation.show_curves(history), classification.show_cls_curves(history, 0),
                pretraining.show_pretraining(history, tried), show_seed_curves(history.assign(seed=0))):
        FigureCanvasAgg(fig).draw()
        for ax in (a for a in fig.axes if a.get_xlabel() == 'epoch'):
            low, high = ax.get_xlim()
            assert [x for x in ax.get_xticks() if low <= x <= high] == [1]
            assert all(line.get_marker() == 'o' for line in ax.lines if len(line.get_xdata()) == 1)
