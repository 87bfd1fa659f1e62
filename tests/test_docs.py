"The documentation does what it says: its commands are run, its Python is run, its links lead somewhere"
import collections
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from modules_page import modules_page
from pages import (
    OTHERS,
    PAGES,
    ROOT,
    RUNNER,
    assigned,
    block,
    blocks_of,
    commands_of,
    execute,
    finish,
    name_of,
    placed,
    run_module,
    words_of,
)
from PIL import Image

import mirage_nb
from mirage_nb.data.fetch import _parse
from mirage_nb.data.fetching.orders import find_order
from mirage_nb.data.manifest import read_manifest
from mirage_nb.phantoms.cxr import make_phantom_cxr
from mirage_nb.phantoms.oct import make_phantom_oct
from mirage_nb.phantoms.uwf import make_phantom_uwf
from mirage_nb.phantoms.vol import make_phantom_vol
from mirage_nb.runs import main
from mirage_nb.sources.weights import known_weights, weights_dir
from mirage_nb.sweep import _read_words
from mirage_nb.sweeps.plan import plan_cells, read_plan
from mirage_nb.tasks import settings as tasks_settings
from mirage_nb.told_names import HANDOFF
from tests.data.scanners.made import write_vol

MOST_LINES = {'README.md': 200, 'docs/adding.md': 400, 'docs/modules.md': 400}  # of other pages: 150

# Every run is made cheap by these values, whatever the page says; all else is as the page has it.
CHEAP = {'seg_tune': {'epochs': 1, 'size': 64, 'batch_size': 4, 'baselines': False},
         'cls_tune': {'epochs': 1, 'size': 64, 'probes': False, 'baselines': False},
         'few_shot': {'epochs': 1, 'size': 64, 'resamples': 100, 'seeds': 2, 'shots': [1, 2]},
         'pretrain_multimae': {'epochs': 1, 'size': 64, 'batch_size': 8, 'eval_every': 0},
         'pretrain_mae': {'epochs': 1, 'size': 32, 'batch_size': 16, 'eval_every': 0},
         'pretrain_views': {'epochs': 1, 'size': 32, 'batch_size': 16, 'eval_every': 0, 'model': 'timm:test_resnet'},
         'cls_eval': {'resamples': 100}, 'compare': {'resamples': 100},
         'explain': {'methods': ['grad_cam'], 'shown': 2, 'scored': 4},
         'reconstruct': {'scored': 4, 'examples': 1, 'draws': 1, 'artefacts': ['noise']},
         'features': {'most_images': 24, 'resamples': 100, 'queries': 1, 'examples': 1}}

TYPED = {  # these are run in a shell, as they are typed, with these words after them
    'mirage-nb --help': '', 'mirage-nb seg_tune --help': '',
    'mirage-nb seg_tune head=linear epochs=5': 'epochs=1 size=64 baselines=False --quiet',
    'papermill nbs/30_seg_tune.ipynb runs/MySet.ipynb -p dataset MySet -p recipe seg_small -p size 256':
        '-p epochs 1 -p size 64 -p baselines False'}

NOT_RUN = {  # pattern: why
    r'make (demo|test|lab|check)': 'they run these tests, or install; test_house checks that the targets exist',
    r'source \S+/bin/activate': 'the tests run in an environment already',
    r'(python3.11 -m venv|pip install) .*': 'installs',
    r'mkdir -p runs': 'belongs to the papermill command, whose output goes to a folder of the test',
    r'pytest .*': 'a part of the tests themselves',
    r'nbdev_\w+.*|python tests/\S+|ruff .*|mypy .*': 'check.py and test_house run these'}


# ------------------------------------------------------------------ the folders that the pages describe

@pytest.fixture(scope='session')
def place(tmp_path_factory):
    "What the pages call /data: oct/ is MIRAGE_DATA; all of it made from tiny phantoms, as the pages say"
    root = tmp_path_factory.mktemp('docs')
    data = root/'oct'
    make_phantom_oct(data/'Phantom_OCT', patients=12, volumes=1, slices=2, size=(96, 80))
    make_phantom_vol(data/'Phantom_VOL', patients=28, slices=2, size=(64, 64))
    make_phantom_cxr(data/'Phantom_CXR', patients=40, films=1, size=32)
    make_phantom_uwf(data/'Phantom_UWF', patients=25, pictures=1, size=(32, 40))
    own_masks(data)
    class_folders(data)
    shutil.copytree(data/'MySet'/'test'/'bscan', root/'new_patients')
    shutil.copytree(data/'MySet'/'test'/'semseg', root/'other_program')
    shutil.copytree(data/'Phantom_UWF'/'train', root/'uwf'/'site A')
    (root/'other_program.csv').write_text(block('docs/classification.md', 'csv').text)
    (root/'list.csv').write_text(block('docs/prediction.md', 'csv').text)
    (root/'exports').mkdir()
    for i in range(4): write_vol(root/'exports'/f'scan_{i + 1}.vol', seed=i)
    for k in ('bscan', 'slo', 'bscanlayermap'): shutil.copytree(data/'Phantom_OCT'/'train'/k, root/'pairs'/k)
    return root


def own_masks(data):
    "MySet, with the INFO.json and the manifest of the page"
    info = block('docs/own_data.md', 'json').text
    values = [c['value'] for c in json.loads(info).values()]
    for split in ('train', 'val', 'test'):
        for k in ('bscan', 'semseg'): (data/'MySet'/split/k).mkdir(parents=True)
        source = sorted((data/'Phantom_OCT'/split/'bscan').iterdir())
        for p in source:
            shutil.copy(p, data/'MySet'/split/'bscan'/p.name)
            mask = np.array(Image.open(data/'Phantom_OCT'/split/'semseg'/p.name))
            Image.fromarray(np.array(values, np.uint8)[(mask > 0) + (mask > 100)*1]).save(
                data/'MySet'/split/'semseg'/p.name)
    shutil.copytree(data/'MySet'/'test'/'semseg', data/'MySet'/'test'/'semseg_second')
    (data/'MySet'/'INFO.json').write_text(info)
    for kind, name in (('bscan', 'images'), ('semseg', 'masks')):
        (data/'MyScans'/name).mkdir(parents=True)
        for p in sorted(data.glob(f'MySet/*/{kind}/*.png')): shutil.copy(p, data/'MyScans'/name/p.name)
    (data/'MyScans'/'INFO.json').write_text(info)
    (data/'MySet'/'manifest.toml').write_text(block('docs/own_data.md', 'toml').text)


def class_folders(data):
    "MyClasses with splits; MyClinic without, with the manifest of the page; OtherClinic without both"
    images = sorted((data/'Phantom_OCT'/'train'/'bscan').iterdir())
    for i in range(24):
        kind, split = ('AMD', 'normal')[i % 2], ('train', 'val', 'test')[i//2 % 3]
        name = f'P{i//4:03}_{("OD", "OS")[i//2 % 2]}{i % 2}.png'
        for folder in (data/'MyClasses'/split/kind, data/'MyClinic'/kind):
            folder.mkdir(parents=True, exist_ok=True)
            image = np.array(Image.open(images[i % len(images)]))
            Image.fromarray(np.roll(image, i)).save(folder/name)
    for i, p in enumerate(sorted((data/'Phantom_OCT'/'test'/'bscan').iterdir())):
        folder = data/'OtherClinic'/('wet', 'normal', 'scar')[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, folder/p.name)
    (data/'MyClinic'/'manifest.toml').write_text(block('docs/classification.md', 'toml').text)


@pytest.fixture
def here(place, monkeypatch):
    "The process as a user's terminal: MIRAGE_DATA and MIRAGE_RUNS, one thread"
    import torch
    for k, v in {'MIRAGE_DATA': place/'oct', 'MIRAGE_RUNS': place/'runs', 'MIRAGE_WEIGHTS': place/'weights',
                 'OMP_NUM_THREADS': 1}.items():
        monkeypatch.setenv(k, str(v))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield place
    torch.set_num_threads(before)


# ------------------------------------------------------------------ commands

ALL = [(path, c) for path in PAGES for c in commands_of(path)]


def how(command):
    "How a command of a page is tested"
    if any(re.fullmatch(p, command.text) for p in NOT_RUN): return 'not run'
    if command.needs: return 'checked'
    if command.text.split(' </dev/null')[0] in TYPED: return 'typed'
    return 'run'


def run_command(command, root, monkeypatch):
    "Run one command in this process"
    if m := re.fullmatch(r'export (\w+)=(\S+)', command):
        monkeypatch.setenv(m[1], m[2].replace('/data', str(root), 1))
    elif command.startswith(RUNNER) and command.split()[1] in OTHERS:
        assert main(placed(command.split()[1:], root)) == 0
    elif not command.startswith(RUNNER):
        assert command.startswith('python -m mirage_nb.'), 'a command that this test does not know: see NOT_RUN'
        run_module(command, root)
    else:
        notebook, parameters = words_of(command)
        stage = notebook.stem[3:]
        given = {k: encoder_of(parameters) if v == 'ENCODER' else placed(v, root) for k, v in parameters.items()}
        execute(notebook, given | CHEAP.get(stage, {}), monkeypatch, root)


def encoder_of(parameters):
    "What the page on pre-training calls ENCODER: that of the newest run on phantoms"
    runs = Path(os.environ['MIRAGE_RUNS'])/'pretrain_multimae'/parameters['dataset']
    return str(max(runs.glob('*/encoder.safetensors'), key=lambda p: p.stat().st_mtime))


def run_typed(command, root):
    "Run one command in a shell, as it is typed, in the project"
    text, empty, _ = command.partition(' </dev/null')
    text = f'{text} {TYPED[text]}{empty}'.replace('runs/', f'{root}/').replace('python ', f'{sys.executable} ', 1)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    if not shutil.which('mirage-nb', path=path):  # the kit is not installed, only on the path
        text = text.replace('mirage-nb ', f'{sys.executable} -m mirage_nb.runs ', 1)
    env = {k: v for k, v in os.environ.items() if k != HANDOFF}  # which `execute` has set
    done = subprocess.run(text, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=600,
                          env={**env, 'PATH': path, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    if 'papermill' not in text: assert 'report' in done.stdout + done.stderr or 'usage' in done.stdout
    else: check_bare_papermill(root, text.split()[2])


def check_bare_papermill(root, out):
    "The run's folder holds the report, and the notebook that papermill wrote says where"
    folder = next((root/'runs'/'seg_tune'/'MySet').glob('*/report.html')).parent  # of the others this process made none
    assert {'report.ipynb', 'report.html', 'result.json', 'test_volumes.csv'} <= {p.name for p in folder.iterdir()}
    assert str(folder/'report.html') in Path(out).read_text(encoding='utf-8')
    assert not list((root/'runs').glob('*.ipynb')), 'a copy of the notebook is left'


REPEATED = set()  # commands that this process has run, in the same folders


@pytest.mark.slow
@pytest.mark.parametrize('path', [p for p in PAGES if p.name != 'adding.md'], ids=name_of)  # test_adding has that one
def test_commands_of_a_page(path, here, monkeypatch):
    "In the order of the page, so that a command may use what one above it made; a run of a page before is not repeated"
    for command in commands_of(path):
        if command.text in REPEATED: continue
        try:
            if how(command) == 'run': run_command(command.text, here, monkeypatch)
            if how(command) == 'typed': run_typed(command.text, here)
        except Exception as e: raise AssertionError(f'{command.where}: {command.text}: {type(e).__name__}: {e}') from e
        if command.text.startswith(RUNNER): REPEATED.add(command.text)


def provide(parameters, root):
    "Stand in for datasets and weights that a command needs: folders and files without content"
    for name in [*str(parameters.get('dataset') or '').split(','), parameters.get('test_dataset')]:
        folder = Path(placed(name, root)) if name and '/' in name else root/'oct'/str(name)
        if not name or folder.exists(): continue
        folder.mkdir(parents=True)
        if '/' not in name and read_manifest(name).task == 'segmentation' and not read_manifest(name).classes:
            shutil.copy(root/'oct'/'MySet'/'INFO.json', folder)
    weights = placed(str(parameters.get('weights')), root)
    if weights in known_weights(): weights = str(weights_dir()/known_weights()[weights].kept_as)
    if not weights.startswith(str(root)): return
    Path(weights).parent.mkdir(parents=True, exist_ok=True)
    Path(weights).touch()


@pytest.mark.parametrize('command', [c for _, c in ALL if how(c) == 'checked' and c.text.startswith(RUNNER)],
                         ids=lambda c: f'{c.where} {c.text.removeprefix(RUNNER)}')
def test_commands_that_need_more(command, here, monkeypatch):
    "They are not run; the notebook, the recipe, the dataset's manifest and every value are checked"
    if command.text.split()[1] == 'sweep':
        assert plan_cells(_read_words([w for w in command.text.split()[2:] if w != '--dry-run']))
        return
    if command.text.split()[1] == 'fetch':
        names, flags, _ = _parse(command.text.split()[2:])
        assert [find_order(k) for k in names] and '--accept' in flags
        return
    notebook, parameters = words_of(command.text)
    provide(parameters, here)
    monkeypatch.setattr(tasks_settings, '_check_size', lambda file, model: None)  # the files have no content
    if notebook.stem[3:] in ('seg_tune', 'cls_tune', 'pretrain_multimae', 'pretrain_mae', 'pretrain_views'):
        execute(notebook, {k: placed(v, here) for k, v in parameters.items()}, monkeypatch, here, 'settings_table(')
    assert set(parameters) <= set(assigned(notebook))


def test_most_commands_are_run():
    "A page may not call everything impossible"
    kinds = [how(c) for _, c in ALL]
    assert kinds.count('run') + kinds.count('typed') > 1.25*kinds.count('checked'), collections.Counter(kinds)
    typed = {c.text.split(' </dev/null')[0] for _, c in ALL if how(c) == 'typed'}
    assert typed == set(TYPED), 'TYPED names commands that no page has'
    assert all('mirage_nb.launch' in c.text or c.text.startswith(RUNNER) for _, c in ALL if how(c) == 'checked')


@pytest.mark.slow
@pytest.mark.parametrize('path', [p for p in PAGES if p.name != 'adding.md' and any(
    b.kind == 'python' for b in blocks_of(p))], ids=name_of)
def test_python_of_a_page(path, here, monkeypatch):
    "Block after block, as they are, but for CHEAP and the place of /data; python.md runs a pipeline in a kernel"
    real, space = mirage_nb.run, {}

    def run(stage, **given):
        if path.name == 'python.md': return real(stage, **given | CHEAP[stage] | {'seed': 2})
        with monkeypatch.context() as m: finish(stage, given | CHEAP[stage], m, here)
        return real(stage, **given | CHEAP[stage])
    monkeypatch.setattr(mirage_nb, 'run', run, raising=False)
    for b in blocks_of(path):
        if b.kind != 'python': continue
        text = b.text.replace("'/data/", f"'{here}/")
        with contextlib.redirect_stdout(io.StringIO()): exec(compile(text, f'{b.page}:{b.line}', 'exec'), space)


# ------------------------------------------------------------------ the pages themselves

def anchors(path):
    "Anchors of the headings of a page, as GitHub makes them"
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-')
            for h in re.findall(r'^#+ (.*)', path.read_text(encoding='utf-8'), re.M)}


@pytest.mark.parametrize('path', [*PAGES, ROOT/'CONTRIBUTING.md'], ids=name_of)
def test_links_lead_somewhere(path):
    faults = []
    for link in re.findall(r'\]\(([^)\s]+)\)', path.read_text(encoding='utf-8')):
        if '://' in link: continue
        name, _, anchor = link.partition('#')
        target = (path.parent/name).resolve() if name else path
        if not target.exists(): faults.append(f'no file {link}')
        elif anchor and anchor not in anchors(target): faults.append(f'no heading {link}')
    assert not faults


def test_every_page_is_linked():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    lost = [name_of(p) for p in PAGES[1:] if f'({name_of(p)})' not in text]
    assert not lost, f'README.md does not lead to {lost}'


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_pages_are_short(path):
    n = len(path.read_text(encoding='utf-8').splitlines())
    assert n <= MOST_LINES.get(name_of(path), 150), f'{n} lines'


def test_page_of_modules_is_up_to_date():
    assert (ROOT/'docs'/'modules.md').read_text(encoding='utf-8') == modules_page(ROOT), (
        'docs/modules.md is old: python tests/modules_page.py writes it')


@pytest.mark.parametrize('b', [b for p in PAGES for b in blocks_of(p) if b.kind in ('toml', 'json')],
                         ids=lambda b: f'{b.page}:{b.line}')
def test_data_blocks_can_be_read(b): (tomllib if b.kind == 'toml' else json).loads(b.text)


def test_plans_of_a_page(tmp_path):
    "The plan of docs/sweeps.md, with what it excludes and includes, and the one in a file"
    (tmp_path/'plan.toml').write_text(block('docs/sweeps.md', 'toml').text)
    for file, n in ((tmp_path/'plan.toml', 18), (ROOT/'docs'/'sweep.toml', 24)):
        assert len(plan_cells(read_plan(file))) == n
