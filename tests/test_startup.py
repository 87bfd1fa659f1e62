"What a start imports: what takes seconds is imported by those who need it"
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOW = {'torch', 'torchvision', 'timm', 'monai', 'matplotlib', 'seaborn', 'scipy', 'sklearn', 'papermill', 'nbformat'}


def imported(code, *words):
    "Modules of `SLOW` that a process has imported when the code has run"
    code += f'\nimport sys; print("modules", sorted({SLOW} & {{*sys.modules}}))'
    done = subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, cwd=ROOT)
    assert not done.returncode, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize('words', [['--help'], ['seg_tune', '--help'], ['cls_eval', '--help'], ['list', '--help']])
def test_help_imports_nothing_slow(words):
    code = 'import sys\nfrom mirage_nb.runs import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass'
    assert imported(code, *words) == 'modules []'


def test_runs_is_imported_without_anything_slow():
    assert imported('import mirage_nb, mirage_nb.runs, mirage_nb.report.live') == 'modules []'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['30_seg_tune', '51_cls_eval'])
def test_first_cell_leaves_out_what_few_need(name):
    cells = json.loads((ROOT/'nbs'/f'{name}.ipynb').read_text())['cells']
    first = next(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
    found = imported(first)
    assert not any(repr(k) in found for k in ('torchvision', 'timm', 'monai', 'papermill', 'nbformat')), found
