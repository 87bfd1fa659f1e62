"What others write is data: no commands, no ways out of a folder, no patterns without end"
import os
import stat
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from mirage_nb.data.manifest import patient_of, read_manifest
from mirage_nb.data.scale import MaskScale
from mirage_nb.data.tables import table_rows
from mirage_nb.launch.slurm import slurm_options
from mirage_nb.recipes.pretraining import MAERecipe, pretrain_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.records import dataset_name, start_run
from mirage_nb.spreadsheets import load_table, open_table, save_table

FACTS = '''title = "Two\\nlines"
task = "classification"
modality = "cxr"
layout = "table"
source = "s"
licence = "l"
citation = "c"
get = "g"
'''


def manifest(folder, more, rows='id,f\na,x\nb,y\n'):
    folder.mkdir(exist_ok=True)
    (folder/'t.csv').write_text(rows)
    (folder/'manifest.toml').write_text(FACTS + more)
    return read_manifest(folder)


def labels(image='{id}.png', table='t.csv'): return f"[labels]\ntable = '{table}'\nimage = '{image}'\nlabel = 'f'\n"


@pytest.mark.parametrize('text', ['gpu\nrm -r x', 'gpu,comment=a\nrm x', 'gpu,a b=c', 'gpu,$(x)=1', 'g\0', 'g,a=b\rc'])
def test_no_option_of_slurm_is_a_line_of_shell(text):
    with pytest.raises(ValueError, match='slurm'): slurm_options(text)


def test_no_option_holds_a_control_character():
    recipe = pretrain_recipe('pre_mae_small', MAERecipe)
    for name in ('dataset', 'slurm', 'weights'):
        for text in ('a\0b', 'a\nb', 'a\x1b[2J'):
            with pytest.raises(ValueError, match=f'{name} holds the control'): override(recipe, **{name: text})


@pytest.mark.parametrize('name', ['..', '../..', 'a/..', './..'])
def test_a_run_stays_below_its_folder(name, tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    for label in ('', '../../..', 'a/b', 'a\\b'):
        folder = start_run('seg_tune', {'dataset': name}, {}, label).folder
        assert folder.resolve().parent.parent == (tmp_path/'runs'/'seg_tune').resolve(), folder
        assert folder.is_dir()
    with pytest.raises(ValueError, match='control character'): dataset_name('a\0')


@pytest.mark.parametrize('more, place', [
    ("[splits]\ntrain = '../a'\n" + labels(), 'splits.train'), (labels(table='../t.csv'), 'labels.table'),
    (labels('/etc/{id}.png'), 'labels.image'), (labels('{id}/../../b.png'), 'labels.image'),
    (labels('C:/{id}.png'), 'labels.image'), ("[scale]\nsizes = '../s.csv'\n" + labels(), 'sizes')])
def test_a_manifest_names_nothing_outside_of_its_folder(more, place, tmp_path):
    with pytest.raises(ValueError, match=rf"manifest.toml: .*{place} '.*' leads out of the dataset's folder"):
        manifest(tmp_path/'D', more)


def test_no_row_names_an_image_outside_of_the_folder(tmp_path):
    Image.new('L', (8, 8)).save(tmp_path/'out.png')
    found = manifest(tmp_path/'D', labels(), 'id,f\n../out,x\n')
    with pytest.raises(ValueError, match=r"t.csv, row 2, names '../out.png', which leads out of"): table_rows(found)
    (tmp_path/'D'/'there').symlink_to(tmp_path)  # by who owns the folder
    assert len(table_rows(manifest(tmp_path/'D', labels(), 'id,f\nthere/out,x\n')).image) == 1


@pytest.mark.parametrize('form', ['{id!r:>999999999}', '{id:>9}', '{id!r}', '{id'])
def test_braces_hold_columns_alone(form, tmp_path):
    with pytest.raises(ValueError, match='labels.image: .* is not a form for names'):
        manifest(tmp_path/'D', labels(form))


def test_braces_read_no_attribute(tmp_path):
    with pytest.raises(ValueError, match=r"names a column 'id.__class__' that is not there; there are id, f"):
        table_rows(manifest(tmp_path/'D', labels('{id.__class__}.png')))
    with pytest.raises(ValueError, match=r"names a column 'idd' .*; there are id, f.*\. Did you mean 'id'\?"):
        table_rows(manifest(tmp_path/'E', labels('{idd}.png')))


def test_a_pattern_without_end_is_given_up(tmp_path):
    (tmp_path/'manifest.toml').write_text(FACTS + r"patient = '^(.*?_?)*(\d+)$'" + '\n' + labels())
    with pytest.raises(ValueError, match=r"manifest.toml: 'patient' .* did not come to an end in 1 s on 'a_a_"):
        patient_of(read_manifest(tmp_path), 'a_'*40)


@pytest.mark.parametrize('text', ['x = ' + '['*10_000, 'x = "' + 'a'*10 + '\0"'])
def test_a_manifest_that_is_no_toml_is_named(text, tmp_path):
    (tmp_path/'manifest.toml').write_text(text)
    with pytest.raises(ValueError, match='manifest.toml is not TOML'): read_manifest(tmp_path)


def test_no_cell_is_a_formula(tmp_path):
    names = ['=HYPERLINK("http://x")', '+1+1', '-a', '@x', "'=y", '-1', '1e-3', 'a']
    table = pd.DataFrame({'id': names, '=label': names, 'score': [-1.5]*8})
    save_table(table, tmp_path/'t.csv')
    text = (tmp_path/'t.csv').read_text()
    assert "'=label" in text and "\n'+1+1,'+1+1,-1.5" in text and "\n-1,-1,-1.5" in text
    pd.testing.assert_frame_equal(load_table(tmp_path/'t.csv', ['id', '=label']), table)
    assert open_table(tmp_path/'t.csv')['id'].tolist() == names


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no umask')
@pytest.mark.parametrize('umask, mode', [(0o077, 0o600), (0o007, 0o660), (0o022, 0o644)])
def test_files_have_the_mode_that_the_umask_says(umask, mode, tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path))
    before = os.umask(umask)
    try: run = start_run('seg_tune', {'dataset': 'A'}, {})
    finally: os.umask(before)
    assert stat.S_IMODE((run.folder/'run.json').stat().st_mode) == mode
    assert not stat.S_IMODE(Path(run.folder).stat().st_mode) & umask


def test_a_table_of_sizes_is_below_the_folder():
    with pytest.raises(ValueError, match="sizes '/s.csv' leads out"): MaskScale(sizes='/s.csv')
