"A run is known by its settings and its data"
import subprocess
import sys
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest

from mirage_nb import records
from mirage_nb.data.manifest import read_manifest
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.records import _MACHINERY, finish_run, open_run, start_run
from mirage_nb.storage import read_json, write_json
from mirage_nb.told_names import HANDOFF

OPTIONS = {'dataset': 'Phantom_OCT', 'head': 'convnext', 'size': 64, 'epochs': 3, 'batch_size': 2, 'drop_path': 0.2,
           'baselines': False}


def settings(**changed): return override(seg_recipe(read_manifest('Phantom_OCT').recipe), **{**OPTIONS, **changed})


OTHER = {'dataset': 'Duke_DME', 'recipe': 'seg_200e_convnext', 'model': 'mirage_base', 'weights': 'w.pth',
         'head': 'dpt', 'size': 128, 'patch': 8, 'tune': 'embeddings', 'loss': 'CE', 'clip': 1., 'precision': 'bf16',
         'drop_path': 0.5, 'layer_decay': 0.5, 'random_start': True, 'anonymise': True,
         'baselines': True, 'checkpointing': True, 'splits': 'fold 1 of 3', 'waive': 'constant'}


def test_any_changed_option_is_another_run(home):
    cfg = settings()
    own = start_run('seg_tune', asdict(cfg), {'data': 'x'}).folder
    assert start_run('seg_tune', asdict(settings()), {'data': 'x'}).folder == own
    folders = [start_run('seg_tune', asdict(cfg), {'data': 'y'}).folder]
    for f in fields(cfg):
        value = OTHER[f.name] if f.name in OTHER else getattr(cfg, f.name) + 1
        changed = replace(cfg, **{f.name: value})
        folder = start_run('seg_tune', asdict(changed), {'data': 'x'}).folder
        same = f.name in (*_MACHINERY, 'seeds')  # each seed is a run of its own
        assert (folder == own) == same, f.name
        if not same: folders.append(folder)
    assert own not in folders
    assert len(set(folders)) == len(folders) == len(fields(cfg)) - 3  # four that change no number; another hash


def test_a_record_without_its_sources(tmp_path):
    "A byte of run.json that flipped in a name"
    write_json(tmp_path/'run.json', {'stage': 'seg_tune', 'settings': {}, '{ources': {}})
    write_json(tmp_path/'result.json', {})
    with pytest.raises(ValueError, match=f"{tmp_path}/run.json.*sources"): open_run(tmp_path)


@pytest.mark.parametrize('by_hand', [False, True], ids=['command', 'notebook'])
def test_the_same_command_started_twice(by_hand, home, tmp_path, monkeypatch):
    "As a requeued job: the second says who computes the run, and touches nothing; a finished run is open to all"
    first = ('import sys, time\nfrom mirage_nb.records import start_run\n'
             "start_run('seg_tune', {'dataset': 'Eyes'}, {})\nprint(flush=True)\ntime.sleep(60)")
    if not by_hand: monkeypatch.setenv(HANDOFF, str(tmp_path/'handoff.json'))
    more = r' \(a notebook: shut its kernel down\), and'*by_hand
    monkeypatch.setattr('mirage_nb.locks._PATIENCE', 0.)
    job = subprocess.Popen([sys.executable, '-c', first], stdout=subprocess.PIPE)
    try:
        job.stdout.readline()
        with pytest.raises(RuntimeError, match=rf'is in use by process {job.pid} on \S+{more}'):
            start_run('seg_tune', {'dataset': 'Eyes'}, {})
    finally:
        job.kill()
        job.wait()
        job.stdout.close()
    run = start_run('seg_tune', {'dataset': 'Eyes'}, {})
    assert not run.finished and start_run('seg_tune', {'dataset': 'Eyes'}, {}).folder == run.folder


def test_a_notebook_lets_others_go_on(home):
    "When the result is written, when a cell has failed, and when it begins another run"
    def holds(run): return run.folder in records._held
    run = start_run('seg_tune', {'dataset': 'Eyes'}, {})
    records._release_failed(SimpleNamespace(success=True))
    assert holds(run)
    records._release_failed(SimpleNamespace(success=False))
    assert not holds(run)
    run = start_run('seg_tune', {'dataset': 'Eyes'}, {})
    other = start_run('seg_tune', {'dataset': 'Scans'}, {})
    assert holds(other) and not holds(run)
    records.finish_run(other, {})
    assert not holds(other)


@pytest.mark.parametrize(('stage', 'options', 'named'), [
    ('seg_tune', {'dataset': 'Phantom_OCT'}, 'Phantom_OCT'), ('predict', {'tuned_on': 'Mine'}, 'Phantom_OCT'),
    ('features', {'images': 'Mine, Phantom_OCT'}, 'Phantom_OCT'), ('predict', {'images': 'Mine'}, ''),
    ('explain', {'tuned_on': 'Mine', 'run': 'seg_tune/Mine/run'}, ''), ('seg_tune', {'dataset': 'Mine'}, ''),
    # what a user gives stands in place of the phantoms that are the default
    ('cls_eval', {'tuned_on': 'Phantom_OCT', 'predictions': 'mine.csv'}, ''),
    ('measure', {'dataset': 'Phantom_OCT', 'predictions': 'Mine'}, ''),
    ('measure', {'dataset': 'Phantom_OCT', 'images': 'Mine'}, ''),
    ('seg_eval', {'dataset': 'Phantom_OCT', 'predictions': 'masks'}, 'Phantom_OCT')])
def test_result_says_that_images_are_synthetic(home, phantoms, monkeypatch, stage, options, named):
    "By the record of the maker; of a run that names no images, those of the run that it is about"
    monkeypatch.setenv('MIRAGE_DATA', str(phantoms))
    if 'run' in options: write_json(home/'runs'/'seg_tune'/'Mine'/'run'/'run.json', {})
    monkeypatch.setattr(records, 'open_run', lambda folder: SimpleNamespace(settings={'dataset': 'Mine'}))
    result = read_json(finish_run(start_run(stage, options, {}), {'verdicts': [{'level': 'note', 'text': 'last'}]}))
    said = [v['text'].partition(': ') for v in result['verdicts']]
    assert said[-1][0] == 'last' and result.get('synthetic', []) == [named]*bool(named)
    if named: assert said[0][0] == 'Synthetic images (phantoms), of no real patient' and said[0][2].startswith(named)
    else: assert len(said) == 1
