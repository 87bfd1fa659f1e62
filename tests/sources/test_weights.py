"The tables of weights and relations are whole, and weights are used by their names"
import json

import pytest
import torch
from jsonschema import Draft7Validator
from safetensors.torch import save_file

from mirage_nb.core import resource_dir
from mirage_nb.data.manifest import read_manifest
from mirage_nb.eval.verdicts import recipe_verdicts
from mirage_nb.models.checkpoints import load_weights, read_checkpoint
from mirage_nb.models.loading import load_model
from mirage_nb.models.zoo import build_encoder, encoder_record, weights_file
from mirage_nb.recipes.classification import cls_recipe
from mirage_nb.recipes.settings import override
from mirage_nb.sources.overlaps import _known_relations, find_overlaps
from mirage_nb.sources.weights import _weights_schema, known_weights
from mirage_nb.storage import read_toml
from mirage_nb.tasks.classification import _input_spec
from mirage_nb.tasks.settings import choose_settings

FOLDER = resource_dir('data_manifests')
MANIFESTS = {p.stem for p in FOLDER.glob('*.toml')}
ELSEWHERE = {'ImageNet', 'RSNA', 'OCTMNIST', 'Kermany_v3', 'OCT-C8', 'NEH-UT', 'JSRT', 'PadChest', 'Open-I', 'REFUGE'}


@pytest.fixture
def home(tmp_path, monkeypatch):
    "Folder of fetched weights"
    monkeypatch.setenv('MIRAGE_WEIGHTS', str(tmp_path))
    return tmp_path


def test_schema_is_up_to_date():
    written = json.loads((FOLDER/'weights'/'weights.schema.json').read_text())
    assert written == json.loads(json.dumps(_weights_schema())), \
        'python -m mirage_nb.sources.weights > data_manifests/weights/weights.schema.json'
    for path in (FOLDER/'weights').glob('*.toml'):
        assert not list(Draft7Validator(written).iter_errors(read_toml(path))), path


@pytest.mark.slow
def test_tables_name_what_there_is():
    found = known_weights().values()
    for model in {w.model for w in found} - {''}: encoder_record(model)
    assert all(w.licence and w.citation and (w.page or w.file.address) for w in found)
    seen = {k for w in found for k in (*w.trained_on, w.tuned_on)} | {k for r in _known_relations() for k in r.sets}
    assert seen - {''} <= MANIFESTS | ELSEWHERE
    assert len({w.kept_as for w in found}) == len(found)


def test_dataset_of_a_path_and_file_of_a_published_name():
    assert [o.shared for o in find_overlaps('/data/medical_mae_vit_s.pth', '/data/NIH_ChestXray14')] == ['images']
    assert [o.shared for o in find_overlaps('medical_mae_vit_b', 'MIMIC_CXR', 'MIMIC_CXR')] == ['images']
    assert 'learnt from COVIDx, which shares images with NIH_ChestXray14' in ' '.join(
        o.text for o in find_overlaps('medical_mae_vit_s_covidx', 'NIH_ChestXray14'))
    assert find_overlaps('MIRAGE-Base', 'Kermany') == []  # no source states what it was trained on


def test_verdict_of_a_run():
    base = cls_recipe('medical_mae_finetune_vit_s')
    cfg = override(base, dataset='NIH_ChestXray14', weights='medical_mae_vit_s_nih', baselines=True)
    texts = [v.text for v in recipe_verdicts(cfg) if v.level == 'warning']
    assert texts == ['medical_mae_vit_s_nih was fine-tuned on NIH_ChestXray14, with its labels: a score on those '
                     'images says nothing about new ones']


def test_hub_form_of_mirage(home):
    "A file as the hub has it: safetensors, and the names of all tensors begin with the name of the wrapper's attribute"
    torch.manual_seed(0)
    model = build_encoder('mirage_tiny', modalities=('bscan', 'slo'))
    state = {f'model.{k}': v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, home/'MIRAGE-Base-hub.safetensors')
    other = build_encoder('mirage_tiny', modalities=('bscan', 'slo'))
    report = load_weights(other, read_checkpoint(weights_file('MIRAGE-Base-hub')))
    assert not report.new and not report.unused
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())
    loaded = load_model('MIRAGE-Base-hub')
    assert torch.equal(loaded.model.state_dict()['global_tokens'], model.global_tokens) and loaded.mean is None


def test_error_shows_the_command(home):
    with pytest.raises(FileNotFoundError, match='weights MIRAGE-Large are not in MIRAGE_WEIGHTS=.*Fetch them: '
                                                'python -m mirage_nb.data.fetch MIRAGE-Large'):
        choose_settings('seg_tune', {'dataset': 'Phantom_OCT', 'model': 'mirage_large', 'weights': 'MIRAGE-Large'})
    (home/'RETFound_mae_natureOCT.pth').write_text('<!DOCTYPE html><html><title>Sign in')
    with pytest.raises(ValueError, match='RETFound_mae_natureOCT.pth holds no weights. It is a web page.*'
                                         'fetch the file: mirage-nb fetch RETFound_mae_natureOCT --accept'):
        load_model('RETFound_mae_natureOCT')


def test_images_are_normalised_as_the_weights_say():
    cfg = override(cls_recipe('cls_small'), model='vit_small_patch16', dataset='OCTID', norm='')
    manifest = read_manifest('OCTID')
    assert _input_spec(override(cfg, weights='RETFound-Green'), manifest).mean == (.5,)*3
    assert _input_spec(override(cfg, weights='random'), manifest).mean == (0.485, 0.456, 0.406)
