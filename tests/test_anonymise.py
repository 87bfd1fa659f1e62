"Names that are planted in files, texts, tables and folders are in nothing that an anonymised run writes"
import base64
import json
import os
import re
import shutil
import zipfile
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from mirage_nb.anonymity import hide_names
from mirage_nb.core import resource_dir, runs_dir
from mirage_nb.models.checkpoints import read_checkpoint, read_metadata
from mirage_nb.phantoms.eyes import make_phantom_eyes
from mirage_nb.phantoms.oct import make_phantom_oct
from mirage_nb.pseudonyms import keys_dir, real_name
from mirage_nb.records import open_run
from mirage_nb.runs import run_notebook
from mirage_nb.tasks.collect import _read_run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore')]
FOLDER, FILE, PATIENT, HIDDEN = 'Wentworth_Anne', 'Pemberton', 'Doe, Jane', 'Fitzalan'  # what is planted
VISITS = 'Ravenscroft_Ada'
TUNE = {'recipe': 'seg_small', 'epochs': 1, 'size': 64, 'batch_size': 4, 'head': 'linear', 'baselines': False,
        'waive': 'absent_class,near_duplicates'}


def plant(image, path):
    "Write an image with a name in its texts and its EXIF"
    info, exif = PngImagePlugin.PngInfo(), Image.Exif()
    info.add_text('Patient', f'{HIDDEN}^Maud')
    info.add_itxt('Comment', HIDDEN)
    exif[0x010e] = exif[0x013b] = HIDDEN
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, pnginfo=info, exif=exif)


EYES = {'P1_OD': ('train', 1), 'P1_OS': ('val', 2), 'P2_OD_first': ('test', 3), 'P2_OD_second': ('test', 4)}


def plant_eyes(raw, folder):
    "Write whole volumes of four patients, of whom two are tested, with the table of their sizes"
    make_phantom_eyes(raw, slices=13, between=.5, cols=90, across=.07)
    names = {k: f'{FILE}-{i}_OD' for k, (_, i) in EYES.items()}
    for p in sorted(raw.rglob('*.png')):
        volume, end = next((k, p.name[len(k):]) for k in EYES if p.name.startswith(k))
        part = '' if p.parent.name == 'slo' else EYES[volume][0]
        with Image.open(p) as image: plant(image, folder/part/p.parent.name/(names[volume] + end))
    text = (raw/'volumes.csv').read_text()
    for k, v in names.items(): text = text.replace(k, v)
    (folder/'volumes.csv').write_text(text)
    text = (resource_dir('data_manifests')/'Phantom_EYES.toml').read_text()
    text = text.replace('Phantom_EYES', 'Eyes').replace('"flat"', '"splits"').replace('(P[0-9]+)', f'({FILE}-[0-9]+)')
    (folder/'manifest.toml').write_text(text)


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    "Folder with a set of masks and a set of classes, and with MIRAGE_RUNS and MIRAGE_KEYS in it"
    home = tmp_path_factory.mktemp('planted')
    make_phantom_oct(home/'raw', patients=12, volumes=1, slices=2, size=(96, 80))
    clinic, rows = home/FOLDER/'Clinic', []
    for p in sorted((home/'raw').rglob('*.png')):
        place = p.relative_to(home/'raw')
        with Image.open(p) as image: plant(image, clinic/place.parent/p.name.replace('P', f'{FILE}-', 1))
    (clinic/'labels.csv').write_text((home/'raw'/'labels.csv').read_text().replace('P0', f'{FILE}-0'))
    text = (resource_dir('data_manifests')/'Phantom_OCT.toml').read_text()
    text = text.replace('Phantom_OCT', 'Clinic').replace('(P[0-9]+)', f'({FILE}-[0-9]+)')
    (clinic/'manifest.toml').write_text(text)
    rng = np.random.default_rng(0)
    for i in range(40):
        name = f'{FILE}{i:02}.png'
        pixels = rng.integers(0, 120, (48, 48), np.uint8) + np.uint8(100*(i % 2))
        plant(Image.fromarray(pixels), home/FOLDER/'Grades'/name)
        rows.append((name, f'{PATIENT} {i//2:02}', ('CNV', 'NORMAL')[i % 2], HIDDEN))
    table = pd.DataFrame(rows, columns=['file', 'patient', 'label', 'referred_by'])
    table.to_csv(home/FOLDER/'Grades'/'labels.csv', index=False)
    (home/FOLDER/'Grades'/'manifest.toml').write_text(
        "title = 'x'\nsource = 'x'\nlicence = 'x'\ncitation = 'x'\nget = 'x'\nlayout = 'table'\n"
        "task = 'classification'\nmodality = 'bscan'\n[labels]\ntable = 'labels.csv'\nimage = '{file}'\n"
        "patient = 'patient'\nlabel = 'label'\nclasses = ['CNV', 'NORMAL']\nshares = [0.4, 0.3, 0.3]\n")
    for i in range(30):  # a folder for each patient, without labels
        pixels = rng.integers(0, 120, (64, 64), np.uint8) + np.uint8(60*(i % 3))
        plant(Image.fromarray(pixels), home/FOLDER/'Films'/f'{VISITS}{i//2:02}'/f'{FILE}_{i % 2}.png')
    plant_eyes(home/'raw_eyes', home/FOLDER/'Eyes')
    with pytest.MonkeyPatch.context() as m:
        for k in ('MIRAGE_DATA', 'MIRAGE_RUNS', 'MIRAGE_KEYS'): m.setenv(k, str(home/k.lower()))
        m.setenv('OMP_NUM_THREADS', '1')
        yield home
    hide_names(False)


def texts_of(data, name):
    "Everything that can be read in a file: its bytes, members of archives, texts of images, images of notebooks"
    yield name.encode()
    yield data
    if zipfile.is_zipfile(BytesIO(data)):
        with zipfile.ZipFile(BytesIO(data)) as z:
            for k in z.namelist(): yield from texts_of(z.read(k), k)
    if data[:8] == b'\x89PNG\r\n\x1a\n':
        with Image.open(BytesIO(data)) as image:
            image.load()
            yield repr((image.info, dict(image.getexif()))).encode()
    for coded in re.findall(rb'(?:"image/png": "|base64,)([A-Za-z0-9+/=\\n]{200,})', data):
        yield from texts_of(base64.b64decode(coded.replace(b'\\n', b'')), '')


def leaks(folder, *names):
    "Files below a folder that hold a planted name, in any form that a writer may give it"
    words = {w for n in names for w in (n, n.replace('_', r'\_'), n.split(',')[0] + ',' if ',' in n else n)}
    found = []
    for p in sorted(folder.rglob('*')):
        data = p.read_bytes() if p.is_file() else b''
        found += [f'{p.relative_to(folder)}: {w}' for t in texts_of(data, p.name) for w in words if w.encode() in t]
    return sorted(set(found))


def numbers(path): return pd.read_csv(path).select_dtypes('number').to_numpy()


@pytest.fixture(scope='module')
def tuned(planted):
    "The same fine-tuning with pseudonyms and with names"
    data = {'dataset': str(planted/FOLDER/'Clinic')}
    return [run_notebook('seg_tune', TUNE | data | {'anonymise': on}, quiet=True) for on in (True, False)]


def test_a_fine_tuning(planted, tuned):
    "No planted name is in an anonymised run, and its scores are those of the plain one"
    hidden, plain = tuned
    assert not leaks(hidden, FOLDER, FILE, HIDDEN) and FOLDER not in str(hidden)
    assert not leaks(plain, HIDDEN)                               # nothing is copied that is not needed
    assert leaks(plain, FILE) and leaks(plain, FOLDER)            # the search finds what is there
    for name in ('history.csv', 'test_slices.csv', 'test_volumes.csv', 'test_summary.csv', 'predictions.csv'):
        here, there = numbers(hidden/name), numbers(plain/name)
        if name == 'history.csv': here, there = here[:, :3], there[:, :3]  # the others are times
        np.testing.assert_array_equal(here, there)
    a, b = (json.loads((p/'result.json').read_text()) for p in tuned)
    assert a['means'] == b['means'] and a['validation'] == b['validation']
    ids = pd.read_csv(hidden/'predictions.csv').id
    assert ids.str.fullmatch(r'[a-z]{10}_\d\d').all()
    assert [real_name(k) for k in ids] == list(pd.read_csv(plain/'predictions.csv').id)
    assert open_run(hidden).settings['dataset'] == str(planted/FOLDER/'Clinic')  # the kit finds it again
    assert (keys_dir()/'names.csv').stat().st_mode & 0o077 == 0 or os.name != 'posix'


def test_weights_name_no_folder(planted, tuned):
    "A file of weights names its dataset, and no path of the machine"
    for folder in tuned:
        about = read_metadata(read_checkpoint(folder/'best.safetensors'))
        assert str(planted) not in (folder/'best.safetensors').read_bytes().decode('latin-1')
        assert str(planted) not in (folder/'result.json').read_text()
        assert about['dataset'] == folder.parent.name  # Clinic, or its pseudonym


@pytest.mark.parametrize('stage, options', [
    pytest.param('seg_eval', {'split': 'test'}, marks=pytest.mark.long),
    pytest.param('data_report', {'dataset': 'Clinic', 'resamples': 100}, marks=pytest.mark.long),
    ('measure', {'dataset': 'Clinic'}),
    ('predict', {'images': 'test/bscan', 'compare_with': 0})])
def test_what_builds_on_it(planted, tuned, stage, options):
    "Evaluations, reports and predictions of the planted images hide names, also by a run with names"
    where = {k: str(planted/FOLDER/'Clinic'/(v if k == 'images' else '')) for k, v in options.items()
             if k in ('dataset', 'images')}
    run = {} if stage == 'data_report' else {'run': str(tuned[0])}
    folder = run_notebook(stage, options | where | run | {'anonymise': True}, quiet=True)
    assert not leaks(folder, FOLDER, FILE, HIDDEN)
    assert folder.is_relative_to(runs_dir()) and FOLDER not in str(folder)
    if stage == 'seg_eval': np.testing.assert_array_equal(numbers(folder/'test_slices.csv'),
                                                          numbers(tuned[1]/'test_slices.csv'))


@pytest.mark.long
def test_a_run_that_it_needs_first(planted):
    "Where no run is finished, a prediction trains one that hides nothing, and hides names itself; columns stay behind"
    images = sorted((planted/FOLDER/'Clinic'/'test'/'bscan').iterdir())[:2]
    table = planted/FOLDER/f'{FILE}.csv'
    pd.DataFrame({'file': images, 'patient': PATIENT, 'referred_by': HIDDEN}).to_csv(table, index=False)
    folder = run_notebook('predict', {'images': str(table), 'image_column': 'file', 'compare_with': 0,
                                      'anonymise': True}, quiet=True)
    assert not leaks(folder, FOLDER, FILE, PATIENT, HIDDEN)
    assert list((runs_dir()/'seg_tune'/'Phantom_OCT').glob('*/result.json'))


def test_a_run_with_names_below_it(planted, tuned):
    "The folder of images that a run with names was made of is no part of the settings of a run that builds on it"
    folder = run_notebook('seg_eval', {'run': str(tuned[1]), 'dataset': str(planted/FOLDER/'Clinic'), 'split': 'test',
                                       'anonymise': True}, quiet=True)
    assert not leaks(folder, FOLDER, FILE, HIDDEN, f'/{tuned[1].parent.name}/')
    assert open_run(folder).settings['run'] == str(tuned[1])


GRADES = {'recipe': 'cls_small', 'epochs': 1, 'size': 64, 'waive': 'near_duplicates,patients'}


@pytest.fixture(scope='module')
def graded(planted):
    "The same classification with pseudonyms and with names, with two seeds"
    options = GRADES | {'dataset': str(planted/FOLDER/'Grades')}
    return [[run_notebook('cls_tune', options | {'seed': k, 'anonymise': on}, quiet=True) for k in (0, 1)]
            for on in (True, False)]


@pytest.mark.long
def test_a_classification(planted, graded):
    "Neither patients of a table nor its other columns are in an anonymised classification and its evaluation"
    (hidden, _), (plain, _) = graded
    assert not leaks(hidden, FOLDER, FILE, PATIENT, HIDDEN) and not leaks(plain, HIDDEN)
    np.testing.assert_array_equal(numbers(hidden/'predictions_test.csv'), numbers(plain/'predictions_test.csv'))
    scored = run_notebook('cls_eval', {'predictions': str(plain/'predictions_test.csv'), 'resamples': 200,
                                       'anonymise': True}, quiet=True)
    assert not leaks(scored, FOLDER, FILE, PATIENT, HIDDEN)
    assert pd.read_csv(hidden/'predictions_test.csv').patient.str.fullmatch('[a-z]{10}').all()


SMALL = {'epochs': 1, 'size': 32, 'batch_size': 4, 'waive': 'near_duplicates'}
OTHERS = {  # {run}, {other}, {seg}: runs with pseudonyms if this pipeline has them
    'few_shot': GRADES | {'dataset': '{clinic}/Grades', 'shots': [2, 4], 'seeds': 2, 'resamples': 100},
    'seeds': {'run': '{run}', 'resamples': 100},
    'compare': {'runs': '{run},{other}', 'by': ['seed'], 'resamples': 100},
    'compare tables': {'tables': ['ours={table}', 'theirs={table2}'], 'resamples': 100},
    'predict': {'images': '{clinic}/Films', 'run': '{run}', 'compare_with': 4},
    'explain': {'run': '{run}', 'dataset': '{clinic}/Grades', 'shown': 2, 'scored': 4, 'methods': ['grad_cam'],
                'panels': 'png'},
    'explain ids': {'run': '{run}', 'images': '{clinic}/Films', 'dataset': '', 'shown': 1, 'scored': 4,
                    'methods': ['grad_cam'], 'ids': VISITS + '03/' + FILE + '_1'},
    'reconstruct': {'dataset': '{clinic}/Clinic', 'scored': 2, 'rounds': 1, 'examples': 1, 'artefacts': ['noise'],
                    'only': FILE + '-009a_01'},
    'explain masks': {'run': '{seg}', 'dataset': '{clinic}/Clinic', 'shown': 2, 'scored': 4, 'methods': ['grad_cam'],
                      'panels': 'png'},
    'predict table': {'images': '{table_of_images}', 'run': '{run}', 'compare_with': 4},
    'explain table': {'run': '{run}', 'images': '{table_of_images}', 'dataset': '', 'shown': 1, 'scored': 4,
                      'methods': ['grad_cam']},
    'features': {'dataset': '{clinic}/Grades,{clinic}/Clinic', 'resamples': 100, 'examples': 1, 'queries': 2},
    'pretrain_multimae': SMALL | {'dataset': '{clinic}/Clinic', 'size': 64},
    'pretrain_mae': SMALL | {'dataset': '{clinic}/Grades,{clinic}/Films'},
    'pretrain_views': SMALL | {'dataset': '{clinic}/Films', 'model': 'timm:test_resnet', 'queue': 16}}


@pytest.mark.long
@pytest.mark.parametrize('name', OTHERS)
def test_every_other_pipeline(name, planted, graded, tuned):
    "No planted name is in what it writes, and the numbers are those of the same run with names"
    made, films = [], sorted((planted/FOLDER/'Films').rglob('*.png'))[:8]
    listed = planted/FOLDER/f'{FILE}_films.csv'
    pd.DataFrame({'file': films, 'patient': [f'{PATIENT} {p.parent.name[-2:]}' for p in films], 'age': 70,
                  **({'referred_by': HIDDEN} if name == 'explain table' else {})}).to_csv(listed, index=False)
    for on, (run, other), seg in zip((True, False), graded, tuned, strict=True):
        tables = [planted/FOLDER/f'{FILE}_{k}.csv' for k in (0, 1)]
        for k, p in enumerate(tables):
            pd.read_csv(graded[1][k]/'predictions_test.csv').assign(referred_by=HIDDEN).to_csv(p, index=False)
        places = {'clinic': planted/FOLDER, 'run': run, 'other': other, 'table': tables[0], 'table2': tables[1],
                  'seg': seg, 'table_of_images': listed}
        def filled(v, places=places):
            if isinstance(v, list): return [filled(k) for k in v]
            return v.format(**places) if isinstance(v, str) else v
        options = {k: filled(v) for k, v in OTHERS[name].items()} | {'anonymise': on}
        made.append(run_notebook(name.partition(' ')[0], options, quiet=True))
    hidden, plain = made
    assert not leaks(hidden, FOLDER, FILE, PATIENT, HIDDEN, VISITS)
    assert not leaks(plain, HIDDEN) and hidden.is_relative_to(runs_dir())
    assert not re.search(r'\b(Grades|Clinic|Films)\b', str(hidden.relative_to(runs_dir())))
    for p in plain.rglob('*.csv'):
        same = hidden/p.relative_to(plain)
        a, b = (pd.read_csv(f).select_dtypes('number') for f in (p, same))
        keep = [c for c in a if c in b and c not in ('seconds', 'samples_per_s', 'waiting')]
        np.testing.assert_array_equal(a[keep], b[keep], err_msg=str(p))


@pytest.fixture(scope='module')
def scanned(planted):
    "Masks of two programs on whole volumes with sectors, scored with pseudonyms and with names"
    eyes, made = planted/FOLDER/'Eyes', dict[tuple[bool, int], str]()
    for k in (1, 3):
        masks = planted/FOLDER/'Programs'/f'{FILE}_{k}'
        for p in (eyes/'test'/'semseg').iterdir():
            with Image.open(p) as image: plant(Image.fromarray(np.roll(np.array(image), k, 0)), masks/p.name)
        for on in (True, False): made[on, k] = str(run_notebook('seg_eval', {
            'dataset': str(eyes), 'predictions': str(masks), 'split': 'test', 'anonymise': on}, quiet=True))
    return made


@pytest.mark.long
def test_a_comparison_with_sectors(planted, scanned):
    "Sectors of whole volumes are compared, and neither they nor the volumes show a name; nor where one run shows names"
    def compare(on, *runs): return run_notebook('compare', {
        'runs': [scanned[k] for k in runs], 'by': ['predictions'], 'resamples': 100, 'anonymise': on}, quiet=True)
    plain = compare(False, (False, 1), (False, 3))
    for folder in (compare(True, (True, 1), (True, 3)), compare(True, (True, 1), (False, 3))):
        assert not leaks(folder, FOLDER, FILE, HIDDEN)
        there, here = (pd.read_csv(p/'measurements.csv') for p in (plain, folder))
        assert there.of.str.startswith('retina, ').sum() == 2*2*9
        for c in ('of', 'each', 'first', 'second'): assert there[c].equals(here[c])


@pytest.mark.long
def test_faults_of_measured_volumes(planted, tuned):
    "What is wrong with a mask, a label map or a listed volume is said without names"
    eyes, broken = planted/FOLDER/'Eyes', planted/FOLDER/'Broken'
    shutil.copytree(eyes, broken)
    Image.fromarray(np.full((20, 90), 77, np.uint8)).save(broken/'test'/'semseg'/f'{FILE}-3_OD_04.png')
    (broken/'slo'/f'{FILE}-4_OD.png').write_bytes(b'\x89PNG')
    made = [run_notebook('measure', {'dataset': str(broken), 'anonymise': True}, quiet=True)]
    predicted = run_notebook('predict', {'images': str(eyes/'test'/'bscan'), 'run': str(tuned[1]),
                                         'compare_with': 0}, quiet=True)
    given = planted/FOLDER/'Given'
    shutil.copytree(predicted, given)
    (given/'volumes'/f'{FILE}-4_OD.nii.gz').write_bytes(b'\x1f\x8b')
    pd.DataFrame({'volume': [f'{FILE}-8_OD'], 'fault': [f'{eyes}/{FILE}-8_OD_03.png is of another size than '
                                                        f'{FILE}-8_OD_02']}).to_csv(given/'volumes.csv', index=False)
    made.append(run_notebook('measure', {'predictions': str(given), 'anonymise': True}, quiet=True))
    for folder, n in zip(made, (2, 2), strict=True):
        assert not leaks(folder, FOLDER, FILE, HIDDEN)
        assert json.loads((folder/'result.json').read_text())['unreadable'] == n


def test_a_notebook_that_fails(planted):
    "The report of a run that failed shows no name either"
    (planted/FOLDER/'Clinic'/'train'/'bscan'/f'{FILE}-099a_00.png').write_bytes(b'')
    with pytest.raises(RuntimeError) as e:
        run_notebook('seg_tune', TUNE | {'dataset': str(planted/FOLDER/'Clinic'), 'seed': 9, 'anonymise': True},
                     quiet=True)
    (planted/FOLDER/'Clinic'/'train'/'bscan'/f'{FILE}-099a_00.png').unlink()
    assert not leaks(e.value.folder, FOLDER, FILE, HIDDEN) and FILE in str(e.value)  # the terminal names it


def test_runs_pair_by_patient(tuned):
    "A comparison with pseudonyms finds the patients of a run with names in one with pseudonyms"
    hide_names(True)
    both = [_read_run(p, open_run(p).settings, 'Clinic', 'model') for p in tuned]
    hide_names(False)
    for part in ('volumes', 'images'):
        ids, others = (set(getattr(r, part).patient) for r in both)
        assert ids == others and len(ids) == 4
