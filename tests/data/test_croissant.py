"Every shipped manifest becomes valid Croissant 1.1"
import json

import pytest
from PIL import Image

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
    files = [f for f in croissant(read_manifest('NIH_ChestXray14'))['distribution'] if f['@type'] == 'cr:FileObject']
    assert [f['name'] for f in files] == ['train_official.txt', 'val_official.txt', 'test_official.txt']
    assert all(f['contentUrl'].startswith('https://') and len(f['sha256']) == 64 for f in files)
    files = croissant(read_manifest('Duke_DME'))['distribution']  # no checksum of its archive is published
    assert [f['@type'] for f in files] == ['cr:FileSet', 'cr:FileSet']


def test_a_fault_is_found_by_the_validator(tmp_path):
    mlcroissant = pytest.importorskip('mlcroissant', reason='mlcroissant is a development requirement')
    bad = croissant(read_manifest('Duke_DME'))
    del bad['recordSet'][0]['field'][0]['dataType']
    (file := tmp_path/'croissant.json').write_text(json.dumps(bad), encoding='utf-8')
    with pytest.raises(mlcroissant.ValidationError, match='does not specify a valid'):
        mlcroissant.Dataset(jsonld=str(file))


@pytest.mark.parametrize('layout', ['masks', 'classes'])
def test_images_of_a_folder_are_read(layout, tmp_path):
    "A program that reads Croissant finds every image and mask of a folder, with its split and class"
    mlcroissant = pytest.importorskip('mlcroissant', reason='mlcroissant is a development requirement')
    for i, split in enumerate(('train', 'test')):
        for part in (('images', 'masks') if layout == 'masks' else ('AMD', 'DME')):
            (folder := tmp_path/'Mine'/split/part).mkdir(parents=True)
            Image.new('L', (8, 6), 10*i).save(folder/f'P{i}.png')
    if layout == 'masks':
        (tmp_path/'Mine'/'INFO.json').write_text('{"classes": {"0": "Background", "10": "Fluid"}}')
    (file := tmp_path/'Mine'/'croissant.json').write_text(json.dumps(croissant(read_manifest(tmp_path/'Mine'))))
    data = mlcroissant.Dataset(jsonld=str(file))
    rows = [{k.removeprefix('images/'): v for k, v in r.items()} for r in data.records('images')]
    found = sorted((r['path'].decode(), r['split_folder'].decode(), r.get('class', b'').decode()) for r in rows)
    if layout == 'masks': assert found == [(f'{s}/images/P{i}.png', s, '') for i, s in ((1, 'test'), (0, 'train'))]
    else: assert found == [(f'{s}/{c}/P{i}.png', s, c) for i, s in ((1, 'test'), (0, 'train')) for c in ('AMD', 'DME')]
    assert {r['content'].size for r in rows} == {(8, 6)}
    if layout == 'masks': assert len(list(data.records('masks'))) == 2


def test_classes_can_be_read_as_records(tmp_path):
    mlcroissant = pytest.importorskip('mlcroissant', reason='mlcroissant is a development requirement')
    made = croissant(read_manifest('AROI'))
    (file := tmp_path/'croissant.json').write_text(json.dumps(made), encoding='utf-8')
    rows = list(mlcroissant.Dataset(jsonld=str(file)).records('splits'))
    assert len(rows) == 3 and rows[0] == {'splits/split': 'train', 'splits/folder': 'train'}
