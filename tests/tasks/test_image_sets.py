"Images of a pre-training: where they come from, and what stops it"
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image

from mirage_nb.data.faults import DataFaults
from mirage_nb.data.normalization import NORMS
from mirage_nb.phantoms.uwf import make_phantom_uwf
from mirage_nb.recipes.pretraining import MAERecipe
from mirage_nb.storage import write_json
from mirage_nb.tasks.image_sets import load_image_set
from tests.tasks.samples import pictures


def load(dataset, **options): return load_image_set(str(dataset), 32, MAERecipe(**options))


def names(part): return sorted(part.id(i) for i in range(len(part)))


def class_folders(root, n=2):
    "Splits of two classes, all pictures different"
    for i, s in enumerate(('train', 'val', 'test')):
        for j, c in enumerate(('healthy', 'ill')): pictures(root/s/c, n, seed=10*i + j)
    return root


@pytest.mark.parametrize('as_path', [False, True])
def test_class_folders_give_their_training_split(data, as_path):
    folder = class_folders(data/'mine')
    found = load(str(folder) if as_path else 'mine')
    assert names(found.train) == names(found.val) == ['healthy/00.png', 'healthy/01.png', 'ill/00.png', 'ill/01.png']
    assert {p.parts[-3] for p in (found.train.source.path(i) for i in range(4))} == {'train'}
    assert found.labels.label.tolist() == ['healthy']*2 + ['ill']*2


def test_a_normalisation_that_is_none(data):
    pictures(data/'odd', 2)
    for text, said in (('[]', "INFO.json holds '.*', and takes a table"),
                       ('{"mean": 3, "std": 2}', 'take three numbers')):
        (data/'odd'/'INFO.json').write_text(text)
        with pytest.raises(ValueError, match=said): load(str(data/'odd'))


def test_splits_without_classes(data):
    for i, s in enumerate(('train', 'val', 'test')): pictures(data/'bare'/s, 3, seed=i)
    found = load('bare')
    assert (len(found.train), len(found.val), found.labels) == (3, 3, None)
    pictures(data/'tested'/'test', 2)
    with pytest.raises(ValueError, match='tested has test and no train to learn from; give the path'):
        load(str(data/'tested'))


def test_a_name_is_a_dataset_before_it_is_a_folder_here(data):
    "The working directory may be MIRAGE_DATA itself"
    make_phantom_uwf(data/'Phantom_UWF', patients=25, pictures=1, size=(32, 40))
    for given in ('Phantom_UWF', str(data/'Phantom_UWF')):
        found = load(given)
        assert found.norm == NORMS['uwf'] and len(found.val) < len(found.train) and found.labels is not None
    moved = (data/'Phantom_UWF').rename(pictures(data.parent/'elsewhere', 1)/'Phantom_UWF')
    (moved/'manifest.toml').unlink(missing_ok=True)
    again = load(str(moved))
    assert (again.norm, again.sha256, len(again.train)) == (found.norm, found.sha256, len(found.train))
    pictures(data/'loose', 2)
    assert len(load('loose').train) == 2
    with pytest.raises(KeyError, match="no dataset 'Phantom_UWG'. Did you mean 'Phantom_UWF'"):
        load('Phantom_UWG')


def test_masks_are_no_pictures(data):
    for k in ('bscan', 'semseg'): pictures(data/'own'/'train'/k, 2)
    for given in (str(data/'own'), 'GOALS'):
        with pytest.raises(ValueError, match='is a set for segmentation and holds masks; give the path of the folder'):
            load(given)
    assert len(load(str(data/'own'/'train'/'bscan')).train) == 2
    for k in ('images', 'masks'): pictures(data/'plain'/k, 2)
    with pytest.raises(ValueError, match='plain is a set for segmentation and holds masks'):
        load(str(data/'plain'))


def test_a_folder_states_its_numbers(data):
    folder = pictures(data/'scans', 2)
    plain = load('scans')
    write_json(folder/'INFO.json', {'mean': [.5, .4, .3], 'std': [.2, .2, .1]})
    for given in ('scans', str(folder)):
        found = load(given)
        assert found.norm == ((.5, .4, .3), (.2, .2, .1)) and found.sha256 != plain.sha256
        assert found.train.mean.tolist() == pytest.approx([.5, .4, .3]) and plain.norm == NORMS['imagenet']
    for wrong in ({'mean': [.5]*3}, {'mean': [.5], 'std': [.2]}, {'mean': 1, 'std': 2}, {'mean': [.5]*3, 'std': [0]*3}):
        write_json(folder/'INFO.json', wrong)
        with pytest.raises(ValueError, match=r'INFO.json: mean and std take three numbers each'):
            load('scans')


def test_new_pictures_are_seen(data):
    folder = pictures(data/'scans'/'site', 3).parent
    first = load('scans')
    pictures(folder/'site', 5)
    assert (len(first.train), len(load('scans').train)) == (3, 5)


# ------------------------------------------------------------------ what stops a pre-training

def test_all_faults_of_a_folder_are_one_error(data):
    "A truncated image is found before the training, not in its third week; the second start opens nothing"
    folder = pictures(data/'films'/'train', 6).parent
    (folder/'train'/'03.png').write_bytes((folder/'train'/'03.png').read_bytes()[:900])
    (folder/'train'/'04.png').write_bytes(b'')
    Image.new('RGB', (40, 36), (7, 7, 7)).save(folder/'train'/'black.png')
    pictures(folder/'val', 1)
    with pytest.raises(DataFaults) as e: load(folder)
    assert sorted(e.value.table.kind) == ['constant image', 'empty file', 'image in two splits', 'truncated']
    assert '4 faults in 8 files' in str(e.value) and 'waive=constant,duplicates,unreadable accepts' in str(e.value)
    with pytest.raises(DataFaults, match='2 faults'), pytest.warns(UserWarning): load(folder, waive='unreadable')
    with pytest.warns(UserWarning, match='4 faults accepted'):
        left = load(folder, waive='unreadable,constant,duplicates')
    assert names(left.train) == ['00.png', '01.png', '02.png', '05.png', 'black.png']


def test_damage_inside_a_file_is_found_too(data):
    "The listing looks at the heads and ends of files alone"
    folder = pictures(data/'films', 3)
    raw = bytearray((folder/'01.png').read_bytes())
    raw[200:260] = bytes(60)
    (folder/'01.png').write_bytes(raw)
    with pytest.raises(DataFaults, match=r'1 fault in 3 files.*waive=unreadable leaves out unreadable'): load(folder)


def test_a_folder_is_divided_by_the_option(data):
    folder = pictures(data/'films', 10)
    with pytest.warns(UserWarning, match='drawn by image, because no patient is known'):
        found = load(folder, splits='0.6/0.2/0.2, seed 1')
    assert (len(found.train), len(found.val)) == (6, 2) and not set(names(found.train)) & set(names(found.val))
    assert 'drawn by image (10, seed 1)' in found.drawn and found.sha256 != load(folder).sha256
    with pytest.raises(ValueError, match='has its own splits, train; leave the option splits out'):
        load(pictures(data/'own'/'train', 2).parent, splits='0.6/0.2/0.2')


def test_labelled_images_are_checked_and_divided_alike(data):
    make_phantom_uwf(data/'Phantom_UWF', patients=25, pictures=1, size=(32, 40))
    own = load('Phantom_UWF')
    anew = load('Phantom_UWF', splits='fold 2 of 5')
    assert own.drawn == '' and 'fold 2 of 5 is the test' in anew.drawn and anew.sha256 != own.sha256
    first = next((data/'Phantom_UWF'/'train').rglob('*.png'))
    Image.new('RGB', (40, 32)).save(first)
    with pytest.raises(DataFaults, match='constant image'): load('Phantom_UWF')
    with pytest.warns(UserWarning, match='1 fault accepted'): load('Phantom_UWF', waive='constant')
    shutil.rmtree(data/'Phantom_UWF'/'train')
    with pytest.raises(ValueError, match='Phantom_UWF has val, test and no split train to learn from; splits= divides'):
        load('Phantom_UWF')


def nifti(path, n, size=(20, 30)):
    "A volume of noise"
    x = np.random.default_rng(len(path.name)).integers(0, 255, (*size, n), np.uint8)
    nibabel.Nifti1Image(x, np.eye(4)).to_filename(path.with_suffix('.nii'))
    path.with_suffix('.nii').rename(path)


@pytest.mark.filterwarnings('ignore:a key for pseudonyms')
def test_volumes_among_images_are_unpacked_once(data, monkeypatch):
    "Their B-scans are images of their patient; damaged ones are a fault that names nobody"
    monkeypatch.setenv('MIRAGE_KEYS', str(data/'keys'))
    pictures(data/'mixed'/'deep', 2)
    nifti(data/'mixed'/'Jane_Doe.NII', 3)
    nifti(data/'mixed'/'deep'/'John_Roe.nii', 2)
    (data/'mixed'/'deep'/'._John_Roe.nii').write_bytes(b'left behind by macOS')
    found, again = load('mixed'), load('mixed')
    assert found.sha256 == again.sha256
    assert [k.startswith('deep/') for k in names(found.train)] == [False]*3 + [True]*4
    parts = load('mixed', splits='0.5/0.5/0')
    assert parts.drawn.startswith('drawn by patient (4')
    (data/'mixed'/'deep'/'Jane_Poe.vol').write_bytes(b'HSF-OCT-103')
    with pytest.raises(DataFaults, match=r'1 fault in 8 files.*waive=unreadable leaves') as e: load('mixed')
    assert 'unread_' in str(e.value) and not any(k in str(e.value) for k in ('Jane', 'Poe'))
    with pytest.warns(UserWarning, match='1 fault accepted'): assert len(load('mixed', waive='unreadable').train) == 7


def test_a_folder_is_divided_by_its_folders_of_patients(data):
    for c in 'AB':
        for i in range(5): pictures(data/'eyes'/c/f'P{c}{i}', 2, seed=10*i + ord(c))
    found = load('eyes', splits='0.5/0.5/0')
    assert found.drawn.startswith('drawn by patient (10')
    patients = [{k.split('/')[1] for k in names(part)} for part in (found.train, found.val)]
    assert len(patients[0] | patients[1]) == 10 and not patients[0] & patients[1]
    broken = data/'eyes'/'A'/'PA0'/'00.png'
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataFaults, match='1 fault in 20 files'): load('eyes', splits='0.5/0.5/0')
