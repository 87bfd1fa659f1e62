"Warnings as a user of a command sees them: those of the kit in words, those of libraries in a file of the run"
import os
import subprocess
import sys

from PIL import Image

from mirage_nb.storage import write_json
from mirage_nb.told_names import HANDOFF

ROOT = __file__.rpartition('/tests/')[0]
CODE = '''
import warnings
import numpy as np
from mirage_nb.commands.notices import show_in_words
assert show_in_words()
from mirage_nb.data.folders import list_images
for _ in range(2): list_images({images!r})
for _ in range(3): np.log(np.zeros(1))                     # raised by compiled code
warnings.warn_explicit('old', UserWarning, '/x/site-packages/torch/a.py', 3)
'''


def test_ours_in_words_and_those_of_libraries_in_a_file(tmp_path):
    images, run = tmp_path/'images', tmp_path/'run'
    images.mkdir()
    run.mkdir()
    Image.new('L', (4, 4)).save(images/'a.png')
    (images/'b.docx').write_text('x')
    write_json(tmp_path/'handoff.json', {'folder': str(run)})
    env = {**os.environ, HANDOFF: str(tmp_path/'handoff.json'), 'PYTHONPATH': ROOT}
    env.pop('PYTHONWARNINGS', None)
    words = [sys.executable, '-c', CODE.format(images=str(images))]
    out = subprocess.run(words, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    lines = out.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f'warning: {images}: b.docx'), out.stderr
    kept = (run/'library_warnings.txt').read_text()
    assert 'RuntimeWarning in ' in kept and 'divide by zero' in kept
    assert '1 x UserWarning in torch/a.py, line 3: old\n' in kept, kept
