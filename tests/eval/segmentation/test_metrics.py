"Metrics and statistics: known answers, equality with MONAI, the two conventions, coverage of the intervals"
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter

from mirage_nb.data.scale import MaskScale
from mirage_nb.eval.segmentation.alignment import resize_nearest
from mirage_nb.eval.segmentation.metrics import _assd, _hd95, _nsd, pixel_confusion, pixel_miou
from mirage_nb.eval.segmentation.outlines import SliceOutlines
from mirage_nb.eval.segmentation.scores import pool_volumes, score_slices
from mirage_nb.eval.segmentation.summary import summarise


class Class(NamedTuple):
    index: int
    value: int
    label: str
    group: str


retina = (Class(0, 0, 'Background', 'background'), Class(1, 100, 'RNFL', 'layer'), Class(2, 200, 'Fluid', 'lesion'))
other = (Class(0, 0, 'Invalid', 'invalid'), Class(1, 51, 'Above ILM', 'background'), Class(2, 102, 'Inner', 'layer'),
         Class(3, 153, 'Outer', 'layer'))
to_other = {0: 51, 100: 102, 200: 0}


def score_volumes(rows, *args, **options): return pool_volumes(score_slices(rows, *args, **options))


def hd95(pred, true, n=2):
    "HD95 of each class, NaN where a side lacks it"
    pairs = SliceOutlines(np.asarray(pred, np.uint8), np.asarray(true, np.uint8), n, MaskScale()).pixels
    return [_hd95(*pairs[c]) if c in pairs else np.nan for c in range(n)]


def row_of(table, label): return table.set_index('Class').loc[label]


def monai_hd95(pred, true):
    a, b = (torch.from_numpy(np.asarray(x, bool))[None, None] for x in (pred, true))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return compute_hausdorff_distance(a, b, include_background=True, percentile=95, directed=False).item()


def monai(f, pred, true, **options):
    a, b = (torch.from_numpy(np.asarray(x, bool))[None, None] for x in (pred, true))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return f(a, b, include_background=True, **options).item()


def blobs(g, shape, share):
    x = gaussian_filter(g.standard_normal(shape), g.uniform(0.3, 4))
    return x > np.quantile(x, 1 - share)


def pairs():
    g = np.random.default_rng(0)
    for i in range(60):
        shape = tuple(g.integers(3, 60, 2))
        yield f'blobs {i}', blobs(g, shape, g.uniform(0.01, 0.99)), blobs(g, shape, g.uniform(0.01, 0.99))
    near = blobs(g, (40, 50), 0.3)
    full, dot, edge = np.ones((40, 50), bool), np.zeros((40, 50), bool), np.zeros((40, 50), bool)
    dot[17, 31], edge[:6, 10:30] = True, True
    named = dict(near=near, full=full, dot=dot, edge=edge, none=~full, moved=np.roll(near, 2, 1),
                 corner=np.roll(dot, 22, 0))
    for a in named:
        for b in named: yield f'{a}-{b}', named[a], named[b]
    yield 'one row', np.eye(30, dtype=bool)[:1], np.eye(30, dtype=bool)[29:]
    yield 'one pixel', np.ones((1, 1), bool), np.ones((1, 1), bool)


@pytest.mark.parametrize('name,pred,true', list(pairs()), ids=lambda x: x if isinstance(x, str) else '')
def test_hd95_is_monais(name, pred, true):
    ours = hd95(pred, true)[1]
    if pred.any() and true.any(): np.testing.assert_allclose(ours, monai_hd95(pred, true), rtol=2e-5, atol=1e-6)
    else: assert np.isnan(ours)


SPACING = (3.87, 11.3)  # micrometres


@pytest.mark.parametrize('name,pred,true', list(pairs())[::3], ids=lambda x: x if isinstance(x, str) else '')
def test_distances_are_monais_in_pixels_and_micrometres(name, pred, true):
    "ASSD, NSD and HD95, also where a pixel is three times as wide as high"
    scale = MaskScale(tolerance=2., depth_um=SPACING[0], across_um=SPACING[1], tolerance_um=12.)
    outlines = SliceOutlines(pred.astype(np.uint8), true.astype(np.uint8), 2, scale)
    if not (pred.any() and true.any()): return np.testing.assert_equal(1 in outlines.pixels, False)
    for pairs, spacing, tolerance in ((outlines.pixels, None, 2.), (outlines.micrometres, SPACING, 12.)):
        expected = (monai(compute_average_surface_distance, pred, true, symmetric=True, spacing=spacing),
                    monai(compute_surface_dice, pred, true, class_thresholds=[tolerance], spacing=spacing),
                    monai(compute_hausdorff_distance, pred, true, percentile=95, spacing=spacing))
        ours = [f(*pairs[1]) for f in (_assd, _nsd, _hd95)]
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)


def test_hd95_of_all_classes_is_that_of_each():
    g = np.random.default_rng(1)
    fields = gaussian_filter(g.standard_normal((6, 45, 70)), (0, 3, 3))
    true = fields.argmax(0).astype(np.uint8)
    pred = np.where(g.random(true.shape) < 0.05, 2, np.roll(true, 2, 1)).astype(np.uint8)
    got = hd95(pred, true, 8)
    np.testing.assert_allclose(got[:6], [monai_hd95(pred == c, true == c) for c in range(6)], rtol=1e-5)
    assert np.isnan(got[6:]).all()


def test_pooled_counts_by_hand():
    "Two slices: 3 of 4 true pixels found and 1 false; 0 of 1 found. Pooled: hit 3, predicted 4, true 5"
    true = np.zeros((2, 4, 4), np.uint8)
    pred = true.copy()
    true[0, 0], pred[0, 0, :3], pred[0, 1, 0], true[1, 2, 2] = 1, 1, 1, 1
    score = row_of(score_volumes([('V', i, true[i], pred[i]) for i in (0, 1)], retina), 'RNFL')
    np.testing.assert_allclose([score.Dice, score.IoU], [6/9, 3/6], rtol=1e-6)
    counts = ['slices', 'present', 'undefined', 'missed', 'false', 'neither']
    assert list(score[counts]) == [2, 2, 1, 1, 0, 0]


def lesion_slices(found):
    "Five slices with a lesion, a sixth without; `found` says on which the model paints it, two pixels off"
    true = np.zeros((32, 40), np.uint8)
    true[10:20, 10:20] = 2
    for i in range(6):
        here = true if i < 5 else true * 0
        yield 'V', i, here, np.roll(here, 2, 0) if found[i] else here * 0


def test_missing_a_lesion_pays_in_published_and_never_in_strict():  # defects.md 3
    "From finding the lesion on all slices to finding it on none, HD95 must not fall and Dice must not rise"
    scores = {c: [row_of(score_volumes(lesion_slices([i < k for i in range(6)]), retina, c), 'Fluid')
                  for k in range(5, -1, -1)] for c in ('published', 'strict')}
    strict, published = ([s.HD95 for s in scores[c]] for c in ('strict', 'published'))
    assert (np.diff(strict) > 0).all() and (np.diff([s.Dice for s in scores['strict']]) < 0).all()
    assert published[-2] < published[0] and published[-1] == 0  # the defect, reproduced for comparison
    assert [s.undefined for s in scores['strict']] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(strict[-1], np.hypot(32, 40))


def test_false_lesion_costs_in_strict():
    true = np.zeros((8, 8), np.uint8)
    score = row_of(score_volumes([('V', 0, true, true + 2), ('V', 1, true, true)], retina), 'Fluid')
    assert score.Dice == 0 and score.present == 0 and (score.false, score.neither) == (1, 1)
    np.testing.assert_allclose(score.HD95, 128**.5)


def test_empty_against_empty():
    rows = [('V', i, np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)) for i in (0, 1)]
    strict, published = (row_of(score_volumes(rows, retina, c), 'Fluid') for c in ('strict', 'published'))
    assert np.isnan([strict.Dice, strict.IoU, strict.HD95]).all() and strict.neither == 2 and strict.undefined == 0
    assert [published.Dice, published.IoU, published.HD95] == [0, 0, 0]


def test_slice_of_one_class():
    "A slice all of one class counts as empty in published; in strict it is measured"
    full, part = np.ones((9, 9), np.uint8), np.ones((9, 9), np.uint8)
    part[0] = 0
    strict, published, diagonal = (row_of(score_slices([('V', 0, full, part)], retina, c, d), 'RNFL')
                                   for c, d in (('strict', False), ('published', False), ('published', True)))
    assert strict.status == 'ok' and strict.HD95 == 1
    assert published.status == 'false' and np.isnan(published.HD95)
    np.testing.assert_allclose(diagonal.HD95, 162**.5)


def test_ground_truth_decides_what_counts():  # defects.md 4
    "A lesion painted over a layer hides the layer's pixels in published; in strict it is a miss"
    true = np.full((6, 6), 1, np.uint8)
    true[2:4], true[5] = 2, 0
    right = np.array([0, 0, 1, 0], np.uint8)[true]   # predicted classes index `retina`: 1 becomes Inner
    hiding = right.copy()
    hiding[2, :3] = 2                                # Fluid, which this set does not know
    def dice(pred, convention):
        rows = [('V', 0, true, pred)]
        return row_of(score_volumes(rows, other, convention, class_map=to_other, source=retina), 'Inner').Dice
    np.testing.assert_allclose([dice(right, c) for c in ('published', 'strict')], 1, rtol=1e-6)
    np.testing.assert_allclose(dice(hiding, 'published'), 1, rtol=1e-6)
    np.testing.assert_allclose(dice(hiding, 'strict'), 2*9 / (9 + 12), rtol=1e-6)


@pytest.mark.parametrize('convention', ['published', 'strict'])
def test_invalid_ground_truth_counts_for_nobody(convention):
    true = np.array([[0, 0, 2, 3], [0, 2, 2, 3]], np.uint8)
    noise = np.array([[2, 3, 2, 3], [3, 2, 2, 3]], np.uint8)
    scores = score_volumes([('V', 0, true, noise)], other, convention)
    assert list(scores['Class']) == ['Inner', 'Outer']  # neither Invalid nor Above ILM
    np.testing.assert_allclose(scores['Dice'], 1, rtol=1e-6)
    np.testing.assert_allclose(scores['HD95'], 0)


def test_prediction_of_another_size():
    true = np.zeros((12, 16), np.uint8)
    true[4:8, 4:12] = 1
    with pytest.warns(UserWarning, match='1 of 1 predictions .*: V_0 is of 6 x 8 .*, its mask of 12 x 16'):
        score = row_of(score_volumes([('V', 0, true, true[::2, ::2])], retina), 'RNFL')
    np.testing.assert_allclose([score.Dice, score.HD95], [1, 0], rtol=1e-6)


def test_resize_is_torchs_nearest():
    g = np.random.default_rng(0)
    for (h, w), size in (((56, 80), (496, 768)), ((512, 512), (496, 768)), ((7, 9), (3, 20))):
        x = g.integers(0, 9, (h, w)).astype(np.uint8)
        theirs = torch.nn.functional.interpolate(torch.from_numpy(x)[None, None], size, mode='nearest')[0, 0].numpy()
        assert (resize_nearest(x, size) == theirs).mean() > 0.999  # torch computes positions in float32


def test_confusion_of_tensors_and_miou():
    true, pred = torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 1, 1, 1]])
    counts = pixel_confusion(pred, true, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert pixel_miou(counts) == pytest.approx((1/2 + 1/3 + 0) / 3)
    assert pixel_miou(counts, ignore=[2]) == pytest.approx((1/2 + 1/2) / 2)  # defects.md 10
    assert np.isnan(pixel_miou(counts * 0))


def test_errors_name_the_slice():
    ok = np.zeros((4, 4), np.uint8)
    for row, text in (((7, 3, ok, ok + 9), 'slice 7_3: the prediction holds class 9; the set has 3 classes, 0 to 2'),
                      ((7, 3, ok - 1, ok), 'slice 7_3: the mask holds class 255; the set has 3 classes'),
                      ((7, 3, ok, ok / 1), 'slice 7_3: the prediction is float64 of shape (4, 4); class indices'),
                      ((7, 3, ok, ok[0]), 'slice 7_3: the mask is (4, 4), the prediction (4,); each must be (h, w)'),
                      ((7, 3, ok, ok + 9, '7_003'), 'slice 7_003: ')):
        with pytest.raises(ValueError) as e: score_slices([row], retina)
        assert text in str(e.value)


def test_single_volume_falls_back_to_slices():
    g = np.random.default_rng(0)
    true = np.zeros((11, 20, 20), np.uint8)
    true[:, 5:10], true[2:6, 12:16, 5:9] = 1, 2
    slices = score_slices([('V', i, t, np.where(g.random(t.shape) < 0.1, 0, t)) for i, t in enumerate(true)], retina)
    scores = pool_volumes(slices)
    table = summarise(scores, patients={'V': 'P7'}, slices=slices)
    assert set(table['unit']) == {'by slice (one volume only)'} and (table['low'] < table['high']).any()
    dice = table[table['metric'] == 'Dice'].set_index('Class')
    np.testing.assert_allclose(dice.loc[['RNFL', 'Fluid'], 'mean'], scores['Dice'])
    assert dice.loc['Fluid', 'n'] == 4


def layered(rows, thick=6, shape=(40, 30)):
    "A layer that begins at a row in each column"
    at = np.arange(shape[0])[:, None]
    return ((at >= rows) & (at < np.asarray(rows) + thick)).astype(np.uint8)


def test_boundary_errors_by_hand():
    "Ten columns one row too deep, five two rows too high, fifteen right; the lower boundary another row too deep"
    rows = np.full(30, 10)
    shift = np.repeat([1, -2, 0], [10, 5, 15])
    score = row_of(score_volumes([('V', 0, layered(rows), layered(rows + shift, thick=7))], retina), 'RNFL')
    errors = [score[f'{side} boundary {k}'] for side in ('upper', 'lower') for k in ('distance', 'shift')]
    np.testing.assert_allclose(errors, [20/30, 0, (20 + 5 + 15)/30, 1])


def test_boundary_errors_are_of_layers_and_strict():
    "Fluid has no boundary, the published convention has the published metrics, columns on one side alone do not count"
    true, pred = layered(np.full(30, 10)), layered(np.full(30, 12))
    pred[:, :6], true[:, 6:9] = 0, 0
    true[30:34, 4:9] = 2
    slices = score_slices([('V', 0, true, pred)], retina, ('strict', 'published'))
    rows = slices.set_index(['convention', 'Class'])
    assert list(rows.loc[('strict', 'RNFL'), ['columns', 'columns_missed', 'columns_false']]) == [21, 6, 3]
    scores = pool_volumes(slices).set_index(['convention', 'Class'])
    assert scores.loc[('strict', 'RNFL'), 'upper boundary shift'] == 2
    assert np.isnan(scores.loc[('strict', 'Fluid'), 'upper boundary shift'])
    new = ['NSD', 'ASSD', 'volume error', 'upper boundary shift']
    assert scores.loc['published', new].isna().all(axis=None)
    assert set(summarise(pool_volumes(score_slices([('V', 0, true, pred)], retina))).query(
        "metric == 'upper boundary shift'").Class) == {'RNFL', 'mean of layers'}


def test_volume_errors_by_hand():
    "8 of 10 pixels, 15 for 10, 3 for none. Opposite errors cancel with sign; absent truth has no relative error"
    def flat(n):
        x = np.zeros((10, 10), np.uint8)
        x.flat[:n] = 2
        return x
    rows = [('A', 0, flat(10), flat(8)), ('B', 0, flat(10), flat(15)), ('C', 0, flat(0), flat(3))]
    scores = score_volumes(rows, retina)
    fluid = scores[scores.Class == 'Fluid'].set_index('ID')
    assert list(fluid['volume error']) == [-2, 5, 3] and list(fluid['absolute volume error']) == [2, 5, 3]
    np.testing.assert_equal(fluid['relative volume error'].to_numpy(), [.2, .5, np.nan])
    means = summarise(scores).set_index(['metric', 'Class'])
    assert means.loc[('volume error', 'Fluid'), 'mean'] == 2
    assert ('volume error', 'mean') not in means.index  # no mean of pixels of unlike classes


def test_surface_metrics_of_a_missed_class():
    "Strict: NSD 0, distances the diagonal, in pixels and in micrometres; published: none"
    true = np.zeros((30, 40), np.uint8)
    true[5:9, 5:9] = 2
    scale = MaskScale(depth_um=4., across_um=12.)
    row = row_of(score_slices([('V', 0, true, true*0)], retina, scale=scale), 'Fluid')
    np.testing.assert_allclose(row[['NSD', 'ASSD', 'ASSD_um', 'HD95_um']].astype(float),
                               [0, 50, np.hypot(120, 480), np.hypot(120, 480)])
