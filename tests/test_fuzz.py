"Damaged files of every kind are refused by name; MIRAGE_FUZZ=N makes N rounds of each, MIRAGE_FUZZ_SEED others"
import os
import sys

import pytest

from tests.fuzz_harness import all_cases, fuzz

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='memory is limited as on Linux')


def test_damaged_files_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))
    rounds, seed = int(os.environ.get('MIRAGE_FUZZ', 8)), int(os.environ.get('MIRAGE_FUZZ_SEED', 15))
    counts, bad = fuzz(all_cases(), rounds, seed, tmp_path)
    print(dict(counts))
    shown = '\n'.join(f'{name}, {kind}: {verdict}, {text}' for name, kind, verdict, text, _ in bad[:40])
    assert not bad, f'{len(bad)} of {sum(counts.values())} damaged files:\n{shown}'
