"""Start pipelines as a command does, many times at little cost, and look at what a start has left.

A process that has loaded all libraries forks a child for each start; the child obeys a command line, and runs the cells
of the notebook itself in place of a kernel. `python tests/starts.py` is that process: a JSON value a line."""
import contextlib
import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = {'Phantom_OCT': {'patients': 12, 'volumes': 1, 'slices': 2, 'size': (96, 80)}}
PIPELINES = {  # a few seconds each
    'seg_tune': ['seg_tune', 'epochs=3', 'size=64', 'batch_size=4', 'head=linear', 'baselines=false'],
    'cls_tune': ['cls_tune', 'dataset=Phantom_OCT', 'epochs=3', 'size=64', 'batch_size=4', 'probes=false',
                 'baselines=false'],
    'probe': ['cls_tune', 'dataset=Phantom_OCT', 'epochs=3', 'size=64', 'batch_size=4', 'tune=probe', 'probes=false',
              'baselines=false'],
    'pretrain_multimae': ['pretrain_multimae', 'dataset=Phantom_OCT', 'epochs=3', 'size=64', 'batch_size=8',
                          'eval_every=0'],
    'pretrain_mae': ['pretrain_mae', 'dataset={data}/Phantom_OCT/train/bscan', 'epochs=3', 'size=32', 'batch_size=4',
                     'eval_every=0'],
    'pretrain_views': ['pretrain_views', 'dataset={data}/Phantom_OCT/train/bscan', 'epochs=3', 'size=32',
                       'batch_size=4', 'eval_every=0', 'model=timm:test_resnet', 'queue=16']}


# ------------------------------------------------------------------ the process that forks

def run_cells(notebook, handoff, parameters, console):
    "Run the code of a notebook in this process: `_execute` of the runner without a kernel"
    import nbformat

    from mirage_nb.disks import explain_disk_error
    from mirage_nb.told_names import HANDOFF
    os.environ[HANDOFF], space = str(handoff), {}
    console.notebook = nbformat.read(notebook, 4)
    try:
        for c in console.notebook.cells:
            if c.cell_type != 'code': continue
            exec(compile(c.source, notebook.name, 'exec'), space)
            if 'parameters' in c.metadata.get('tags', []): space |= parameters
    except Exception as e: return explain_disk_error(e) or f'{type(e).__name__}: {e}'
    return ''


def quicken():
    "Draw few figures, and save the state of a training after each step"
    from unittest.mock import patch

    import torch
    from pages import quick_figures

    from mirage_nb.train.settings import FitSettings
    torch.set_num_threads(1)
    quick_figures(type('Patch', (), {'setattr': staticmethod(setattr)}))
    made = FitSettings.__init__

    def often(self, *args, **more): made(self, *args, **{**more, 'save_every': 1e-3})
    patch.object(FitSettings, '__init__', often).start()


def prepare():
    "Load what every start needs"
    import pandas as pd

    import mirage_nb.tasks.settings  # noqa: F401
    from mirage_nb import runs
    quicken()
    runs.in_kernel, runs._execute = runs._execute, run_cells
    for name in ('seg_tune', 'cls_tune', 'predict', 'pretrain_multimae', 'pretrain_mae', 'pretrain_views', 'seg_eval',
                 'cls_eval'):
        import nbformat

        from mirage_nb.recipes.pipelines import find_notebook
        first = next(c.source for c in nbformat.read(find_notebook(name), 4).cells if c.cell_type == 'code')
        with contextlib.suppress(ImportError): exec(first, {})
    return runs, pd


def forked(request, runs):
    "Be the child that obeys a command line; never returns"
    code = 1
    try:
        os.setsid()
        log = os.open(request['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0), os.dup2(log, 1), os.dup2(log, 2)
        os.environ.update(request['env'])
        if most := request['largest']:
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        if request['kernel']:
            runs._execute = runs.in_kernel
            runs._KERNEL.append('--IPKernelApp.exec_lines=import starts; starts.quicken()')
        code = runs.main([*request['words'], '--quiet'])
        sys.stdout.flush(), sys.stderr.flush()
    finally: os._exit(code)


def serve():
    "Answer requests: words, env, log -> pid; wait (pid), seconds -> exit code, or null"
    runs, _ = prepare()
    out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    out.write('{}\n'), out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        if 'words' in request: answer = os.fork() or forked(request, runs)
        else:
            until, answer = time.monotonic() + request['seconds'], None
            while answer is None:
                pid, status = os.waitpid(request['wait'], os.WNOHANG)
                if pid: answer = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > until: break
                else: time.sleep(.01)
        out.write(json.dumps(answer) + '\n'), out.flush()


# ------------------------------------------------------------------ who asks

class Starter:
    "Starts commands in children of a process that has loaded the libraries"
    def __init__(self, home):
        "Folder that receives data, temporary files and logs"
        from mirage_nb.phantoms.oct import make_phantom_oct
        self.home, self.data = Path(home), Path(home)/'data'
        for name in ('tmp', 'logs'): (self.home/name).mkdir(parents=True, exist_ok=True)
        make_phantom_oct(self.data/'Phantom_OCT', **DATA['Phantom_OCT'])
        env = {**os.environ, 'MIRAGE_DATA': str(self.data), 'TMPDIR': str(self.home/'tmp'), 'OMP_NUM_THREADS': '1',
               'MPLBACKEND': 'agg', 'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT/'tests')])}
        env.pop('MIRAGE_NB_HANDOFF', None)
        self.job = subprocess.Popen([sys.executable, __file__], env=env, text=True, stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE)
        self.job.stdout.readline()
        self.count = 0

    def ask(self, **request):
        self.job.stdin.write(json.dumps(request) + '\n'), self.job.stdin.flush()
        return json.loads(self.job.stdout.readline())

    def start(self, name, runs, largest=0, kernel=False, **env):
        "Start a pipeline of `PIPELINES` or the words of a command: process number and log; no file may be larger"
        self.count += 1
        log = self.home/'logs'/f'{self.count:04d}.txt'
        words = [w.format(data=self.data) for w in (PIPELINES[name] if isinstance(name, str) else name)]
        pid = self.ask(words=words, env={'MIRAGE_RUNS': str(runs), **env}, log=str(log), largest=largest,
                       kernel=kernel)
        return pid, log

    def wait(self, pid, seconds=600.):
        "Exit code, negative for a signal; None: it runs still"
        return self.ask(wait=pid, seconds=seconds)

    def run(self, name, runs, largest=0, **env):
        "Exit code, and what was said"
        pid, log = self.start(name, runs, largest, **env)
        code = self.wait(pid)
        assert code is not None, f'{name} hangs'
        return code, log.read_text()

    def close(self):
        self.job.stdin.close()
        self.job.wait()
        self.job.stdout.close()


def session(pid):
    "The processes of a session: a start is the first of its own"
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(') ')[2].split()
            if int(fields[3]) == pid and fields[0] != 'Z': found.append(int(stat.parent.name))
    return found


def kernels(pid):
    "The kernels that a start has begun, each in a session of its own"
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(') ')[2].split()
            if int(fields[1]) == pid and b'ipykernel_launcher' in (stat.parent/'cmdline').read_bytes():
                found.append(int(stat.parent.name))
    return found


def orphans(pid, seconds=15.):
    "What is left of a start after some seconds"
    until = time.monotonic() + seconds
    while (left := session(pid)) and time.monotonic() < until: time.sleep(.1)
    return left


TIMES = ('seconds', 'samples_per_s', 'waiting', 'finished', 'peak_memory_gb', 'train_seconds', 'device', 'started')


def timeless(value):
    "A value of a JSON file without what differs from start to start"
    if isinstance(value, dict): return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


NO_NUMBERS = r'\.lock$|^(\.finished|checks)/|library_warnings|paper/checklists|^index\.html'  # files


def results(runs):
    "Path below the runs folder -> hash of the numbers in it, of every file that holds numbers; others -> ''"
    found = {}
    for p in sorted(Path(runs).rglob('*')):
        name = p.relative_to(runs).as_posix()
        if p.is_dir() or re.search(NO_NUMBERS, name): continue
        content = b''
        if p.suffix in ('.safetensors', '.png', '.pt', '.npz') and '/paper/' not in name: content = p.read_bytes()
        elif p.name == 'result.json':
            text = json.dumps(timeless(json.loads(p.read_text())), sort_keys=True)
            content = text.replace(str(runs), 'RUNS').encode()
        elif p.suffix == '.csv':
            with open(p, newline='') as f: rows = list(csv.reader(f))
            keep = [i for i, c in enumerate(rows[0] if rows else []) if c not in TIMES]
            content = json.dumps([[r[i] for i in keep] for r in rows if len(r) > max(keep, default=0)]).encode()
        found[name] = hashlib.sha256(content).hexdigest()[:12] if content else ''
    return found


def left_behind(runs):
    "Temporary files, notes of what runs, folders that are half made"
    return sorted(p.relative_to(runs).as_posix() for p in Path(runs).rglob('*')
                  if p.name.endswith('.tmp') or re.search(r'\.[0-9a-f]{8}-\d+\.', p.name) or p.parent.name == '.running'
                  or p.name == 'state.pt')


def kill(pid, number):
    "Send a signal to all processes of a start"
    with contextlib.suppress(ProcessLookupError): os.killpg(pid, number)


SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP] if hasattr(signal, 'SIGKILL') else []

if __name__ == '__main__': serve()
