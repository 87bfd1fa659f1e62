"Verdicts of real runs: with what they speak of, and without"
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.segmentation import load_seg_data
from mirage_nb.eval.beside import grader_verdicts, grader_words
from mirage_nb.eval.segmentation.report import find_graders, score_folder
from mirage_nb.eval.verdicts import list_verdicts, seg_verdicts
from mirage_nb.storage import read_json


@pytest.fixture(scope='module')
def duke(shared_data):
    "The real Duke_DME: one test patient, and a second grader"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('MIRAGE_DATA', str(shared_data))
        yield load_seg_data(read_manifest('Duke_DME'))


def texts(results, data, **more): return [v['text'] for v in list_verdicts(seg_verdicts(results, data, **more))]


@pytest.mark.slow
def test_grader_who_marked_no_fluid_has_not_graded_it(duke):
    table = duke.tables['test']
    folder = find_graders(table)['grader2']
    scores = score_folder(table, folder, duke.classes, grader=True)
    assert scores.line('grader 2').endswith('lesions not graded') and 'Dice, mean of lesions' not in scores.means
    assert scores.notes.note['Fluid'] == 'not graded' and scores.table['Dice']['Fluid'] == 'not graded'
    model = score_folder(table, folder, duke.classes)  # a model that finds no fluid has missed it
    assert model.means['Dice, mean of lesions'] == 0
    assert scores.means['Dice, mean'] == model.means['Dice, mean of layers']
    fluid = next(c.value for c in duke.classes if c.label == 'Fluid')
    n, held = len(table), sum((np.array(Image.open(p)) == fluid).any() for p in table.semseg)
    said = f'In its test ({n} images, {held} of Fluid) the model never predicted Fluid'
    assert 0 < held < n and any(said in t for t in texts({'model': model}, duke))


@pytest.mark.slow
def test_a_model_beside_a_grader(duke):
    "Against the ground truth, in what the grader has graded: here the layers"
    table = duke.tables['test']
    grader = score_folder(table, find_graders(table)['grader2'], duke.classes, grader=True)
    right = score_folder(table, table.semseg.iloc[0].parent, duke.classes)
    same = score_folder(table, find_graders(table)['grader2'], duke.classes)
    assert grader_words({'model': right, 'grader 2': grader}) == '; above the agreement with grader 2 in layers'
    assert grader_words({'model': same, 'grader 2': grader}) == '; within the agreement with grader 2 in layers'
    found = [*grader_verdicts({'model': right, 'frozen random encoder': same, 'grader 2': grader})]
    assert len(found) == 1 and found[0].text.startswith('Above the agreement of the graders: closer to')
    assert f'Dice 1.000, grader 2 {grader.means["Dice, mean of layers"]:.3f} ' in found[0].text


@pytest.mark.slow
def test_diagonal_is_that_of_the_images(duke):
    table = duke.tables['test']
    scores = score_folder(table, find_graders(table)['grader2'], duke.classes)
    shape = np.array(Image.open(table.semseg.iloc[0])).shape
    assert f'(HD95, ASSD: the diagonal, {np.hypot(*shape):.0f} pixels)' in scores.worst_distance


def test_one_patient_is_no_evidence_about_others(duke):
    table = duke.tables['test']
    right = score_folder(table, table.semseg.iloc[0].parent, duke.classes)
    found = texts({'model': right}, duke)
    assert found == ['Tested on 1 patient: the intervals are by slice, and say nothing about other patients']
    unknown = replace(duke, manifest=replace(duke.manifest, path=duke.manifest.path.parent/'INFO.json'))
    assert any('Patients are not known' in t for t in texts({'model': right}, unknown))


# ------------------------------------------------------------------ in a run

SMALL = dict(dataset='Phantom_OCT', size=32, precision='fp32')


def verdicts(space): return read_json(space['run'].folder/'result.json')['verdicts']


@pytest.mark.slow
def test_run_says_what_its_scores_are_worth(execute):
    "A segmentation that was cut short, from random initialisation, without baselines"
    space = execute('seg_tune', **SMALL, epochs=1, head='linear', weights='random', baselines=False)
    text = ' '.join(v['text'] for v in verdicts(space))
    for words in ('Still improving at the last epoch', 'Random initialisation', 'frozen random encoder was not run',
                  'patients'):
        assert words in text, words
    assert [v['level'] for v in verdicts(space)] == sorted((v['level'] for v in verdicts(space)),
                                                          key=['warning', 'good', 'note'].index)
    result = read_json(space['run'].folder/'result.json')
    headline = result['summary'][0]
    assert headline.startswith('mirage_tiny fine-tuned from random initialisation, head linear, 1 of 1 epoch on')
    assert '8 images of' in headline and '95 % intervals by' in headline
    assert set(result['means']) == {'fine-tuned'} and '-random-linear-' in space['run'].folder.name


@pytest.mark.slow
def test_probe_is_compared_with_simpler_models(execute):
    space = execute('cls_tune', **SMALL, recipe='cls_small', epochs=2)
    text = ' '.join(v['text'] for v in verdicts(space))
    assert 'a linear probe of a random encoder (AUROC' in text and 'was not run' not in text
    assert 'majority class' in read_json(space['run'].folder/'result.json')['means']
    result = read_json(space['run'].folder/'result.json')
    assert next(iter(result['means'])) == 'linear probe' and set(result['validation']) == {'balanced accuracy', 'AUROC'}
