"What `import mirage_nb` offers a script"
import subprocess
import sys

import numpy as np
import pytest
from pages import finish
from PIL import Image

import mirage_nb


def test_import_takes_nothing_with_it():
    code = 'import sys, mirage_nb; print({"torch", "pandas", "mirage_nb.runs"} & {*sys.modules})'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'set()'
    assert {*mirage_nb.__all__} <= {*dir(mirage_nb)} and all(getattr(mirage_nb, k).__doc__ for k in mirage_nb.__all__)
    with pytest.raises(AttributeError, match="module 'mirage_nb' has no attribute 'train_all'"): mirage_nb.train_all  # noqa: B018


RUNS = {'cls_tune': {'dataset': 'Phantom_OCT', 'epochs': 2, 'size': 32, 'baselines': False},
        'seg_tune': {'dataset': 'Phantom_OCT', 'epochs': 1, 'size': 32, 'head': 'linear', 'baselines': False}}
SCRIPT = f'RUNS = {RUNS}' + '''
import sys
from pathlib import Path
import mirage_nb

images, out = map(Path, sys.argv[1:])
tuned = mirage_nb.run('cls_tune', **RUNS['cls_tune'])
assert tuned.settings['epochs'] == 2 and tuned.report.exists() and len(tuned.history) == 2
again = mirage_nb.read_run(tuned.folder)
assert again.metrics == tuned.metrics and 'balanced accuracy' in tuned.metrics['linear probe']
scores = mirage_nb.evaluate(tuned.folder/'predictions_test.csv', resamples=200)
assert scores.means['balanced accuracy'] == tuned.metrics['linear probe']['balanced accuracy']
classes = mirage_nb.predict(tuned, images)
assert len(classes) == 2 and 'score:normal' in classes

seg = mirage_nb.run('seg_tune', **RUNS['seg_tune'])
scores = mirage_nb.evaluate(seg.folder/'predictions', dataset='Phantom_OCT')
assert scores.means == seg.metrics['fine-tuned']
masks = mirage_nb.predict(seg.folder, images, out, overlay='contour')
for k in ('file', 'overlay'): assert all((out/f).exists() for f in masks[k])
print(mirage_nb.load_model('mirage_tiny').encode({'bscan': __import__('torch').rand(1, 1, 64, 64)}).summary.shape)
'''


@pytest.mark.slow
def test_as_a_script_uses_it(home, tmp_path, monkeypatch):
    "Find two runs, read, evaluate, predict, load; test_docs runs one from a script, in its kernel"
    with monkeypatch.context() as m: made = [finish(stage, values, m, tmp_path) for stage, values in RUNS.items()]
    (tmp_path/'images').mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50), np.uint8)
        Image.fromarray(pixels).save(tmp_path/'images'/f'{i}.png')
    (tmp_path/'script.py').write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(tmp_path/'script.py'), str(tmp_path/'images'), str(tmp_path/'out')],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {(p/'report.html').read_text() for p in made} == {'a page'}, 'a run was not found but made again'
    assert done.stdout.strip().endswith('torch.Size([1, 192])')
