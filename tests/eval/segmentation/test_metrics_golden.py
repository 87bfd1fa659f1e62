"Published convention equals the recorded CSV files; datasets, classes and options are read from the folder"
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.data.manifest import read_manifest
from mirage_nb.eval.segmentation.scores import pool_volumes, score_slices

folder = Path(os.environ.get('MIRAGE_GOLDEN') or Path(__file__).parents[2]/'golden')/'segmentation_eval'
tables = sorted(folder.glob('expected/*/*.csv'))


class Class(NamedTuple):
    index: int
    value: int
    label: str
    group: str = 'layer'


def classes_in(dataset):
    info = json.loads((folder/dataset/'INFO.json').read_text())
    return [Class(int(i), c['value'], c['label']) for i, c in sorted(info.items(), key=lambda x: int(x[0]))]


def read(path, classes):
    table = np.full(256, 255, np.uint8)
    for c in classes: table[c.value] = c.index
    return table[np.asarray(Image.open(path))]


def case(table):
    "Slices of an expected file and the options that made it: results_DATASET.csv is of a model tuned on another set"
    dataset = table.parent.name.removesuffix('_diagonal')
    cross = table.stem == f'results_{dataset}'
    found = sorted(folder.glob(f'runs/*/*/preds_{dataset}' if cross else f'runs/{dataset}/*/preds'))
    assert len(found) == 1, f'{table}: predictions in {found}'
    source = found[0].parts[len(folder.parts) + 1]
    here, there = classes_in(dataset), classes_in(source)
    rows = []
    for mask in sorted((folder/dataset).glob('**/semseg/*.png')):
        volume, number = mask.stem.rsplit('_', 1)
        rows.append((volume, int(number), read(mask, here), read(found[0]/mask.name, there), mask.stem))
    options = dict(class_map=read_manifest(dataset).class_maps[source], source=there) if cross else {}
    return rows, here, options | dict(diagonal=table.parent.name != dataset)


def test_golden_holds_tables():
    assert tables, f'no expected/*/*.csv in {folder}; set MIRAGE_GOLDEN to a folder like tests/golden'


@pytest.mark.parametrize('table', tables, ids=lambda t: f'{t.parent.name}/{t.stem}')
def test_golden_table(table):
    expected = pd.read_csv(table, dtype={'ID': str})
    rows, classes, options = case(table)
    got = pool_volumes(score_slices(rows, classes, 'published', **options))
    got = got[got['Class'].isin(set(expected['Class']))]
    assert list(got['Class'].unique()) == list(expected['Class'].unique())  # in the order of INFO.json
    got, expected = (t.set_index(['ID', 'Class']).sort_index() for t in (got, expected))
    assert list(got.index) == list(expected.index)
    for metric in ('Dice', 'IoU', 'HD95'):
        np.testing.assert_allclose(got[metric], expected[metric], rtol=1e-4, equal_nan=True, err_msg=metric)


@pytest.mark.parametrize('part', sorted({t.parent for t in tables}), ids=lambda p: p.name)
def test_golden_classes_all_there(part):
    "Every class that is scored stands in one of the folder's tables, and no other"
    files = [t for t in tables if t.parent == part]
    rows, classes, options = case(files[0])
    listed = [c for f in files for c in pd.read_csv(f)['Class'].unique()]
    assert sorted(listed) == sorted(score_slices(rows, classes, 'published', **options)['Class'].unique())
