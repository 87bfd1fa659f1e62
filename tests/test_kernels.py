"The pipelines as a user of JupyterLab runs them: twice from top to bottom in one kernel, and with a changed parameter"
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import start_new_kernel

from mirage_nb.commands.progress import Console
from mirage_nb.recipes.pipelines import find_notebook
from mirage_nb.runs import _execute
from mirage_nb.told_names import HANDOFF

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SMALL = {'seg_tune': {'epochs': 1, 'size': 64, 'batch_size': 4, 'baselines': False},
         'cls_tune': {'epochs': 1, 'size': 64, 'probes': False, 'baselines': False},
         'few_shot': {'epochs': 1, 'size': 64, 'resamples': 50, 'seeds': 1, 'shots': [1, 2]},
         'seeds': {'resamples': 100}, 'data_report': {'resamples': 100}, 'compare': {'resamples': 100},
         'predict': {}, 'explain': {'methods': ['grad_cam'], 'shown': 2, 'scored': 4},
         'reconstruct': {'scored': 4, 'examples': 1, 'draws': 1, 'artefacts': ['noise']},
         'features': {'most_images': 24, 'resamples': 100, 'queries': 1, 'examples': 1},
         'seg_eval': {}, 'benchmark': {'benchmark': 'medical_mae'},
         'cls_eval': {'resamples': 100},
         'sweep': {'grid': {'head': ['linear', 'convnext']}},
         'pretrain_multimae': {'epochs': 1, 'size': 64, 'batch_size': 8, 'eval_every': 0},
         'pretrain_mae': {'dataset': 'Phantom_OCT/train/bscan', 'epochs': 1, 'size': 32, 'batch_size': 4,
                          'eval_every': 0},
         'pretrain_views': {'dataset': 'Phantom_OCT/train/bscan', 'epochs': 1, 'size': 32, 'batch_size': 4,
                            'eval_every': 0, 'model': 'timm:test_resnet', 'queue': 16}}
CHANGED = {'predict': {'overlay': 'none'}, 'seeds': {'resamples': 120}, 'benchmark': {'benchmark': 'retfound'},
           'sweep': {'grid': {'head': ['linear', 'dpt']}}}  # of the others the seed


class Kernel:
    "A kernel that runs cells, and what it said"
    def __init__(self, env):
        self.manager, self.client = start_new_kernel(kernel_name='python3', env=env, cwd=str(ROOT))

    def run(self, source, when_written=None):
        "Run a cell; an error of it is raised here, and what it shows as text is returned"
        shown, failed = [], []

        def hook(message):
            kind, content = message['msg_type'], message['content']
            if kind in ('execute_result', 'display_data'): shown.append(content['data'].get('text/plain', ''))
            if kind == 'error': failed.append(content)
            if kind == 'stream' and when_written: when_written()
        reply = self.client.execute_interactive(source, output_hook=hook, timeout=300)['content']
        if reply['status'] == 'ok': return '\n'.join(shown)
        raise RuntimeError(re.sub(r'\x1b\[[\d;]*m', '', '\n'.join(failed[0]['traceback'])))

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope='module')
def place(phantoms, tmp_path_factory):
    return {'MIRAGE_DATA': str(phantoms), 'MIRAGE_RUNS': str(tmp_path_factory.mktemp('runs')), 'OMP_NUM_THREADS': '1',
            HANDOFF: str(tmp_path_factory.mktemp('handoff')/'handoff.json')}


@pytest.fixture(scope='module')
def one_kernel(place):
    "A start, with all that a pipeline imports, takes as long as the cells of a small run: so there is one"
    made = Kernel({**os.environ, **place, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT/'tests')])})
    made.run('import pytest\nfrom pages import quick_figures\nquick_figures(pytest.MonkeyPatch())')
    yield made
    made.stop()


@pytest.fixture
def kernel(one_kernel):
    "A kernel without a variable and without a history"
    one_kernel.run('%reset -f\n%reset -f in')
    left = one_kernel.run('[*filter(None, In[:-1])], {"cfg", "pytest"} & {*globals()}')
    assert left == '([], set())'
    return one_kernel


def cells(stage, **values):
    "The code of a pipeline, the values of its parameters cell changed as a user types them there"
    for c in nbformat.read(find_notebook(stage), 4).cells:
        if c.cell_type != 'code': continue
        lines = c.source.splitlines()
        if 'parameters' in c.metadata.get('tags', []):
            for k, v in values.items():
                i = next(i for i, line in enumerate(lines) if re.match(rf'{k} +=', line))
                lines[i] = re.sub(r'= .*?( *#)', lambda m, v=v: f'= {v!r}{m[1]}', lines[i], count=1)
        yield '\n'.join(lines)


def run_all(kernel, stage, until=None, **values):
    "Run a pipeline from the top; what each cell shows"
    shown = []
    for source in cells(stage, **values):
        shown.append(kernel.run(source))
        if until and re.search(until, source): break
    return shown


@pytest.mark.parametrize('stage', SMALL)
def test_two_passes_in_one_kernel(kernel, stage, phantoms):
    small = dict(SMALL[stage])
    if stage in ('pretrain_mae', 'pretrain_views'): small['dataset'] = str(phantoms/small['dataset'])
    first, second = (run_all(kernel, stage, **small) for _ in range(2))
    states = [next(s for s in shown if s.startswith('run ')).splitlines() for shown in (first, second)]
    assert states[0][0].endswith(': new') and states[1][0].endswith(': finished') and states[0][1] == states[1][1]
    assert len(first) == len(second)
    changed = {**small, **CHANGED.get(stage, {'seed': 1})}
    other = run_all(kernel, stage, r'(start_run|open_sweep)\(', **changed)[-1].splitlines()
    assert other[0].endswith(': new') and other[1] != states[0][1]


def test_an_interrupt_is_shown_in_a_line(kernel):
    kernel.run('import time\nimport mirage_nb.runs')
    with pytest.raises(RuntimeError, match='this cell was stopped. Run it again to go on') as e:
        kernel.run('def wait(n):\n    return time.sleep(60) if not n else wait(n - 1)\nprint("it waits")\nwait(20)',
                   when_written=kernel.manager.interrupt_kernel)
    assert len(str(e.value).splitlines()) <= 3
    assert kernel.run('1 + 1') == '2'


def test_bars_and_tables_of_a_kernel_that_somebody_looks_at(place):
    "Bars are no errors, words are at the left, and the report folds the bars"
    made = Kernel({**{k: v for k, v in {**os.environ, **place}.items() if k != HANDOFF}, 'PYTHONPATH': str(ROOT)})
    try:
        made.run('import mirage_nb.runs\nimport pandas as pd\nfrom tqdm import tqdm')
        streams = []
        made.client.execute_interactive('for _ in tqdm(range(3)): pass', output_hook=streams.append, timeout=300)
        assert {m['content']['name'] for m in streams if m['msg_type'] == 'stream'} == {'stdout'}
        shown = made.run('from IPython import get_ipython\n'
                         'get_ipython().display_formatter.format(pd.DataFrame({"a": ["word"]}))[0]["text/html"]')
        assert 'text-align: left">word' in shown
    finally: made.stop()


def test_a_misspelt_name_is_found_in_both_cells(kernel):
    source = list(cells('predict'))
    head, parameters, settings = source[0], source[1], source[2]
    for text in (head, parameters): kernel.run(text)
    kernel.run('batch = 3\nnote = "my own"')  # a user's cell: nothing that counts
    kernel.run('batch_size = 3')              # but this is an option
    assert re.search(r'batch_size +3 +parameter', kernel.run(f'{settings.splitlines()[0]}\n'
                     "settings_table(choose_settings('predict', params)[0], params)"))
    for wrong in (f'{parameters}\nbatchsize = 3', '# Parameters\nbatchsize = 3\n'):
        kernel.run(wrong)
        with pytest.raises(RuntimeError, match="no parameter 'batchsize'. Did you mean 'batch_size'?"):
            kernel.run(settings)
        kernel.run(parameters)  # corrected, and run again
        kernel.run(f'{settings.splitlines()[0]}\nassert "batchsize" not in params')


@pytest.fixture
def small_notebook(tmp_path):
    "Runs one cell in a kernel as the runner does: the text of its output, or what happened"
    def run(source):
        path, console = tmp_path/'30_small.ipynb', Console(None)
        cell = nbformat.v4.new_code_cell(source)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={'kernelspec': {
            'name': 'python3', 'language': 'python', 'display_name': 'Python 3'}}), path)
        error = _execute(path, tmp_path/'handoff.json', {}, console)
        shown = [o.get('text', '') for o in console.notebook.cells[-1].outputs if o.output_type == 'stream']
        return error or ''.join(shown).strip()
    return run


def test_the_kernel_is_of_this_python(small_notebook, tmp_path, monkeypatch):
    "Another Python that is installed as the kernel python3, as conda and pip --user do, is not asked"
    spec = tmp_path/'share'/'kernels'/'python3'
    spec.mkdir(parents=True)
    other = tmp_path/'other_python'
    other.write_text('#!/bin/sh\nexit 1\n')
    other.chmod(0o755)
    (spec/'kernel.json').write_text(json.dumps({
        'argv': [str(other), '-m', 'ipykernel_launcher', '-f', '{connection_file}'], 'display_name': 'Python 3',
        'language': 'python'}))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'share'))
    assert KernelSpecManager().get_kernel_spec('python3').argv[0] == str(other), 'the other kernel would not be taken'
    assert small_notebook('import sys\nprint(sys.executable)') == sys.executable


def test_a_dead_kernel_says_how_to_go_on(small_notebook):
    said = small_notebook('import os, signal\nos.kill(os.getpid(), signal.SIGKILL)')
    for piece in ('its kernel, the process that computes, died', 'memory', 'batch_size',
                  'The same command goes on from the last saved state'): assert piece in said, said


def test_a_kernel_that_cannot_start_is_not_told_to_lack_memory(small_notebook, tmp_path, monkeypatch):
    "What kernels need may be missing, or the memory used up: both are said"
    (tmp_path/'ipykernel_launcher.py').write_text('raise SystemExit("no module named zmq")\n')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=os.pathsep)
    said = small_notebook('1')
    for piece in ('ended or hung before the first cell', 'a package that kernels need is missing',
                  'the memory was used up', 'Kernel died'): assert piece in said, said
