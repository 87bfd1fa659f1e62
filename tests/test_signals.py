"The system's requests to end (preemption, shutdown, a closed terminal) save the state of a training, as Ctrl-C does"
import json
import os
import signal
import threading
import time

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from mirage_nb import runs
from mirage_nb.signals import Stopped, heed_requests
from mirage_nb.train import loop
from mirage_nb.train.loop import fit
from mirage_nb.train.settings import FitSettings
from mirage_nb.train.state import load_training_state

pytestmark = pytest.mark.slow

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


class Points(Dataset):
    def __len__(self): return 6
    def __getitem__(self, key): return {'id': str(key[1]), 'x': torch.tensor([float(key[1])])}


class Line(nn.Linear):
    depth = 1

    def __init__(self):
        super().__init__(1, 1)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def layer_of(self, name): return 1

    def no_decay(self, name, p): return False


def state_and_event(folder):
    "Epoch and step of the saved state, and of the moment when the training ended"
    progress = load_training_state(folder/'state.pt')['progress']
    event = json.loads((folder/'progress.jsonl').read_text().splitlines()[-1])
    assert event['event'] == 'interrupted'
    return (progress['epoch'], progress['step']), (event['epoch'], event['step'])


@pytest.fixture(autouse=True)
def heard():
    "Answers to signals as a terminal starts a process with; jobs in the background of a shell ignore some"
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {k: signal.signal(k, v) for k, v in usual.items()}
    yield
    for k, v in before.items(): signal.signal(k, v)


@pytest.fixture
def asked(monkeypatch):
    "A signal at a certain call of a function: before the change of the weights, or in the middle of it"
    def at(number, n, owner, name):
        calls, real = [], getattr(owner, name)

        def ask(*args, **more):
            calls.append(1)
            if len(calls) == n:
                os.kill(os.getpid(), number)
                time.sleep(.2)  # a long step: the request is heard in it
            return real(*args, **more)
        monkeypatch.setattr(owner, name, ask)
    return at


def step(model, batch):
    return (model(batch['x']) - 2*batch['x'] - 1).square().mean()


def train(folder, model):
    torch.manual_seed(0)
    return fit(model, Points(), step, None, None, FitSettings(epochs=40, batch_size=2, lr=.01), folder)


@pytest.mark.parametrize(('owner', 'name', 'done'), [(nn.Linear, 'forward', 4), (torch.optim.AdamW, 'step', 5)],
                         ids=['before the weights change', 'while they change'])
@pytest.mark.parametrize('number', SIGNALS, ids=lambda s: s.name)
def test_a_training_that_is_asked_to_end_loses_no_step(number, owner, name, done, tmp_path, asked):
    "A change of the weights is completed, the state saved, and the same call gives the numbers of an undisturbed one"
    whole, again = Line(), Line()
    history = train(tmp_path/'whole', whole)
    with pytest.raises(KeyboardInterrupt) as e:
        asked(number, 5, owner, name)
        train(tmp_path/'cut', Line())
    if number != signal.SIGINT: assert f'asked to end by {number.name}; the same command goes on' in str(e.value)
    state, event = state_and_event(tmp_path/'cut')
    assert state == event and 3*state[0] + state[1] >= done, 'a step that was taken is not in the state'
    rows = train(tmp_path/'cut', again)
    assert [r['loss'] for r in rows] == [r['loss'] for r in history] and torch.equal(again.weight, whole.weight)
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_request_does_not_interrupt_the_saving(tmp_path, asked, monkeypatch):
    "A cluster asks all processes, and the runner asks the kernel too"
    save, saved = loop.save_training_state, []

    def slow(*args, **more):
        for s in SIGNALS: os.kill(os.getpid(), s)
        time.sleep(.2)
        saved.append(1)
        return save(*args, **more)

    asked(signal.SIGTERM, 2, torch.optim.AdamW, 'step')
    monkeypatch.setattr(loop, 'save_training_state', slow)
    with pytest.raises(Stopped): train(tmp_path, Line())
    state, event = state_and_event(tmp_path)
    assert saved and state == event


def test_who_ignores_a_signal_goes_on():
    "nohup starts a process so"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with heed_requests(): os.kill(os.getpid(), signal.SIGHUP)
    finally: signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_thread_changes_no_signal():
    found = []

    def work():
        with heed_requests(lambda: True): found.append(signal.getsignal(signal.SIGTERM))
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    assert found == [signal.SIG_DFL]


@pytest.mark.parametrize(('number', 'code', 'said'), [
    (signal.SIGTERM, 143, 'asked to end by SIGTERM; the same command goes on from the last saved state'),
    (signal.SIGHUP, 129, 'asked to end by SIGHUP; the same command goes on'),
    (signal.SIGINT, 130, 'interrupted; the same command goes on')], ids=lambda v: getattr(v, 'name', ''))
def test_the_command_says_that_it_goes_on(number, code, said, monkeypatch, capsys):
    "The exit code is that of a process that the signal ended, which a cluster's queue reads"
    def work(*args, **more):
        os.kill(os.getpid(), number)
        time.sleep(5)
    monkeypatch.setattr(runs, '_obey', work)
    assert runs.main(['seg_tune']) == code and said in capsys.readouterr().err


def test_an_ended_run_leaves_no_copy(home, monkeypatch):
    def work(notebook, handoff, parameters, console):
        handoff.write_text('{}')
        raise Stopped(signal.SIGTERM)
    monkeypatch.setattr(runs, '_execute', work)
    monkeypatch.setattr('mirage_nb.tasks.settings.check_parameters', lambda *a: None)
    desk = runs.runs_dir()/'.running'
    desk.mkdir(parents=True)
    for days in 2, 61:  # a run of another machine, whose files tell when it began
        (other := desk/f'a-{days}.00000000-1.json').touch()
        os.utime(other, (time.time() - days*24*3600,)*2)
    with pytest.raises(Stopped): runs.run_notebook('seg_tune', {'epochs': 7}, quiet=True)
    assert [p.name for p in desk.iterdir()] == ['a-2.00000000-1.json']
