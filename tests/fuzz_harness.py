"Damage files of every kind, and read them: an error that names the file, or what was there before"
import gzip
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import struct
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

from mirage_nb.core import resource_dir
from mirage_nb.data.files import check_image, image_size, read_image
from mirage_nb.data.image_index import index_images
from mirage_nb.data.label_maps import LabelMap, read_label_map, write_label_map
from mirage_nb.data.manifest import ClassInfo, classes_of, read_manifest
from mirage_nb.data.masks import read_mask
from mirage_nb.data.packed import _begin_packing, _file_states, _open_packed, _write_rows, pack
from mirage_nb.data.paired import table_pairs
from mirage_nb.data.scanners.pseudonyms import Identity, note_patient
from mirage_nb.data.scanners.reading import read_volume
from mirage_nb.data.scanners.volume import Spacing
from mirage_nb.data.tables import read_list, table_rows
from mirage_nb.eval.classification.predictions import read_predictions
from mirage_nb.eval.method_agreement import method_pairs
from mirage_nb.eval.method_study import MethodStudy
from mirage_nb.eval.pretraining import read_snapshot_images, save_snapshot
from mirage_nb.measure.reference import read_reference
from mirage_nb.measure.result import list_measures, measure_volume, measured_facts
from mirage_nb.measure.scan import SegmentedVolume
from mirage_nb.models.checkpoints import Checkpoint, read_checkpoint, rebuild_model, save_weights
from mirage_nb.models.vit import ViT
from mirage_nb.phantoms.eyes import EYE_CLASSES, EyePlan, EyeScan, draw_masks
from mirage_nb.pseudonyms import pseudonyms_of, real_name
from mirage_nb.recipes.measure import Measure
from mirage_nb.records import open_run, provenance
from mirage_nb.sealed import noted, read_noted
from mirage_nb.spreadsheets import load_table, open_table, save_table, table_text
from mirage_nb.storage import read_json, write_json
from mirage_nb.sweeps.plan import read_plan
from mirage_nb.tasks.collect import find_runs, read_runs
from mirage_nb.tasks.volumes import dataset_volumes, mapped_volumes
from mirage_nb.train.features import FeatureStore
from mirage_nb.train.state import Progress, load_training_state, save_training_state
from tests.data.scanners import made

SECONDS, BYTES = 10, 3 << 30  # that one reader may take


@dataclass
class Case:
    "A file, and what reads it."
    name: str
    content: bytes  # b'': as `beside` writes the file
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
    result = {'finished': 'f', 'device': 'd', 'peak_memory_gb': {'process': 1.}}

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


def folder_of(write, name):
    "The files that a writer of several makes"
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder)/name)
        return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def with_files(files): return lambda folder: [(folder/k).write_bytes(v) for k, v in files.items()]


def scanners():
    def shape(path): return read_volume(path).bscans.shape
    for kind, write in made.WRITERS.items():
        name = f'a{made.ENDINGS[kind]}'
        if kind == 'e2e' and importlib.util.find_spec('oct_converter') is None: continue
        if kind not in ('xml', 'mhd'): yield Case(f'scanner {kind}', written(write, name), name, shape)
    for name in ('a.xml', 'a.mhd'):  # damage in the text, and in one of the files that it names
        files = folder_of(made.WRITERS[name[2:]], name)
        yield Case(f'scanner {name[2:]}', files[name], name, shape, with_files(files))
        part = next(k for k in files if k.endswith(('_1.png', '.raw')))
        yield Case(f'part of {name[2:]}', files[part], part, lambda p, name=name: shape(p.with_name(name)),
                   with_files(files))
    packed = folder_of(made.write_mhd, 'a.mhd')
    head = packed['a.mhd'].replace(b'a.raw', b'a.zraw').replace(b'ElementType', b'CompressedData = True\nElementType')
    files = {'a.mhd': head, 'a.zraw': zlib.compress(packed['a.raw'])}
    yield Case('scanner z.mhd', head, 'a.mhd', shape, with_files(files))
    yield Case('part of z.mhd', files['a.zraw'], 'a.zraw', lambda p: shape(p.with_name('a.mhd')), with_files(files))
    plain = written(lambda p: made.write_nifti(p), 'a.nii')
    yield Case('scanner nii', plain, 'a.nii', shape)


def odd_images():
    "Forms of usual formats that few programs write"
    x = np.random.default_rng(1).integers(0, 255, (48, 40), np.uint8)
    forms = {'progressive.jpg': image_bytes('JPEG', 'RGB', progressive=True, quality=95),
             'float.tif': image_bytes('TIFF', 'F'), 'tiled.tif': tiled_tiff(x), 'one.tif': image_bytes('TIFF', '1'),
             'cmyk.tif': image_bytes('TIFF', 'CMYK'), 'interlaced.png': image_bytes('PNG', 'LA'),
             'deflate.tif': image_bytes('TIFF', compression='tiff_adobe_deflate')}
    for k, content in forms.items():
        yield Case(f'odd {k}', content, f'a.{k}', lambda p: read_image(p, 3).shape)
        yield Case(f'odd check {k}', content, f'a.{k}', check_image)


def tiled_tiff(x, side=16):
    "An image in tiles (TIFF 6.0, section 15), which Pillow reads and does not write"
    rows, cols = -(-x.shape[0]//side), -(-x.shape[1]//side)
    full = np.pad(x, [(0, rows*side - x.shape[0]), (0, cols*side - x.shape[1])])
    tiles = [full[i*side:(i + 1)*side, j*side:(j + 1)*side].tobytes() for i in range(rows) for j in range(cols)]
    n, tags = len(tiles), 9
    starts = 8 + 2 + 12*tags + 4
    first = starts + 8*n
    def tag(k, kind, count, value): return struct.pack('<HHII', k, kind, count, value)
    entries = [tag(256, 4, 1, x.shape[1]), tag(257, 4, 1, x.shape[0]), tag(258, 3, 1, 8), tag(259, 3, 1, 1),
               tag(262, 3, 1, 1), tag(322, 4, 1, side), tag(323, 4, 1, side), tag(324, 4, n, starts),
               tag(325, 4, n, starts + 4*n)]
    places = struct.pack(f'<{2*n}I', *(first + i*side*side for i in range(n)), *[side*side]*n)
    return (b'II*\0' + struct.pack('<IH', 8, tags) + b''.join(entries) + bytes(4) + places + b''.join(tiles))


def kept_files():
    "Journals, indexes and half-made conversions: what is damaged is made again, or refused by name"
    def index(path):
        found = index_images(path.parent/'tree', path.parent/'i.safetensors', refresh=path.suffix == '.journal')
        return len(found), found.shape.tolist(), found.digest()

    def tree(folder):
        (folder/'tree').mkdir()
        for k in 'ab': (folder/'tree'/f'{k}.png').write_bytes(image_bytes('PNG'))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        tree(home)
        index_images(home/'tree', home/'i.safetensors')
        kept = (home/'i.safetensors').read_bytes()
    journal = ''.join(noted([f'{k}.png', 1, 2, 3, 4, 5, '']) for k in 'ab').encode()
    yield Case('index', kept, 'i.safetensors', index, tree)
    yield Case('index journal', journal, 'i.journal', index, tree)
    yield Case('rows journal', journal, 'rows.journal', lambda p: all(r in _ROWS for r in read_noted(p)))
    yield from half_packed()
    with tempfile.TemporaryDirectory() as folder:
        save_snapshot(Path(folder), 1, {'a': torch.ones(3, 3)}, {'loss': 1.})
        snapshot = (Path(folder)/'snapshots'/'epoch-00001.safetensors').read_bytes()
    yield Case('snapshot', snapshot, 'snapshots/epoch-00001.safetensors',
               lambda p: read_snapshot_images(p.parents[1])[1]['a'].tolist(), lambda d: (d/'snapshots').mkdir())
    scores = pd.DataFrame({'ID': ['a', 'b'], 'Class': ['x', 'y'], 'Dice': [.5, .25]})
    yield Case('own table', table_text(scores).encode(), 't.csv',
               lambda p: len(load_table(p, ['ID', 'Class'], ['ID'], numbers=None)))


_ROWS = [[f'{k}.png', 1, 2, 3, 4, 5, ''] for k in 'ab']


def half_packed():
    "A conversion that was interrupted after a sample"
    def source(folder):
        for k in 'ab': Image.fromarray(np.full((8, 8), ord(k), np.uint8)).save(folder/f'{k}.png')
        (folder/'p.csv').write_text('id,slo\na,a.png\nb,b.png\n')
        for k in folder.glob('*.png'): os.utime(k, (1, 1))
        return table_pairs(folder/'p.csv')

    def begin(folder):
        pairs = source(folder)
        part, plan, done = _begin_packing(pairs, folder/'out', None, _file_states(pairs), True)
        _write_rows(pairs, plan, part, done, lambda k: write_json(part/'done.json', 1), 1, True)

    def end(path):
        home, trial = path.parents[1], path.parents[1]/'trial'
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(path.parent, trial/'out.part')
        found = _open_packed(pack(table_pairs(home/'p.csv'), trial/'out', quiet=True))
        return [found.ids, found.content()]
    for k in ('plan.json', 'done.json', 'states.bin', 'ids.txt', 'slo.npy', 'digests.npy'):
        yield Case(f'half packed {k}', b'', f'out.part/{k}', end, begin)


def label_map_files():
    "The files of a prediction of volumes"
    classes = [ClassInfo(i, 25*i, k, 'layer' if i else 'background') for i, k in enumerate(EYE_CLASSES[:7])]
    masks = draw_masks(EyePlan('OD'), EyeScan(slices=4, cols=16, across=.3, between=1.))
    masks = np.minimum(masks[:, ::4], 6)
    at = np.array([[-2., y, 2., y] for y in (1.5, .5, -.5, -1.5)])
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for k in ('V1', 'V2'):
            write_label_map(home/'volumes'/f'{k}.nii.gz', LabelMap(
                k, masks, classes, Spacing(.0156, .3, 1.), 'OD', 'P1', 'volume', at, [f'{k}_{i}' for i in range(4)]))
        save_table(pd.DataFrame({'volume': ['V1', 'V2', 'V3'], 'file': ['volumes/V1.nii.gz', 'volumes/V2.nii.gz', ''],
                                 'slices': 4, 'fault': ['', '', 'a slice has no mask']}), home/'volumes.csv')
        return {p.relative_to(home).as_posix(): p.read_bytes() for p in home.rglob('*') if p.is_file()}


def spread(files):
    def write(folder):
        for k, v in files.items():
            (folder/k).parent.mkdir(parents=True, exist_ok=True)
            (folder/k).write_bytes(v)
    return write


def label_maps():
    "Masks of volumes, alone and as `predictions=` of a measurement takes them"
    files = label_map_files()
    plain = files | {'volumes/V1.nii': gzip.decompress(files['volumes/V1.nii.gz'])}

    def read(path):
        m = read_label_map(path.parent/f'{path.name.split(".")[0]}.nii.gz')
        return m.masks.shape, len(m.classes)

    def measured(path):
        home = path if path.is_dir() else next(p for p in path.parents if (p/'volumes').is_dir())
        cfg = Measure(predictions=str(home))
        volumes, faults = mapped_volumes(cfg, home)
        if path.name == 'volumes.csv': return [v.name for v in volumes], len(faults)
        for one in faults[faults.id != 'V3'].itertuples(): raise ValueError(f'{one.id}: {one.fault}')
        found = [measure_volume(v.read()) for v in volumes]
        return [m.scan.name for m in found], [len(list_measures(m)) for m in found]
    yield Case('label map', files['volumes/V1.nii.gz'], 'volumes/V1.nii.gz', read, spread(files))
    yield Case('plain label map', plain['volumes/V1.nii'], 'volumes/V1.nii',
               lambda p: read_label_map(p).masks.shape, spread(plain))
    yield Case('names of a label map', files['volumes/V1.json'], 'volumes/V1.json', read, spread(files))
    yield Case('measured label map', files['volumes/V1.nii.gz'], 'volumes/V1.nii.gz', measured, spread(files))
    yield Case('names of a measured map', files['volumes/V1.json'], 'volumes/V1.json', measured, spread(files))
    yield Case('volumes.csv', files['volumes.csv'], 'volumes.csv', measured, spread(files))


def reference_files():
    "A measurement of healthy eyes, with the eye of each moved a little"
    files, facts, rows = {}, [], []
    for i in range(20):
        scan = EyeScan(slices=5, cols=16, across=.4, between=1.4)
        infos = [ClassInfo(j, j, k, 'layer' if j else 'background') for j, k in enumerate(EYE_CLASSES)]
        masks = draw_masks(EyePlan('OD', swelling=float(i)), scan)
        m = measure_volume(SegmentedVolume(f'E{i}', masks.shape, masks, infos, spacing=Spacing(.0039, .4, 1.4),
                                           eye='OD', patient=f'P{i}'), (2., 8.))
        facts.append(measured_facts(m) | {'by': 'drawn'})
        facts[-1]['fovea']['clear'] = True
        rows.append(list_measures(m).assign(by='drawn'))
        out = io.BytesIO()
        np.savez_compressed(out, retina=m.thickness.maps['retina'], x_mm=m.places.x, y_mm=m.places.y)
        files[f'maps/drawn/E{i}.npz'] = out.getvalue()
    return files | {'measures.json': json.dumps(facts).encode(),
                    'measures.csv': table_text(pd.concat(rows)).encode()}


def references():
    "What `reference=` of a measurement reads"
    files = reference_files()

    def read(path):
        found = read_reference(next(p for p in path.parents if (p/'measures.json').is_file()))
        return len(found.eyes), len(found.sectors), sorted((k, v.shape) for k, v in found.maps.items())
    for k in ('measures.csv', 'measures.json', 'maps/drawn/E3.npz'):
        yield Case(f'reference {Path(k).name}', files[k], k, read, spread(files))


SIZES = ('volume,mm_between_rows,mm_between_columns,mm_between_slices,eye,visit,slo,slo_mm\n'
         'V1,0.0039,0.3,0.8,OD,2024-03-01,slo/V1.png,0.05\nV2,0.0039,0.3,0.8,OS,2024-03-02,slo/V1.png,0.05\n')


def sizes_and_names():
    "The table of sizes, eyes and visits of a dataset, and the private lists of patients and names"
    def set_of(folder):
        spread({'bscan/V1_0.png': image_bytes('PNG'), 'bscan/V1_1.png': image_bytes('PNG'),
                'semseg/V1_0.png': mask, 'semseg/V1_1.png': mask, 'slo/V1.png': image_bytes('PNG')})(folder)
        text = (resource_dir('data_manifests')/'Phantom_EYES.toml').read_text()
        (folder/'manifest.toml').write_text(text.replace('^(P[0-9]+)_', '^(V[0-9]+)'))
    out = io.BytesIO()
    Image.fromarray(np.repeat(np.arange(6, dtype=np.uint8)*25, 4)[:, None].repeat(20, 1)).save(out, 'PNG')
    mask = out.getvalue()

    def read(path):
        v = dataset_volumes(Measure(dataset=str(path.parent)))[0].read()
        return v.eye, v.visit, v.spacing, v.slo_mm
    yield Case('sizes of volumes', SIZES.encode(), 'volumes.csv', read, set_of)

    def with_keys(what):
        def call(path):
            before = os.environ.get('MIRAGE_KEYS')
            os.environ['MIRAGE_KEYS'] = str(path.parent)
            try: return what()
            finally: os.environ.update({'MIRAGE_KEYS': before} if before else {})
        return call
    who = Identity('17', 'Doe', '1900')
    listed = 'code,pseudonym,patient,file,sha256\nc1,P1,id 17,/a/b.vol,00\nc2,P2,id 18,/a/c.vol,01\n'
    yield Case('patients.csv', listed.encode(), 'patients.csv',
               with_keys(lambda: note_patient('c1', 'P1', who, Path('/a/b.vol'), '00')))
    names = 'pseudonym,kind,name\nqwertyuiop,image,P1_OD\nasdfghjklz,patient,P1\n'
    yield Case('names.csv', names.encode(), 'names.csv', with_keys(lambda: real_name('qwertyuiop')))
    yield Case('pseudonym.key', b'0123456789abcdef'*4 + b'\n', 'pseudonym.key',
               with_keys(lambda: pseudonyms_of(['P1'])), lambda d: (d/'pseudonym.key').touch(0o600))


def method_files():
    "The tables of a run that a comparison of methods reads"
    volumes = pd.DataFrame({'ID': ['V1', 'V2'], 'patient': ['1', '2'], 'Class': 'RNFL', 'group': 'layer',
                            'convention': 'strict', 'Dice': [.5, .25]})
    slices = pd.DataFrame({'id': ['V1_0', 'V2_0'], 'volume': ['V1', 'V2'], 'patient': ['1', '2'], 'Class': 'RNFL',
                           'true': [10, 20], 'Dice': [.5, .25]})
    pairs = pd.DataFrame({'between': 'model minus drawn', 'of': 'RNFL', 'measure': 'thickness', 'unit': 'µm',
                          'each': 'B-scan', 'patient': ['1', '2'], 'volume': ['V1', 'V2'], 'id': ['V1_0', 'V2_0'],
                          'first': [20., 21.], 'second': [22., 20.]})
    run = {'stage': 'seg_tune', 'identity': 'a'*64, 'settings': {'dataset': 'A', 'seed': 0}, 'sources': {},
           'versions': {}, 'commit': '', 'machine': 'm', 'started': 's'}
    files = {f'test_{k}.csv': table_text(v).encode() for k, v in (('volumes', volumes), ('slices', slices),
                                                                 ('pairs', pairs))}
    files |= {'run.json': json.dumps(run).encode(), 'result.json': b'{"finished": "f"}'}

    def read(path):
        r = read_runs(find_runs([str(path.parent)])[0])[0]
        return len(r.volumes), len(r.images), len(method_pairs(MethodStudy([r])))
    for k in files: yield Case(f'method {k}', files[k], k, read, spread(files))


def all_cases():
    return [*images(), *odd_images(), *texts(), *own_files(), *kept_files(), *checkpoints(), *scanners(),
            *label_maps(), *references(), *sizes_and_names(), *method_files()]


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
    old = {k: signal.signal(k, stop) for k in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)     # of computing, so that other work beside it does not count
    signal.setitimer(signal.ITIMER_REAL, 20*SECONDS)  # of waiting
    resource.setrlimit(resource.RLIMIT_AS, (pages + BYTES, before[1]))
    try: yield
    finally:
        for k in (signal.ITIMER_PROF, signal.ITIMER_REAL): signal.setitimer(k, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        for k, how in old.items(): signal.signal(k, how)


CLEAR = ValueError, FileNotFoundError, PermissionError, KeyError, OSError  # with the name of the file


def judge(case, path, whole):
    "How a reader takes a damaged file: read, refused, silent, raw or crash; and what it says"
    try:
        with limits(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = case.read(path)
    except (MemoryError, RecursionError, TooLong, SystemError) as e: return 'crash', repr(e)
    except CLEAR as e:
        named = path.name in str(e) or path.parent.name in str(e)
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
        content = case.content or path.read_bytes()
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            whole = case.read(path)  # the file itself has to be right
        for _ in range(rounds):
            kind, damaged = damage(content, rng)
            path.write_bytes(damaged)
            verdict, text = judge(case, path, whole)
            if verdict == 'other': verdict = 'silent' if kind in ('cut', 'empty', 'other') and binary(case) else 'read'
            counts[verdict] += 1
            if verdict not in ('read', 'refused'): bad.append((case.name, kind, verdict, text[:300], damaged))
    return counts, bad


def binary(case): return not case.file.endswith(('.csv', '.toml', '.txt', '.json'))
