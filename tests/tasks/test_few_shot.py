"Few-shot: what is drawn, what is tested, and labels that are missing"
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.data.audit import find_leaks
from mirage_nb.data.classification import LabelledImages
from mirage_nb.data.manifest import read_manifest
from mirage_nb.recipes.classification import FewShot, cls_recipe
from mirage_nb.tasks.classification import ClassificationTask
from mirage_nb.tasks.few_shot import _make_subset, learning_curve, run_subsets, subset_table
from mirage_nb.tasks.settings import few_shot_recipe
from tests.tasks.samples import train_cls

pytestmark = pytest.mark.slow

LABELS = '''task = "classification"
layout = "table"
[labels]
table = "t.csv"
image = "{id}.png"
id = "id"
multi = true
patient = "who"
split = "part"
classes = ["Effusion", "Nodule"]
'''


def several(folder):
    "A set with two labels per image, of which some are not known; three images per patient"
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for i in range(36):
        Image.fromarray(rng.integers(0, 255, (24, 24), np.uint8)).save(folder/f'{i:02}.png')
        rows.append((f'{i:02}', f'P{i//3}', ('train', 'val', 'test')[i//3 % 3], i % 2, '' if i % 5 == 4 else i//2 % 2))
    pd.DataFrame(rows, columns=['id', 'who', 'part', 'Effusion', 'Nodule']).to_csv(folder/'t.csv', index=False)
    head = [f'{k} = "x"' for k in ('title', 'modality', 'source', 'licence', 'citation', 'get')]
    (folder/'manifest.toml').write_text('\n'.join([*head, LABELS]))
    return read_manifest(str(folder))


def plain_set():
    "Four images of each of 12 patients, two of them the same image"
    rows = [(f'{p}-{i}', f'P{p:02}', ('train', 'val', 'test')[p % 3], f'{p}-{max(i, 1)}', 'AB'[p//3 % 2])
            for p in range(12) for i in range(4)]
    table = pd.DataFrame(rows, columns=['id', 'patient', 'split', 'sha256', 'label']).assign(eye='', image='')
    return LabelledImages('Made_up', ('A', 'B'), False, table, find_leaks(table), 'x')


@pytest.mark.parametrize('protocol', ['splits', 'pool'])
def test_missing_labels(home, protocol):
    "An empty label is left out of the scores, it does not end the experiment; a second call reads what is there"
    several(home/'Films')
    cfg = FewShot(dataset=str(home/'Films'), protocol=protocol, shots=[2.], seeds=2, size=32, epochs=1,
                  precision='fp32')
    for _ in range(2):
        task = ClassificationTask.from_settings(few_shot_recipe(cfg))
        results = {(k, s): t for k, s, t in run_subsets(cfg, task, home/'run')}
        assert len(results) == 2 and all(np.isnan(t.y).any() for t in results.values())
    curve = learning_curve(results, 50)
    assert np.isfinite(curve[['mean', 'low', 'high']].to_numpy()).all()


@pytest.mark.parametrize('mixup', [0., 0.8])
def test_micro_batches_with_missing_labels(home, mixup):
    "The mean over known labels is that of the whole batch, however it is cut"
    several(home/'Films')
    cfg = replace(cls_recipe('cls_small'), dataset=str(home/'Films'), tune='full', size=32, epochs=2, lr=1e-2,
                  weights='random', precision='fp32', batch_size=8, mixup=mixup)
    rows = [train_cls(replace(cfg, accumulate=k), home/f'{k}') for k in (1, 2)]
    np.testing.assert_allclose(*[r[['loss', 'valid_loss']].to_numpy() for r in rows], rtol=1e-4)


def test_pool_is_apart_by_patient():
    data = plain_set()
    for seed in range(4):
        found = _make_subset(data, 'pool', 2, seed).splits
        assert not set(found['train'].patient) & set(found['test'].patient) and len(found['train']) == 4
        assert set(found['test'].patient) | set(found['train'].patient) == set(data.table.patient)
        assert len(found['test']) == 4*found['test'].patient.nunique(), 'all images of the others'
    old = _make_subset(data, 'published', 2, 0).splits
    assert len(old['test']) == 44 and set(old['train'].patient) <= set(old['test'].patient)


def test_copies_are_in_neither():
    "The same image under another patient's name"
    data = plain_set()
    drawn = _make_subset(data, 'pool', 1, 0).splits['train']
    table = data.table.copy()
    other = table.index[~table.patient.isin(drawn.patient)][0]
    table.loc[other, 'sha256'] = drawn.sha256.iloc[0]
    found = _make_subset(replace(data, table=table), 'pool', 1, 0).splits
    assert table.id[other] not in set(found['test'].id) | set(found['train'].id)


def test_subsets_of_the_training_split():
    data = plain_set()
    one = _make_subset(data, 'splits', 2, 0).splits
    assert len(one['train']) == 4 and set(one['train'].id) <= set(data.splits['train'].id)
    for s in ('val', 'test'): pd.testing.assert_frame_equal(one[s], data.splits[s])


def test_table_says_who_is_on_both_sides():
    for protocol, both in (('splits', '0'), ('pool', '0'), ('published', '2')):
        table = subset_table(FewShot(protocol=protocol, shots=[1.], seeds=1), plain_set())
        assert table.loc[('1', '0'), 'patients in both'] == both
    unknown = replace(plain_set(), table=plain_set().table.assign(patient=''))
    assert subset_table(FewShot(shots=[1.]), unknown)['patients in both'].unique().tolist() == ['not known']


def test_nothing_left_to_test():
    with pytest.raises(ValueError, match="Made_up: shots 24, seed 0 leave nothing to test on .*'published'"):
        _make_subset(plain_set(), 'pool', 24, 0)


def test_report_of_several_labels(home, execute):
    "32_few_shot to its end, with the table of subsets"
    several(home/'Films')
    space = execute('few_shot', dataset=str(home/'Films'), protocol='pool', shots=[2.], seeds=2, size=32, epochs=1,
                    precision='fp32', resamples=50)
    saved = pd.read_csv(space['run'].folder/'subsets.csv')
    assert saved['patients in both'].tolist() == [0, 0] and (saved['test, patients'] > 0).all()
    assert space['start'] == 'the weights that come with the kit'


@pytest.mark.parametrize('name', ['epochs', 'seeds'])
def test_nothing_is_no_number_of(name):
    with pytest.raises(ValueError, match=f'{name} is 1 or more, not 0'): FewShot(**{name: 0})
