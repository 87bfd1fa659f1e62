"""Fine-tune, evaluate and pre-train models for retinal images; a script needs only the names below.

>>> import mirage_nb
>>> run = mirage_nb.run('cls_tune', dataset='Phantom_OCT', epochs=20)   # a pipeline of nbs/, with its parameters
>>> run.metrics['fine-tuned'], run.predictions, run.model                    # also of a run that is read by read_run
>>> mirage_nb.predict(run, 'folder/of/images')
>>> mirage_nb.read_volume('scan.vol').spacing                                # a file of a scanner
"""
__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data.scanners.reading import read_volume
    from .models.loading import load_model
    from .runs import read_run, run
    from .tasks.encode import encode
    from .tasks.evaluate import evaluate
    from .tasks.export import export_onnx
    from .tasks.predict import predict

__all__ = ['encode', 'evaluate', 'export_onnx', 'load_model', 'predict', 'read_run', 'read_volume', 'run']
_HOMES = {'load_model': '.models.loading', 'run': '.runs', 'read_run': '.runs', 'evaluate': '.tasks.evaluate',
          'encode': '.tasks.encode', 'export_onnx': '.tasks.export',
          'predict': '.tasks.predict', 'read_volume': '.data.scanners.reading'}


def __getattr__(name: str) -> object:
    "Import a name when it is first used, so that `import mirage_nb` takes no time."
    if name not in _HOMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]: return [*globals(), *__all__]
