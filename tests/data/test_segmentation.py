"Every message a user of a dataset can meet, determinism of samples, and real files"
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mirage_nb.core import resource_dir
from mirage_nb.data.audit import find_leaks, hash_table
from mirage_nb.data.files import read_image, unit_range
from mirage_nb.data.folders import list_images
from mirage_nb.data.manifest import _list_manifests, classes_of, dataset_dir, read_manifest
from mirage_nb.data.masks import read_mask, write_mask
from mirage_nb.data.segmentation import SegDataset, check_files, collate, folder_table, seg_table
from mirage_nb.recipes.classification import cls_recipe

VALUES = (0, 80, 160)
LABELS = ('Background', 'RNFL', 'Fluid')
SIZE = (48, 32)
MANIFEST = '''
title = "Tiny"
task = "segmentation"
modality = "bscan"
layout = "splits"
source = "a test"
licence = "none"
citation = "none"
get = "made by a test"
'''


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    "Dataset Tiny in MIRAGE_DATA: 3 volumes to train on, one to validate, one to test"
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    root, rng = tmp_path/'Tiny', np.random.default_rng(0)
    for split, volumes in (('train', ('P1a', 'P1b', 'P2a')), ('val', ('P3a',)), ('test', ('P4a',))):
        for d in ('bscan', 'semseg'): (root/split/d).mkdir(parents=True)
        for stem in [f'{v}_{s}' for v in volumes for s in (1, 2, 10)]:
            Image.fromarray(rng.integers(20, 200, (40, 60), np.uint8)).save(root/split/'bscan'/f'{stem}.png')
            Image.fromarray(rng.choice(np.array(VALUES, np.uint8), (40, 60))).save(root/split/'semseg'/f'{stem}.png')
    info = {str(i): {'value': v, 'label': s} for i, (v, s) in enumerate(zip(VALUES, LABELS, strict=True))}
    (root/'INFO.json').write_text(json.dumps(info))
    return root


def dataset(root, split='train', **options):
    manifest = read_manifest('Tiny')
    return SegDataset(seg_table(manifest, split), classes_of(manifest, root), **{'size': SIZE} | options)


def equal(a, b): return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


# ------------------------------------------------------------------ finding a dataset

def test_wrong_dataset_name(tiny):
    with pytest.raises(KeyError, match="no dataset 'Duke_DMY'. Did you mean 'Duke_DME'"): read_manifest('Duke_DMY')
    with pytest.raises(KeyError, match="Did you mean 'Tiny'"): read_manifest('Tny')


def test_missing_folder_says_where_and_how(tiny):
    with pytest.raises(FileNotFoundError, match=f"no folder 'GOALS' in MIRAGE_DATA={tiny.parent}. Get it: .*GOALS.zip"):
        dataset_dir(read_manifest('GOALS'))


def test_missing_toml(tmp_path):
    with pytest.raises(FileNotFoundError, match='no manifest .*X.toml'): read_manifest(tmp_path/'X.toml')


def test_folder_without_classes(tiny):
    (tiny/'INFO.json').unlink()
    with pytest.raises(FileNotFoundError, match='holds neither manifest.toml nor INFO.json'): read_manifest('Tiny')
    (tiny/'manifest.toml').write_text(MANIFEST)
    with pytest.raises(FileNotFoundError, match='INFO.json is missing, and manifest.toml names no classes'):
        classes_of(read_manifest('Tiny'), tiny)


def test_broken_info(tiny):
    (tiny/'INFO.json').write_text('{"0": ')
    with pytest.raises(ValueError, match='INFO.json is not JSON'): classes_of(read_manifest('Tiny'), tiny)
    (tiny/'INFO.json').write_text('{"0": {"value": 0, "label": "bg"}, "1": {"value": "80", "label": "RNFL"}}')
    with pytest.raises(ValueError, match="INFO.json: class 1 has the grey value '80'"):
        classes_of(read_manifest('Tiny'), tiny)


def test_own_dataset_in_any_way(tiny, tmp_path):
    "By name, by folder, by the path of a TOML file beside or away from the images"
    derived = read_manifest('Tiny')
    assert (derived.name, derived.layout, set(derived.splits)) == ('Tiny', 'splits', {'train', 'val', 'test'})
    assert read_manifest(tiny) == derived and 'Tiny' in _list_manifests()
    (tiny/'manifest.toml').write_text(MANIFEST + "patient = '^(P[0-9]+)'\nlesions = ['Fluid']")
    (tmp_path/'Tiny.toml').write_text(MANIFEST + 'title2 = 1')
    own = read_manifest('Tiny')
    assert [c.group for c in classes_of(own, tiny)] == ['background', 'layer', 'lesion']
    assert list(seg_table(own, 'train').patient.unique()) == ['P1', 'P2']
    with pytest.raises(ValueError, match="Tiny.toml: no field 'title2'. Did you mean 'title'"):
        read_manifest(tmp_path/'Tiny.toml')
    (tmp_path/'Tiny.toml').write_text(MANIFEST)
    assert dataset_dir(read_manifest(tmp_path/'Tiny.toml')) == tiny


@pytest.mark.parametrize('path', sorted(resource_dir('data_manifests').glob('*.toml')), ids=lambda p: p.stem)
def test_shipped_manifests(path):
    m = read_manifest(path)
    values = {c.value for c in m.classes}
    assert m.name == path.stem and m.citation and m.quirks
    assert m.task == 'segmentation' or m.task == 'classification' and m.labels
    if m.labels: assert cls_recipe(m.labels.recipe).recipe == m.labels.recipe
    for source, table in m.class_maps.items():
        theirs = {c.value for c in read_manifest(source).classes}
        assert set(table) == theirs and set(table.values()) <= values


def test_class_map_sends_lesions_to_invalid():
    iamd, aroi = read_manifest('Duke_iAMD_labeled'), read_manifest('AROI')
    group = {c.value: c.group for c in iamd.classes}
    for c in aroi.classes: assert (group[iamd.class_maps['AROI'][c.value]] == 'invalid') == (c.group == 'lesion')


# ------------------------------------------------------------------ files of a split

def test_missing_mask(tiny):
    (tiny/'train/semseg/P1a_2.png').unlink()
    with pytest.raises(ValueError, match=r'bscan/P1a_2.png has no partner P1a_2.png in .*train/semseg'):
        seg_table(read_manifest('Tiny'), 'train')


def test_missing_image(tiny):
    (tiny/'train/bscan/P1a_2.png').unlink()
    (tiny/'train/bscan/P2a_1.png').unlink()
    with pytest.raises(ValueError, match=r'semseg/P1a_2.png has no partner .*bscan; 2 files have none: P1a_2, P2a_1'):
        seg_table(read_manifest('Tiny'), 'train')


def test_pairs_by_id_across_formats(tiny):
    image = tiny/'train/bscan/P1a_1.png'
    x = read_image(image)
    Image.fromarray(x).save(image.with_suffix('.TIF'), format='TIFF')
    with pytest.raises(ValueError, match='have one id; keep one of them'): seg_table(read_manifest('Tiny'), 'train')
    image.unlink()
    ds = dataset(tiny)
    assert ds.ids[0] == 'P1a_1' and np.array_equal(ds.read(0)[0], x)


def test_mask_with_loss(tiny):
    mask = tiny/'train/semseg/P1a_1.png'
    Image.open(mask).save(mask.with_suffix('.jpg'))
    mask.unlink()
    with pytest.raises(ValueError, match='P1a_1.jpg cannot be a mask: it takes a format without loss'):
        seg_table(read_manifest('Tiny'), 'train')


def test_stray_files(tiny):
    for name in ('.DS_Store', 'Thumbs.db', 'desktop.ini', '._P1a_1.png'): (tiny/'train/bscan'/name).touch()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(seg_table(read_manifest('Tiny'), 'train')) == 9
    (tiny/'train/bscan/P1a_1.npy').touch()
    with pytest.warns(UserWarning, match='P1a_1.npy passed over'): list_images(tiny/'train/bscan')


def test_wrong_split(tiny):
    with pytest.raises(ValueError, match="no split 'vall'. Did you mean 'val'"):
        seg_table(read_manifest('Tiny'), 'vall')
    with pytest.raises(ValueError, match="no split 'validation'. Known: train, val, test"):
        seg_table(read_manifest('Tiny'), 'validation')
    with pytest.raises(ValueError, match='no split'): seg_table(read_manifest('Tiny'), True)


def test_empty_and_missing_split(tiny):
    for p in tiny.glob('val/*/*.png'): p.unlink()
    with pytest.raises(ValueError, match=r"split 'val' of Tiny is empty: no image in .*val/bscan"):
        seg_table(read_manifest('Tiny'), 'val')
    manifest = read_manifest('Tiny')
    for d in ('bscan', 'semseg'): (tiny/'val'/d).rmdir()
    with pytest.raises(FileNotFoundError, match=r'no folder .*val/bscan'): seg_table(manifest, 'val')
    (tiny/'val').rmdir()
    with pytest.raises(ValueError, match="Tiny has no split 'val'; it has train, test"):
        seg_table(read_manifest('Tiny'), 'val')


def test_name_without_slice(tiny):
    for d in ('bscan', 'semseg'): (tiny/'val'/d/'P3a_1.png').rename(tiny/'val'/d/'P3a.png')
    with pytest.raises(ValueError, match="'P3a' does not name a volume and a slice; it takes VOLUME_SLICE"):
        seg_table(read_manifest('Tiny'), 'val')
    assert set(folder_table(tiny/'val'/'bscan').volume) == {'P3a'}


def test_one_slice_twice(tiny):
    for d in ('bscan', 'semseg'): (tiny/'val'/d/'P3a_b01.png').write_bytes((tiny/'val'/d/'P3a_1.png').read_bytes())
    with pytest.raises(ValueError, match='are the same slice of volume P3a'): seg_table(read_manifest('Tiny'), 'val')


def test_split_without_masks(tiny):
    for p in tiny.glob('test/semseg/*'): p.unlink()
    (tiny/'test/semseg').rmdir()
    (tiny/'manifest.toml').write_text(MANIFEST)
    with pytest.raises(FileNotFoundError, match="split 'test' of Tiny takes masks, or say test_masks = false"):
        seg_table(read_manifest('Tiny'), 'test')
    (tiny/'manifest.toml').write_text(MANIFEST + 'test_masks = false')
    sample = dataset(tiny, 'test')[0]
    assert 'semseg' not in sample and sample['bscan'].shape == (1, *SIZE)
    (tiny/'manifest.toml').unlink()  # the same is found without a manifest
    assert 'semseg' not in dataset(tiny, 'test')[0]
    (tiny/'train/semseg').rename(tiny/'train/masks')
    with pytest.raises(FileNotFoundError, match="split 'train' of Tiny takes masks$"): dataset(tiny)


def test_flat_set(tiny):
    for d in ('bscan', 'semseg'): (tiny/'test'/d).rename(tiny/d)
    (tiny/'test').rmdir()
    for split in ('train', 'val'): (tiny/split).rename(tiny.parent/split)
    manifest = read_manifest('Tiny')
    assert manifest.layout == 'flat' and len(seg_table(manifest, 'test')) == 3
    with pytest.raises(ValueError, match="Tiny has no split 'train'; it has test"): seg_table(manifest, 'train')


def test_patient_leak(tiny):
    (tiny/'manifest.toml').write_text(MANIFEST + "patient = '^(P[0-9]+)'")
    for d in ('bscan', 'semseg'): (tiny/'train'/d/'P1b_1.png').rename(tiny/'test'/d/'P1b_1.png')
    tables = {s: seg_table(read_manifest('Tiny'), s) for s in ('train', 'val', 'test')}
    with pytest.warns(UserWarning, match='1 in more than one split, so scores are too good: patient P1 in train, test'):
        found = find_leaks(tables)
    assert found.to_dict('records') == [{'kind': 'patient', 'what': 'P1', 'splits': 'train, test'}]
    assert not len(find_leaks({s: tables[s] for s in ('train', 'val')}))


def test_image_leak(tiny):
    (tiny/'test/bscan/P4a_1.png').write_bytes((tiny/'train/bscan/P2a_2.png').read_bytes())
    tables = {s: seg_table(read_manifest('Tiny'), s) for s in ('train', 'val', 'test')}
    with pytest.warns(UserWarning, match='image P2a_2 = P4a_1 in train, test'): find_leaks(tables, contents=True)


# ------------------------------------------------------------------ pixels

def test_unknown_grey_value(tiny):
    mask = tiny/'train/semseg/P1a_1.png'
    y = np.array(Image.open(mask))
    y[3, 5] = y[3, 6] = 77
    Image.fromarray(y).save(mask)
    text = r'semseg/P1a_1.png holds grey value 77 \(2 pixels, first at row 3, column 5\); its classes are 0 Back.*160'
    with pytest.raises(ValueError, match=text): dataset(tiny)[0]
    with pytest.raises(ValueError, match=r'1 of 9 samples cannot be read:\n.*holds grey value 77'):
        check_files(seg_table(read_manifest('Tiny'), 'train'), classes_of(read_manifest('Tiny'), tiny))


@pytest.mark.parametrize('keep', [0, 8, 40, 0.5, 0.9], ids=str)
@pytest.mark.parametrize('kind', ['bscan', 'semseg'])
def test_damaged_png(tiny, kind, keep):
    f = tiny/'train'/kind/'P1a_1.png'
    data = f.read_bytes()
    f.write_bytes(data[:int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf'{kind}/P1a_1.png \(\d+ bytes\) cannot be read as an image: .*Copy it'):
        dataset(tiny)[0]


def test_flipped_bit(tiny):
    f = tiny/'train/bscan/P1a_1.png'
    data = bytearray(f.read_bytes())
    data[len(data)//2] ^= 1
    f.write_bytes(data)
    with pytest.raises(ValueError, match='P1a_1.png .* cannot be read as an image'): dataset(tiny)[0]


def test_colour(tiny):
    for kind in ('bscan', 'semseg'):
        f = tiny/'train'/kind/'P1a_1.png'
        x = read_image(f)
        Image.fromarray(np.stack([x, x, x], -1)).save(f)
        assert np.array_equal(read_image(f), x)
        colour = np.stack([x, x, x], -1)
        colour[7, 9, 2] ^= 1
        Image.fromarray(colour).save(f)
        with pytest.raises(ValueError, match=rf'{kind}/P1a_1.png is in colour: .* first at row 7, column 9 with'):
            dataset(tiny)[0]
        Image.fromarray(x).save(f)


def test_kinds_of_grey(tmp_path):
    "8 and 16 bit, with and without opacity, palette, in every format, are one picture"
    x = np.random.default_rng(0).integers(20, 220, (9, 14), np.uint8)
    image = Image.fromarray(x)
    want = (x - x.min()) / np.float32(int(x.max()) - int(x.min()))
    wide = x.astype(np.uint16)
    kinds = {'a.png': image, 'b.png': image.convert('RGBA'), 'c.png': image.convert('LA'), 'd.bmp': image,
             'e.png': Image.fromarray(wide * 257), 'f.tif': Image.fromarray(wide), 'g.tiff': image,
             'h.png': image.convert('P')}
    for name, kind in kinds.items():
        kind.save(tmp_path/name)
        got = unit_range(read_image(tmp_path/name))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-6, err_msg=name)
    Image.fromarray(want).save(tmp_path/'i.tif')
    with pytest.raises(ValueError, match='i.tif holds pixels of mode F'): unit_range(read_image(tmp_path/'i.tif'))
    image.save(tmp_path/'j.tif', save_all=True, append_images=[image])
    with pytest.raises(ValueError, match='j.tif holds 2 pages'): unit_range(read_image(tmp_path/'j.tif'))


def test_sixteen_bit_mask(tiny):
    f = tiny/'train/semseg/P1a_1.png'
    y = read_image(f).astype(np.uint16)
    Image.fromarray(y).save(f)
    assert np.array_equal(dataset(tiny).read(0)[1], y // 80)
    Image.fromarray(y * 4).save(f)
    with pytest.raises(ValueError, match='P1a_1.png holds grey value 640; a mask takes 0 to 255'): dataset(tiny)[0]


def test_mask_of_another_size(tiny):
    f = tiny/'train/semseg/P1a_1.png'
    Image.open(f).resize((30, 40), Image.Resampling.NEAREST).save(f)
    with pytest.raises(ValueError, match='semseg/P1a_1.png is 40 x 30, its image 40 x 60; they take one size'):
        dataset(tiny)[0]


def test_check_files_names_all(tiny):
    for k in ('P1a_1', 'P2a_2'): (tiny/'train/bscan'/f'{k}.png').write_bytes(b'')
    manifest = read_manifest('Tiny')
    with pytest.raises(ValueError, match=r'(?s)2 of 9 samples cannot be read:.*P1a_1.png.*P2a_2.png'):
        check_files(seg_table(manifest, 'train'), classes_of(manifest, tiny))
    counts = check_files(seg_table(manifest, 'val'), classes_of(manifest, tiny))
    assert list(counts.images) == [3, 3, 3] and counts.share.sum() == pytest.approx(1)


def test_masks_round_trip(tiny, tmp_path):
    classes = classes_of(read_manifest('Tiny'), tiny)
    y = np.random.default_rng(0).integers(0, 3, (30, 20))
    assert np.array_equal(read_mask(write_mask(tmp_path/'p.png', y, classes), classes), y)
    with pytest.raises(ValueError, match='p.png: class 3 of a set with classes 0 to 2'):
        write_mask(tmp_path/'p.png', y + 1, classes)


# ------------------------------------------------------------------ samples

def test_samples_depend_on_seed_epoch_id_only(tiny):
    a, b = dataset(tiny, augment=True, seed=3), dataset(tiny, augment=True, seed=3, keep_mb=0)
    for epoch in (0, 1, 5):
        for i in reversed(range(len(a))): assert equal(a[(epoch, i)], b[(epoch, i)])
    part = SegDataset(seg_table(read_manifest('Tiny'), 'train').tail(2), a.classes, size=SIZE, augment=True, seed=3)
    assert equal(part[(5, 1)], a[(5, len(a) - 1)])
    assert not torch.equal(a[(0, 0)]['bscan'], a[(1, 0)]['bscan'])
    assert not torch.equal(a[(0, 0)]['bscan'], dataset(tiny, augment=True, seed=4)[(0, 0)]['bscan'])


def test_samples_do_not_depend_on_workers(tiny):
    ds = dataset(tiny, augment=True)
    order = [(2, i) for i in range(len(ds))]
    loaders = [DataLoader(ds, batch_size=4, sampler=order, collate_fn=collate, num_workers=n) for n in (0, 2)]
    for a, b in zip(*loaders, strict=True): assert equal(a, b)


def test_global_random_state_is_untouched(tiny):
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    dataset(tiny, augment=True)[0]
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize('split', ['val', 'test'])
def test_evaluation_view_is_deterministic(tiny, split):
    ds = dataset(tiny, split)
    for i in range(len(ds)):
        a, b = ds[(0, i)], ds[(9, i)]
        assert torch.equal(a['bscan'], b['bscan']) and torch.equal(a['semseg'], b['semseg'])
        whole = torch.from_numpy(unit_range(read_image(ds.images[i])))[None, None]
        assert torch.equal(a['bscan'], torch.nn.functional.interpolate(whole, SIZE, mode='bilinear')[0])


def test_sample_and_batch_form(tiny):
    ds = dataset(tiny, augment=True)
    s = ds[(1, 2)]
    assert set(s) == {'id', 'key', 'bscan', 'semseg', 'size'} and s['size'] == (40, 60)
    assert (s['bscan'].dtype, s['semseg'].dtype) == (torch.float32, torch.uint8)
    assert 0 <= s['bscan'].min() and s['bscan'].max() <= 1 and s['semseg'].max() < 3
    b = collate([ds[0], ds[1]])
    assert b['key'].dtype == torch.int64 and b['id'] == ds.ids[:2] and b['size'] == [(40, 60)] * 2
    with pytest.raises(ValueError, match=r'size is \(64,\); it takes \(rows, columns\)'): dataset(tiny, size=(64,))


def test_kept_images_stay_in_their_budget(tiny):
    pair_mb = 2 * 40 * 60 / 2**20
    ds = dataset(tiny, keep_mb=3.5 * pair_mb)
    for i in range(len(ds)): ds[i]
    assert sorted(ds.cache.kept) == [0, 1, 2]


def test_data_hash_sees_contents(tiny):
    manifest = read_manifest('Tiny')
    before = hash_table(seg_table(manifest, 'val'))
    assert before == hash_table(seg_table(manifest, 'val').iloc[::-1])
    f = tiny/'val/semseg/P3a_1.png'
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(f)
    assert hash_table(seg_table(manifest, 'val')) != before


# ------------------------------------------------------------------ recorded and real sets

def test_manifests_take_recorded_info(golden):
    "Classes of INFO.json beside the recorded scores, whatever their labels and number"
    infos = sorted((golden/'segmentation_eval').glob('*/INFO.json'))
    assert infos
    for info in infos:
        classes = classes_of(read_manifest(info.parent.name), info.parent)
        assert [c.value for c in classes] == [c['value'] for c in json.loads(info.read_text()).values()]


def test_phantom_is_an_ordinary_set(tmp_path, monkeypatch):
    phantom = pytest.importorskip('mirage_nb.phantoms.oct')
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    manifest = read_manifest('Phantom_OCT')
    root = phantom.make_phantom_oct(tmp_path/'Phantom_OCT', patients=12, slices=2)
    tables = {s: seg_table(manifest, s) for s in manifest.splits}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert not len(find_leaks(tables, contents=True))
    assert all(v.startswith(p) and v != p for t in tables.values() for v, p in zip(t.volume, t.patient, strict=True))
    shares = check_files(tables['test'], classes_of(manifest, root))
    assert (shares.images[shares.group != 'lesion'] > 0).all()


def test_real_duke_dme(shared_data, monkeypatch):
    monkeypatch.setenv('MIRAGE_DATA', str(shared_data))
    manifest = read_manifest('Duke_DME')
    root = dataset_dir(manifest)
    classes = classes_of(manifest, root)
    assert [c.label for c in classes if c.group == 'lesion'] == ['Fluid'] and classes[0].group == 'background'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tables = {s: seg_table(manifest, s) for s in ('train', 'val', 'test')}
        assert not len(find_leaks(tables, contents=True))
    assert sum(map(len, tables.values())) == 77 and tables['train'].patient.nunique() == 5
    counts = check_files(tables['test'], classes)
    assert (counts.images[:8] == len(tables['test'])).all() and 0 < counts.share.iloc[-1] < 0.2
    sample = SegDataset(tables['train'], classes, size=(128, 128), augment=True)[(1, 3)]
    assert sample['bscan'].shape == (1, 128, 128) and len(sample['semseg'].unique()) > 5
