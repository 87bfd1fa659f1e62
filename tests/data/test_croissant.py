"Every shipped manifest becomes valid Croissant 1.1"
import json

import pytest

from mirage_nb.core import resource_dir
from mirage_nb.data.croissant import croissant
from mirage_nb.data.manifest import read_manifest

MANIFESTS = sorted(resource_dir('data_manifests').glob('*.toml'))


@pytest.mark.parametrize('path', MANIFESTS, ids=lambda p: p.stem)
def test_a_manifest_is_valid_croissant(path, tmp_path):
    mlcroissant = pytest.importorskip('mlcroissant', reason='mlcroissant is a development requirement')
    (file := tmp_path/'croissant.json').write_text(json.dumps(croissant(read_manifest(path))), encoding='utf-8')
    dataset = mlcroissant.Dataset(jsonld=str(file))
    assert not dataset.metadata.ctx.issues.errors
    assert dataset.metadata.name == path.stem
    assert dataset.metadata.conforms_to == ['http://mlcommons.org/croissant/1.1']


def test_files_with_a_published_checksum_are_listed():
    files = croissant(read_manifest('NIH_ChestXray14'))['distribution']
    assert [f['name'] for f in files] == ['train_official.txt', 'val_official.txt', 'test_official.txt']
    assert all(f['contentUrl'].startswith('https://') and len(f['sha256']) == 64 for f in files)
    assert 'distribution' not in croissant(read_manifest('Duke_DME'))  # no checksum is published


def test_a_fault_is_found_by_the_validator(tmp_path):
    mlcroissant = pytest.importorskip('mlcroissant', reason='mlcroissant is a development requirement')
    bad = croissant(read_manifest('Duke_DME'))
    del bad['recordSet'][0]['field'][0]['dataType']
    (file := tmp_path/'croissant.json').write_text(json.dumps(bad), encoding='utf-8')
    with pytest.raises(mlcroissant.ValidationError, match='does not specify a valid'):
        mlcroissant.Dataset(jsonld=str(file))


def test_classes_can_be_read_as_records(tmp_path):
    mlcroissant = pytest.importorskip('mlcroissant', reason='mlcroissant is a development requirement')
    made = croissant(read_manifest('AROI'))
    (file := tmp_path/'croissant.json').write_text(json.dumps(made), encoding='utf-8')
    rows = list(mlcroissant.Dataset(jsonld=str(file)).records('splits'))
    assert len(rows) == 3 and rows[0] == {'splits/split': 'train', 'splits/folder': 'train'}
