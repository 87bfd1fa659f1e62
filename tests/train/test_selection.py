"When a training stops, and which epoch is kept"
from dataclasses import replace

import numpy as np

from mirage_nb.recipes.classification import cls_recipe
from mirage_nb.train import selection as train_selection


def ends(scores, losses, **changed):
    "Epoch after which a training with this validation ends, and the epoch that is kept, from 1"
    cfg, rows, kept = replace(cls_recipe('cls_probe_mirage'), **changed), [], 0
    for n, (score, loss) in enumerate(zip(scores, losses, strict=True), 1):
        new = {'score': score, 'valid_loss': loss}
        if not rows or train_selection.is_better(new, rows, cfg.min_delta): kept = n
        rows.append(new)
        assert kept == train_selection.best_epoch(rows, cfg.min_delta) + 1, 'what is kept is what the report calls best'
        if train_selection.why_stalled(rows, cfg): return n, kept
    return None, kept


def test_ties_neither_sink_nor_go_on_for_ever():
    n = np.arange(200)
    assert ends(.9 - .00099*n, 1 - .001*n) == (40, 2), 'falls by less than min_delta an epoch, with falling loss'
    assert ends(.9 + 0*n, 1 - .001*n) == (40, 40), 'ties go to the lower loss, and are no gains'
    assert ends(.9 + .0011*n, 1 + .001*n) == (None, 200), 'gains'
    assert ends(.9 + .0004*n, 1 + .001*n)[0] is None, 'small steps up add to gains'
    assert ends(.9 - .01*(n > 30), 1 - .001*n) == (40, 31), 'worse than a tie is not kept, whatever its loss'
    assert ends(.9 + .1*(n == 25), 1 + 0*n) == (46, 26)
    assert ends(.9 + 0*n, 1 + 0*n, patience_from=0) == (21, 1)
    assert ends(.9 + 0*n, 1 + 0*n, patience=0) == (None, 1)
