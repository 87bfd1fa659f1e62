"Fixtures that several test files share"
import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def golden():
    "Folder of recorded numbers; sizes, names and options come from its files"
    folder = Path(os.environ.get('MIRAGE_GOLDEN') or Path(__file__).parent/'golden')
    assert folder.is_dir(), f'no golden folder {folder}'
    return folder


@pytest.fixture(scope='session')
def shared_data():
    "Folder of real images, which a user's clone does not have"
    shared = Path(os.environ.get('MIRAGE_SHARED') or Path(__file__).parents[2]/'shared')
    if not (shared/'data').is_dir(): pytest.skip(f'no real images: {shared}/data is absent; MIRAGE_SHARED names it')
    return shared/'data'
