"What is wrong with a manifest or a class list is said with file, place and remedy, and a JSON Schema says it too"
import json
import subprocess
import sys
import tomllib

import jsonschema
import pytest

from mirage_nb.core import resource_dir
from mirage_nb.data.manifest import (
    _list_manifests,
    _main,
    classes_of,
    dataset_dir,
    label_facts,
    manifest_schema,
    read_manifest,
)
from mirage_nb.data.segmentation import seg_table
from mirage_nb.recipes.classification import cls_recipe
from tests.data.samples import MANIFEST

FOLDER = resource_dir('data_manifests')
FILES = sorted(FOLDER.glob('*.toml'))


# ------------------------------------------------------------------ finding a dataset

def test_wrong_dataset_name(tiny):
    with pytest.raises(KeyError, match="no dataset 'Duke_DMY'. Did you mean 'Duke_DME'"): read_manifest('Duke_DMY')
    with pytest.raises(KeyError, match="Did you mean 'Tiny'"): read_manifest('Tny')


def test_missing_folder_says_where_and_how(tiny):
    with pytest.raises(FileNotFoundError, match=f"no folder 'GOALS' in MIRAGE_DATA={tiny.parent}. Get it: .*GOALS.zip"):
        dataset_dir(read_manifest('GOALS'))


def test_missing_toml(tmp_path):
    with pytest.raises(FileNotFoundError, match='no manifest .*X.toml'): read_manifest(tmp_path/'X.toml')


def test_a_file_is_no_dataset(tmp_path):
    for name, more in (('breast.npz', r'\. Save the images in this file as SPLIT/CLASS/ID.png'), ('notes.doc', '$')):
        (tmp_path/name).write_bytes(b'x')
        with pytest.raises(ValueError, match=rf'{name} is a file; a dataset is a folder, a name, or .*\(.toml\){more}'):
            read_manifest(tmp_path/name)


def test_folder_of_scanner_files_alone(tmp_path):
    (tmp_path/'Jane_Doe.vol').write_bytes(b'x')
    with pytest.raises(FileNotFoundError, match=r'1 file of scanners left out \(1 .vol\). .*mirage-nb import') as e:
        read_manifest(tmp_path)
    assert 'Jane' not in str(e.value) and str(e.value).endswith(f'mirage-nb measure images={tmp_path}')


def test_folder_without_classes(tiny):
    (tiny/'INFO.json').unlink()
    with pytest.raises(FileNotFoundError, match='holds neither manifest.toml nor INFO.json'): read_manifest('Tiny')
    (tiny/'manifest.toml').write_text(MANIFEST)
    with pytest.raises(FileNotFoundError, match='INFO.json is missing, and manifest.toml names no classes'):
        classes_of(read_manifest('Tiny'), tiny)


def test_broken_info(tiny):
    (tiny/'INFO.json').write_text('{"0": ')
    with pytest.raises(ValueError, match='INFO.json is not JSON'): classes_of(read_manifest('Tiny'), tiny)
    (tiny/'INFO.json').write_text('{"0": {"value": 0, "label": "bg"}, "1": {"value": "80", "label": "RNFL"}}')
    with pytest.raises(ValueError, match="INFO.json: \"1\": value takes a whole number, got '80'"):
        classes_of(read_manifest('Tiny'), tiny)


@pytest.mark.parametrize('rows, text', [
    (', "1": {"value": 300}', '"1": value is from 0 to 255, not 300\n.*"1": \'label\' is missing'),
    (', "1": {"value": 0, "label": "RNFL"}', "INFO.json: grey value 0 is both 'bg' and 'RNFL'"),
    ('', 'INFO.json: classes has 1 entries')])
def test_faults_of_an_info_are_said_in_its_own_words(tiny, rows, text):
    (tiny/'INFO.json').write_text('{"0": {"value": 0, "label": "bg"}' + rows + '}')
    with pytest.raises(ValueError, match=text) as e: classes_of(read_manifest('Tiny'), tiny)
    assert not [k for k in ('classes[', '[[', 'section', '.toml') if k in str(e.value)]


def test_labels_of_a_folder_without_a_manifest(tiny):
    with pytest.raises(ValueError, match='INFO.json names the classes of its masks.*write .*Tiny/manifest.toml with'):
        label_facts(read_manifest('Tiny'))


def test_byte_order_marks(tiny):
    "Some editors put one before INFO.json and manifest.toml"
    plain = classes_of(read_manifest('Tiny'), tiny)
    for name, text in (('INFO.json', (tiny/'INFO.json').read_text()), ('manifest.toml', MANIFEST)):
        (tiny/name).write_text(text, encoding='utf-8-sig')
        assert (tiny/name).read_bytes()[:3] == b'\xef\xbb\xbf'
        assert classes_of(read_manifest('Tiny'), tiny) == plain
    assert read_manifest('Tiny').title == 'Tiny'


def test_images_and_masks_are_no_classes(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    for k in ('images', 'masks'):
        (tmp_path/'Mine'/k).mkdir(parents=True)
        (tmp_path/'Mine'/k/'P1_1.png').touch()
    with pytest.raises(FileNotFoundError, match='masks in masks one of them has to name the classes. INFO.json: {"0'):
        read_manifest('Mine')
    (tmp_path/'Mine'/'INFO.json').write_text('{"0": {"value": 0, "label": "bg"}, "1": {"value": 9, "label": "Fluid"}}')
    found = read_manifest('Mine')
    assert (found.task, found.layout, found.test_masks) == ('segmentation', 'flat', True)


def test_class_folders_in_any_way(tmp_path, monkeypatch):
    "With splits under their usual names, or without; a folder of one class is no dataset"
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    for k in ('Loose/AMD', 'Loose/normal', 'Split/Training/AMD', 'Split/valid/AMD', 'Split/test/AMD', 'One/AMD'):
        (tmp_path/k).mkdir(parents=True)
        (tmp_path/k/'a.png').touch()
    (tmp_path/'Loose'/'INFO.json').write_text('{"mean": [0.5], "std": [0.2]}')  # for pre-training, not for masks
    assert read_manifest('Loose').splits == {} and read_manifest('Loose').task == 'classification'
    assert read_manifest('Split').splits == {'train': 'Training', 'val': 'valid', 'test': 'test'}
    with pytest.raises(FileNotFoundError, match='nor two folders of images or more'): read_manifest('One')
    (tmp_path/'Split'/'val').mkdir()
    with pytest.raises(ValueError, match='holds val and valid; keep one folder for the split val'):
        read_manifest('Split')
    assert {'Loose', 'Split'} <= set(_list_manifests())


@pytest.mark.parametrize('layout', ['classes', 'splits', 'flat'])
def test_folders_of_classes_by_any_layout(layout, tmp_path):
    "Those who sort SPLIT/CLASS write splits, and they are right"
    facts = GOOD | {'task': 'classification', 'layout': layout}
    found = read_manifest(written(tmp_path/'Two.toml', facts))
    assert (found.layout, found.splits) == ('classes', {'train': 'train', 'val': 'val', 'test': 'test'})
    assert refused(tmp_path/'Two.toml', facts, '[labels]\ntable = "t.csv"') == [
        "labels: class folders have no 'table'; leave it out, or use layout = 'table'" if layout == 'classes' else
        "labels: a table takes the fields 'table' and 'image'; class folders are layout = 'classes'"]


def test_own_dataset_in_any_way(tiny, tmp_path):
    "By name, by folder, by the path of a TOML file beside or away from the images"
    derived = read_manifest('Tiny')
    assert (derived.name, derived.layout, set(derived.splits)) == ('Tiny', 'splits', {'train', 'val', 'test'})
    assert read_manifest(tiny) == derived and 'Tiny' in _list_manifests()
    (tiny/'manifest.toml').write_text(MANIFEST + "patient = '^(P[0-9]+)'\nlesions = ['Fluid']")
    (tmp_path/'Tiny.toml').write_text(MANIFEST + 'title2 = 1')
    own = read_manifest('Tiny')
    assert [c.group for c in classes_of(own, tiny)] == ['background', 'layer', 'lesion']
    assert list(seg_table(own, 'train').patient.unique()) == ['P1', 'P2']
    with pytest.raises(ValueError, match="Tiny.toml: no field 'title2'. Did you mean 'title'"):
        read_manifest(tmp_path/'Tiny.toml')
    (tmp_path/'Tiny.toml').write_text(MANIFEST)
    assert dataset_dir(read_manifest(tmp_path/'Tiny.toml')) == tiny


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_shipped_manifests(path):
    m = read_manifest(path)
    values = {c.value for c in m.classes}
    assert m.name == path.stem and m.citation and m.quirks
    assert m.task == 'segmentation' or m.task == 'classification' and m.labels
    if m.labels: assert cls_recipe(m.labels.recipe).recipe == m.labels.recipe
    for source, table in m.class_maps.items():
        theirs = {c.value for c in read_manifest(source).classes}
        assert set(table) == theirs and set(table.values()) <= values


def test_class_map_sends_lesions_to_invalid():
    iamd, aroi = read_manifest('Duke_iAMD_labeled'), read_manifest('AROI')
    group = {c.value: c.group for c in iamd.classes}
    for c in aroi.classes: assert (group[iamd.class_maps['AROI'][c.value]] == 'invalid') == (c.group == 'lesion')


# ------------------------------------------------------------------ recorded and real sets

def test_manifests_take_recorded_info(golden):
    "Classes of INFO.json beside the recorded scores, whatever their labels and number"
    infos = sorted((golden/'segmentation_eval').glob('*/INFO.json'))
    assert infos
    for info in infos:
        classes = classes_of(read_manifest(info.parent.name), info.parent)
        assert [c.value for c in classes] == [c['value'] for c in json.loads(info.read_text()).values()]


# ------------------------------------------------------------------ all faults of a file, and its schema

GOOD = {'title': 'Two layers', 'task': 'segmentation', 'modality': 'bscan', 'layout': 'splits', 'source': 'example.org',
        'licence': 'CC BY 4.0', 'citation': 'A paper', 'get': 'ask for it'}


def written(path, facts, more=''):
    lines = [f'{k} = {json.dumps(v)}' for k, v in facts.items()]
    path.write_text('\n'.join([*lines, more]))
    return path


def refused(path, *args):
    with pytest.raises(ValueError) as e: read_manifest(written(path, *args))
    return str(e.value).replace(f'{path}: ', '').splitlines()


def test_all_faults_of_a_file(tmp_path):
    facts = GOOD | {'name': 'Three', 'licence': ' ', 'layout': 'split', 'size': [512], 'test_masks': 'no',
                    'patient': '(P', 'quirks': ['odd', 3]}
    del facts['get']
    found = refused(tmp_path/'Two.toml', facts, '''
test_mask = false
[splits]
valid = "validation"
[[classes]]
value = 300
lable = "Background"
group = "backgrond"
[class_maps.AROI]
zero = 0
0 = "1"
[labels]
multi = "yes"
reader = "ChexPert"
shares = [0.5, "rest"]
values = {1 = [2]}
''')
    assert sorted(found) == sorted([
        "'name' is 'Three'; its file is named 'Two'", 'licence is empty; it takes a text',
        "'get' is missing; it takes a text",
        "no layout 'split'. Did you mean 'splits'? Known: splits, flat, classes, table",
        'size takes 2 values, not [512]',
        "test_masks takes true or false, got 'no'", 'quirks[1] takes a text, got 3',
        "patient is not a regular expression: missing ), unterminated subpattern at position 0, in '(P'",
        next(k for k in found if k.startswith("no field 'test_mask'. Did you mean 'test_masks'? Known: title, ")),
        "splits: no field 'valid'. Did you mean 'val'? Known: train, val, test",
        'classes[0].value is from 0 to 255, not 300',
        "classes[0]: no field 'lable'. Did you mean 'label'? Known: value, label, group",
        "classes[0]: 'label' is missing; it takes a text",
        "classes[0]: no group 'backgrond'. Did you mean 'background'? Known: background, layer, lesion, invalid",
        "class_maps.AROI.zero: the grey value 'zero' is not a whole number from 0 to 255",
        "class_maps.AROI.0 takes a whole number, got '1'", "labels.multi takes true or false, got 'yes'",
        next(k for k in found if k.startswith("labels: no reader 'ChexPert'. Did you mean 'CheXpert'? Known: ")),
        "labels.shares[1] takes a number, got 'rest'", 'labels.values.1 takes a text, got [2]'])


def test_all_conflicts_of_a_file(tmp_path):
    found = refused(tmp_path/'Two.toml', GOOD | {'layout': 'flat'}, '''
[splits]
val = "validation"
[[classes]]
value = 7
label = "a"
[[classes]]
value = 7
label = "b"
[class_maps.AROI]
0 = 8
[labels]
table = "t.csv"
image = "{id}.png"
policy = "ones"
''')
    assert found == [
        "classes: grey value 7 is both 'a' and 'b'", 'class_maps.AROI maps 0 to 8; it takes 7',
        "splits: a flat dataset has no [splits]; leave them out, or use layout = 'splits'",
        "labels.policy goes with a 'reader', one of NIH_ChestXray14, CheXpert, MIMIC_CXR, COVIDx, NODE21",
        "labels: 'label' is missing, the column of the class; where each class has one, use multi = true"]


def test_schema_is_current(capsys):
    assert _main(['--schema']) == 0
    text = capsys.readouterr().out
    assert text == (FOLDER/'manifest.schema.json').read_text(encoding='utf-8'), \
        'python -m mirage_nb.data.manifest --schema > data_manifests/manifest.schema.json'
    jsonschema.Draft7Validator.check_schema(json.loads(text))


@pytest.fixture(scope='module')
def validator(): return jsonschema.Draft7Validator(manifest_schema())


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_shipped_manifest_fits_the_schema(path, validator):
    text = path.read_text(encoding='utf-8')
    assert text.splitlines()[0] == '#:schema manifest.schema.json'
    assert not [e.message for e in validator.iter_errors(tomllib.loads(text))]


@pytest.mark.parametrize('more', [
    'test_mask = false', 'test_masks = "no"', 'size = [512]', 'size = [0, 5]', 'quirks = ["a", 1]',
    '[splits]\nvalid = "v"', '[splits]\nval = ""', '[[classes]]\nvalue = 256\nlabel = "x"', '[[classes]]\nvalue = 1',
    '[class_maps.AROI]\nx = 1', '[class_maps.AROI]\n1 = "1"', '[labels]\nreader = "chexpert"',
    '[labels]\nshares = ["a"]', '[labels.values]\n1 = [2]', '[labels]\nfill = "0"', '[labels]\ntables = "t.csv"'])
def test_schema_refuses_what_the_reader_refuses(more, validator, tmp_path):
    path = written(tmp_path/'Two.toml', GOOD, more)
    assert list(validator.iter_errors(tomllib.loads(path.read_text())))
    with pytest.raises(ValueError, match='Two.toml: '): read_manifest(path)
    assert not list(validator.iter_errors(tomllib.loads(written(path, GOOD).read_text()))) and read_manifest(path)


def test_every_field_of_the_schema_has_a_meaning(validator):
    schema = validator.schema
    objects = [schema, *schema['definitions'].values()]
    assert len(objects) == 7
    assert all(v.get('description', '').strip() for o in objects for v in o['properties'].values())


@pytest.mark.slow
def test_command_checks_files(tmp_path):
    wrong = written(tmp_path/'Two.toml', GOOD | {'task': 'classifying', 'quirks': 'odd'})
    command = [sys.executable, '-m', 'mirage_nb.data.manifest', str(wrong), 'AROI']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith('AROI: AROI: layers')
    assert done.stderr.splitlines() == [
        f"{wrong}: no task 'classifying'. Did you mean 'classification'? Known: segmentation, classification",
        f"{wrong}: quirks takes a list of texts, got 'odd'"]
    assert _main([]) == 2


def test_command_names_a_recipe_that_does_not_exist(tmp_path, capsys):
    (tmp_path/'Tiny.toml').write_text(MANIFEST + 'recipe = "seg_smal"\n')
    assert _main([str(tmp_path/'Tiny.toml')]) == 1
    assert "Tiny.toml: recipe: no recipe 'seg_smal'. Did you mean 'seg_small'?" in capsys.readouterr().err


def test_segmentation_reads_bscans(tmp_path):
    (tmp_path/'Tiny.toml').write_text(MANIFEST.replace('"bscan"', '"slo"'))
    with pytest.raises(ValueError, match="modality is 'slo'; a segmentation reads B-scans, modality = 'bscan'"):
        read_manifest(str(tmp_path/'Tiny.toml'))


@pytest.mark.parametrize('name', ['Phantom_OCT', 'Phantom_CXR', 'Phantom_UWF'])
def test_get_of_a_phantom_finds_its_module(name, monkeypatch):
    code = read_manifest(name).get.split('"')[1]
    calls, rest = code.rsplit('; ', 1)
    space = {}
    exec(calls, space)  # the imports; drawing takes long and is tested elsewhere
    assert callable(space[rest.split('(')[0]])
