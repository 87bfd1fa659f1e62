"The recorded pre-training of MIRAGE, through the loop that every job uses"
import json

import pytest
import torch
from safetensors.torch import load_file

from mirage_nb.data.segmentation import collate
from mirage_nb.models.mirage import Modality
from mirage_nb.models.mirage_mae import MultiMAE
from mirage_nb.train import loop as train_loop
from mirage_nb.train import settings as train_settings
from mirage_nb.train.losses import pretrain_losses


@pytest.fixture(scope='module')
def facts(golden): return json.loads((golden/'mirage.json').read_text())


@pytest.fixture
def recorded(golden, facts):
    "Model with the recorded weights, and its samples with their masks"
    t, c = load_file(golden/'mirage_pretrain.safetensors'), facts['config']
    both = [Modality(k, c['patch'], c['img']) for k in ('bscan', 'slo')]
    layers = Modality('bscanlayermap', c['lm_patch'], c['lm_img'], classes=c['ncls'], class_width=c['cls_emb'])
    model = MultiMAE([*both, layers], keep=c['keep'], d=c['dim'], depth=c['depth'], heads=c['heads'],
                     decoder={'d': c['dec_dim'], 'depth': c['dec_depth'], 'heads': c['dec_heads']})
    model.load_state_dict({k.removeprefix('state.'): v for k, v in t.items() if k.startswith('state.')})
    parts = {k: v for k, v in t.items() if k.startswith(('input.', 'mask.'))}
    samples = [{'id': str(i), **{k: v[i] for k, v in parts.items()}} for i in range(c['B'])]
    return model, samples


class Samples(torch.utils.data.Dataset):
    def __init__(self, samples): self.samples = samples
    def __len__(self): return len(self.samples)
    def __getitem__(self, key): return self.samples[key[1]]


def step(model, batch):
    x, masks = ({k.removeprefix(p): v for k, v in batch.items() if k.startswith(p)} for p in ('input.', 'mask.'))
    predicted, used = model(x, masks=masks)
    return pretrain_losses(predicted, x, used, model.patches)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_trajectory_through_the_loop(recorded, facts, tmp_path, monkeypatch, accumulate):
    "Each epoch is one step here; micro-batches of samples with equal counts of hidden patches change nothing"
    model, samples = recorded
    rows, norms = facts['train_trajectory'], []
    if len(samples) % accumulate: pytest.skip(f'{len(samples)} samples do not make {accumulate} micro-batches')
    monkeypatch.setitem(train_settings.SCHEDULES, 'recorded', lambda s, i, n: rows[i]['lr'])
    clip = train_loop.Accelerator.clip_grad_norm_
    monkeypatch.setattr(train_loop.Accelerator, 'clip_grad_norm_', lambda *a: norms.append(float(clip(*a))))
    settings = train_settings.FitSettings(
        epochs=len(rows), batch_size=len(samples), lr=max(r['lr'] for r in rows), schedule='recorded',
        betas=(0.9, 0.95), weight_decay=max(g['weight_decay'] for g in facts['optimizer_groups']), clip=1e9,
        accumulate=accumulate)
    history = train_loop.fit(model, Samples(samples), step, None, None, settings, tmp_path, collate)
    assert [r['loss'] for r in history] == pytest.approx([r['loss'] for r in rows], rel=1e-3)
    assert norms == pytest.approx([r['grad_norm'] for r in rows], rel=1e-3)
    assert {k for k in history[0] if k.startswith('loss_')} == {'loss_bscan', 'loss_slo', 'loss_bscanlayermap'}
