"A classifier tested on another set: leaks, classes of other names, and what validation can still choose"
import logging
import shutil
from ast import literal_eval
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.data.classification import load_labelled
from mirage_nb.data.manifest import read_manifest
from mirage_nb.eval.classification import predict as classification_predict
from mirage_nb.eval.classification.predictions import check_predictions, read_predictions
from mirage_nb.eval.classification.report import cls_reliability
from mirage_nb.eval.verdicts import cls_verdicts
from mirage_nb.recipes.classification import ClsEval
from mirage_nb.recipes.data_options import waived
from mirage_nb.tasks import cross_dataset as tasks_cross_dataset
from mirage_nb.tasks.classification import ClassificationTask
from mirage_nb.tasks.evaluate import load_eval_tables
from tests.tasks.samples import data, score, settings, train_cls

pytestmark = pytest.mark.slow

CLASSES = ['normal', 'DME', 'AMD', 'CSC']


def other_images(cfg, data):
    "Dataset that a model of some settings is tested on"
    return ClassificationTask.from_settings(cfg, data=data).test_home[1]


def write_set(folder, table, classes, more='', multi=False):
    "A set in a table: columns id, image, part and dx, or one for each class"
    folder.mkdir(exist_ok=True)
    table.to_csv(folder/'t.csv', index=False)
    head = [f'{k} = "x"' for k in ('title', 'modality', 'source', 'licence', 'citation', 'get')]
    truth = 'multi = true' if multi else 'label = "dx"'
    (folder/'manifest.toml').write_text('\n'.join([*head, 'task = "classification"', 'layout = "table"', '[labels]',
        'table = "t.csv"', 'image = "{image}"', 'id = "id"', truth, 'split = "part"', f'classes = {list(classes)}',
        more, '']))
    return str(folder)


def noise(folder, n, first=0):
    "Pictures of nothing"
    folder.mkdir(exist_ok=True)
    for i in range(n):
        pixels = np.random.default_rng(first + i).integers(0, 255, (40, 48), np.uint8)
        Image.fromarray(pixels).save(folder/f'{first + i}.png')
    return [str(folder/f'{first + i}.png') for i in range(n)]


def other(folder, classes, ids=None, more=''):
    "Eight pictures in a test split, two of each class"
    ids = ids or [f'o{i}' for i in range(8)]
    table = pd.DataFrame({'id': ids, 'image': noise(folder, 8), 'part': 'test', 'dx': [classes[i % len(classes)]
                                                                                     for i in range(8)]})
    return write_set(folder, table, classes, more)


@pytest.fixture(scope='module')
def trained(at_home, tmp_path_factory):
    with at_home(tmp_path_factory.mktemp('trained')) as folder: train_cls(settings(epochs=1), folder/'run')
    return folder/'run'


@pytest.fixture
def tuned(trained, home):
    "A finished training: its settings and folder"
    shutil.copytree(trained, home/'run')
    return settings(epochs=1), home/'run'


# ------------------------------------------------------------------ leaks

def test_training_images_in_the_other_test(home, tuned):
    own = data().splits
    rows = pd.concat([own['train'].head(2), own['val'].head(1), own['test']])
    table = pd.DataFrame({'id': [f'new{i}' for i in range(len(rows))], 'image': rows.image.astype(str), 'part': 'test',
                          'dx': rows.label})
    cfg = replace(tuned[0], test_dataset=write_set(home/'Copy', table, CLASSES))
    with pytest.raises(ValueError, match='3 test images are learnt from or chosen by: new0 of Copy is .*waive=d'):
        other_images(cfg, data())
    cfg = replace(cfg, waive='duplicates')
    with pytest.warns(UserWarning, match='3 test images are learnt from'): there = other_images(cfg, data())
    answers = tasks_cross_dataset.leak_table(data(), there).answer
    assert answers['images of training or validation in the test of Copy'].count('Phantom_OCT') == 3
    assert any('too high: 3 leaks between splits' in v.text for v in cls_verdicts({}, data(), there))
    scores = score(cfg, tuned[1], data())
    assert (scores.left_out, len(scores.valid)) == (1, 7)
    assert cls_reliability(scores).answer['validation images left out, as they are tested'] == '1'


def test_names_that_happen_to_be_equal(home, tuned):
    "Two sets that number their images alike share none"
    cfg = replace(tuned[0], test_dataset=other(home/'Else', CLASSES, list(data().splits['val'].id)))
    scores = score(cfg, tuned[1], data())
    assert len(scores.valid) == 8 and not scores.left_out and scores.temperature
    tables = load_eval_tables(ClsEval(predictions=str(tuned[1]/'predictions_test.csv'), run='',
                                 valid_predictions=str(tuned[1]/'predictions_val.csv')))
    assert tables.valid.table.dataset.unique().tolist() == ['Phantom_OCT']


@pytest.mark.filterwarnings('ignore:8 in more than one split')
def test_class_folders_that_count_anew(home):
    "With duplicates waived a training whose splits use the same names comes to its end"
    for s, split in enumerate(('train', 'val', 'test')):
        for k, c in enumerate('AB'):
            noise(home/'new', 4, 100*s + 10*k)
            (home/'Anew'/split/c).mkdir(parents=True)
            for i in range(4): (home/'new'/f'{100*s + 10*k + i}.png').rename(home/'Anew'/split/c/f'{c}{i}.png')
    cfg = settings(dataset=str(home/'Anew'), epochs=1, waive='duplicates')
    own = load_labelled(read_manifest(cfg.dataset), waived(cfg.waive))
    train_cls(cfg, home/'run')
    scores = score(cfg, home/'run', own)
    assert len(scores.valid) == 8 and not scores.left_out


# ------------------------------------------------------------------ classes

def test_order_and_case_change_nothing(home, tuned):
    cfg = replace(tuned[0], test_dataset=other(home/'Else', ['csc', 'AMD', 'dme', 'NORMAL']))
    scores = score(cfg, tuned[1], data())
    assert set(scores.pred.classes) == set(scores.valid.classes) == {'csc', 'AMD', 'dme', 'NORMAL'}
    assert scores.temperature and len(scores.thresholds)
    own = ClassificationTask.from_settings(tuned[0]).predict(tuned[1], 'val')
    assert scores.valid.p[:, scores.pred.classes.index('csc')] == pytest.approx(own['score:CSC'].to_numpy())
    assert read_predictions(tuned[1]/'predictions_val.csv').classes == scores.valid.classes, '51 can read it'


def test_classes_that_are_joined(home, tuned):
    maps = '[labels.class_maps.Phantom_OCT]\nnormal = "well"\nDME = "ill"\nAMD = "ill"'
    cfg = replace(tuned[0], test_dataset=other(home/'Else', ['ill', 'well'], more=maps))
    scores = score(cfg, tuned[1], data())
    assert scores.temperature and set(scores.valid.table.label) == {'ill', 'well'}
    assert len(scores.valid) == (data().splits['val'].label != 'CSC').sum(), 'CSC means nothing there'


def test_a_name_with_another_meaning(home, tuned):
    "The set calls AMD what the model calls CSC: its labels stay its own"
    maps = '[labels.class_maps.Phantom_OCT]\nnormal = "normal"\nCSC = "AMD"\nAMD = "normal"'
    cfg = replace(tuned[0], test_dataset=other(home/'Else', ['normal', 'AMD'], more=maps))
    scores = score(cfg, tuned[1], data())
    assert scores.pred.table.label.tolist() == ['normal', 'AMD']*4


def test_why_there_is_no_calibration(home, tuned):
    cfg, table = tuned[0], data().table
    bare = replace(data(), table=table[table.split != 'val'])
    scores = score(replace(cfg, monitor='last'), tuned[1], bare)
    assert cls_reliability(scores).answer['temperature and thresholds'] == 'none: Phantom_OCT has no validation split'
    maps = '[labels.class_maps.Phantom_OCT]\nnormal = "well"\nDME = "ill"'
    cfg = replace(cfg, test_dataset=other(home/'Else', ['ill', 'well'], more=maps))
    short = replace(data(), table=table[(table.split != 'val') | table.label.isin(['normal', 'CSC'])])
    scores = score(cfg, tuned[1], short)
    assert scores.valid is None and 'the truth of all 2 rows is well' in scores.no_valid
    assert not (tuned[1]/'predictions_val.csv').exists()


def test_wrong_maps_end_it_before_training(home, execute):
    small = dict(dataset='Phantom_OCT', recipe='cls_small', size=32, epochs=1, probes=False, baselines=False)
    with pytest.raises(ValueError, match='There is no partner for cyst of Else'):
        execute('cls_tune', test_dataset=other(home/'Else', [*CLASSES, 'cyst']), **small)
    table = pd.read_csv(home/'Else'/'t.csv').assign(part='train', dx=(CLASSES*2)[:8])
    with pytest.raises(ValueError, match='Else has no test split'):
        execute('cls_tune', test_dataset=write_set(home/'Else', table, CLASSES), **small)
    assert not (home/'runs'/'cls_tune').exists()


# ------------------------------------------------------------------ several labels

def labels_of(n, *names): return {c: [int((i >> k) & 1) for i in range(n)] for k, c in enumerate(names)}


def test_several_labels_in_another_set(home, caplog):
    "Another order, another name by the map, a label that each of them lacks"
    rows = {'id': [f'a{i}' for i in range(24)], 'image': noise(home/'A', 24), 'part': ['train', 'val', 'test']*8}
    a = write_set(home/'A', pd.DataFrame(rows | labels_of(24, 'Mass', 'Pleural Effusion', 'Hernia')),
                  ['Mass', 'Pleural Effusion', 'Hernia'], multi=True)
    rows = {'id': [f'b{i}' for i in range(8)], 'image': noise(home/'B', 8, 50), 'part': 'test'}
    maps = '[labels.class_maps.A]\n"Pleural Effusion" = "Effusion"\nMass = "Mass"'
    b = write_set(home/'B', pd.DataFrame(rows | labels_of(8, 'Edema', 'Effusion', 'Mass')),
                  ['Edema', 'Effusion', 'Mass'], maps, multi=True)
    cfg = settings(dataset=a, epochs=1, batch_size=4, test_dataset=b)
    ours = load_labelled(read_manifest(a))
    with caplog.at_level(logging.WARNING): there = other_images(cfg, ours)
    assert 'B: the model does not predict Edema' in caplog.text
    answers = tasks_cross_dataset.leak_table(ours, there).answer
    assert answers['labels of B that the model does not predict, so that are not scored'] == 'Edema'
    assert answers.iloc[-1] == 'Pleural Effusion of the model is Effusion'
    assert [v.level for v in cls_verdicts({}, ours, there)] == ['note']  # no leak
    train_cls(cfg, home/'run')
    scores = score(cfg, home/'run', ours)
    assert scores.pred.classes == ('Mass', 'Effusion', 'Hernia') and scores.undefined == {'Hernia': 'no label is known'}
    assert scores.pred.y[:, 1].tolist() == labels_of(8, 'x', 'y', 'z')['y'] and scores.temperature
    own = classification_predict.predict_cls(home/'run'/'best.safetensors', there.splits['test'])
    assert scores.pred.p[:, 1] == pytest.approx(own['score:Pleural Effusion'].to_numpy())


def test_names_of_labels():
    found = tasks_cross_dataset._match_labels(['Mass', 'Edema'], ['EDEMA', 'mass', 'Hernia'])
    assert found == {'Mass': 'mass', 'Edema': 'EDEMA'}
    assert tasks_cross_dataset._match_labels(['A', 'B'], ['B'], {'A': 'B'}) == {'A': 'B', 'B': 'B (not labelled there)'}
    with pytest.raises(ValueError, match="x.toml, class_maps: A and B all become 'B'"):
        tasks_cross_dataset._match_labels(['A', 'B'], ['B'], {'A': 'B', 'B': 'B'}, 'x.toml')
    with pytest.raises(ValueError, match='no label of the model .A. is one of B'):
        tasks_cross_dataset._match_labels(['A'], ['B'])
    with pytest.raises(ValueError, match="'A' becomes 'C'; no class 'C'"):
        tasks_cross_dataset._match_labels(['A'], ['B'], {'A': 'C'})


@pytest.mark.filterwarnings('ignore:.*no image of class')
def test_one_label_is_not_several(home):
    rows = {'id': ['a', 'b'], 'image': noise(home/'M', 2), 'part': 'test'}
    b = write_set(home/'M', pd.DataFrame(rows | labels_of(2, 'DME', 'AMD')), ['DME', 'AMD'], multi=True)
    with pytest.raises(ValueError, match='M has several labels per image and Phantom_OCT one'):
        other_images(settings(test_dataset=b), data())


# ------------------------------------------------------------------ no labels at all

@pytest.mark.parametrize('changed', [{}, {'tune': 'probe', 'cached_views': 0}], ids=str)
def test_images_without_labels(home, changed):
    "A table of id and image is enough for a prediction"
    train_cls(settings(epochs=1, **changed), home/'run')
    table = data().splits['test']
    said = classification_predict.predict_cls(home/'run'/'best.safetensors', table[['id', 'image']])
    labelled = classification_predict.predict_cls(home/'run'/'best.safetensors', table)
    assert 'label' not in said and said.patient.tolist() == ['']*8
    np.testing.assert_array_equal(said.filter(like='score:'), labelled.filter(like='score:'))
    assert check_predictions(labelled).table.sha256.tolist() == said.sha256.tolist()
    with pytest.raises(ValueError, match='the table of images lacks image; it has id'):
        classification_predict.predict_cls(home/'run'/'best.safetensors', table[['id']])


# ------------------------------------------------------------------ class folders without any manifest

def class_folders(folder, n=4, first=0, splits=('',), **classes):
    "Folders of noise: CLASS/ID.png, or SPLIT/CLASS/ID.png; of each class so many as it says, or n"
    for s, split in enumerate(splits):
        for k, (c, own) in enumerate(classes.items()):
            at = folder/split/c
            at.mkdir(parents=True)
            noise(at, own or n, first + 1000*s + 100*k)
    return str(folder)


@pytest.fixture
def sets(home):
    "A with splits and three classes; B without, and with other names"
    return {'dataset': class_folders(home/'A', splits=('train', 'val', 'test'), AMD=0, CNV=0, normal=0),
            'test_dataset': class_folders(home/'B', first=50_000, Normal=3, drusen=5, wet=4, scar=2)}


MAP = ['drusen > AMD', 'wet > CNV', 'scar >']


def test_every_class_without_a_partner_is_in_one_error_with_its_remedy(sets):
    with pytest.raises(ValueError) as e: ClassificationTask.from_settings(settings(**sets, epochs=1)).sources()
    assert str(e.value) == (
        'A has AMD, CNV, normal; B has Normal, drusen, scar, wet. There is no partner for AMD, CNV of A and drusen, '
        "scar, wet of B. class_map says what a class is in the other dataset, as 'CNV > AMD', or leaves it out of the "
        "test, as 'CNV >'. No name tells what these mean, only you know: drusen, scar, wet. For each ? write one of "
        "AMD, CNV, normal, or nothing, which leaves the class out: class_map=\"['drusen > ?','scar > ?','wet > ?']\"")
    with pytest.raises(ValueError, match="for scar of B. .*class_map=\"\\['scar >'\\]\""):
        other_images(settings(**sets, class_map=MAP[:2]), None)
    with pytest.raises(ValueError, match='write a class for the question mark, or nothing'):
        other_images(settings(**sets, class_map=['drusen > ?']), None)


@pytest.mark.parametrize('there, line', [
    ({'healthy': 4, 'armd': 4, 'cnv': 4}, "['AMD > armd','normal > healthy']"),   # what is alike is paired
    ({'NO': 4, 'amd': 4, 'ERM': 4}, "['normal > NO','CNV >','ERM >']"),           # the rest is left out
    ({'0': 4, '1': 4, '2': 4}, "['0 > ?','1 > ?','2 > ?']")])                     # nobody but the user knows
def test_the_class_map_that_is_suggested_works_as_it_is(sets, home, there, line):
    cfg = settings(dataset=sets['dataset'], test_dataset=class_folders(home/'C', first=90_000, **there))
    with pytest.raises(ValueError) as e: other_images(cfg, None)
    said = str(e.value).partition('class_map="')[2].rstrip('"')
    assert said == line and ('only you know' in str(e.value)) == ('?' in line)
    if '?' not in line: assert len(other_images(replace(cfg, class_map=literal_eval(said)), None).classes) >= 2


def test_class_folders_are_tested_by_the_map_of_the_command(sets, home):
    cfg = settings(**sets, epochs=1, class_map=MAP)
    task = ClassificationTask.from_settings(cfg)
    there = task.test_home[1]
    assert there.counts().test.to_dict() == {'Normal': 3, 'AMD': 5, 'CNV': 4}, 'a set without splits is all tested'
    train_cls(cfg, home/'run')
    scores = score(cfg, home/'run', task.data)
    assert scores.pred.classes == scores.valid.classes == ('AMD', 'CNV', 'Normal') and len(scores.pred) == 12
    own = classification_predict.predict_cls(home/'run'/'best.safetensors', there.splits['test'])
    assert scores.pred.p[:, 2] == pytest.approx(own['score:normal'].to_numpy())
    answers = tasks_cross_dataset.leak_table(task.data, there).answer
    assert answers['classes that are called otherwise in B, or left out'] == (
        'drusen of B is AMD; 2 images of scar of B left out; wet of B is CNV')
    assert read_predictions(home/'run'/'predictions_test.csv').classes == scores.pred.classes, '51 can read it'


def test_a_class_of_the_model_that_is_left_out(sets, home):
    "Its score is left out, and its images of validation; the others sum to 1"
    cfg = settings(**sets, epochs=1, class_map=['AMD >', 'wet > CNV', 'drusen >', 'scar > CNV'])
    task = ClassificationTask.from_settings(cfg)
    train_cls(cfg, home/'run')
    scores = score(cfg, home/'run', task.data)
    assert scores.pred.classes == ('CNV', 'Normal') and len(scores.pred) == 9 and len(scores.valid) == 8
    own = classification_predict.predict_cls(home/'run'/'best.safetensors', task.test_home[1].splits['test'])
    p = own[['score:CNV', 'score:normal']].to_numpy()
    np.testing.assert_allclose(scores.pred.p, p/p.sum(1, keepdims=True), rtol=1e-5)


def test_baselines_of_a_test_on_another_set(sets, home):
    "In the classes of that set, on its images; the probe of a random encoder is trained on the own ones"
    cfg = settings(**sets, epochs=1, baselines=True, probes=True,
                   class_map=['AMD >', 'wet > CNV', 'drusen >', 'scar > CNV'])
    task = ClassificationTask.from_settings(cfg)
    task.settings = replace(cfg, tune='full', lr=1e-3)  # so that the probe's own epochs are those of its recipe
    found = task.baselines(home/'run')
    assert [k.split(' (')[0] for k in found] == ['logistic regression', 'nearest neighbours', 'majority class',
                                                 'probe of a random encoder']
    assert all(s.pred.classes == ('CNV', 'Normal') and len(s.pred) == 9 for s in found.values())
    first, *_, last = found.values()
    assert np.array_equal(first.pred.y, last.pred.y)
    assert first.valid.table.label.tolist() == last.valid.table.label.tolist()
    share = task.data.splits['train'].label.value_counts()
    assert found['majority class'].pred.p[0, 0] == pytest.approx(share.CNV/(share.CNV + share.normal))


def test_map_of_the_command_and_of_a_manifest(home, tuned):
    "Entries of the command go before those of the manifest, which stay for the others"
    maps = '[labels.class_maps.Phantom_OCT]\nnormal = "well"\nDME = "ill"\nAMD = "ill"\nCSC = "well"'
    cfg = replace(tuned[0], test_dataset=other(home/'Else', ['ill', 'well'], more=maps), class_map=['CSC > ill'])
    task = ClassificationTask.from_settings(cfg, data=data())
    names = task.test_home[0].labels.class_maps['Phantom_OCT']
    assert names == {'normal': 'well', 'DME': 'ill', 'AMD': 'ill', 'CSC': 'ill'}


@pytest.mark.parametrize('pairs, text', [
    (['AMD = CNV'], "class_map holds 'AMD = CNV'; each entry is 'CLASS > NAME', or 'CLASS >' to leave it out"),
    (['drusn > AMD'], "class_map: no class 'drusn'. Did you mean 'drusen'?")])
def test_wrong_maps_of_the_command(sets, pairs, text):
    with pytest.raises(ValueError) as e: other_images(settings(**sets, class_map=pairs), None)
    assert text in str(e.value)


def test_a_map_needs_another_dataset():
    with pytest.raises(ValueError, match='class_map says what classes are in another dataset: name that by test_data'):
        settings(class_map=['AMD >'])


def test_several_labels_by_the_map_of_the_command(home):
    rows = {'id': [f'a{i}' for i in range(24)], 'image': noise(home/'A', 24), 'part': ['train', 'val', 'test']*8}
    a = write_set(home/'A', pd.DataFrame(rows | labels_of(24, 'Mass', 'Effusion', 'Hernia')),
                  ['Mass', 'Effusion', 'Hernia'], multi=True)
    rows = {'id': [f'b{i}' for i in range(8)], 'image': noise(home/'B', 8, 50), 'part': 'test'}
    b = write_set(home/'B', pd.DataFrame(rows | labels_of(8, 'Fluid', 'mass')), ['Fluid', 'mass'], multi=True)
    task = ClassificationTask.from_settings(settings(dataset=a, test_dataset=b, class_map=['Effusion > Fluid']))
    names = tasks_cross_dataset._class_mapping('A', task.data.classes, True, *task.test_home)
    assert names == {'Mass': 'mass', 'Effusion': 'Fluid', 'Hernia': 'Hernia'}
