"The report of a dataset, also of one that has faults, and of a folder"
import numpy as np
import pytest
from PIL import Image

from mirage_nb.phantoms.oct import make_phantom_oct
from mirage_nb.recipes.data_report import DataReport
from mirage_nb.tasks.data_report import (
    _site_verdicts,
    duplicate_pairs,
    plan_report,
    report_confounds,
    report_result,
    suspicious_pairs,
)
from tests.data.scanners.made import SECRETS, write_dicom

pytestmark = pytest.mark.slow


@pytest.fixture
def eyes(tmp_path, monkeypatch):
    "Class folders with a truncated file, a copy in another split, and a brightness that tells the class"
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for k, c in enumerate(('AMD', 'DME')):
            (folder := tmp_path/'Eyes'/split/c).mkdir(parents=True)
            for i in range(8):
                small = rng.integers(20 + 60*k, 120 + 60*k, (8, 12), np.uint8)
                Image.fromarray(small).resize((72, 48), Image.Resampling.BICUBIC).save(folder/f'{split}{c}_{i}.png')
    root = tmp_path/'Eyes'
    Image.open(root/'train'/'AMD'/'trainAMD_0.png').resize((54, 36)).save(root/'test'/'AMD'/'testAMD_0.png')
    return root


def texts_of(cfg):
    report = plan_report(cfg)
    pairs, confounds = duplicate_pairs(report), report_confounds(report)
    return report, pairs, [v['text'] for v in report_result(report, pairs, confounds)['verdicts']]


def test_a_dataset_with_faults_is_described(eyes):
    cut = eyes/'val'/'DME'/'valDME_3.png'
    cut.write_bytes(cut.read_bytes()[:200])
    report, pairs, texts = texts_of(DataReport(dataset='Eyes', resamples=100))
    assert report.all_faults().files.to_dict() == {'truncated': 1, 'near duplicate in two splits': 1}
    assert pairs[['kind', 'where']].to_numpy().tolist() == [['nearly the same', 'train and test']]
    assert '2 faults would stop a training' in texts[0]
    assert '1 pair of images, nearly the same: train and test.' in texts
    assert any(t.startswith('The mean brightness alone predicts the label: AUROC ') for t in texts)
    assert list(report.classes()) == ['train', 'val', 'test'] and report.sizes().to_numpy().sum() == 47
    assert set(suspicious_pairs(report, pairs).kind) <= {'nearly the same', 'looks alike'}


def test_a_class_of_one_hospital_is_said(eyes):
    "As in COVIDx, whose COVID-19 films of the test are all of one source, and the others of another"
    facts = ''.join(f'{k} = "x"\n' for k in ('title', 'source', 'licence', 'citation', 'get'))
    manifest = f'task = "classification"\nmodality = "cxr"\nlayout = "classes"\n{facts}'
    for site, told in (("site = '^[a-z]+(AMD|DME)'", True), ("site = '_([0-9])'", False)):
        (eyes/'manifest.toml').write_text(f'{manifest}{site}\n[labels]\n')
        texts = [v.text for v in _site_verdicts(plan_report(DataReport(dataset='Eyes')))]
        assert any(t.startswith('The site alone tells the label of 100 % of the images') for t in texts) is told


def test_features_of_an_encoder_find_what_thumbnails_do_not(home):
    "A mirrored copy in another split is found by the features alone"
    root = make_phantom_oct(home/'data'/'Mine', patients=12, volumes=1, slices=1, size=(64, 64))
    one, two = (sorted((root/s/'bscan').iterdir())[1] for s in ('train', 'test'))
    Image.open(one).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(two)
    report = plan_report(DataReport(dataset=str(root), model='mirage_tiny', weights='mirage_tiny'))
    pairs = suspicious_pairs(report, duplicate_pairs(report))
    ids = [{report.table.id[i], report.table.id[j]} for i, j in pairs[['first', 'second']].to_numpy(int)]
    assert 'alike to the encoder' in [k for k, p in zip(pairs.kind, ids, strict=True) if p == {one.stem, two.stem}]
    assert 'nearly the same' not in set(pairs.kind)


def test_a_folder_and_another_dataset(eyes):
    report, pairs, texts = texts_of(DataReport(images=str(eyes/'train'), against=str(eyes/'test'), resamples=100))
    assert report.manifest is None and report.table.dataset.value_counts().to_dict() == {'train': 16, 'test': 16}
    assert pairs['where'].tolist() == ['train and test']
    assert '1 pair of images, nearly the same: train and test.' in texts
    with pytest.raises(KeyError, match='no dataset'): plan_report(DataReport(dataset='Nowhere'))


def test_files_of_scanners_in_a_folder(eyes, monkeypatch):
    monkeypatch.setenv('MIRAGE_KEYS', str(eyes/'keys'))
    write_dicom(eyes/'train'/'Doe.dcm')
    (eyes/'train'/'Doe.vol').write_bytes(b'HSF-OCT-103' + bytes(9))
    report = plan_report(DataReport(images=str(eyes/'train')))
    assert len(report.table) > 16 and report.all_faults().files.to_dict() == {'unreadable': 1}
    said = f'{list(report.table.id)} {report.faults.to_string()}'.lower()
    assert not any(k in said for k in (*SECRETS, 'doe'))
