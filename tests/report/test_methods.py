"The methods paragraph says what the settings hold"
from dataclasses import asdict

import pandas as pd
import pytest

from mirage_nb.recipes.classification import cls_recipe
from mirage_nb.recipes.pretraining import MAERecipe, MultiMAERecipe, pretrain_recipe
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.report.methods import methods_paragraph

COUNTS = pd.DataFrame({'images': [66, 1], 'patients': [6, 0]}, ['train', 'test'])


def write(stage, settings, works=(), **result):
    versions = {'mirage_nb': '0.1', 'torch': '2'}
    record = {'stage': stage, 'settings': settings | {'dataset': 'Duke_DME'}, 'versions': versions}
    return methods_paragraph(record, result, COUNTS, list(works))


SEG = asdict(seg_recipe('seg_small'))
CHANGES = [({'tune': 'probe'}, 'encoder was frozen'), ({'tune': 'lora', 'lora_rank': 5}, 'rank 5 [@lora]'),
           ({'weights': 'random'}, 'initialised at random'), ({'weights': '/a/B.pth'}, 'from B.pth'),
           ({'head': 'dpt'}, 'DPT [@dpt]'), ({'size': [512, 768]}, '512 x 768 pix'), ({'lr': 3e-5}, 'rate 3e-05'),
           ({'layer_decay': .65}, 'decay 0.65'), ({'clip': 1.}, 'norm 1'), ({'epochs': 7}, 'at most 7 epochs'),
           ({'batch_size': 9}, 'batch size 9'), ({'loss': 'CE'}, 'with cross-entropy.'), ({'seed': 5}, 'seed 5')]


@pytest.mark.parametrize(('change', 'words'), CHANGES, ids=lambda v: next(iter(v)) if isinstance(v, dict) else '')
def test_setting_of_a_segmentation(change, words):
    assert words not in write('seg_tune', SEG) and words in write('seg_tune', SEG | change)


def test_data_and_epochs():
    text = write('seg_tune', SEG, ['mirage'], best_epoch=9, epochs=12)
    assert '66 images of 6 patients (train) and 1 image (test)' in text
    assert '(epoch 9)' in text and 'stopped after 12' in text and 'mirage_tiny [@mirage]' in text


def test_patients_that_are_not_known():
    counts = COUNTS.assign(patients=0)
    versions = {'mirage_nb': '0', 'torch': '2'}
    record = {'stage': 'seg_tune', 'settings': SEG | {'dataset': 'My set'}, 'versions': versions}
    text = methods_paragraph(record, {}, counts, [])
    assert 'is not known' in text and 'of 0 patients' not in text and '[@My_set]' in text
    assert 'is not known' not in write('seg_tune', SEG)


def test_warm_up_is_at_most_half_of_a_short_training():
    short = asdict(cls_recipe('cls_probe_mirage')) | {'epochs': 4, 'warmup_epochs': 10.}
    assert 'after 2 epochs of linear' in write('cls_tune', short)


def test_file_that_is_only_tested():
    text = write('cls_tune', asdict(cls_recipe('cls_probe_mirage')) | {'epochs': 0, 'weights': 'A.pth'})
    assert 'tested as it is in that file' in text and 'epoch' not in text and 'trained' not in text


def test_no_validation_is_claimed_where_the_last_epoch_is_taken():
    probe = asdict(cls_recipe('cls_probe_mirage'))
    assert 'chosen on the validation split' in write('cls_tune', probe)
    text = write('cls_tune', probe | {'monitor': 'last'})
    assert 'The last epoch was tested once' in text and 'validation' not in text


def test_classification():
    probe = asdict(cls_recipe('cls_probe_mirage'))
    assert 'only a linear classifier was trained' in write('cls_tune', probe)
    assert 'test split of Noor [@Noor];' in write('cls_tune', probe | {'test_dataset': 'Noor'})
    assert 'AdamW' not in write('cls_tune', probe | {'epochs': 0})  # a file that is only tested


@pytest.mark.parametrize(('recipe', 'kind', 'words'), [
    ('pre_mirage', MultiMAERecipe, 'all but 98 tokens of a sample were hidden'),
    ('medical_mae_vit_s', MAERecipe, '90 % of the patches were hidden')])
def test_pretraining(recipe, kind, words):
    text = write('pretrain_mae', asdict(pretrain_recipe(recipe, kind)), ['mae'])
    assert words in text and 'base learning rate' in text
