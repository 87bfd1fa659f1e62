"A report from a live kernel: what it has executed and shown, in the cells of the pipeline notebook"
import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mirage_nb.report.live import read_live_notebook

pytestmark = pytest.mark.slow

SOURCE = ['import sys\nfrom mirage_nb.report.live import keep_displays\nkeep_displays()',
          'dataset = "A"  # name\nlr = None  # rate\nepochs = 3  # number', 'f"lr {lr}"',
          'print("seen by all")\nsys.stderr.write("a message")', 'f"{epochs} epochs of {dataset}"']
WRITE = '''
import nbformat
from pathlib import Path
from mirage_nb.report.live import read_live_notebook
nbformat.write(read_live_notebook(Path('source.ipynb')), 'out.ipynb')
'''


@pytest.fixture
def live(tmp_path):
    "Executes inputs in one kernel, and gives the cells of code that the report gets"
    cells = [new_markdown_cell('# Toy'), *(new_code_cell(s) for s in SOURCE)]
    cells[2].metadata['tags'] = ['parameters']
    nbformat.write(new_notebook(cells=cells), tmp_path/'source.ipynb')

    def run(*inputs):
        notebook = new_notebook(cells=[new_code_cell(s) for s in (*inputs, WRITE)])
        notebook.metadata['kernelspec'] = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
        NotebookClient(notebook, allow_errors=True, resources={'metadata': {'path': str(tmp_path)}}).execute()
        made = nbformat.read(tmp_path/'out.ipynb', 4)
        assert made.cells[0].source == '# Toy'
        return [c for c in made.cells if c.cell_type == 'code' and c.source != WRITE.strip()]
    return run


def shown(cell):
    return [o.get('text') or o.data.get('text/plain') or ''.join(o.get('traceback', [])) for o in cell.outputs]


def test_outputs_come_back_in_their_cells(live):
    cells = live(*SOURCE)
    assert [c.source for c in cells] == SOURCE and [shown(c) for c in cells[:3]] == [[], [], ["'lr None'"]]
    assert ['seen by all\n', 'a message'] == shown(cells[3])[:2] and cells[3].outputs[1].name == 'stderr'
    assert shown(cells[4]) == ["'3 epochs of A'"]


def test_second_pass_with_another_parameter(live):
    changed = SOURCE[1].replace('3', '5')
    cells = live(*SOURCE, '"of the first pass"', SOURCE[0], changed, *SOURCE[2:])
    assert [c.source for c in cells] == [SOURCE[0], changed, *SOURCE[2:]]
    assert shown(cells[4]) == ["'5 epochs of A'"]
    again = live(*SOURCE, changed, SOURCE[2])  # the cells below were not executed again
    assert [shown(c) for c in again] == [[], [], ["'lr None'"], [], []]


def test_added_edited_repeated_and_failed_inputs(live):
    figure = 'import matplotlib.pyplot as plt\nplt.plot([1, 2]);'
    inputs = [*SOURCE[:2], '# Parameters\nlr = 0.1', SOURCE[2], figure, '1/0', '7*6', SOURCE[3],
              'f"{epochs} epochs of {dataset}!"', '7*6']
    cells = live(*inputs)
    assert [c.source for c in cells] == [*inputs[:5], *inputs[7:]]  # without the failed one; of '7*6' the last stays
    assert cells[2].metadata['tags'] == ['injected-parameters'] and shown(cells[3]) == ["'lr 0.1'"]
    assert [o for o in cells[4].outputs if 'image/png' in o.get('data', {})], 'a figure that was displayed is lost'
    assert shown(cells[-2]) == ["'3 epochs of A!'"] and shown(cells[-1]) == ['42']


OLD = '''
from types import SimpleNamespace
from mirage_nb.report import live
shell = get_ipython()
history = SimpleNamespace(input_hist_raw=shell.history_manager.input_hist_raw)
live._shell = lambda: SimpleNamespace(history_manager=history, user_ns=shell.user_ns,
                                      display_formatter=shell.display_formatter)
'''


def test_a_kernel_that_keeps_only_values(live):
    "IPython 8 keeps no outputs, only the values of cells: these come back, formatted again"
    cells = live(*SOURCE, 'import pandas as pd\npd.DataFrame({"a": [1]})', OLD)
    assert [c.source for c in cells][:5] == SOURCE
    assert shown(cells[2]) == ["'lr None'"] and shown(cells[3]) == ['9'] and shown(cells[4]) == ["'3 epochs of A'"]
    assert '<table' in cells[5].outputs[0].data['text/html']


def test_without_a_kernel(tmp_path):
    nbformat.write(new_notebook(cells=[new_code_cell('1')]), tmp_path/'a.ipynb')
    assert read_live_notebook(tmp_path/'a.ipynb') is None
