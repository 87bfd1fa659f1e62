"The gallery: a page for each pipeline notebook, with small pictures that say what they show"
import base64
import io
import re

import nbformat
import pytest
from gallery import GALLERY, STAGES, pictures_of, shrink
from PIL import Image
from test_house import ROOT, pipelines


def test_every_pipeline_has_a_page():
    shown = {p.stem[3:] for p in pipelines(ROOT)}
    assert {*STAGES} == {*shown, 'cls_volume'} == {p.stem for p in GALLERY.glob('*.md')} - {'README'}
    index = (GALLERY/'README.md').read_text(encoding='utf-8')
    assert all(f'({k}.md)' in index for k in STAGES)


@pytest.mark.parametrize('stage', STAGES)
def test_pictures_are_there_small_and_described(stage):
    page = (GALLERY/f'{stage}.md').read_text(encoding='utf-8')
    found = re.findall(r'!\[([^\]]*)\]\(([^)]+)\)', page)
    assert found or '```text' in page or '## Main result' in page, 'a report without figures shows its list or table'
    assert all(len(words) > 20 and not words.startswith('<') for words, _ in found)
    assert {p.name for p in GALLERY.glob(f'{stage}-*')} == {name for _, name in found}
    assert all((GALLERY/name).stat().st_size < 300_000 for _, name in found)


def test_pictures_of_a_notebook(tmp_path):
    file = io.BytesIO()
    Image.effect_noise((300, 300), 50).save(file, 'PNG')
    data = {'image/png': base64.b64encode(file.getvalue()).decode(), 'text/plain': 'noise'}
    image = nbformat.v4.new_output('display_data', data)
    cells = [nbformat.v4.new_markdown_cell('## Data'), nbformat.v4.new_code_cell(outputs=[image]),
             nbformat.v4.new_markdown_cell('## Examples: two'), nbformat.v4.new_code_cell(outputs=[image, image])]
    found = pictures_of(nbformat.v4.new_notebook(cells=cells))
    assert [f[:2] for f in found] == [('Examples: two', 'noise')]*2
    path = shrink(found[0][2], tmp_path/'a.webp')
    assert Image.open(path).size == (300, 300) and path.stat().st_size < len(found[0][2])
