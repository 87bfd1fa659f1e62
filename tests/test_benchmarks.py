"Each benchmark can be started: what it measures is still there"
import importlib
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).resolve().parents[1]/'benchmarks').glob('bench_*.py'))


@pytest.mark.slow
@pytest.mark.parametrize('name', [p.stem for p in FILES])
def test_a_benchmark_is_imported(name): assert callable(importlib.import_module(f'benchmarks.{name}').run)
