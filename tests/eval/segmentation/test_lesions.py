"Lesions from files to words: counts, units of intervals, graders, files, and the scale of a manifest"
import numpy as np
import pandas as pd
import pytest

from mirage_nb.data.manifest import ClassInfo
from mirage_nb.data.masks import write_mask
from mirage_nb.data.scale import MaskScale
from mirage_nb.eval.segmentation.report import save_seg_scores, score_folder, score_tables

CLASSES = [ClassInfo(0, 0, 'Background', 'background'), ClassInfo(1, 100, 'RNFL', 'layer'),
           ClassInfo(2, 200, 'Cyst', 'lesion'), ClassInfo(3, 250, 'SRF', 'lesion')]


@pytest.fixture
def files(tmp_path):
    "Six patients: two cysts each, of which the second is found by three; one invented SRF; no SRF in the truth"
    rows = []
    for i in range(6):
        true = np.zeros((40, 60), np.uint8)
        true[4:8], true[12:20, 5:15], true[12:16, 30:35] = 1, 2, 2
        pred = true.copy()
        pred[12:14] = np.where(pred[12:14] == 2, 0, pred[12:14])  # both cysts too small
        if i < 3: pred[12:16, 30:35] = 0
        if i == 5: pred[30:33, 40:50] = 3
        for folder, mask in (('truth', true), ('predictions', pred)):
            (tmp_path/folder).mkdir(exist_ok=True)
            write_mask(tmp_path/folder/f'P{i}_0.png', mask, CLASSES)
        rows.append({'id': f'P{i}_0', 'volume': f'P{i}', 'slice': 0, 'patient': f'P{i}',
                     'semseg': tmp_path/'truth'/f'P{i}_0.png'})
    return pd.DataFrame(rows), tmp_path/'predictions'


def test_lesions_of_a_folder(files, tmp_path):
    scores = score_folder(*files, CLASSES)
    assert scores.lesion_words == 'of 12 lesions 9 were found, 3 missed, 1 invented'
    counts = scores.counts.set_index('Class')
    columns = ['lesions', 'found', 'missed', 'invented']
    assert counts.loc[['Cyst', 'SRF', 'all lesions'], columns].to_numpy().tolist() == [
        [12, 9, 3, 0], [0, 0, 0, 1], [12, 9, 3, 1]]
    assert np.isnan(counts.found_share['SRF']) and counts.true_share['SRF'] == 0
    assert counts.found_share_low['Cyst'] < .75 < counts.found_share_high['Cyst']
    assert scores.lesion_table.loc['SRF', 'share found'] == '–'
    kept = pd.read_csv(save_seg_scores(scores, tmp_path)[3])
    assert list(kept)[:5] == ['id', 'volume', 'slice', 'Class', 'status'] and len(kept) == 13
    assert sorted(kept.true_pixels[kept.Class == 'Cyst']) == [20]*6 + [80]*6


def test_class_that_a_grader_did_not_mark_is_not_missed(files, tmp_path):
    "A grader without any lesion has missed none; a model has missed all"
    table, folder = files
    for path in folder.iterdir(): write_mask(path, np.ones((40, 60), np.uint8), CLASSES)
    assert score_folder(table, folder, CLASSES, grader=True).lesion_words == ''
    assert score_folder(table, folder, CLASSES).lesion_words == 'of 12 lesions 0 were found, 12 missed, 0 invented'


def test_micrometres_only_where_they_are_known(files):
    scale = MaskScale(depth_um=4., across_um=12., rows=40, tolerance_um=8.)
    known = score_folder(*files, CLASSES, scale=scale)
    assert list(known.outlines) == ['NSD, within 8 µm', 'ASSD, pixels', 'ASSD, µm', 'HD95, µm']
    assert 'true area, mm²' in known.sizes and 'upper, distance, µm' in known.boundaries
    told = 'the micrometres of the manifest are of masks with 80 rows, and there are some with 40'
    with pytest.warns(UserWarning, match=told):
        other = score_folder(*files, CLASSES, scale=MaskScale(depth_um=4., across_um=12., rows=80))
    assert list(other.outlines) == ['NSD, within 2 pixels', 'ASSD, pixels']
    assert not any('_um' in c for c in other.volumes)
    assert not any('µm' in c or 'mm' in c for t in (other.sizes, other.boundaries, other.lesion_table) for c in t)


def test_small_lesions_are_not_counted(files):
    "The second cyst of each patient has 20 pixels: with a limit above, neither side of it counts"
    scores = score_folder(*files, CLASSES, scale=MaskScale(min_lesion=21))
    assert scores.lesion_words == 'of 6 lesions 6 were found, 0 missed, 1 invented'  # an SRF of 30 pixels
    assert score_tables(scores, 'test')['lesions'][0].startswith('Lesions of at least 21 pixels found, missed')
    assert score_folder(*files, CLASSES).means == scores.means, 'overlap is of all pixels'


def test_pixels_of_different_size(files):
    "Half of the patients have pixels of half the size, so a quarter of the area"
    table, wide = files[0], MaskScale(depth_um=4., across_um=12.)
    half = MaskScale(depth_um=2., across_um=6.)
    mixed = score_folder(*files, CLASSES, scale={k: half if i < 3 else wide for i, k in enumerate(table.id)})
    one, small = (score_folder(*files, CLASSES, scale=s) for s in (wide, half))
    def first(t, row, column): return float(t.loc[row, column].split(' ')[0])
    for name, row, column in (('sizes', 'Cyst', 'true area, mm²'), ('sizes', 'Cyst', 'error without sign, mm²'),
                              ('outlines', 'Cyst', 'ASSD, µm'), ('boundaries', 'RNFL', 'upper, distance, µm')):
        values = [first(getattr(s, name), row, column) for s in (one, small, mixed)]
        assert min(values[:2]) - .051 <= values[2] <= max(values[:2]) + .051, (name, column, values)
    assert first(mixed.sizes, 'Cyst', 'true area, mm²') == pytest.approx(100*(48 + 12)/2/1e6, abs=6e-4)
    cysts = mixed.lesions[mixed.lesions.Class == 'Cyst']
    assert sorted(set(cysts.true_mm2.astype(float).round(6))) == [.00024, .00096, .00384]  # of 20 and 80 pixels
