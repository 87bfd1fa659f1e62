"A Slurm for tests: it keeps what is submitted, and runs nothing"
import os


def make_slurm(folder, monkeypatch):
    "Its commands submit as job 77, and say that what alive.txt lists still runs; ended.txt has what was cancelled"
    made = folder/'cluster'
    made.mkdir()
    for name, line in {'sbatch': f'cat "$1" >> {made}/batch.txt; echo Submitted batch job 77', 'srun': 'exit 1',
                       'squeue': f'cat {made}/alive.txt', 'scancel': f'echo $* >> {made}/ended.txt',
                       'sacct': 'exit 1'}.items():
        (made/name).write_text(f'#!/bin/sh\n{line}\n')
        (made/name).chmod(0o755)
    (made/'alive.txt').touch()
    monkeypatch.setenv('PATH', f'{made}:{os.environ["PATH"]}')
    return made
