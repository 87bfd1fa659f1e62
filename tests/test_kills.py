"""Kills at moments that a seed draws: what is written is whole, and nothing is left.

MIRAGE_KILLS says how many rounds, and of how many kills of each of six trainings; the default takes seconds, with two
trainings. MIRAGE_KILLS_SEED draws others. A line for each start goes to the file that MIRAGE_KILLS_LOG names."""
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from starts import PIPELINES, SIGNALS, Starter, kernels, kill, left_behind, orphans, results

from mirage_nb.leftovers import HOST, remove_leftovers
from mirage_nb.phantoms.writing import write_once
from mirage_nb.storage import read_json, write_json

ROUNDS = int(os.environ.get('MIRAGE_KILLS', 3))
LONG = 'MIRAGE_KILLS' in os.environ
SEED = os.environ.get('MIRAGE_KILLS_SEED', '0')
WRITER = '''
import sys
from pathlib import Path
from mirage_nb.storage import write_atomic
print(flush=True)
for i in range(10**9):
    text = f'{i}\\n'*20_000
    write_atomic(sys.argv[1], lambda p: p.write_text(text))
'''


def killed(words, low, high, rng):
    "Start a process that writes a line when it begins, and kill it so many seconds later"
    job = subprocess.Popen([sys.executable, '-c', *map(str, words)], stdout=subprocess.PIPE)
    job.stdout.readline()
    time.sleep(rng.uniform(low, high))
    job.send_signal(signal.SIGKILL)
    job.wait()
    job.stdout.close()


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no kills here')
def test_a_file_is_whole_after_any_kill_and_nothing_is_left(tmp_path):
    rng, file, left = random.Random(0), tmp_path/'a.txt', 0
    for _ in range(ROUNDS):
        killed([WRITER, file], 0, .05, rng)
        lines = set(file.read_text().splitlines()) if file.exists() else {''}
        assert len(lines) == 1, 'two versions in one file'
        left += len(list(tmp_path.glob('.*.tmp')))
        remove_leftovers(tmp_path)
        assert [p.name for p in tmp_path.iterdir() if p != file] == []
    write_json(tmp_path/'b.json', left)
    assert read_json(tmp_path/'b.json') == left


def over():
    "The number of a process that is over"
    job = subprocess.Popen([sys.executable, '-c', ''])
    job.wait()
    return job.pid


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    "Not what a process that runs, or one of another machine, writes"
    kept = [f'.a.{HOST}-{os.getpid()}.tmp', f'.a.00000000-{over()}.tmp', '.hidden', 'a.1.tmp']
    for name in (*kept, f'.a.json.{HOST}-{over()}.tmp'): (tmp_path/name).touch()
    write_json(tmp_path/'b.json', 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, 'b.json'])


@pytest.mark.skipif(not shutil.which('unshare'), reason='no containers here')
def test_a_container_of_the_same_host_name_keeps_what_is_written_outside(tmp_path):
    "Its processes have other numbers: there the writer's number is free, or another's"
    inside = ['unshare', '--user', '--map-root-user', '--pid', '--fork', '--mount-proc', sys.executable, '-c']
    if subprocess.run([*inside, ''], capture_output=True).returncode: pytest.skip('namespaces are not allowed here')
    file = tmp_path/f'.a.{HOST}-{os.getpid()}.tmp'
    file.touch()
    code = 'import sys\nfrom pathlib import Path\nfrom mirage_nb.leftovers import HOST, remove_leftovers\n' \
           'remove_leftovers(Path(sys.argv[1]))\nprint(HOST)'
    job = subprocess.run([*inside, code, tmp_path], capture_output=True, text=True, check=True)
    assert file.exists() and job.stdout.strip() not in ('', HOST)


def test_a_phantom_that_was_half_made(tmp_path):
    "Its folder beside the finished one goes at the next start"
    half = tmp_path/f'.Set.{HOST}-{over()}.x1y2'/'Set'
    half.mkdir(parents=True)
    (half/'a.png').touch()

    def write(folder, settings):
        folder.mkdir()
        write_json(folder/'phantom.json', settings)
    assert write_once(tmp_path/'Set', {'n': 1}, write).is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ['Set']


# ------------------------------------------------------------------ whole trainings

@pytest.fixture(scope='module')
def starter(tmp_path_factory):
    made = Starter(tmp_path_factory.mktemp('starts'))
    yield made
    made.close()


@pytest.fixture(scope='module')
def undisturbed(starter, tmp_path_factory):
    "Numbers of a run that nothing disturbs, and its seconds, by pipeline; each is made once"
    made = {}

    def run(name):
        if name not in made:
            began, runs = time.monotonic(), tmp_path_factory.mktemp('whole')
            code, said = starter.run(name, runs)
            assert code == 0, said
            made[name] = results(runs), time.monotonic() - began
        return made[name]
    return run


def note(*words):
    "Write a line of the long run"
    if file := os.environ.get('MIRAGE_KILLS_LOG'):
        with open(file, 'a') as f: print(*words, file=f)


def end_by(number, pid, log, starter, seconds):
    "Send a signal after some seconds; the exit code, or None if the start had ended before"
    code = starter.wait(pid, seconds)
    if code is not None: return code
    kill(pid, number)
    code = starter.wait(pid, 120)
    assert code is not None, f'{signal.Signals(number).name} does not end it: {log.read_text()}'
    assert orphans(pid) == [], 'processes are left'
    said = log.read_text()
    assert code in (-number, 128 + number, 0), f'{code} after {signal.Signals(number).name}: {said}'
    if code == 128 + number: assert 'the same command goes on' in said and 'Traceback' not in said, said
    return None if code else 0


@pytest.mark.slow
@pytest.mark.skipif(not SIGNALS, reason='no kills here')
@pytest.mark.parametrize('name', PIPELINES if LONG else ['probe'])
def test_a_training_that_is_killed_again_and_again(name, starter, undisturbed, tmp_path):
    "The same command goes on to the numbers of an undisturbed run, bit for bit, and nothing is left of the kills"
    (whole, takes), rng = undisturbed(name), random.Random(f'{SEED} {name}')
    kills, most, k = 0, ROUNDS if LONG else 2, 0
    while kills < most:
        runs, code, k = tmp_path/f'runs{k}', None, k + 1
        for _ in range(3):  # kills of one run
            number, seconds = rng.choice(SIGNALS), rng.uniform(0, takes)
            pid, log = starter.start(name, runs)
            code = end_by(number, pid, log, starter, seconds)
            note(name, k, signal.Signals(number).name, f'{seconds:.2f} s of {takes:.1f}', 'ended' if code == 0 else
                 'killed', left_behind(runs))
            assert code in (None, 0), log.read_text()
            kills += code is None
            if code == 0 or kills == most: break
        if code is None: code, said = starter.run(name, runs)
        assert code == 0, said
        assert left_behind(runs) == [], 'left of kills'
        found = results(runs)
        assert found == whole, sorted({*found.items()} ^ {*whole.items()})
        note(name, k, 'equal')
        shutil.rmtree(runs)


def wait_for(found, seconds=120.):
    "Wait until a function finds something"
    until = time.monotonic() + seconds
    while not (what := found()) and time.monotonic() < until: time.sleep(.02)
    assert what, 'in vain'
    return what


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='no list of processes here')
@pytest.mark.parametrize('name', PIPELINES if LONG else ['seg_tune'])
def test_a_kernel_that_the_system_ends(name, starter, undisturbed, tmp_path):
    "As it ends the largest process where memory is used up: the command says so, and goes on when it is typed again"
    runs, rng = tmp_path/'runs', random.Random(f'{SEED} kernel {name}')
    for k in range(min(ROUNDS, 3) if LONG else 1):
        pid, log = starter.start(name, runs, kernel=True)
        kernel, = wait_for(lambda pid=pid: kernels(pid))
        if not k: wait_for(lambda: list(runs.rglob('state.pt')))
        time.sleep(rng.uniform(0, 1. if k == 0 else 8.))
        os.kill(kernel, signal.SIGKILL)
        code, said = starter.wait(pid), log.read_text()
        note(name, 'kernel killed', k, code, left_behind(runs))
        assert code == 1 and 'Traceback' not in said, said
        for piece in ('the process that computes, died', 'memory', 'The same command goes on from the last saved'):
            assert piece in said, said
        assert orphans(pid) == [] == kernels(pid)
    code, said = starter.run(name, runs)
    assert code == 0, said
    assert left_behind(runs) == [] and results(runs) == undisturbed(name)[0]
