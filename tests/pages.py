"The pages of the documentation as data: their blocks, their commands, and how to run them"
import ast
import contextlib
import importlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import nbformat

from mirage_nb.recipes.pipelines import find_notebook, parse_parameters
from mirage_nb.told_names import HANDOFF

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT/'README.md', *sorted((ROOT/'docs').glob('*.md'))]
RUNNER = 'mirage-nb '
OTHERS = 'list', 'runs', 'check', 'fetch', 'import', 'sweep'  # commands that run no notebook
NEEDS = re.compile(r'#.*\bneeds?\b')  # how a page says that a command cannot be run everywhere


@dataclass(frozen=True)
class Block:
    "A fenced block of a page"
    page: str    # README.md, docs/models.md
    line: int    # of the opening fence
    kind: str    # bash, python, toml, ...
    text: str
    before: str  # the last paragraph before it
    heading: str # of its section


@dataclass(frozen=True)
class Command:
    "A command line of a page"
    where: str   # page and line
    text: str    # without its comment
    needs: bool  # the page says that it needs more than a laptop has


def name_of(path): return str(path.relative_to(ROOT))


def blocks_of(path):
    "Fenced blocks of a page, in order"
    found, heading, before, lines = [], '', '', path.read_text(encoding='utf-8').split('\n')
    i = 0
    while i < len(lines):
        if m := re.match(r'( *)```(\w*)', lines[i]):
            end = next(k for k in range(i + 1, len(lines)) if lines[k].strip() == '```')
            text = '\n'.join(line[len(m[1]):] for line in lines[i + 1:end])
            found.append(Block(name_of(path), i + 1, m[2], text, before.strip(), heading))
            i, before = end, ''
        elif m := re.match(r'#+ (.*)', lines[i]): heading, before = m[1], ''
        elif not lines[i].strip() and i + 1 < len(lines) and not re.match(r' *```', lines[i + 1]): before = ''
        else: before += lines[i] + '\n'
        i += 1
    return found


def block(page, kind, holds=''):
    "The one block of a kind in a page that holds some text"
    found = [b for b in blocks_of(ROOT/page) if b.kind == kind and holds in b.text]
    assert len(found) == 1, f'{page} has {len(found)} blocks of {kind} with {holds!r}'
    return found[0]


def commands_of(path):
    "Commands of the bash blocks of a page and, in the README, of the table of jobs"
    for b in blocks_of(path):
        if b.kind != 'bash': continue
        lines = b.text.replace('\\\n', ' ').split('\n')
        needs = any(line.startswith('#') and NEEDS.search(line) for line in lines)
        for i, line in enumerate(lines):
            text = re.split(r'(?:^|\s)#', line)[0].strip()
            if text: yield Command(f'{b.page}:{b.line + 1 + i}', text, needs or bool(NEEDS.search(line)))
    for i, line in enumerate(path.read_text(encoding='utf-8').split('\n'), 1):
        for text in re.findall(rf'^\|.*`({RUNNER}[^`]+)`', line): yield Command(f'{name_of(path)}:{i}', text, False)


def words_of(command):
    "Notebook and parameters of a command of the runner"
    name, *words = shlex.split(command.removeprefix(RUNNER))
    notebook = find_notebook(name)
    return notebook, parse_parameters(words, notebook)


def placed(value, root):
    "A value of a page, with its /data below a folder of the test"
    if isinstance(value, list): return [placed(v, root) for v in value]
    return value.replace('/data/', f'{root}/') if isinstance(value, str) else value


def quick_figures(monkeypatch):
    "Of the figures of a paper pack only a small PNG: half of a short run. test_paper and nbdev_test write all formats"
    from mirage_nb.report import paper  # here, so that what only reads pages does not wait for it

    def save(figure, stem):
        return [paper.write_atomic(stem.with_name(f'{stem.name}.png'), lambda p: paper._write_png(figure, p, 60))]
    monkeypatch.setattr(paper, '_save_figure', save)


def execute(notebook, parameters, monkeypatch, folder, until=None):
    "Run the code of a pipeline in this process, as the runner does; with `until`, up to the cell that holds that text"
    monkeypatch.setenv(HANDOFF, str(folder/'handoff.json'))
    monkeypatch.setenv('MPLBACKEND', 'agg')
    quick_figures(monkeypatch)
    space = {}
    for c in nbformat.read(notebook, 4).cells:
        if c.cell_type != 'code': continue
        exec(compile(c.source, notebook.name, 'exec'), space)
        if 'parameters' in c.metadata.get('tags', []): space |= parameters
        if until and until in c.source: break
    return space


def finish(stage, values, monkeypatch, folder):
    "Make a run in this process and note it, so that the runner finds it: a kernel takes four times as long"
    from mirage_nb.runs import parameter_values, remember_run, run_key
    from mirage_nb.storage import read_json
    notebook = find_notebook(stage)
    execute(notebook, values, monkeypatch, folder)
    made = Path(read_json(folder/'handoff.json')['folder'])
    if not (made/'report.html').exists(): (made/'report.html').write_text('a page')  # the runner's part
    remember_run(run_key(stage, {**parameter_values(notebook), **values}), made)
    return made


def run_module(command, root):
    "Run another command of the package in this process, as python -m would: the exit code is 0"
    _, _, module, *words = shlex.split(command)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = importlib.import_module(module)._main(placed(words, root))
    assert code == 0, out.getvalue()


def assigned(notebook):
    "Names in the cell of parameters"
    cell = next(c for c in nbformat.read(notebook, 4).cells if 'parameters' in c.metadata.get('tags', []))
    return [n.targets[0].id for n in ast.parse(cell.source).body]
