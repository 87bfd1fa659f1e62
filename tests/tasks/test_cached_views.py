"Kept encodings of a frozen encoder change nothing"
import pytest

from mirage_nb.data.manifest import read_manifest
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.recipes.settings import override
from tests.tasks.samples import train_seg


def settings(**changed):
    recipe = seg_recipe(read_manifest('Phantom_OCT').recipe)
    return override(recipe, dataset='Phantom_OCT', size=64, epochs=1, batch_size=4, drop_path=0.5, **changed)


def test_kept_views_are_the_tokens_of_a_frozen_encoder(home, monkeypatch):
    "With as many views as epochs, keeping tokens changes nothing but the time"
    options = {'tune': 'probe', 'head': 'linear', 'precision': 'fp32'}
    plain = train_seg(settings(**options), home/'plain')
    kept = train_seg(settings(**options, cached_views=1), home/'kept')
    for k in ('loss', 'valid_loss', 'mIoU'): assert kept[k].tolist() == pytest.approx(plain[k].tolist(), rel=1e-4)
