"Damage files of every kind, and read them: an error that names the file, or what was there before"
import io
import json
import os
import random
import signal
import tempfile
import warnings
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from mirage_nb.data.files import check_image, image_size, read_image
from mirage_nb.data.manifest import ClassInfo, classes_of, read_manifest
from mirage_nb.data.masks import read_mask
from mirage_nb.data.packed import _open_packed, pack
from mirage_nb.data.paired import table_pairs
from mirage_nb.data.scanners.reading import read_volume
from mirage_nb.data.tables import read_list, table_rows
from mirage_nb.eval.classification.predictions import read_predictions
from mirage_nb.models.checkpoints import Checkpoint, read_checkpoint, rebuild_model, save_weights
from mirage_nb.models.vit import ViT
from mirage_nb.records import open_run, provenance
from mirage_nb.spreadsheets import load_table, open_table
from mirage_nb.storage import read_json
from mirage_nb.sweeps.plan import read_plan
from mirage_nb.train.features import FeatureStore
from mirage_nb.train.state import Progress, load_training_state, save_training_state
from tests.data.scanners import made

SECONDS, BYTES = 10, 3 << 30  # that one reader may take


@dataclass
class Case:
    "A file, and what reads it."
    name: str
    content: bytes
    file: str       # name of the file
    read: object    # called with the path of the file
    beside: object = None # writes other files of the folder, given the folder


# ------------------------------------------------------------------ whole files

def image_bytes(form, mode='L', **how):
    x = np.random.default_rng(0).integers(0, 255, (24, 20), np.uint8)
    image = Image.fromarray(x.astype(np.uint16)*257 if mode == 'I;16' else x)
    out = io.BytesIO()
    (image if mode == 'I;16' else image.convert(mode)).save(out, form, **how)
    return out.getvalue()


def npy_bytes(x):
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


def mha_bytes(packed):
    x = np.arange(480, dtype=np.uint8).tobytes()
    head = f'NDims = 2\nDimSize = 20 24\nElementType = MET_UCHAR\nCompressedData = {packed}\nElementDataFile = LOCAL\n'
    return head.encode() + (zlib.compress(x) if packed else x)


def images():
    forms = {'png': image_bytes('PNG'), '16.png': image_bytes('PNG', 'I;16'), 'p.png': image_bytes('PNG', 'P'),
             'rgb.png': image_bytes('PNG', 'RGB'), 'jpg': image_bytes('JPEG'), 'rgb.jpg': image_bytes('JPEG', 'RGB'),
             'tif': image_bytes('TIFF'), 'lzw.tif': image_bytes('TIFF', compression='tiff_lzw'),
             'bmp': image_bytes('BMP'), 'gif': image_bytes('GIF', 'P'), 'webp': image_bytes('WEBP', 'RGB'),
             'pgm': image_bytes('PPM'),
             'npy': npy_bytes(np.zeros((24, 20), np.uint8)), 'f.npy': npy_bytes(np.zeros((4, 5), '>f4', order='F')),
             'mha': mha_bytes(False), 'z.mha': mha_bytes(True)}
    for k, content in forms.items():
        yield Case(f'image {k}', content, f'a.{k}', lambda p: read_image(p, 3).shape)
        yield Case(f'size {k}', content, f'a.{k}', image_size)
        if 'npy' not in k: yield Case(f'check {k}', content, f'a.{k}', check_image)
    grey = [ClassInfo(i, i, str(i), 'layer') for i in range(256)]
    for k in ('png', 'tif', 'bmp', 'gif', 'pgm'):
        yield Case(f'mask {k}', forms[k], f'a.{k}', lambda p: read_mask(p, grey).shape)


FACTS = '''title = "t"
task = "classification"
modality = "cxr"
layout = "table"
source = "s"
licence = "l"
citation = "c"
get = "g"
[labels]
table = "t.csv"
image = "{id}.png"
label = "f"
'''
ROWS = 'id,f\na,Dr\u00fcse\nb,y\n'


def texts():
    def image(folder):
        for k in 'ab': (folder/f'{k}.png').write_bytes(image_bytes('PNG'))

    def with_table(folder):
        image(folder)
        (folder/'t.csv').write_text(ROWS, encoding='utf-8')

    def with_manifest(folder):
        image(folder)
        (folder/'manifest.toml').write_text(FACTS)

    for code in ('utf-8', 'utf-16', 'latin-1'):
        yield Case(f'table {code}', ROWS.encode(code), 't.csv', lambda p: len(open_table(p)))
        yield Case(f'labels {code}', ROWS.encode(code), 't.csv',
                   lambda p: len(table_rows(read_manifest(p.parent))), with_manifest)
        yield Case(f'list {code}', ROWS.replace(',', ' ').encode(code), 'l.txt', lambda p: len(read_list(p, 2, 'A B')))
        yield Case(f'pairs {code}', 'id,slo\na,a.png\nb,b.png\n'.encode(code), 'p.csv',
                   lambda p: len(table_pairs(p).ids), image)
    yield Case('manifest', FACTS.encode(), 'manifest.toml', lambda p: len(table_rows(read_manifest(p.parent))),
               with_table)
    info = {'0': {'value': 0, 'label': 'Background'}, '1': {'value': 80, 'label': 'RNFL'}}
    yield Case('INFO.json', json.dumps(info).encode(), 'INFO.json',
               lambda p: len(classes_of(read_manifest(p.parent), p.parent)), lambda d: (d/'bscan').mkdir())
    yield Case('plan', b'pipeline = "seg_tune"\njobs = 2\n[grid]\nlr = [0.1, 0.2]\n', 'plan.toml',
               lambda p: bool(read_plan(p)))
    scores = pd.DataFrame({'id': ['a', 'b'], 'patient': ['1', '2'], 'label': ['A', 'B'], 'score:A': [.75, .25],
                           'score:B': [.25, .75]})
    yield Case('predictions', scores.to_csv(index=False).encode(), 's.csv', lambda p: len(read_predictions(p).table))


# ------------------------------------------------------------------ files of the kit

def written(write, name='x'):
    "The bytes that a writer makes"
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder)/name)
        return (Path(folder)/name).read_bytes()


def feature_bytes():
    "The file of a store of features"
    with tempfile.TemporaryDirectory() as folder:
        FeatureStore(Path(folder)).add(['a', 'b'], torch.arange(8.).reshape(2, 4))
        return next(Path(folder).iterdir()).read_bytes()


def kept_features(path):
    "The number of features in a file; a damaged one is deleted, and its features are made again"
    rows = FeatureStore(path.parent).rows
    if not rows: raise ValueError(f'{path} is made again')
    return len(rows)


def own_files():
    run = {'stage': 'seg_tune', 'identity': 'a'*64, 'settings': {'dataset': 'A'}, 'sources': {}, 'versions': {},
           'commit': '', 'machine': 'm', 'started': 's'}
    result = {'finished': 'f', 'device': 'd', 'peak_memory_gb': 1.}

    def beside(name, value): return lambda folder: (folder/name).write_text(json.dumps(value))
    yield Case('run.json', json.dumps(run).encode(), 'run.json', lambda p: open_run(p.parent).finished,
               beside('result.json', result))
    yield Case('result.json', json.dumps(result).encode(), 'result.json',
               lambda p: read_json(p) and len(provenance(open_run(p.parent))), beside('run.json', run))
    history = pd.DataFrame({'epoch': [0, 1], 'loss': [1., .5]}).to_csv(index=False).encode()
    yield Case('history.csv', history, 'history.csv', lambda p: len(load_table(p, columns=['epoch'])))
    net = torch.nn.Linear(3, 2)
    state = written(lambda p: save_training_state(p, net.state_dict(), torch.optim.AdamW(net.parameters()).state_dict(),
                                                  Progress(), [{'epoch': 0.}]))
    yield Case('state.pt', state, 'state.pt', lambda p: sorted(load_training_state(p)))
    yield Case('features', feature_bytes(), 'f.safetensors', kept_features)
    yield from packed_files()


def packed_files():
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for k in 'ab': Image.fromarray(np.full((8, 8), ord(k), np.uint8)).save(home/f'{k}.png')
        (home/'p.csv').write_text('id,slo\na,a.png\nb,b.png\n')
        out = pack(table_pairs(home/'p.csv'), home/'out', quiet=True)
        files = {p.name: p.read_bytes() for p in out.iterdir()}
    def others(folder):
        for k, v in files.items(): (folder/k).write_bytes(v)

    def read(path):
        found = _open_packed(path.parent)
        return [found.plane(k, i).shape for k in found.modalities for i in range(len(found.ids))]
    for k, v in files.items(): yield Case(f'packed {k}', v, k, read, others)


def checkpoints():
    bare = {'size': 16, 'patch': 8, 'd': 8, 'depth': 1, 'heads': 1}
    net = ViT(**bare)
    pth = written(lambda p: torch.save({'model': net.state_dict(), 'epoch': 3}, p))
    old = written(lambda p: torch.save({'model': net.state_dict()}, p, _use_new_zipfile_serialization=False))
    own = written(lambda p: save_weights(net, p, {'encoder': bare}))

    def sizes(state): return sorted((k, tuple(v.shape)) for k, v in state.items())
    for k, v in (('a.pth', pth), ('old.pth', old), ('a.safetensors', own)):
        yield Case(f'checkpoint {k}', v, k, lambda p: sizes(read_checkpoint(p).state))
        yield Case(f'peek {k}', v, k, lambda p: sizes(Checkpoint.peek(p)))
    yield Case('model', own, 'm.safetensors', lambda p: type(rebuild_model(p, {'encoder': ViT})[0]).__name__)


def scanners():
    for kind, write in made.WRITERS.items():
        if kind in ('xml', 'mhd', 'e2e'): continue  # of several files, or by a library that may be missing
        name = f'a{made.ENDINGS[kind]}'
        yield Case(f'scanner {kind}', written(write, name), name, lambda p: read_volume(p).bscans.shape)


def all_cases(): return [*images(), *texts(), *own_files(), *checkpoints(), *scanners()]


# ------------------------------------------------------------------ damage

_NUMBERS = (b'-1', b'0', b'1000000', b'1000000000000', b'99999999999999999999', b'1e999', b'nan', b'null',
            b'""', b'[]', b'{')

_OTHERS = b'hello', b'\xff\xfe', b'PK\x03\x04', b'\x89PNG\r\n\x1a\n', b'['*5000


def damage(content, rng):
    "A kind of damage, and the damaged bytes"
    n = len(content)
    kind = rng.choice(('flip', 'flip', 'head', 'cut', 'cut', 'zero', 'swap', 'more', 'number', 'empty', 'nul', 'other'))
    x = bytearray(content)
    if kind == 'flip':
        for _ in range(rng.choice((1, 1, 4, 32))): x[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif kind == 'head':
        for _ in range(rng.choice((1, 2, 8))): x[rng.randrange(min(n, 64))] = rng.choice((0, 1, 127, 128, 255))
    elif kind == 'cut': x = x[:rng.randrange(n)]
    elif kind == 'zero':
        at = rng.randrange(n)
        x[at:at + rng.choice((4, 64))] = bytes(min(rng.choice((4, 64)), n - at))
    elif kind == 'swap':
        a, b = sorted(rng.randrange(n) for _ in range(2))
        x = x[:a] + x[b:] + x[a:b]
    elif kind == 'more': x += rng.randbytes(rng.choice((1, 100)))
    elif kind == 'number':
        places = [i for i in range(n) if chr(x[i]).isdigit()]
        if places:
            at = rng.choice(places)
            x[at:at + 1] = rng.choice(_NUMBERS)
    elif kind == 'empty': x = bytearray()
    elif kind == 'nul': x[rng.randrange(n)] = 0
    else: x = bytearray(rng.choice((*_OTHERS, rng.randbytes(300))))
    return kind, bytes(x)


# ------------------------------------------------------------------ verdicts

class TooLong(BaseException):
    "A reader takes more time than it is given."


@contextmanager
def limits():
    "Give what runs inside some seconds and some memory"
    import resource
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path('/proc/self/statm').read_text().split()[0])*os.sysconf('SC_PAGE_SIZE')
    def stop(*_): raise TooLong
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages + BYTES, before[1]))
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, old)


CLEAR = ValueError, FileNotFoundError, PermissionError, KeyError, OSError  # with the name of the file


def judge(case, path, whole):
    "How a reader takes a damaged file: read, refused, silent, raw or crash; and what it says"
    try:
        with limits(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = case.read(path)
    except (MemoryError, RecursionError, TooLong, SystemError) as e: return 'crash', repr(e)
    except CLEAR as e:
        named = path.name in str(e) or str(path.parent) in str(e)
        return ('refused' if named else 'raw'), f'{type(e).__name__}: {e}'
    except Exception as e: return 'raw', f'{type(e).__name__}: {e}'
    return ('read', '') if found == whole else ('other', f'{found} for {whole}')


def fuzz(cases, rounds, seed, folder):
    "Counts of verdicts, and the cases that are none of read and refused"
    rng, counts, bad = random.Random(seed), Counter(), []
    for case in cases:
        home = folder/case.name.replace(' ', '_')
        home.mkdir()
        if case.beside: case.beside(home)
        path = home/case.file
        path.write_bytes(case.content)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            whole = case.read(path)  # the file itself has to be right
        for _ in range(rounds):
            kind, content = damage(case.content, rng)
            path.write_bytes(content)
            verdict, text = judge(case, path, whole)
            if verdict == 'other': verdict = 'silent' if kind in ('cut', 'empty', 'other') and binary(case) else 'read'
            counts[verdict] += 1
            if verdict not in ('read', 'refused'): bad.append((case.name, kind, verdict, text[:300], content))
    return counts, bad


def binary(case): return not case.file.endswith(('.csv', '.toml', '.txt', '.json'))
