"What tests of tasks share"
import pytest


@pytest.fixture
def data(home, monkeypatch):
    "An empty MIRAGE_DATA, and the working directory in it"
    folder = home/'data'
    folder.mkdir()
    monkeypatch.setenv('MIRAGE_DATA', str(folder))
    monkeypatch.chdir(folder)
    return folder
