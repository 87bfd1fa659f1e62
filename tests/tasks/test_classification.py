"A classification tuning does what it says: what trains, what chooses, what is read when, and how it goes on"
import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

from mirage_nb.data import classification as data_classification
from mirage_nb.eval.beside import start_line
from mirage_nb.eval.classification import predict as classification_predict
from mirage_nb.eval.classification.predictions import read_predictions
from mirage_nb.models.classification import cls_model, load_cls_model
from mirage_nb.models.heads import classification as heads_classification
from mirage_nb.models.tuning import choose_training, save_tuned_model
from mirage_nb.models.zoo import build_encoder
from mirage_nb.recipes.classification import cls_recipe
from mirage_nb.storage import write_json
from mirage_nb.tasks import classification as tasks_classification
from mirage_nb.tasks.classification import ClassificationTask
from mirage_nb.tasks.protocol import starting_weights, train
from mirage_nb.train import selection as train_selection
from mirage_nb.train.loop import _TIMES
from mirage_nb.train.state import load_training_state
from tests.tasks.samples import data, score, settings, train_cls, train_each, two_processes, validation_of


def close(a, b, rel=0.):
    a, b = (t.drop(columns=[c for c in _TIMES if c in t]) for t in (a, b))
    pd.testing.assert_frame_equal(a, b, rtol=rel, atol=rel, check_exact=not rel)


# ------------------------------------------------------------------ what trains

@pytest.mark.parametrize('name', ['mirage_tiny', 'vit_small_patch16', 'densenet121'])
@pytest.mark.parametrize('how', ['probe', 'full', 'last', 'lora'])
def test_only_what_is_said_trains(name, how):
    "Tensors before and after a step, for every kind of encoder"
    torch.manual_seed(0)
    model = cls_model(name, 3, size=(64, 64), drop_path=0. if name == 'densenet121' else .2)
    choose_training(model, how, 1, 2)
    model.train()
    x = {'bscan': torch.rand(4, 1, 64, 64)} if name.startswith('mirage') else {'image': torch.randn(4, 3, 64, 64)}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.)
    for _ in range(2):  # the adapters' second matrix starts at 0, so the first learns from the second step on
        opt.zero_grad()
        model(x, torch.arange(4)).square().sum().backward()
        opt.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    inside = {k for k in moved if k.startswith('encoder.')}
    assert {'head.weight', 'head.bias'} <= moved
    if how == 'probe': assert moved == {'head.weight', 'head.bias'}
    if how == 'last': assert inside and {model.layer_of(k) for k in inside} <= {model.depth, model.depth + 1}
    if how == 'lora': assert inside and all('lora_' in k for k in inside)
    if how == 'full': assert {model.layer_of(k) for k in inside} >= {0, 1, model.depth}


def test_recipes_are_the_published_ones():
    full, probe = cls_recipe('cls_full_mirage'), cls_recipe('cls_probe_mirage')
    assert (full.lr, probe.lr, full.final_lr, full.weight_decay) == (1e-5, 1e-3, 1e-8, 0.01)
    assert (full.label_smoothing, full.epochs, full.warmup_epochs, full.size) == (0.1, 1000, 10, 512)
    assert (full.monitor, full.patience, full.min_delta, full.patience_from) == ('bacc', 20, 0.001, 20)
    s = tasks_classification._cls_fit_settings(replace(full, epochs=1000), 400)
    assert (s.schedule, s.batch_size) == ('half_cycle', 64)
    u = cls_recipe('uspec_finetune')
    assert (tasks_classification._cls_fit_settings(u, 1000).lr, u.layer_decay, u.drop_path) == (5e-3*128/256, 0.65, 0.2)
    assert u.norm == cls_recipe('uspec_few_shot').norm == 'uwf' and cls_recipe('medical_mae_finetune_vit_s').norm == ''


# ------------------------------------------------------------------ what chooses, and what is read when

def test_test_images_are_read_after_training(home, monkeypatch):
    "While a model is tuned no image of the test split is decoded, and validation is never augmented"
    seen, reading = [], data_classification.ClsDataset.read
    def read(self, i):
        seen.append((self.table.split.iloc[i], self.augment))
        return reading(self, i)
    monkeypatch.setattr(data_classification.ClsDataset, 'read', read)
    for changed in ({}, {'tune': 'probe', 'cached_views': 2}):
        train_cls(settings(epochs=1, **changed), home/f'{len(seen)}')
    assert {s for s, _ in seen} == {'train', 'val'} and ('val', True) not in seen and ('train', True) in seen
    seen.clear()
    score(settings(epochs=1), home/'0', data())
    assert {s for s, _ in seen} == {'val', 'test'} and {a for _, a in seen} == {False}


def test_kept_epoch_is_the_best_by_the_rule(home):
    cfg, folder = settings(epochs=6, min_delta=0.05), home/'run'
    history = train_cls(cfg, folder)
    found = validation_of(cfg, folder)
    best = tasks_classification.kept_row(history, cfg)
    assert found['bacc'] == pytest.approx(history.score[best])
    assert found['valid_loss'] == pytest.approx(history.valid_loss[best], rel=1e-4)


def test_it_stops_when_nothing_gains(home):
    cfg = settings(tune='probe', cached_views=0, epochs=200, patience=3, patience_from=2, min_delta=0.5)
    history = train_cls(cfg, home/'run')
    assert len(history) < 200
    gained = train_selection._follow_history(history.to_dict('records'), cfg.min_delta)[1] + 1
    assert len(history) - max(gained, 2) == 3


def test_the_last_epoch_when_asked(home):
    cfg = settings(monitor='last', epochs=3)
    history = train_cls(cfg, home/'run')
    assert validation_of(cfg, home/'run')['valid_loss'] == pytest.approx(history.valid_loss[2], rel=1e-4)


def test_shots_are_a_subset(home):
    few = ClassificationTask.from_settings(settings(shots=1, batch_size=None))
    assert few.data.splits['train'].label.nunique() == len(few.sets['train']) == 4 and few.fit_settings.batch_size == 1
    assert len(few.sets['val']) == 8


# ------------------------------------------------------------------ going on

@pytest.mark.slow
@pytest.mark.parametrize('changed', [{}, {'tune': 'probe', 'cached_views': 2}, {'tune': 'lora'}, {'ema': 0.9}], ids=str)
def test_interrupted_at_any_step(home, monkeypatch, changed):
    cfg = settings(**changed)
    whole = train_cls(cfg, home/'whole')
    step, calls = ClassificationTask.step, []
    def cut(self, model, batch):
        calls.append(1)
        if len(calls) in (2, 4): raise KeyboardInterrupt
        return step(self, model, batch)
    monkeypatch.setattr(ClassificationTask, 'step', cut)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt): train_cls(cfg, home/'cut')
    assert load_training_state(home/'cut'/'state.pt')['progress']['step'] >= 0
    close(train_cls(cfg, home/'cut'), whole)
    same = [load_cls_model(home/k/'best.safetensors')[0].state_dict() for k in ('whole', 'cut')]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in same), strict=True))


KILLED = '''
import sys
from pathlib import Path
from mirage_nb.recipes.classification import ClsRecipe
from mirage_nb.storage import read_json
from mirage_nb.tasks.classification import ClassificationTask
from mirage_nb.tasks.protocol import train
folder = Path(sys.argv[1])
train(ClassificationTask.from_settings(ClsRecipe(**read_json(folder/'own.json'))), folder)
'''


@pytest.mark.slow
def test_killed_process_goes_on(home):
    cfg, folder = settings(epochs=400, tune='probe', cached_views=0, patience=0), home/'killed'
    folder.mkdir()
    (folder/'own.json').write_text(json.dumps(asdict(cfg)))
    child = subprocess.Popen([sys.executable, '-c', KILLED, str(folder)], stderr=subprocess.DEVNULL)
    import time
    for _ in range(600):
        time.sleep(.1)
        if (folder/'head.safetensors').exists() or child.poll() is not None: break
    child.send_signal(signal.SIGKILL)
    child.wait()
    close(train_cls(cfg, folder), train_cls(cfg, home/'whole'))


@pytest.mark.slow
def test_two_processes_equal_one(home):
    "Plain, with kept features, and with mixed images"
    changes = {'plain': {}, 'kept': {'tune': 'probe', 'cached_views': 1}, 'mixed': {'mixup': 0.8, 'batch_size': 4}}
    for k, changed in changes.items(): write_json(home/'two'/k/'settings.json', {
        'stage': 'cls_tune', 'settings': asdict(settings(epochs=2, processes=2, **changed))})
    assert two_processes(train_each, [home/'two'/k for k in changes]) == [0, 0]
    for k, changed in changes.items():
        close(pd.read_csv(home/'two'/k/'history.csv'), train_cls(settings(epochs=2, **changed), home/k), rel=1e-4)


# ------------------------------------------------------------------ kept features

@pytest.mark.slow
def test_a_frozen_encoder_sees_each_image_once(home, monkeypatch):
    "Over epochs, runs, seeds, heads and settings"
    seen, ask = [], heads_classification.ClsModel.summaries
    def counted(self, x, keys=None):
        seen.append(len(next(iter(x.values()))))
        return ask(self, x, keys)
    monkeypatch.setattr(heads_classification.ClsModel, 'summaries', counted)
    cfg, n = settings(tune='probe', cached_views=2, epochs=5), {s: len(t) for s, t in data().splits.items()}
    keywords = {'name': 'mirage_tiny', 'n_classes': 2, 'size': [48, 48]}
    file = save_tuned_model(cls_model(**keywords), home/'start.safetensors', keywords)
    cfg = replace(cfg, weights=str(file))
    train_cls(cfg, home/'a')
    assert sum(seen) == 2*n['train'] + n['val']
    others = {'lr': 1e-2}, {'seed': 3}, {'pool': 'token_mix'}, {'label_smoothing': 0.}, {'epochs': 9}
    for i, changed in enumerate(others):
        train_cls(replace(cfg, **changed), home/f'b{i}')
    assert sum(seen) == 2*n['train'] + n['val'], 'it was asked again'
    train_cls(replace(cfg, size=32), home/'c')
    assert sum(seen) == 2*(2*n['train'] + n['val']), 'another size is another question'


@pytest.mark.parametrize('how', [{'pool': 'token_mix'}, {'tune': 'probe', 'cached_views': 0, 'monitor': 'auroc'}])
def test_a_tuned_file_is_tested_as_it_is(home, how):
    "With its last layer and no epochs: nothing is trained, and it says what it said"
    cfg = settings(epochs=2, **how)
    rows = train_cls(cfg, home/'run')
    file = home/'run'/'best.safetensors'
    again = replace(cfg, weights=str(file), keep_head=True, epochs=0, seed=5)
    row = train_cls(again, home/'again').iloc[0]
    assert tasks_classification.kept_row(pd.DataFrame([row]), again) == 0 and row.epoch == 0
    assert row.score == pytest.approx(rows.score[tasks_classification.kept_row(rows, cfg)], abs=1e-6)
    files = file, home/'again'/'best.safetensors'
    one, two = (classification_predict.predict_cls(f, data().splits['test']) for f in files)
    pd.testing.assert_frame_equal(one, two)
    assert train_cls(replace(again, epochs=1), home/'on').loss.notna().all(), 'it can be trained on'


@pytest.mark.parametrize(('changed', 'words'), [
    ({'epochs': 0}, 'epochs is 1 or more, not 0; with keep_head=True, 0 tests the model of a file'),
    ({'keep_head': True, 'weights': None},
     'keep_head takes the last layer of a file: name one by weights, which is None'),
    ({'keep_head': True, 'weights': 'random'}, 'which is random')])
def test_a_last_layer_needs_a_file(changed, words):
    with pytest.raises(ValueError, match=words): settings(**changed)


def test_a_tuned_file_of_another_task_is_refused(home):
    model = cls_model('mirage_tiny', 2, size=(48, 48))
    keywords = {'name': 'mirage_tiny', 'n_classes': 2, 'size': [48, 48]}
    file = save_tuned_model(model, home/'a.safetensors', keywords, classes=['AMD', 'CNV'])
    cfg = settings(weights=str(file), keep_head=True, epochs=0)
    with pytest.raises(ValueError, match='was tuned for AMD, CNV; the classes here are '): train_cls(cfg, home/'x')
    own = save_tuned_model(model, home/'b.safetensors', {**keywords, 'pool': 'cls'}, classes=list(data().classes))
    with pytest.raises(ValueError, match="was tuned with pool 'cls', not 'global': take that"):
        train_cls(replace(cfg, weights=str(own)), home/'x')


@pytest.mark.slow
def test_a_file_is_tested_on_a_set_that_has_only_a_test(home, execute, monkeypatch):
    "31_cls_tune itself, without training and validation splits"
    rows = train_cls(settings(epochs=1), home/'run')
    assert len(rows) == 1
    first = data()
    for p in first.splits['test'].itertuples():
        to = home/'data'/'Away'/'test'/p.label/f'{p.id}.png'
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(p.image.read_bytes())
    monkeypatch.setenv('MIRAGE_DATA', str(home/'data'))
    space = execute('cls_tune', dataset='Away', recipe='cls_small', tune='full', keep_head=True, epochs=0, size=48,
                    precision='fp32', weights=str(home/'run'/'best.safetensors'))
    same = classification_predict.predict_cls(home/'run'/'best.safetensors', first.splits['test']).set_index('id')
    there = pd.read_csv(space['run'].folder/'predictions_test.csv')
    assert set(there.id) == set(same.index) and not (space['run'].folder/'predictions_val.csv').exists()
    scores = [c for c in same if c.startswith('score:')]
    np.testing.assert_allclose(there.set_index('id')[scores], same.loc[there.id, scores], rtol=1e-6,
                               err_msg='the folders sort the classes otherwise than the file')


# ------------------------------------------------------------------ beside it

def test_report_says_first_weights(home, caplog):
    with caplog.at_level('WARNING'):
        random = settings(tune='probe', cached_views=0, weights='random')
        assert starting_weights(random) == 'random initialisation'
        assert 'mirage_tiny has random weights, and tune=probe trains none' in caplog.text
        caplog.clear()
        assert starting_weights(settings()) == 'random initialisation'
        tiny = settings(weights='mirage_tiny', tune='probe', cached_views=0)
        assert starting_weights(tiny) == 'the weights that come with the kit'
        assert not caplog.text


# ------------------------------------------------------------------ test

def test_predictions_follow_the_contract(home):
    cfg = settings(epochs=1)
    train_cls(cfg, home/'run')
    scores = score(cfg, home/'run', data())
    pred = read_predictions(home/'run'/'predictions_test.csv')
    assert pred.classes == ('normal', 'DME', 'AMD', 'CSC')
    assert set(pred.table.patient) == set(data().splits['test'].patient)
    assert np.abs(pred.p - scores.pred.p).max() < 1e-9 and scores.valid is not None


def test_tested_on_another_set(home, phantoms):
    "By the class map of its manifest; without one, by name"
    other, table = home/'Other', data().splits['test']
    other.mkdir()
    words = ['sick' if v != 'normal' else 'NORMAL' for v in table.label]
    table[['id', 'image']].assign(dx=words, part='x').to_csv(other/'t.csv', index=False)
    head = [f'{k} = "x"' for k in ('title', 'modality', 'source', 'licence', 'citation', 'get')]
    (other/'manifest.toml').write_text('\n'.join([*head, 'task = "classification"', 'layout = "table"', '[splits]',
        'test = "x"', '[labels]', 'table = "t.csv"', 'image = "{image}"', 'id = "id"', 'label = "dx"', 'split = "part"',
        'classes = ["NORMAL", "sick"]\n']))
    cfg = settings(epochs=1, test_dataset=str(other))
    train_cls(cfg, home/'run')
    with pytest.raises(ValueError, match='There is no partner for .* and sick of Other'):
        score(cfg, home/'run', data())
    with open(other/'manifest.toml', 'a') as f:
        f.write('[labels.class_maps.Phantom_OCT]\nnormal = "NORMAL"\nDME = "sick"\nAMD = "sick"\nCSC = "sick"\n')
    scores = score(cfg, home/'run', data())
    assert scores.pred.classes == ('NORMAL', 'sick') and len(scores.pred) == len(table)
    own = ClassificationTask.from_settings(cfg).predict(home/'run', 'test')
    assert scores.pred.table['score:sick'].to_numpy() == pytest.approx(1 - own['score:normal'].to_numpy())


def test_same_seed_same_numbers_another_seed_others(home):
    a, b, c = (train_cls(settings(epochs=2, seed=s), home/f'{k}') for k, s in enumerate((1, 1, 2)))
    close(a, b)
    assert a.loss.tolist() != c.loss.tolist()


# ------------------------------------------------------------------ another start

def test_random_start_is_the_same_training_of_random_weights(home):
    "Few images of each class, the same for both; the line beneath the headline says what the weights brought"
    cfg = settings(weights='mirage_tiny', epochs=1, shots=2, random_start=True)
    task = ClassificationTask.from_settings(cfg)
    train(task, home/'run')
    results = {'fine-tuned': task.test(home/'run'), **task.baselines(home/'run')}
    assert list(results) == ['fine-tuned', 'from random initialisation', 'majority class']
    alone = replace(cfg, weights='random', random_start=False)
    train_cls(alone, home/'alone')
    assert score(alone, home/'alone').means == results['from random initialisation'].means
    line, = start_line(results, cfg)
    assert line.startswith('Starting from the weights that come with the kit: mean AUROC 0.')
    a, b = (results[k].means['AUROC, mean (macro)'] for k in ('fine-tuned', 'from random initialisation'))
    assert f'{a:.3f}, from random initialisation {b:.3f} ({a - b:+.3f} [' in line


def test_baselines_read_images_as_the_weights_do(home):
    "By the mean of the published weights, which random initialisation has none of"
    cfg = settings(model='vit_small_patch16', recipe='cls_small_vit', tune='last', epochs=1, shots=2, size=32, patch=16,
                   random_start=True, baselines=True, weights=str(home/'retfoundgreen_statedict.pth'))
    torch.save(build_encoder('vit_small_patch16', size=32).state_dict(), cfg.weights)
    task = ClassificationTask.from_settings(cfg)
    train(task, home/'run')
    task.baselines(home/'run')
    for folder in '.', 'random_start', 'random_encoder':
        spec = load_cls_model(home/'run'/folder/'best.safetensors')[1]['spec']
        assert spec['mean'] == spec['std'] == [.5]*3, folder
    alone = ClassificationTask.from_settings(replace(cfg, weights='random', random_start=False))
    assert alone.input_spec.mean != (.5,)*3
