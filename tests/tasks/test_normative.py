"Eyes beside healthy eyes: phantoms that are thicker by a known number of standard deviations"
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.data.label_maps import LabelMap, write_label_map
from mirage_nb.data.manifest import ClassInfo
from mirage_nb.data.scanners.volume import Spacing
from mirage_nb.figures.normative import show_normative
from mirage_nb.phantoms.eyes import EYE_CLASSES, EyePlan, EyeScan, draw_masks
from mirage_nb.recipes.measure import Measure
from mirage_nb.storage import write_json
from mirage_nb.tasks.measure import measured_result, plan_measurement
from mirage_nb.tasks.normative import compare_with_healthy

pytestmark = pytest.mark.slow
SCAN = EyeScan(rows=128, cols=50, across=.13, between=.65, slices=10)
MANIFEST = Path(__file__).resolve().parents[2]/'data_manifests'/'Phantom_EYES.toml'
HEALTHY = np.random.default_rng(3).normal(30, 12, 22)  # swelling at the fovea, micrometres


def write_set(folder, plans, scan=SCAN):
    "Write the masks of volumes as a dataset"
    for k in ('bscan', 'semseg'): (folder/k).mkdir(parents=True)
    rows = []
    for name, plan in plans.items():
        for i, m in enumerate(draw_masks(plan, scan)):
            for k in ('bscan', 'semseg'): Image.fromarray(25*m).save(folder/k/f'{name}_{i:02}.png')
        rows.append({'volume': name, 'mm_between_rows': scan.depth, 'mm_between_columns': scan.across,
                     'mm_between_slices': scan.between, 'eye': plan.eye})
    pd.DataFrame(rows).to_csv(folder/'volumes.csv', index=False)
    (folder/'manifest.toml').write_text(MANIFEST.read_text().replace('size = [256, 256]\n', 'size = [128, 50]\n'))


def plan_of(i, swelling):
    return EyePlan('OS' if i % 2 else 'OD', (.1 if i % 3 else -.1, .05), float(swelling))


@pytest.fixture(scope='module')
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sets')
    write_set(folder/'healthy', {f'P{i + 10}_X': plan_of(i, s) for i, s in enumerate(HEALTHY)})
    z = {'P1_OD': 2.5, 'P2_OS': -2.5, 'P3_OS': 0.}
    write_set(folder/'eyes', {k: plan_of(i, HEALTHY.mean() + v*HEALTHY.std(ddof=1))
                              for (k, v), i in zip(z.items(), (0, 1, 3), strict=True)})
    return folder, z


@pytest.fixture(scope='module')
def reference(healthy, tmp_path_factory):
    "Run that measured the healthy eyes; not to be changed"
    home = tmp_path_factory.mktemp('reference')/'run'
    plan_measurement(Measure(dataset=str(healthy[0]/'healthy'))).measure(home)
    return home


def test_z_scores_are_recovered(healthy, tmp_path):
    "In the centre, where eyes differ, z is that of the swelling; a folder gives what a run gives"
    folder, expected = healthy
    job = plan_measurement(Measure(dataset=str(folder/'eyes'), reference=str(folder/'healthy')))
    job.measure(tmp_path/'run')
    found = compare_with_healthy(job, tmp_path/'run')
    assert not found.unlike and len(found.reference.eyes) == 22
    own = found.table[(found.table.of == 'retina') & (found.table['where'] == 'central')].set_index('volume')
    for k, z in expected.items(): assert own.z[k] == pytest.approx(z, abs=.25), k
    assert own.band['P1_OD'].startswith(('95th', 'above')) and own.band['P2_OS'].startswith(('1st', 'below'))
    assert own.band['P3_OS'] == '5th to 95th (usual)' and (own.n == 22).all()
    with np.load(tmp_path/'run'/'normative'/'drawn'/'P1_OD.npz') as maps:
        assert np.nanmedian(maps['retina'][28:33, 28:33]) == pytest.approx(2.5, abs=.5)
    told = measured_result(job, normative=found)
    assert 'Beside 22 eyes, one of each patient:' in told['summary']
    run = plan_measurement(Measure(dataset=str(folder/'eyes'), reference=str(tmp_path/'run'/'reference')))
    assert set(run.sources()) == {'data', 'reference'} and run.sources() != job.sources()
    run.measure(tmp_path/'second')
    pd.testing.assert_frame_equal(compare_with_healthy(run, tmp_path/'second').table, found.table)


def write_maps(folder, plans, model=''):
    "Write predicted masks of volumes, as 33_predict does"
    infos = [ClassInfo(i, 25*i, k, 'lesion' if i > 6 else 'layer' if i else 'background')
             for i, k in enumerate(EYE_CLASSES)]
    for name, plan in plans.items(): write_label_map(folder/'volumes'/f'{name}.nii.gz', LabelMap(
        name, draw_masks(plan, SCAN), infos, Spacing(SCAN.depth, SCAN.across, SCAN.between), plan.eye))
    if model: write_json(folder/'run.json', {'settings': {}, 'sources': {'model': model}})
    return folder


def test_what_is_not_known_of_a_reference_is_told(tmp_path):
    "Patients that no file states, and which model predicted the masks; those of another model are not compared"
    eyes = {f'P{i + 10}': plan_of(i, s) for i, s in enumerate(HEALTHY)}
    for k in ('', 'one'): write_maps(tmp_path/f'healthy{k}', eyes, k)
    for k in ('', 'one', 'two'): write_maps(tmp_path/f'new{k}', {'P1': plan_of(0, 40.)}, k)
    known = tmp_path/'known'
    plan_measurement(Measure(predictions=str(tmp_path/'healthyone'))).measure(known)
    def compared(own, reference):
        job = plan_measurement(Measure(predictions=str(tmp_path/f'new{own}'), reference=str(reference)))
        job.measure(tmp_path/f'run{own}')
        found = compare_with_healthy(job, tmp_path/f'run{own}')
        return found.unlike, ' '.join(v.text for v in found.doubts())
    unlike, told = compared('', tmp_path/'healthy')
    assert not unlike and 'The patients of 22 healthy eyes are not known' in told
    assert 'not known whether one model' in told
    unlike, told = compared('one', known)
    assert not unlike and 'not known whether one model' not in told
    assert compared('two', known)[0] == {'P1': 'its masks are predicted by another model than those of the reference'}


def test_a_single_bscan_is_named_and_not_compared(reference, tmp_path):
    "Its fovea may be stated, but its line covers no sector"
    write_set(tmp_path/'line', {'P9_OD': plan_of(0, 30.)}, replace(SCAN, slices=1))
    job = plan_measurement(Measure(dataset=str(tmp_path/'line'), reference=str(reference), fovea='0,25'))
    job.measure(tmp_path/'run')
    found = compare_with_healthy(job, tmp_path/'run')
    assert found.unlike == {'P9_OD': 'no sector covered to three quarters'} and show_normative(found.shown) is None
    assert 'No eye could be compared' in ' '.join(measured_result(job, normative=found)['summary'])


def test_another_scale_is_not_compared(healthy, reference, tmp_path):
    folder, _ = healthy
    sizes = folder/'eyes'/'volumes.csv'
    before = sizes.read_text()
    sizes.write_text(before.replace('0.0039', '0.0036', 1))
    try:
        job = plan_measurement(Measure(dataset=str(folder/'eyes'), reference=str(reference)))
        job.measure(tmp_path/'run')
        found = compare_with_healthy(job, tmp_path/'run')
    finally: sizes.write_text(before)
    assert found.unlike == {'P1_OD': '0.0036 mm between rows, and 0.0039 mm in the reference'}
    assert any('P1_OD was not compared' in v['text'] for v in measured_result(job, normative=found)['verdicts'])


def test_an_eye_is_no_reference_of_itself(healthy, reference, tmp_path):
    "Each of 22 eyes beside the other 21; masks of a model are not compared with drawn ones; a map that differs is seen"
    folder, _ = healthy
    home = shutil.copytree(reference, tmp_path/'run')
    job = plan_measurement(Measure(dataset=str(folder/'healthy'), reference=str(home)))
    job.measure(tmp_path/'again')
    found = compare_with_healthy(job, tmp_path/'again')
    own = found.table[(found.table.of == 'retina') & (found.table['where'] == 'central')]
    assert (own.n == 21).all() and 'left out of it there (21 eyes left)' in ' '.join(v.text for v in found.doubts())
    assert any('differ by less than 0.5 µm' in v.text for v in found.doubts())  # only the fovea varies
    before = job.sources()['reference']
    next((home/'maps').rglob('*.npz')).write_bytes(b'')
    assert job.sources()['reference'] != before
    for k in job.kept: k['by'] = 'predicted'
    other = compare_with_healthy(job, tmp_path/'again')
    told = ' '.join(v.text for v in other.doubts())
    assert not len(other.table) and 'and 21 more were not compared with the reference: its masks are predicted' in told
