"Options: types, ranges and choices are checked together, and each has its meaning"
import json
import pickle
import subprocess
import sys
from dataclasses import asdict, fields, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError

from mirage_nb import recipes
from mirage_nb.recipes.base import TrainingRecipe
from mirage_nb.recipes.classification import _TUNED_BY, CLS_RECIPES, ClsEval, ClsRecipe, FewShot, cls_recipe
from mirage_nb.recipes.prediction import Predict
from mirage_nb.recipes.pretraining import PRETRAIN_RECIPES, MAERecipe, MultiMAERecipe, pretrain_recipe
from mirage_nb.recipes.segmentation import SEG_RECIPES, SegEval, SegRecipe
from mirage_nb.recipes.settings import Options, list_options, option_comments, override, settings_table

KINDS = [SegRecipe, ClsRecipe, MultiMAERecipe, MAERecipe, FewShot, SegEval, Predict, ClsEval]
RECIPES = SEG_RECIPES | CLS_RECIPES | PRETRAIN_RECIPES


def test_all_faults_at_once(execute):
    "Through a notebook, as a user meets them"
    with pytest.raises(ValueError) as e:
        execute('seg_tune', epochs=0, lr='1e-3', precision='fp8', accumulate=True, clip=-1, size=[64, 64, 3],
                datset='A')
    assert str(e.value).splitlines()[-7:] == [
        'epochs is 1 or more, not 0', 'clip is above 0, not -1', 'accumulate takes a whole number, got True',
        "no precision 'fp8'. Did you mean 'fp32'? Known: auto, fp32, bf16, fp16",
        'size takes one number or [rows, columns], above 0, not [64, 64, 3]', "lr takes a number, got '1e-3' (text)",
        "no parameter 'datset'. Did you mean 'dataset'? Known: " + ', '.join(f.name for f in fields(SegRecipe))]


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_survives_its_file(name):
    "A worker process builds the recipe from JSON; submitit pickles it"
    r = RECIPES[name]
    assert r.recipe == name and type(r)(**json.loads(json.dumps(asdict(r)))) == r == pickle.loads(pickle.dumps(r))
    with pytest.raises(AttributeError): r.seed = 1


@pytest.mark.parametrize('kind', KINDS, ids=lambda k: k.__name__)
def test_every_option_has_a_meaning_and_a_place(kind):
    names, notes = [f.name for f in fields(kind)], option_comments(kind)
    assert sorted(list_options(kind)) == sorted(names) == sorted(notes)
    assert not [k for k, v in notes.items() if '=' in v or not v.strip() or len(v) > 110]
    table = settings_table(kind(), {names[0]: 'x', names[-1]: None})
    assert table['set by'].eq('parameter').sum() == 1 and table.meaning.to_dict() == {k: notes[k] for k in table.index}


def test_report_begins_with_the_subject():
    assert list_options(SegRecipe)[:5] == ['dataset', 'recipe', 'model', 'weights', 'head']
    small = override(SEG_RECIPES['seg_small'], epochs=3)
    shown = settings_table(small, {'epochs': 3, 'lr': None})
    assert shown.loc['epochs', ['value', 'set by']].tolist() == ['3', 'parameter']
    assert shown.loc['lr', 'set by'] == 'recipe'


@pytest.mark.parametrize('kind', [SegRecipe, ClsRecipe, MultiMAERecipe, MAERecipe], ids=lambda k: k.__name__)
def test_trainings_share_their_options(kind):
    shared = [f.name for f in fields(TrainingRecipe)]
    assert [f.name for f in fields(kind)][:len(shared)] == shared
    for wrong, text in (({'seed': 1.5}, 'seed takes a whole number, got 1.5'),
                        ({'workers': -1}, 'workers is 0 or more, not -1'),
                        ({'weights': 3}, 'weights takes text, got 3'),
                        ({'final_lr': 'x'}, "final_lr takes a number, got 'x' (text)"),
                        ({'weight_decay': float('inf')}, 'weight_decay is a finite number, not inf')):
        with pytest.raises(ValueError) as e: kind(**wrong)
        assert str(e.value) == text
    assert kind(final_lr=0) == kind(final_lr=0.)


def test_rate_of_a_probe_is_not_that_of_an_encoder():
    "What cls_small takes for a head alone would destroy an encoder"
    small = CLS_RECIPES['cls_small']
    with pytest.raises(ValueError, match='lr is 0.1, a rate for a head alone, and tune=full .* as lr=1e-3'):
        override(small, tune='full')
    assert override(small, tune='full', lr=1e-3).lr == 1e-3 and override(small, epochs=3).lr == 0.1


def test_conflicts_are_listed_together():
    with pytest.raises(ValueError) as e:
        ClsRecipe(tune='full', epochs=0, ema=.9, accumulate=2, mixup=.5, repeated_augmentation=2)
    assert [k.split()[0] for k in str(e.value).splitlines()] == ['epochs', 'mixup', 'ema']


@pytest.mark.parametrize('name', [*SEG_RECIPES, *CLS_RECIPES])
def test_recipe_for_pretrained_weights_refuses_to_start_without(name):
    "As a job, that is with a dataset; a recipe that names its weights starts"
    recipe = (SEG_RECIPES | CLS_RECIPES)[name]
    if recipe.weights: assert override(recipe, dataset='MySet').weights in ('random', 'mirage_tiny')
    else:
        with pytest.raises(ValueError, match=f'recipe {name} is made for .*, and no weights are given. '
                           f'weights=NAME_OR_FILE .*; weights=random trains {recipe.model} from random initialisation'):
            override(recipe, dataset='MySet')
        for given in ('random', 'w.pth'): assert override(recipe, dataset='MySet', weights=given).weights == given


@pytest.mark.parametrize(('stage', 'dataset', 'more'), [
    ('seg_tune', 'Duke_DME', {}), ('cls_tune', 'OCTID', {}), ('cls_tune', 'NIH_ChestXray14', {}),
    ('cls_tune', 'COVIDx', {'recipe': 'uspec_finetune'}), ('few_shot', 'OCTID', {'recipe': 'cls_probe_mirage'})])
def test_notebook_asks_for_weights_before_it_reads_data(execute, stage, dataset, more):
    "The datasets are not there, which would be an error of its own"
    with pytest.raises(ValueError, match='is made for .*and no weights are given'):
        execute(stage, dataset=dataset, **more)
    with pytest.raises(FileNotFoundError, match=dataset): execute(stage, dataset=dataset, weights='random', **more)


def test_none_leaves_the_value_of_the_recipe():
    r = override(pretrain_recipe('pre_mirage', MultiMAERecipe), epochs=None, mask_ratio=0.5)
    assert (r.epochs, r.visible_tokens, r.mask_ratio) == (1600, 0, 0.5)
    assert replace(r, visible_tokens=7, mask_ratio=None) == override(r, visible_tokens=7)
    with pytest.raises(ValueError, match="no parameter 'epoch'"): override(r, epoch=None)


def test_recipe_by_name():
    for name, other in _TUNED_BY.items(): assert cls_recipe(name).recipe == other and name in PRETRAIN_RECIPES
    with pytest.raises(KeyError, match="no recipe 'pre_mirage'. .*; pre_mirage is one of 40_pre"):
        pretrain_recipe('pre_mirage', MAERecipe)


def test_recipes_need_no_torch():
    code = 'import sys, mirage_nb.recipes.classification as c; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def lists_of(hint):
    "The types list[...] in an annotation"
    if get_origin(hint) is dict or 'dict' in str(get_args(hint)[:1]): return []
    return [hint] if get_origin(hint) is list else [k for part in get_args(hint) for k in lists_of(part)]


def test_every_list_takes_commas():
    "On the command line as 1,2 or a,b, by papermill as a text"
    for m in iter_modules(recipes.__path__): import_module(f'mirage_nb.recipes.{m.name}')
    kinds, seen = [Options], set()
    for kind in kinds:
        kinds += kind.__subclasses__()
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if name.startswith('_') or not (inner := lists_of(hint)): continue
            seen.add(name)
            of_text = 'str' in str(inner[0])
            adapter = TypeAdapter(hint, config=ConfigDict(strict=True))
            n = 3 if 'min_length=3' in str(hint) else 2
            one = .5 if 'float' in str(inner[0]) else 1
            given, wanted = ('a, b', ['a', 'b']) if of_text else (','.join([str(one)]*n), [one]*n)
            assert adapter.validate_python(given) == wanted == adapter.validate_python(tuple(wanted)), name
    assert {'modalities', 'outputs', 'class_map', 'size', 'crop_scale', 'seeds', 'shots', 'runs'} <= seen
    with pytest.raises(ValidationError): TypeAdapter(get_type_hints(SegRecipe, include_extras=True)['size'],
                                                     config=ConfigDict(strict=True)).validate_python('512')


def _kinds():
    "All classes of options of the package"
    for m in iter_modules(recipes.__path__):
        found = vars(import_module(f'mirage_nb.recipes.{m.name}')).values()
        yield from (k for k in found if isinstance(k, type) and issubclass(k, Options) and k is not Options
                    and k.__module__.endswith(f'.{m.name}'))


def _holds_number(note):
    return note in (int, float) or any(_holds_number(k) for k in get_args(note) if get_origin(note) is not Literal)


@pytest.mark.parametrize('kind', list(_kinds()), ids=lambda k: k.__name__)
def test_every_number_has_a_range(kind):
    "lr=1e999 is infinite; layer_decay=-3 would raise the learning rate of lower layers with a changing sign"
    for name, note in get_type_hints(kind, include_extras=True).items():
        if not _holds_number(note): continue
        for value in (v for n in (float('inf'), float('nan'), -3., -3) for v in (n, [n, n])):
            with pytest.raises(ValueError, match=name): kind(**{name: value})
