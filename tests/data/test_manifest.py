"What is wrong with a manifest or a class list is said with its file, its place and the remedy"
import json

import pytest

from mirage_nb.core import resource_dir
from mirage_nb.data.manifest import _list_manifests, classes_of, dataset_dir, read_manifest
from mirage_nb.data.segmentation import seg_table
from mirage_nb.recipes.classification import cls_recipe

MANIFEST = '''
title = "Tiny"
task = "segmentation"
modality = "bscan"
layout = "splits"
source = "a test"
licence = "none"
citation = "none"
get = "made by a test"
'''


# ------------------------------------------------------------------ finding a dataset

def test_wrong_dataset_name(tiny):
    with pytest.raises(KeyError, match="no dataset 'Duke_DMY'. Did you mean 'Duke_DME'"): read_manifest('Duke_DMY')
    with pytest.raises(KeyError, match="Did you mean 'Tiny'"): read_manifest('Tny')


def test_missing_folder_says_where_and_how(tiny):
    with pytest.raises(FileNotFoundError, match=f"no folder 'GOALS' in MIRAGE_DATA={tiny.parent}. Get it: .*GOALS.zip"):
        dataset_dir(read_manifest('GOALS'))


def test_missing_toml(tmp_path):
    with pytest.raises(FileNotFoundError, match='no manifest .*X.toml'): read_manifest(tmp_path/'X.toml')


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
    with pytest.raises(ValueError, match="INFO.json: class 1 has the grey value '80'"):
        classes_of(read_manifest('Tiny'), tiny)


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


@pytest.mark.parametrize('path', sorted(resource_dir('data_manifests').glob('*.toml')), ids=lambda p: p.stem)
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
