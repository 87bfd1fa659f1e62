"One table, however a program has written it, is one table to every reader"
import gzip
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.data.chest.readers import read_chest
from mirage_nb.data.classification import load_labelled
from mirage_nb.data.manifest import classes_of, read_manifest
from mirage_nb.data.paired import table_pairs
from mirage_nb.data.unlabelled import unlabelled_images
from mirage_nb.eval.classification.predictions import read_predictions
from mirage_nb.tasks.paired_sets import _probe_labels
from tests.data.samples import MANIFEST

HEAD = '\n'.join(f'{k} = "x"' for k in ('title', 'modality', 'source', 'licence', 'citation', 'get'))
IDS = ('2024_05', '1e3', '12345678901234567890', '007', '1_000', '0x1F', 'inf', 'NaN')
FORMS = {'plain': ('utf-8', ','), 'mark': ('utf-8-sig', ';'), 'utf-16': ('utf-16', '\t'), 'big': ('utf-16-be', ','),
         'latin-1': ('latin-1', ';'), 'tabs': ('utf-8', '\t')}


def written(path, rows, form, packed=False, extra=True):
    "Write a table as some program does, with an empty row and, between semicolons, an empty last column"
    code, sep = FORMS[form]
    end = sep if extra and sep == ';' else ''
    lines = [sep.join(map(str, r)) + end for r in [rows.columns, *rows.to_numpy()]]
    text = '\r\n'.join([lines[0], *lines[1:3], sep*(rows.shape[1] - 1) + end, '', *lines[3:]]) + '\r\n'
    path.write_bytes(gzip.compress(text.encode(code)) if packed else text.encode(code))


@pytest.fixture
def study(tmp_path, monkeypatch):
    "A set whose table has ids that look like numbers, and classes None, NA and Drüse"
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    home = tmp_path/'Study'
    home.mkdir()
    (home/'manifest.toml').write_text(f'{HEAD}\ntask = "classification"\nlayout = "table"\n[labels]\ntable = "t.csv"\n'
                                      'image = "{file}"\nid = "id"\npatient = "id"\nlabel = "dx"\nsplit = "split"\n')
    rows = pd.DataFrame({'id': IDS*3, 'dx': (['None', 'NA', 'Drüse', 'None', 'NA', 'Drüse', 'None', 'NA']*3),
                         'split': np.repeat(['train', 'val', 'test'], 8)})
    rows['id'] = rows.id + np.repeat(['', '_2', '_3'], 8)
    rows['file'] = [f'{i}.png' for i in range(24)]
    for i in range(24):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 9), np.uint8)).save(home/f'{i}.png')
    return home, rows


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.filterwarnings('ignore:.*not in UTF-8; it is read as Windows-1252')
def test_a_table_of_labels(study, form, packed):
    home, rows = study
    written(home/('T.csv.gz' if packed else 't.csv'), rows, form, packed)
    data = load_labelled(read_manifest('Study'))
    assert set(data.table.id) == set(rows.id) and data.classes == ('Drüse', 'NA', 'None')
    assert dict(zip(data.table.id, data.table.label, strict=True)) == dict(zip(rows.id, rows.dx, strict=True))
    found = unlabelled_images(home/('T.csv.gz' if packed else 't.csv'), 'file')
    assert found.id.tolist() == rows.id.tolist() and found.image.map(lambda p: p.is_file()).all()
    splits = home/('s.csv.gz' if packed else 's.csv')
    written(splits, rows[['id', 'split']].assign(split=np.repeat(['val', 'test', 'train'], 8)), form, packed)
    assert load_labelled(read_manifest('Study'), splits=str(home/'s.csv')).counts().sum().tolist() == [8, 8, 8]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.filterwarnings('ignore:.*not in UTF-8; it is read as Windows-1252')
def test_tables_of_pairs_and_of_a_probe(study, form):
    home, rows = study
    written(home/'labels.csv', rows.assign(bscan=rows.file, slo=rows.file, label=rows.dx), form)
    assert list(table_pairs(home/'labels.csv').ids) == sorted(rows.id)
    assert set(_probe_labels(home).label) == {'None', 'NA', 'Drüse'} and set(_probe_labels(home).id) == set(rows.id)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.filterwarnings('ignore:.*not in UTF-8; it is read as Windows-1252')
def test_a_table_of_predictions(tmp_path, form):
    p = np.random.default_rng(0).dirichlet([1, 1, 1], 8)
    rows = pd.DataFrame({'id': IDS, 'patient': IDS, 'label': ['None', 'NA', 'Drüse']*2 + ['NA', 'NA']})
    comma = FORMS[form][1] == ';'  # where the cells are separated by semicolons, decimals begin with a comma
    for i, c in enumerate(('None', 'NA', 'Drüse')):
        rows[f'score:{c}'] = [f'{v:.17f}'.replace('.', ',' if comma else '.') for v in p[:, i]]
    written(tmp_path/'p.csv', rows, form)
    found = read_predictions(tmp_path/'p.csv')
    assert found.table.id.tolist() == list(IDS) and found.classes == ('None', 'NA', 'Drüse')
    np.testing.assert_allclose(found.p, p, atol=1e-15)
    assert found.table.label.tolist() == rows.label.tolist()


@pytest.mark.parametrize('code', ['utf-8', 'utf-8-sig', 'utf-16', 'latin-1'])
@pytest.mark.filterwarnings('ignore:.*not in UTF-8; it is read as Windows-1252')
def test_info_and_manifest_in_any_encoding(tiny, code):
    info = {'0': {'value': 0, 'label': 'Hintergrund'}, '1': {'value': 80, 'label': 'Drüse'},
            '2': {'value': 160, 'label': 'Ödem'}}
    (tiny/'INFO.json').write_bytes(json.dumps(info, ensure_ascii=False).encode(code))
    assert [c.label for c in classes_of(read_manifest('Tiny'), tiny)] == ['Hintergrund', 'Drüse', 'Ödem']
    (tiny/'manifest.toml').write_bytes((MANIFEST.replace('"Tiny"', '"Züri"') + 'lesions = ["Drüse"]\n').encode(code))
    manifest = read_manifest('Tiny')
    assert manifest.title == 'Züri' and [c.group for c in classes_of(manifest, tiny)][1] == 'lesion'


def test_an_encoding_that_is_guessed_is_said(study):
    home, rows = study
    written(home/'t.csv', rows, 'latin-1')
    with pytest.warns(UserWarning, match="t.csv is not in UTF-8; it is read as Windows-1252, as in '.*Drüse"):
        load_labelled(read_manifest('Study'))
    (home/'t.csv').write_bytes(b'\x89\x01\xff'*4)
    with pytest.raises(ValueError, match=r't.csv \(12 bytes\) cannot be read as a text'):
        load_labelled(read_manifest('Study'))


@pytest.mark.parametrize('yes,no,missing', [('True', 'False', ''), ('TRUE', 'FALSE', 'NA'), ('1.0', '0.0', 'nan'),
                                            ('true', 'false', 'null')])
def test_labels_that_are_true_or_false(study, tmp_path, yes, no, missing):
    home, rows = study
    said = [yes, no, missing, no]*6
    rows = rows.assign(a=said, b=said[::-1])
    text = (home/'manifest.toml').read_text()
    (home/'manifest.toml').write_text(text.replace('label = "dx"', 'multi = true\nclasses = ["a", "b"]'))
    rows.to_csv(home/'t.csv', index=False)
    known = dict(zip(rows.id, [1, 0, np.nan, 0]*6, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        data = load_labelled(read_manifest('Study'))
    np.testing.assert_array_equal(data.table['label:a'], data.table.id.map(known))
    chest = rows.assign(image=rows.file, patient=rows.id)[['id', 'image', 'patient', 'split', 'a', 'b']]
    chest.to_csv(home/'table.csv', index=False)
    np.testing.assert_array_equal((t := read_chest('Phantom_CXR', home))['label:a'], t.id.map(known))
    scores = pd.DataFrame({'id': rows.id, 'patient': rows.id, 'score:a': .5, 'score:b': .5, 'label:a': said,
                           'label:b': said[::-1]})
    scores.to_csv(tmp_path/'p.csv', index=False)
    np.testing.assert_array_equal(read_predictions(tmp_path/'p.csv').y[:, 0], list(known.values()))


def scores(path, p, **more):
    rows = pd.DataFrame({'id': range(len(p)), 'patient': '', 'label': ['a', 'b', 'c'][:p.shape[1]]*(len(p)//3)})
    pd.concat([rows, pd.DataFrame(p, columns=[f'score:{c}' for c in 'abc']), pd.DataFrame(more)], axis=1).to_csv(
        path, index=False)
    return path


def test_scores_that_were_rounded_are_divided_by_their_sum(tmp_path):
    exact = np.random.default_rng(1).dirichlet([1, 1, 1], 300)
    z = np.float16(np.log(exact))
    half = np.exp(z)/np.exp(z).sum(1, keepdims=True, dtype=np.float16)
    sums = np.where(np.arange(300)[:, None] == 7, exact*1.0008, exact)  # of a program that rounds as it likes
    for p, how in ((exact.round(2), r' \(2 decimals\)'), (exact.round(3), r' \(3 decimals\)'), (sums, ''),
                   (half*np.float16(1.001), r' \(half precision\)')):
        with pytest.warns(UserWarning, match=rf'rows? sum to .* as rounding{how} explains; each row is divided'):
            found = read_predictions(scores(tmp_path/'p.csv', p))
        np.testing.assert_allclose(found.p.sum(1), 1, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for p in (exact, exact.round(6), np.float32(exact)):
            written_p = pd.read_csv(scores(tmp_path/'p.csv', p))[[f'score:{c}' for c in 'abc']].to_numpy()
            assert np.array_equal(read_predictions(tmp_path/'p.csv').p, written_p), 'numbers that were accepted stay'
    logits = {f'logit:{c}': np.log(exact[:, i]) for i, c in enumerate('abc')}
    with pytest.warns(UserWarning, match='is divided by its sum'):
        read_predictions(scores(tmp_path/'p.csv', exact.round(2), **logits))
    for wrong in (exact*.99, exact.round(2)*np.array([.8, 1, 1]), np.where(np.arange(300)[:, None] == 7, .5, exact)):
        with pytest.raises(ValueError, match='its scores sum to .*; with one label per image they sum to 1'):
            read_predictions(scores(tmp_path/'p.csv', wrong))


def test_all_conflicting_labels_are_in_a_file(study):
    home, rows = study
    twice = pd.concat([rows, rows[:12].assign(dx=rows.dx[:12].map({'None': 'NA', 'NA': 'Drüse', 'Drüse': 'None'}))])
    twice.to_csv(home/'t.csv', index=False)
    with pytest.raises(ValueError, match='conflicting labels') as e: load_labelled(read_manifest('Study'))
    file = str(e.value).split('All of them are in ')[1].split('.csv')[0] + '.csv'
    listed = pd.read_csv(file)
    assert {k for k in rows.id[:12] if listed.what.str.contains(f'the id {k} ', regex=False).any()} == set(rows.id[:12])


def test_a_packed_list_where_a_plain_one_is_named_and_the_reverse(tmp_path):
    for k in ('split', 'metadata', 'chexpert'): (tmp_path/f'mimic-cxr-2.0.0-{k}.csv').write_text('')
    (tmp_path/'mimic-cxr-2.0.0-split.csv').write_text('dicom_id,study_id,subject_id,split\nd1,11,10000001,train\n')
    (tmp_path/'mimic-cxr-2.0.0-metadata.csv').write_text('dicom_id,ViewPosition\nd1,PA\n')
    names = ('Atelectasis', 'Edema')
    (tmp_path/'mimic-cxr-2.0.0-chexpert.csv').write_text(f'subject_id,study_id,{",".join(names)}\n10000001,11,1.0,\n')
    image = tmp_path/'files'/'p10'/'p10000001'/'s11'/'d1.jpg'
    image.parent.mkdir(parents=True)
    Image.new('L', (8, 8)).save(image)
    assert read_chest('MIMIC_CXR', tmp_path, labels=names)['label:Atelectasis'].tolist() == [1]
    for p in tmp_path.glob('*.csv'):
        p.with_name(p.name + '.gz').write_bytes(gzip.compress(p.read_bytes()))
        p.unlink()
    assert len(read_chest('MIMIC_CXR', tmp_path, labels=names)) == 1


@pytest.mark.parametrize('start', ['CheXpert-v1.0/', 'CheXpert-v1.0-small/', '', 'chexpertchestxrays-u20210408/',
                                   '/data/x/CheXpert-v1.0/', 'CheXpert-v1.0\\'])
def test_other_beginnings_of_paths_in_chexpert(tmp_path, start):
    inside = 'train/patient00001/study1/view1_frontal.jpg'
    (tmp_path/inside).parent.mkdir(parents=True)
    Image.new('L', (8, 8)).save(tmp_path/inside)
    path = (start + inside).replace('/', '\\') if '\\' in start else start + inside
    (tmp_path/'train.csv').write_text(f'Path,Frontal/Lateral,AP/PA,Edema\n{path},Frontal,AP,1.0\n')
    t = read_chest('CheXpert', tmp_path, tables={'train': 'train.csv'}, labels=('Edema',), val=0)
    assert t.id.tolist() == [inside.removesuffix('.jpg')] and t.patient.tolist() == ['patient00001']
