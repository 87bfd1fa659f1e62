"Predicted masks go back into volumes, of scanners and of slices by name, and are measured from there"
import re
import warnings

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mirage_nb.anonymity import hide_folder, hide_names
from mirage_nb.data.label_maps import LabelMap, read_label_map, write_label_map
from mirage_nb.data.manifest import ClassInfo
from mirage_nb.data.masks import read_mask
from mirage_nb.data.scanners.volume import Spacing
from mirage_nb.models.segmentation import seg_model
from mirage_nb.models.tuning import save_tuned_model
from mirage_nb.phantoms.eyes import EYE_CLASSES, EyePlan, EyeScan, draw_bscans, draw_masks
from mirage_nb.recipes.measure import Measure
from mirage_nb.recipes.prediction import Predict
from mirage_nb.storage import write_json
from mirage_nb.tasks.measure import measured_result, plan_measurement
from mirage_nb.tasks.predict import plan_prediction, sum_up

pytestmark = pytest.mark.slow
SCAN = EyeScan(rows=96, cols=64, across=.1, between=.8, slices=5)
GROUPS = {0: 'background', 7: 'lesion', 8: 'lesion'}


def write_nifti(path, pixels):
    "Write a volume as a scanner's export"
    image = nibabel.Nifti1Image(pixels.T, np.diag([SCAN.across, SCAN.depth, SCAN.between, 1]))
    image.header.set_xyzt_units('mm')
    image.to_filename(path)


@pytest.fixture
def eyes(tmp_path, monkeypatch):
    "A run with an untrained model, and a folder with a scanner's volume, two of slices, and an image that is alone"
    monkeypatch.setenv('MIRAGE_KEYS', str(tmp_path/'keys'))
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    torch.manual_seed(0)
    key = {'name': 'mirage_tiny', 'n_classes': 9, 'head': 'linear', 'size': [32, 32]}
    infos = [{'index': i, 'value': 25*i, 'label': k, 'group': GROUPS.get(i, 'layer')}
             for i, k in enumerate(EYE_CLASSES)]
    save_tuned_model(seg_model(**key), tmp_path/'model'/'best.safetensors', key, classes=infos, precision='fp32')
    write_json(tmp_path/'model'/'run.json', {'stage': 'seg_tune', 'settings': {'dataset': 'Gone'},
                                             'sources': {'data': ''}})
    write_json(tmp_path/'model'/'result.json', {})
    pixels = draw_bscans(draw_masks(EyePlan(), SCAN), 0)
    (tmp_path/'given'/'P2').mkdir(parents=True)
    write_nifti(tmp_path/'given'/'Doe.nii.gz', pixels)
    for i, x in enumerate(pixels):
        Image.fromarray(x).save(tmp_path/'given'/f'P1_OD_{i:02}.png')
        if i != 2: Image.fromarray(x).save(tmp_path/'given'/'P2'/f'{i}.png')
    Image.fromarray(pixels[0]).save(tmp_path/'given'/'alone.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield tmp_path


def planned(eyes, **more):
    run = str(eyes/'model')
    return plan_prediction(Predict(images=str(eyes/'given'), run=run, overlay='none', compare_with=0, **more), [run])


def check_masks(folder, table):
    "The masks of each volume are those of its slices"
    for f in table.file[table.fault == '']:
        volume = read_label_map(folder/f)
        each = [read_mask(folder/'predictions'/f'{k}.png', volume.classes) for k in volume.slices]
        np.testing.assert_array_equal(volume.masks, np.stack(each))
        np.testing.assert_array_equal(np.asarray(nibabel.load(folder/f).dataobj).T, 25*volume.masks)


def test_masks_go_back_into_volumes(eyes):
    job = planned(eyes)
    rows = job.predict(eyes/'out')
    t = job.volume_table(rows)
    assert len(rows) == 15 and len(t) == 3
    scanned = next(k for k in t.index if k.startswith('U'))
    check_masks(eyes/'out', job.volumes)
    given, made = (nibabel.load(p) for p in (eyes/'given'/'Doe.nii.gz', eyes/'out'/t.file[scanned]))
    assert given.header.get_zooms() == made.header.get_zooms() and given.shape == made.shape
    assert t.fault['P2'] == 'its slices are numbered in uneven steps (1, 2)' and t.fault['P1_OD'] == ''
    header = nibabel.load(eyes/'out'/t.file['P1_OD']).header
    assert b'voxels are pixels' in bytes(header['descrip']) and header.get_xyzt_units()[0] == 'unknown'
    told = ' '.join(v['text'] for v in sum_up(job, rows)['verdicts'])
    assert 'Masks of 2 volumes are also written' in told and 'The scale of 1 volume is not known, as P1_OD' in told
    times = [p.stat().st_mtime_ns for p in sorted((eyes/'out'/'volumes').rglob('*'))]
    planned(eyes).predict(eyes/'out')
    assert times == [p.stat().st_mtime_ns for p in sorted((eyes/'out'/'volumes').rglob('*'))]


def test_a_table_states_the_scale(eyes):
    rows = [{'file': f'given/P1_OD_{i:02}.png', 'volume': 'left', 'slice': 9 - i, 'mm_between_rows': .0039,
             'mm_between_columns': .1, 'mm_between_slices': .8, 'eye': 'OS'} for i in range(5)]
    pd.DataFrame(rows).to_csv(eyes/'list.csv', index=False)
    job = plan_prediction(Predict(images=str(eyes/'list.csv'), overlay='none', compare_with=0), [eyes/'model'])
    job.predict(eyes/'out')
    volume = read_label_map(eyes/'out'/'volumes'/'left.nii.gz')
    assert (volume.spacing.depth, volume.spacing.between, volume.eye) == (.0039, .8, 'OS')
    assert [k[-2:] for k in volume.slices] == ['04', '03', '02', '01', '00']  # by the column slice


def test_predictions_are_measured_as_a_run_measures_them(eyes):
    settings = dict(images=str(eyes/'given'), spacing='.0039,.1,.8', eye='OD')
    job = plan_measurement(Measure(run=str(eyes/'model'), **settings))
    one = job.measure(eyes/'one')
    assert len(job.kept) == 2 and list(job.unreadable.id) == ['P2']
    two = plan_measurement(Measure(predictions=str(eyes/'one'/'predicted'), **settings)).measure(eyes/'two')
    pd.testing.assert_frame_equal(one, two)
    assert set(one.unit) >= {'µm', 'nl'} and set(one.eye) == {'OD'}


def test_what_a_prediction_warns_of_is_repeated(eyes):
    "Its warnings, and the lesions that its model never predicts; without names where names are hidden"
    planned(eyes).predict(eyes/'out')
    run = {'settings': {'run': str(eyes/'model')}, 'sources': {'model': 'abc'}}
    write_json(eyes/'out'/'run.json', run)
    write_json(eyes/'out'/'result.json', {'verdicts': [{'level': 'warning', 'text': '3 images are unlike P2'},
                                                       {'level': 'note', 'text': 'There are no labels'}]})
    table = [{'Class': 'IRF', 'group': 'lesion', 'predicted': 0, 'true': 9}]
    pd.DataFrame(table).to_csv(eyes/'model'/'test_slices.csv', index=False)
    settings = dict(predictions=str(eyes/'out'), spacing='.0039,.1,.8', eye='OD')
    job = plan_measurement(Measure(**settings))
    measures = job.measure(eyes/'run')
    texts = [v['text'] for v in measured_result(job)['verdicts'] if v['level'] == 'warning']
    assert 'Of the prediction: 3 images are unlike P2' in texts and not [t for t in texts if 'no labels' in t]
    assert job.never == ('IRF',) and job.model == 'abc'
    assert measures[measures.of == 'IRF'].value.isna().all() and (measures.of == 'IRF').any()
    hide_names(True)
    try: texts = [v.text for v in plan_measurement(Measure(anonymise=True, **settings)).warned]
    finally: hide_names(False)
    assert texts == ['The prediction has 1 warning, which its own report tells: they may hold names']


def test_a_map_without_a_layer_is_named(tmp_path):
    "Classes without a lesion, and masks that are background: nothing to measure, and the other volumes are measured"
    infos = [ClassInfo(i, 25*i, k, GROUPS.get(i, 'layer')) for i, k in enumerate(EYE_CLASSES[:7])]
    masks = np.minimum(draw_masks(EyePlan(), SCAN), 6)
    for k, x in (('V1', masks), ('V2', 0*masks)):
        write_label_map(tmp_path/'volumes'/f'{k}.nii.gz', LabelMap(k, x, infos, Spacing(SCAN.depth, .1, .8), 'OD'))
    job = plan_measurement(Measure(predictions=str(tmp_path)))
    assert set(job.measure(tmp_path/'run').volume) == {'V1'}
    assert job.unreadable.fault.tolist() == [
        'V2: its masks hold no layer and no class of a lesion, so there is nothing to measure']
    (tmp_path/'volumes.csv').write_text('name\nV1\n')
    with pytest.raises(ValueError, match="volumes.csv: no column 'volume'"):
        plan_measurement(Measure(predictions=str(tmp_path)))


def test_names_are_hidden(eyes):
    "Planted names: of a volume of slices, of its images, of a folder and of a scanner's file"
    hide_names(True)
    try:
        for k in ('out', 'measured'): hide_folder(eyes/k)
        job = planned(eyes, anonymise=True)
        job.predict(eyes/'out')
        check_masks(eyes/'out', job.volumes)
        settings = Measure(predictions=str(eyes/'out'), images=str(eyes/'given'), spacing='.0039,.1,.8', anonymise=True)
        table = plan_measurement(settings).measure(eyes/'measured')
    finally: hide_names(False)
    written = [p for k in ('out', 'measured') for p in (eyes/k).rglob('*') if p.is_file()]
    for p in written:
        said = re.sub(rb'base64,[A-Za-z0-9+/=]+', b'', p.read_bytes())  # in pictures two letters stand by chance
        words = ('P1_OD', 'alone') if p.suffix in ('.gz', '.npz', '.png') else ('P1_OD', 'P2', 'Doe', 'alone')
        assert not [k for k in words if k.encode() in said], p
        assert not [k for k in ('P1_OD', 'P2', 'Doe', 'alone') if k in str(p.relative_to(eyes))], p
    assert table.volume.nunique() == 2
