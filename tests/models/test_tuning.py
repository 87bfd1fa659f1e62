"What is said to be frozen does not change, what is said to train does"
import hashlib

import pytest
import torch

from mirage_nb.data.manifest import read_manifest
from mirage_nb.data.segmentation import collate
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.tasks.segmentation import SegmentationTask
from mirage_nb.train.loop import fit

PARTS = {'encoder.encoder': 'blocks', 'encoder.input_adapters': 'entry', 'encoder.global_tokens': 'entry'}
TRAINS = {'full': {'blocks', 'entry', 'head'}, 'embeddings': {'entry', 'head'}, 'probe': {'head'}}


def hashes(model):
    "Part of the model, and a hash of its numbers, by parameter"
    def digest(v): return hashlib.sha256(v.detach().cpu().numpy().tobytes()).hexdigest()
    return {k: (PARTS.get('.'.join(k.split('.')[:2]), 'head'), digest(v))
            for k, v in model.state_dict().items()}


def settings(**changed):
    recipe = seg_recipe(read_manifest('Phantom_OCT').recipe)
    return override(recipe, dataset='Phantom_OCT', size=64, epochs=1, batch_size=4, drop_path=0.5, **changed)


@pytest.mark.parametrize('tune', TRAINS)
@pytest.mark.parametrize('head', ['linear', 'convnext'])
def test_what_changes(home, tune, head):
    task = SegmentationTask.from_settings(settings(tune=tune, head=head))
    model = task.model
    before, modes = hashes(model), []

    def watched(model, batch):
        modes.append(model.training)
        return task.step(model, batch)

    fit(model, task.sets['train'], watched, lambda *a: {'score': 0.}, lambda m: None, task.fit_settings, home/'run',
        collate)
    after = hashes(model)
    changed = {k for k in before if before[k] != after[k]}
    assert {before[k][0] for k in changed} == TRAINS[tune]
    fixed = {k for k, v in model.named_buffers()} | {k for k in before if k.endswith('pos_emb')}  # sine, not learnt
    still = {k for k in before if before[k][0] in TRAINS[tune]} - changed - fixed
    assert not still, f'these were to train and did not change: {sorted(still)}'
    assert modes == [True, True], 'the head trains in training mode'


def test_frozen_encoder_is_the_same_every_time(home):
    "Drop path is off in a frozen encoder, though the model trains; blocks that are frozen as published still drop"
    sample = SegmentationTask.from_settings(settings()).sets['train'][0, 0]
    x = {'bscan': sample['bscan'][None]}
    for tune, same in (('probe', True), ('embeddings', False)):
        model = SegmentationTask.from_settings(settings(tune=tune)).model
        model.train()
        with torch.no_grad(): one, two = (model.encoder.encode(x, torch.tensor([key])) for key in (1, 12345))
        model.eval()
        with torch.no_grad(): plain = model.encoder.encode(x)
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, plain, strict=True)) == same
