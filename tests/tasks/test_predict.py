"Prediction of images without labels: masks and classes, by one run or several, whatever the folder holds"
import json
import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from mirage_nb.data.manifest import classes_of, dataset_dir, read_manifest
from mirage_nb.eval.classification.predict import predict_cls
from mirage_nb.eval.classification.predictions import read_predictions
from mirage_nb.recipes.prediction import Predict
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.records import open_run
from mirage_nb.runs import tuned_run
from mirage_nb.storage import hash_file, write_json
from mirage_nb.tasks.classification import ClassificationTask
from mirage_nb.tasks.ensemble import Ensemble, short_doubt
from mirage_nb.tasks.predict import plan_prediction, predict, sum_up
from mirage_nb.tasks.segmentation import SegmentationTask
from tests.data.scanners.made import SECRETS, WHO, N, write_all
from tests.tasks.samples import settings, train_cls, train_seg

pytestmark = pytest.mark.slow


def finish(task, folder):
    "Leave the records of a finished run beside a model"
    write_json(folder/'run.json', {'stage': f'{folder.name[:3]}_tune', 'settings': asdict(task.settings),
                                   'sources': {'data': task.data.sha256}})
    write_json(folder/'result.json', {'means': {}})


@pytest.fixture(scope='module')
def tuned(at_home, tmp_path_factory):
    "Two finished segmentations and two finished classifications, of few epochs"
    seg = override(seg_recipe('seg_small'), dataset='Phantom_OCT', size=64, epochs=3, batch_size=4, precision='fp32',
                   baselines=False, head='linear')
    with at_home(tmp_path_factory.mktemp('tuned')) as folder:
        for i in range(2):
            cfg = override(seg, seed=i)
            train_seg(cfg, folder/f'seg{i}')
            finish(SegmentationTask.from_settings(cfg), folder/f'seg{i}')
            cfg = settings(epochs=1, seed=i)
            train_cls(cfg, folder/f'cls{i}')
            finish(ClassificationTask.from_settings(cfg), folder/f'cls{i}')
    return folder


@pytest.fixture
def images(tmp_path):
    "Images of different sizes and kinds in nested folders, and two files that are none"
    folder, rng = tmp_path/'new patients', np.random.default_rng(0)
    for name, size in (('a.png', (70, 90)), ('A/left eye/b_1.tif', (64, 64)), ('A/c.jpg', (120, 50))):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder/name)
    (folder/'A'/'broken.png').write_bytes(b'no image')
    (folder/'empty.bmp').touch()
    return folder


IDS = ['A/c', 'A/left eye/b_1', 'a']


def phantom_classes():
    manifest = read_manifest('Phantom_OCT')
    return classes_of(manifest, dataset_dir(manifest))


def test_masks(tuned, home, images):
    "Each has the size of its image and the grey values of the training dataset; unreadable files stop nothing"
    table = predict(tuned/'seg0', images, home/'out', overlay='contour', save_probabilities=True).set_index('id')
    assert sorted(table.index) == IDS
    classes = phantom_classes()
    for name, size in zip(IDS, ((120, 50), (64, 64), (70, 90)), strict=True):
        mask = np.asarray(Image.open(home/'out'/'predictions'/f'{name}.png'))
        assert mask.shape == size == (table.rows[name], table.cols[name])
        assert table.loc[name, [c.label for c in classes]].tolist() == pytest.approx(
            [(mask == c.value).mean() for c in classes], abs=1e-4)
        p = np.load(home/'out'/'probabilities'/f'{name}.npz')['p'].astype(float)
        assert p.shape == (len(classes), *size) and table.confidence[name] == pytest.approx(p.max(0).mean(), abs=2e-3)
        entropy = -(p*np.log(np.maximum(p, 1e-12))).sum(0).mean()/np.log(len(p))
        assert table.uncertainty[name] == pytest.approx(entropy, abs=5e-3)
        over = np.asarray(Image.open(home/'out'/'overlays'/f'{name}.png'))
        assert over.shape == (*size, 3) and np.ptp(over, -1).any()
    lost = pd.read_csv(home/'out'/'unreadable.csv').set_index('id').fault
    assert set(lost.index) == {'A/broken', 'empty'} and lost['empty'] == 'the file is empty'
    assert lost['A/broken'].startswith('broken.png (8 bytes) cannot be read as an image')
    assert pd.read_csv(home/'out'/'predictions.csv').id.tolist() == table.index.tolist()


FORMATS = 'png', 'jpg', 'tif', 'bmp', 'npy', 'mha'


def write_image(path, pixels):
    "Write an image in any format that is read"
    if path.suffix == '.npy': np.save(path, pixels)
    elif path.suffix == '.mha':
        head = f'ObjectType = Image\nNDims = 2\nDimSize = {pixels.shape[1]} {pixels.shape[0]}\n'
        path.write_bytes(f'{head}ElementType = MET_UCHAR\nElementDataFile = LOCAL\n'.encode() + pixels.tobytes())
    else: Image.fromarray(pixels).save(path)


@pytest.mark.parametrize('kind', ['seg0', 'cls0'])
def test_one_damaged_file_of_each_format_stops_nothing(kind, tuned, home, tmp_path):
    "Files that were cut off, in every format: the whole ones are predicted, the others listed with file and reason"
    pixels, folder = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8), tmp_path/'mixed'
    folder.mkdir()
    for k in FORMATS:
        write_image(folder/f'whole_{k}.{k}', pixels)
        data = (folder/f'whole_{k}.{k}').read_bytes()
        (folder/f'cut_{k}.{k}').write_bytes(data[:len(data)*2//3])
    (folder/'folder.png').mkdir()
    (folder/'link.png').symlink_to(tmp_path/'nowhere.png')
    table = predict(tuned/kind, folder, home/'out', batch_size=4)
    assert sorted(table.id) == sorted(f'whole_{k}' for k in FORMATS)
    lost = pd.read_csv(home/'out'/'unreadable.csv').set_index('id').fault
    assert {f'cut_{k}' for k in FORMATS} <= set(lost.index) <= {'link', *(f'cut_{k}' for k in FORMATS)}
    for k in FORMATS: assert lost[f'cut_{k}'].startswith(f'cut_{k}.{k}') and 'Copy it again' in lost[f'cut_{k}']


def test_classes(tuned, home, images):
    "The probabilities are those of the classifier, and the class is the most probable"
    table = predict(tuned/'cls0', images, home/'out')
    scores = table.filter(regex='^score:')
    assert sorted(table.id) == IDS and scores.sum(axis=1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    own = predict_cls(tuned/'cls0'/'best.safetensors', table[['id', 'image']]).filter(regex='^score:')
    assert np.allclose(own, scores, atol=1e-5)
    assert table.prediction.tolist() == [c.removeprefix('score:') for c in scores.idxmax(axis=1)]
    assert table.confidence.tolist() == pytest.approx(scores.max(axis=1).tolist(), abs=1e-4)
    assert not (home/'out'/'predictions').exists() and not (home/'out'/'overlays').exists()


def test_an_ensemble_is_the_mean_of_its_members(tuned, home, images):
    for kind in ('cls', 'seg'):
        runs = [tuned/f'{kind}{i}' for i in range(2)]
        both = predict(runs, images, home/kind, save_probabilities=True)
        one, two = (predict(r, images, home/r.name, save_probabilities=True) for r in runs)
        assert both.disagreement.gt(0).all() and 'disagreement' not in one
        if kind == 'cls':
            a, b, mean = (t.filter(regex='^score:').to_numpy() for t in (one, two, both))
            assert np.allclose((a + b)/2, mean, atol=1e-6) and not np.allclose(a, b, atol=1e-3)
            assert both.disagreement.tolist() == pytest.approx((np.abs(a - b).sum(1)/2).tolist(), abs=1e-4)
            continue
        for name in IDS:
            a, b, mean = (np.load(home/k/'probabilities'/f'{name}.npz')['p'].astype(float)
                          for k in ('seg0', 'seg1', 'seg'))
            assert np.allclose((a + b)/2, mean, atol=2e-3) and not np.allclose(a, b, atol=1e-2)
            index = np.asarray(Image.open(home/'seg'/'predictions'/f'{name}.png'))
            values = np.array([c.value for c in phantom_classes()])
            assert (values[mean.argmax(0)] == index).mean() > .99


def test_runs_that_are_no_ensemble(tuned, home, images):
    with pytest.raises(ValueError, match='is a segmentation and .* a classification; an ensemble takes runs of one'):
        predict([tuned/'seg0', tuned/'cls0'], images)
    with pytest.raises(ValueError, match='an ensemble takes each once'): predict([tuned/'seg0']*2, images)
    with pytest.raises(FileNotFoundError, match='is not the folder of a run'): predict(images, images)
    with pytest.raises(TypeError, match="no option 'size'"): predict(tuned/'seg0', images, size=3)
    for k in ('run.json', 'result.json'): shutil.copy(tuned/'seg0'/k, home)
    with pytest.raises(FileNotFoundError, match='holds no fine-tuned model'): predict(home, images)


def test_a_table(tuned, home, images):
    "Paths are relative to the table; its other columns are kept; a file that is not there is one that cannot be read"
    lines = 'id,file,patient,confidence', 'P1 left,A/c.jpg,P1,high', 'P2,gone.png,P2,', 'P3,a.png,P3,'
    (images/'list.csv').write_text('\n'.join(lines))
    table = predict(tuned/'cls0', images/'list.csv', home/'out')
    assert table.id.tolist() == ['P1 left', 'P3'] and table.patient.tolist() == ['P1', 'P3']
    assert table['confidence (table)'][0] == 'high' and table.confidence.between(0, 1).all()
    assert pd.read_csv(home/'out'/'unreadable.csv').fault.tolist() == ['there is no such file']
    frame = pd.DataFrame({'where': [str(images/'a.png')], 'site': [3]})
    assert predict(tuned/'cls0', frame, home/'frame').site.tolist() == [3]
    for text, said in (('file\nx.png\n', 'no column names files that exist below'),
                       ('file,other\na.png,a.png\n', 'file, other all name files that exist'),
                       ('id,file\na,a.png\na,A/c.jpg\n', "the id 'a' occurs 2 times"),
                       ('id,file\n../a,a.png\n', "the id '../a' cannot name a file"), ('file\n', 'has no rows')):
        (images/'list.csv').write_text(text)
        with pytest.raises(ValueError, match=said): predict(tuned/'cls0', images/'list.csv', home/'out')
    (images/'list.csv').write_text('file\na.png\n')
    with pytest.raises(ValueError, match="no column 'path'"):
        predict(tuned/'cls0', images/'list.csv', image_column='path')


def test_a_table_with_labels_can_be_scored(tuned, home, phantoms):
    "Labels are not used, and kept: what is written is a table of predictions for 51_cls_eval"
    files = sorted((phantoms/'Phantom_OCT'/'test'/'bscan').iterdir())
    names = ClassificationTask.from_settings(settings()).data.classes
    labels = [names[i % len(names)] for i in range(len(files))]
    table = pd.DataFrame({'file': [str(p) for p in files], 'label': labels, 'patient': [p.stem[:4] for p in files]})
    rows = predict(tuned/'cls0', table, home/'out')
    scored = read_predictions(home/'out'/'predictions.csv')
    assert scored.classes == tuple(names) and scored.table.patient.tolist() == table.patient.tolist()
    assert np.allclose(scored.p, rows[[f'score:{c}' for c in names]]) and scored.y.argmax(1).tolist() == [
        names.index(k) for k in labels]


def test_nothing_can_be_read(tuned, home, images):
    with pytest.raises(ValueError, match=r'none of the 1 images can be read; .*broken\.png'):
        predict(tuned/'seg0', images/'A'/'broken.png', home/'out')
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere'): predict(tuned/'seg0', images/'nowhere')
    (home/'none').mkdir()
    with pytest.raises(ValueError, match='no image in .*none; images end in'): predict(tuned/'seg0', home/'none')


def test_what_is_predicted_is_not_predicted_again(tuned, home, images, monkeypatch):
    "After an interruption only the rest is; a changed image or another model is another matter"
    read = []
    forward = Ensemble.predict
    monkeypatch.setattr(Ensemble, 'predict', lambda self, s: read.append([k['id'] for k in s]) or forward(self, s))
    whole = predict(tuned/'seg0', images, home/'whole', batch_size=1)
    assert sum(read, []) == sorted(IDS)

    def stop(self, samples):
        if read and len(read) >= 2: raise KeyboardInterrupt
        return read.append([k['id'] for k in samples]) or forward(self, samples)

    read.clear()
    with monkeypatch.context() as m:
        m.setattr(Ensemble, 'predict', stop)
        with pytest.raises(KeyboardInterrupt): predict(tuned/'seg0', images, home/'part', batch_size=1)
    with open(home/'part'/'rows.journal', 'a') as f: f.write('{"id": "a", "ro')  # it was writing
    assert len(read) == 2 and not (home/'part'/'predictions.csv').exists()
    read.clear()
    again = predict(tuned/'seg0', images, home/'part', batch_size=1)
    assert read == [['a']]
    pd.testing.assert_frame_equal(again.drop(columns='image'), whole.drop(columns='image'))
    for p in (home/'whole').rglob('*.png'):
        assert p.read_bytes() == (home/'part'/p.relative_to(home/'whole')).read_bytes()
    read.clear()
    predict(tuned/'seg0', images, home/'part', batch_size=1)
    assert read == []
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(images/'a.png')
    assert predict(tuned/'seg0', images, home/'part', batch_size=1).set_index('id').rows['a'] == 20 and read == [['a']]
    read.clear()
    predict(tuned/'seg1', images, home/'part', batch_size=1)
    assert len(read) == 3


def other_images(folder, source):
    "Images of another kind in three folders: inverted phantoms, noise, and drawings of chests"
    from mirage_nb.phantoms.cxr import make_phantom_cxr
    rng, images = np.random.default_rng(0), [np.asarray(Image.open(p)) for p in sorted(source.iterdir())]
    for k, drawn in (('inverted', [255 - x for x in images]),
                     ('noise', [rng.integers(0, 255, x.shape).astype(np.uint8) for x in images])):
        (folder/k).mkdir(parents=True)
        for i, x in enumerate(drawn): Image.fromarray(x).save(folder/k/f'{i}.png')
    make_phantom_cxr(folder/'made', patients=40, films=1, size=64)
    (folder/'chest').mkdir()
    for p in sorted((folder/'made').rglob('*.png'))[:8]: Image.open(p).convert('L').save(folder/'chest'/p.name)
    shutil.rmtree(folder/'made')
    return folder


def test_images_unlike_the_training_images_are_told_apart(tuned, home, phantoms):
    "Test phantoms are like training phantoms; what is clearly different is further away, for both tasks"
    source = phantoms/'Phantom_OCT'/'test'/'bscan'
    folder = other_images(home/'other', source)
    for kind in ('seg0', 'cls0'):
        same = predict(tuned/kind, source, home/kind/'same')
        other = predict(tuned/kind, folder, home/kind/'other')
        for name in ('inverted', 'noise', 'chest'):
            part = other[other.id.str.startswith(f'{name}/')]
            truth = np.r_[np.zeros(len(same)), np.ones(len(part))]
            auroc = roc_auc_score(truth, np.r_[same.distance, part.distance])
            assert auroc > .9, f'{kind}, {name}: {auroc:.2f}'
            assert part.unlike.median() >= 95 and part.far.mean() >= .5 > same.far.mean(), (kind, name)
    files = list((tuned/'seg0'/'features').glob('*.safetensors'))
    assert len(files) == 1 and files[0].name.startswith(hash_file(tuned/'seg0'/'best.safetensors')[:16])


def test_real_images_are_unlike_phantoms(tuned, home, shared_data, phantoms):
    "Real B-scans of another device, and fundus photographs"
    (home/'real').mkdir()
    for p in sorted((shared_data/'Duke_DME'/'test'/'bscan').iterdir())[:8]: shutil.copy(p, home/'real')
    for p in sorted((shared_data/'unam'/'fundus').rglob('*.*'))[:8]:
        Image.open(p).convert('L').save(home/'real'/f'{p.stem}.png')
    same = predict(tuned/'seg0', phantoms/'Phantom_OCT'/'test'/'bscan', home/'same')
    real = predict(tuned/'seg0', home/'real', home/'out')
    truth = np.r_[np.zeros(len(same)), np.ones(len(real))]
    assert roc_auc_score(truth, np.r_[same.distance, real.distance]) > .8


def test_without_the_training_images_nothing_is_compared(tuned, home, images):
    "The report says why; features that are kept are enough"
    run = home/'run'
    shutil.copytree(tuned/'seg0', run, ignore=shutil.ignore_patterns('features'))
    record = json.loads((run/'run.json').read_text())

    def told(**changed):
        write_json(run/'run.json', {**record, **changed})
        job = plan_prediction(Predict(images=str(images), compare_with=20), [run])
        rows = job.predict(home/f'out{len(changed)}')
        return rows, ' '.join(v['text'] for v in sum_up(job, rows)['verdicts'])

    rows, text = told(sources={'data': 'other'})
    assert 'unlike' not in rows and 'are not those that it was trained on any more' in text
    rows, text = told(settings={**record['settings'], 'dataset': 'Gone'}, sources={})
    assert 'unlike' not in rows and "no dataset 'Gone'" in text
    rows, text = told()
    assert 'unlike' in rows and 'could not be compared' not in text and 'only 8 validation images' in text
    job = plan_prediction(Predict(images=str(images), compare_with=0), [run])
    rows = job.predict(home/'none')
    assert 'unlike' not in rows and any('compare_with is 0' in v['text'] for v in sum_up(job, rows)['verdicts'])


def test_plan(tuned, home, images):
    "The identity follows from models and images, not from their folder"
    plan = plan_prediction(Predict(images=str(images)), [tuned/'seg0'])
    assert plan.sources['model'] == hash_file(tuned/'seg0'/'best.safetensors') and len(plan.table) == 5
    shutil.copytree(images, home/'copy')
    assert plan_prediction(Predict(images=str(home/'copy')), [tuned/'seg0']).sources == plan.sources
    (home/'copy'/'A'/'broken.png').write_bytes(b'another')
    assert plan_prediction(Predict(images=str(home/'copy')), [tuned/'seg0']).sources['data'] != plan.sources['data']
    own = plan_prediction(Predict(), [open_run(tuned/k) for k in ('seg0', 'seg1')])
    assert len(own.table) == 8 and set(own.sources) == {'data', 'model 1', 'model 2'}


@pytest.mark.parametrize('kind', ['seg', 'cls'])
def test_as_a_notebook(tuned, images, execute, kind):
    "Both tasks, one run and two: a headline in words, verdicts, files"
    runs = [str(tuned/f'{kind}{i}') for i in range(2)]
    for given, by in (({'run': runs[0]}, f'{kind}0'), ({'runs': ','.join(runs)}, 'the mean of 2 runs')):
        space = execute('predict', images=str(images), batch_size=2, **given)
        here = space['here'].folder
        result = json.loads((here/'result.json').read_text())
        verb = 'segmented' if kind == 'seg' else 'classified'
        assert result['summary'][0] == f'3 of 5 images {verb} by {by}; 2 could not be read'
        texts = [v['text'] for v in result['verdicts']]
        assert texts[0].startswith('The model was tuned on synthetic images alone (Phantom_OCT): '), texts[0]
        assert texts[1].startswith('2 of 5 images could not be read and have no prediction: broken.png (8 bytes) '
                                   'cannot be read as an image: its format is unknown, empty.bmp'), texts[1]
        assert texts[-1] == 'There are no labels here, so nothing says how good these predictions are.'
        assert here.name.startswith('new patients-') and len(pd.read_csv(here/'predictions.csv')) == 3
        assert len(list((here/'overlays').rglob('*.png'))) == (3 if kind == 'seg' else 0)


def test_volumes_name_nobody(tuned, tmp_path, monkeypatch, capfd):
    "B-scans of scanner files are predicted by id; what names the patient is in no file of the run and in no message"
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    paths = write_all(tmp_path/'scans', ('vol', 'xml', 'fds', 'dicom', 'mhd', 'nifti', 'mat'))
    (tmp_path/'scans'/f'{WHO.last} {WHO.first}.vol').write_bytes(paths['vol'].read_bytes()[:3000])
    with pytest.warns(UserWarning, match='a key for pseudonyms was made'):
        job = plan_prediction(Predict(images=str(tmp_path/'scans'), overlay='contour'), [tuned/'seg0'])
    rows = job.predict(tmp_path/'runs'/'out')
    summary = sum_up(job, rows)
    write_json(tmp_path/'runs'/'out'/'result.json', summary)
    assert len(rows) == 7*N and rows.id.str.contains(r'_b0[0-2]$').all() and summary['unreadable'] == 1
    told = f'patients.csv beside your key of pseudonyms says which file {job.unreadable.id.iloc[0]} is'
    assert any(told in v['text'] for v in summary['verdicts'])
    assert (tmp_path/'runs'/'out'/'overlays'/f'{rows.id[0]}.png').exists()
    written = [p for p in (tmp_path/'runs').rglob('*') if p.is_file()]
    said = ''.join(capfd.readouterr()) + repr(job.table)
    texts = [said, *map(str, written), *(p.read_bytes().decode('latin-1') for p in written if p.suffix != '.png')]
    assert not [(s, t[:80]) for s in SECRETS for t in texts if s in t.lower()]


@pytest.mark.slow
def test_a_short_model_is_told_of_before_and_after_it_is_trained(home, phantoms):
    with pytest.warns(UserWarning, match='no finished seg_tune on Phantom_OCT, so a short model is trained first'):
        made = tuned_run(None, 'Phantom_OCT')
    told, = short_doubt(made.settings)
    assert told.level == 'warning' and tuned_run(None, 'Phantom_OCT').folder == made.folder  # and no word more
