"Jobs of Slurm: what is asked for, what is followed"
import pickle
from dataclasses import replace

import pytest
import submitit

from mirage_nb.launch import local as launch_local
from mirage_nb.launch import slurm
from mirage_nb.recipes.pretraining import MultiMAERecipe, pretrain_recipe
from tests.fake_slurm import make_slurm

# ------------------------------------------------------------------ Slurm


@pytest.fixture
def cluster(tmp_path, monkeypatch): return make_slurm(tmp_path, monkeypatch)


def slurm_settings(**changed):
    return replace(pretrain_recipe('pre_mirage', MultiMAERecipe), nodes=2, workers=6, **changed)


def done_at_once(folder):
    "In place of following a job: its tasks are done"
    def follow(runs, end, record, epochs):
        for i in range(2): (folder/'slurm'/f'77_{i}_result.pkl').write_bytes(pickle.dumps(('success', None)))
        (folder/'history.csv').write_text('epoch,loss\n1,2.5\n')
    return follow


def test_slurm_gets_what_is_asked_for(home, cluster, monkeypatch):
    folder = home/'my run'
    monkeypatch.setattr(slurm, 'follow_progress', done_at_once(folder))
    asked = 'gpu,gpus=a100:4,time=2-00:00:00,account=abc,qos=long,mem=200G,constraint=big,exclusive'
    assert launch_local.launch_training(slurm_settings(slurm=asked), folder).loss.tolist() == [2.5]
    lines = set((cluster/'batch.txt').read_text().splitlines())
    for want in ('partition=gpu', 'gpus-per-node=a100:4', 'time=2880', 'account=abc', 'qos=long', 'mem=200G',
                 'exclusive', 'constraint=big', 'nodes=2', 'ntasks-per-node=1', 'cpus-per-task=8'):
        assert f'#SBATCH --{want}' in lines
    command = next(k for k in lines if k.startswith('srun'))
    assert '--cpus-per-task=8' in command and f"'{folder}/slurm'" in command
    sent = submitit.SlurmJob(folder/'slurm', '77', range(2)).submission()
    assert sent._timeout_countdown > 10_000 and sent.function.folder == folder


def test_slurm_without_gpus(home, cluster, monkeypatch, caplog):
    monkeypatch.setattr(slurm, 'follow_progress', done_at_once(home/'run'))
    launch_local.launch_training(slurm_settings(slurm='cpu,cpus=3'), home/'run')
    text = (cluster/'batch.txt').read_text()
    assert '--gpus' not in text and 'cpus-per-task=3' in text and 'time=1440' in text
    assert "slurm is 'cpu,cpus=3' and asks for no GPUs; with gpus=N" in caplog.text


def test_living_job_is_followed(home, cluster, monkeypatch, caplog):
    folder, cfg = home/'run', slurm_settings(slurm='gpu,gpus=1')
    def lost(*a): raise KeyboardInterrupt
    monkeypatch.setattr(slurm, 'follow_progress', lost)
    def submitted(): return (cluster/'batch.txt').read_text().count('#!/bin/bash')
    for alive, n in (('', 1), ('RUNNING', 1), ('', 2)):
        (cluster/'alive.txt').write_text(alive)
        with pytest.raises(KeyboardInterrupt): launch_local.launch_training(cfg, folder)
        followed = 'job 77 was submitted before and is still running' in caplog.text
        assert submitted() == n and followed == (alive == 'RUNNING')
        caplog.clear()
    (cluster/'alive.txt').unlink()
    with pytest.raises(RuntimeError, match='squeue does not tell whether job 77 of .*run still runs: .*alive.txt'):
        launch_local.launch_training(cfg, folder)
    (cluster/'alive.txt').write_text('PENDING')
    monkeypatch.setattr(slurm, 'follow_progress', done_at_once(folder))
    assert launch_local.launch_training(cfg, folder).loss.tolist() == [2.5] and submitted() == 2
