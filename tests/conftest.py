"Fixtures that several test files share"
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

LONG = [  # files that take longest, in the order in which they start, so that two workers end at the same time
    'test_docs.py', 'tasks/test_pretrain.py', 'test_kernels.py', 'test_pipelines.py', 'test_adding.py',
    'launch/test_local.py', 'tasks/test_segmentation.py', 'tasks/test_classification.py', 'tasks/test_cross_dataset.py',
    'tasks/test_predict.py', 'report/test_page.py', 'sweeps/test_running.py', 'tasks/test_few_shot.py', 'test_init.py']


def pytest_addoption(parser):
    parser.addoption('--long', action='store_true', help='also the tests that take more than a minute each')
    parser.addoption('--gpu', action='store_true', help='leave the GPUs of this machine to the tests, as test_gpu.py')


def pytest_configure(config):
    if not config.getoption('--gpu'): os.environ['CUDA_VISIBLE_DEVICES'] = ''  # numbers are those of a processor


def pytest_collection_modifyitems(config, items):
    if not config.getoption('--long'):
        for item in items:
            if item.get_closest_marker('long'): item.add_marker(pytest.mark.skip(reason='--long runs it'))
    order = {Path(__file__).parent/name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(LONG)))  # xdist keeps to it with --no-loadscope-reorder


@pytest.fixture(scope='session', autouse=True)
def own_folders(tmp_path_factory):
    "No test reads or writes the user's datasets, weights and runs, and the environment is left as it was found"
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('MIRAGE_DATA', str(tmp_path_factory.mktemp('no_data')))
        m.setenv('MIRAGE_RUNS', str(tmp_path_factory.mktemp('no_runs')))
        m.setenv('MIRAGE_WEIGHTS', str(tmp_path_factory.mktemp('no_weights')))
        m.setenv('MIRAGE_KEYS', str(tmp_path_factory.mktemp('no_keys')))
        yield
    changed = {k for k in before.keys() | os.environ.keys() if before.get(k) != os.environ.get(k)}
    theirs = 'PYTEST', 'TORCHINDUCTOR', '_TORCHINDUCTOR', 'TRITON', 'KMP_'  # these set their own
    ours = {k for k in changed if not k.startswith(theirs)}
    assert not ours, f'tests changed the environment: {ours}'


@pytest.fixture(scope='session')
def golden():
    "Folder of recorded numbers; sizes, names and options come from its files"
    folder = Path(os.environ.get('MIRAGE_GOLDEN') or Path(__file__).parent/'golden')
    assert folder.is_dir(), f'no golden folder {folder}'
    return folder


@pytest.fixture(scope='session')
def shared_data():
    "Folder of real images, which a user's clone does not have"
    shared = Path(os.environ.get('MIRAGE_SHARED') or Path(__file__).parents[2]/'shared')
    if not (shared/'data').is_dir(): pytest.skip(f'no real images: {shared}/data is absent; MIRAGE_SHARED names it')
    return shared/'data'


@pytest.fixture(scope='session')
def phantoms(tmp_path_factory):
    "MIRAGE_DATA with a tiny Phantom_OCT: 8 B-scans a split, of 96 x 80 pixels"
    from mirage_nb.phantoms.oct import make_phantom_oct
    folder = tmp_path_factory.mktemp('data')
    make_phantom_oct(folder/'Phantom_OCT', patients=12, volumes=1, slices=2, size=(96, 80))
    return folder


@pytest.fixture(scope='session')
def at_home(phantoms):
    "Context of a folder, with MIRAGE_RUNS in it and the tiny Phantom_OCT; one thread, as in the processes it starts"
    import torch  # here, so that what only collects tests does not wait for it

    @contextmanager
    def enter(folder):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        with pytest.MonkeyPatch.context() as m:
            m.setenv('MIRAGE_DATA', str(phantoms))
            m.setenv('MIRAGE_RUNS', str(folder/'runs'))
            m.setenv('OMP_NUM_THREADS', '1')
            m.delenv('MIRAGE_NB_HANDOFF', raising=False)
            yield folder
        torch.set_num_threads(before)
    return enter


@pytest.fixture
def home(at_home, tmp_path):
    "Folder of a test, with MIRAGE_RUNS in it and the tiny Phantom_OCT"
    with at_home(tmp_path): yield tmp_path


@pytest.fixture
def execute(home, monkeypatch):
    "Runs the code of a pipeline notebook in this process, as if the runner had started it: (stage, **parameters)"
    import nbformat
    from pages import quick_figures

    from mirage_nb.recipes.pipelines import find_notebook
    from mirage_nb.told_names import HANDOFF
    monkeypatch.setenv(HANDOFF, str(home/'handoff.json'))
    monkeypatch.setenv('MPLBACKEND', 'agg')
    quick_figures(monkeypatch)

    def run(stage, **parameters):
        space = {}
        for c in nbformat.read(find_notebook(stage), 4).cells:
            if c.cell_type != 'code': continue
            exec(compile(c.source, stage, 'exec'), space)
            if 'parameters' in c.metadata.get('tags', []): space |= parameters
        return space
    return run


@pytest.fixture
def plain(plain_run):
    "History of the plain run of a test file, which all others are compared with"
    import pandas as pd
    return pd.read_csv(plain_run/'history.csv')
