"""The gallery: a small page in docs/gallery for one run of each pipeline notebook, as it stands, on phantoms.

    python tests/gallery.py              # all of them; some minutes, unless MIRAGE_RUNS holds the runs
    python tests/gallery.py cls_tune     # one
"""
import base64
import io
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
from PIL import Image

from mirage_nb.core import unknown
from mirage_nb.report.tables import means_table
from mirage_nb.runs import read_run, run_notebook

ROOT = Path(__file__).resolve().parents[1]
GALLERY, MOST = ROOT/'docs'/'gallery', 180_000  # bytes of a picture
STAGES = {  # in an order in which each finds what it needs
    'seg_tune': 'Fine-tune a segmentation model', 'cls_tune': 'Fine-tune or probe a classifier',
    'cls_volume': 'Classify volumes',
    'seeds': 'Several seeds of one training', 'few_shot': 'How many labels are needed',
    'predict': 'Predict new images', 'measure': 'Measure eyes', 'explain': 'See why a model decides',
    'reconstruct': 'Reconstruct images', 'features': 'See what a model thinks is alike',
    'seg_eval': 'Score a segmentation',
    'cls_eval': 'Score a classification', 'compare': 'Compare methods', 'data_report': 'Look a dataset over',
    'pretrain_multimae': 'Pre-train MIRAGE',
    'pretrain_mae': 'Pre-train a masked autoencoder', 'pretrain_views': 'Pre-train by comparing views',
    'sweep': 'Run a notebook with many values',
    'benchmark': 'Run the tasks of a paper'}

SWEEP = 'mirage-nb sweep seg_tune head=linear,convnext seed=0,1 epochs=2 size=64 baselines=False'
STARTS = {  # page -> what makes its run, where it is not the stage as it stands
    'seeds': ('cls_tune', {'seeds': 3}), 'cls_volume': ('cls_tune', {'dataset': 'Phantom_VOL', 'recipe': 'cls_volume'})}


def pictures_of(notebook, most=3):
    "Figures of the main result and of the examples: (section, description, PNG)"
    section, found = '', []
    for c in notebook.cells:
        if c.cell_type == 'markdown':
            section = next(iter(re.findall(r'^## (.*)', c.source, re.M)), section)
        if c.cell_type != 'code' or not section.startswith(('Main result', 'Examples')): continue
        for o in c.outputs:
            if 'image/png' in o.get('data', {}):
                found.append((section, o.data['text/plain'], base64.b64decode(o.data['image/png'])))
    return found[:most]


def shrink(png, path):
    "Write a figure as WebP: exactly, or, if that is too large, nearly so"
    image = Image.open(io.BytesIO(png)).convert('RGB')
    image.save(path, lossless=True)
    for quality in (85, 75, 65, 55, 45):
        if path.stat().st_size > MOST: image.save(path, quality=quality)
    assert path.stat().st_size <= MOST, f'{path} has {path.stat().st_size} bytes'
    return path


def table_of(run):
    "Means of a run as a table of Markdown; none where it has none"
    means = run.metrics
    if not means: return []
    results = means if all(isinstance(v, dict) for v in means.values()) else {'this run': means}
    table = means_table({k: type('', (), {'means': v}) for k, v in results.items()})
    rows = [[table.index.name, *table], ['---']*(1 + table.shape[1]), *([k, *table.loc[k]] for k in table.index)]
    return ['', *('| ' + ' | '.join(map(str, r)) + ' |' for r in rows[:14])]


def rows_of(table):
    "A table of texts as Markdown"
    return ['', *('| ' + ' | '.join(r) + ' |' for r in ([*table], ['---']*table.shape[1], *table.to_numpy().tolist()))]


def scores_of(run):
    "Scores of a benchmark beside the published ones"
    table = pd.read_csv(run.folder/'scores.csv', dtype=str).drop(columns='value').dropna(axis=1, how='all').fillna('')
    return ['', '## Main result: scores', *rows_of(table)]


def text_of(notebook, section):
    "Last output of a section as text, for a report without figures; none where there is no such section"
    here, found = '', ''
    for c in notebook.cells:
        if c.cell_type == 'markdown': here = next(iter(re.findall(r'^## (.*)', c.source, re.M)), here)
        for o in c.get('outputs', []):
            if here == section: found = o.get('data', {}).get('text/plain', found)
    return ['', f'## {section}', '', '```text', *(k.rstrip() for k in found.split('\n')), '```'] if found else []


def command(stage):
    "What a user types for the run of a page"
    if stage == 'sweep': return f'{SWEEP} --dry-run'
    start, values = STARTS.get(stage, (stage, {}))
    return ' '.join(['python -m mirage_nb.runs', start, *(f'{k}={v}' for k, v in values.items())])


def write(stage):
    "Run a pipeline as it stands, or find the finished run, and write its page"
    start, values = STARTS.get(stage, (stage, {}))
    run = read_run(run_notebook(start, values, quiet=True))
    headline, *lines = run.result['summary']
    page = [f'# {STAGES[stage]}', '', f'> {headline}', '']
    page += [f"- **{v['level'].capitalize()}:** {v['text']}" for v in run.result.get('verdicts', [])]
    if lines: page += ['', 'Scores:', '', *(f'- {line}' for line in lines)]
    GALLERY.mkdir(parents=True, exist_ok=True)
    for old in GALLERY.glob(f'{stage}-*'): old.unlink()
    last = ''
    for i, (section, words, png) in enumerate(pictures_of(nbformat.read(run.folder/'report.ipynb', 4)), 1):
        path = shrink(png, GALLERY/f'{stage}-{i}.webp')
        page += ['', f'## {section}'] if section != last else []
        page += ['', f"![{words.translate({91: 40, 93: 41, 10: 32})}]({path.name})"]  # no brackets in it
        last = section
    if not last and stage != 'benchmark': page += text_of(nbformat.read(run.folder/'report.ipynb', 4), 'Runs')
    page += scores_of(run) if stage == 'benchmark' else table_of(run)
    page += ['', f'Made by `{command(stage)}` on synthetic images. The report itself is one page that',
             'has all tables, the data, the curves, the settings and the provenance. [All examples](README.md).']
    (GALLERY/f'{stage}.md').write_text('\n'.join(page) + '\n', encoding='utf-8')


def write_index():
    "List the pages"
    rows = [f'| [{title}]({k}.md) | `{command(k)}` |' for k, title in STAGES.items()]
    (GALLERY/'README.md').write_text('\n'.join([
        '# Example reports', '',
        'What each notebook leaves, shortened: headline, main figure, examples and means. The images are',
        'synthetic ("phantoms"), and the models are small: the numbers show the form of a report, not what a',
        'model can do.', '',
        '| report | command |', '|---|---|', *rows, '',
        '`python tests/gallery.py` writes these pages.', '']), encoding='utf-8')


def main(names):
    for name in names:
        if name not in STAGES: sys.exit(unknown('pipeline', name, STAGES))
    for name in names or STAGES: write(name)
    write_index()


if __name__ == '__main__': main(sys.argv[1:])
