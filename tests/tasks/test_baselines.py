"Baselines: random initialisation and probes"
from dataclasses import replace

import pandas as pd
import pytest

from mirage_nb.recipes.classification import CLS_RECIPES, cls_recipe
from mirage_nb.tasks import baselines as tasks_baselines
from mirage_nb.tasks.classification import ClassificationTask
from tests.tasks.samples import settings


def test_random_encoder_beside_a_file_that_is_only_tested():
    asked = tasks_baselines.random_probe_settings(settings(tune='probe', weights='x.pth', keep_head=True, epochs=0))
    assert (asked.weights, asked.keep_head, asked.epochs) == ('random', False, cls_recipe('cls_small').epochs)


# ------------------------------------------------------------------ beside it

@pytest.mark.parametrize('name', list(CLS_RECIPES))
def test_random_encoder_is_probed_as_a_probe(name):
    "Whatever the tuning mixes or averages, and whatever rate it takes for the encoder"
    cfg = replace(cls_recipe(name), slices='', tune='full', mixup=.8, ema=.9, lr=1e-5)
    found = tasks_baselines.random_probe_settings(cfg)
    own = cls_recipe('cls_small' if name.startswith('cls_small') else 'cls_probe_mirage')
    for k in ('lr', 'lr_reference_batch', 'weight_decay', 'layer_decay', 'epochs', 'warmup_epochs', 'cached_views',
              'final_lr'):
        assert getattr(found, k) == getattr(own, k), k
    assert (found.tune, found.weights, found.mixup, found.ema, found.model) == ('probe', 'random', 0, 0, cfg.model)
    probe = replace(cls_recipe(name), tune='probe', lr=.3, weights=None)
    again = tasks_baselines.random_probe_settings(probe)
    assert (again.lr, again.seed) == (.3, 1), 'as this probe, and another encoder'


@pytest.mark.slow
def test_what_stands_beside_a_tuning_with_mixup(home):
    cfg = settings(epochs=1, mixup=.8, ema=.9, baselines=True, probes=True)
    found = ClassificationTask.from_settings(cfg).baselines(home/'run')
    assert 'probe of a random encoder' in found and len(found) == 4
    assert len(pd.read_csv(home/'run'/'random_encoder'/'history.csv')) > 1
