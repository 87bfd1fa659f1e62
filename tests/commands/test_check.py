"What a new user reads of a dataset: patients that are not known, images without masks, lesions, true proportions"
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirage_nb.commands.check import check_dataset, write_manifest
from mirage_nb.data.faults import DataFaults
from mirage_nb.data.labels import is_lesion
from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.segmentation import load_seg_data
from mirage_nb.runs import main
from mirage_nb.tasks.segmentation import SegmentationTask

REAL = Path(os.environ.get('MIRAGE_SHARED', 'shared'))/'data'
real = pytest.mark.skipif(not REAL.is_dir(), reason='needs the real images of shared/data')


def class_folders(root, names, shape=(8, 24)):
    for i, name in enumerate(names):
        path = root/name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, shape, np.uint8)).save(path)
    return root


def kermany(root, split=''):
    "Class folders with CLASS-PATIENT-NUMBER"
    every = [(c, 1000*k + n, i) for k, c in enumerate(('CNV', 'DME')) for n in range(6) for i in (1, 2)]
    return class_folders(root, [f'{split}{c}/{c}-{n}-{i}.png' for c, n, i in every])


# ------------------------------------------------------------------ patients

def test_patients_of_class_folders_are_guessed_and_not_claimed(tmp_path):
    found = check_dataset(str(kermany(tmp_path/'Mine')))
    assert found.facts['patients'] == 'not known'
    assert found.facts['guess'].startswith("12 patients, by patient = '^[^-]+-(\\d+)-', a guess from names such")
    assert 'drawn by image, because no patient is known' in found.problems[0]
    assert "perhaps patient = '^[^-]+-(\\d+)-'" in found.problems[0]


def test_offered_manifest_holds_the_guess_until_the_user_takes_it(tmp_path):
    root = kermany(tmp_path/'Mine')
    path = write_manifest(str(root))
    assert check_dataset(str(root)).facts['patients'] == 'not known', 'a guess is not used unasked'
    text = path.read_text()
    assert '# a guess: CNV-0-1 is of 0; if it is right, delete the # of the next line\n# patient = ' in text
    path.write_text(text.replace("# patient = '", "patient = '"))
    found = check_dataset(str(root))
    assert (found.facts['patients'], found.problems) == ('12', []) and 'guess' not in found.facts


def test_numbers_of_a_class_are_no_patients(tmp_path):
    root = class_folders(tmp_path/'Mine', [f'{c}/{c}_{i}.png' for c in ('NORMAL', 'AMD') for i in range(8)])
    found = check_dataset(str(root))
    assert found.facts['patients'] == 'not known; names such as AMD_0 do not tell' and 'guess' not in found.facts
    assert "# patient = '^([^_]+)'" in write_manifest(str(root)).read_text()


def test_guess_says_who_would_be_in_two_splits(tmp_path):
    kermany(tmp_path/'Mine', 'train/')
    found = check_dataset(str(kermany(tmp_path/'Mine', 'test/')))
    assert '12 patients in more than one split, or numbers that begin anew in each split' in found.facts['by the guess']


def test_column_of_a_table_is_suggested(tmp_path):
    root = class_folders(tmp_path/'Mine', [f'images/{i}.png' for i in range(8)])
    rows = [f'{i},{"ab"[i % 2]},P{i//2},{("train", "test")[i//4]}' for i in range(8)]
    (root/'labels.csv').write_text('\n'.join(['image,dx,patient_id,split', *rows]))
    (root/'manifest.toml').write_text('\n'.join([
        *(f'{k} = "x"' for k in ('title', 'source', 'licence', 'citation', 'get')),
        'task = "classification"\nmodality = "bscan"\nlayout = "table"\n[labels]\ntable = "labels.csv"',
        'image = "images/{image}.png"\nlabel = "dx"\nsplit = "split"']))
    found = check_dataset(str(root))
    assert found.facts['guess'] == "the column 'patient_id' of labels.csv: patient = 'patient_id' in [labels]"


def test_volumes_are_not_called_patients(mine):
    found = check_dataset(str(mine))
    assert found.facts['train'] == '8 images, 4 volumes' and found.facts['patients'].startswith('not known')
    (mine/'manifest.toml').write_text(write_manifest(str(mine)).read_text().replace("# patient = '", "patient = '"))
    assert check_dataset(str(mine)).facts['train'] == '8 images, 4 volumes, 4 patients'


# ------------------------------------------------------------------ segmentation

@pytest.fixture
def mine(tmp_path):
    "A user's own dataset of wide images: a background, a layer, and fluid by its name"
    for split, n in (('train', 4), ('val', 2), ('test', 2)):
        for kind, values in (('images', range(256)), ('masks', (0, 80, 160))):
            names = [f'{split}/{kind}/P{split[:2]}{p}_{s}.png' for p in range(n) for s in (1, 2)]
            for i, name in enumerate(names, 16*len(split)):
                x = np.random.default_rng(i + 999*(split == 'val')).choice(np.array(values, np.uint8), (16, 64))
                (tmp_path/'Mine'/name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(x).save(tmp_path/'Mine'/name)
    labels = (0, 'Background'), (80, 'RNFL'), (160, 'Fluid')
    info = {str(i): {'value': v, 'label': s} for i, (v, s) in enumerate(labels)}
    (tmp_path/'Mine'/'INFO.json').write_text(json.dumps(info))
    return tmp_path/'Mine'


def test_all_images_without_masks_are_found_and_the_others_looked_at(mine):
    for split in ('train', 'test'): (mine/split/'masks'/f'P{split[:2]}0_1.png').unlink()
    found = check_dataset(str(mine))
    assert len(found.problems) == 1 and found.problems[0].startswith('image without a mask (2):\n')
    for k in ('Ptr0_1', 'Pte0_1'): assert f'{k}.png has no mask {k}.png in' in found.problems[0]
    assert 'Move them to a folder unlabelled/' in found.problems[0] and '1 problem\n- image without' in str(found)
    assert found.facts['train'] == '7 images, 4 volumes' and found.picture is not None


def test_what_a_training_refuses_is_listed_in_the_same_words(mine):
    "Near duplicates and patients in two splits among it"
    (mine/'manifest.toml').write_text(write_manifest(str(mine)).read_text().replace("# patient = '", "patient = '"))
    rng = np.random.default_rng(0)
    scan = Image.fromarray(rng.integers(0, 200, (4, 9), np.uint8)).resize((64, 16), Image.Resampling.BICUBIC)
    scan.save(mine/'train/images/Ptr1_1.png')
    scan.point(lambda v: v + 9).save(mine/'test/images/Pte1_1.png')
    for kind in ('images', 'masks'): (mine/f'val/{kind}/Pva0_1.png').rename(mine/f'test/{kind}/Pva0_1.png')
    (mine/'val/images/Pva1_1.png').write_bytes(b'')
    found = check_dataset(str(mine))
    with pytest.raises(DataFaults) as e, pytest.warns(UserWarning): load_seg_data(read_manifest(str(mine)), '', ())
    assert sorted(e.value.table.kind) == ['empty file', 'near duplicate in two splits', 'patient in two splits']
    for what in e.value.table.what: assert any(what in p for p in found.problems), what
    assert len(found.problems) == 3 and found.picture is not None
    assert any('In a training, waive=near_duplicates accepts near_duplicates.' in p for p in found.problems)


def test_lesions_by_name_are_said_to_be_guessed(mine):
    assert check_dataset(str(mine)).facts['classes'] == 'Background (0), RNFL (80), Fluid (160, a lesion by its name)'
    manifest = read_manifest(str(mine))
    assert [c.group for c in load_seg_data(manifest).classes] == ['background', 'layer', 'lesion']
    text = write_manifest(str(mine)).read_text()
    assert 'label = "Fluid"\ngroup = "lesion"  # guessed from the label' in text
    stated = check_dataset(str(mine)).facts['classes']
    assert stated == 'Background (0), RNFL (80), Fluid (160)', 'what a manifest states is no guess'


def test_report_says_that_a_lesion_is_guessed(mine):
    from mirage_nb.recipes.segmentation import SegRecipe
    task = SegmentationTask.from_settings(SegRecipe(weights='random'), read_manifest(str(mine)))
    assert list(task.class_shares['train'].group) == ['background', 'layer', 'lesion, by its name']


@pytest.mark.parametrize('kind', ['masks', 'labels'])
def test_pictures_have_true_proportions(mine, tmp_path, kind):
    root = mine if kind == 'masks' else kermany(tmp_path/'Classes')
    axes = [ax for ax in check_dataset(str(root)).picture.axes if ax.images]
    want = 16/64 if kind == 'masks' else 8/24
    for ax in axes:
        h, w = ax.images[0].get_array().shape[:2]
        assert h*ax.get_aspect()/w == pytest.approx(want)


# ------------------------------------------------------------------ real images

@real
def test_real_sets(tmp_path):
    shutil.copytree(REAL/'kermany_biomarkers'/'bscan', tmp_path/'kermany')
    found = check_dataset(str(tmp_path/'kermany'))
    assert found.facts['guess'].startswith("45 patients, by patient = '^[^-]+-(\\d+)-'")
    info = json.loads((REAL/'kermany_biomarkers'/'INFO.json').read_text())
    assert [is_lesion(v['label']) for v in info.values()] == [False] + [True]*7


def test_masks_are_no_images_of_a_classification(tmp_path):
    "Images and masks that lie in folders of classes"
    root = tmp_path/'Both'
    for name in ('bscan', 'semseg'): kermany(root, f'{name}/')
    text = ''.join(f"{k} = 'x'\n" for k in ('title', 'source', 'licence', 'citation', 'get'))
    text += "name = 'Both'\ntask = 'classification'\nmodality = 'bscan'\n"
    text += "layout = 'classes'\n"
    (root/'manifest.toml').write_text(text)
    found = check_dataset(str(root))
    assert found.facts['images'] == '24' and 'bscan and semseg hold images and masks' in found.problems[0]
    assert "set [splits] train = 'bscan'" in found.problems[0]
    (root/'manifest.toml').write_text(text + "patient = '^[^-]+-(\\d+)-'\n[splits]\ntrain = 'bscan'\n")
    found = check_dataset(str(root))
    assert (found.facts['images'], found.facts['patients'], found.problems) == ('24', '12', [])
    assert found.facts['train'].startswith(('CNV', 'DME'))


# ------------------------------------------------------------------ splits that are not there yet

def masks(root, volumes, split=''):
    for name in ('bscan', 'semseg'): (root/split/name).mkdir(parents=True)
    for i, v in enumerate(volumes):
        pixels = np.random.default_rng(i).integers(0, 255, (24, 24), np.uint8)
        Image.fromarray(pixels).save(root/split/'bscan'/f'{v}_00.png')
        Image.fromarray(np.uint8(pixels > 99)).save(root/split/'semseg'/f'{v}_00.png')
    classes = {str(i): {'value': i, 'label': k} for i, k in enumerate(('Background', 'Fluid'))}
    (root/'INFO.json').write_text(json.dumps(classes))
    return root


def test_a_set_without_splits_has_none_yet(tmp_path):
    facts = check_dataset(str(masks(tmp_path/'Mine', [f'P{i}' for i in range(10)]))).facts
    assert facts['images'] == '10 images'
    assert facts['splits'] == 'none yet; a run draws them by image (10): 70 % train, 15 % val, 15 % test'
    assert [facts[k] for k in ('train', 'val', 'test')] == ['7 images', '2 images', '1 image']
    facts = check_dataset(str(kermany(tmp_path/'Classes'))).facts
    assert facts['splits'].startswith('none yet; a run draws them by image (24)')


def test_a_set_without_val_gets_it_from_train(tmp_path):
    masks(tmp_path/'Mine', [f'P{i}' for i in range(8)], 'train')
    facts = check_dataset(str(masks(tmp_path/'Mine', ['Q1', 'Q2'], 'test'))).facts
    assert facts['splits'] == ('no val yet; a run draws it by image (10): 1 of the 8 in train became val, which was '
                               'missing')
    assert [facts[k] for k in ('train', 'val', 'test')] == ['7 images', '1 image', '2 images']


def test_images_behind_linked_folders_are_counted(tmp_path):
    there = kermany(tmp_path/'There')
    (mine := tmp_path/'Mine').mkdir()
    for p in there.iterdir(): (mine/p.name).symlink_to(p)
    facts = check_dataset(str(mine)).facts
    assert facts['images'] == '24' and facts['sizes'].startswith('8 x 24') and facts['guess'].startswith('12 patients')


def test_check_writes_croissant(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    assert main(['check', str(kermany(tmp_path/'Mine')), '--croissant']) == 1  # patients are not known
    path = Path(capsys.readouterr().out.splitlines()[0].removeprefix('croissant: '))
    assert json.loads(path.read_text())['name'] == 'Mine' and path.parent == tmp_path/'runs'/'checks'
    assert main(['check', 'Mine', '--croisant']) == 1
    assert capsys.readouterr().err == 'usage: mirage-nb check DATASET [--write-manifest] [--croissant]\n'
