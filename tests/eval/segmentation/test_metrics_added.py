"A segmentation metric is one function and one record: tables, files, means, report and figures follow"
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mirage_nb.data.manifest import ClassInfo
from mirage_nb.data.masks import write_mask
from mirage_nb.eval.segmentation.metrics import SEG_METRICS, SegMetric
from mirage_nb.eval.segmentation.report import save_seg_scores, score_folder, seg_reliability
from mirage_nb.figures.segmentation import pick_cases, show_scores

CLASSES = [ClassInfo(0, 0, 'Background', 'background'), ClassInfo(1, 100, 'RNFL', 'layer'),
           ClassInfo(2, 200, 'Fluid', 'lesion')]


def volume_difference(n): return abs(n.predicted - n.true), (n.predicted + n.true > 0)*1.


def mean_distance(to_true, to_pred): return np.concatenate([to_true.values, to_pred.values]).mean()


NEW = {'AVD': SegMetric(from_counts=volume_difference, unit='pixels', digits=0, higher_is_better=False),
       'mean distance': SegMetric(from_edges=mean_distance, unit='pixels', digits=1, higher_is_better=False)}


@pytest.fixture
def files(tmp_path):
    "Six patients with two slices each: the layer two pixels too low, the fluid missed on the second slice"
    rows = []
    for i in range(6):
        for j in range(2):
            true = np.zeros((40, 30), np.uint8)
            true[8:16], true[24:28, 5:12 + i] = 1, 2
            pred = np.roll(true, 2, 0)
            if j: pred[pred == 2] = 0
            name = f'P{i}_{j}'
            for folder, mask in (('truth', true), ('predictions', pred)):
                (tmp_path/folder).mkdir(exist_ok=True)
                write_mask(tmp_path/folder/f'{name}.png', mask, CLASSES)
            rows.append({'id': name, 'volume': f'P{i}', 'slice': j, 'patient': f'P{i}',
                         'semseg': tmp_path/'truth'/f'{name}.png'})
    return pd.DataFrame(rows), tmp_path/'predictions'


@pytest.fixture
def extended(monkeypatch):
    for name, record in NEW.items(): monkeypatch.setitem(SEG_METRICS, name, record)


def test_new_metrics_are_in_tables_and_files(files, extended, tmp_path):
    scores = score_folder(*files, CLASSES)
    assert list(scores.table.columns)[1:6] == ['Dice', 'IoU', 'HD95, pixels', 'AVD, pixels', 'mean distance, pixels']
    fluid = scores.table.loc['Fluid']
    assert fluid['AVD, pixels'].startswith('38 [') and '.' not in fluid['AVD, pixels']
    slices, volumes, summary, _ = (pd.read_csv(p) for p in save_seg_scores(scores, tmp_path))
    assert list(slices)[5:8] == ['Dice', 'IoU', 'HD95'] == list(volumes)[3:6]
    assert set(NEW) <= set(slices) and set(NEW) <= set(volumes)
    assert {'Dice', 'IoU', 'HD95', *NEW} <= set(summary.metric)
    assert {'AVD, mean of lesions', 'mean distance, mean'} <= set(scores.means)


def test_new_metrics_follow_the_rules_of_pooling(files, extended):
    "Counts are summed over slices before the function, distances are averaged after it; both conventions hold"
    scores = score_folder(*files, CLASSES)
    rows = scores.volumes[scores.volumes.Class == 'Fluid'].set_index(['convention', 'ID'])
    widths = np.arange(7, 13)
    np.testing.assert_allclose(rows.AVD['strict'], 4*widths)  # 4 rows of the missed slice
    found = scores.slices[(scores.slices.Class == 'Fluid') & (scores.slices.slice == 0)]
    missed, moved = np.hypot(40, 30), found['mean distance']
    assert moved.between(0.5, 2).all()
    np.testing.assert_allclose(rows['mean distance']['strict'], (moved.to_numpy() + missed)/2)
    np.testing.assert_allclose(rows['mean distance']['published'], moved)  # the missed slice is left out


def test_one_volume_takes_its_interval_from_slices(files, extended):
    table, folder = files
    one = table.assign(volume='V', patient='P', slice=range(len(table)))
    summary = score_folder(one, folder, CLASSES).summary.set_index(['metric', 'Class'])
    row = summary.loc['AVD', 'Fluid']
    assert row.unit == 'by slice (one volume only)' and row['mean'] == 4*np.arange(7, 13).sum()
    assert row.low < row['mean'] < row.high


def test_reports_and_figures_follow(files, extended):
    scores = score_folder(*files, CLASSES)
    questions = seg_reliability({'test': files[0]}, pd.DataFrame({'what': [], 'splits': []}), {}, scores).index
    assert any('HD95, ASSD, mean distance: the diagonal' in q for q in questions)
    cases = pick_cases(scores.slices, 'mean distance').set_index('case')
    assert cases['mean distance']['best'] < cases['mean distance']['worst']  # lower is better
    figure = show_scores({'model': scores.summary}, 'mean distance')
    assert figure.axes[0].get_xlabel() == 'mean distance, pixels'
    plt.close('all')


def test_other_columns_stay(files, extended, monkeypatch):
    with_new = score_folder(*files, CLASSES)
    for name in NEW: monkeypatch.delitem(SEG_METRICS, name)
    without = score_folder(*files, CLASSES)
    pd.testing.assert_frame_equal(with_new.volumes[list(without.volumes)], without.volumes)
    pd.testing.assert_frame_equal(with_new.summary[~with_new.summary.metric.isin(NEW)], without.summary)
    assert list(without.table.columns)[1:4] == ['Dice', 'IoU', 'HD95, pixels']


@pytest.mark.parametrize('given', [{}, {'from_counts': volume_difference, 'from_edges': mean_distance}])
def test_record_has_one_function(given):
    with pytest.raises(ValueError, match='from_counts, from_edges or from_boundaries, one of the'): SegMetric(**given)
