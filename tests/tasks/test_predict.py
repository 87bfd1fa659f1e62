"Prediction of images without labels, by the model of a run"
import numpy as np
import pytest
from PIL import Image

from mirage_nb.data.manifest import classes_of, dataset_dir, read_manifest
from mirage_nb.recipes.segmentation import SegPredict, seg_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.records import Run
from mirage_nb.storage import hash_file, write_json
from mirage_nb.tasks.predict import plan_prediction, predict
from tests.tasks.samples import settings, train_cls, train_seg


@pytest.fixture(scope='module')
def tuned(at_home, tmp_path_factory):
    "A finished segmentation and a finished classification, of one epoch"
    seg = override(seg_recipe('seg_small'), dataset='Phantom_OCT', size=64, epochs=1, batch_size=4, precision='fp32',
                   baselines=False)
    with at_home(tmp_path_factory.mktemp('tuned')) as folder:
        train_seg(seg, folder/'seg')
        train_cls(settings(epochs=1), folder/'cls')
    for k in ('seg', 'cls'):
        write_json(folder/k/'run.json', {'stage': f'{k}_tune', 'settings': {}, 'sources': {}})
        write_json(folder/k/'result.json', {})
    return folder


@pytest.fixture
def images(tmp_path):
    "Three images of different sizes and kinds, in a folder"
    rng = np.random.default_rng(0)
    for name, size in (('a.png', (70, 90)), ('b.tif', (64, 64)), ('c.jpg', (120, 50))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(tmp_path/name)
    return tmp_path


def test_masks(tuned, home, images):
    "Each has the size of its image and the grey values of the training dataset; what is there is not made again"
    table = predict(tuned/'seg', images, home/'masks')
    assert table.id.tolist() == ['a', 'b', 'c']
    manifest = read_manifest('Phantom_OCT')
    classes = classes_of(manifest, dataset_dir(manifest))
    for name, size in (('a', (70, 90)), ('b', (64, 64)), ('c', (120, 50))):
        mask = np.asarray(Image.open(home/'masks'/f'{name}.png'))
        assert mask.shape == size and set(np.unique(mask)) <= {c.value for c in classes}
        shares = table.set_index('id').loc[name, [c.label for c in classes]]
        assert shares.tolist() == pytest.approx([(mask == c.value).mean() for c in classes], abs=1e-4)
    times = {p: p.stat().st_mtime_ns for p in (home/'masks').glob('*.png')}
    again = predict(Run(tuned/'seg', {}, {}, True), images, home/'masks')
    assert again.equals(table) and times == {p: p.stat().st_mtime_ns for p in times}


def test_scores_of_classes(tuned, home, images):
    table = predict(tuned/'cls', images)
    scores = table.filter(regex='^score:')
    assert table.id.tolist() == ['a', 'b', 'c'] and scores.shape[1] == 4
    assert scores.sum(axis=1).tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    assert not (tuned/'cls'/'predicted').exists()


def test_plan(tuned, home, images):
    "Everything is checked before anything runs; the identity follows from model and images"
    plan = plan_prediction(SegPredict(run=str(tuned/'seg'), images=str(images)))
    assert plan.sources['model'] == hash_file(tuned/'seg'/'best.safetensors') and len(plan.classes) == 13
    assert plan.predict(home).id.tolist() == ['a', 'b', 'c'] and (home/'predictions.csv').exists()
    own = plan_prediction(SegPredict(run=str(tuned/'seg')))
    assert len(own.table) == 8 and own.table.semseg.isna().all() and own.sources['data'] != plan.sources['data']
    with pytest.raises(FileNotFoundError, match='nowhere'):
        plan_prediction(SegPredict(run=str(tuned/'seg'), images=str(images/'nowhere')))
    with pytest.raises(FileNotFoundError, match='is not the folder of a run'):
        plan_prediction(SegPredict(run=str(images), images=str(images)))
