"Settings of pre-training"
import pytest

from mirage_nb.recipes.pretraining import MultiMAERecipe, pretrain_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.tasks.pretrain_mirage import MirageTask
from mirage_nb.tasks.protocol import train

OPTIONS = {'dataset': 'Phantom_OCT', 'size': 32, 'epochs': 2, 'batch_size': 4, 'precision': 'fp32', 'eval_every': 1,
           'checkpoint_every': 1, 'keep_last': 1}


def settings(**changed): return override(pretrain_recipe('pre_mirage_small', MultiMAERecipe), **{**OPTIONS, **changed})


@pytest.fixture
def plain(home): return train(MirageTask.from_settings(settings()), home/'plain')


def test_visible_or_mask_ratio():
    assert (settings(visible_tokens=5).visible_tokens, settings(visible_tokens=5).mask_ratio) == (5, None)
    plain = pretrain_recipe('pre_mirage', MultiMAERecipe)
    assert (override(plain, mask_ratio=0.5).visible_tokens, override(plain, mask_ratio=0.5).mask_ratio) == (0, 0.5)
    with pytest.raises(ValueError, match='give one of them'): settings(visible_tokens=5, mask_ratio=0.5)
