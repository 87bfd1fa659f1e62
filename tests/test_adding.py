"The six additions of docs/adding.md, carried out from its text in a copy of the project"
import json
import os
import re
import shutil
import subprocess
import sys
from zlib import crc32

import nbformat
import numpy as np
import pytest
from check import copy_of, nbdev
from modules_page import modules_page
from pages import ROOT, blocks_of
from PIL import Image
from test_docs import CHEAP
from test_house import RULES, documents_tell_the_truth

from mirage_nb.phantoms.oct import make_phantom_oct

PAGE = ROOT/'docs'/'adding.md'
SECTIONS = ('A dataset', 'An encoder', 'A segmentation head', 'A metric', 'A recipe', 'An experiment')

pytestmark = pytest.mark.slow


# ------------------------------------------------------------------ from the page to a project

def cells_of(text):
    "Cells of a block, as `# %%` divides them: (kind, source)"
    parts = [part for part in re.split(r'^(?=# %%)', text, flags=re.M) if part]
    found = [re.match(r'# %% ?(\[?\w*\]?)\n?(.*)', part, re.S) for part in parts]
    return [(m[1], m[2].strip('\n')) for m in found]


def notebook(path, text):
    "Write a new notebook"
    cells = []
    for i, (kind, source) in enumerate(cells_of(text)):
        new = nbformat.v4.new_markdown_cell if kind == '[markdown]' else nbformat.v4.new_code_cell
        cell = new(source, metadata={'tags': ['parameters']} if kind == 'parameters' else {})
        cells.append(cell | {'id': f'{crc32(f"{path.stem} {i}".encode()):08x}'})
    kernel = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
    write(path, {'cells': cells, 'metadata': {'kernelspec': kernel}, 'nbformat': 4, 'nbformat_minor': 5})


def write(path, nb):
    for c in nb['cells']: c['source'] = ''.join(c['source']).splitlines(keepends=True)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')


def cell_with(nb, line, path):
    "Index of the one cell that holds a line"
    found = [i for i, c in enumerate(nb['cells']) if line in ''.join(c['source']).split('\n')]
    assert len(found) == 1, f'{path.name} has {len(found)} cells with the line {line!r}'
    return found[0]


ORDERS = (  # what stands before a block, and what it asks for
    (r'New file `(?P<path>[^`]+)`', 'file'),
    (r'New notebook `(?P<path>[^`]+)`', 'notebook'),
    (r'New cell in `(?P<path>[^`]+)`,\s+(?P<side>above|below) the cell with `(?P<line>[^`]+)`', 'cell'),
    (r'In `(?P<path>[^`]+)`,\s+below `(?P<line>[^`]+)`', 'line'))


def order_of(b):
    "What the words before a block ask for; none: it is a command to try"
    for pattern, kind in ORDERS:
        if m := re.search(pattern, b.before): return kind, m.groupdict()
    return None, {}


def carry_out(b, root):
    "Do what the page says with a block"
    kind, words = order_of(b)
    path = root/words['path']
    if kind == 'file': path.write_text(b.text + '\n', encoding='utf-8')
    if kind == 'notebook': notebook(path, b.text)
    if kind not in ('cell', 'line'): return
    nb = json.loads(path.read_text(encoding='utf-8'))
    i = cell_with(nb, words['line'], path)
    if kind == 'cell':
        new = nbformat.v4.new_code_cell(b.text) | {'id': f'{crc32(b.text.encode()):08x}'}
        nb['cells'].insert(i + (words['side'] == 'below'), dict(new))
    else:
        lines = ''.join(nb['cells'][i]['source']).split('\n')
        at = lines.index(words['line']) + 1
        nb['cells'][i]['source'] = '\n'.join([*lines[:at], *b.text.split('\n'), *lines[at:]])
    write(path, nb)


def images_of(name, root):
    "The folder that the page's dataset describes, from phantoms"
    for split in ('train', 'val', 'test'):
        for k in ('bscan', 'semseg'): (root/name/split/k).mkdir(parents=True)
        for p in sorted((root/'Phantom_OCT'/split/'bscan').iterdir()):
            shutil.copy(p, root/name/split/'bscan'/p.name)
            mask = np.array(Image.open(root/'Phantom_OCT'/split/'semseg'/p.name))
            Image.fromarray(np.array([0, 100, 200], np.uint8)[(mask > 0) + (mask > 100)*1]).save(
                root/name/split/'semseg'/p.name)


RUN = '''
import json, sys, traceback
from pathlib import Path
import pytest, torch
sys.path.insert(0, 'tests')
from pages import RUNNER, execute, run_module, words_of
torch.set_num_threads(1)
out = {}
for command, cheap in json.loads(Path('../tries.json').read_text()):
    try:
        if not command.startswith(RUNNER):
            run_module(command, '..')
            out[command] = ''
            continue
        notebook, parameters = words_of(command)
        with pytest.MonkeyPatch.context() as m: execute(notebook, parameters | cheap, m, Path('..'))
        out[command] = json.loads(Path('../handoff.json').read_text())['folder']
    except Exception: out[command] = 'failed: ' + traceback.format_exc()
Path('../tried.json').write_text(json.dumps(out))
'''


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A copy with everything added, exported, and each command tried: its root, and command -> run folder or error"
    root = copy_of(ROOT, tmp_path_factory.mktemp('adding')/'project')
    blocks = [b for b in blocks_of(PAGE) if b.heading in SECTIONS]
    for b in blocks:
        if b.kind != 'bash': carry_out(b, root)
    assert not (error := nbdev('export', root)), error
    assert not (error := nbdev('clean', root)), error
    (root/'docs'/'modules.md').write_text(modules_page(root), encoding='utf-8')
    data = root/'data'
    make_phantom_oct(data/'Phantom_OCT', patients=12, volumes=1, slices=2, size=(96, 80))
    images_of('Clinic_OCT', data)
    tries = [(line, cheaper(line)) for b in blocks if b.kind == 'bash' for line in b.text.split('\n')]
    (root.parent/'tries.json').write_text(json.dumps(tries))
    env = {**os.environ, 'PYTHONPATH': str(root), 'MIRAGE_DATA': str(data), 'MIRAGE_RUNS': str(root/'runs')}
    done = subprocess.run([sys.executable, '-c', RUN], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return root, json.loads((root.parent/'tried.json').read_text())


def cheaper(command):
    "Parameters that make a command of a pipeline quick: mirage-nb STAGE ..."
    return CHEAP.get(command.split()[1], {})


# ------------------------------------------------------------------ what is seen afterwards

def test_page_has_the_six_sections():
    sections = {b.heading for b in blocks_of(PAGE)} & set(SECTIONS)
    assert sections == set(SECTIONS)
    for section in SECTIONS:
        kinds = [order_of(b)[0] for b in blocks_of(PAGE) if b.heading == section]
        assert kinds[-1] is None and None not in kinds[:-1], f'{section}: {kinds}; the last block is what is tried'


def test_blocks_fit_the_width_of_the_code():
    long = [f'line {b.line}: {line}' for b in blocks_of(PAGE) for line in b.text.split('\n') if len(line) > 120]
    assert not long, long


@pytest.mark.parametrize('section', SECTIONS)
def test_addition_works(section, project):
    root, tried = project
    commands = [k for b in blocks_of(PAGE) if b.heading == section and b.kind == 'bash' for k in b.text.split('\n')]
    assert commands
    for command in commands: assert not tried[command].startswith('failed'), f'{command}: {tried[command]}'


def test_new_metric_is_in_the_tables(project):
    root, tried = project
    import pandas as pd
    folder = next(v for k, v in tried.items() if k.endswith('seg_tune'))
    assert 'AVD' in set(pd.read_csv(f'{folder}/test_summary.csv').metric)


def test_new_metric_counts_what_is_invented_or_missed(project):
    "500 pixels of a class that only one side has are a difference of 500; where neither has it, it is left out"
    code = 'from mirage_nb.eval.segmentation.metrics import PixelCounts, get_convention, sum_metrics; ' \
           'n = PixelCounts([0, 0, 0], [500, 0, 0], [0, 500, 0]); rule = get_convention("strict"); ' \
           'print(*sum_metrics(n, rule)["AVD"])'
    root, _ = project
    done = subprocess.run([sys.executable, '-c', code], cwd=root, env={**os.environ, 'PYTHONPATH': str(root)},
                          capture_output=True, text=True)
    assert done.stdout.split() == ['500.0', '500.0', 'nan'], done.stderr[-2000:]


def test_new_parts_are_in_the_runs(project):
    "What was asked for is what was trained"
    root, tried = project
    for command, folder in tried.items():
        if not folder: continue  # not of the runner
        found = json.loads((root/folder/'run.json').read_text())['settings']
        for word in command.split()[2:]:
            name, _, value = word.partition('=')
            assert str(found[name]) == str(cheaper(command).get(name, value)), (command, word)


def test_house_stays_in_order(project):
    "The additions break no rule that the project itself keeps"
    root, _ = project
    for rule in RULES:
        if rule is documents_tell_the_truth: continue
        if not (found := rule(root)): continue
        new = set(map(strip, found)) - set(map(strip, rule(ROOT)))
        assert not new, f'{rule.__name__}: {new}'


def strip(fault): return re.sub(r'cell \d+|:\d+', '', str(fault))


def test_checks_of_new_notebooks_pass(project):
    "The cells of the new notebooks run, as nbdev_test would run them"
    root, _ = project
    orders = [order_of(b) for b in blocks_of(PAGE) if b.heading != SECTIONS[-1]]
    new = [words['path'] for kind, words in orders if kind == 'notebook']
    assert len(new) >= 2
    code = 'import json, sys\nfor p in sys.argv[1:]:\n    space = {}\n    for c in json.load(open(p))["cells"]:\n' \
           '        if c["cell_type"] == "code": exec("".join(c["source"]), space)'
    done = subprocess.run([sys.executable, '-c', code, *new], cwd=root, env={**os.environ, 'PYTHONPATH': str(root)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
