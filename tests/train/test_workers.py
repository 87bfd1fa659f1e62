"Processes that read data and a small shared memory, as containers have: fewer processes and a warning, never a hang"
import logging
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from mirage_nb.train import workers as train_workers
from mirage_nb.train.loop import fit
from mirage_nb.train.settings import FitSettings
from mirage_nb.train.workers import choose_workers, workers_that_fit

MB = 2**20


@pytest.mark.parametrize(('free', 'fits'), [
    (10**12, 8), (64*MB, 8), (40*MB, 8), (39*MB, 7), (12*MB, 1), (11*MB, 0), (0, 0)])
def test_what_fits(free, fits):
    "Each process prepares two batches, four more wait or are in use; 8 of them with batches of 2 MB need 40 MB"
    assert workers_that_fit(8, 2*MB, free) == fits


@pytest.fixture
def free(monkeypatch):
    return lambda size: monkeypatch.setattr(train_workers, '_free_shared_memory', lambda: size)


def batch(): return {'image': torch.zeros(1, 1, 512, 1024), 'id': ['a']}  # 2 MB


@pytest.mark.parametrize(('size', 'count', 'processes', 'fits', 'said'), [
    (64*MB, 1, 1, 4, ''), (64*MB, 8, 1, 0, '64 MB free: the training reads its data itself'),
    (64*MB, 4, 1, 2, 'need 96 MB of shared memory for their batches of 8 MB'),
    (256*MB, 8, 2, 2, '128 MB free for each training process: 2 of them read data'), (2**40, 999, 1, 4, '')])
def test_a_warning_says_what_is_short_and_how_to_get_more(size, count, processes, fits, said, free, caplog):
    free(size)
    with caplog.at_level(logging.WARNING): assert choose_workers(4, batch, count, processes) == fits
    assert said in caplog.text and bool(caplog.records) == bool(said)
    assert not said or '--shm-size=8g' in caplog.text and '/dev/shm' in caplog.text


class Points(Dataset):
    "Points that say which process read them"
    def __len__(self): return 4
    def __getitem__(self, key): return {'id': str(key[1]), 'x': torch.tensor([float(key[1])]), 'process': os.getpid()}


class Line(nn.Linear):
    depth = 1

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(1, 1)

    def layer_of(self, name): return 1

    def no_decay(self, name, p): return False


@pytest.mark.slow
def test_a_training_takes_what_fits(tmp_path, free, caplog):
    "The numbers are those of a training that reads its data itself"
    readers, rows = [], []

    def step(model, batch):
        readers[-1] |= set(batch['process'].tolist())
        return model(batch['x']).square().mean()
    for i, (size, workers) in enumerate(((2**40, 2), (6*16384, 2), (1000, 2), (2**40, 0))):
        free(size)
        readers.append(set())
        settings = FitSettings(epochs=2, batch_size=2, lr=.01, workers=workers)
        rows.append(fit(Line(), Points(), step, None, None, settings, tmp_path/str(i))[-1]['loss'])
    assert [len(r) for r in readers] == [2, 1, 1, 1] and os.getpid() not in readers[0] | readers[1]
    assert {os.getpid()} == readers[2] == readers[3]
    assert len(set(rows)) == 1 and 'reads its data itself' in caplog.text


@pytest.mark.skipif(not Path('/dev/shm').is_dir(), reason='this system has no /dev/shm')
def test_the_free_memory_of_this_machine():
    assert 0 < train_workers._free_shared_memory() < 2**50
