"Patients whose images lie in folders of their own"
from itertools import product

import numpy as np
import pytest
from PIL import Image

from mirage_nb.data.classification import load_labelled
from mirage_nb.data.manifest import read_manifest


@pytest.fixture
def noise(tmp_path, monkeypatch):
    "Writes another image at each call"
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    rng = np.random.default_rng(0)
    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(path)
    return write


@pytest.mark.parametrize('name, patients', [('{c}{p:02d}', 12), ('P{p}', 6), ('{p}', 12)])
def test_folders_in_classes_are_patients(tmp_path, noise, name, patients):
    for c, p, i in product(('AMD', 'normal'), range(1, 7), range(3)):
        noise(tmp_path/'Clinic'/c/name.format(c=c, p=p)/f'{i}.png')
    with pytest.warns(UserWarning, match=f'each folder in a class counts as a patient, {patients} in all'):
        data = load_labelled(read_manifest(tmp_path/'Clinic'), splits='')
    assert data.drawn.startswith(f'drawn by patient ({patients})') and data.table.patient.nunique() == patients
    assert data.table.groupby('patient').split.nunique().eq(1).all() and len(data.table) == 36


def test_a_folder_of_a_patient_in_two_splits_is_a_leak(tmp_path, noise):
    for (s, p), c in product((('train', 1), ('train', 2), ('test', 2), ('test', 3)), ('AMD', 'normal')):
        noise(tmp_path/'Clinic'/s/c/f'{c}{p}'/'1.png')
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='patient AMD2 in train, test'):
        load_labelled(read_manifest(tmp_path/'Clinic'), ())


def test_folders_that_may_be_patients_or_classes_are_refused_with_a_reason(tmp_path, noise):
    for v in ('AMD1', 'AMD2', 'NORMAL1'): noise(tmp_path/'Volumes'/v/'TIFFs'/'1.png')
    with pytest.raises(FileNotFoundError, match='as AMD1/TIFFs, AMD2/TIFFs, .* may be classes, patients or sites'):
        read_manifest(tmp_path/'Volumes')
