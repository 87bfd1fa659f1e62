"A dataset is where the user says, and no file of it vanishes or is counted twice, whatever its name"
import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mirage_nb.commands.check import check_dataset
from mirage_nb.data.chest.readers import read_chest
from mirage_nb.data.classification import load_labelled
from mirage_nb.data.faults import DataFaults
from mirage_nb.data.folders import match_masks
from mirage_nb.data.image_index import index_images
from mirage_nb.data.manifest import classes_of, dataset_dir, read_manifest
from mirage_nb.data.paired import folder_pairs, table_pairs
from mirage_nb.data.segmentation import SegDataset, load_seg_data, seg_table
from mirage_nb.data.unlabelled import unlabelled_images
from mirage_nb.eval.segmentation.report import score_folder
from mirage_nb.recipes.pretraining import MAERecipe
from mirage_nb.tasks.image_sets import load_image_set
from tests.data.samples import MANIFEST

NAS = ('@eaDir/{}/SYNOFILE_THUMB_M.jpg', '#recycle/{}', '._{}', '.DS_Store', 'Thumbs.db', '__MACOSX/._{}',
       '.@__thumb/{}', '$RECYCLE.BIN/{}', '@Recycle/{}', 'lost+found/{}')


def nfd(text): return unicodedata.normalize('NFD', text)


def nfc(text): return unicodedata.normalize('NFC', text)


def picture(path, seed=0, size=(24, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, np.uint8)).save(path)


def leave_behind(folder):
    "What a NAS, an archive and systems leave beside each image"
    for p in [p for p in folder.rglob('*') if p.is_file()]:
        for name in NAS:
            left = p.parent/name.format(p.name)
            if not left.exists(): picture(left.with_suffix('.jpg'), 1, (9, 9)); left.with_suffix('.jpg').rename(left)


@pytest.fixture
def eyes(tmp_path, monkeypatch):
    "Class folders with splits"
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    monkeypatch.setenv('MIRAGE_RUNS', str(tmp_path/'runs'))
    names = [(s, c, k) for s in ('train', 'val', 'test') for c in ('AMD', 'normal') for k in range(2)]
    for i, (s, c, k) in enumerate(names): picture(tmp_path/'Eyes'/s/c/f'{c}_{s}{k}.png', i)
    return tmp_path/'Eyes'


def test_a_linked_dataset_split_and_list_of_classes_are_those_of_the_user(tiny, tmp_path, monkeypatch):
    other = tmp_path/'store'/'v1'
    shutil.copytree(tiny, other)
    for p in other.rglob('P*.png'): p.rename(p.with_name('X' + p.name))
    mine = tmp_path/'mine'
    mine.mkdir()
    (mine/'INFO.json').symlink_to(other/'INFO.json')
    for s in ('train', 'val'): shutil.copytree(tiny/s, mine/s)
    (mine/'test').symlink_to(other/'test')
    (tmp_path/'linked').symlink_to(mine)
    for name in ('mine', 'linked', tmp_path/'linked', mine):
        manifest = read_manifest(name)
        assert manifest.name == Path(name).name and dataset_dir(manifest) == tmp_path/Path(name).name
        data = load_seg_data(manifest)
        assert [t.id[0] for t in data.tables.values()] == ['P1a_1', 'P3a_1', 'XP4a_1']
        assert str(data.tables['test'].bscan[0]).startswith(str(tmp_path/Path(name).name))
    (other/'manifest.toml').write_text(MANIFEST)
    (mine/'manifest.toml').symlink_to(other/'manifest.toml')
    monkeypatch.chdir(tmp_path)
    for name in (mine/'manifest.toml', tmp_path/'linked'/'manifest.toml', f'../{tmp_path.name}/linked/manifest.toml'):
        manifest = read_manifest(name)
        assert (manifest.name, seg_table(manifest, 'train').id[0]) == (Path(name).parent.name, 'P1a_1')


def test_a_linked_image_keeps_the_name_that_the_user_gave(tmp_path):
    picture(tmp_path/'store'/'0001.png')
    (tmp_path/'patient7.png').symlink_to(tmp_path/'store'/'0001.png')
    assert unlabelled_images(tmp_path/'patient7.png').id.tolist() == ['patient7']
    (tmp_path/'store'/'list.csv').write_text('file\npatient7.png\n')
    (tmp_path/'list.csv').symlink_to(tmp_path/'store'/'list.csv')
    assert unlabelled_images(tmp_path/'list.csv').image.tolist() == [tmp_path/'patient7.png']


def test_prediction_of_a_dataset_takes_its_images_alone(tmp_path):
    for k in ('bscan', 'slo', 'bscanlayermap', 'semseg'): picture(tmp_path/'Own'/'test'/k/'a.png')
    picture(tmp_path/'slo'/'a.png')
    with pytest.warns(UserWarning, match='bscanlayermap/, semseg/, slo/ passed over'):
        assert unlabelled_images(tmp_path).id.tolist() == ['Own/test/bscan/a', 'slo/a'], 'slo without bscan is images'


def test_decomposed_letters_find_composed_ones(tiny, eyes, tmp_path):
    for p in list((tiny/'train').rglob('P1a_1.png')):
        form = nfd if p.parent.name == 'bscan' else nfc
        p.rename(p.with_name(form('Müller_1.png')))
    manifest = read_manifest('Tiny')
    table, classes = seg_table(manifest, 'train'), classes_of(manifest, tiny)
    assert nfc('Müller_1') in set(table.id) and len(table) == 9
    predictions = tmp_path/'out'
    predictions.mkdir()
    for k, m in zip(table.id, table.semseg, strict=True): shutil.copy(m, predictions/nfd(f'{k}.png'))
    assert score_folder(table, predictions, classes).means['Dice, mean'] == 1
    for s, form in (('train', nfd), ('val', nfc), ('test', nfd)): (eyes/s/'normal').rename(eyes/s/form('gesund für'))
    assert load_labelled(read_manifest('Eyes')).classes == ('AMD', nfc('gesund für'))
    eyes.rename(tmp_path/nfd('Züri'))
    assert load_labelled(read_manifest(nfc('Züri'))).classes[0] == 'AMD'
    home = tmp_path/nfd('Bücher')
    for k in ('bscan', 'slo'): picture(home/k/nfd('ä.png'))
    (home/'list.csv').write_text(nfc('id,bscan,slo\nä,bscan/ä.png,slo/ä.png\n'), encoding='utf-8')
    assert table_pairs(home/'list.csv', ('bscan', 'slo')).plane('slo', 0).shape == (24, 32)
    assert folder_pairs(home, ('bscan', 'slo')).ids == [nfc('ä')]
    assert unlabelled_images(home/'list.csv', 'bscan').image[0].is_file()
    picture(home/'slo'/nfc('ä.png'))
    with pytest.raises(ValueError, match='have one id'): folder_pairs(home, ('slo',))


@pytest.mark.skipif(os.name != 'posix', reason='names are bytes on POSIX alone')
def test_a_name_in_an_old_encoding_is_refused_and_named(tiny, eyes, tmp_path):
    def pretrain(): return load_image_set(str(tmp_path/'tree'), 64, MAERecipe(dataset=str(tmp_path/'tree')))
    picture(tmp_path/'tree'/'b_1.png')
    for folder, read in ((tiny/'train'/'bscan', lambda: seg_table(read_manifest('Tiny'), 'train')),
                         (eyes/'train'/'AMD', lambda: load_labelled(read_manifest('Eyes'))),
                         (tmp_path/'tree', pretrain)):
        picture(folder/'a_1.png')
        try: os.rename(folder/'a_1.png', os.fsencode(folder) + b'/M\xfcller_1.png')
        except OSError: pytest.skip('this file system takes UTF-8 alone')
        with pytest.raises(ValueError, match=r"1 name in another encoding than UTF-8, .* 'Müller_1.png'"): read()
    with pytest.warns(UserWarning, match='1 name in another encoding'):
        data = load_labelled(read_manifest('Eyes'), ('unreadable',))
    assert len(data.splits['train']) == 4, 'waived, it is left out, and the others are read'
    with pytest.warns(UserWarning, match=r'1 fault accepted.\nname in another encoding \(1\)'):
        kept = load_image_set(str(tmp_path/'tree'), 64, MAERecipe(dataset=str(tmp_path/'tree'), waive='unreadable'))
    assert len(kept.train) == 1
    with pytest.warns(UserWarning, match='1 name in another encoding .* They are left out'):
        found = unlabelled_images(eyes/'train'/'AMD').id.tolist()
    assert found == ['AMD_train0', 'AMD_train1'], 'the others are predicted'


@pytest.mark.skipif(os.name != 'posix', reason='names are bytes on POSIX alone')
def test_a_prediction_in_an_old_encoding_is_named_and_the_others_are_matched(tmp_path):
    for k in ('a_1.png', 'b_1.tif'): picture(tmp_path/k)
    try: os.rename(tmp_path/'a_1.png', os.fsencode(tmp_path) + b'/M\xfcller_1.png')
    except OSError: pytest.skip('this file system takes UTF-8 alone')
    with pytest.warns(UserWarning, match='1 name in another encoding .* They are left out'):
        assert match_masks(tmp_path, ['Müller_1', 'b_1']) == {'b_1': tmp_path/'b_1.tif'}


@pytest.mark.parametrize('of_images,of_masks', [('.PNG', '.png'), ('.tif', '.PNG'), ('.jpg', '.TIFF')])
def test_partners_of_another_format(tiny, of_images, of_masks):
    for p in [p for p in tiny.rglob('*.png')]:
        Image.open(p).save(p.with_suffix(of_images if p.parent.name == 'bscan' else of_masks))
        if p.suffix != (of_images if p.parent.name == 'bscan' else of_masks): p.unlink()
    assert [len(t) for t in load_seg_data(read_manifest('Tiny')).tables.values()] == [9, 3, 3]


def test_a_table_names_files_that_differ_in_suffix_alone(eyes, tmp_path):
    head = '\n'.join(f'{k} = "x"' for k in ('title', 'modality', 'source', 'licence', 'citation', 'get'))
    (eyes/'manifest.toml').write_text(f'{head}\ntask = "classification"\nlayout = "table"\n[labels]\ntable = "t.csv"\n'
                                      'image = "{file}"\nlabel = "dx"\nsplit = "split"\n')
    files = sorted(p.relative_to(eyes) for p in eyes.rglob('*.png'))
    rows = [(str(p), p.parts[1], p.parts[0]) for p in files]
    pd.DataFrame(rows, columns=['file', 'dx', 'split']).to_csv(eyes/'t.csv', index=False)
    for i, p in enumerate(files):
        Image.open(eyes/p).save((eyes/p).with_suffix(('.PNG', '.tif', '.jpg')[i % 3])); (eyes/p).unlink()
    data = load_labelled(read_manifest('Eyes'))
    assert len(data.table) == 12 and all(p.is_file() for p in data.table.image)
    assert unlabelled_images(eyes/'t.csv').image[0].is_file()
    (eyes/files[0].with_suffix('.bmp')).touch(); (eyes/files[0].with_suffix('.tif')).touch()
    (eyes/files[0]).with_suffix('.PNG').unlink()
    with pytest.raises(DataFaults, match='1 fault in 12 files'): load_labelled(read_manifest('Eyes'))


@pytest.mark.parametrize('names', [('images', 'masks'), ('Images', 'Masks'), ('imgs', 'labels'), ('image', 'gt')])
def test_images_and_masks_are_no_classes(tmp_path, names, monkeypatch):
    monkeypatch.setenv('MIRAGE_DATA', str(tmp_path))
    for top in (tmp_path/'Flat', tmp_path/'Split'/'train'):
        for k in names: picture(top/k/'a_1.png')
    for name in ('Flat', 'Split'):
        with pytest.raises(FileNotFoundError, match='neither manifest.toml nor INFO.json'): read_manifest(name)
    if names[1].lower() != 'masks': return
    for name in ('Flat', 'Split'):
        info = {str(i): {'value': i, 'label': f'c{i}'} for i in range(3)}
        (tmp_path/name/'INFO.json').write_text(json.dumps(info))
        manifest = read_manifest(name)
        assert manifest.task == 'segmentation' and len(seg_table(manifest, next(iter(manifest.splits)))) == 1
    with pytest.warns(UserWarning, match=f'{names[1]}/ passed over'): found = unlabelled_images(tmp_path/'Flat')
    assert found.id.tolist() == [f'{names[0]}/a_1']


def test_images_in_folders_of_a_class_count_and_other_kinds_are_an_error(eyes):
    for s in ('train', 'val', 'test'):
        for i, p in enumerate(sorted((eyes/s/'normal').iterdir())):
            (p.parent/f'{s}{i}').mkdir()
            p.rename(p.parent/f'{s}{i}'/'scan.png')
    with pytest.warns(UserWarning, match='of folders in a class are of that class: normal/test0, normal/test1'):
        data = load_labelled(read_manifest('Eyes'))
    assert data.counts().to_numpy().tolist() == [[2, 2, 2]]*2 and 'train0/scan' in set(data.table.id)
    for p in (eyes/'train'/'normal').rglob('*.png'): p.rename(p.with_suffix('.jp2'))
    with pytest.raises(ValueError, match=r'train/normal holds 2 files and no image: scan.jp2, scan.jp2; images end in'):
        load_labelled(read_manifest('Eyes'))
    assert any('normal holds 2 files and no image' in p for p in check_dataset('Eyes').problems)
    for p in (eyes/'train'/'normal').rglob('*.jp2'): p.rename(p.with_suffix('.e2e'))
    with pytest.raises(ValueError, match='holds 2 files and no image; images end in .*mirage-nb import FOLDER'):
        load_labelled(read_manifest('Eyes'))  # a scan may have the name of its patient



def test_scans_beside_class_folders_are_told_without_their_names(eyes):
    for name in ('Jane_Doe.vol', 'notes.docx'): (eyes/'train'/name).write_bytes(b'x')
    with pytest.warns(UserWarning) as seen: assert len(load_labelled(read_manifest('Eyes')).table) == 12
    said = ' '.join(str(w.message) for w in seen)
    assert '1 file of scanners (1 vol) not read: unread_' in said and 'notes.docx ignored' in said
    assert 'Jane' not in said
    with pytest.raises(ValueError, match=r'(?s)waive=scans leaves.*file of a scanner among images \(1\)') as e:
        load_labelled(read_manifest('Eyes'), ())
    assert 'Jane' not in str(e.value)
    assert any('file of a scanner among images (1)' in p for p in check_dataset('Eyes').problems)


def test_what_a_nas_leaves_behind_is_not_learnt_from(tiny, eyes, tmp_path):
    counts = {k: len(t) for k, t in load_seg_data(read_manifest('Tiny')).tables.items()}
    for k in ('bscan', 'slo'): picture(tmp_path/'pairs'/k/'a.png')
    picture(tmp_path/'NIH'/'images'/'00000001_000.png')
    (tmp_path/'NIH'/'Data_Entry_2017.csv').write_text('Image Index,Finding Labels,Patient ID,View Position\n'
                                                      '00000001_000.png,No Finding,1,PA\n')
    picture(tmp_path/'tree'/'a'/'b.png')
    for folder in (tiny, eyes, tmp_path/'pairs', tmp_path/'NIH', tmp_path/'tree'): leave_behind(folder)
    assert {k: len(t) for k, t in load_seg_data(read_manifest('Tiny')).tables.items()} == counts
    data = load_labelled(read_manifest('Eyes'))
    assert data.classes == ('AMD', 'normal') and len(data.table) == 12
    assert check_dataset('Eyes').facts['images'] == '12'
    assert folder_pairs(tmp_path/'pairs', ('bscan', 'slo')).ids == ['a']
    assert len(read_chest('NIH_ChestXray14', tmp_path/'NIH', val=0, test=0)) == 1
    assert [index_images(tmp_path/'tree', tmp_path/'x.safetensors').name(i) for i in range(1)] == ['a/b.png']
    assert len(index_images(tmp_path/'tree', tmp_path/'x.safetensors')) == 1
    assert unlabelled_images(tmp_path/'tree').id.tolist() == ['a/b']
    assert SegDataset(seg_table(read_manifest('Tiny'), 'train'), classes_of(read_manifest('Tiny'), tiny), size=(8, 8))
