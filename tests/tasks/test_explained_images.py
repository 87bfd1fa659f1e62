"What 60_explain, 61_reconstruct and 62_features refuse, in words that say what would be right"
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mirage_nb.data.manifest import ClassInfo
from mirage_nb.explain.targets import ClassTarget
from mirage_nb.models.classification import cls_model
from mirage_nb.models.heads.classification import ClsModel
from mirage_nb.models.vit import ViT
from mirage_nb.recipes.explain import Explain
from mirage_nb.recipes.features import FeatureReport
from mirage_nb.recipes.reconstruct import Reconstruct
from mirage_nb.recipes.settings import override
from mirage_nb.tasks.autoencoder_images import find_images, load_autoencoder
from mirage_nb.tasks.explain import Explanation
from mirage_nb.tasks.explained_images import ExplainedSet, choose_shown, explained_set, list_explained, prediction_rows
from mirage_nb.tasks.features import plan_features
from mirage_nb.tasks.hidden_regions import region_classes
from mirage_nb.tasks.settings import choose_settings

INFOS = (ClassInfo(0, 0, 'Background', 'background'), ClassInfo(1, 1, 'RNFL', 'layer'),
         ClassInfo(2, 2, 'Fluid', 'lesion'))
TABLE = pd.DataFrame({'id': ['a', 'b'], 'image': ['a.png', 'b.png'], 'label': ['AMD', 'AMD'], 'patient': '',
                      'fault': '',
                      'mask': None, 'sha256': ''})


def chosen(scores, task='classification', table=TABLE, **options):
    "Images with predictions: logits, or the share of each class in an image"
    classes = ('AMD', 'DME') if task == 'classification' else tuple(c.label for c in INFOS)
    member = SimpleNamespace(task=task, classes=classes, infos=INFOS, about={})
    found = ExplainedSet(Explain(**options), member, table.reset_index(drop=True), ())
    found.__dict__['scores'] = torch.tensor(scores)  # as if predicted
    return found


def rows(scores, **more): return prediction_rows(chosen(scores, **more))


RIGHT, WRONG = [[3., 0], [2., 0]], [[0, 3.], [2., 0]]
EMPTY = [[1., 0, 0], [1., 0, 0]]
EXPLAINED = [
    (lambda: rows(RIGHT, target='CNV'), "no class 'CNV'.*AMD, DME"),
    (lambda: rows(RIGHT, target='true', table=TABLE.assign(label='x')),
     'no label is a class of the model .AMD, DME.; leave'),
    (lambda: rows(EMPTY, task='segmentation'), 'predicts nothing but background, .*name one by target='),
    (lambda: rows(EMPTY, task='segmentation', target='Fluid'), 'predicts Fluid in none of the 2 images; name another'),
    (lambda: rows(EMPTY, task='segmentation', target='SRF'), "no class 'SRF'.*Fluid"),
    (lambda: choose_shown(rows(RIGHT), Explain(choose='wrong')),
     'every prediction of these images is right; set choose=mi'),
    (lambda: choose_shown(rows([[.9, 0, .1], [1., 0, 0]], task='segmentation'), Explain(ids=['b'])),
     'b has nothing of the class that is explained; leave it out of ids'),
    (lambda: explained_set(Explain(ids=['c']), SimpleNamespace(infos=()), TABLE, None), "no image 'c'.*a, b"),
    (lambda: explained_set(Explain(), SimpleNamespace(infos=()), TABLE.assign(fault='cut off'), None),
     'none of the 2 images can be read; a.png: cut off')]


@pytest.mark.parametrize('call, said', EXPLAINED, ids=range(len(EXPLAINED)))
def test_images_that_cannot_be_explained(call, said):
    with pytest.raises(ValueError, match=said): call()
    assert len(choose_shown(rows(WRONG), Explain(choose='wrong'))) == 1, 'the same choice where there is a wrong one'


def test_a_split_that_is_not_there(phantoms_labelled):
    member = SimpleNamespace(task='classification', classes=['A', 'B'])
    with pytest.raises(ValueError, match="Classes has no split 'val'; it has .*Set split to one of them"):
        list_explained(Explain(dataset=phantoms_labelled, split='val'), member)


@pytest.fixture
def phantoms_labelled(tmp_path):
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for c in ('A', 'B'):
            (tmp_path/'Classes'/split/c).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(tmp_path/'Classes'/split/c/f'{split}{c}.png')
    return str(tmp_path/'Classes')


def test_methods_that_a_cnn_cannot_have():
    member = SimpleNamespace(model=cls_model('resnet50', 2, size=[32, 32]), task='classification')
    job = Explanation(Explain(methods=['rollout']), member, TABLE, None)
    job.__dict__['found'] = SimpleNamespace(batch=lambda rows: {'image': torch.rand(1, 3, 32, 32)})
    with pytest.raises(ValueError, match='rollout needs the attention of a transformer, .*methods for it: grad_cam'):
        job.methods  # noqa: B018


def test_each_image_is_mapped_once():
    "Shown and scored images share their maps, in whatever order they stand; the scores take the same"
    torch.manual_seed(0)
    x = torch.rand(5, 3, 32, 32)
    model = ClsModel(ViT((32, 32), 8, d=24, depth=2, heads=2), 2, 'cls', 'pooled').eval()
    member = SimpleNamespace(model=model, task='classification', classes=('A', 'B'), about={})
    with torch.no_grad(): scores = model({'image': x})
    target = [1 - int(scores[0].argmax()), *scores[1:].argmax(1).tolist()]  # of the first the other class is explained
    table = pd.DataFrame({'id': list('abcde'), 'row': range(5), 'target': target, 'patient': list('ppqqr'),
                          'explained': ['AB'[i] for i in target], 'mask': None})
    made = []

    class Counted(Explanation):
        def maps(self, rows, name):
            made.extend(rows.id)
            return super().maps(rows, name)

    job = Counted(Explain(methods=['attention_rollout', 'gradient'], batch_size=2, scored=4), member, TABLE, None)
    job.__dict__ |= {'shown': table.iloc[[2, 4, 0]].reset_index(drop=True), 'class_masks': {}, 'rows': table,
                     'scored': table.iloc[[1, 0, 3, 2]].reset_index(drop=True),
                     'found': SimpleNamespace(batch=lambda rows: {'image': x[rows]}, scores=scores)}
    member.spec = SimpleNamespace(eval_crop=1)
    for k, f in ((k, job.maps_by(k)) for k in job.methods):
        alone = torch.cat([f({'image': x[i:i + 1]}, ClassTarget([target[i]])) for i in range(5)]).numpy()
        np.testing.assert_allclose(job.scored_maps[k], alone[[1, 0, 3, 2]], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(job.shown_maps[k], alone[[2, 4, 0]], rtol=1e-3, atol=1e-6)
    assert job.predicts(job.scored).tolist() == [True, False, True, True] and sorted(made) == list('abcde')
    assert set(job.study.methods) == {'attention rollout', 'gradient'} and job.study.table.id.nunique() == 3
    assert sorted(made) == list('abcde')


CONFLICTS = [
    (Explain, {'run': 'a', 'weights': 'b', 'dataset': 'c'}, 'give run or weights, not both: a, b'),
    (Explain, {'dataset': 'a', 'images': 'b'}, 'give dataset or images, not both: a, b'),
    (Explain, {'image_column': 'file'}, "image_column 'file' is of a table: name it by images"),
    (Explain, {'weights': 'a'}, 'those of a model alone: name the images by dataset or images'),
    (Explain, {'images': 'a', 'target': 'true'}, 'target true takes labels, and images has none'),
    (Explain, {'images': 'a', 'choose': 'wrong'}, 'choose wrong takes labels, and images has none'),
    (Reconstruct, {'box': [0, 0, 9, 9], 'region': 'lesions'}, 'box and region both say what is hidden; give one'),
    (Reconstruct, {'box': [9, 0, 0, 9]}, 'box takes top, left, bottom, right in pixels, as .*, not .9, 0, 0, 9'),
    (Reconstruct, {'outside': True}, 'outside is of a box or a region; give one of them'),
    (Reconstruct, {'modality': 'slo', 'beside': ['slo']}, 'slo is hidden, so it cannot be shown beside itself'),
    (FeatureReport, {'run': 'a', 'weights': 'b'}, 'give run or weights, not both: a, b'),
    (FeatureReport, {'colour_by': ['klass']}, "no colour_by 'klass'.*class"),
    (FeatureReport, {'images': 'a', 'splits': '0.7/0.15/0.15'},
     'splits divides a dataset; a folder of images has none')]


@pytest.mark.parametrize('kind, options, said', CONFLICTS, ids=range(len(CONFLICTS)))
def test_options_that_contradict_each_other(kind, options, said):
    with pytest.raises(ValueError, match=said): override(kind(), **options)


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path))
    for options, said in (({'methods': ['gradcam']}, "no method 'gradcam'.*grad_cam"),
                          ({'images': 'lost'}, 'images: no file'),
                          ({'weights': 'lost', 'images': str(tmp_path)}, 'weights: no file or folder'),
                          ({'tuned_on': 'Nothing'}, 'tuned_on: no finished run on Nothing .*mirage-nb cls_tune')):
        with pytest.raises((ValueError, FileNotFoundError), match=said): choose_settings('explain', options)


REGIONS = [('lost', (), FileNotFoundError, 'no file or folder .*lost, and the images have no masks with classes'),
           ('lesions', INFOS[:2], ValueError, 'no class of this dataset is a lesion; name some of Background, RNFL'),
           ('Cyst', INFOS, ValueError, "no class 'Cyst'.*Fluid.*and there is no such file")]


@pytest.mark.parametrize('region, classes, kind, said', REGIONS, ids=range(3))
def test_regions_that_no_mask_has(region, classes, kind, said):
    with pytest.raises(kind, match=said): region_classes(region, classes)


def test_what_cannot_be_reconstructed(phantoms_labelled):
    with pytest.raises(ValueError, match='random weights reconstruct nothing'):
        load_autoencoder(Reconstruct(weights='random'))
    with pytest.raises(ValueError, match="no split 'val'.*train, test"):
        find_images(Reconstruct(dataset=phantoms_labelled, split='val'))


SITES = [({'site': '('}, "site='.' is no regular expression"),
         ({'site': 'zz'}, "site='zz' is found in no name, as '0'"),
         ({'images': ' , '}, 'no dataset and no folder of images is named')]


@pytest.mark.parametrize('options, said', SITES, ids=range(3))
def test_features_of_nothing(options, said, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4): Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(tmp_path/f'{i}.png')
    with pytest.raises(ValueError, match=re.compile(said)):
        plan_features(FeatureReport(**{'images': str(tmp_path), **options}))
