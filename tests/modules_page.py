"""Write docs/modules.md, the table of notebooks and modules, from the notebooks.

    python tests/modules_page.py
"""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = {  # folder: what is in it
    '': 'What everything else uses, and what starts the notebooks',
    'recipes': 'Settings of published trainings',
    'sources': 'Where datasets and weights come from',
    'phantoms': 'Synthetic images',
    'data': 'From files to samples',
    'models': 'Encoders, heads, checkpoints',
    'train': 'The training loop and its parts',
    'eval': 'Predictions, metrics, intervals, reports',
    'measure': 'Thickness, sectors and volumes of an eye',
    'explain': 'Why a model decides as it does',
    'figures': 'Figures of the reports',
    'report': 'Reports and paper packs',
    'tasks': 'Each job put together from its settings',
    'launch': 'One process, several, or Slurm',
    'commands': 'What can be typed',
    'sweeps': 'Many runs from one plan'}
HEAD = '''# Modules and notebooks

Each notebook in a folder of `nbs/` is the source of one module of the library: `nbs/data/10_files.ipynb` is
`mirage_nb.data.files`. Within a stage the notebooks build on each other in the order of their numbers.
`python tests/modules_page.py` writes this page, and a test compares it with the notebooks.

## Experiments

| notebook | what it does |
|---|---|
'''
LIBRARY = '''
## Library

| module | what it does |
|---|---|
'''


def title_and_line(path):
    "Title of a notebook, and the sentence below it"
    first = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
    return re.match(r'# *(.*)', first)[1], re.search(r'^> *(.*)', first, re.M)[1]


def module_of(path):
    "Dotted name that a notebook exports; None: it is a pipeline"
    text = ''.join(''.join(c['source']) + '\n' for c in json.loads(path.read_text(encoding='utf-8'))['cells'])
    found = re.search(r'^#\| *default_exp +(\S+)', text, re.M)
    return found and found[1]


def stage_of(path, root): return path.relative_to(root/'nbs').parts[0] if path.parent.name != 'nbs' else ''


def row(path, name, root):
    return f'| [{name}](../{path.relative_to(root)}) | {title_and_line(path)[1].replace("|", "/")} |\n'


def modules_page(root):
    "Text of the page"
    found = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if not any(k.startswith(('.', '_')) for k in p.parts)]
    text = HEAD + ''.join(row(p, p.stem, root) for p in found if not module_of(p)) + LIBRARY
    library = [(stage_of(p, root), module_of(p), p) for p in found if module_of(p)]
    for stage in [*STAGES, *sorted({k for k, _, _ in library} - STAGES.keys())]:
        text += f'| **{stage or "mirage_nb"}** | **{STAGES.get(stage, "")}** |\n'
        text += ''.join(row(p, n, root) for k, n, p in library if k == stage)
    return text


if __name__ == '__main__': (ROOT/'docs'/'modules.md').write_text(modules_page(ROOT), encoding='utf-8')
