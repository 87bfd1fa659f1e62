"The rules of the house, read off the files; each rule is also shown a fault that it must find"
import ast
import io
import json
import re
import shlex
import tokenize
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from check import clean_faults, copy_of, export_faults, tracked

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r'(\d\d)([a-z]?)_([\w.]+)')
MAX_LINES, MAX_KIB = 60, 100


# ------------------------------------------------------------------ reading the tree

def notebooks(root): return sorted((root/'nbs').glob('[!_.]*.ipynb'))


def number(path): return int(NAME.fullmatch(path.stem)[1]) if NAME.fullmatch(path.stem) else -1


def pipelines(root): return [p for p in notebooks(root) if number(p) >= 30]


def libraries(root): return [p for p in notebooks(root) if 0 <= number(p) < 30]


def cells(path, kind='code'):
    found = []
    for i, c in enumerate(json.loads(path.read_text())['cells']):
        if c['cell_type'] != kind: continue
        tags = c.get('metadata', {}).get('tags', [])
        found.append(SimpleNamespace(i=i, source=''.join(c['source']), tags=tags, raw=c, name=f'{path.name} cell {i}'))
    return found


def plain(source): return '\n'.join('' if re.match(r'\s*[%!]', line) else line for line in source.split('\n'))


def exports(path): return [m for c in cells(path) for m in re.findall(r'^#\| *default_exp +(\S+)', c.source, re.M)]


def modules(root):
    "Exported modules by their dotted name"
    lib = root/'mirage_nb'
    found = {'.'.join(p.relative_to(lib).with_suffix('').parts): p for p in sorted(lib.rglob('*.py'))}
    return {k: p for k, p in found.items() if p.name not in ('__init__.py', '_modidx.py')}


def imported(tree, package=''):
    "Modules of the library that a piece of code imports, by dotted name"
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package.split('.') if package else []
            base = ['mirage_nb', *up[:len(up) - node.level]] if node.level else []
            whole = '.'.join([*base, *([node.module] if node.module else [])])
            names = [whole, *(f'{whole}.{a.name}' for a in node.names)]
        else: continue
        found |= {n.removeprefix('mirage_nb.') for n in names if n.startswith('mirage_nb.')}
    return found


def outside(tree):
    "Packages that a piece of code imports"
    named = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = [a.name for n in named if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in named if isinstance(n, ast.ImportFrom) and not n.level and n.module]
    return {n.split('.')[0] for n in names}


# ------------------------------------------------------------------ rules: root -> faults

def names_say_modules(root):
    "The name after the number is the module; one notebook a module; no module without one"
    faults, owners = [], {}
    for p in notebooks(root):
        m, found = NAME.fullmatch(p.stem), exports(p)
        if not m: faults.append(f'{p.name} is not named NN_name')
        elif int(m[1]) >= 30 and found: faults.append(f'{p.name} is a pipeline and exports {found[0]}')
        elif int(m[1]) < 30 and found != [m[3]]: faults.append(f'{p.name} should export {m[3]} once, not {found}')
        for k in found: owners.setdefault(k, []).append(p.name)
    faults += [f'{k} has two notebooks: {", ".join(v)}' for k, v in owners.items() if len(v) > 1]
    return faults + [f'{k} has no notebook' for k in modules(root) if k not in owners]


PURE = ('eval.cls_table', 'eval.cls_metrics', 'eval.calibration', 'eval.thresholds', 'eval.cls_stats',
        'eval.cls_report')  # tables in, numbers out


def allowed(name):
    "What a module may import besides modules of a lower number; None: anything"
    if name.startswith('models.'): return ('core', 'models.')
    if name in ('eval.metrics', 'eval.stats'): return ('core',)
    if name in PURE: return ('core', 'eval.stats', *PURE)
    if name.startswith('data.'): return ('core', 'data.', 'phantom')
    if name.startswith('train.'): return ('core', 'models.', 'train.')
    return None


def imports_point_down(root):
    "A library notebook imports modules of a lower number, and its layer's rules hold for the module"
    numbers = {k: (number(p), p.stem) for p in libraries(root) for k in exports(p)}
    faults = []
    for p in libraries(root):
        own = next(iter(exports(p)), '')
        for c in cells(p):
            for k in sorted(imported(ast.parse(plain(c.source))) & numbers.keys()):
                test = not re.match(r'#\| *export', c.source)
                if numbers[k] > numbers.get(own, (0, '')) or k == own and not test:
                    faults.append(f'{c.name} imports {k} of {numbers[k][1]}')
    for name, p in modules(root).items():
        rule = allowed(name)
        for k in sorted(imported(ast.parse(p.read_text()), name) & numbers.keys()):
            fits = rule is None or any(k == a or a.endswith('.') and k.startswith(a) for a in rule)
            if not fits: faults.append(f'{name} imports {k}; it may import {", ".join(rule)}')
    return faults


def parameters_are_literals(root):
    "A pipeline has one cell of parameters: a literal a line, with a comment that papermill can read"
    faults = []
    for p in pipelines(root):
        tagged = [c for c in cells(p) if 'parameters' in c.tags]
        if len(tagged) != 1: faults.append(f'{p.name} has {len(tagged)} cells tagged parameters')
        for c in tagged:
            for line in c.source.split('\n'):
                node = (ast.parse(line).body or [None])[0]
                value, _, comment = line.partition('#')
                if not (isinstance(node, ast.Assign) and len(node.targets) == 1): faults.append(f'{c.name}: {line!r}')
                elif not literal(node.value): faults.append(f'{c.name}: {line!r} is not a literal')
                elif value.count('=') != 1 or '=' in comment or not comment.strip():
                    faults.append(f"{c.name}: {line!r} takes a comment, and no '=' in it or in the value")
    return faults + [f'{c.name} is tagged parameters and exports nothing a user sets'
                     for p in libraries(root) for c in cells(p) if 'parameters' in c.tags]


def literal(node):
    try: ast.literal_eval(node)
    except ValueError: return False
    return True


def pipelines_are_sources(root):
    "No outputs, counts or injected cells in a pipeline; every notebook names its kernel's language"
    faults = []
    for p in notebooks(root):
        if not json.loads(p.read_text())['metadata'].get('kernelspec', {}).get('language'):
            faults.append(f'{p.name} has no kernelspec.language')
        faults += [f'{c.name} is injected' for c in cells(p) if 'injected-parameters' in c.tags]
        faults += [f'{c.name} has an execution count' for c in cells(p) if c.raw.get('execution_count')]
        if number(p) >= 30: faults += [f'{c.name} stores outputs' for c in cells(p) if c.raw.get('outputs')]
    return faults


def sizes(root):
    "Notebooks and exported cells stay small"
    faults = [f'{p.name} has {p.stat().st_size/1024:.0f} KiB' for p in notebooks(root)
              if p.stat().st_size > MAX_KIB*1024]
    for p in libraries(root):
        for c in cells(p):
            n = len([line for line in c.source.split('\n') if line.strip() and not line.startswith('#|')])
            if re.match(r'#\| *export', c.source) and n > MAX_LINES: faults.append(f'{c.name} exports {n} lines')
    return faults


MACHINE = re.compile(r'(^|[^\w.:/])/(work|root|farm|home/[a-z]\w*|Users/\w+|tmp|mnt|scratch)(/|\b)')
HOSTS = re.compile('|'.join([r'pypi\.', r'python' r'hosted\.org', r'download\.pytorch\.org', r'ana' r'conda\.org',
                             r'npm' r'js\.', r'--(extra-)?index' r'-url[ =]\S', r'--find' r'-links[ =]\S']))


def nothing_of_one_machine(root):
    "No absolute paths and no package registries in any file"
    faults, this = [], Path(__file__).name
    for name in tracked(root):
        if Path(name).name == this: continue
        try: lines = (root/name).read_text(encoding='utf-8').splitlines()
        except UnicodeDecodeError: continue
        for i, line in enumerate(lines, 1):
            if '"image/png"' in line: continue
            if m := MACHINE.search(line): faults.append(f'{name}:{i} names {m[0].strip()}')
            if m := HOSTS.search(line): faults.append(f'{name}:{i} names {m[0]}')
    return faults


def exported_code_is_plain(root):
    "No print, no fastcore, IPython or star imports in the library; drawing only in figures"
    faults = []
    for name, p in modules(root).items():
        tree = ast.parse(p.read_text())
        calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        faults += [f'{name} calls {f}()' for f in ('print', 'exit', 'quit', 'eval', 'exec') if f in calls]
        faults += [f'{name} imports {k}' for k in ('fastcore', 'IPython', 'nbdev') if k in outside(tree)]
        if not name.endswith('figures'):
            faults += [f'{name} imports {k}' for k in ('matplotlib', 'seaborn') if k in outside(tree)]
        faults += [f'{name} imports * from {n.module}' for n in ast.walk(tree)
                   if isinstance(n, ast.ImportFrom) and n.names[0].name == '*']
        faults += [f'{name}:{n.lineno} hides every error' for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler)
                   and (n.type is None or ast.unparse(n.type) in ('Exception', 'BaseException'))
                   and all(isinstance(s, (ast.Pass, ast.Continue)) for s in n.body)]
    return faults


EVIDENT = {'seed', 'split', 'n_classes', 'batch_size', 'lr', 'size', 'volume', 'rows', 'cols'}  # the same everywhere
ONE = r'(int|float|str|bool|Path|Tensor|np\.ndarray|None|Any|object)'
PLAIN = re.compile(rf'{ONE}( \| {ONE})*')


def functions_are_documented(root):
    "Public functions and classes have a docstring, types, and a comment where the type does not say it all"
    faults = []
    for name, p in modules(root).items():
        source = p.read_text()
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        commented = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
        for owner, f in public(ast.parse(source)):
            where = f'{name}.{owner}{f.name}'
            short = len(f.body) == 1 and owner  # a property, a protocol, a method of one thought
            special = f.name.startswith('__') or f.name in ('forward', 'backward')  # torch says what these are
            if not (ast.get_docstring(f) or short or special): faults.append(f'{where} has no docstring')
            if isinstance(f, ast.ClassDef): continue
            if f.returns is None and f.name != '__init__': faults.append(f'{where} does not say what it returns')
            a = f.args
            for arg in [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]:
                if arg.arg in ('self', 'cls', 'ctx'): continue
                if arg.annotation is None: faults.append(f'{where}: {arg.arg} has no type')
                elif arg.arg not in EVIDENT and PLAIN.fullmatch(ast.unparse(arg.annotation)) and not owner \
                        and arg.end_lineno not in commented: faults.append(f'{where}: {arg.arg} has no comment')
    return faults


def public(tree):
    "Functions, classes and their methods that a user may call"
    for n in tree.body:
        if not isinstance(n, (ast.FunctionDef, ast.ClassDef)) or n.name.startswith('_'): continue
        yield '', n
        for m in n.body if isinstance(n, ast.ClassDef) else ():
            if isinstance(m, ast.FunctionDef) and (not m.name.startswith('_') or m.name == '__init__'):
                yield f'{n.name}.', m


def options_are_read(root):
    "An option that no code reads is a promise that nobody keeps; a recipe and its notebook know the same options"
    recipes, parents = {}, {}  # of each class its options, those of its parents first
    for n in ast.parse(modules(root)['recipes'].read_text()).body:
        if not isinstance(n, ast.ClassDef): continue
        parents[n.name] = [k.id for k in n.bases if k.id in recipes]
        inherited = [f for k in parents[n.name] for f in recipes[k]]
        recipes[n.name] = [*dict.fromkeys([*inherited, *(s.target.id for s in n.body if isinstance(s, ast.AnnAssign))])]
    read = {k: set() for k in recipes}
    for name, p in modules(root).items():
        functions = [f for f in ast.walk(ast.parse(p.read_text())) if isinstance(f, ast.FunctionDef)]
        for f in functions if name != 'recipes' else ():
            kinds = {ast.unparse(a.annotation or a) for a in f.args.args if a.arg == 'cfg'}
            for k in recipes:
                if kinds & {'Job', k, *parents[k]}: read[k] |= options_of(f)
    faults, owned = [], set()
    for p in pipelines(root):
        given = [t.id for c in cells(p) if 'parameters' in c.tags for n in ast.parse(c.source).body
                 if isinstance(n, ast.Assign) for t in n.targets]
        rest = ast.parse('\n'.join(plain(c.source) for c in cells(p) if 'parameters' not in c.tags))
        used = {n.id for n in ast.walk(rest) if isinstance(n, ast.Name)}
        recipe = next((k for k in recipes if k in used), 'SegRecipe' if 'get_recipe' in used else None)
        fields = recipes.get(recipe, [])
        owned.add(recipe)
        faults += [f'{p.name} lacks the option {k} of {recipe}' for k in fields if k not in given]
        faults += [f'{p.name}: {k} is no option of {recipe}' for k in given if recipe and k not in fields]
        known = read.get(recipe, set()) | used | options_of(rest)
        faults += [f'{p.name}: {k} is read nowhere' for k in given if k not in known]
    owned |= {k for of in parents.values() for k in of}
    return faults + [f'{k} has no pipeline' for k in recipes if k not in owned]


def options_of(tree):
    "Fields of `cfg` that a piece of code reads, by name or in a list of names"
    nodes = list(ast.walk(tree))
    found = {n.attr for n in nodes if isinstance(n, ast.Attribute) and getattr(n.value, 'id', '') == 'cfg'}
    by_name = [n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'getattr'
               and ast.unparse(n.args[0]) == 'cfg']
    return found | {n.value for n in nodes if by_name and isinstance(n, ast.Constant) and isinstance(n.value, str)}


def settings_keep_tags(root):
    "The settings by which nbdev leaves the parameters tag alone"
    config = ConfigParser(delimiters=['='])
    config.read(root/'settings.ini')
    wanted = {'allowed_cell_metadata_keys': 'tags', 'clear_all': 'False', 'clean_ids': 'True',
              'jupyter_hooks': 'True', 'update_pyproject': 'False', 'black_formatting': 'False'}
    found = config['DEFAULT']
    return [f'settings.ini: {k} = {found.get(k)}, not {v}' for k, v in wanted.items() if found.get(k) != v]


# ------------------------------------------------------------------ commands that documents name

def documents(root):
    "Where commands stand: documents, the words of pipelines, manifests, messages of the library"
    for p in sorted(root.glob('*.md')): yield p.name, p.read_text(), p.name != 'CHANGELOG.md'
    for p in notebooks(root):
        for c in cells(p, 'markdown'): yield c.name, c.source, True
    for p in sorted((root/'data_manifests').glob('*.toml')): yield p.name, p.read_text(), True
    for name, p in modules(root).items(): yield name, p.read_text(), True


def commands(text):
    "Lines of code blocks and pieces in backticks that are commands of ours"
    text = text.replace('\\\n', ' ')
    fenced = re.findall(r'^ *```\w*\n(.*?)^ *```', text, re.M | re.S)
    blocks = [line for b in fenced for line in b.split('\n')] + re.findall(r'^    (\S.*)$', text, re.M)
    for line in blocks + re.findall(r'`([^`\n]+)`', text) + re.findall(r'(?=(python -m mirage_nb\S* *\S*))', text):
        line = re.sub(r'^(\$ |[A-Z_]+=\S+ )+', '', line.strip())
        yield from (part.strip() for part in re.split(r'&&|;', line.split('  #')[0]))


def command_faults(root, command):
    "What of a command does not exist"
    def known(name, stem):
        hits = [p for p in pipelines(root) if name in (f'nbs/{p.name}', p.name, p.stem, p.stem[3:])]
        return (hits[0], []) if hits else (None, [f'no notebook {name}'] if not stem else [])

    def given(path, names):
        own = [t.id for c in cells(path) if 'parameters' in c.tags for n in ast.parse(c.source).body for t in n.targets]
        return [f'{path.name} has no parameter {n}' for n in names if n not in own]

    if m := re.match(r'make ([a-z]\w*)', command):
        targets = re.findall(r'^([a-z]+):', (root/'Makefile').read_text(), re.M)
        return [] if m[1] in targets else [f'no target {m[1]}']
    if m := re.match(r'(?:\S*/)?python3? -m mirage_nb\.([\w.]+?)\.?(?:[\s\'"].*|$)', command):
        if m[1] not in modules(root): return [f'no module mirage_nb.{m[1]}']
        if '__main__' not in modules(root)[m[1]].read_text(): return [f'mirage_nb.{m[1]} is not a command']
        words = words_of(command)[3:]
        if m[1] != 'runs' or not words or not re.fullmatch(r'[\w./-]+', words[0]) or words[0].isupper(): return []
        if words[0].startswith('-'): return []
        path, faults = known(words[0], False)
        return faults or given(path, [w.split('=')[0] for w in words[1:] if re.match(r'\w+=', w)])
    if m := re.match(r'(?:\S*/)?papermill (\S+\.ipynb)(.*)', command):
        words = words_of(m[2])
        path, faults = known(m[1], False)
        if faults: return faults
        faults = given(path, [words[i + 1] for i, w in enumerate(words[:-1]) if w in ('-p', '-r')])
        return faults + ([] if words and not words[0].startswith('-') else ['papermill wants an output path'])
    return []


def words_of(command):
    try: return [w for w in shlex.split(command) if w not in ('...', '…')]
    except ValueError: return command.split()


def documents_tell_the_truth(root):
    "Commands, notebooks and files that documents name are there"
    faults = []
    for where, text, live in documents(root):
        if not live: continue
        for command in commands(text): faults += [f'{where}: `{command}`: {f}' for f in command_faults(root, command)]
        if not where.endswith('.md'): continue
        for target in re.findall(r'\]\(([^)#\s]+)\)|<img[^>]*src="([^"]+)"', text):
            link = ''.join(target)
            if '://' not in link and not (root/link).exists(): faults.append(f'{where}: no file {link}')
    return faults


RULES = (names_say_modules, imports_point_down, parameters_are_literals, pipelines_are_sources, sizes,
         nothing_of_one_machine, exported_code_is_plain, functions_are_documented, options_are_read, settings_keep_tags,
         documents_tell_the_truth)


@pytest.mark.parametrize('rule', [*RULES, export_faults, clean_faults], ids=lambda f: f.__name__)
def test_house(rule):
    faults = rule(ROOT)
    assert not faults, '\n'.join([f'{rule.__doc__}:', *faults])


# ------------------------------------------------------------------ each rule finds its fault

def code(source, *tags, **more):
    return {'cell_type': 'code', 'execution_count': None, 'id': 'a', 'metadata': {'tags': list(tags)} if tags else {},
            'outputs': [], 'source': source} | more


def words(source): return {'cell_type': 'markdown', 'id': 'b', 'metadata': {}, 'source': source}


def notebook(root, name, *cells, language='python'):
    kernel = {'display_name': 'python3', 'language': language, 'name': 'python3'}
    ids = [c | {'id': f'{name[:2]}{i:06}'} for i, c in enumerate(cells)]
    text = json.dumps({'cells': ids, 'metadata': {'kernelspec': {k: v for k, v in kernel.items() if v}}, 'nbformat': 4,
                       'nbformat_minor': 5}, indent=1, sort_keys=True)
    (root/'nbs'/f'{name}.ipynb').write_text(text + '\n')


def library(root, name, source, *more):
    start = [words(f'# {name}\n\n> This module is a toy.'), code(f'#| default_exp {name[3:]}')]
    notebook(root, name, *start, code('#| export\n' + source), *more)
    path = root/'mirage_nb'/(name[3:].replace('.', '/') + '.py')
    path.parent.mkdir(exist_ok=True)
    path.write_text(re.sub(r'from mirage_nb\.', '.'.join(['from ', *['']*name.count('.'), '']), source) + '\n')


PARAMETERS = "dataset = 'A'  # a name\nlr = None  # learning rate"


@pytest.fixture
def toy(tmp_path):
    "A small house in order"
    for d in ('nbs', 'mirage_nb', 'data_manifests'): (tmp_path/d).mkdir()
    (tmp_path/'settings.ini').write_text((ROOT/'settings.ini').read_text())
    (tmp_path/'Makefile').write_text('demo: setup\n\ttrue\n')
    (tmp_path/'README.md').write_text('```\nmake demo\npython -m mirage_nb.runs nbs/30_seg_tune.ipynb lr=1\n```\n')
    library(tmp_path, '00_core', 'def f(\n    x:int # a number\n)->int:\n    "One more"\n    return x + 1',
            code('from mirage_nb.core import f\nf(1)'))
    library(tmp_path, '01_recipes', "class SegRecipe:\n    'Settings'\n    dataset: str = ''\n    lr: float = 1.")
    library(tmp_path, '02_runs', 'from mirage_nb.core import f\nif __name__ == "__main__": f(1)')
    library(tmp_path, '10_models.layers', 'from mirage_nb.core import f')
    library(tmp_path, '25_eval.metrics', 'from mirage_nb.core import f')
    library(tmp_path, '29_launch', 'def g(cfg:SegRecipe)->float: # settings\n    "Rate"\n    return cfg.lr')
    notebook(tmp_path, '30_seg_tune', words('# Tune\n\n    papermill nbs/30_seg_tune.ipynb out.ipynb -p lr 1'),
             code(PARAMETERS, 'parameters'), code('get_recipe(dataset)'))
    return tmp_path


def pipeline(*cells, **more): return lambda r: notebook(r, '30_seg_tune', *cells, **more)


def parameters(text): return pipeline(code(text, 'parameters'), code('get_recipe(dataset)'))


def readme(text): return lambda r: (r/'README.md').write_text(text)


def core(source, *more): return lambda r: library(r, '00_core', source, *more)


def settings(old, new): return lambda r: (r/'settings.ini').write_text((r/'settings.ini').read_text().replace(old, new))


FULL = code(PARAMETERS, 'parameters')
FAULTS = {  # what is planted: the rule, how, a piece of what it says
    'name is not the module': (names_say_modules, lambda r: (r/'nbs/01_core.ipynb').rename(r/'nbs/00_k.ipynb'), '0_k'),
    'two notebooks': (names_say_modules, lambda r: library(r, '03_core', 'x = 1'), 'two notebooks'),
    'stale module': (names_say_modules, lambda r: (r/'mirage_nb/old.py').write_text('x = 1'), 'old has no notebook'),
    'pipeline exports': (names_say_modules, pipeline(code('#| default_exp tune'), FULL), 'is a pipeline'),
    'import points up': (imports_point_down, core('from mirage_nb.recipes import SegRecipe'), 'imports recipes'),
    'test import points up': (imports_point_down, core('x = 1', code('from mirage_nb.runs import f')), 'imports runs'),
    'models import a recipe': (imports_point_down, lambda r: library(
        r, '10_models.layers', 'from mirage_nb.recipes import SegRecipe'), 'models.layers imports recipes'),
    'metrics import models': (imports_point_down, lambda r: library(
        r, '25_eval.metrics', 'from mirage_nb.models.layers import f'), 'eval.metrics imports models.layers'),
    'import inside a function': (imports_point_down, lambda r: library(
        r, '10_models.layers', 'def f():\n    from mirage_nb import runs'), 'imports runs'),
    'no parameters': (parameters_are_literals, pipeline(code(PARAMETERS)), '0 cells'),
    'parameters twice': (parameters_are_literals, pipeline(FULL, FULL), '2 cells'),
    'computed default': (parameters_are_literals, parameters('a = 1  # one\nb = a + 1  # two'), 'not a literal'),
    'two on a line': (parameters_are_literals, parameters('a = b = 1  # one'), 'a = b'),
    'equals sign in a comment': (parameters_are_literals, parameters('a = 1  # a=1'), "no '='"),
    'parameter without comment': (parameters_are_literals, parameters('a = 1'), 'takes a comment'),
    'library with parameters': (parameters_are_literals, core('x = 1', FULL), 'exports nothing'),
    'injected cell': (pipelines_are_sources, pipeline(FULL, code('lr = 1', 'injected-parameters')), 'injected'),
    'outputs': (pipelines_are_sources, pipeline(FULL, code('1', outputs=[{'output_type': 'stream'}])), 'outputs'),
    'execution count': (pipelines_are_sources, pipeline(FULL, code('1', execution_count=3)), 'execution count'),
    'no language': (pipelines_are_sources, pipeline(FULL, language=''), 'kernelspec.language'),
    'large notebook': (sizes, pipeline(FULL, words('x'*103_000)), 'KiB'),
    'long cell': (sizes, core('x = 1\n'*61), '61 lines'),
    'path of a machine': (nothing_of_one_machine, readme('see /home/' 'ann/data'), 'README.md:1'),
    'path of this machine': (nothing_of_one_machine, core('x = "/work' '/main"'), 'core.py:1'),
    'registry': (nothing_of_one_machine, readme('pip install -i https://pypi' '.org/simple'), 'pypi'),
    'print': (exported_code_is_plain, core('print(1)'), 'calls print'),
    'fastcore': (exported_code_is_plain, core('from fastcore.all import patch'), 'fastcore'),
    'late matplotlib': (exported_code_is_plain, core('def f():\n    import matplotlib.pyplot as p'), 'matplotlib'),
    'star': (exported_code_is_plain, core('from os import *'), 'imports *'),
    'swallowed error': (exported_code_is_plain, core('try: x = 1\nexcept Exception: pass'), 'hides'),
    'no docstring': (functions_are_documented, core('def f()->int:\n    return 1'), 'no docstring'),
    'no type': (functions_are_documented, core('def f(\n  x # a\n)->int:\n    "One"'), 'x has no type'),
    'no return type': (functions_are_documented, core('def f():\n    "One"'), 'returns'),
    'no comment': (functions_are_documented, core('def f(\n  x:int\n)->int:\n    "One"'), 'x has no comment'),
    'option nobody reads': (options_are_read, lambda r: library(r, '29_launch', 'x = 1'), 'lr is read nowhere'),
    'option not offered': (options_are_read, parameters("dataset = 'A'  # a name"), 'lacks the option lr'),
    'option not known': (options_are_read, parameters(PARAMETERS + '\nx = 1  # a'), 'x is no option'),
    'option of another pipeline': (options_are_read, lambda r: notebook(
        r, '50_x', code('run = 1  # a', 'parameters')), 'run is read nowhere'),
    'recipe without pipeline': (options_are_read, pipeline(FULL, code('dataset, lr')), 'SegRecipe has no pipeline'),
    'tags are cleaned away': (settings_keep_tags, settings('keys = tags', 'keys ='), 'tags'),
    'no such target': (documents_tell_the_truth, readme('Type `make tee`.'), 'no target tee'),
    'no such target, in a list': (documents_tell_the_truth, readme('- So:\n\n  ```\n  make tee\n  ```'), 'target tee'),
    'no such module': (documents_tell_the_truth, core("x = 'get it: python -m mirage_nb.fetch A'"), 'mirage_nb.fetch'),
    'no command': (documents_tell_the_truth, readme('`python -m mirage_nb.core`'), 'is not a command'),
    'no such notebook': (documents_tell_the_truth, readme('`python -m mirage_nb.runs 31_x.ipynb`'), '31_x'),
    'no such parameter': (documents_tell_the_truth, readme('`python -m mirage_nb.runs seg_tune dataste=A`'), 'dataste'),
    'no such papermill parameter': (documents_tell_the_truth, readme(
        '    papermill nbs/30_seg_tune.ipynb out.ipynb -p lrr 1'), 'lrr'),
    'papermill, no output': (documents_tell_the_truth, readme('`papermill nbs/30_seg_tune.ipynb -p lr 1`'), 'output'),
    'no such file': (documents_tell_the_truth, readme('[a](b.md)'), 'no file b.md')}


def test_toy_house_is_in_order(toy):
    for rule in RULES: assert rule(toy) == []


@pytest.mark.parametrize('what', FAULTS)
def test_fault_is_found(toy, what):
    rule, plant, said = FAULTS[what]
    plant(toy)
    faults = rule(toy)
    assert any(said in f for f in faults), faults


def test_out_of_step_modules_are_found(tmp_path):
    copy_of(ROOT, tmp_path)
    for p in [*libraries(tmp_path)[3:], *pipelines(tmp_path)]: p.unlink()  # the less, the faster
    for k, p in modules(tmp_path).items():
        if k not in ('core', 'recipes', 'runs'): p.unlink()
    (tmp_path/'mirage_nb'/'_modidx.py').unlink()
    core = tmp_path/'mirage_nb'/'core.py'
    core.write_text(core.read_text() + '\nx = 1\n')
    (tmp_path/'mirage_nb'/'old.py').write_text((tmp_path/'mirage_nb'/'runs.py').read_text())
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    faults = export_faults(tmp_path)
    assert 'mirage_nb/core.py differs from its notebook' in faults and 'mirage_nb/old.py has no notebook' in faults
    assert not any('runs.py' in f or 'recipes.py' in f for f in faults)
    nb = json.loads((tmp_path/'nbs'/'00_core.ipynb').read_text())
    nb['cells'][1]['metadata']['scrolled'] = True
    (tmp_path/'nbs'/'00_core.ipynb').write_text(json.dumps(nb))
    assert clean_faults(tmp_path) == ['00_core.ipynb is not clean']
    assert {p: p.read_bytes() for p in before if p.name != '00_core.ipynb'} == {
        p: v for p, v in before.items() if p.name != '00_core.ipynb'}, 'the check changed a file'
