"Arrays of Slurm jobs: what is asked for, what is followed"
import pytest

from mirage_nb.sweeps.arrays import make_array
from mirage_nb.sweeps.cells import Cell
from tests.fake_slurm import make_slurm

CELLS = [Cell('seg_tune', {'seed': i}) for i in range(3)]


@pytest.fixture
def cluster(home, monkeypatch): return make_slurm(home, monkeypatch)


def test_slurm_gets_an_array(cluster, home):
    starter = make_array(CELLS, 'gpu,gpus=a100:1,time=4:00:00,account=abc', home/'my sweep', jobs=2)
    assert starter.places == 3
    handles = starter.start(CELLS)
    lines = set((cluster/'batch.txt').read_text().splitlines())
    for want in ('array=0-2%2', 'partition=gpu', 'gpus-per-node=a100:1', 'time=240', 'account=abc', 'cpus-per-task=4'):
        assert f'#SBATCH --{want}' in lines, want
    assert [h.job.job_id for h in handles] == ['77_0', '77_1', '77_2'] and all(h.waits for h in handles)
    sent = handles[1].job.submission()
    assert sent.function.desk == CELLS[1].desk and sent._timeout_countdown > 10_000
    handles[0].stop()
    assert (cluster/'ended.txt').read_text().split()[-1] == '77_0'


def test_living_jobs_are_followed(cluster, home):
    make_array(CELLS, 'gpu,gpus=1', home/'sweep').start(CELLS)
    (cluster/'alive.txt').write_text('12\n77_1\n')
    again = make_array(CELLS, 'gpu,gpus=1', home/'sweep').start(CELLS)
    assert (cluster/'batch.txt').read_text().count('#!/bin/bash') == 2, 'one array for each call'
    assert '#SBATCH --array=0-1%2' in (cluster/'batch.txt').read_text(), 'the living job is not submitted again'
    assert [h.job.job_id for h in again] == ['77_0', '77_1', '77_1']
    (cluster/'alive.txt').unlink()
    with pytest.raises(RuntimeError, match='squeue does not tell which jobs still run: .*alive.txt.* Try again'):
        make_array(CELLS, 'gpu,gpus=1', home/'sweep').start(CELLS)


def test_an_array_without_gpus(cluster, home, caplog):
    make_array(CELLS, 'cpu', home/'sweep').start(CELLS[:1])
    text = (cluster/'batch.txt').read_text()
    assert '--gpus' not in text and '--array' not in text and 'time=1440' in text
    assert "slurm is 'cpu' and asks for no GPUs; with gpus=1 after it, each cell gets one" in caplog.text
