"Tables of chest X-ray sets: the heads of the real ones, label policies under this pandas, errors on broken files"
import gzip
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.data.chest.label_policy import apply_policies
from mirage_nb.data.chest.readers import (
    _CHEXPERT,
    _NIH,
    _chexpert_table,
    _covidx_table,
    _mimic_table,
    _nih_entries,
    _nih_lists,
    _nih_table,
    _node21_table,
    read_chest,
)
from mirage_nb.data.chest.tables import read_labelled_table
from mirage_nb.data.classification import labelled_rows
from mirage_nb.data.files import read_image
from mirage_nb.data.folders import list_images
from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.tables import read_text_table


def touch(folder, *names):
    for n in names:
        (folder/n).parent.mkdir(parents=True, exist_ok=True)
        (folder/n).touch()


@pytest.fixture
def chexpert(tmp_path):
    "Folder that holds CheXpert-v1.0-small with three patients and one view of each, and a lateral one"
    folder = tmp_path/'CheXpert-v1.0-small'
    head = 'Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,' + ','.join(_CHEXPERT)

    def line(split, p, values, kind='Frontal'):
        name = f'{split}/patient{p:05d}/study1/view1_{kind.lower()}.jpg'
        touch(folder, name)
        return f'CheXpert-v1.0-small/{name},Female,68,{kind},{"AP" if kind == "Frontal" else ""},,{values}'

    def write(split, *lines): (folder/f'{split}.csv').write_text('\n'.join([head, *lines]) + '\n')
    folder.mkdir()
    write('train', line('train', 1, '-1.0,-1.0,-1.0,-1.0,-1.0'), line('train', 2, '1.0,0.0,,,'),
          line('train', 2, ',,,,', 'Lateral'), line('train', 3, ',1.0,0.0,,1.0'))
    write('valid', line('valid', 64541, '0.0,0.0,0.0,1.0,0.0'))
    return tmp_path, write, line


def test_chexpert_in_the_folders_of_its_archives(chexpert):
    "The full-size set comes as four archives; tables may also lie above the images"
    folder, small = chexpert[0], chexpert[0]/'CheXpert-v1.0-small'
    first, second = (folder/f'CheXpert-v1.0 batch {k}' for k in ('1 (validate & csv)', '2 (train 1)'))
    (small/'train').rename(second)
    small.rename(first)
    for where in (first, folder):
        for k in ('train.csv', 'valid.csv'): (first/k if (first/k).exists() else folder/k).rename(where/k)
        table = _chexpert_table(folder)
        assert len(table) == 4 and all(p.is_file() for p in table.image)


@pytest.mark.parametrize('policy, unmentioned, unsure, missing', [
    ('published', 'zero', [0, 1, 0, 1, 0], [1, 0, 0, 0, 0]), ('ones', 'zero', [1]*5, [1, 0, 0, 0, 0]),
    ('zeros', 'zero', [0]*5, [1, 0, 0, 0, 0]), ('ignore', 'zero', [None]*5, [1, 0, 0, 0, 0]),
    ('published', 'ignore', [0, 1, 0, 1, 0], [1, 0, None, None, None])])
def test_policies_of_labels(chexpert, policy, unmentioned, unsure, missing):
    "defects.md 12: what is not sure and what is not mentioned becomes what the policy says, under this pandas"
    table = _chexpert_table(chexpert[0], policy=policy, unmentioned=unmentioned).set_index('patient')
    for patient, expected in (('patient00001', unsure), ('patient00002', missing)):
        got = table.loc[patient].filter(like='label:').to_numpy(float)
        np.testing.assert_array_equal(got, np.array(expected, float))


def test_frontal_views_only_and_validation_by_patient(chexpert):
    table = _chexpert_table(chexpert[0])
    assert len(table) == 4 and (table.view == 'AP').all() and not table.id.str.contains('lateral').any()
    assert table.split.value_counts().to_dict() == {'train': 2, 'val': 1, 'test': 1}
    assert table.split[table.patient == 'patient64541'].item() == 'test'
    own = _chexpert_table(chexpert[0], {'train': 'train.csv', 'val': 'valid.csv'})
    assert own.split.value_counts().to_dict() == {'train': 3, 'val': 1}


@pytest.mark.parametrize('lines, says', [
    (['x.jpg,F,6,Frontal,AP,,1.0,,,,'], "line 2: 'x.jpg', Frontal; Path names a patient"),
    (['CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,F,6,front,AP,,1.0,,,,'], 'Frontal/Lateral says'),
    (['CheXpert-v1.0-small/train/p1/view1_frontal.jpg,F,6,Frontal,AP,,1.0,,,,'], 'Path names a patient'),
    (['CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,F,6,Frontal,AP,,1.0,maybe,,,'],
     "line 2: Edema is 'maybe'; it takes 1, 0, -1 or nothing")])
def test_chexpert_errors(chexpert, lines, says):
    folder, write, _ = chexpert
    write('train', *lines)
    with pytest.raises((ValueError, FileNotFoundError), match=says): _chexpert_table(folder)


def test_absent_images_are_dropped_only_when_asked(chexpert):
    folder, write, line = chexpert
    write('train', *(line('train', p, '1.0,,,,') for p in (1, 2, 3)))
    (folder/'CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg').unlink()
    left = _chexpert_table(folder).set_index('patient').image  # the first check names it with all other faults
    assert len(left) == 4 and [k for k, p in left.items() if not p.is_file()] == ['patient00002']
    with pytest.warns(UserWarning, match='1 of 4 images are missing'): t = _chexpert_table(folder, absent='drop')
    assert len(t) == 3 and 'patient00002' not in set(t.patient)


def test_a_patient_in_two_splits_is_named(tmp_path):
    names = ['00000001_000.png', '00000001_001.png', '00000002_000.png']
    touch(tmp_path, *names)
    for split, name in zip(('train', 'test', 'val'), names, strict=True):
        (tmp_path/f'{split}_official.txt').write_text(f'{name} ' + ' '.join('0'*14) + '\n')
    with pytest.warns(UserWarning, match='patient 00000001 in train, test'): _nih_table(tmp_path)


@pytest.mark.parametrize('line, says', [
    ('00000001_000.png 1 0', "has 3 fields; a line is 'NAME.png and 14 zeros or ones'"),
    ('00000001_000.png' + ' 0'*15, 'line 1: 00000001_000.png has 15 values'),
    ('00000001_000.png' + ' 0'*13 + ' -1', "line 1: 00000001_000.png has '-1'"),
    ('1.png' + ' 0'*14, "'1.png' is not a file name of NIH ChestX-ray14"),
    ('', 'train_official.txt is empty')])
def test_nih_list_errors(tmp_path, line, says):
    (tmp_path/'train_official.txt').write_text(line)
    with pytest.raises(ValueError, match=says): _nih_lists({'train': tmp_path/'train_official.txt'}, {})


def test_one_name_in_two_folders(tmp_path):
    touch(tmp_path, 'a/00000001_000.png', 'b/00000001_000.png')
    with pytest.raises(ValueError, match='have one id; keep one of them'): _nih_table(tmp_path)


def test_folder_without_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match='neither train_official.txt nor Data_Entry'): _nih_table(tmp_path)
    with pytest.raises(FileNotFoundError, match='no folder'): _nih_table(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='no table'): _node21_table(tmp_path)
    with pytest.raises(FileNotFoundError, match='no list'): _covidx_table(tmp_path)
    with pytest.raises(FileNotFoundError, match='no table .*split.csv.gz'): _mimic_table(tmp_path)


def test_mimic_broken_tables(tmp_path):
    def packed(kind, text): (tmp_path/f'mimic-cxr-2.0.0-{kind}.csv.gz').write_bytes(gzip.compress(text.encode()))
    packed('split', 'dicom_id,study_id,subject_id,split\na,5,10000032,train\n')
    packed('metadata', 'dicom_id,ViewPosition\na,PA\n')
    packed('chexpert', 'subject_id,study_id,Edema\n10000032,5,\n10000032,5,1.0\n')
    with pytest.raises(ValueError, match='chexpert.csv.gz, line 3: 10000032, 5'): _mimic_table(tmp_path, ('Edema',))
    packed('chexpert', 'subject_id,study_id,Edema\n10000032,5,1.0\n')
    with pytest.raises(FileNotFoundError, match=r'p10/p10000032/s5/a\.jpg'): _mimic_table(tmp_path, ('Edema',))
    packed('split', 'dicom_id,study_id,subject_id,split\na,5,10000032,training\n')
    with pytest.raises(ValueError, match="no split 'training'. Did you mean 'train'"):
        _mimic_table(tmp_path, ('Edema',))


def test_own_table(tmp_path):
    touch(tmp_path, 'a.png', 'b.png')
    path = tmp_path/'table.csv'
    path.write_text('image,patient,split,Nodule\na.png,P1,train,1\nb.png,P2,test,\n')
    with pytest.raises(ValueError, match='1 patients cannot be split'): read_labelled_table(path)
    path.write_text('image,patient,split,Nodule\na.png,P1,val,1\na.png,P1,test,0\n')
    with pytest.raises(ValueError, match='names a twice; keep one of its rows'): read_labelled_table(path)
    path.write_text('image,patient,split\na.png,P1,val\n')
    with pytest.raises(ValueError, match='has no column of a finding'): read_labelled_table(path)
    with pytest.raises(KeyError, match="Did you mean 'CheXpert'"): read_chest('Chexpert', tmp_path)


# ------------------------------------------------------------------ through a manifest

HEAD = '\n'.join(f'{k} = "x"' for k in ('title', 'modality', 'source', 'licence', 'citation', 'get'))
TABLE = f'{HEAD}\ntask = "classification"\nlayout = "table"\n[labels]\n'


@pytest.fixture
def rows(home, monkeypatch):
    "Rows of a set by its manifest; where there is a text, it is that of the folder's own manifest"
    def read(folder, labels=''):
        if labels: (folder/'manifest.toml').write_text(TABLE + labels)
        monkeypatch.setenv('MIRAGE_DATA', str(folder.parent))
        return labelled_rows(read_manifest(folder.name))
    return read


@pytest.fixture
def nih(tmp_path):
    "Folder with the institute's table alone, 20 patients"
    folder = tmp_path/'NIH_ChestXray14'
    names = [f'{p:08d}_{k:03d}.png' for p in range(20) for k in range(2)]
    touch(folder, *(f'images/{n}' for n in names))
    lines = [f'{n},{("No Finding", "Mass|Nodule")[i % 2]},{int(n[:8])},PA' for i, n in enumerate(names)]
    head = 'Image Index,Finding Labels,Patient ID,View Position'
    (folder/'Data_Entry_2017.csv').write_text('\n'.join([head, *lines]) + '\n')
    return folder, names


def test_shares_of_a_manifest_hold_where_no_list_says(nih, rows):
    folder, names = nih
    assert rows(folder).split.value_counts().to_dict() == {'train': 28, 'test': 8, 'val': 4}
    own = rows(folder, 'reader = "NIH_ChestXray14"\nclasses = ["Mass", "Nodule"]\nshares = [0.5, 0.25, 0.25]\n')
    assert own.split.value_counts().to_dict() == {'train': 20, 'test': 10, 'val': 10}
    assert [c for c in own if ':' in c] == ['label:Mass', 'label:Nodule']
    (folder/'test_list.txt').write_text('\n'.join(names[:16]))
    with pytest.raises(FileNotFoundError, match='and not train_val_list.txt; get it too'): rows(folder)
    (folder/'train_val_list.txt').write_text('\n'.join(names[16:]))
    official = rows(folder)
    assert set(official.id[official.split == 'test']) == {n[:-4] for n in names[:16]}
    with pytest.raises(ValueError, match="labels.classes: no class 'Mas'. Did you mean 'Mass'"):
        rows(folder, 'reader = "NIH_ChestXray14"\nclasses = ["Mas", "Nodule"]\n')


def test_policies_of_a_manifest(chexpert, rows):
    folder, write, line = chexpert
    write('train', *(line('train', p, '-1.0,-1.0,-1.0,-1.0,-1.0') for p in (1, 2, 3)))
    (folder/'CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg').unlink()
    own = 'reader = "CheXpert"\nclasses = ["Edema", "Cardiomegaly"]\n'
    for policy, expected in (('published', [1, 0]), ('ones', [1, 1]), ('zeros', [0, 0]), ('ignore', [np.nan]*2)):
        with pytest.warns(UserWarning, match='1 of 4 images are missing'):
            t = rows(folder, own + f'policy = "{policy}"\nabsent = "drop"\nshares = [0.6, 0.4, 0]\n')
        assert set(t.split) == {'train', 'val', 'test'}
        np.testing.assert_array_equal(t.loc[t.split != 'test', ['label:Edema', 'label:Cardiomegaly']], [expected]*2)
    with pytest.raises(ValueError, match='CheXpert has a test set of its own'):
        rows(folder, own + 'shares = [0.6, 0.2, 0.2]\n')


def test_a_folder_of_ones_own_is_read_by_its_own_manifest(tmp_path, rows):
    "whatever its name; a shipped manifest of that name has a reader"
    folder = tmp_path/'COVIDx'
    touch(folder, 'a.png', 'b.png')
    (folder/'t.csv').write_text('name,dx,set\na,sick,train\nb,well,test\n')
    own = rows(folder, 'table = "t.csv"\nimage = "{name}.png"\nlabel = "dx"\nsplit = "set"\n')
    assert own.label.tolist() == ['sick', 'well']
    (folder/'manifest.toml').unlink()
    with pytest.raises(FileNotFoundError, match=r'no list .*train_COVIDx9A\.txt'): rows(folder)


@pytest.mark.parametrize('labels, says', [
    ('label = "dx"\nmulti = true', "several labels in the column 'dx' take 'joined'"),
    ('multi = true', "'multi' takes 'classes', the names of their columns"),
    ('', "'label' is missing, the column of the class")])
def test_labels_of_a_manifest_that_say_too_little(tmp_path, rows, labels, says):
    touch(tmp_path, 'Mine/t.csv')
    with pytest.raises(ValueError, match=f'manifest.toml: labels: {says}'):
        rows(tmp_path/'Mine', f'table = "t.csv"\nimage = "a.png"\n{labels}\n')


# ------------------------------------------------------------------ real tables and films

def test_real_nih_tables(shared_data):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        table = _nih_table(shared_data/'cxr_nih_64px')
    assert len(table) == 1000 and set(table.split) == {'train', 'val', 'test'} and set(table.view) == {'AP', 'PA'}
    assert (table['label:Effusion'].sum(), table['label:Hernia'].sum()) == (170, 9)
    assert any('in more than one split' in str(w.message) for w in said)  # this copy's own splits leak
    head = shared_data/'cxr_misc'/'nih_Data_Entry_2017_v2020_head200.csv'
    with pytest.warns(UserWarning, match='199 of 200'):
        one = _nih_entries(head, {'00000001_000': shared_data/'cxr_misc'/'00000001_000.png'}, absent='drop')
    assert one.filter(like='label:').columns[one.filter(like='label:').iloc[0] == 1].tolist() == ['label:Cardiomegaly']


def test_real_chexpert_head(shared_data):
    path = shared_data/'cxr_misc'/'chexpert_train_head200.csv'
    rows, raw = read_text_table(path, _CHEXPERT), pd.read_csv(path)
    labels = apply_policies(rows, _CHEXPERT, path)
    for k in _CHEXPERT:
        expected = (raw[k] == 1) | ((raw[k] == -1) & (k in ('Edema', 'Atelectasis')))
        assert (labels[f'label:{k}'].to_numpy() == expected).all(), k
    assert (raw['Edema'] == -1).sum() > 5 and raw['Edema'].isna().sum() > 100


def test_real_films(shared_data):
    files = [f for k in ('cxr_nih_1024', 'cxr_nih_64px') for f in list_images(shared_data/k, below=True).values()]
    rgba = [f for f in files if Image.open(f).mode == 'RGBA']
    assert len(rgba) >= 4
    for f in [*rgba[:6], files[0]]:
        grey, three = read_image(f, 1), read_image(f, 3)
        assert grey.dtype == np.uint8 and three.shape == (*grey.shape[:2], 3)
        assert np.abs(three.astype(int) - grey).max() <= 1
    assert read_image(files[0], 1, at_most=224).shape == (224, 224, 1)
    assert read_image(shared_data/'uspec_example'/'example_img.jpg', 3, at_most=256).shape[0] == 256
    assert len(_NIH) == 14
