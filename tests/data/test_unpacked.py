"Datasets whose files are volumes: labelled by folders or masks, and without any name of a patient"
import json
import re
import warnings

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from mirage_nb.commands.check import check_dataset
from mirage_nb.data.classification import load_labelled
from mirage_nb.data.manifest import classes_of, dataset_dir
from mirage_nb.data.segmentation import load_seg_data
from mirage_nb.data.unpacked import read_dataset
from mirage_nb.data.vendor import ImportSettings, import_scans
from tests.data.scanners.made import ENDINGS, SECRETS, WHO, WRITERS, H, N, W, pixels
from tests.data.test_vendor import leaks

pytestmark = [pytest.mark.filterwarnings('ignore:a key for pseudonyms'),
              pytest.mark.filterwarnings('ignore:.* state no patient')]
ANY = ('near_duplicates', 'absent_class')
CASES = [k for k in ENDINGS if k != 'e2e']


@pytest.fixture
def home(tmp_path, monkeypatch):
    for k in ('KEYS', 'RUNS', 'DATA'): monkeypatch.setenv(f'MIRAGE_{k}', str(tmp_path/k.lower()))
    (tmp_path/'data').mkdir()
    return tmp_path/'data'


def by_class(folder, kinds=('nifti',), places=('AMD', 'normal'), each=4):
    "Volumes in class folders, the patient's name in each file name"
    seed = 0
    for place in places:
        (folder/place).mkdir(parents=True)
        for i in range(each):
            kind = kinds[i % len(kinds)]
            WRITERS[kind](folder/place/f'{WHO.last}_{i}{kind}{ENDINGS[kind]}', seed=(seed := seed + 1))


def save_nifti(path, x):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(np.ascontiguousarray(x.T), np.eye(4)).to_filename(path)


def save_mhd(path, x, kind='MET_UCHAR'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix('.raw').write_bytes(x.tobytes())
    path.write_text(f'ObjectType = Image\nNDims = 3\nPatientName = {WHO.last}\nDimSize = {x.shape[2]} {x.shape[1]} '
                    f'{x.shape[0]}\nElementType = {kind}\nElementSpacing = 0.0118 0.0039 0.24\n'
                    f'ElementDataFile = {path.stem}.raw\n')


def masks(seed, top=4): return np.random.default_rng(seed).integers(0, top, (N, H, W)).astype(np.uint8)


def retouch(folder, n=6):
    for i in range(n):
        save_mhd(folder/f'TRAIN00{i}'/'oct.mhd', pixels(i))
        save_mhd(folder/f'TRAIN00{i}'/'reference.mhd', masks(i))


def masked(folder, n=6, form='{}/{}.nii.gz'):
    "Volumes in images/ with masks of the same name in masks/, or with an ending"
    for i in range(n):
        for k, x in (('images', pixels(i)), ('masks', masks(i, 3))):
            end = '' if '{}/' in form or k == 'images' else '_mask'
            save_nifti(folder/(form.format(k, f'{WHO.last}{i}') if '{}/' in form else f'{WHO.last}{i}{end}.nii.gz'), x)


def faults_of(manifest, load):
    found = []
    load(manifest, waive=(), splits='', found=found)
    return found


@pytest.mark.parametrize('kind', CASES)
def test_every_format_in_class_folders(home, kind):
    by_class(home/'Eyes', (kind,), ('train/AMD', 'train/normal', 'test/AMD', 'test/normal'), each=2)
    data = load_labelled(read_dataset('Eyes'), (*ANY, 'patients'))
    slices = 1 if kind == 'fundus' else N
    assert data.classes == ('AMD', 'normal') and data.counts().to_numpy().tolist() == [[2*slices, 2*slices]]*2
    assert set(data.table.eye) == ({''} if kind in ('mat', 'mhd', 'nifti') else {'OD'})
    volumes = data.table.id.str.rpartition('_')[0]
    assert data.table.groupby(volumes).label.nunique().max() == 1 and volumes.nunique() == 8
    assert not [s for s in SECRETS if s in data.table.drop(columns='image').to_string().lower()]
    assert not leaks(home.parent/'runs')


def test_splits_are_drawn_by_patient(home):
    "Without split folders; slices of a volume are in one split, and a patient of two files too"
    by_class(home/'Eyes', each=8)
    for k in 'ab': WRITERS['vol'](home/'Eyes'/'AMD'/f'{k}.vol', seed=ord(k))
    data = load_labelled(read_dataset('Eyes'), ANY, splits='')
    assert data.drawn.startswith('drawn by patient (17') and not len(data.leaks)
    assert data.table.groupby('patient').split.nunique().max() == 1
    assert (data.table.patient.str.startswith('P')).sum() == 2*N


def test_a_manifest_of_class_folders_counts(home):
    "Its names of classes and splits, and its patients: by the name of a file that states none"
    for i, place in enumerate(f'{s}/{c}' for s in ('Learn', 'Exam') for c in ('1', '2')):
        for eye in 'LR': save_nifti(home/'Eyes'/place/f'p{i}_{eye}.nii', pixels(2*i + (eye == 'L')))
    (home/'Eyes'/'manifest.toml').write_text(
        'title = "Eyes"\ntask = "classification"\nmodality = "bscan"\nlayout = "classes"\nsource = "s"\nlicence = "l"\n'
        'citation = "c"\nget = "g"\npatient = \'^(p\\d)\'\n[splits]\ntrain = "Learn"\ntest = "Exam"\n'
        '[labels]\nclasses = ["AMD", "normal"]\nvalues = {1 = "AMD", 2 = "normal"}\n')
    data = load_labelled(read_dataset('Eyes'), ANY)
    assert data.classes == ('AMD', 'normal') and data.table.patient.nunique() == 4
    assert data.table.patient.str.startswith('P').all() and data.counts().to_numpy().tolist() == [[2*N, 2*N]]*2


def test_patients_that_nothing_states_are_told(home):
    by_class(home/'Eyes')
    with pytest.warns(UserWarning, match=r'8 of 8 volumes state no patient, and each counts as one. If names of files'):
        read_dataset('Eyes')


def test_faults_of_volumes_are_those_of_the_dataset(home):
    "A damaged file, and one in no folder of a class: in one table, by code, and each can be left out by its name"
    by_class(home/'Eyes', each=8)
    WRITERS['vol'](cut := home/'Eyes'/'AMD'/f'{WHO.last}.vol')
    cut.write_bytes(cut.read_bytes()[:-9])
    WRITERS['nifti'](home/'Eyes'/f'{WHO.last}.nii', seed=99)
    manifest = read_dataset('Eyes')
    with pytest.raises(ValueError, match=r'(?s)waive=scans,unreadable leaves out scans and unreadable') as e:
        load_labelled(manifest, ANY, splits='')
    said = str(e.value)
    assert 'unreadable (1)' in said and 'file in no folder of a class (1)' in said and said.count('patients.csv') == 2
    assert not [s for s in SECRETS if s in said.lower().replace(str(home).lower(), '')]
    with pytest.warns(UserWarning, match='2 faults accepted'):
        assert len(load_labelled(manifest, (*ANY, 'scans', 'unreadable'), splits='').table) == 16*N
    assert any('unreadable (1)' in p for p in check_dataset('Eyes').problems)
    for p in (home/'Eyes').rglob('*.*'): p.write_bytes(p.read_bytes()[:100])
    with pytest.raises(ValueError, match='18 faults in 18 files'): read_dataset('Eyes')


def test_volumes_among_images_are_told(home):
    "In a folder of a class, and loose at the top: with their number and the first files, by code"
    rng = np.random.default_rng(0)
    for k in ('AMD', 'normal'):
        for i in range(6):
            (home/'Eyes'/k).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20, 24)).astype(np.uint8)).save(home/'Eyes'/k/f'{k}{i}_1.png')
    for i in range(4): WRITERS['dicom'](home/'Eyes'/'AMD'/f'{WHO.last}{i}.dcm', seed=i)
    WRITERS['vol'](home/'Eyes'/f'{WHO.last}.vol')
    assert read_dataset('Eyes').unpacked is None
    strays = [f for f in faults_of(read_dataset('Eyes'), load_labelled) if f.waiver == 'scans']
    assert [len(re.findall('unread_', f.what)) for f in strays] == [3, 1]
    assert '4 files of scanners (4 dicom)' in strays[0].what
    told = '\n'.join(check_dataset('Eyes').problems)
    assert 'file of a scanner among images (2)' in told and 'Move them away' in told
    assert not [s for s in SECRETS if s in told.lower()]
    with pytest.raises(ValueError, match='waive=scans leaves out scans'):
        load_labelled(read_dataset('Eyes'), ANY, splits='')
    assert len(load_labelled(read_dataset('Eyes'), (*ANY, 'scans'), splits='').table) == 12


def test_retouch(home):
    "As the challenge gives it: classes by name, a patient a volume, its scale from the files"
    retouch(home/'Fluids')
    manifest = read_dataset('Fluids')
    data = load_seg_data(manifest, '', ANY)
    assert [(c.value, c.label, c.group) for c in data.classes] == [
        (0, 'Background', 'background'), (1, 'IRF', 'lesion'), (2, 'SRF', 'lesion'), (3, 'PED', 'lesion')]
    every = pd.concat(data.tables.values())
    assert data.drawn.startswith('drawn by patient (6)') and every.groupby('volume').split.nunique().max() == 1
    assert len(every) == 6*N and data.scale[every.id.iloc[0]].pixel_um == pytest.approx((3.9, 11.8))
    shown = np.stack([np.asarray(Image.open(p)) for p in every.sort_values('id').semseg])
    assert sorted(x.tobytes() for x in shown) == sorted(x.tobytes() for i in range(6) for x in masks(i))
    assert not leaks(home.parent/'runs') and 'Fluids' == manifest.name


def test_retouch_under_the_name_that_the_kit_knows(home):
    "The files of the challenge itself keep what the manifest of the kit states"
    retouch(home/'RETOUCH')
    manifest = read_dataset('RETOUCH')
    assert manifest.citation.startswith('Bogunovic') and manifest.size == (1024, 1024)
    assert [c.label for c in load_seg_data(manifest, '', ANY).classes][1:] == ['IRF', 'SRF', 'PED']


def test_test_volumes_without_masks(home):
    retouch(home/'Fluids'/'train')
    save_mhd(home/'Fluids'/'test'/'TEST001'/'oct.mhd', pixels(40))
    data = load_seg_data(read_dataset('Fluids'), '', ANY)
    assert data.tables['test'].semseg.isna().all() and len(data.tables['test']) == N
    assert sum(map(len, data.tables.values())) == 7*N and 'became val' in data.drawn


@pytest.mark.parametrize('form', ['{}/{}.nii.gz', 'suffix'])
def test_masks_of_nifti(home, form):
    masked(home/'Eyes', form=form)
    manifest = read_dataset('Eyes', 'segmentation')
    data = load_seg_data(manifest, '', ANY)
    assert [(c.value, c.label) for c in data.classes] == [(0, 'Background'), (1, 'class 1'), (2, 'class 2')]
    assert sum(map(len, data.tables.values())) == 6*N
    (home/'Eyes'/'INFO.json').write_text('{"0": {"value": 0, "label": "BG"}, "1": {"value": 1, "label": "Cyst"}, '
                                         '"2": {"value": 2, "label": "RNFL"}}')
    manifest = read_dataset('Eyes', 'segmentation')
    assert [c.label for c in classes_of(manifest, dataset_dir(manifest))] == ['BG', 'Cyst', 'RNFL']


def test_masks_beside_other_formats(home):
    "Masks in NIfTI of what a scanner wrote; in class folders a classification passes over them"
    for i in range(8):
        place = home/'Eyes'/('AMD' if i % 2 else 'normal')
        place.mkdir(parents=True, exist_ok=True)
        WRITERS['vol'](place/f'e{i}.vol', seed=i)
        save_nifti(place/f'e{i}_seg.nii', masks(i, 2))
    assert len(load_labelled(read_dataset('Eyes', 'classification'), ANY).table) == 8*N
    data = load_seg_data(read_dataset('Eyes', 'segmentation'), None, ANY)
    assert len(data.tables['test']) == 8*N and data.tables['test'].semseg.notna().all()


def test_duke(home):
    "Layers between boundaries, fluid above them, columns that nobody has drawn; slices without any are left out"
    for i in range(5):
        lines = np.stack([np.full((W, N), 3. + k) for k in range(8)])
        lines[:, :, 0], lines[:, :4] = np.nan, np.nan
        x = np.moveaxis(pixels(i), 0, 2)
        (home/'Duke').mkdir(exist_ok=True)
        savemat(home/'Duke'/f'S{i}.mat', {'images': x, 'manualLayers1': lines, 'manualFluid1': (x > 190)*1.})
    data = load_seg_data(read_dataset('Duke', 'segmentation'), '', ANY)
    assert [c.label for c in data.classes] == ['Above ILM', 'RNFL', 'GCL-IPL', 'INL', 'OPL', 'ONL-ISM', 'ISE-OS', 'RPE',
                                              'Below BM', 'Fluid', 'Invalid']
    assert sum(map(len, data.tables.values())) == 5*(N - 1)
    y = np.asarray(Image.open(data.tables['train'].semseg.iloc[0]))
    assert set(y[:, :4].ravel()) == {255, 9}
    assert [set(y[i, 4:]) for i in (0, 1, 2, 3)] == [{0}, {0}, {1}, {2}] and 9 in y[-1, 4:]


@pytest.mark.parametrize('fault, kind, waiver', [
    ('its masks are of 2 x 20 x 24, its B-scans of 3 x 20 x 24 (slices x rows x columns): save both in one shape',
     'wrong size', ''),
    ('its masks are of 3 x 24 x 20, its B-scans of 3 x 20 x 24', 'wrong size', ''),
    ('no masks are in it, and none beside it: add NAME_mask.nii.gz', 'image without a mask', 'without_mask'),
    ('no volume has its name without that of masks', 'mask without an image', ''),
    ('its masks hold 300 in 1,440 pixels; a class is a whole number from 0 to 255', 'unreadable', 'unreadable'),
    ('its masks hold 0.5 in', 'unreadable', 'unreadable'),
    ('its volume has masks in two files', 'mask without an image', '')])
def test_what_is_wrong_with_masks(home, fault, kind, waiver):
    "One fault that names the file by its code, the value and what to do; no name of a patient"
    masked(home/'Eyes', 5)
    images, there = home/'Eyes'/'images', home/'Eyes'/'masks'
    name = f'{WHO.last}9.nii.gz'
    x = {'2 x': masks(9)[:2], '24 x 20': np.moveaxis(masks(9), 1, 2), '300': np.full((N, H, W), 300, np.int16),
         '0.5': np.full((N, H, W), .5, np.float32)}
    if 'no volume' not in fault: save_nifti(images/name, pixels(9))
    given = next((v for k, v in x.items() if k in fault), masks(9))
    if 'none beside' not in fault: save_nifti(there/name, given)
    if 'two files' in fault: save_nifti(images/f'{WHO.last}9_mask.nii.gz', masks(9))
    found = [f for f in faults_of(read_dataset('Eyes'), load_seg_data) if f.file.startswith('unread_')]
    assert len(found) == 1 and fault in found[0].what and (found[0].kind, found[0].waiver) == (kind, waiver)
    assert not [s for s in SECRETS if s in found[0].what.lower()] and 'patients.csv' in found[0].what
    code = found[0].file
    listed = pd.read_csv(home.parent/'keys'/'patients.csv')
    assert name[:6] in listed[listed.code == code].file.iloc[0]


def test_masks_of_two_kinds(home):
    "Names win over numbers; two names of one value are refused, with the folder, unless INFO.json says which"
    retouch(home/'Mix', 2)
    masked(home/'Mix'/'other', 2)
    manifest = read_dataset('Mix')
    assert [c.label for c in classes_of(manifest, dataset_dir(manifest))][1:] == ['IRF', 'SRF', 'PED']
    x = np.moveaxis(pixels(9), 0, 2)
    savemat(home/'Mix'/'S1.mat', {'images': x, 'manualFluid1': (x > 90)*1.})
    with pytest.raises(ValueError, match='Mix: the value 1 is Fluid in masks of one kind of file and IRF in'):
        read_dataset('Mix')
    (home/'Mix'/'INFO.json').write_text(json.dumps({str(i): {'value': i, 'label': k} for i, k in enumerate('ABCD')}))
    manifest = read_dataset('Mix', 'segmentation')
    assert [c.label for c in classes_of(manifest, dataset_dir(manifest))] == list('ABCD')


def test_values_that_no_class_has(home):
    masked(home/'Eyes')
    (home/'Eyes'/'INFO.json').write_text('{"0": {"value": 0, "label": "BG"}, "1": {"value": 1, "label": "Cyst"}}')
    with pytest.raises(ValueError, match='holds grey value 2 .*its classes are 0 BG, 1 Cyst; patients.csv beside'):
        load_seg_data(read_dataset('Eyes'), '', ANY)


def test_what_is_gone_is_not_learnt(home):
    "A file that was taken away or changed since leaves nothing behind"
    masked(home/'Eyes')
    first = load_seg_data(read_dataset('Eyes'), '', ANY)
    for k in ('images', 'masks'): (home/'Eyes'/k/f'{WHO.last}0.nii.gz').unlink()
    save_nifti(home/'Eyes'/'masks'/f'{WHO.last}1.nii.gz', masks(70, 3))
    again = load_seg_data(read_dataset('Eyes'), '', ANY)
    assert sum(map(len, again.tables.values())) == 5*N and again.sha256 != first.sha256
    stored = {np.asarray(Image.open(p)).tobytes() for t in again.tables.values() for p in t.semseg}
    assert {x.tobytes() for x in masks(70, 3)} <= stored and not {x.tobytes() for x in masks(0, 3)} & stored


def test_check_and_manifest(home):
    masked(home/'Eyes')
    found = check_dataset('Eyes')
    assert found.facts['task'] == 'segmentation' and 'class 2 (2)' in found.facts['classes']
    assert found.picture is not None
    assert 'none yet; a run draws them by patient (6)' in found.facts['splits']
    by_class(home/'Labelled', each=8)
    assert check_dataset('Labelled').facts['task'] == 'classification'


def test_what_nobody_graded_is_no_background(home):
    "A B-scan without any grade is left out, an ungraded pixel is Invalid, and a file without any grade is refused"
    (home/'Duke').mkdir()
    for i in range(4):
        fluid = np.full((H, W, N), np.nan)
        if i < 3: fluid[2:, :, 1] = np.moveaxis(pixels(i), 0, 2)[2:, :, 1] > 100
        lines = {'manualLayers1': np.full((8, W, N), np.nan)} if i > 1 else {}
        held = {'images': np.moveaxis(pixels(i), 0, 2), 'manualFluid1': fluid} | lines
        savemat(home/'Duke'/f'{WHO.last}{i}.mat', held)
    manifest = read_dataset('Duke', 'segmentation')
    (fault,) = [f for f in faults_of(manifest, load_seg_data) if f.file.startswith('unread_')]
    assert 'none of its 3 B-scans is graded' in fault.what and 'add NAME_mask.nii.gz' in fault.what
    assert fault.waiver == 'without_mask' and WHO.last not in fault.what
    data = load_seg_data(manifest, '', (*ANY, 'without_mask'))
    assert [c.label for c in data.classes] == ['Background', 'Fluid', 'Invalid']
    every = pd.concat(data.tables.values())
    assert len(every) == 3 and set(every.slice) == {1}
    for p in every.semseg:
        y = np.asarray(Image.open(p))
        assert set(y[:2].flat) == {255} and set(y[2:].flat) == {0, 1}


@pytest.mark.parametrize('purpose', ['prediction', 'classification'])
def test_masks_beside_their_volume_are_no_images(tmp_path, purpose):
    home = tmp_path/'MyNii'
    for k in range(2):
        (home/'A').mkdir(parents=True, exist_ok=True)
        save_nifti(home/'A'/f'v{k}.nii.gz', pixels(k))
        save_nifti(home/'A'/f'v{k}_mask.nii.gz', masks(k))
    made = import_scans(home, tmp_path/'out', ImportSettings(purpose))
    assert len(made.samples) == 2*N


def test_a_folder_of_a_patient_among_masks_is_not_told(home):
    "Where folders are no classes, the dataset's own folder or its split is named alone"
    for s in ('train', 'test'):
        for i in range(3):
            for k, x in (('bscan', pixels(i + 5*(s == 'test'))[0]), ('semseg', masks(i, 2)[0])):
                (file := home/'Eyes'/s/k/f'{s}{i}_0.png').parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(x).save(file)
    for place in (home/'Eyes'/WHO.last, home/'Eyes'/'train'/WHO.last):
        place.mkdir()
        WRITERS['vol'](place/'1.vol', seed=len(str(place)))
    (home/'Eyes'/'INFO.json').write_text('{"0": {"value": 0, "label": "BG"}, "1": {"value": 1, "label": "Cyst"}}')
    strays = [f for f in faults_of(read_dataset('Eyes'), load_seg_data) if f.waiver == 'scans']
    assert [f.file for f in strays] == [str(home/'Eyes'), str(home/'Eyes'/'train')]
    assert not [s for s in SECRETS for f in strays if s in f.what.lower()]


@pytest.mark.parametrize('above', ['masks', 'mask', 'semseg'])
def test_a_dataset_below_a_folder_called_masks(home, above):
    by_class(home/above/'clinic', each=6)
    data = load_labelled(read_dataset(home/above/'clinic'), ANY, splits='')
    assert len(data.table) == 12*N and data.classes == ('AMD', 'normal')
    masked(home/above/'drawn')
    assert len(pd.concat(load_seg_data(read_dataset(home/above/'drawn'), '', ANY).tables.values())) == 6*N


def test_volumes_whose_names_end_as_those_of_masks(home):
    "Where no other file has the name, they are volumes of class folders"
    for i in range(16): save_nifti(home/'Eyes'/('AMD' if i % 2 else 'normal')/f'p{i}_manual.nii.gz', pixels(i))
    data = load_labelled(read_dataset('Eyes'), ANY, splits='')
    assert len(data.table) == 16*N and data.classes == ('AMD', 'normal')


def test_patients_are_known_if_every_file_states_one(home):
    "Else the pseudonyms that stand for files are no patients"
    masked(home/'Eyes')
    assert not read_dataset('Eyes').knows_patients
    retouch(home/'RETOUCH')  # its manifest is of the kit: each volume is of another patient
    assert read_dataset('RETOUCH').knows_patients
    for i in range(4):
        (home/'Named').mkdir(exist_ok=True)
        WRITERS['vol'](home/'Named'/f'e{i}.vol', seed=i)
        save_nifti(home/'Named'/f'e{i}_seg.nii', masks(i, 2))
    assert read_dataset('Named', 'segmentation').knows_patients
    for k, x in (('', pixels(9)), ('_seg', masks(9, 2))): save_nifti(home/'Named'/f'x{k}.nii', x)
    manifest = read_dataset('Named', 'segmentation')
    assert not manifest.knows_patients
    assert load_seg_data(manifest, None, ANY).tables['test'].patient.nunique() == 2


def test_faults_of_unpacked_images_say_which_file(home):
    "Of masks and of B-scans: the name of the image begins with the code in patients.csv"
    for i in range(4):
        for k in ('AMD', 'normal'): save_nifti(home/'Flat'/k/f'{k}{i}.nii', pixels(ord(k[0]) + i)*(k == 'AMD' or i > 0))
    masked(home/'Eyes')
    (home/'Eyes'/'INFO.json').write_text('{"0": {"value": 0, "label": "BG"}, "1": {"value": 1, "label": "Cyst"}}')
    for name, load, kind in (('Eyes', load_seg_data, 'unknown mask value'), ('Flat', load_labelled, 'constant image')):
        found = [f for f in faults_of(read_dataset(name), load) if f.kind == kind]
        codes = pd.read_csv(home.parent/'keys'/'patients.csv').code
        assert found and all(f.what.endswith('patients.csv beside your key of pseudonyms says which file it is')
                             and any(c in f.what for c in codes) for f in found)


def test_class_folders_without_a_volume_are_told(tmp_path):
    "And images of files that are gone are not counted"
    for c in 'AB':
        for k in range(3): save_nifti(tmp_path/'Eyes'/c/f'{c}{k}.nii.gz', pixels(k))
    (tmp_path/'Eyes'/'C').mkdir()
    with pytest.warns(UserWarning, match='Eyes: C ignored: no volume in it'): first = read_dataset(tmp_path/'Eyes')
    (tmp_path/'Eyes'/'A'/'A2.nii.gz').unlink()
    (tmp_path/'Eyes'/'C').rmdir()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        again = read_dataset(tmp_path/'Eyes')
    assert not any('ignored' in str(w.message) for w in told)
    assert again.unpacked == first.unpacked and len(list(again.unpacked.rglob('*.png'))) == 5*N
