"Peak memory of a process that takes two steps of fine-tuning, blocks kept and blocks computed again (checkpointing)"
import resource
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import in_process, row
from mirage_nb.memory import peak_memory
from mirage_nb.models.classification import cls_model
from mirage_nb.models.segmentation import seg_model
from mirage_nb.randomness import sample_key
from mirage_nb.train.losses import seg_loss
from mirage_nb.train.optim import param_groups

CLASSES = 13
CASES = {  # name -> what it is, batch, rows and columns, gigabytes that it has to fit in
    'vit_large': ('fine-tuning of RETFound_mae (ViT-L), 224 pixels, batch 16', 16, 224, 16.),
    'mirage_large': ('fine-tuning of mirage_large with a ConvNeXt head, 1024 pixels, batch 2', 2, 1024, 24.),
    'mirage_large_read': ('prediction by mirage_large with a ConvNeXt head, 1024 pixels, batch 2', 2, 1024, 24.)}
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def make(case: str, again: bool) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    "Build a model, and the loss of a batch"
    _, b, size, _ = CASES[case]
    g, keys = torch.Generator().manual_seed(0), torch.tensor([sample_key(0, 0, i) for i in range(b)])
    more = {'checkpointing': True} if again else {}
    torch.manual_seed(0)
    if case == 'vit_large':
        model: nn.Module = cls_model('RETFound_mae', 5, size=(size, size), drop_path=0.2, **more)
        x, y = torch.rand(b, 3, size, size, generator=g).to(DEVICE), torch.arange(b, device=DEVICE) % 5
        return model, lambda m: F.cross_entropy(m({'image': x}, keys), y)
    model = seg_model('mirage_large', CLASSES, 'convnext', (size, size), drop_path=0.1, **more)
    x = torch.rand(b, 1, size, size, generator=g).to(DEVICE)
    loss = seg_loss('CEGDice', [str(i) for i in range(CLASSES)])
    mask = torch.randint(0, CLASSES, (b, size, size), generator=g).byte().to(DEVICE)
    return model, lambda m: loss(m({'bscan': x}, keys), mask)


def work(case: str, again: bool) -> None:
    "Take two steps of AdamW in bf16, or predict twice, and print the peaks and the last loss"
    model, loss_of = make(case, again)
    model, read = model.to(DEVICE), case.endswith('read')
    optimizer = None if read else torch.optim.AdamW(param_groups(model.train(), 0.05, 0.75), lr=1e-5, fused=True)
    for _ in range(2):  # the moments of AdamW are there from the first step on
        with torch.set_grad_enabled(not read), torch.autocast(DEVICE, torch.bfloat16): loss = loss_of(model)
        if optimizer is None: continue
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    spent = resource.getrusage(resource.RUSAGE_SELF)
    peak = peak_memory()
    print(peak.get('GPU', peak['process']), spent.ru_utime + spent.ru_stime, repr(loss.item()))


def measure(case: str, again: bool) -> tuple[float, float, str]:
    "Return the peak in gigabytes, the processor seconds and the last loss of a process of its own"
    peak, seconds, loss = in_process('-m', 'benchmarks.bench_memory', case, int(again)).split()
    return float(peak), float(seconds), loss


def run():
    "Rows for the table of benchmarks"
    where = 'on the GPU' if DEVICE == 'cuda' else 'of the process'
    for case, (what, _, _, limit) in CASES.items():
        kept = measure(case, False)
        if case.endswith('read'):
            yield row(what, None, kept[0], f'peak {where}', unit='GB', limit=limit)
            continue
        again = measure(case, True)
        same = 'the same loss' if kept[2] == again[2] else f'OTHER losses: {kept[2]} and {again[2]}'
        yield row(what, kept[0], again[0], f'peak {where}; {same}; processor time x {again[1]/kept[1]:.2f}', unit='GB',
                  limit=limit)


if __name__ == '__main__': work(sys.argv[1], sys.argv[2] == '1')
