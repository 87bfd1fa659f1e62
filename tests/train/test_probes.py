"Probes of frozen features: exact neighbours in chunks, and what is bounded on large sets"
import numpy as np
import pytest

from mirage_nb.core import log
from mirage_nb.train import probes as train_probes


def plain_neighbours(x, y, n_classes, k):
    "Scores by whole matrices and a stable sort, of a number of neighbours"
    unit = {s: v/(np.linalg.norm(v, axis=1, keepdims=True) + 1e-12) for s, v in x.items()}
    hot = np.eye(n_classes)[y['train']] if y['train'].ndim == 1 else y['train']
    prior = np.nan_to_num(np.nanmean(hot, 0), nan=0.5)
    out = {}
    for s in ('val', 'test'):
        near = hot[np.argsort(-(unit[s] @ unit['train'].T), axis=1, kind='stable')[:, :k]]
        out[s] = (np.nansum(near, 1) + prior)/((~np.isnan(near)).sum(1) + 1)
    return out


def features(several, ties):
    "Small whole numbers make many equal angles"
    rng = np.random.default_rng(1)
    y = {s: rng.integers(0, 3, n) for s, n in (('train', 230), ('val', 70), ('test', 90))}
    x = {s: np.eye(3, 4)[v] + (rng.integers(0, 2, (len(v), 4)) if ties else rng.normal(size=(len(v), 4)))
         for s, v in y.items()}
    if several: y = {s: np.where(rng.random((len(v), 3)) < .3, np.nan, np.eye(3)[v]) for s, v in y.items()}
    return {s: v.astype(np.float64) for s, v in x.items()}, y


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('several', [False, True])
def test_neighbours_in_chunks_are_those_of_whole_matrices(several, ties, monkeypatch):
    (x, y), found = features(several, ties), {}
    if ties: x = {s: np.round(4*v) for s, v in x.items()}
    for asked in (7, 256):
        monkeypatch.setattr(train_probes, '_ASKED', asked)
        found[asked] = train_probes.knn_probe(x, y, 3)
        wanted = plain_neighbours(x, y, 3, int(found[asked].setting))
        assert list(found[asked].scores) == ['val', 'test']
        for s, v in wanted.items(): np.testing.assert_allclose(found[asked].scores[s], v, rtol=1e-12)
    assert found[7].setting == found[256].setting


def test_of_equals_the_first():
    among = np.array([[1., 0], [0, 1], [1, 0], [1, 0], [0, 1]])
    assert train_probes._nearest_rows(among[:2], among, 2).tolist() == [[0, 2], [1, 4]]
    assert train_probes._nearest_rows(among[:2], among, 4).tolist() == [[0, 2, 3, 1], [1, 4, 0, 2]]


def test_a_regression_of_a_large_set_takes_a_part(monkeypatch, caplog):
    x, y = features(several=True, ties=False)
    whole = train_probes.logistic_probe(x, y, 3).scores['test']
    monkeypatch.setattr(train_probes, '_FITTED', 100)
    with caplog.at_level('INFO', log.name): part = train_probes.logistic_probe(x, y, 3).scores['test']
    assert 'fitted on 100 of 230 training images' in caplog.text
    assert np.array_equal(part, train_probes.logistic_probe(x, y, 3).scores['test']) and not np.array_equal(part, whole)
    assert np.corrcoef(part.ravel(), whole.ravel())[0, 1] > 0.8
