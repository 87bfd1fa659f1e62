"Sets made of a folder of scanner files: complete, taken up again, and without any name of a patient"
import io
import os
import stat

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from mirage_nb.data import vendor
from mirage_nb.data.classification import load_labelled
from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.paired import folder_pairs
from mirage_nb.data.segmentation import load_seg_data
from mirage_nb.data.unlabelled import hash_readable, unlabelled_images
from mirage_nb.data.unpacked import read_dataset
from mirage_nb.data.vendor import ImportSettings, import_scans
from mirage_nb.runs import main
from tests.data.scanners.made import ENDINGS, SECRETS, WHO, WRITERS, N, write_all

KINDS = tuple(k for k in ENDINGS if k != 'e2e')
ANY = ('near_duplicates', 'absent_class')
pytestmark = pytest.mark.filterwarnings('ignore:a key for pseudonyms')


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    return tmp_path


def leaks(folder):
    "Files below a folder whose name or content holds what names the patient; pixels do not count"
    found = []
    for p in folder.rglob('*'):
        name, text = str(p.relative_to(folder)).lower(), ''
        if p.suffix == '.png': text = str({**Image.open(p).info}).lower()
        elif p.is_file(): text = p.read_bytes().decode('latin-1').lower()
        found += [(name, s) for s in SECRETS if s in name or s in text]
    return found


@pytest.mark.parametrize('purpose', ['pretraining', 'prediction'])
def test_names_stay_behind(home, purpose, capfd):
    "A name, number and birth date in every field of every format, and in names of files, are nowhere"
    paths = write_all(home/'in')
    (home/'in'/f'{WHO.last}.vol').write_bytes(paths['vol'].read_bytes()[:3000])
    (home/'in'/f'{WHO.last}.dcm').write_bytes(paths['dicom'].read_bytes()[:-9])
    (home/'in'/f'{WHO.last} letter.docx').write_bytes(b'about')
    for _ in range(2):  # the second time it finds what is there
        assert main(['import', str(home/'in'), str(home/'set'), '--for', purpose, '--layers', 'ILM,BM']) == 1
    said = ''.join(capfd.readouterr()).lower().replace(str(home).lower(), '')
    assert not [s for s in SECRETS if s in said] and 'unread_' in said
    assert not leaks(home/'set')
    assert {p for p, _ in leaks(home/'keys')} == {'patients.csv'}  # the one place
    assert stat.S_IMODE(os.stat(home/'keys'/'patients.csv').st_mode) == 0o600
    samples = pd.read_csv(home/'set'/'samples.csv')
    known = samples[samples.patient.str.startswith('P')]
    assert known.patient.nunique() == 1 and known.volume.nunique() >= (4 if purpose == 'pretraining' else 6)


def test_pairs(home):
    "A set for pre-training is read by the pre-training, and lacks what a file lacks"
    write_all(home/'in', ('vol', 'xml', 'nifti'))
    made = import_scans(home/'in', home/'set', ImportSettings(size=32))
    pairs = folder_pairs(home/'set')
    assert len(pairs.ids) == 2*N and pairs.modalities == ('bscan', 'slo', 'bscanlayermap')
    assert list(np.unique(pairs.plane('bscanlayermap', 0))) == [*range(12)]
    assert made.left_out.slices.tolist() == [N] and made.left_out.boundaries.tolist() == ['']
    assert '3 B-scans of 1 volume left out: an SLO or a layer boundary that was asked for' in str(made)
    alone = import_scans(home/'in', home/'alone', ImportSettings(size=32, modalities=['bscan']))
    assert len(folder_pairs(home/'alone').ids) == len(alone.samples) == 3*N


def test_interrupted(home, monkeypatch):
    "Stopped between two images, an import goes on and ends as one that was not stopped"
    write_all(home/'in', KINDS)
    whole = import_scans(home/'in', home/'whole', ImportSettings('prediction')).samples
    real, left = vendor.write_plane, iter(range(7))

    def write(path, x):
        if next(left, None) is None: raise KeyboardInterrupt
        return real(path, x)
    monkeypatch.setattr(vendor, 'write_plane', write)
    with pytest.raises(KeyboardInterrupt): import_scans(home/'in', home/'set', ImportSettings('prediction'))
    notes = {p: p.stat().st_mtime_ns for p in (home/'set'/'files').iterdir()}
    monkeypatch.setattr(vendor, 'write_plane', real)
    again = import_scans(home/'in', home/'set', ImportSettings('prediction')).samples
    pd.testing.assert_frame_equal(again, whole)
    assert notes and all(p.stat().st_mtime_ns == t for p, t in notes.items())  # what was complete is not made again
    assert not list((home/'set').rglob('*.tmp'))
    for p in (home/'whole').rglob('*.png'):
        assert (home/'set'/p.relative_to(home/'whole')).read_bytes() == p.read_bytes()
    next((home/'set'/'bscan').iterdir()).unlink()
    import_scans(home/'in', home/'set', ImportSettings('prediction'))
    assert len(list((home/'set'/'bscan').iterdir())) == len(list((home/'whole'/'bscan').iterdir()))


def test_changed_bytes(home):
    "A pixel of another value cannot be seen in a file; that its bytes have changed since is said"
    path = write_all(home/'in', ('nifti',))['nifti']
    assert not import_scans(home/'in', home/'set', ImportSettings('prediction')).changed
    write_all(home/'in', ('nifti',), seed=1)
    made = import_scans(home/'in', home/'set', ImportSettings('prediction'))
    assert made.changed == 1 and '1 file changed since an earlier import: the bytes differ, and the images' in str(made)
    assert path.exists()


def test_copies_count_once(home):
    path = write_all(home/'in', ('vol',))['vol']
    (path.parent/'copy.vol').write_bytes(path.read_bytes())
    savemat(path.parent/'results.mat', {'dice': np.arange(4.)})  # no volume, and no fault
    made = import_scans(home/'in', home/'set', ImportSettings('prediction'))
    assert len(made.samples) == N and not len(made.faults) and made.passed == 1


def test_folder_of_images(home):
    "A folder for a prediction may hold images and volumes; images of an XML export count once"
    paths = write_all(home/'in', ('vol', 'xml', 'mhd', 'fundus'))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(home/'in'/'plain.png')
    (home/'in'/'cut.vol').write_bytes(paths['vol'].read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r'notes.txt passed over'):
        (home/'in'/'notes.txt').touch()
        table = hash_readable(unlabelled_images(home/'in'))
    good = table[table.fault == '']
    assert len(table) == 3*N + 1 + 1 + 1 and len(good) == 3*N + 2
    assert good.id.str.contains(r'_b0[0-2]$').sum() == 3*N and good.id.str.contains('_f00$').sum() == 1
    assert table.id.is_unique and 'plain' in set(table.id)
    bad = table[table.fault != ''].iloc[0]
    assert bad.id.startswith('unread_') and 'its header states 3 B-scans of 20 x 24' in bad.fault
    assert not [s for s in SECRETS if s in good.drop(index=good[good.id == 'plain'].index).to_string().lower()]
    assert not leaks(home/'runs')


def test_table_of_volumes(home):
    "A table may name volumes; each B-scan has the row of its file"
    path = write_all(home/'in', ('vol',))['vol']
    table = io.StringIO()
    pd.DataFrame({'file': [path.relative_to(home/'in')], 'arm': ['A']}).to_csv(table, index=False)
    (home/'in'/'list.csv').write_text(table.getvalue())
    found = unlabelled_images(home/'in'/'list.csv')
    assert found.arm.tolist() == ['A']*N and found.id.str.startswith('P').all()
    assert unlabelled_images(path).id.tolist() == found.id.tolist()


def test_nothing_to_import(home, capsys):
    (home/'in').mkdir()
    assert main(['import', str(home/'in'), str(home/'set')]) == 1
    assert 'holds no file of a scanner among 0 files' in capsys.readouterr().err
    assert not (home/'set').exists()
    with pytest.raises(SystemExit): main(['import', '--for', 'nothing', 'a'])


def test_classes(home, monkeypatch):
    "Files in class folders become class folders of B-scans, whose patients are known"
    for i, place in enumerate(('train/AMD', 'train/normal', 'val/AMD', 'val/normal', 'test/AMD', 'test/normal')):
        (home/'in'/place).mkdir(parents=True)
        WRITERS['nifti'](home/'in'/place/f'{WHO.last}.nii.gz', seed=i)
    WRITERS['vol'](home/'in'/'lost.vol')
    made = import_scans(home/'in', home/'set', ImportSettings('classification'))
    assert made.faults.fault.tolist() == ['it lies in no folder of a class'] and len(made.samples) == 6*N
    monkeypatch.setenv('MIRAGE_DATA', str(home))
    data = load_labelled(read_manifest('set'))
    assert data.classes == ('AMD', 'normal') and data.table.groupby('split').patient.nunique().tolist() == [2, 2, 2]
    assert not len(data.leaks) and not leaks(home/'set')


def save_twice(folder, form, n=5):
    "Two eyes of each patient, whom only a folder names; with masks if the folder is images"
    for i in range(n):
        for k, eye in enumerate(('od', 'os')):
            path = folder/form.format(i=i, c='AMD' if i % 2 else 'normal')/f'{eye}.nii.gz'
            path.parent.mkdir(parents=True, exist_ok=True)
            x = np.random.default_rng(2*i + k).integers(0, 255, (24, 20, N)).astype(np.uint8)
            nibabel.Nifti1Image(x, np.eye(4)).to_filename(path)
            if 'images' not in path.parts: continue
            mask = path.parents[2]/'masks'/path.parent.name/path.name
            mask.parent.mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(x//128, np.eye(4)).to_filename(mask)


@pytest.mark.parametrize('form', ['{c}/P0{i}', 'images/P0{i}'])
def test_folders_of_patients_hold_two_eyes_together(home, form, monkeypatch):
    "A patient whom a folder names is one, as in a dataset of images, and lies in one split"
    monkeypatch.setenv('MIRAGE_DATA', str(home))
    save_twice(home/'Eyes', form, 10)
    with pytest.warns(UserWarning, match='each folder of volumes counts as a patient, 10 in all'):
        manifest = read_dataset('Eyes')
    if form.startswith('images'):
        table = pd.concat(load_seg_data(manifest, '0.6/0.2/0.2', ANY).tables.values())
        table['patient'] = table.id.str[:13]
    else: table = load_labelled(manifest, ANY, splits='0.6/0.2/0.2').table
    assert table.patient.nunique() == 10 and table.patient.str.startswith('P').all()
    assert len(table) == 20*N and table.groupby('patient').split.nunique().max() == 1


@pytest.mark.parametrize('pattern, patients', [('^(P[0-9]+)/', 4), ('/(P[0-9]+)/', 4), (r'^P(\d+)?_', 8), ('^(o)', 1)])
def test_a_pattern_is_searched_in_names_and_folders(home, pattern, patients):
    "A group that is not in the match names nobody"
    save_twice(home/'in', '{c}/P0{i}', 4)
    for p in [*(home/'in').rglob('*.gz')] if patients == 8 else []: p.rename(p.with_name(f'P_{p.name}'))
    made = import_scans(home/'in', home/'set', ImportSettings('classification', patient=pattern))
    assert made.samples.patient.nunique() == patients and not len(made.faults)


def test_a_pattern_without_end_stops_at_once(home):
    save_twice(home/'in', '{c}', 2)
    for i, p in enumerate((home/'in').rglob('*.gz')): p.rename(p.with_name('a'*60 + f'{i}.nii.gz'))
    with pytest.raises(ValueError, match='did not come to an end in 1 s on the name of a file: it repeats') as e:
        import_scans(home/'in', home/'set', ImportSettings('classification', patient='^(a|aa|b)+$'))
    assert 'aaaaa' not in str(e.value)


def test_another_key_makes_another_set(home, monkeypatch):
    "No pseudonym of an earlier key stays among those of the new one"
    monkeypatch.setenv('MIRAGE_DATA', str(home))
    for i, place in enumerate(('train/AMD', 'train/normal', 'test/AMD', 'test/normal')):
        (home/'Eyes'/place).mkdir(parents=True)
        for k in range(2): WRITERS['vol'](home/'Eyes'/place/f'{k}.vol', seed=2*i + k)
    first = load_labelled(read_dataset('Eyes'), (*ANY, 'patients')).table.patient
    settings = ImportSettings('classification')
    import_scans(home/'Eyes', home/'set', settings)
    monkeypatch.setenv('MIRAGE_KEYS', str(home/'other'))
    again = load_labelled(read_dataset('Eyes'), (*ANY, 'patients')).table.patient
    assert first.nunique() == again.nunique() == 1 and not set(first) & set(again)
    with pytest.raises(ValueError, match='was made with other settings: key=U[0-9a-f]{12}; take another folder'):
        import_scans(home/'Eyes', home/'set', settings)


@pytest.mark.parametrize('top', ['', 'train/'])
def test_folders_of_patients_are_no_classes(home, top, monkeypatch):
    "Three patients without a manifest are refused by number; no name is told or kept"
    monkeypatch.setenv('MIRAGE_DATA', str(home))
    for name in (WHO.last, f'{WHO.last}_Hans', f'{WHO.last}_Eva'):
        save_twice(home/'Eyes', f'{top}{name}', 1)
    with pytest.raises(ValueError, match='none of its 3 folders holds more than two volumes, as folders of') as e:
        read_dataset('Eyes')
    assert 'manifest.toml' in str(e.value) and 'in a table' in str(e.value)
    assert not [s for s in SECRETS if s in str(e.value).lower().replace(str(home).lower(), '')]
    assert not (home/'runs').exists() or not leaks(home/'runs')
    (home/'Eyes'/'manifest.toml').write_text(
        'title = "Eyes"\ntask = "classification"\nmodality = "bscan"\nlayout = "classes"\nsource = "s"\n'
        'licence = "l"\ncitation = "c"\nget = "g"\n')
    manifest = read_dataset('Eyes')
    assert manifest.unpacked and not [n for n in os.listdir(manifest.unpacked/top) if WHO.last in n]
    table = pd.read_csv(manifest.unpacked/'samples.csv')
    assert set(table.label) == {WHO.last, f'{WHO.last}_Hans', f'{WHO.last}_Eva'}
    assert {k.split('/')[-2] for k in table.image} == {'0', '1', '2'}
    assert all((manifest.unpacked/k).is_file() for k in table.image)
