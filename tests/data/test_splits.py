"Draws of splits that earlier versions made: the same patients, to the last one"
import hashlib

import numpy as np
import pandas as pd
import pytest

from mirage_nb.data.splits import draw_splits


def images(seed):
    "One to five images of each of 150 patients, with six labels from rare to common"
    rng = np.random.default_rng(seed)
    has = rng.random((150, 6)) < np.geomspace(.03, .5, 6)
    who = np.repeat(np.arange(150), rng.integers(1, 6, 150))
    t = pd.DataFrame({'id': [f'i{i}' for i in range(len(who))], 'patient': [f'P{w}' for w in who]})
    t = t.join(pd.DataFrame(has[who].astype(float), columns=[f'label:L{k}' for k in range(6)]))
    return t.assign(split=np.where(has[who, 5], 'test', 'train'))


SHARES = {'labels': {'train': .6, 'val': .15, 'test': .25}, 'patients': {'val': .13, 'test': .2}, 'images': {'val': .2}}


@pytest.mark.parametrize('by, seed, recorded', [
    ('labels', 0, 'bdad066f94656c73'),
    ('patients', 0, '9ef0ccbbffa4bd99'),
    ('images', 0, '89c4cce6dc0f4130'),
    ('labels', 1, '676de894966d8f33'),
    ('patients', 1, '5956582a967fbae5'),
    ('images', 1, '828883cecf410029')
])
def test_seeds_give_the_patients_that_they_gave(by, seed, recorded):
    t = images(int(seed))
    split = draw_splits(t, SHARES[by], f'set{seed}' if by == 'labels' else seed, by=by)
    assert hashlib.sha256(' '.join(split).encode()).hexdigest()[:16] == recorded
    assert t.assign(split=split).groupby('patient').split.nunique().max() == 1 or by == 'patients'
    shuffled = t.sample(frac=1, random_state=1)
    again = draw_splits(shuffled, SHARES[by], f'set{seed}' if by == 'labels' else seed, by=by)
    assert again.sort_index().tolist() == split.tolist()
