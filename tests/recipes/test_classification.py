"Options of a classification: which normalisation counts, repeated views, recipes by the name of their pre-training"
from dataclasses import replace

import pytest

from mirage_nb.data.labels import LabelFacts
from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.normalization import NORMS
from mirage_nb.recipes.classification import cls_recipe
from mirage_nb.sources.weights import IMAGENET_NORM
from mirage_nb.tasks import classification as tasks_classification


def test_manifest_then_recipe_then_encoder():
    "The set's own numbers, else the recipe's, else the encoder's; MIRAGE scales each image by itself"
    stated, facts = read_manifest('NIH_ChestXray14'), LabelFacts(where={}, values={}, class_maps={})
    silent = replace(stated, labels=facts)
    uwf, plain = cls_recipe('uspec_finetune'), cls_recipe('medical_mae_finetune_vit_s')
    def norm(cfg, manifest):
        spec = tasks_classification._input_spec(cfg, manifest)
        return spec.mean, spec.std
    assert norm(uwf, stated) == norm(plain, stated) == NORMS['nih']
    assert norm(uwf, silent) == norm(cls_recipe('uspec_few_shot'), silent) == NORMS['uwf']
    assert norm(plain, silent) == IMAGENET_NORM and norm(replace(plain, norm='nih'), silent) == NORMS['nih']
    assert norm(replace(cls_recipe('cls_probe_mirage'), norm='uwf'), silent) == ((), ())
    with pytest.raises(ValueError, match="no normalisation 'uwg'. Did you mean 'uwf'"):
        tasks_classification._input_spec(replace(plain, norm='uwg'), silent)


def test_repeats_reach_the_loop():
    cfg = replace(cls_recipe('medical_mae_finetune_vit_s'), repeated_augmentation=3)
    assert tasks_classification._cls_fit_settings(cfg, 4000).repeated_augmentation == 3
    with pytest.raises(ValueError, match='mixup 0.8 with repeated_augmentation 3 would mix an image with another'):
        replace(cfg, mixup=0.8)
    with pytest.raises(ValueError, match='repeated_augmentation is 1 or more, not 0'):
        replace(cfg, repeated_augmentation=0)


@pytest.mark.parametrize(('pretraining', 'tuning'), [
    ('medical_mae_vit_s', 'medical_mae_finetune_vit_s'), ('medical_mae_vit_b', 'medical_mae_finetune_vit_b'),
    ('medical_mae_cnn', 'medical_mae_finetune_cnn'), ('uspec_vit_l', 'uspec_finetune')])
def test_recipes_by_the_name_of_their_pretraining(pretraining, tuning):
    assert cls_recipe(pretraining) == cls_recipe(tuning)
