"Encoders that are compiled by torch.compile, in processes of their own: PyTorch looks for a compiler once"
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
CODE = """
import sys, torch
from mirage_nb.models.inference import InferenceModel
from mirage_nb.models.zoo import build_encoder
torch.manual_seed(0)
net, x = build_encoder('mirage_tiny', size=[64, 64], modalities=['bscan']), {'bscan': torch.rand(1, 1, 64, 64)}
wanted = InferenceModel(net).encode(x).patches
try: found = InferenceModel(net, compiled=True).encode(x).patches
except RuntimeError as e: sys.exit(f'{type(e).__name__}: {e}')
print(float((found - wanted).abs().max()/wanted.abs().max()))
"""


def encoded(tmp_path, **env):
    "Compile a small encoder, with a cache of its own"
    return subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True,
                          env={**os.environ, 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path), **env})


@pytest.mark.skipif(not shutil.which('g++'), reason='no C++ compiler here')
@pytest.mark.long
def test_a_compiled_encoder_gives_the_same_tokens(tmp_path):
    done = encoded(tmp_path)
    assert not done.returncode, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < 1e-5


def test_a_missing_compiler_is_told(tmp_path):
    done = encoded(tmp_path, CXX='/not/there')
    assert done.returncode == 1, done.stderr[-2000:]
    assert 'RuntimeError: compile=True needs a C++ compiler' in done.stderr, done.stderr[-2000:]
