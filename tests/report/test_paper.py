"The paper pack: files that LaTeX and Word take, complete and written once"
import gc
import re
import sys
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from docx import Document
from PIL import Image

from mirage_nb.figures.common import panel_grid
from mirage_nb.recipes.classification import FewShot, cls_recipe
from mirage_nb.recipes.segmentation import seg_recipe
from mirage_nb.records import Run
from mirage_nb.report.paper import _word_file, write_paper
from mirage_nb.storage import write_json

TABLE = pd.DataFrame({'Dice_a': ['0.91 [0.87, 0.95]', '–'], 'HD95': [np.nan, 2.5], 'n': [3, 4]},
                     pd.Index(['fluid_1 & 2', '50 %'], name='Class'))


@pytest.fixture
def pack(tmp_path):
    settings = asdict(seg_recipe('seg_small')) | {'dataset': 'Duke_DME', 'tune': 'lora'}
    versions = {'mirage_nb': '0', 'torch': '2'}
    write_json(tmp_path/'run.json', {'stage': 'seg_tune', 'settings': settings, 'versions': versions})
    write_json(tmp_path/'result.json', {'device': 'CPU', 'precision': 'fp32'})
    fig, ((ax,),) = panel_grid(1, 1, 3, 2)
    ax.plot([1, 2], [1, 2])
    run = Run(tmp_path, settings, {}, True)
    cited = {'Duke_DME': 'Chiu SJ. A title. A Journal 6(4):1-2, 2015'}
    tables = {'scores': ('Scores_1, 95 %', TABLE), 'none': ('', None)}
    def write():
        listed = write_paper(run, tables, {'curve': fig, 'none': None}, citations=cited)
        assert len(listed) == 9 and all((tmp_path/k).exists() for k in listed.index)
        return tmp_path/'paper'
    return write


def test_tables(pack):
    tex, rows = (pack()/'tables'/'scores.tex').read_text(), pd.read_csv(pack()/'tables'/'scores.csv', dtype=str)
    assert all(k in tex for k in (r'\toprule', r'\bottomrule', r'\caption{Scores\_1, 95 \%}', r'fluid\_1 \& 2'))
    assert not re.search(r'(?<!\\)[&%#_](?![^{]*})', tex.partition(r'\midrule')[2].replace(' & ', ' '))
    assert rows.Class.tolist() == list(TABLE.index) and rows.HD95.fillna('').tolist() == ['', '2.500']


def test_word(pack):
    doc = Document(str(pack()/'paper.docx'))
    assert [c.text for c in doc.tables[0].rows[1].cells] == ['fluid_1 & 2', '0.91 [0.87, 0.95]', '', '3']
    texts = [p.text for p in doc.paragraphs]
    assert any('Table 1. Scores_1' in t for t in texts) and not any('[@' in t for t in texts)


@pytest.mark.skipif(sys.platform == 'win32', reason='no such limits here')
def test_word_on_a_full_disk(tmp_path, monkeypatch):
    "One message: an archive that is closed on a full disk would add a traceback of its own"
    import resource
    said, before = [], resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(sys, 'unraisablehook', said.append)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match='cannot write .*paper.docx'): _word_file(tmp_path/'paper.docx', 'T', 'x', {})
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    gc.collect()
    assert not said


def test_figures(pack):
    home = pack()/'figures'
    assert sorted(p.name for p in home.iterdir()) == ['curve.pdf', 'curve.png', 'curve.svg']
    with Image.open(home/'curve.png') as image: assert round(image.info['dpi'][0]) == 600


def test_everything_cited_is_in_the_bibliography(pack):
    tex, bib = ((pack()/k).read_text() for k in ('methods.tex', 'references.bib'))
    cited = set(re.findall(r'cite{([^}]+)}', tex))
    assert cited <= set(re.findall(r'@\w+{([^,]+),', bib)) and {'Duke_DME', 'mirage', 'lora'} <= cited


def test_written_once(pack):
    old = (pack()/'methods.md')
    old.write_text('changed by the author')
    pack()
    assert old.read_text() == 'changed by the author'


def test_a_study_states_the_recipe_of_its_trainings(tmp_path):
    settings = asdict(FewShot())
    versions = {'mirage_nb': '0', 'torch': '2'}
    write_json(tmp_path/'run.json', {'stage': 'few_shot', 'settings': settings, 'versions': versions})
    write_json(tmp_path/'result.json', {'device': 'CPU'})
    write_paper(Run(tmp_path, settings, {}, True), {}, {}, recipe=asdict(cls_recipe('cls_small')))
    text = (tmp_path/'paper'/'methods.md').read_text()
    assert 'The encoder mirage_tiny [@mirage]' in text and 'come with the kit' in text and 'None' not in text
