"The pipelines end to end, as a user starts them: the runner, bare papermill, and what is there afterwards"
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import finish
from PIL import Image

from mirage_nb import runs as runs
from mirage_nb.commands.shortcut import describe_result
from mirage_nb.core import package_dir, runs_dir
from mirage_nb.data.manifest import classes_of, read_manifest
from mirage_nb.data.masks import read_mask
from mirage_nb.data.segmentation import load_seg_data
from mirage_nb.eval.segmentation.report import score_folder
from mirage_nb.models.segmentation import load_seg_model
from mirage_nb.recipes.pipelines import find_notebook
from mirage_nb.runs import RunFailed, run_notebook

pytestmark = pytest.mark.slow
TUNE = {'dataset': 'Phantom_OCT', 'epochs': 4, 'size': [64, 48], 'batch_size': 4, 'head': 'linear', 'baselines': True,
        'warmup_epochs': 0.5, 'seed': 3}


@pytest.fixture(scope='module')
def tuned(phantoms, tmp_path_factory):
    "Folder of a run that the runner made"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('MIRAGE_DATA', str(phantoms))
        m.setenv('MIRAGE_RUNS', str(tmp_path_factory.mktemp('runs')))
        m.setenv('OMP_NUM_THREADS', '1')
        before = dict(os.environ)
        folder = run_notebook(find_notebook('nbs/30_seg_tune.ipynb'), TUNE, quiet=True)
        assert dict(os.environ) == before
        return folder


@pytest.fixture
def run(tuned, home, monkeypatch):
    "The run, with MIRAGE_RUNS where it is"
    monkeypatch.setenv('MIRAGE_RUNS', str(tuned.parents[2]))
    return tuned


def contents(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def text(path): return path.read_text(encoding='utf-8')


def test_what_a_run_leaves(run):
    record, result = (json.loads(text(run/f'{k}.json')) for k in ('run', 'result'))
    assert run.parent == runs_dir()/'seg_tune'/'Phantom_OCT' and record['identity'].startswith(run.name[-8:])
    assert {k: record['settings'][k] for k in TUNE} == TUNE
    assert all(record[k] for k in ('sources', 'versions', 'machine', 'started')) and 'torch' in record['versions']
    history = pd.read_csv(run/'history.csv')
    assert history.epoch.tolist() == [1, 2, 3, 4] and history.notna().to_numpy().all()
    assert result['best_epoch'] == int(history.mIoU.argmax()) + 1
    assert not [p for p in run.rglob('*.tmp')] and not list((runs_dir()/'.running').iterdir())
    for name in ('report.ipynb', 'report.html'): assert (run/name).stat().st_size > 50_000
    html = text(run/'report.html')
    words = ('Phantom_OCT', 'Settings', 'mirage_tiny', 'frozen random encoder', 'mean position', 'Provenance',
             'Reliability', record['identity'][:16], 'SRF', 'data:image/png')
    assert [w for w in words if w not in html] == []
    cells = [c for c in json.loads(text(run/'report.ipynb'))['cells'] if c['cell_type'] == 'code']
    assert all(c['execution_count'] for c in cells), 'not every cell was run'
    assert any('injected-parameters' in c['metadata']['tags'] for c in cells)
    assert not [o for c in cells for o in c['outputs'] if o.get('name') == 'stderr' and 'Warning' in str(o['text'])]


def test_results_agree_with_the_tables(run):
    means = json.loads(text(run/'result.json'))['means']
    assert set(means) == {'fine-tuned', 'mean position', 'frozen random encoder'}
    assert means['fine-tuned'] != means['frozen random encoder'], 'nothing was learnt: the test shows little'
    rows = pd.read_csv(run/'test_volumes.csv')
    rows = rows[(rows.convention == 'strict') & (rows.group != 'background')]
    there = rows.groupby('Class').present.transform('sum') > 0
    for metric in ('Dice', 'IoU', 'HD95'):
        by_class = rows[there].groupby(['group', 'Class'])[metric].mean()
        assert means['fine-tuned'][f'{metric}, mean'] == pytest.approx(by_class.mean(), abs=1e-4)
        for group, name in (('layer', 'layers'), ('lesion', 'lesions')):
            assert means['fine-tuned'][f'{metric}, mean of {name}'] == pytest.approx(by_class[group].mean(), abs=1e-4)
    other = pd.read_csv(run/'random_encoder'/'test_volumes.csv')
    assert len(other) == len(pd.read_csv(run/'test_volumes.csv'))


def test_predictions_are_masks_of_the_dataset(run, phantoms):
    table = load_seg_data(read_manifest('Phantom_OCT')).tables['test']
    rows = pd.read_csv(run/'predictions.csv')
    assert rows.id.tolist() == table.id.tolist() and rows.confidence.between(0, 1).all()
    classes = classes_of(read_manifest('Phantom_OCT'), phantoms/'Phantom_OCT')
    for row in rows.to_dict('records'):
        mask = read_mask(run/'predictions'/row['file'], classes)
        assert mask.shape == (row['rows'], row['cols']) == (96, 80)
        assert [row[c.label] for c in classes] == pytest.approx([(mask == c.index).mean() for c in classes], abs=1e-5)


def test_second_run_is_recognised(run, monkeypatch):
    before = contents(run)
    monkeypatch.setattr(runs, '_execute', lambda *a: 'a kernel was started')
    assert run_notebook('seg_tune', TUNE, quiet=True) == run
    assert contents(run) == before and sorted(p.name for p in run.parent.iterdir()) == [run.name]


def shown_at_once(words, env):
    "What a command shows, in a process that may import neither PyTorch nor what starts a kernel"
    code = ('import sys; from mirage_nb.runs import main; done = main(sys.argv[1:]); '
            'slow = {"torch", "papermill", "nbformat"} & {*sys.modules}; sys.exit(f"{slow}" if slow else done)')
    return subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, env=env)


def test_finished_run_is_shown_without_a_kernel(tuned, phantoms, tmp_path, home, monkeypatch):
    "As long as nothing that it was made from has changed; anything that was touched goes the long way"
    data, weights = tmp_path/'copy', tmp_path/'w.safetensors'
    shutil.copytree(phantoms, data)
    shutil.copy(package_dir/'weights'/'mirage_tiny.safetensors', weights)
    env = {'MIRAGE_DATA': str(data), 'MIRAGE_RUNS': str(tuned.parents[2])}
    for k, v in env.items(): monkeypatch.setenv(k, v)
    values = {**TUNE, 'epochs': 1, 'baselines': False, 'weights': str(weights), 'size': [64, 48]}
    with monkeypatch.context() as m: folder = finish('seg_tune', values, m, tmp_path)  # the runner's: see above
    monkeypatch.setattr(runs, '_execute', lambda *a: 'a kernel was started')

    def again(**more): return run_notebook('seg_tune', {**values, **more}, quiet=True)

    assert again() == folder
    words = [f'{k}={v}'.replace(' ', '') for k, v in values.items()]
    done = shown_at_once(['seg_tune', *words], {**os.environ, **env})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == json.loads(text(folder/'result.json'))['summary'][0]
    assert done.stdout.splitlines()[-1] == f'report: {folder/"report.html"}'

    def key(): return runs.run_key('seg_tune', {**runs.parameter_values(runs.find_notebook('seg_tune')), **values})

    image = sorted((data/'Phantom_OCT'/'test'/'bscan').iterdir())[0]
    times = os.stat(weights)
    for change in (lambda: os.utime(image), lambda: image.with_name('new_1.png').write_bytes(image.read_bytes()),
                   lambda: weights.write_bytes(weights.read_bytes()[:-1] + b'?'),
                   lambda: os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns)),  # other content, the old time
                   lambda: os.utime(next((data/'Phantom_OCT').glob('*.json')))):
        change()
        with pytest.raises(RunFailed, match='a kernel was started'): again()
        runs.remember_run(key(), folder)  # as the long way does where the content is the same
        assert again() == folder
    for more in ({'seed': 9}, {'weights': 'mirage_tiny'}, {'epochs': 2}):
        with pytest.raises(RunFailed, match='a kernel was started'): again(**more)


def papermill(out, cwd, **parameters):
    words = [w for k, v in parameters.items() for w in ('-p', k, str(v))]
    return subprocess.run([sys.executable, '-m', 'papermill', str(find_notebook('seg_tune')), str(out), *words],
                          cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_papermill_with_a_misspelt_parameter(home, tmp_path):
    done = papermill('out.ipynb', tmp_path, datset='Duke_DME')
    assert done.returncode != 0 and "no parameter 'datset'. Did you mean 'dataset'?" in done.stderr
    assert not (home/'runs').exists() or not list((home/'runs').rglob('run.json'))


def test_failed_notebook_leaves_a_report(home, phantoms, capsys, monkeypatch):
    shutil.copytree(phantoms, home/'own')
    image = sorted((home/'own'/'Phantom_OCT'/'test'/'bscan').iterdir())[0]
    image.write_bytes(b'no image')
    monkeypatch.setenv('MIRAGE_DATA', str(home/'own'))
    assert runs.main(['seg_tune', 'epochs=1', 'size=64', '--quiet']) == 1
    err = capsys.readouterr().err
    report, = (home/'runs').rglob('failed_report.html')
    assert image.name in err and 'cannot be read' in err and str(report) in err
    assert image.name in text(report) and not list((home/'runs').rglob('result.json'))
    assert not (report.parent/'report.html').exists()


def test_dead_kernel_is_a_failure(home, tmp_path):
    "A kernel that dies, or a notebook that ends without a result, is no success"
    notebook = json.loads(text(find_notebook('seg_tune')))
    for name, line in (('dead', 'import os; os._exit(0)'), ('empty', 'pass')):
        cells = [c for c in notebook['cells'] if 'parameters' in c['metadata'].get('tags', [])]
        cells = cells + [cells[0] | {'source': line, 'metadata': {}, 'id': name}]
        (tmp_path/f'{name}.ipynb').write_text(json.dumps(notebook | {'cells': cells}))
        with pytest.raises(RunFailed, match='died|without a result'): run_notebook(tmp_path/f'{name}.ipynb', quiet=True)


# ------------------------------------------------------------------ evaluation and prediction of a tuned model

def test_evaluation_again_gives_the_same_numbers(run, execute):
    folder = execute('seg_eval', run=str(run))['here'].folder
    means = [json.loads(text(f/'result.json'))['means'] for f in (run, folder)]
    assert means[1] == means[0]['fine-tuned']
    for name in ('test_volumes.csv', 'test_slices.csv', 'test_summary.csv'):
        pd.testing.assert_frame_equal(pd.read_csv(folder/name), pd.read_csv(run/name))
    assert not (folder/'predictions').exists(), 'predictions that were there were made again'


@pytest.mark.slow
def test_evaluation_of_a_split_and_of_foreign_predictions(run, execute, tmp_path):
    here = execute('seg_eval', tuned_on='Phantom_OCT', split='val')['here'].folder
    assert len(list((here/'predictions').glob('*.png'))) == 8 and (here/'val_volumes.csv').exists()
    shutil.copytree(run/'predictions', tmp_path/'png', ignore=shutil.ignore_patterns('*.journal'))
    space = execute('seg_eval', predictions=str(tmp_path/'png'), dataset='Phantom_OCT')
    assert space['scores'].means == json.loads(text(run/'result.json'))['means']['fine-tuned']
    lost = sorted((tmp_path/'png').iterdir())[0]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f'1 of 8 images have no prediction in .*: {lost.stem}'):
        execute('seg_eval', predictions=str(tmp_path/'png'), dataset='Phantom_OCT')


MERGED = '''
title = "Other"
task = "segmentation"
modality = "bscan"
layout = "flat"
source = "a test"
licence = "none"
citation = "none"
get = "made by a test"

[[classes]]
value = 0
label = "Background"
group = "background"

[[classes]]
value = 100
label = "Retina"
group = "layer"

[[classes]]
value = 200
label = "Fluid"
group = "lesion"

[class_maps.Phantom_OCT]
'''


@pytest.fixture
def other(run, phantoms, home, monkeypatch):
    "A dataset with other classes: layers in one, lesions in one, of images of another size"
    data, own = home/'data', classes_of(read_manifest('Phantom_OCT'), phantoms/'Phantom_OCT')
    shutil.copytree(phantoms/'Phantom_OCT'/'test', data/'Other')
    to = {c.value: {'background': 0, 'layer': 100, 'lesion': 200}[c.group] for c in own}
    (data/'Other'/'manifest.toml').write_text(MERGED + '\n'.join(f'{k} = {v}' for k, v in to.items()) + '\n')
    lut = np.array([to.get(v, 255) for v in range(256)], np.uint8)
    for p in (data/'Other'/'semseg').iterdir(): Image.fromarray(lut[np.array(Image.open(p))]).save(p)
    monkeypatch.setenv('MIRAGE_DATA', str(data))
    return lut


@pytest.mark.slow
def test_another_dataset_through_its_class_map(run, other, execute, home):
    space = execute('seg_eval', run=str(run), dataset='Other')
    here, scores = space['here'].folder, space['scores']
    assert here.parent.name == 'Other' and set(scores.slices.Class) - {'Background'} == {'Retina', 'Fluid'}
    data = load_seg_data(read_manifest('Other'))
    (home/'merged').mkdir()
    for p in (here/'predictions').glob('*.png'):
        assert p.read_bytes() == (run/'predictions'/p.name).read_bytes(), 'the images are those of the run'
        Image.fromarray(other[np.array(Image.open(p))]).save(home/'merged'/p.name)
    by_hand = score_folder(data.tables['test'], home/'merged', data.classes)
    assert scores.means == by_hand.means


def test_another_dataset_without_a_class_map(run, other, execute, home):
    path = home/'data'/'Other'/'manifest.toml'
    path.write_text(text(path).split('[class_maps')[0])
    with pytest.raises(ValueError, match=r'Other and Phantom_OCT have different classes, and \S+ has no .*Phantom_OCT'):
        execute('seg_eval', run=str(run), dataset='Other')


def test_evaluation_without_a_run(home, execute):
    with pytest.raises(FileNotFoundError, match='no finished run on Duke_DME in .*mirage-nb seg_tune dataset=Duke_DME'):
        execute('seg_eval', tuned_on='Duke_DME')
    with pytest.raises(FileNotFoundError, match='is not the folder of a run: no run.json'):
        execute('seg_eval', run=str(home))


def test_prediction_of_an_unlabelled_folder(run, execute, home, phantoms):
    folder, rng = home/'images', np.random.default_rng(0)
    folder.mkdir()
    source = sorted((phantoms/'Phantom_OCT'/'test'/'bscan').iterdir())
    shutil.copy(source[0], folder/'scan of Monday.png')  # no slice in its name, and spaces
    Image.fromarray(rng.integers(0, 255, (50, 70), np.uint8)).save(folder/'b_2.tif')
    Image.fromarray((np.array(Image.open(source[1]))*256.).astype(np.uint16)).save(folder/'c_1.png')
    space = execute('predict', images=str(folder), run=str(run), batch_size=2)
    here, rows = space['here'].folder, pd.read_csv(space['here'].folder/'predictions.csv').set_index('id')
    assert set(rows.index) == {'scan of Monday', 'b_2', 'c_1'} and not list(folder.glob('*.json'))
    assert {k: (r.rows, r.cols) for k, r in rows.iterrows()} == {
        'scan of Monday': (96, 80), 'b_2': (50, 70), 'c_1': (96, 80)}
    known = {c['value'] for c in load_seg_model(run/'best.safetensors')[1]['classes']}
    for k in rows.index:
        mask = np.array(Image.open(here/'predictions'/f'{k}.png'))
        assert mask.shape == (rows.rows[k], rows.cols[k]) and set(np.unique(mask).tolist()) <= known
    twin = run/'predictions'/source[0].name
    assert np.array_equal(np.array(Image.open(here/'predictions'/'scan of Monday.png')), np.array(Image.open(twin)))


@pytest.mark.parametrize(('lost', 'code'), [(0, 0), (2, 3)])
def test_the_exit_code_says_that_files_were_lost(lost, code, tmp_path, monkeypatch, capsys):
    "Every file is predicted that can be read; a script sees by the code that some are missing"
    (tmp_path/'result.json').write_text(json.dumps({'summary': ['28 images'], 'unreadable': lost}))
    monkeypatch.setattr(runs, 'run_notebook', lambda *a: tmp_path)
    assert runs.main(['predict', 'images=/data']) == code
    said = capsys.readouterr().out
    line = f'2 files could not be read, listed in {tmp_path}/unreadable.csv; the others are predicted'
    assert (line in said) == bool(lost)


def test_a_measurement_says_which_volumes_were_lost(tmp_path):
    "It measures volumes and predicts nothing"
    (folder := tmp_path/'measure'/'all'/'one').mkdir(parents=True)
    (folder/'result.json').write_text(json.dumps({'summary': [], 'unreadable': 1}))
    line = f'1 volume could not be measured, listed in {folder}/unreadable.csv; the others are measured'
    assert line in describe_result(folder)


def test_prediction_errors(run, execute, home):
    with pytest.raises(FileNotFoundError, match='images: no file or folder .*nowhere'):
        execute('predict', images=str(home/'nowhere'), run=str(run))
    (home/'empty').mkdir()
    with pytest.raises(ValueError, match='no image in .*empty'):
        execute('predict', images=str(home/'empty'), run=str(run))
    (home/'empty'/'a.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'none of the 1 images can be read; .*a\.png .*cannot be read as an image'):
        execute('predict', images=str(home/'empty'), run=str(run))
    with pytest.raises(ValueError, match='give run or runs, not both'):
        execute('predict', run=str(run), runs=str(run))
    with pytest.raises(FileNotFoundError, match='is not the folder of a run'):
        execute('predict', runs=[str(run), str(home/'empty')])


def test_unfinished_run_is_not_evaluated(run, home, execute):
    part = home/'part'
    shutil.copytree(run, part, ignore=shutil.ignore_patterns('result.json'))
    with pytest.raises(ValueError, match='is not finished; go on with it .*mirage-nb seg_tune .*dataset='):
        execute('seg_eval', run=str(part))
    assert Path(part/'run.json').exists()
