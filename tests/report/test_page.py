"The report page: offline, small, in the order of a reader, the same from the runner and from a live kernel"
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mirage_nb.core import package_dir
from mirage_nb.recipes.pipelines import find_notebook
from mirage_nb.records import Run
from mirage_nb.report.page import _list_files, write_page
from mirage_nb.runs import run_notebook, write_report
from mirage_nb.storage import read_json, write_json

TUNE = {'dataset': 'Phantom_OCT', 'epochs': 1, 'size': 64, 'head': 'linear', 'baselines': True, 'seed': 5}
FETCHED = re.compile(r'''(\bsrc\s*=|<link[^>]*href\s*=|@import|url\()\s*["']?(https?:)?//''', re.I)


class Text(HTMLParser):
    "Words of a page, without code, style and messages; descriptions of images; identifiers; links"
    def __init__(self, page):
        super().__init__()
        self.words, self.alts, self.ids, self.links, self.hidden = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids += [a['id']] if 'id' in a else []
        self.links += [a['href']] if tag == 'a' else []
        if tag == 'img': self.alts.append(a.get('alt', ''))
        hide = tag in ('style', 'script') or a.get('class') in ('code', 'messages')
        if tag in ('style', 'script', 'div', 'details'): self.hidden.append((tag, hide))

    def handle_endtag(self, tag):
        if self.hidden and self.hidden[-1][0] == tag: self.hidden.pop()

    def handle_data(self, data):
        if not any(h for _, h in self.hidden) and data.strip(): self.words.append(' '.join(data.split()))


def page_of(path): return path.read_text(encoding='utf-8').replace('\xa0', ' ')  # which keeps an interval on one line


@pytest.fixture(scope='module')
def run(at_home, tmp_path_factory):
    "Folder of a run that the runner made"
    with at_home(tmp_path_factory.mktemp('page')): yield run_notebook('seg_tune', TUNE, quiet=True)


def check_page(page):
    "What holds for every report"
    assert not FETCHED.search(page), FETCHED.search(page)
    assert len(page.encode()) < 3_000_000 and '<script' not in page
    text = Text(page)
    assert all(text.alts) and not [a for a in text.alts if a.startswith(('No description', 'Figure of the section'))]
    assert len(set(text.ids)) == len(text.ids), 'two places of one name'
    assert {k[1:] for k in text.links if k.startswith('#')} <= {*text.ids}
    return text


@pytest.mark.slow
def test_page_of_a_run(run):
    text, result = check_page(page_of(run/'report.html')), read_json(run/'result.json')
    page, all_words = page_of(run/'report.html'), '\n'.join(text.words)
    assert re.findall(r'<h1.*?>(.*?)</h1>', page) == [result['summary'][0]] and page.index('<h1') < page.index('<h2>')
    titles = re.findall(r'<h2>(.*?)</h2>', page)
    firsts = list(dict.fromkeys(t.split(':')[0] for t in titles))
    assert firsts == ['Main result', 'Scores', 'Examples', 'Data', 'Model', 'Training', 'See why it decides',
                      'Reliability', 'Paper pack', 'Settings', 'Provenance', 'About this notebook', 'Files of this run']
    assert len(text.alts) >= 4 and any(a.startswith('Dice of each class') for a in text.alts)
    assert all((run/k).exists() for k in text.links if not k.startswith(('#', 'http')))
    assert {'predictions/', 'test_volumes.csv', 'report.ipynb'} <= {*text.links}
    for line in result['summary'][1:]: assert line in all_words
    folded = re.findall(r'<details>\s*<summary><h2>(.*?)</h2>', page)
    assert folded == ['Settings', 'Provenance', 'About this notebook']


@pytest.mark.slow
def test_live_kernel_makes_the_page_of_the_runner(run, tmp_path):
    by_runner = Text(page_of(run/'report.html'))
    (run/'report.html').unlink(); (run/'report.ipynb').unlink()
    words = [w for k, v in TUNE.items() for w in ('-p', k, str(v))]
    notebook, out = str(find_notebook('seg_tune')), str(tmp_path/'out.ipynb')
    done = subprocess.run([sys.executable, '-m', 'papermill', notebook, out, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    live = check_page(page_of(run/'report.html'))
    same = lambda words: [w for w in words if not re.search(': finished|: new|^estimate: ', w)]  # the state of the run
    assert same(live.words) == same(by_runner.words) and live.alts == by_runner.alts and live.links == by_runner.links
    cells = nbformat.read(run/'report.ipynb', 4).cells
    assert [c.source for c in cells] == [c.source.strip() for c in nbformat.read(out, 4).cells]


@pytest.mark.slow
def test_failed_run_says_what_failed_at_the_top(at_home, tmp_path):
    notebook = nbformat.read(find_notebook('seg_tune'), 4)
    place = next(i for i, c in enumerate(notebook.cells) if c.source.startswith('## Data'))
    notebook.cells.insert(place + 1, new_code_cell('raise ValueError("no fluid <here>")'))
    nbformat.write(notebook, tmp_path/'broken.ipynb')
    with at_home(tmp_path), pytest.raises(RuntimeError, match='no fluid <here>'):
        run_notebook(tmp_path/'broken.ipynb', TUNE, quiet=True)
    text = check_page(page_of(next(tmp_path.rglob('failed_report.html'))))
    top = '\n'.join(text.words[:text.words.index('What failed:') + 8])
    assert 'ValueError: no fluid <here>' in top and 'Fine-tune a segmentation model: the run failed' in top
    assert re.search('Not reached: Model, Training, Scores, .*Main result', top)
    assert '#failed' in text.links and 'failed' in text.ids


def executed(*cells):
    return new_notebook(cells=[new_markdown_cell('# Toy\n\n> A toy.'), *cells])


def test_sections_of_added_cells_stay_in_the_middle(tmp_path):
    result = new_output('execute_result', {'text/plain': '7'})
    heads = 'Settings', 'Data', 'My own look', 'Main result: all', 'Provenance', 'Scores'
    cells = [c for h in heads for c in (new_markdown_cell(f'## {h}'), new_code_cell('7', outputs=[result]))]
    page = page_of(write_page(executed(*cells), tmp_path/'report.html'))
    titles = re.findall(r'<h2>(.*?)</h2>', page)
    assert titles[:-1] == ['Main result: all', 'Scores', 'Data', 'My own look', 'Settings', 'Provenance']


def test_what_a_network_would_be_asked_for_is_left_out(tmp_path):
    away = ('<script src="https://a.org/x.js"></script><link rel="stylesheet" href="//a.org/x.css"><style>@import '
            '"https://a.org/y.css"; p { background: url(http://a.org/p.png) }</style><img src="https://a.org/z.png">')
    cells = new_markdown_cell(f'## Mine\n\n![there](https://a.org/b.png)\n\n{away}'), new_code_cell(
        'x', outputs=[new_output('display_data', {'text/html': away})])
    page = page_of(write_page(executed(*cells), tmp_path/'report.html'))
    assert not FETCHED.search(page) and '<a href="https://a.org/b.png">' in page


def test_verdicts_and_headline_stand_before_all_else(tmp_path):
    verdicts = [{'level': 'warning', 'text': 'One seed only.'}, {'level': 'good', 'text': 'Better than the baselines.'}]
    write_json(tmp_path/'result.json', {'summary': ['mean Dice 0.9', 'tuned: 0.9'], 'verdicts': verdicts})
    words = Text(page_of(write_page(executed(new_markdown_cell('## Scores\nAll.')), tmp_path/'report.html'))).words
    start = words.index('mean Dice 0.9')
    order = [start, *(words.index(w) for w in ('One seed only.', 'Better than the baselines.', 'tuned: 0.9', 'All.'))]
    assert order == sorted(order) and words[words.index('One seed only.') - 1] == 'Warning'
    write_json(tmp_path/'result.json', {'summary': ['mean Dice 0.9', 'Starting from x', 'random: 0.1'], 'above': 1,
                                        'verdicts': verdicts})
    words = Text(page_of(write_page(executed(new_markdown_cell('## Scores\nAll.')), tmp_path/'report.html'))).words
    order = [words.index(w) for w in ('mean Dice 0.9', 'Starting from x', 'One seed only.', 'random: 0.1', 'All.')]
    assert order == sorted(order)


def test_a_section_that_shows_nothing_is_left_out(tmp_path):
    "As the comparison with a table that was not given; a section of words alone stays"
    one = new_output('execute_result', {'text/plain': '1'})
    cells = [new_markdown_cell('## Comparison\nWith the other.'), new_code_cell('None'),
             new_markdown_cell('## Words\nOnly.'), new_markdown_cell('## Scores'), new_code_cell('1', outputs=[one])]
    page = page_of(write_page(executed(*cells), tmp_path/'report.html'))
    assert re.findall(r'<h2>(.*?)</h2>', page)[:2] == ['Scores', 'Words'] and 'Comparison' not in page


def test_report_without_a_kernel(home, monkeypatch):
    folder = home/'run'
    write_json(folder/'result.json', {'summary': ['mean Dice 0.9']})
    said = write_report(Run(folder, {}, {}, True), 'seg_tune', {'epochs': 3, 'size': [64, 48], 'lr': None})
    page = page_of(folder/'report.html')
    assert repr(said) == f"mean Dice 0.9\nreport: {folder/'report.html'}"
    assert 'mean Dice 0.9' in page and 'Fine-tune a segmentation model' in page
    assert 'mirage-nb seg_tune epochs=3' in page and 'size=[64,48]' in page
    (folder/'report.html').write_text('that of the runner')
    write_report(Run(folder, {}, {}, True), 'seg_tune', {})
    assert page_of(folder/'report.html') == 'that of the runner'


MEASURE = """<script>addEventListener("load", () => {
const right = e => e.getBoundingClientRect().right
const out = [...document.querySelectorAll("main *")].filter(e => right(e) > innerWidth + 1)
document.title = `${document.documentElement.scrollWidth <= innerWidth} ${out.map(e => e.tagName)}`
})</script>"""


@pytest.mark.skipif(not shutil.which('chromium'), reason='no Chromium to measure a page with')
def test_nothing_runs_out_of_the_page(tmp_path):
    "A table of 25 columns, of long texts, of long words, and of means with SD and interval, at 1280 pixels"
    numbers = pd.DataFrame([[.123456]*25]*3, ['tuned', 'random', 'chance'], [f'mean of metric {i}' for i in range(25)])
    texts = pd.DataFrame({'value': ['118 tensors (input_adapters.bscanlayermap, output_adapters.slo)'*6, '/folder'*60]},
                         ['not used', 'file'])
    spreads = pd.DataFrame([['123.45 ± 10.45 [110.12, 134.56]']*7]*2, ['RNFL', 'mean'], [f'HD {i}' for i in range(7)])
    with pd.option_context('display.max_colwidth', None): tables = [t.to_html() for t in (numbers, texts, spreads)]
    cells = [new_code_cell(outputs=[new_output('execute_result', {'text/html': t})]) for t in tables]
    path = write_page(executed(new_markdown_cell('## Scores'), *cells), tmp_path/'report.html')
    path.write_text(page_of(path).replace('</body>', MEASURE + '</body>'))
    command = ['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--window-size=1280,900', '--dump-dom']
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert re.findall('<title>(.*?)</title>', done.stdout, re.S) == ['true ']


NARROW = """<script>addEventListener('load', () => {
const cells = [...document.querySelectorAll('td.words, th.words')].map(c => c.getBoundingClientRect().width);
document.title = Math.round(Math.min(...cells)); })</script>"""


@pytest.mark.skipif(not shutil.which('chromium'), reason='no Chromium to measure a page with')
def test_notes_of_a_table_are_not_one_word_wide_on_a_phone(tmp_path):
    "The page in a frame of 400 pixels, as Chromium opens no window that is so narrow"
    note = 'slices of one volume resemble each other: the interval is too narrow'
    table = pd.DataFrame({**{f'slices where it was missed {i}': [11, 0] for i in range(3)}, 'note': note},
                         ['mean of all layers', 'mean of all lesions'])
    with pd.option_context('display.max_colwidth', None): words = table.to_html()
    output = new_output('execute_result', {'text/html': words})
    path = write_page(executed(new_markdown_cell('## Scores'), new_code_cell(outputs=[output])), tmp_path/'report.html')
    path.write_text(page_of(path).replace('</body>', NARROW + '</body>'))
    frame = tmp_path/'frame.html'
    frame.write_text('<iframe src="report.html" style="width:400px;height:900px"></iframe><script>'
                     'addEventListener("load", () => { document.title = frames[0].document.title; })</script>')
    command = ['chromium', '--headless', '--no-sandbox', '--allow-file-access-from-files', '--dump-dom']
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120)
    assert int(re.findall('<title>(.*?)</title>', done.stdout)[0]) >= 90


def test_intervals_are_kept_on_one_line(tmp_path):
    (tmp_path/'result.json').write_text(json.dumps({
        'summary': ['Dice 0.05 [0.04, 0.06]'], 'verdicts': [{'level': 'note', 'text': 'gain -0.8 [-0.83, -0.79]'}]}))
    page = write_page(executed(new_markdown_cell('## Scores')), tmp_path/'report.html').read_text(encoding='utf-8')
    assert '[0.04,\u00a00.06]' in page and '[-0.83,\u00a0-0.79]' in page


def test_every_table_that_a_run_writes_is_explained(tmp_path):
    "Names of CSV files that tasks, evaluation and splits write into the folder of a run"
    root = package_dir
    written = {m for p in root.rglob('*.py') for m in re.findall(r"folder/f?'([\w{}]+\.csv)'", p.read_text())
               if p.parent.name in ('tasks', 'eval', 'classification', 'segmentation', 'data', 'train')}
    of_data = {'labels.csv', 'metadata.csv', 'table.csv', 'faults.csv'}
    plain = {k for k in written if '{' not in k} - of_data
    assert {'splits.csv', 'unreadable.csv', 'history.csv', 'predictions.csv'} <= plain
    for k in plain: (tmp_path/k).touch()
    assert [f['name'] for f in _list_files(tmp_path) if not f['words']] == []
