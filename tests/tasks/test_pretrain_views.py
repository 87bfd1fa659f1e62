"Pre-training that compares views: it goes on bit for bit, two processes give the numbers of one, faults are named"
import json
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mirage_nb.models.checkpoints import export_encoder
from mirage_nb.models.views import ViewModel, ViewOptions
from mirage_nb.models.vit import ViT
from mirage_nb.models.zoo import build_encoder
from mirage_nb.recipes.pretraining import PRETRAIN_RECIPES, MAERecipe, ViewsRecipe, pretrain_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.storage import write_json
from mirage_nb.tasks import pretrain as tasks_pretrain
from mirage_nb.tasks.pretrain_views import ViewsTask
from mirage_nb.tasks.protocol import train
from mirage_nb.train import loop as train_loop
from mirage_nb.train.loop import _make_optimizer
from mirage_nb.train.view_losses import contrastive_loss
from tests.tasks.samples import pictures, train_each, two_processes

SMALL = {'model': 'timm:test_vit', 'size': 32, 'epochs': 2, 'batch_size': 4, 'precision': 'fp32', 'prototypes': 24,
         'head_hidden': 16, 'head_dim': 8, 'queue': 6, 'local_views': 1, 'local_size': 16, 'warmup_epochs': 0.,
         'drop_path': .1}
METHODS = {'moco': {'optimizer': 'sgd', 'base_lr': .5, 'momentum': [.9, .9]}, 'dino': {'base_lr': .05},
           'ibot': {'koleo': .1, 'base_lr': .05}}


def settings(folder, method, **changed):
    return override(pretrain_recipe('dino_vit_small', ViewsRecipe), dataset=str(folder), method=method,
                    **SMALL | METHODS[method] | changed)


def numbers(folder): return pd.read_csv(folder/'history.csv').drop(columns=list(train_loop._TIMES))


# ------------------------------------------------------------------ the same numbers

@pytest.mark.slow
@pytest.mark.parametrize('method', ['moco', 'dino'])
def test_goes_on_bit_for_bit(home, monkeypatch, method):
    "Broken off in its third of four steps, with the state of the second on disk: queue, centre and teacher are in it"
    cfg, fit, step = settings(pictures(home/'films'), method), tasks_pretrain.pretrain_settings, []
    train(ViewsTask.from_settings(cfg), home/'whole')
    real = train_loop._Trainer.train_step

    def broken(*a):
        step.append(1)
        if len(step) == 3: raise RuntimeError('broken off')
        return real(*a)
    monkeypatch.setattr(train_loop._Trainer, 'train_step', broken)
    monkeypatch.setattr(tasks_pretrain, 'pretrain_settings', lambda cfg: replace(fit(cfg), save_every=0.))
    with pytest.raises(RuntimeError, match='broken off'): train(ViewsTask.from_settings(cfg), home/'broken')
    state = torch.load(home/'broken'/'state.pt', weights_only=True)
    assert int(state['model']['calls']) == 2 and ('queue' if method == 'moco' else 'centre') in state['model']
    train(ViewsTask.from_settings(cfg), home/'broken')
    pd.testing.assert_frame_equal(numbers(home/'whole'), numbers(home/'broken'), check_exact=True)
    for file in ('encoder.safetensors', 'snapshots/epoch-00002.safetensors'):
        a, b = (load_file(home/k/file) for k in ('whole', 'broken'))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), file


@pytest.mark.slow
def test_two_processes_are_one(home):
    "Of each method: the queue and the centre take the vectors of both, and neighbours are looked for in both"
    cfgs = {k: settings(pictures(home/'films'), k) for k in METHODS}
    for k, cfg in cfgs.items():
        train(ViewsTask.from_settings(cfg), home/f'{k}-1')
        write_json(home/f'{k}-2'/'settings.json', {
            'stage': 'pretrain_views', 'settings': asdict(override(cfg, processes=2))})
    assert two_processes(train_each, [home/f'{k}-2' for k in METHODS]) == [0, 0]
    for k in METHODS:
        one, two = (numbers(home/f'{k}-{n}') for n in (1, 2))
        assert list(one) == list(two)
        for name in one:
            assert two[name].tolist() == pytest.approx(one[name].tolist(), rel=2e-3, abs=2e-4, nan_ok=True), (k, name)
        log = [json.loads(line) for line in (home/f'{k}-2'/'progress.jsonl').read_text().splitlines()]
        assert log[0]['processes'] == 2


# ------------------------------------------------------------------ what is learnt from, and what is kept

@pytest.mark.slow
def test_images_are_told_apart():
    "Of views that are alike, a student soon knows its image among others: 16 at a time, of 400 smooth patterns"
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(400, 1, 5, 5), size=(32, 32), mode='bicubic')*4 - 2
    model = ViewModel(ViT(size=32, patch=8, channels=1, d=48, depth=3, heads=3),
                      ViewOptions('moco', hidden=64, dim=32, queue=32, momentum=(.9, .9))).train()
    fit = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(60):
        out = model({'image': images[torch.randperm(400)[:16]].repeat(2, 1, 1, 1)})
        contrastive_loss(out.student, out.teacher, out.negatives, .2).backward()
        fit.step()
        fit.zero_grad()
    other = (out.student[0] @ out.negatives.T).mean()
    assert (out.student*out.teacher).sum(-1).mean() > .8 and other < .2, 'it says the same of all images'


def test_continues_any_encoder(home):
    "One option: the weights of an encoder, whatever trained it"
    torch.manual_seed(5)
    other = build_encoder('mirage_tiny', size=64)
    export_encoder(other, home/'w.safetensors', {'encoder': {'name': 'mirage_tiny', 'size': 64}})
    task = ViewsTask.from_settings(settings(pictures(home/'films'), 'dino', model='mirage_tiny',
                                            weights=str(home/'w.safetensors')))
    own = task.model.student.encoder.state_dict()
    same = [k for k, v in other.state_dict().items() if k in own and v.shape == own[k].shape and torch.equal(v, own[k])]
    assert len(same) > .9*len(own) and task.loaded.path.name == 'w.safetensors'
    assert all(torch.equal(a, b) for a, b in zip(task.model.student.parameters(), task.model.teacher.parameters(),
                                                 strict=True)), 'the teacher starts from the same weights'


def test_the_teacher_is_kept_of_a_self_distillation(home):
    films = pictures(home/'films')
    for method in ('moco', 'dino'):
        model = ViewsTask.from_settings(settings(films, method)).model
        assert model.encoder is (model.student if method == 'moco' else model.teacher).encoder


def test_only_the_student_trains(home):
    model = ViewsTask.from_settings(settings(pictures(home/'films'), 'dino')).model
    fit = replace(tasks_pretrain.pretrain_settings(settings('films', 'moco')))
    inside = train_loop.param_groups(model, .05)
    assert all(k.startswith('student.') for g in inside for k in g['names'])
    assert isinstance(_make_optimizer(inside, fit), torch.optim.SGD)
    assert isinstance(_make_optimizer(inside, replace(fit, optimizer='adamw')), torch.optim.AdamW)


def test_published_recipes():
    "As in the papers (2104.14294, table 8 and section 3.2; 2003.04297)"
    dino, moco = (PRETRAIN_RECIPES[k] for k in ('dino_vit_small', 'medical_mae_moco_densenet121'))
    assert (dino.method, dino.prototypes, dino.local_views, dino.base_lr) == ('dino', 65536, 10, 5e-4)
    assert (dino.weight_decay, dino.final_weight_decay, dino.batch_size) == (.04, .4, 1024)
    assert (moco.queue, moco.head_dim, moco.local_views, moco.epochs) == (65536, 128, 0, 200)
    assert (moco.optimizer, moco.base_lr, moco.batch_size, moco.weight_decay) == ('sgd', .03, 256, 1e-4)


@pytest.mark.parametrize(('changed', 'words'), [
    ({'strategy': 'fsdp'}, 'the teacher has to follow all of it'), ({'momentum': [1., .9]}, 'it rises from a first'),
    ({'teacher_temperature': [0., .07]}, 'both are above 0'), ({'blur': [.5]}, 'blur takes 3 values')])
def test_options_that_cannot_be(changed, words):
    with pytest.raises(ValueError, match=words): settings('films', 'dino', **changed)


def test_recipes_of_another_notebook_name_it():
    with pytest.raises(KeyError, match='dino_vit_small is one of 42_pretrain_views'):
        pretrain_recipe('dino_vit_small', MAERecipe)


def test_a_queue_that_holds_all_images_is_told(home, caplog):
    films = pictures(home/'films')  # 8 of them
    for queue, told in ((3, False), (6, True)):
        caplog.clear()
        assert ViewsTask.from_settings(settings(films, 'moco', queue=queue)).options.queue == queue
        assert ('queue=4 is better' in caplog.text) == told
