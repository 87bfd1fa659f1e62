"A run is known by its settings and its data"
from dataclasses import asdict, fields, replace

from mirage_nb.data.manifest import read_manifest
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.records import _MACHINERY, start_run

OPTIONS = {'dataset': 'Phantom_OCT', 'head': 'convnext', 'size': 64, 'epochs': 3, 'batch_size': 2, 'drop_path': 0.2,
           'baselines': False}


def settings(**changed): return override(seg_recipe(read_manifest('Phantom_OCT').recipe), **{**OPTIONS, **changed})


OTHER = {'dataset': 'Duke_DME', 'recipe': 'seg_200e_convnext', 'model': 'mirage_base', 'weights': 'w.pth',
         'head': 'dpt', 'size': 128, 'patch': 8, 'tune': 'embeddings', 'loss': 'CE', 'clip': 1., 'precision': 'bf16',
         'drop_path': 0.5, 'baselines': True, 'splits': 'fold 1 of 3', 'waive': 'constant'}


def test_any_changed_option_is_another_run(home):
    cfg = settings()
    own = start_run('seg_tune', asdict(cfg), {'data': 'x'}).folder
    assert start_run('seg_tune', asdict(settings()), {'data': 'x'}).folder == own
    folders = [start_run('seg_tune', asdict(cfg), {'data': 'y'}).folder]
    for f in fields(cfg):
        value = OTHER[f.name] if f.name in OTHER else getattr(cfg, f.name) + 1
        changed = replace(cfg, **{f.name: value})
        folder = start_run('seg_tune', asdict(changed), {'data': 'x'}).folder
        same = f.name in (*_MACHINERY, 'seeds')  # each seed is a run of its own
        assert (folder == own) == same, f.name
        if not same: folders.append(folder)
    assert own not in folders
    assert len(set(folders)) == len(folders) == len(fields(cfg)) - 2  # processes, workers, seeds; and another hash
