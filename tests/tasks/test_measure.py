"Measurements as their user asks for them: a dataset with two graders, and a real file of a scanner"
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mirage_nb.anonymity import hide_names
from mirage_nb.commands.check import check_dataset
from mirage_nb.core import resource_dir
from mirage_nb.data.label_maps import LabelMap, write_label_map
from mirage_nb.data.manifest import ClassInfo
from mirage_nb.data.scanners.volume import Spacing
from mirage_nb.eval.agreement import agreement_table
from mirage_nb.figures.measure import show_thickness
from mirage_nb.phantoms.eyes import EYE_CLASSES, EyePlan, EyeScan, cyst_mm3, draw_masks, make_phantom_eyes
from mirage_nb.recipes.measure import Measure
from mirage_nb.storage import write_json
from mirage_nb.tasks.measure import (
    _beside_model,
    _doubts,
    _unmarked,
    compare_visits,
    measured_pairs,
    measured_result,
    plan_measurement,
    sector_errors,
)

pytestmark = pytest.mark.slow
FOLDER = resource_dir('data_manifests')
LINE = Path(__file__).resolve().parents[2]/'shared'/'data'/'oct_slo_pairs'/'octolyzer_Linescan_1.vol'


@pytest.fixture
def eyes(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    return make_phantom_eyes(tmp_path/'Phantom_EYES', slices=21, between=.3, cols=90, across=.07)


def test_two_graders_agree_and_a_stopped_job_goes_on(eyes, tmp_path):
    shutil.copytree(eyes/'semseg', eyes/'semseg_grader2')
    job = plan_measurement(Measure())
    table = job.measure(tmp_path/'run')
    kept = sorted((tmp_path/'run'/'measured').rglob('*.json'))
    assert len(kept) == 8
    kept[0].unlink()
    again = plan_measurement(Measure())
    np.testing.assert_array_equal(again.measure(tmp_path/'run').value.astype(float), table.value.astype(float))
    agreed = agreement_table(measured_pairs(again))
    assert (agreed['mean absolute'] == '0.0').all() and set(agreed['ICC(2,1)']) <= {'1.00', '–'}
    errors = sector_errors(table)
    assert (errors.filter(like='volumes') == 4).all(axis=None)
    assert abs(errors.filter(regex='signed|absolute').to_numpy()).max() < .05  # the fovea is kept to a nanometre
    assert all(v['level'] == 'note' for v in measured_result(again, compare_visits(again))['verdicts'])
    facts = json.loads((tmp_path/'run'/'measures.json').read_text())
    assert {f['eye'] for f in facts} == {'OD', 'OS'} and all(f['fovea']['clear'] for f in facts)


def test_a_killed_batch_measures_nothing_twice(eyes, tmp_path, monkeypatch):
    "Stopped in its third volume: the next start measures two, and every file is that of a job that was not stopped"
    from mirage_nb.tasks import measure
    whole = plan_measurement(Measure()).measure(tmp_path/'whole')
    real, calls = measure.measure_volume, []
    def stops(*given):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return real(*given)
    monkeypatch.setattr(measure, 'measure_volume', stops)
    with pytest.raises(KeyboardInterrupt): plan_measurement(Measure()).measure(tmp_path/'run')
    times = {p: p.stat().st_mtime_ns for p in (tmp_path/'run').rglob('*') if p.is_file()}
    job = plan_measurement(Measure(figures=1))
    assert job.measure(tmp_path/'run').equals(whole) and len(calls) == 5 and not job.held
    assert times == {p: p.stat().st_mtime_ns for p in times} and len(times) == 6
    def contents(k): return {p.relative_to(tmp_path/k): p.read_bytes() for p in (tmp_path/k).rglob('*') if p.is_file()}
    assert contents('run') == contents('whole')
    assert len(list((tmp_path/'run'/'eyes'/'drawn').iterdir())) == 4 and not compare_visits(job)[1:]


def test_without_a_scale_there_are_pixels(eyes, tmp_path):
    text = (Path(__file__).resolve().parents[2]/'data_manifests'/'Phantom_EYES.toml').read_text()
    (eyes/'manifest.toml').write_text(text.replace('scale = {sizes = "volumes.csv"}', ''))
    table = plan_measurement(Measure(dataset=str(eyes))).measure(tmp_path/'run')
    assert not {'µm', 'nl', 'mm3'} & set(table.unit) and set(table['where']) == {'all A-scans', 'all'}
    stated = plan_measurement(Measure(dataset=str(eyes), spacing='.0039,.07,.3')).measure(tmp_path/'stated')
    assert {'µm', 'nl', 'mm3'} <= set(stated.unit) and set(stated.eye) == {'OD', 'OS'}  # by their names


def test_without_rpe_there_is_no_retina(eyes, tmp_path):
    "A set of masks that lacks the last layer in one volume: no thickness, no central value, a warning before all"
    from PIL import Image
    value = next(c['value'] for c in json.loads((eyes/'INFO.json').read_text()).values() if c['label'] == 'RPE')
    for p in (eyes/'semseg').rglob('P1_OS*.png'):
        x = np.array(Image.open(p))
        Image.fromarray(np.where(x == value, 0, x).astype(np.uint8)).save(p)
    job = plan_measurement(Measure())
    table, said = job.measure(tmp_path/'run'), measured_result(job)
    retina = table[(table.of == 'retina') & (table.measure == 'thickness')]
    assert retina[retina.volume == 'P1_OS'].value.isna().all() and retina[retina.volume != 'P1_OS'].value.notna().any()
    assert said['verdicts'][0]['text'].startswith('No RPE is drawn in P1_OS: this is no retinal thickness')
    assert 'no thickness of the retina, as RPE is not in the masks' in ' '.join(said['summary'])
    assert len(said['central_um']) == 3


def test_lesions_that_a_grader_never_marks_are_not_zero(eyes, tmp_path, monkeypatch):
    "The second grader has drawn layers alone, as that of Duke_DME: not measurable, said, and kept as it is"
    from PIL import Image
    infos = json.loads((eyes/'INFO.json').read_text()).values()
    fluid = [c['value'] for c in infos if c['label'] in ('IRF', 'SRF')]
    shutil.copytree(eyes/'semseg', eyes/'semseg_grader2')
    for p in (eyes/'semseg_grader2').rglob('*.png'):
        x = np.array(Image.open(p))
        Image.fromarray(np.where(np.isin(x, fluid), 0, x).astype(np.uint8)).save(p)
    job = plan_measurement(Measure())
    table, found = job.measure(tmp_path/'run'), job.unmarked
    assert set(found) == {'grader2'} and 'IRF' in found['grader2']
    irf = table[(table.of == 'IRF') & (table.measure == 'volume')]
    assert irf[irf.by == 'grader2'].value.isna().all() and irf[irf.by == 'drawn'].value.notna().all()
    assert [v for v in measured_result(job)['verdicts'] if v['text'].startswith('Grader2 marks IRF')]
    page = next((tmp_path/'run'/'eyes'/'grader2').iterdir()).read_text()
    assert 'Measured by grader2.' in page and 'which grader2 marks in no volume' in page
    monkeypatch.setattr('mirage_nb.tasks.measure.measure_volume', lambda *_: pytest.fail('measured twice'))
    assert plan_measurement(Measure(figures=1)).measure(tmp_path/'run').equals(table)


def test_slices_without_a_model_are_told_the_way(eyes):
    with pytest.raises(ValueError, match='slices as P001_OD_07.png are measured with run='):
        plan_measurement(Measure(dataset='', images=str(eyes/'bscan')))


def test_names_are_hidden_and_numbers_stay(eyes, tmp_path, monkeypatch):
    "Planted names: those of the volumes, their patients and their en-face images"
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))
    plain = plan_measurement(Measure()).measure(tmp_path/'plain')
    hide_names(True)
    try:
        (eyes/'slo'/'P1_OS.png').unlink()
        job = plan_measurement(Measure(anonymise=True))
        table = job.measure(tmp_path/'run')
        changes = compare_visits(job)
    finally: hide_names(False)
    rest = plain[plain.volume != 'P1_OS']
    np.testing.assert_array_equal(table.value.astype(float), rest.value.astype(float))
    assert len(changes) == 1 and list(table.eye) == list(rest.eye) and list(table.visit) == list(rest.visit)
    written = [p for p in (tmp_path/'run').rglob('*') if p.is_file()]
    assert written and not [p for p in written for k in ('P1_', 'P2_', '"P1"', '"P2"')
                            if k in str(p.relative_to(tmp_path)) or k.encode() in p.read_bytes()]
    assert len(job.unreadable) == 1 and 'P1' not in job.unreadable.id.iloc[0]
    assert len(pd.read_csv(tmp_path/'run'/'unreadable.csv')) == 1


def test_a_corrected_scale_is_measured_anew(eyes, tmp_path):
    before = plan_measurement(Measure())
    hashes, old = before.sources(), before.measure(tmp_path/'run')
    sizes = eyes/'volumes.csv'
    sizes.write_text(sizes.read_text().replace('0.0039', '0.0078'))
    after = plan_measurement(Measure())
    assert after.sources() != hashes
    def central(t): return t[(t['where'] == 'central') & (t.of == 'retina')].value.astype(float).to_numpy()
    np.testing.assert_allclose(central(after.measure(tmp_path/'run')), 2*central(old), rtol=1e-6)


def test_renumbered_bscans_are_measured_anew(eyes):
    before = plan_measurement(Measure()).sources()
    for k in ('bscan', 'semseg'):
        last = sorted((eyes/k).rglob('P1_OD_*.png'))[-1]
        last.rename(last.with_name('P1_OD_90.png'))
    assert plan_measurement(Measure()).sources() != before


def test_a_run_of_another_dataset_is_refused(eyes, tmp_path):
    "Images of two datasets may have the same names, and their classes other numbers"
    write_json(tmp_path/'run'/'run.json', {'stage': 'seg_tune', 'settings': {'dataset': 'Other'}, 'sources': {}})
    write_json(tmp_path/'run'/'result.json', {})
    with pytest.raises(ValueError, match='predicted images of Other, not of Phantom_EYES'):
        plan_measurement(Measure(run=str(tmp_path/'run')))


@pytest.mark.parametrize(('column', 'told'), [('eye', 'the eye of one volume is OD and OS'),
                                              ('mm_between_rows', 'states several sizes of a pixel')])
def test_a_volume_of_which_two_things_are_stated_is_refused(eyes, tmp_path, column, told):
    sizes = pd.read_csv(eyes/'volumes.csv')
    ids = pd.DataFrame({'id': sorted(p.stem for p in (eyes/'bscan').rglob('*.png'))})
    table = ids.assign(volume=ids.id.str.rsplit('_', n=1).str[0]).merge(sizes, on='volume').drop(columns='volume')
    table[column] = table[column].where(table.id != 'P1_OD_03', {'eye': 'OS'}.get(column, .008))
    table.to_csv(eyes/'volumes.csv', index=False)
    job = plan_measurement(Measure()) if column != 'eye' else None
    if job: job.measure(tmp_path/'run')
    fault = job.unreadable.fault.iloc[0] if job else str(pytest.raises(ValueError, plan_measurement, Measure()).value)
    assert told in fault


def test_a_star_without_positions_has_no_volumes(tmp_path):
    infos = [ClassInfo(i, 25*i, k, 'lesion' if i > 6 else 'layer' if i else 'background')
             for i, k in enumerate(EYE_CLASSES)]
    size = EyeScan(rows=96, cols=64, across=.1, between=.8, slices=5)
    masks = draw_masks(EyePlan(cysts=((0., 0., .5, 70.),)), size)
    found = {}
    for k, turned in (('radial', None), ('', np.array([[80.*i, 0, 80.*i, 640] for i in range(5)]))):
        write_label_map(tmp_path/f'a{k}'/'volumes'/'V.nii.gz', LabelMap(
            'V', masks, infos, Spacing(size.depth, size.across, size.between), 'OD', '', k, turned))
        found[k] = plan_measurement(Measure(predictions=str(tmp_path/f'a{k}'))).measure(tmp_path/f'run{k}')
    assert not {'nl', 'mm3'} & set(found['radial'].unit) and 'central' not in set(found['radial']['where'])
    assert {'nl', 'mm3'} <= set(found[''].unit)  # vertical B-scans, placed where they are


def test_fluid_is_recovered_to_one_per_cent():
    size = EyeScan(across=.02, between=.06, cols=120, slices=41)
    plan = EyePlan(cysts=((0., 0., .5, 60.),), swelling=200.)
    voxel = size.depth*size.across*size.between
    assert abs((draw_masks(plan, size) == 7).sum()*voxel/cyst_mm3(plan) - 1) < .01


@pytest.mark.skipif(not LINE.exists(), reason='the real file of the shared data is not here')
def test_a_real_file_from_its_boundaries_to_sectors(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))
    job = plan_measurement(Measure(images=str(LINE)))
    table = job.measure(tmp_path/'run')
    central = table[(table['where'] == 'central') & (table.of == 'retina')].value.iloc[0]
    assert 180 < central < 350 and not measured_result(job)['unreadable']
    assert table[table['where'] == 'inner superior'].value.isna().all()  # the line does not cross it


def kept(volume, by, value, unit='µm', where='central', covered=1.):
    "What is kept of a volume with one number"
    row = {'of': 'retina', 'where': where, 'measure': 'thickness', 'value': value, 'unit': unit, 'covered': covered}
    return {'by': by, 'facts': {'volume': volume}, 'rows': [row]}


def test_a_model_is_told_beside_each_set_of_masks_that_has_its_volumes():
    "Graders may have others, means may be missing or in another unit: what is counted is said"
    two = [kept('T1', 'drawn', 300.), kept('T1', 'model', 310.), kept('T2', 'drawn', 280.), kept('T2', 'model', 260.)]

    def said(*more): return _beside_model(SimpleNamespace(kept=[*two, *more]))
    head = ('2 volumes measured by the model: central subfield 260 to 310 µm; against drawn masks -5 on average '
            '(-20 to +10)')
    assert said(kept('V3', 'drawn', 250.), kept('V3', 'grader2', 255.)) == [head]
    assert said(kept('T2', 'grader2', 270.)) == [f'{head}, against grader2 -10 on average (-10 to -10) in 1 of them']
    assert said(kept('T3', 'drawn', 250.), kept('T3', 'model', None))[0].startswith(
        '3 volumes measured by the model: central subfield 260 to 310 µm in 2')
    assert said(kept('T3', 'drawn', 80., 'pixels'), kept('T3', 'model', 70., 'pixels'))[0].endswith(
        '260 to 310 µm in 2 of them; against drawn masks -5 on average (-20 to +10)')
    assert _beside_model(SimpleNamespace(kept=two[:2])) == [
        'T1 measured by the model: central subfield 310 µm; by drawn masks 300 µm']


def test_a_speck_does_not_make_a_grader_blind(eyes):
    "One pixel of the first grader is a disagreement, and the 0 of the second a measurement"
    from PIL import Image
    infos = json.loads((eyes/'INFO.json').read_text()).values()
    fluid = [c['value'] for c in infos if c['label'] in ('IRF', 'SRF')]
    files = sorted((eyes/'semseg').rglob('*.png'))
    for p in files:
        seen = np.array(Image.open(p))
        seen[np.isin(seen, fluid)] = 0
        Image.fromarray(seen).save(p)
    shutil.copytree(eyes/'semseg', eyes/'semseg_grader2')
    for pixels, lost in ((1, {}), (150, {'grader2': ['IRF']})):
        seen = np.array(Image.open(files[0]))
        seen.flat[:pixels] = next(c['value'] for c in infos if c['label'] == 'IRF')
        Image.fromarray(seen).save(files[0])
        assert _unmarked(plan_measurement(Measure(dataset='Phantom_EYES')).volumes) == lost


def test_an_eye_that_is_stated_elsewhere_is_told(eyes, tmp_path):
    job = plan_measurement(Measure(dataset='Phantom_EYES', eye='OD'))
    job.measure(tmp_path/'run')
    told = [v.text for v in _doubts(job) if 'eye=OD' in v.text]
    assert len(told) == 1 and 'is not taken for' in told[0] and 'says the other eye' in told[0]


@pytest.mark.parametrize(('column', 'written'), [('visit', 'visits'), ('mm_between_slices', 'mm_between_slice'),
                                                 ('eye', 'laterality'), ('volume', 'volumes')])
def test_a_misspelt_column_of_the_table_of_sizes_is_refused(eyes, tmp_path, column, written):
    sizes = eyes/'volumes.csv'
    sizes.write_text(sizes.read_text().replace(column, written, 1))
    told = f"volumes.csv has a column '{written}', which nothing reads. Did you mean '{column}'?"
    with pytest.raises(ValueError, match=re.escape(told)): plan_measurement(Measure()).measure(tmp_path/'run')
    assert any(told in p for p in check_dataset('Phantom_EYES').problems)


def test_one_distance_between_selected_bscans_is_warned_of(eyes, tmp_path):
    facts = (FOLDER/'Phantom_EYES.toml').read_text()
    (eyes/'manifest.toml').write_text(facts.replace('{sizes = "volumes.csv"}', '{selected = true}'))
    for spacing, warned in (('.0039,.07,.3', 1), ('.0039,.07', 0)):
        job = plan_measurement(Measure(dataset=str(eyes), spacing=spacing))
        job.measure(tmp_path/spacing)
        assert sum('nothing states that 0.3 mm is' in v.text and v.level == 'warning' for v in _doubts(job)) == warned


def test_a_path_is_measured_as_its_name_is(eyes, tmp_path):
    named, by_path = (plan_measurement(Measure(dataset=k)) for k in ('Phantom_EYES', str(eyes)))
    a, b = (job.measure(tmp_path/str(i)).set_index(['volume', 'measure', 'of', 'where', 'unit']).value.astype(float)
            for i, job in enumerate((named, by_path)))
    pd.testing.assert_series_equal(a, b)
    assert {k['facts']['eye'] for k in by_path.kept} == {'OD', 'OS'}


def test_a_table_that_contradicts_the_name_of_an_eye_is_told(eyes, tmp_path):
    table = eyes/'volumes.csv'
    table.write_text(table.read_text().replace('0.3,OD,', '0.3,OS,', 1))
    job = plan_measurement(Measure())
    job.measure(tmp_path/'run')
    (told,) = (v for v in _doubts(job) if 'its name says' in v.text)
    assert told.level == 'warning' and told.text.startswith('P1_OD is measured as OS') and 'also' not in told.text


def test_drusen_of_the_masks_and_by_height_have_names_of_their_own(eyes, tmp_path):
    job = plan_measurement(Measure())
    table = job.measure(tmp_path/'run')
    own = table[table.volume == 'P1_OS']
    assert set(own[own.of == 'drusen by height'].measure) == {'area', 'volume', 'height'}
    assert 'within 1 mm diameter' in set(own[own.of == 'Drusen']['where'])
    assert 'drusen' not in set(table.of) and any('drusen by height' in k['said'] for k in job.kept)


@pytest.mark.skipif(not LINE.is_file(), reason=f'{LINE.name} is not here')
def test_numbers_on_a_line_scan_do_not_cover_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))
    job = plan_measurement(Measure(images=str(LINE)))
    job.measure(tmp_path/'run')
    fig = show_thickness(job.shown())
    fig.canvas.draw()
    boxes = [t.get_window_extent() for t in fig.axes[1].texts]
    assert len(boxes) == 5 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
