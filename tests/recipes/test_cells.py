"The parameters cells of the pipelines are those that the options make"
from dataclasses import fields

import nbformat
import papermill
import pytest

from mirage_nb.core import resource_dir
from mirage_nb.recipes.cells import options_of, parameters_cell, values_in, write_cells
from mirage_nb.recipes.settings import override

PIPELINES = sorted(resource_dir('nbs').glob('[3-9]?_*.ipynb'))


def read(path):
    "Options of a pipeline, and the source of its parameters cell"
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
    source, = (c.source for c in code if 'parameters' in c.metadata.get('tags', []))
    return options_of(path), source


@pytest.mark.parametrize('path', PIPELINES, ids=lambda p: p.stem)
def test_committed_cell_is_the_generated_one(path):
    kind, source = read(path)
    assert source == parameters_cell(kind, values_in(source)), 'run: python -m mirage_nb.recipes.cells'
    values = values_in(source)
    needs_weights = 'weights' in values and path.stem not in ('35_data_report', '60_explain')  # a recipe may
    job = values | ({'weights': 'random'} if needs_weights else {})
    assert override(kind(), **job) and sorted(values) == sorted(f.name for f in fields(kind))


@pytest.mark.parametrize('path', PIPELINES, ids=lambda p: p.stem)
def test_papermill_reads_every_option(path, monkeypatch):
    "Its rules: literals only, no equals sign in a comment; --help-notebook shows the meanings"
    kind, source = read(path)
    found = papermill.inspect_notebook(path)
    assert list(found) == [k.name for k in sorted(fields(kind), key=lambda f: source.index(f'\n{f.name} '))]
    assert all(found[k]['default'] == repr(v) and found[k]['help'] for k, v in values_in(source).items())
    lines = source.splitlines()
    assert not [k for k in lines if k.count('=') != (not k.startswith('#')) or len(k) > 120]


def test_an_edited_cell_is_written_again(tmp_path):
    before = nbformat.read(PIPELINES[0], 4)
    cell, = (c for c in before.cells if 'parameters' in c.metadata.get('tags', []))
    good = cell.source
    cell.source = '\n'.join(['other = 3', *good.splitlines()[1:-1]]).replace("'Phantom_OCT'", "'Mine'")
    nbformat.write(before, tmp_path/PIPELINES[0].name)
    assert write_cells(tmp_path) == [PIPELINES[0].name] and write_cells(tmp_path) == []
    assert read(tmp_path/PIPELINES[0].name)[1].split() == good.replace("'Phantom_OCT'", "'Mine'").split()
