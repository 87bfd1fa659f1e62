"A classification that is fast enough for a test"
from dataclasses import replace

from mirage_nb.data.manifest import read_manifest
from mirage_nb.recipes.classification import cls_recipe
from mirage_nb.tasks import classification as tasks_classification


def settings(**changed):
    "Full tuning of a small model on small phantoms, fast enough for a test"
    plain = dict(dataset='Phantom_OCT', tune='full', size=48, epochs=3, lr=1e-3, precision='fp32', batch_size=6,
                 weights=None, probes=False, baselines=False)
    return replace(cls_recipe('cls_small'), **plain | changed)


def data(): return tasks_classification.load_cls_data(read_manifest('Phantom_OCT'))
