"Every message a user of a dataset can meet, determinism of samples, and real files"
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mirage_nb.data.audit import find_leaks
from mirage_nb.data.files import read_image, unit_range
from mirage_nb.data.folders import list_images
from mirage_nb.data.manifest import classes_of, dataset_dir, read_manifest
from mirage_nb.data.segmentation import SegDataset, check_files, collate, folder_table, load_seg_data, seg_table
from mirage_nb.data.splits import hash_splits
from mirage_nb.eval.segmentation.report import find_graders
from mirage_nb.recipes.data_options import waived
from mirage_nb.recipes.segmentation import SegRecipe
from tests.data.samples import MANIFEST

SIZE = (48, 32)


def dataset(root, split='train', **options):
    manifest = read_manifest('Tiny')
    return SegDataset(seg_table(manifest, split), classes_of(manifest, root), **{'size': SIZE} | options)


def equal(a, b): return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


# ------------------------------------------------------------------ files of a split

def test_missing_mask(tiny):
    names = ['P1a_1', 'P1a_10', 'P1a_2', 'P1b_1', 'P1b_10', 'P1b_2', 'P2a_1']
    for k in names: (tiny/f'train/semseg/{k}.png').unlink()
    with pytest.raises(ValueError) as e: seg_table(read_manifest('Tiny'), 'train')
    text = str(e.value)
    assert 'image without a mask (7):' in text and 'waive=without_mask leaves out without_mask' in text
    assert f'{tiny}/train/bscan/P1a_1.png has no mask P1a_1.png in {tiny}/train/semseg' in text
    assert 'P1b_10.png has no mask' in text and 'P1b_2.png has no mask' not in text, 'five are named'
    assert '... and 2 more' in text and '-faults.csv' in text
    assert 'Move them to a folder unlabelled/ beside the others, which 33_predict takes by images=' in text


def test_images_without_masks_are_left_out_if_that_is_asked_for(tiny):
    before = load_seg_data(read_manifest('Tiny')).tables['train']
    (tiny/'train/semseg/P1a_2.png').unlink()
    with pytest.raises(ValueError, match='P1a_2.png has no mask'): load_seg_data(read_manifest('Tiny'))
    waive = waived(SegRecipe(weights='random', waive='without_mask').waive)
    with pytest.warns(UserWarning, match='1 fault accepted'): left = load_seg_data(read_manifest('Tiny'), '', waive)
    assert set(before.id) - set(left.tables['train'].id) == {'P1a_2'} and left.tables['train'].semseg.notna().all()


def test_images_without_masks_can_be_set_aside(tiny):
    (tiny/'train/semseg/P1a_2.png').unlink()
    (tiny/'unlabelled').mkdir()
    (tiny/'train/bscan/P1a_2.png').rename(tiny/'unlabelled/P1a_2.png')
    assert 'P1a_2' not in set(load_seg_data(read_manifest('Tiny')).tables['train'].id)
    assert list(folder_table(tiny/'unlabelled').id) == ['P1a_2']


def test_missing_image(tiny):
    (tiny/'train/bscan/P1a_2.png').unlink()
    (tiny/'train/bscan/P2a_1.png').unlink()
    with pytest.raises(ValueError, match=r'(?s)mask without an image \(2\):.*semseg/P1a_2.png has no image .*bscan'
                                         r'\n.*/P2a_1.png.*Add the images'):
        seg_table(read_manifest('Tiny'), 'train')


def test_masks_that_are_all_named_otherwise(tiny):
    for p in (tiny/'train/semseg').iterdir(): p.rename(p.with_stem(f'{p.stem}_mask'))
    with pytest.raises(ValueError, match='no image has a mask of its name in .*An image is (.*).png, '
                                         r'a mask is \1_mask.png'):
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
    (tiny/'train/bscan/CNV').mkdir()
    with pytest.warns(UserWarning, match='not from the folders in it: CNV. Move'): list_images(tiny/'train/bscan')


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
    (tiny/'val/bscan/CNV').mkdir()
    with pytest.warns(UserWarning, match='not from the folders in it: CNV'), pytest.raises(ValueError, match=(
            "of its folders CNV are not looked for. Move .* up into one folder each. .*splits. train = 'bscan'")):
        seg_table(read_manifest('Tiny'), 'val')
    (tiny/'val/bscan/CNV').rmdir()
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
    with pytest.raises(FileNotFoundError, match="split 'test' of Tiny takes masks, or set test_masks = false"):
        seg_table(read_manifest('Tiny'), 'test')
    (tiny/'manifest.toml').write_text(MANIFEST + 'test_masks = false')
    sample = dataset(tiny, 'test')[0]
    assert 'semseg' not in sample and sample['bscan'].shape == (1, *SIZE)
    (tiny/'manifest.toml').unlink()  # the same is found without a manifest
    assert 'semseg' not in dataset(tiny, 'test')[0]
    (tiny/'train/semseg').rename(tiny/'train/graded')
    with pytest.raises(FileNotFoundError, match="split 'train' of Tiny takes masks$"): dataset(tiny)


def test_flat_set(tiny):
    for d in ('bscan', 'semseg'): (tiny/'test'/d).rename(tiny/d)
    (tiny/'test').rmdir()
    for split in ('train', 'val'): (tiny/split).rename(tiny.parent/split)
    manifest = read_manifest('Tiny')
    assert manifest.layout == 'flat' and len(seg_table(manifest, 'test')) == 3
    with pytest.raises(ValueError, match="Tiny has no split 'train'; it has test"): seg_table(manifest, 'train')


# ------------------------------------------------------------------ pixels

def test_unknown_grey_value(tiny):
    mask = tiny/'train/semseg/P1a_1.png'
    y = np.array(Image.open(mask))
    y[3, 5] = y[3, 6] = 77
    Image.fromarray(y).save(mask)
    text = r'semseg/P1a_1.png holds grey value 77 \(2 pixels, first at row 3, column 5\); its classes are 0 Back.*160'
    with pytest.raises(ValueError, match=text): dataset(tiny)[0]
    with pytest.raises(ValueError, match=r'(?s)1 fault in 18 files.*\nunknown mask value \(1\):\n.*holds grey'):
        check_files(seg_table(read_manifest('Tiny'), 'train'), classes_of(read_manifest('Tiny'), tiny))


def test_mask_of_another_size(tiny):
    f = tiny/'train/semseg/P1a_1.png'
    Image.open(f).resize((30, 40), Image.Resampling.NEAREST).save(f)
    with pytest.raises(ValueError, match='P1a_1.png is of 40 x 30 pixels .height x width., its image of 40 x 60'):
        dataset(tiny)[0]


def test_check_files_names_all(tiny):
    for k in ('P1a_1', 'P2a_2'): (tiny/'train/bscan'/f'{k}.png').write_bytes(b'')
    manifest = read_manifest('Tiny')
    with pytest.raises(ValueError, match=r'(?s)2 faults in 18 files.*empty file \(2\):.*P1a_1.png.*P2a_2.png'):
        check_files(seg_table(manifest, 'train'), classes_of(manifest, tiny))
    counts = check_files(seg_table(manifest, 'val'), classes_of(manifest, tiny))
    assert list(counts.images) == [3, 3, 3] and counts.share.sum() == pytest.approx(1)


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


# ------------------------------------------------------------------ recorded and real sets

@pytest.mark.slow
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


# ------------------------------------------------------------------ folders without splits, or without val

@pytest.fixture
def loose(tiny):
    "MySet/images and MySet/masks of six volumes of three slices, without splits"
    root = tiny.parent/'MySet'
    for old, new in (('bscan', 'images'), ('semseg', 'masks')):
        (root/new).mkdir(parents=True)
        for p in tiny.glob(f'*/{old}/*.png'): shutil.copy(p, root/new/p.name)
        for p in tiny.glob(f'val/{old}/*.png'): Image.open(p).rotate(180).save(root/new/p.name.replace('P3a', 'P5a'))
    shutil.copy(tiny/'INFO.json', root)
    return root


def where(data): return {k: s for s, t in data.tables.items() for k in t.id}


def test_images_and_masks_side_by_side_are_divided_by_volume(loose):
    with pytest.warns(UserWarning, match='MySet: splits are drawn by volume, because no patient is known'):
        data = load_seg_data(read_manifest('MySet'), '')
    assert {s: (t.volume.nunique(), len(t)) for s, t in data.tables.items()} == {'train': (4, 12), 'val': (1, 3),
                                                                              'test': (1, 3)}
    assert data.drawn == 'drawn by volume (6): 70 % train, 15 % val, 15 % test' and not len(data.leaks)
    for split, t in data.tables.items():
        assert set(t.split) == {split} and [p.name for p in t.bscan] == [p.name for p in t.semseg]
        sample = SegDataset(t, data.classes, size=SIZE)[0]
        assert sample['bscan'].shape == (1, *SIZE) and sample['semseg'].shape == SIZE
    plain = load_seg_data(read_manifest('MySet'))
    assert list(plain.tables) == ['test'] and len(plain.tables['test']) == 18, 'an evaluation scores all of it'
    assert plain.sha256 != data.sha256


@pytest.mark.filterwarnings('ignore:MySet')
def test_folds_test_every_image_once(loose):
    found = [load_seg_data(read_manifest(loose), f'fold {k} of 3') for k in (1, 2, 3)]
    tested = [k for d in found for k in d.tables['test'].id]
    assert sorted(tested) == sorted(p.stem for p in (loose/'images').iterdir())
    assert len({d.sha256 for d in found}) == 3 == len({hash_splits(d.tables) for d in found})
    assert where(load_seg_data(read_manifest(loose), 'fold 2 of 3')) == where(found[1])
    assert where(load_seg_data(read_manifest(loose), 'fold 2 of 3, seed 1')) != where(found[1])


def test_two_eyes_of_one_patient_stay_together(loose):
    (loose/'manifest.toml').write_text(MANIFEST.replace('"splits"', '"flat"') + "patient = '^(P[0-9]+)'")
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        data = load_seg_data(read_manifest('MySet'), '0.4/0.3/0.3')
    assert data.drawn == 'drawn by patient (5): 40 % train, 30 % val, 30 % test'
    assert pd.concat(data.tables).groupby('patient').split.nunique().max() == 1
    with pytest.raises(ValueError, match='6 folds take 6 patients or more; there are 5'):
        load_seg_data(read_manifest('MySet'), 'fold 1 of 6')


def test_missing_val_is_drawn_from_train(tiny):
    shutil.rmtree(tiny/'val')
    with pytest.warns(UserWarning, match='drawn by volume'): data = load_seg_data(read_manifest('Tiny'), '')
    assert data.drawn == 'drawn by volume (4): 1 of the 3 in train became val, which was missing'
    assert set(data.tables['test'].volume) == {'P4a'} and list(data.tables) == ['train', 'val', 'test']
    with pytest.raises(ValueError, match="Tiny has no split 'val'"): seg_table(read_manifest('Tiny'), 'val')
    (tiny/'manifest.toml').write_text(MANIFEST)  # a manifest that says 'splits' does not change this
    with pytest.warns(UserWarning): assert where(load_seg_data(read_manifest('Tiny'), '')) == where(data)
    assert list(load_seg_data(read_manifest('Tiny')).tables) == ['train', 'test'], 'an evaluation draws nothing'


def test_own_splits_stay_unless_others_are_asked_for(tiny):
    own, asked = load_seg_data(read_manifest('Tiny')), load_seg_data(read_manifest('Tiny'), '')
    assert asked.sha256 == own.sha256 and not asked.drawn
    with pytest.warns(UserWarning): again = load_seg_data(read_manifest('Tiny'), 'fold 1 of 5')
    assert sorted(where(again)) == sorted(where(own)) and where(again) != where(own)


@pytest.mark.filterwarnings('ignore:Tiny')
def test_images_without_masks_are_not_learnt_from(tiny):
    shutil.rmtree(tiny/'test'/'semseg')
    data = load_seg_data(read_manifest('Tiny'), 'fold 1 of 3')
    assert data.drawn.endswith('; 3 images without masks are left out') and 'P4a_1' not in where(data)
    for split in ('train', 'val'): shutil.rmtree(tiny/split)
    (tiny/'test'/'bscan').rename(tiny/'bscan')
    (tiny/'test').rmdir()
    with pytest.raises(ValueError, match='Tiny has no masks, so there is nothing to learn from'):
        load_seg_data(read_manifest('Tiny'), '')


def test_names_without_slices(loose):
    "Where no name has one, every image is a volume; where all are of one volume nothing can be divided"
    for k in ('images', 'masks'):
        for i, p in enumerate(sorted((loose/k).iterdir())): p.rename(p.with_name(f'eye{i:02}.png'))
    with pytest.warns(UserWarning, match='drawn by image'): data = load_seg_data(read_manifest('MySet'), '')
    assert [len(t) for t in data.tables.values()] == [12, 3, 3]
    for k in ('images', 'masks'):
        for p in sorted((loose/k).iterdir()): p.rename(p.with_name(p.name.replace('eye', 'img_')))
    with pytest.raises(ValueError, match="all 18 images are slices of one volume, 'img', and one patient cannot"):
        load_seg_data(read_manifest('MySet'), '')


def test_other_graders_of_masks(loose):
    shutil.copytree(loose/'masks', loose/'masks_second')
    table = load_seg_data(read_manifest('MySet')).tables['test']
    assert find_graders(table) == {'second': loose/'masks_second'}
