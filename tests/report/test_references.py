"The bibliography: every manifest's citation as BibTeX, every encoder with its work"
import re
import tomllib
from pathlib import Path

import pytest

from mirage_nb.models.zoo import ENCODERS
from mirage_nb.recipes.pretraining import MAERecipe, MultiMAERecipe, pretrain_recipe
from mirage_nb.report.references import citation_entries, work_entry, works_of, write_bibtex

MANIFESTS = sorted((Path(__file__).resolve().parents[2]/'data_manifests').glob('*.toml'))


@pytest.mark.parametrize('path', MANIFESTS, ids=lambda p: p.stem)
def test_citation_of_a_manifest(path):
    text = tomllib.loads(path.read_text())['citation']
    for entry in citation_entries(path.stem, text):
        assert re.match(rf'@(article|misc){{{path.stem}[bc]?,\n', entry) and entry.count('{') == entry.count('}'), entry
        doi = re.search(r'doi = {(.+)}', entry)
        assert (doi is not None and doi[1] in text) or 'doi' not in entry
    if 'doi:' in text: assert 'doi = {' in entry and 'author = {' in entry and 'journal = {' in entry, entry


def test_names_of_authors():
    text = "van Ginneken B, O'Connell RV, Trejo Corona S, et al. A title: of a work. Cell 1(2):3-4, 2020"
    entry, = citation_entries('x', text)
    assert "author = {van Ginneken, B. and O'Connell, R. V. and Trejo Corona, S. and others}" in entry
    assert 'pages = {3--4}' in entry and 'year = {2020}' in entry


def test_free_text_stays_whole_and_is_escaped():
    entry = ['@misc{x,\n  key = {x},\n  title = {{x}},\n  note = {ours \\& theirs, 50 \\%}\n}']
    assert citation_entries('x', 'ours & theirs, 50 %') == entry


@pytest.mark.parametrize('name', [*ENCODERS, 'timm:resnet18'])
def test_encoder_has_a_work(name):
    works = works_of({'model': name})
    assert len(works) > 1 and works[-1] == 'mirage_nb' and all(work_entry(k) for k in works)


@pytest.mark.parametrize(('name', 'kind', 'work'), [
    ('pre_mirage', MultiMAERecipe, 'mirage'), ('medical_mae_cnn', MAERecipe, 'medical_mae'),
    ('uspec_vit_l', MAERecipe, 'mae')])
def test_pretraining_has_a_work(name, kind, work):
    r = pretrain_recipe(name, kind)
    assert work in works_of({'model': r.model, 'recipe': r.recipe, 'epochs': r.epochs})


def test_bibliography_has_no_key_twice():
    works = works_of({'model': 'mirage_base', 'head': 'dpt', 'tune': 'lora', 'epochs': 1})
    text = write_bibtex(works, {'A': 'a', 'B': 'b'})
    keys = re.findall(r'^@\w+{([^,]+),', text, re.M)
    assert keys == ['A', 'B', 'mirage', 'multimae', 'dpt', 'lora', 'adamw', 'mirage_nb'] and len(set(keys)) == len(keys)
