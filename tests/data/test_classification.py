"What a user may get wrong in a set for classification, seen through 31_cls_tune itself"
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.data.classification import load_labelled
from mirage_nb.data.manifest import _list_manifests, read_manifest

CLASSES = ('AMD', 'DME', 'normal')
HEAD = '\n'.join(f'{k} = "x"' for k in ('title', 'modality', 'source', 'licence', 'citation', 'get'))


def picture(path, seed, mode='L', size=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 255, (*size, len(mode)), np.uint8)
    Image.fromarray(x.squeeze(), mode).save(path)


@pytest.fixture
def folders(home, monkeypatch):
    "A set in class folders, 4 images per class and split"
    monkeypatch.setenv('MIRAGE_DATA', str(home/'data'))
    root, n = home/'data'/'Eyes', 0
    for split in ('train', 'val', 'test'):
        for c in CLASSES:
            for i in range(4):
                picture(root/split/c/f'{c}_{split}{i}.png', n := n + 1)
    return root


@pytest.fixture
def table(folders):
    "The same as a table"
    rows = [(p.stem, f'{p.parent.parent.name}/{p.parent.name}', p.parent.name, p.parent.parent.name, f'P{i//2}', 'OD')
            for i, p in enumerate(sorted(folders.rglob('*.png')))]
    cells = pd.DataFrame(rows, columns=['name', 'part', 'dx', 'set', 'who', 'side'])
    (folders/'manifest.toml').write_text(f'''{HEAD}
task = "classification"
layout = "table"
[labels]
table = "t.csv"
image = "{{part}}/{{name}}.png"
label = "dx"
patient = "who"
eye = "side"
split = "set"
classes = {list(CLASSES)}
''')
    cells.to_csv(folders/'t.csv', index=False)
    return cells, folders/'t.csv'


@pytest.fixture
def unsplit(home, monkeypatch):
    "Class folders of ten patients each, two images of each patient, without splits"
    monkeypatch.setenv('MIRAGE_DATA', str(home/'data'))
    root, n = home/'data'/'Loose', 0
    for c in CLASSES:
        for i in range(20): picture(root/c/f'{c}{i//2:02d}_{i % 2}.png', n := n + 1)
    (root/'manifest.toml').write_text(f"""{HEAD}
task = "classification"
layout = "classes"
patient = '^([^_]+)'
[labels]
shares = [0.6, 0.2, 0.2]
""")
    return root


@pytest.fixture
def tune(execute):
    "31_cls_tune up to its end, as small as it can be"
    small = dict(recipe='cls_small', size=32, epochs=1, probes=False, baselines=False, precision='fp32')
    return lambda **more: execute('cls_tune', **{'dataset': 'Eyes', **small, **more})


def fails(tune, text, kind=ValueError, **more):
    with pytest.raises(kind) as e: tune(**more)
    assert text in str(e.value), e.value


def test_stray_files_are_no_classes(folders):
    (folders/'train'/'notes.txt').touch()
    for name in ('.ipynb_checkpoints', '__MACOSX', 'empty'): (folders/'train'/name).mkdir()
    (folders/'train'/'AMD'/'Thumbs.db').touch()
    with pytest.warns(UserWarning, match='empty, notes.txt ignored'): data = load_labelled(read_manifest('Eyes'))
    assert data.classes == CLASSES and len(data.table) == 36


def test_class_missing_from_training(folders, tune):
    for p in (folders/'train'/'DME').iterdir(): p.unlink()
    fails(tune, 'no image of class DME in train, so it cannot be learnt; it is in val, test')


def test_class_missing_from_the_test_is_said(folders):
    for p in (folders/'test'/'DME').iterdir(): p.unlink()
    with pytest.warns(UserWarning, match='no image of class DME in test'): data = load_labelled(read_manifest('Eyes'))
    assert data.counts().loc['DME'].tolist() == [4, 4, 0]


def test_one_class_only(folders, tune):
    for p in folders.rglob('*.png'):
        if p.parent.name != 'AMD': p.unlink()
    fails(tune, 'holds one class only, AMD; there is nothing to distinguish')


def test_label_outside_the_list(table, tune):
    cells, path = table
    cells.assign(dx=cells.dx.replace('DME', 'DMEE')).to_csv(path, index=False)
    fails(tune, "no class 'DMEE'. Did you mean 'DME'?")


def test_folder_outside_the_list(folders, tune):
    (folders/'manifest.toml').write_text(f'{HEAD}\ntask = "classification"\nlayout = "classes"\n[labels]\n'
                                         'classes = ["AMD", "normal"]\n')
    fails(tune, "no class 'DME'. Known: AMD, normal")


def test_duplicate_ids(table, tune):
    cells, path = table
    cells.assign(name=['AMD_test1', *cells.name[1:]]).to_csv(path, index=False)
    fails(tune, 'the id AMD_test1 (test: AMD/AMD_test1.png, test: AMD/AMD_test1.png) occurs more than once')


def test_image_in_two_splits_by_id(folders, tune):
    picture(folders/'val'/'AMD'/'AMD_train0.png', 99)
    fails(tune, 'the id AMD_train0 (train: AMD/AMD_train0.png, val: AMD/AMD_train0.png): in more than one split')


def test_image_in_two_splits_by_content(folders, tune):
    (folders/'test'/'AMD'/'copy.png').write_bytes((folders/'train'/'AMD'/'AMD_train0.png').read_bytes())
    fails(tune, 'the same image (train: AMD/AMD_train0.png, test: AMD/copy.png): in more than one split')
    with pytest.warns(UserWarning, match='1 in more than one split, so scores are too high: image'):
        data = load_labelled(read_manifest('Eyes'), ['duplicates'])
    assert data.leaks.kind.tolist() == ['image']


def test_one_image_with_two_labels(folders, tune):
    (folders/'train'/'DME'/'copy.png').write_bytes((folders/'train'/'AMD'/'AMD_train0.png').read_bytes())
    fails(tune, 'has more than one label')


def test_patient_in_two_splits_is_said(table):
    cells, path = table
    cells.assign(who=['P1', *cells.who[1:-1], 'P1']).to_csv(path, index=False)
    with pytest.warns(UserWarning, match='patient P1 '): data = load_labelled(read_manifest('Eyes'))
    assert data.leaks.what.tolist() == ['P1']


def test_empty_file(folders, tune):
    (folders/'test'/'AMD'/'AMD_test0.png').write_bytes(b'')
    (folders/'val'/'AMD'/'AMD_val0.png').write_bytes(b'no image')
    with pytest.raises(ValueError) as e: tune()
    assert '2 faults in 36 files' in str(e.value) and 'AMD_test0.png (0 bytes) cannot be read' in str(e.value)


def test_truncated_file(folders, tune):
    p = folders/'test'/'AMD'/'AMD_test0.png'
    p.write_bytes(p.read_bytes()[:300])
    fails(tune, 'AMD_test0.png')


def stack(path):
    pages = [Image.fromarray(np.full((24, 32), k, np.uint8)) for k in (9, 90)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def holes(path):
    x = np.random.default_rng(0).random((24, 32), np.float32)
    x[3, 4] = np.nan
    Image.fromarray(x).save(path)


def test_images_that_cannot_be_read_later_are_found_first(folders):
    train = folders/'train'/'AMD'
    Image.new('LAB', (32, 24)).save(train/'lab.tif')
    stack(train/'stack.tif')
    holes(train/'holes.tif')
    with pytest.raises(ValueError) as e: load_labelled(read_manifest('Eyes'))
    said = str(e.value)
    assert '3 faults in 39 files' in said and 'wrong type (2)' in said and 'out of range (1)' in said
    assert 'lab.tif holds pixels of mode LAB' in said
    assert 'stack.tif holds 2 pages; one image a file is expected' in said
    assert 'holes.tif holds pixels that are NaN or infinite' in said


@pytest.mark.slow
def test_rgba_and_16_bit_images_are_read(folders, tune):
    picture(folders/'train'/'AMD'/'AMD_train0.png', 5, 'RGBA')
    picture(folders/'train'/'AMD'/'AMD_train1.png', 6, 'RGB')
    x = np.random.default_rng(7).integers(0, 4095, (24, 32), np.uint16)
    Image.fromarray(x).save(folders/'train'/'AMD'/'AMD_train2.png')
    space = tune()
    assert len(space['history']) == 1
    sample = {s['id']: s['bscan'] for s in (space['task'].sets['train'][0, i] for i in range(12))}['AMD_train2']
    assert sample.std() > .05, 'a dark 16-bit image is stretched'


@pytest.mark.parametrize('change, text', [
    ({'dx': ''}, 'no class'), ({'set': 'D'}, "no split 'D'"), ({'name': 'gone'}, 'none of the 36 images')])
def test_faults_of_a_table(table, tune, change, text):
    cells, path = table
    cells.assign(**change).to_csv(path, index=False)
    with pytest.raises((ValueError, FileNotFoundError)) as e, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        tune()
    assert text in str(e.value) or change == {'dx': ''}


def test_rows_without_a_label_are_left_out(table):
    cells, path = table
    cells.assign(dx=['', *cells.dx[1:]]).to_csv(path, index=False)
    with pytest.warns(UserWarning, match='1 rows have no label and are left out'):
        data = load_labelled(read_manifest('Eyes'))
    assert len(data.table) == 35


@pytest.mark.slow
def test_several_labels_with_missing_ones(folders, table, tune):
    cells, path = table
    rng = np.random.default_rng(0)
    for c in CLASSES: cells[c] = [('1', '0', '')[k] for k in rng.choice(3, len(cells), p=[.45, .45, .1])]
    cells.to_csv(path, index=False)
    text = (folders/'manifest.toml').read_text().replace('label = "dx"', 'multi = true')
    (folders/'manifest.toml').write_text(text)
    space = tune()
    t = pd.read_csv(space['run'].folder/'predictions_test.csv')
    assert [c for c in t if ':' in c] == [f'{k}:{c}' for k in ('label', 'score', 'logit') for c in CLASSES]
    assert np.isfinite(space['history'].loss).all() and t.filter(like='label:').isna().to_numpy().any()
    cells.assign(AMD='-1').to_csv(path, index=False)
    fails(tune, "'AMD' is '-1'; it takes 1, 0 or nothing")


@pytest.mark.slow
def test_no_split_to_select_on(folders, tune):
    import shutil
    shutil.rmtree(folders/'val')
    with pytest.warns(UserWarning, match='Eyes: splits are drawn by image'): space = tune()
    assert space['task'].data.drawn == 'drawn by image (24): 2 of the 12 in train became val, which was missing'
    assert not set(space['task'].data.splits['val'].id) & {p.stem for p in (folders/'test').rglob('*.png')}
    assert set(tune(monitor='last')['task'].data.splits) == {'train', 'test'}, 'the last epoch needs none'


def test_segmentation_set_without_labels(home, tune, shared_data, monkeypatch):
    monkeypatch.setenv('MIRAGE_DATA', str(shared_data))
    fails(tune, 'Duke_DME is for segmentation: mirage-nb seg_tune dataset=Duke_DME', dataset='Duke_DME')


@pytest.mark.parametrize('split', ['val', 'test'])
def test_a_split_of_one_class_stops_before_training(folders, tune, split):
    for p in folders.rglob('*.png'):
        if p.parent.parent.name == split and p.parent.name != 'DME': p.unlink()
    fails(tune, f'nothing can be distinguished in {split}: of its 4 images all are DME. Move some images of another')


def test_a_split_in_which_no_label_varies_stops_before_training(folders, table, tune):
    cells, path = table
    for c in CLASSES: cells[c] = ((cells.dx == c) | (cells.set == 'test')).astype(int).astype(str)
    (folders/'manifest.toml').write_text((folders/'manifest.toml').read_text().replace('label = "dx"', 'multi = true'))
    cells.to_csv(path, index=False)
    fails(tune, 'distinguished in test: of its 12 images no label is 1 for some and 0 for others. Move some')
    cells['AMD'] = cells.AMD.mask(cells.set == 'test', ['0', '1', '']*12)
    cells.to_csv(path, index=False)
    assert load_labelled(read_manifest('Eyes')).multi


def test_every_manifest_names_a_recipe():
    from mirage_nb.recipes.classification import CLS_RECIPES
    from mirage_nb.recipes.segmentation import SEG_RECIPES as RECIPES
    for name in _list_manifests():
        m = read_manifest(name)
        assert not m.labels or m.labels.recipe in CLS_RECIPES, f'{name}: {m.labels.recipe}'
        assert m.task != 'segmentation' or m.recipe in RECIPES, name


@pytest.mark.slow
def test_real_sets_are_read(shared_data, home, monkeypatch):
    "Noor by its folders; UNAM by its table, split by patient; NIH by its own table"
    data = home/'data'
    data.mkdir()
    for name, folder in (('Noor_Eye_Hospital', 'noor_oct'), ('UNAM', 'unam'), ('NIH_ChestXray14', 'cxr_nih_64px')):
        (data/name).symlink_to(shared_data/folder)
    monkeypatch.setenv('MIRAGE_DATA', str(data))
    noor = load_labelled(read_manifest('Noor_Eye_Hospital'))
    assert noor.counts().to_numpy().tolist() == [[30, 10, 10]]*3 and (noor.table.patient == '').all()
    unam = load_labelled(read_manifest('UNAM'))
    assert len(unam.table) == 60 and unam.table.patient.nunique() == 32
    assert unam.table.groupby('patient').split.nunique().max() == 1
    assert set(unam.table.split) == {'train', 'val', 'test'}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        nih = load_labelled(read_manifest('NIH_ChestXray14'), ['duplicates', 'patients'])
    assert nih.multi and len(nih.classes) == 14 and len(nih.table) == 1000


def test_class_folders_without_splits(unsplit):
    "Drawn by patient, the same each time; each class keeps its shares; nothing is a stray"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = [load_labelled(read_manifest('Loose')) for _ in range(2)]
    assert found[0].table.equals(found[1].table) and not len(found[0].leaks)
    assert found[0].counts().to_numpy().tolist() == [[12, 4, 4]]*3
    assert found[0].table.groupby('patient').split.nunique().eq(1).all()


def test_splits_drawn_by_image_are_said(unsplit):
    text = (unsplit/'manifest.toml').read_text()
    (unsplit/'manifest.toml').write_text(text.replace("patient = '^([^_]+)'", ''))
    with pytest.warns(UserWarning, match='drawn by image, because no patient is known'):
        data = load_labelled(read_manifest('Loose'))
    assert set(data.table.patient) == {''}


def test_class_folders_with_and_without_splits(unsplit):
    (unsplit/'train').mkdir()
    with pytest.raises(ValueError, match='shares draws splits, and .* has them already: train. Take one'):
        load_labelled(read_manifest('Loose'))
    (unsplit/'train').rmdir()
    text = (unsplit/'manifest.toml').read_text()
    (unsplit/'manifest.toml').write_text(text.replace('shares = [0.6, 0.2, 0.2]', ''))
    drawn = load_labelled(read_manifest('Loose'), splits='')
    assert drawn.drawn == 'drawn by patient (30): 70 % train, 15 % val, 15 % test'
    assert set(load_labelled(read_manifest('Loose')).table.split) == {'test'}, 'nobody asks for splits'
    (unsplit/'manifest.toml').write_text(text.replace('shares = [0.6, 0.2, 0.2]', '').replace('"classes"', '"table"'
                                         ) + 'table = "t.csv"\nimage = "{image}"\nlabel = "dx"\n')
    rows = [(str(p.relative_to(unsplit)), p.parent.name) for p in sorted(unsplit.rglob('*.png'))]
    pd.DataFrame(rows, columns=['image', 'dx']).to_csv(unsplit/'t.csv', index=False, encoding='utf-8-sig')
    with pytest.warns(UserWarning, match='drawn by image'): table = load_labelled(read_manifest('Loose'), splits='')
    assert set(table.splits) == {'train', 'val', 'test'} and len(table.table) == 60
    (unsplit/'manifest.toml').unlink()
    with pytest.warns(UserWarning, match='drawn by image'):
        plain = load_labelled(read_manifest('Loose'), splits='0.5/0.2/0.3')
    assert plain.counts().sum().to_dict() == {'train': 30, 'val': 12, 'test': 18}
    for p in unsplit.rglob('*.png'): p.unlink()
    (unsplit/'train'/'AMD').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='holds neither CLASS/ID.png nor SPLIT/CLASS/ID.png; its splits are tr'):
        load_labelled(read_manifest('Loose'))
