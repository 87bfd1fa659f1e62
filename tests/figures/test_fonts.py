"Names in figures: as they are written, in any script, in legends too, and on a server without a display"
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from IPython.core.formatters import DisplayFormatter
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mirage_nb.data.manifest import ClassInfo
from mirage_nb.figures.classification import show_labelled
from mirage_nb.figures.common import panel_grid
from mirage_nb.figures.fonts import _fonts_for, legend_label
from mirage_nb.figures.segmentation import show_batch

ODD = ['_fluid', '$5 {bill', 'a $x_1$ b', 'x$']


def drawn(fig):
    "The pixels of a figure"
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def texts(fig):
    "What is read in a figure: words -> whether they may be mathematics"
    return {t.get_text(): t.get_parse_math() for t in fig.findobj(lambda a: hasattr(a, 'get_parse_math'))}


def masks_with(names):
    classes = [ClassInfo(0, 0, 'Background', 'background'), *(
        ClassInfo(i, 9*i, n, 'lesion') for i, n in enumerate(names, 1))]
    mask = np.repeat(np.arange(len(classes)), 4)[None].repeat(12, 0)
    return show_batch([{'id': f'{names[0]}_$1$', 'bscan': np.zeros((1, *mask.shape)), 'semseg': mask}], classes)


def test_every_class_is_in_the_legend_as_it_is_written():
    fig = masks_with(ODD)
    drawn(fig)  # a lone brace between dollar signs would fail here
    assert [p.get_label().strip() for p in fig.legends[0].get_patches()] == ODD
    assert not any(math for words, math in texts(fig).items() if '$' in words)


def test_labels_and_titles_are_no_mathematics():
    images = [{'id': 'p$1_{', 'label': i, 'image': np.zeros((3, 8, 8))} for i in range(len(ODD))]
    fig = show_labelled(images, 'image', ODD)
    assert drawn(fig).any() and not any(math for words, math in texts(fig).items() if '$' in words)


def test_names_along_an_axis_and_numbers_on_it():
    fig, axes = panel_grid(1, 1)
    axes[0, 0].plot([1, 1000], [0, 1], label=legend_label('_all'))
    axes[0, 0].set(yticks=[0, 1], yticklabels=['$a_{', '_b'], xscale='log')
    axes[0, 0].legend()
    drawn(fig)
    assert {'$a_{', '_b', ' _all'} <= texts(fig).keys() and not texts(fig)['$a_{']
    assert any(math and 'mathdefault' in words for words, math in texts(fig).items()), 'powers of ten are typeset'


@pytest.fixture
def small_font(tmp_path, monkeypatch):
    "A font with two Chinese characters, put where fonts of the system are looked for; it is forgotten afterwards"
    names, pen = ['.notdef', 'square'], TTGlyphPen(None)
    for x, y in ((50, 0), (50, 800), (950, 800), (950, 0)): (pen.lineTo if x + y > 50 else pen.moveTo)((x, y))
    pen.closePath()
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap(dict.fromkeys(map(ord, '视盘'), 'square'))
    font.setupGlyf({'.notdef': TTGlyphPen(None).glyph(), 'square': pen.glyph()})
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({'familyName': 'Small Sans', 'styleName': 'Regular'})
    font.setupOS2(); font.setupPost()
    font.save(tmp_path/'small.ttf')
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', [*font_manager.fontManager.ttflist])
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda *a, **k: [str(tmp_path/'small.ttf')])
    _fonts_for.cache_clear()
    yield 'Small Sans'
    _fonts_for.cache_clear()


def test_a_font_of_the_system_draws_other_scripts(small_font, caplog):
    fig = masks_with(['视盘', 'fluid'])
    with caplog.at_level(logging.WARNING): pixels = drawn(fig)
    legend = fig.legends[0].get_texts()
    assert legend[0].get_fontfamily() == ['sans-serif', small_font] and legend[1].get_fontfamily() == ['sans-serif']
    box = legend[0].get_window_extent()
    inside = pixels[round(len(pixels) - box.y1):round(len(pixels) - box.y0), round(box.x0):round(box.x1)]
    assert (inside < 100).mean() > .5, 'the full squares of the font are not what was drawn'
    assert not caplog.records


def test_without_such_a_font_the_package_is_named(caplog, monkeypatch, recwarn):
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', [
        f for f in font_manager.fontManager.ttflist if f.name.startswith(('DejaVu', 'Last'))])
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda *a, **k: [])
    _fonts_for.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2): drawn(masks_with(['网膜', '망막', 'Netzhaut']))
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and all('figures show boxes in their place' in s for s in said)
    assert all('fonts-noto-cjk on Debian' in s for s in said)
    assert not [w for w in recwarn if 'missing from' in str(w.message)]
    _fonts_for.cache_clear()


def test_a_figure_is_an_image_whatever_the_backend():
    "Without matplotlib's own hook into a kernel, which MPLBACKEND=agg leaves out, a report has its figures"
    found, _ = DisplayFormatter().format(masks_with(['fluid']))
    assert found['image/png'][:4] == b'\x89PNG' and 'B-scan' in found['text/plain']


@pytest.mark.slow
def test_no_display_is_needed():
    code = ("from mirage_nb.figures.common import panel_grid; fig, _ = panel_grid(1, 2); "
            "assert fig._repr_png_()[:4] == b'\\x89PNG'")
    env = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY')} | {'MPLBACKEND': 'qtagg'}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
