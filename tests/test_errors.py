"Bad input, as a user meets it: through the notebook and the command line"
import ast
import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mirage_nb import runs as runs
from mirage_nb.core import runs_dir
from mirage_nb.models.checkpoints import save_weights
from mirage_nb.models.zoo import ENCODERS, _mirage_record, build_encoder
from mirage_nb.recipes.classification import ClsRecipe
from mirage_nb.recipes.pipelines import parameter_values
from mirage_nb.recipes.settings import option_comments
from mirage_nb.storage import write_json
from mirage_nb.tasks import settings as tasks_settings
from mirage_nb.train import loop as train_loop

TINY = {'size': 64, 'epochs': 1, 'head': 'linear', 'baselines': False, 'precision': 'fp32'}


@pytest.fixture
def mine(home, phantoms, monkeypatch):
    "A user's own dataset, without a manifest"
    folder = home/'data'/'Mine'
    shutil.copytree(phantoms/'Phantom_OCT', folder)
    monkeypatch.setenv('MIRAGE_DATA', str(home/'data'))
    return folder


@pytest.fixture
def fails(execute):
    def check(kind, *pieces, stage='seg_tune', **parameters):
        start = {'weights': 'random'} if 'dataset' in parameters else {}  # which some recipes ask for
        with pytest.raises(kind) as e: execute(stage, **start | parameters)
        for piece in pieces: assert str(piece) in str(e.value), f'{piece!r} is not in: {e.value}'
    return check


# ------------------------------------------------------------------ data

def first(folder, kind): return sorted((folder/kind).glob('*.png'))[0]


def test_wrong_dataset_name(fails):
    fails((KeyError, ValueError, FileNotFoundError), "no dataset 'Phantom_OCD'. Did you mean 'Phantom_OCT'?",
          'mirage-nb list', dataset='Phantom_OCD')


def test_dataset_that_is_not_there(fails):
    fails(FileNotFoundError, 'Duke_DME', 'MIRAGE_DATA', dataset='Duke_DME')


def test_missing_mask(mine, fails):
    lost = first(mine/'train', 'semseg')
    lost.unlink()
    fails(ValueError, lost.name, mine/'train'/'semseg', 'has no mask', dataset='Mine')


@pytest.mark.slow
def test_unknown_grey_value(mine, fails):
    path = first(mine/'val', 'semseg')
    mask = np.array(Image.open(path))
    mask[3, 5] = 77
    Image.fromarray(mask).save(path)
    fails(ValueError, path, 'grey value 77 (1 pixels, first at row 3, column 5)', 'its classes are 0 ', dataset='Mine')


@pytest.mark.slow
@pytest.mark.parametrize('split', ['train', 'test'])
def test_unreadable_image(mine, fails, split):
    path = first(mine/split, 'bscan')
    path.write_bytes(path.read_bytes()[:200])
    fails(ValueError, path, 'is truncated or damaged', 'Copy it again', dataset='Mine')


def test_empty_split(mine, fails):
    for p in [*(mine/'val'/'bscan').iterdir(), *(mine/'val'/'semseg').iterdir()]: p.unlink()
    fails(ValueError, "split 'val' of Mine is empty", mine/'val'/'bscan', dataset='Mine')


def test_no_split_to_tune_on(mine, fails):
    for split in ('train', 'val'): shutil.rmtree(mine/split)
    fails((ValueError, FileNotFoundError), 'train', 'Mine', dataset='Mine')


# ------------------------------------------------------------------ model

def test_patch_that_does_not_divide(fails):
    fails(ValueError, 'patch 24 does not divide an image of 64 x 64 pixels', patch=24, **TINY)


@pytest.fixture
def checkpoint(home, monkeypatch):
    "Weights of a smaller encoder, in a published form"
    monkeypatch.setitem(ENCODERS, 'other', _mirage_record('other', 64, 2, 2, 64, 16))
    torch.save({'model': build_encoder('other').state_dict()}, home/'other.pth')
    return home/'other.pth'


def test_checkpoint_of_another_model(checkpoint, fails):
    fails(ValueError, checkpoint, 'holds an encoder of width 64, depth 2 and patch 16', 'has width 192 and depth 6',
          'Set model=other', weights=str(checkpoint), **TINY)


def test_truncated_checkpoint(checkpoint, fails):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-2000])
    fails(ValueError, checkpoint, 'truncated or not a checkpoint', weights=str(checkpoint), **TINY)


def test_truncated_safetensors(home, fails):
    path = home/'w.safetensors'
    for said in ('is damaged: its checksum is', 'truncated or not a checkpoint'):  # of the kit, of anybody
        if 'checksum' in said: save_weights(torch.nn.Linear(9, 9), path, {})
        else: save_file(torch.nn.Linear(9, 9).state_dict(), path)
        path.write_bytes(path.read_bytes()[:-20])
        fails(ValueError, path, said, weights=str(path), **TINY)


class Evil:
    def __init__(self, path): self.path = path

    def __reduce__(self): return exec, (f'open({str(self.path)!r}, "w").close()',)


@pytest.mark.parametrize('form', ['torch', 'pickle'])
def test_malicious_checkpoint(home, fails, form):
    path, harm = home/'evil.pth', home/'harm'
    if form == 'torch': torch.save({'model': {'a': torch.zeros(2)}, 'more': Evil(harm)}, path)
    else: path.write_bytes(pickle.dumps({'model': Evil(harm)}, protocol=2))
    fails(ValueError, path, 'could run code' if form == 'torch' else 'evil.pth', weights=str(path), **TINY)
    assert not harm.exists()
    pickle.loads(pickle.dumps(Evil(harm)))
    assert harm.exists(), 'the file would not have done harm, so nothing was tested'


def test_missing_checkpoint(fails):
    fails(FileNotFoundError, 'no checkpoint', 'nowhere.pth', 'or random', weights='nowhere.pth', **TINY)
    fails(FileNotFoundError, 'Did you mean weights=MIRAGE-Base', weights='at/mirage_base.pth', **TINY)


def test_checkpoint_in_the_home_folder(checkpoint, fails, monkeypatch):
    monkeypatch.setenv('HOME', str(checkpoint.parent))
    fails(ValueError, checkpoint, 'holds an encoder of width 64', weights=f'~/{checkpoint.name}', **TINY)


def test_damaged_state(home, execute, fails):
    def stop(*a): raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(train_loop._Trainer, 'train_step', stop)
        execute('seg_tune', **TINY)
    state = next((home/'runs').rglob('state.pt'))
    state.write_bytes(state.read_bytes()[:-1000])
    fails(ValueError, state, 'cannot be read', 'delete it', **TINY)


# ------------------------------------------------------------------ parameters

@pytest.mark.parametrize(('parameters', 'pieces'), [
    ({'datset': 'A'}, ("no parameter 'datset'. Did you mean 'dataset'? Known: ",)),
    ({'epochs': 'true'}, ("epochs takes a whole number, got 'true' (text)",)),
    ({'epochs': True}, ('epochs takes a whole number, got True',)),
    ({'lr': '1e-3'}, ("lr takes a number, got '1e-3' (text)",)),
    ({'size': [64, 'x']}, ('size takes a whole number or a list of whole numbers',)),
    ({'baselines': 'yes'}, ("baselines takes True or False, got 'yes' (text)",)),
    ({'recipe': 'seg_200e_convnet'}, ("no recipe 'seg_200e_convnet'. Did you mean 'seg_200e_convnext'?",)),
    ({'model': 'mirage_bas'}, ("no model 'mirage_bas'. Did you mean 'mirage_base'?",)),
    ({'head': 'convnet'}, ("no head 'convnet'. Did you mean 'convnext'?",)),
    ({'loss': 'CEDise'}, ("'CEDise'", 'CEGDice')),
    ({'tune': 'prob'}, ("no tune 'prob'. Did you mean 'probe'?",)),
    ({'tune': 'last', 'last_blocks': 9}, ('last_blocks is 1 to 6 for this encoder, not 9',)),
    ({'precision': 'fp8'}, ("'fp8'", 'bf16')),
    ({'size': [64, 64, 3]}, ('[rows, columns]',)),
    ({'size': 0}, ('size takes one number or [rows, columns], above 0',)),
    ({'epochs': 0}, ('epochs is 1 or more, not 0',)),
    ({'lr': 0}, ('lr is above 0',)),
    ({'warmup_epochs': 9}, ('warmup_epochs is between 0 and epochs (1), not 9',)),
    ({'batch_size': 3, 'accumulate': 2}, ('2 micro-batches do not divide the batch of 3',)),
    ({'cached_views': 2}, ("cached_views needs tune 'probe', not 'full'",)),
    ({'dataset': 3}, ('dataset', 'got 3 (int)'))], ids=lambda v: ','.join(v) if isinstance(v, dict) else '')
def test_parameter(fails, parameters, pieces):
    fails((TypeError, KeyError, ValueError), *pieces, **{**TINY, **parameters})


@pytest.mark.parametrize(('stage', 'wrong'), [
    ('seg_tune', {'checkpointing': 'maybe'}), ('seg_tune', {'head': 'convnet'}), ('seg_tune', {'recipe': 'seg_smal'}),
    ('cls_tune', {'tune': 'prob'}), ('few_shot', {'protocol': 'pools'}), ('pretrain_mae', {'mask': 2}),
    ('measure', {'anonymise': 'perhaps'}), ('explain', {'shown': 99})])
def test_parameters_are_checked_before_phantoms_are_drawn(stage, wrong, tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    values = parameter_values(runs.find_notebook(stage))
    with pytest.raises((TypeError, KeyError, ValueError)): tasks_settings.check_parameters(stage, {**values, **wrong})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ advice

def advised_options(tree):
    "Names before an equals sign in texts of verdicts and errors; what is written as a call of Python is left out"
    def text(s): return ''.join(v.value if isinstance(v, ast.Constant) else '{}' for v in s.values)
    for n in ast.walk(tree):
        verdict = getattr(getattr(n, 'func', None), 'id', '') == 'Verdict'
        if not verdict and not isinstance(n, (ast.Raise, ast.Yield)): continue
        for s in ast.walk(n):
            said = text(s) if isinstance(s, ast.JoinedStr) else s.value if isinstance(s, ast.Constant) else ''
            said = re.sub(r'\w+\([^)]*\)', '', said) if isinstance(said, str) else ''
            yield from re.findall(r'(?<![\w.{])([a-z]\w*)=(?!=)', said)


def test_advice_names_options_that_exist():
    "What verdicts and errors of pipelines say to type is an option of some pipeline"
    home = Path(runs.__file__).parent
    known = {k for p in (home.parent/'nbs').glob('[3-7]?_*.ipynb') for k in parameter_values(p)}
    known |= {'name', 'model_a', 'bscanlayermap'}  # examples of NAME=VALUE
    files = [p for k in ('tasks', 'recipes', 'sweeps', 'eval', 'explain') for p in sorted((home/k).glob('*.py'))]
    wrong = {}
    for p in files:
        advised = set(advised_options(ast.parse(p.read_text(encoding='utf-8')))) - known
        if p.parent.name == 'explain' and not p.stem.endswith('verdicts'): continue  # arguments of its functions
        if advised: wrong[p.name] = advised
    assert not wrong


# ------------------------------------------------------------------ names that are nearly right

@pytest.mark.parametrize('words', [['predict', 'tuned_on=MyClinik'], ['explain', 'tuned_on=MyClinik'],
                                   ['seg_eval', 'tuned_on=MyClinik'], ['cls_eval', 'tuned_on=MyClinik'],
                                   ['seeds', 'dataset=MyClinik'], ['predict', 'tuned_on=/data/MyClinik']])
def test_dataset_whose_runs_are_meant(home, capsys, words):
    assert runs.main(words) == 1
    assert 'Did you mean' not in capsys.readouterr().err, 'no dataset has finished runs'
    write_json(runs_dir()/'seg_tune'/'MyClinic'/'a'/'result.json', {})
    assert runs.main(words) == 1
    assert re.search(r"_tune\. Did you mean 'MyClinic'\? Make one: mirage-nb \w+_tune ", capsys.readouterr().err)


def test_path_that_is_meant(home, capsys, monkeypatch):
    (home/'new_patients').mkdir()
    (home/'.new_patient').mkdir()
    for words in (['predict'], ['explain'], ['measure'], ['reconstruct'], ['features']):
        assert runs.main([*words, f'images={home}/new_patient']) == 1
        assert f"{home}/new_patient. Did you mean 'new_patients'?" in capsys.readouterr().err, words
    assert runs.main(['predict', f'images={home}/q']) == 1 and 'Did you' not in capsys.readouterr().err
    monkeypatch.setattr(tasks_settings, 'hides_names', lambda: True)
    assert runs.main(['predict', f'images={home}/new_patient']) == 1 and 'new_patients' not in capsys.readouterr().err


# ------------------------------------------------------------------ the command line

@pytest.mark.parametrize(('words', 'said'), [
    (['seg_tune', 'datset=A'], "30_seg_tune.ipynb: no parameter 'datset'. Did you mean 'dataset'? Known: dataset, "),
    (['seg_tun'], "no notebook 'seg_tun'. Did you mean '30_seg_tune.ipynb'?"),
    (['seg_tune', 'dataset'], "'dataset' is not of the form name=value, as lr=1e-3"),
    (['seg_tune', 'dataset', 'A'], "'dataset' is not of the form name=value")])
def test_command_line(home, capsys, monkeypatch, words, said):
    monkeypatch.setattr(runs, 'run_notebook', lambda *a: pytest.fail('a kernel was started'))
    assert runs.main(words) == 1
    out, err = capsys.readouterr()
    assert said in err and not out and len(err.splitlines()) == 1


def test_help_names_every_parameter(capsys):
    notes = option_comments(ClsRecipe)
    assert runs.main(['--help']) == 0 and runs.main([]) == 2
    out = capsys.readouterr().out
    assert all(k in out for k in ('seg_tune', 'Fine-tune a segmentation model', 'seg_eval', 'predict'))
    for words in (['31_cls_tune.ipynb', '--help'], ['cls_tune', '-h', 'lr=3']):
        assert runs.main(words) == 0
        out = capsys.readouterr().out
        assert all(f'\n  {f.name} ' in out and notes[f.name] in out for f in fields(ClsRecipe))
        assert re.search(r'\n  tune +probe \| full \| last \| lora \(default: probe\)', out)


@pytest.mark.slow
@pytest.mark.parametrize(('words', 'said'), [
    (['nbs/30_seg_tune.ipynb', 'epoch=3'], "no parameter 'epoch'. Did you mean 'epochs'?"),
    (['nbs/30_seg_tune.ipynb', 'dataset=Phantom_OCD'], "no dataset 'Phantom_OCD'. Did you mean 'Phantom_OCT'?")])
def test_process_ends_with_one(home, words, said):
    done = subprocess.run([sys.executable, '-m', 'mirage_nb.runs', *words], cwd=home, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr and 'Traceback' not in done.stdout + done.stderr
    if 'Report: ' not in done.stderr: return
    report = next((home/'runs').rglob('failed_report.html'))
    assert str(report) in done.stderr and 'Phantom_OCD' in report.read_text()
    cells = json.loads(report.with_suffix('.ipynb').read_text())['cells']
    assert any(o.get('output_type') == 'error' for c in cells for o in c.get('outputs', []))
    assert not list((home/'runs'/'.running').iterdir())
