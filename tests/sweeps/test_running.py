"Cells in processes and kernels of their own: a sweep that is killed, and goes on"
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mirage_nb.locks import is_held
from mirage_nb.sweeps.cells import Cell, look
from mirage_nb.sweeps.running import run_cells

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = 'dataset = "A" # name\nseed = 0 # number\nfail = False # whether it fails'
WORK = '''
import json, os, time
from pathlib import Path
from mirage_nb.records import start_run
run = start_run('stub', {'dataset': dataset, 'seed': seed, 'fail': fail, 'epochs': 400}, {})
if fail: raise ValueError('the loss is not finite')
(run.folder/'kernel').write_text(str(os.getpid()))
record = run.folder/'progress.jsonl'
done = len(record.read_text().splitlines()) if record.exists() else 0
for e in range(done, 400):
    if not done: time.sleep(.1)  # the second time it is fast
    with open(record, 'a') as f: f.write(json.dumps({'epoch': e + 1, 'seconds': 1.}) + '\\n')
(run.folder/'result.json').write_text(json.dumps({'means': {'Dice': seed}}))
'''
PARENT = '''
import sys
from mirage_nb.sweeps.cells import Cell
from mirage_nb.sweeps.running import run_cells
run_cells([Cell(sys.argv[1], {'seed': 1})], jobs=1)
'''


@pytest.fixture
def stub(home):
    "A pipeline that takes 40 seconds, or none if it goes on"
    def code(source, **more): return {'cell_type': 'code', 'source': source, 'metadata': more, 'outputs': [],
                                      'execution_count': None}
    kernel = {'name': 'python3', 'language': 'python', 'display_name': 'Python 3'}
    path = home/'30_stub.ipynb'
    path.write_text(json.dumps({'cells': [code(PARAMETERS, tags=['parameters']), code(WORK)], 'nbformat': 4,
                                'nbformat_minor': 4, 'metadata': {'kernelspec': kernel}}))
    return str(path)


def wait_for(what, seconds=180):
    "The first true value of a look, or an error when the time is over"
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, 'it took too long'
        time.sleep(.1)
    return found


def gone(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return True
    return False


def test_a_killed_sweep_leaves_nobody_and_goes_on(stub, home):
    killed, failing = Cell(stub, {'seed': 1}), Cell(stub, {'seed': 2, 'fail': True}, 'the bad one')
    sweep = subprocess.Popen([sys.executable, '-c', PARENT, stub], env={**os.environ, 'PYTHONPATH': str(ROOT)})
    record = wait_for(lambda: next((home/'runs'/'stub').glob('A/*/progress.jsonl'), None))
    kernel = int((record.parent/'kernel').read_text())
    assert is_held(killed.desk, 'cell') and look(killed).state == 'elsewhere'
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    wait_for(lambda: not is_held(killed.desk, 'cell') and gone(kernel))
    done = len(record.read_text().splitlines())
    assert 0 < done < 400 and not (killed.desk/'outcome.json').exists()
    assert [p.name for p in killed.desk.iterdir() if p.suffix == '.ipynb'] == [], 'a half-made copy is left'

    states = run_cells([killed, failing], jobs=2)
    assert [s.state for s in states] == ['finished', 'failed'] and states[0].folder == record.parent
    rows = [json.loads(line)['epoch'] for line in record.read_text().splitlines()]
    assert rows == [*range(1, 401)], 'it did not go on where it was'
    assert states[1].reason == 'ValueError: the loss is not finite' and states[1].folder
    assert any('ValueError: the loss is not finite' in line for line in states[1].lines)
    assert (states[1].folder/'failed_report.html').is_file() and (record.parent/'report.html').is_file()
