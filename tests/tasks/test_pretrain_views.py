"Pre-training that compares views: it goes on bit for bit, two processes give the numbers of one, faults are named"
import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from mirage_nb.eval.pretraining import read_snapshots
from mirage_nb.eval.views import views_verdicts
from mirage_nb.models.checkpoints import export_encoder
from mirage_nb.models.views import ViewModel, ViewOptions, encode_image
from mirage_nb.models.vit import ViT
from mirage_nb.models.zoo import build_encoder
from mirage_nb.recipes.pretraining import PRETRAIN_RECIPES, MAERecipe, ViewsRecipe, pretrain_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.storage import write_json
from mirage_nb.tasks import pretrain as tasks_pretrain
from mirage_nb.tasks.pretrain_views import ViewsTask
from mirage_nb.tasks.protocol import train
from mirage_nb.train import loop as train_loop
from mirage_nb.train.devices import make_accelerator
from mirage_nb.train.loop import _make_optimizer
from mirage_nb.train.view_losses import contrastive_loss, distillation_loss, koleo_loss, patch_loss
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


# ------------------------------------------------------------------ a collapse

def shades(folder, n=24):
    "n pictures that differ in their colours, as views without jitter still show"
    folder.mkdir()
    for i in range(n):
        a, b = np.random.default_rng(i).uniform(0, 255, (2, 3))
        x = a + (b - a)*np.linspace(0, 1, 40)[None, :, None]*np.ones((40, 1, 1))
        Image.fromarray(x.astype(np.uint8)).save(folder/f'{i:02d}.png')
    return folder


@torch.no_grad()
def collapse(model, part):
    "Let the encoder, or the heads alone, say the same of every image"
    for branch in (model.student, model.teacher):
        if part == 'encoder':
            for name, p in branch.encoder.named_parameters(): p.fill_(float(name.endswith('norm.bias')))
        last = [m for m in branch.head.mlp if isinstance(m, torch.nn.Linear)][-1]
        if part == 'heads': last.weight.zero_(), last.bias.fill_(1.)


@pytest.mark.parametrize('method', ['moco', 'dino'])
def test_a_collapse_is_told_and_nothing_else(home, method):
    cfg = settings(shades(home/'shades'), method, jitter=0., colour=0., grey=0., solarize=0.,
                   blur=[0., 0., 0.], crop_scale=[.6, 1.])
    accelerator, found = make_accelerator('fp32'), {}
    for part in ('none', 'heads', 'encoder'):
        task = ViewsTask.from_settings(cfg)
        model = task.model.to(accelerator.device).eval()
        task.save_snapshot(model, accelerator, home/part, 0)
        collapse(model, part)
        task.save_snapshot(model, accelerator, home/part, 1)
        snapshots = read_snapshots(home/part)
        found[part] = next(views_verdicts(snapshots, pd.DataFrame({'loss': [2.]}), {})).text, snapshots.iloc[-1]
    assert not found['none'][0].startswith('Collapsed:') and found['none'][1].matched > 2/24, 'chance is one of 24'
    told = 'Collapsed or hardly trained: the heads tell no image from another'
    assert found['heads'][0].startswith(told), 'features are as they were'
    assert found['heads'][1]['rank'] == found['none'][1]['rank'] and found['heads'][1].matched == pytest.approx(1/24)
    assert found['encoder'][0].startswith('Collapsed: the features') and found['encoder'][1]['rank'] == 1


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

def patterns(n, seed):
    "Smooth random patterns, larger than a view"
    g = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(n, 1, 6, 6, generator=g), size=(44, 44), mode='bicubic')


def view_of(x, g):
    "A view of each pattern: moved, of another brightness and contrast, noisy"
    places = torch.randint(0, 5, (len(x), 2), generator=g).tolist()
    moved = [k[None, :, i:i + 32, j:j + 32] for k, (i, j) in zip(x, places, strict=True)]
    gain, shift = .6 + .8*torch.rand(len(x), 1, 1, 1, generator=g), .6*torch.rand(len(x), 1, 1, 1, generator=g) - .3
    return 4*gain*(torch.cat(moved) - .5) + shift + .1*torch.randn(len(x), 1, 32, 32, generator=g)


@torch.no_grad()
def found_again(model):
    "Share of 200 unseen patterns whose second view is nearest to the first, by the encoder that is kept"
    g, x = torch.Generator().manual_seed(9), patterns(200, 99)
    a, b = (encode_image(model.encoder, {'image': view_of(x, g)})[0] for _ in range(2))
    a, b = (F.normalize(v - v.mean(0), dim=1) for v in (a, b))
    return float(((a @ b.T).argmax(1) == torch.arange(200)).float().mean())


LEARNT = {'moco': ({'queue': 256, 'momentum': (.95, .95)}, 1e-3, 1.7),  # options, rate, gain; see docs/verification.md
          'dino': ({'prototypes': 512, 'momentum': (.98, 1.)}, 5e-4, 1.7),
          'ibot': ({'prototypes': 512, 'momentum': (.98, 1.)}, 5e-4, 1.4)}


@pytest.mark.slow
@pytest.mark.parametrize('method', LEARNT)
def test_images_are_told_apart(method):
    "What is learnt from pairs of views finds views of unseen patterns again, better than random weights do"
    options, rate, gain = LEARNT[method]
    torch.manual_seed(0)
    g, images = torch.Generator().manual_seed(0), patterns(800, 0)
    model = ViewModel(ViT(size=32, patch=8, channels=1, d=48, depth=3, heads=3), ViewOptions(
        method, hidden=128, dim=32, steps=300, teacher_temp=(.04, .04), **options)).train()
    before, own = found_again(model.eval()), [p for p in model.parameters() if p.requires_grad]
    fit, model = torch.optim.AdamW(own, rate), model.train()
    for _ in range(200):
        x = images[torch.randperm(800, generator=g)[:32]]
        hidden = torch.rand(64, 16, generator=g) < .3 if method == 'ibot' else None
        out = model({'image': torch.cat([view_of(x, g), view_of(x, g)])}, hidden=hidden)
        if method == 'moco': loss = contrastive_loss(out.student, out.teacher, out.negatives, .2)
        else:
            loss = distillation_loss(out.student, out.teacher, .1)
            loss = loss + .05*sum(koleo_loss(f) for f in out.features.split(32))  # of the two views
        if hidden is not None: loss = loss + patch_loss(*out.hidden, hidden, .1)
        loss.backward()
        fit.step()
        fit.zero_grad()
    assert found_again(model.eval()) > gain*before


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
