"Encodings are kept, once for each encoder and what it sees"

import torch

from mirage_nb.eval import features as eval_features
from mirage_nb.models.classification import cls_model, load_cls_model
from mirage_nb.tasks.classification import ClassificationTask
from tests.tasks.samples import settings, train_cls


def test_kept_features_give_the_model_that_is_kept(home):
    cfg = settings(tune='probe', cached_views=0, epochs=4)
    train_cls(cfg, home/'run')
    sets = ClassificationTask.from_settings(cfg).sets
    model = load_cls_model(home/'run'/'best.safetensors')[0]
    kept = eval_features.EncoderFeatures(model, sets['val'].spec, 'fp32').encode(sets['val'], [-1])[0]
    with torch.no_grad():
        direct = model({'bscan': torch.stack([sets['val'][i]['bscan'] for i in range(8)])})
        torch.testing.assert_close(model.head(model.vector(kept))[:8], direct, rtol=1e-4, atol=1e-5)


def test_features_of_an_older_version_are_not_read(home, monkeypatch):
    model = cls_model('mirage_tiny', 2, size=(48, 48))
    spec = ClassificationTask.from_settings(settings()).input_spec
    def folder(): return eval_features.EncoderFeatures(model, spec, 'fp32').store.folder
    one = folder()
    assert folder() == one
    monkeypatch.setattr(eval_features, '_FEATURES', eval_features._FEATURES + 1)
    assert folder() != one
