"The rules of the house, read off the files; each rule is also shown a fault that it must find"
import ast
import io
import json
import re
import shlex
import tokenize
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from check import clean_faults, copy_of, export_faults, tracked

from benchmarks.house import Tree, data_classes, followed, rings

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r'(\d\d)_([a-z]\w*)')
LAYERS = ('core', 'disks', 'leftovers', 'told_names', 'pseudonyms', 'anonymity', 'anonymised', 'randomness', 'storage',
          'sealed', 'spreadsheets', 'locks', 'signals', 'untrusted', 'memory', 'recipes', 'sources', 'records',
          'phantoms', 'data', 'models', 'train', 'eval', 'measure', 'explain', 'figures', 'report', 'tasks', 'launch',
          'commands', 'sweeps', 'sweep', 'runs')  # imports point left
MAX_LINES, MAX_KIB, MAX_NAMES, MIN_FOLLOWED = 60, 100, 8, 0.75
STILL_UPWARD = {'10_records'}  # its checks import a module above it
STILL_WIDE: dict[str, int] = {}  # public names


# ------------------------------------------------------------------ reading the tree

def notebooks(root):
    "Every notebook, hidden ones left out"
    found = [p for p in sorted((root/'nbs').rglob('*.ipynb'))]
    return [p for p in found if not any(part[0] in '._' for part in p.relative_to(root/'nbs').parts)]


def place(path):
    "Path of a notebook below nbs/"
    parts = path.parts
    return Path(*parts[len(parts) - parts[::-1].index('nbs'):])


def number(path): return int(NAME.fullmatch(path.stem)[1]) if NAME.fullmatch(path.stem) else -1


def is_pipeline(path): return len(place(path).parts) == 1 and number(path) >= 30


def pipelines(root): return [p for p in notebooks(root) if is_pipeline(p)]


def libraries(root): return [p for p in notebooks(root) if not is_pipeline(p)]


def module_of(path):
    "Module that the name of a library notebook says"
    return '.'.join([*place(path).parts[:-1], NAME.fullmatch(path.stem)[2]])


def cells(path, kind='code'):
    found = []
    for i, c in enumerate(json.loads(path.read_text())['cells']):
        if c['cell_type'] != kind: continue
        tags = c.get('metadata', {}).get('tags', [])
        name = f'{place(path)} cell {i}'
        found.append(SimpleNamespace(i=i, source=''.join(c['source']), tags=tags, raw=c, name=name))
    return found


@cache  # several rules look at the same modules; none changes a tree
def parsed(source): return ast.parse(source)


@cache
def own_tree(): return Tree(ROOT)


def tree_of(root): return own_tree() if root == ROOT else Tree(root)  # another one is changed by its test


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
    "Folder and name of a notebook are those of its module; one notebook a module; no module without one"
    faults, owners = [], {}
    for p in notebooks(root):
        name, found = place(p), exports(p)
        for k in found: owners.setdefault(k, []).append(f'{name}')
        if not NAME.fullmatch(p.stem): faults.append(f'{name} is not named NN_name')
        elif is_pipeline(p) and found: faults.append(f'{name} is a pipeline and exports {found[0]}')
        elif not is_pipeline(p) and found != [module_of(p)]:
            faults.append(f'{name} should export {module_of(p)} once, not {found}')
    faults += [f'{k} has two notebooks: {", ".join(v)}' for k, v in owners.items() if len(v) > 1]
    return faults + [f'{k} has no notebook' for k in modules(root) if k not in owners]


BASE = ('core', 'disks', 'leftovers', 'told_names', 'pseudonyms', 'anonymity', 'anonymised', 'randomness', 'storage',
        'sealed', 'spreadsheets')


def allowed(name):
    "What a module may import besides what lies below it; None: anything"
    if name.startswith('models.'): return (*BASE, 'sources.', 'models.')
    if name == 'eval.segmentation.metrics': return (*BASE, 'eval.segmentation.outlines', 'eval.segmentation.boundaries')
    if name in ('eval.stats', 'eval.intervals'): return (*BASE, 'eval.stats')
    if name.startswith('eval.comparing.'): return (*BASE, 'eval.stats', 'eval.comparing.')
    if name.startswith('eval.classification.') and not name.endswith(('.predict', '.volumes')):
        return (*BASE, 'eval.stats', 'eval.intervals', 'eval.draws', 'eval.resampled', 'eval.comparing.',
                'eval.classification.')
    return None


def points_up(a, b, numbers):
    "Whether module b, which a imports, lies above a: in a later layer, or in its folder with a higher number"
    (home, first), (there, second) = ([k.rpartition('.')[0], k.split('.')[0]] for k in (a, b))
    if first not in LAYERS or second not in LAYERS: return False  # another rule names these
    if first != second: return LAYERS.index(second) > LAYERS.index(first)
    return home == there and numbers[b] > numbers[a]


def imports_point_down(root):
    "A module and its notebook import what lies below it, and its layer's rules hold; every layer has its place"
    numbers = {k: number(p) for p in libraries(root) for k in exports(p)}
    faults = [f'{k} is in no layer; LAYERS of this test names them' for k in numbers if k.split('.')[0] not in LAYERS]
    for p in libraries(root):
        own = next(iter(exports(p)), '')
        for c in cells(p):
            for k in sorted(imported(parsed(plain(c.source))) & numbers.keys()):
                test = not re.match(r'#\| *export', c.source)
                late = test and f'{place(p).with_suffix("")}' in STILL_UPWARD
                if points_up(own, k, numbers) and not late or k == own and not test:
                    faults.append(f'{c.name} imports {k}')
    for name, p in modules(root).items():
        rule = allowed(name)
        for k in sorted(imported(parsed(p.read_text()), name) & numbers.keys()):
            fits = rule is None or any(k == a or a.endswith('.') and k.startswith(a) for a in rule)
            if not fits: faults.append(f'{name} imports {k}; it may import {", ".join(rule)}')
    return faults


def no_import_circles(root):
    "No module needs itself, by way of others"
    return [f'a circle of imports: {", ".join(sorted(ring))}' for ring in rings(tree_of(root).graph)]


def doors_are_narrow(root):
    "A module shows few public names, data classes aside, and no name is public in two modules"
    tree, shown = tree_of(root), {}
    records = data_classes(tree)
    for d in tree.definitions:
        if d.public and d.name not in ('main', *records): shown.setdefault(d.module, set()).add(d.name)
    faults = [f'{k} shows {len(v)} names: {", ".join(sorted(v))}' for k, v in shown.items()
              if len(v) > STILL_WIDE.get(k, MAX_NAMES)]
    places = {}
    for d in tree.definitions:
        if d.public and d.name != 'main': places.setdefault(d.name, set()).add(d.module)
    return faults + [f'{k} is public in {" and ".join(sorted(v))}' for k, v in places.items() if len(v) > 1]


def notebooks_teach(root):
    "Most exported cells of library notebooks are followed by a check or a shown result"
    found = {n.name: followed(n) for n in tree_of(root).notebooks if n.library}
    good, every = sum(map(sum, found.values())), sum(map(len, found.values()))
    if good >= MIN_FOLLOWED*every: return []
    worst = sorted((k for k in found if found[k]), key=lambda k: sum(found[k]) - len(found[k]))[:5]
    return [f'{good} of {every} exported cells are followed by a check or a shown result, and {MIN_FOLLOWED:.0%} is '
            f'the least; most are missing in {", ".join(worst)}']


def parameters_are_literals(root):
    "A pipeline has one cell of parameters: a literal a line, with a comment that papermill can read"
    faults = []
    for p in pipelines(root):
        tagged = [c for c in cells(p) if 'parameters' in c.tags]
        if len(tagged) != 1: faults.append(f'{p.name} has {len(tagged)} cells tagged parameters')
        for c in tagged:
            for line in c.source.split('\n'):
                if line.startswith('# ') and '=' not in line: continue  # what None means in all of them
                node = (parsed(line).body or [None])[0]
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
            faults.append(f'{place(p)} has no kernelspec.language')
        faults += [f'{c.name} is injected' for c in cells(p) if 'injected-parameters' in c.tags]
        faults += [f'{c.name} has an execution count' for c in cells(p) if c.raw.get('execution_count')]
        if is_pipeline(p): faults += [f'{c.name} stores outputs' for c in cells(p) if c.raw.get('outputs')]
    return faults


def sizes(root):
    "Notebooks and exported cells stay small"
    faults = [f'{place(p)} has {p.stat().st_size/1024:.0f} KiB' for p in notebooks(root)
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
    "No print, no fastcore, IPython or star imports in the library; drawing only in figures and report"
    faults = []
    for name, p in modules(root).items():
        tree = parsed(p.read_text())
        calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        faults += [f'{name} calls {f}()' for f in ('print', 'exit', 'quit', 'eval', 'exec') if f in calls]
        faults += [f'{name} imports {k}' for k in ('fastcore', 'IPython', 'nbdev') if k in outside(tree)]
        if not name.startswith(('figures.', 'report.')):
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
        for owner, f in public(parsed(source)):
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
    trees = {k: parsed(p.read_text()) for k, p in modules(root).items()}
    defined = [n for k, tree in trees.items() if k.startswith('recipes.') for n in tree.body]
    settings = [n for n in defined if isinstance(n, ast.ClassDef)  # a plain data class holds no options
                and not any('dataclass' in words_in(d) for d in n.decorator_list)]
    recipes, parents = options_by_recipe(settings)
    made = {f.name: k for f in defined if isinstance(f, ast.FunctionDef) and f.returns
            for k in words_in(f.returns) if k in recipes}  # seg_recipe -> SegRecipe
    read = options_read([tree for k, tree in trees.items() if not k.startswith('recipes.')], parents)
    faults, owned = [], set()
    for p in pipelines(root):
        given = [t.id for c in cells(p) if 'parameters' in c.tags for n in parsed(c.source).body
                 if isinstance(n, ast.Assign) for t in n.targets]
        rest = parsed('\n'.join(plain(c.source) for c in cells(p) if 'parameters' not in c.tags))
        used = {n.id for n in ast.walk(rest) if isinstance(n, ast.Name)}
        recipe = next((made.get(k, k) for k in [*recipes, *made] if k in used), None)
        fields = recipes.get(recipe, [])
        owned |= {recipe, *parents.get(recipe, ())}
        faults += [f'{p.name} lacks the option {k} of {recipe}' for k in fields if k not in given]
        faults += [f'{p.name}: {k} is no option of {recipe}' for k in given if recipe and k not in fields]
        known = read.get(recipe, set()) | used | fields_of(rest, ['cfg'])
        faults += [f'{p.name}: {k} is read nowhere' for k in given if k not in known]
    return faults + [f'{k} has no pipeline' for k in recipes if k not in owned]


def words_in(annotation): return set(re.findall(r'\w+', ast.unparse(annotation))) if annotation else set()


def options_by_recipe(classes):
    "Of each class of settings its options, those of its parents first; and all its ancestors"
    own = {n.name: [s.target.id for s in n.body if isinstance(s, ast.AnnAssign) and 'ClassVar' not in
                    words_in(s.annotation)] for n in classes}
    bases = {n.name: [k for b in n.bases for k in words_in(b) if k in own] for n in classes}
    def line(k): return [*dict.fromkeys(x for b in bases[k] for x in (*line(b), b))]
    every = {k: [*dict.fromkeys(f for x in (*line(k), k) for f in own[x])] for k in own}
    return {k: v for k, v in every.items() if v}, {k: line(k) for k in own}


def options_read(trees, parents):
    """Of each kind of settings, the fields that code reads: of an argument of that kind, or of a field or an argument
    of a class that holds one, as self.settings.lr"""
    classes = {n.name: n for tree in trees for n in tree.body if isinstance(n, ast.ClassDef)}
    protocols = {k for k, n in classes.items() if any('Protocol' in words_in(b) for b in n.bases)}
    kinds = parents.keys() | protocols
    def kinds_of(a): return words_in(a.annotation) & (kinds | ({'Any'} if a.arg == 'cfg' else set()))
    holds = {k: {} for k in classes}
    for k, n in classes.items():
        for s in ast.walk(n):
            if isinstance(s, ast.AnnAssign) and isinstance(s.target, (ast.Name, ast.Attribute)): pair = s.target, s
            elif isinstance(s, ast.FunctionDef) and s.returns: pair = s, SimpleNamespace(annotation=s.returns)
            elif isinstance(s, ast.arg) and s.annotation: pair = s, s
            else: continue
            name = next(getattr(pair[0], a) for a in ('id', 'attr', 'name', 'arg') if hasattr(pair[0], a))
            if found := words_in(pair[1].annotation) & kinds: holds[k].setdefault(name, set()).update(found)
        for f in ast.walk(n):  # self.settings = cfg
            if not isinstance(f, ast.FunctionDef): continue
            given = {a.arg: kinds_of(a) for a in f.args.args}
            for target, value in assignments(f):
                if isinstance(target, ast.Attribute) and given.get(getattr(value, 'id', '')):
                    holds[k].setdefault(target.attr, set()).update(given[value.id])
    for k, n in classes.items():  # what ancestors hold
        for b in ancestors(n, classes):
            for name, v in holds[b].items(): holds[k].setdefault(name, set()).update(v)
    read = {}
    for tree in trees:
        for owner in tree.body:
            for f in ast.walk(owner):
                if not isinstance(f, ast.FunctionDef) or not hasattr(owner, 'name'): continue
                said = {a.arg: words_in(a.annotation) for a in [*f.args.args, *f.args.kwonlyargs]}
                names = {k: v & kinds for k, v in said.items() if v & kinds}
                for k in {owner.name, *(w for v in said.values() for w in v)} & holds.keys():
                    for name, v in holds[k].items(): names.setdefault(name, set()).update(v)
                for target, value in assignments(f):  # cfg = self.settings
                    if isinstance(value, ast.Attribute) and isinstance(target, ast.Name):
                        names.setdefault(target.id, set()).update(names.get(value.attr, ()))
                for name, v in names.items():
                    for k in v: read.setdefault(k, set()).update(fields_of(f, [name]))
    shared = set().union(*(read.get(k, set()) for k in (*protocols, 'Any')))
    return {k: shared.union(*(read.get(x, set()) for x in (k, *parents[k]))) for k in parents}


def assignments(tree):
    "Pairs of target and value, those of a, b = c, d one by one"
    for s in ast.walk(tree):
        if not isinstance(s, ast.Assign): continue
        pair = s.targets[0], s.value
        if all(isinstance(x, ast.Tuple) for x in pair): yield from zip(*(x.elts for x in pair), strict=False)
        else: yield pair


def ancestors(node, classes):
    "Names of the classes that a class comes from, its own before those of its parents"
    found = [w for b in node.bases for w in words_in(b) if w in classes and w != node.name]
    return [*found, *(a for k in found for a in ancestors(classes[k], classes))]


def fields_of(tree, names):
    "Fields of settings that a piece of code reads of a variable or field by one of these names, or in a list of names"
    def last(n): return getattr(n, 'id', getattr(n, 'attr', ''))
    nodes = list(ast.walk(tree))
    found = {n.attr for n in nodes if isinstance(n, ast.Attribute) and last(n.value) in names}
    by_name = [n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'getattr'
               and last(n.args[0]) in names]
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
    for p in [*sorted(root.glob('*.md')), *sorted((root/'docs').rglob('*.md'))]:
        if p.name != 'CHANGELOG.md': yield p.relative_to(root).as_posix(), p.read_text(), p.parent
    for p in notebooks(root):
        for c in cells(p, 'markdown'): yield c.name, c.source, None
    for p in sorted((root/'data_manifests').glob('*.toml')): yield p.name, p.read_text(), None
    for name, p in modules(root).items(): yield name, p.read_text(), None


def commands(text):
    "Lines of code blocks and pieces in backticks that are commands of ours"
    text = text.replace('\\\n', ' ')
    fenced = re.findall(r'^ *```\w*\n(.*?)^ *```', text, re.M | re.S)
    blocks = [line for b in fenced for line in b.split('\n')] + re.findall(r'^    (\S.*)$', text, re.M)
    for line in blocks + re.findall(r'`([^`\n]+)`', text) + re.findall(
            r'(?=(python -m mirage_nb\S* *\S*|mirage-nb [\w./-]+))', text):
        line = re.sub(r'^(\$ |[A-Z_]+=\S+ )+', '', line.strip())
        yield from (part.strip() for part in re.split(r'&&|;', line.split('  #')[0]))


def command_faults(root, command):
    "What of a command does not exist"
    def known(name, stem):
        hits = [p for p in pipelines(root) if name in (f'nbs/{p.name}', p.name, p.stem, p.stem[3:])]
        return (hits[0], []) if hits else (None, [f'no notebook {name}'] if not stem else [])

    def given(path, names):
        own = [t.id for c in cells(path) if 'parameters' in c.tags for n in parsed(c.source).body for t in n.targets]
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
    if m := re.match(r'(?:\S*/)?mirage-nb ([\w./-]+)(.*)', command):
        others = 'list', 'runs', 'check', 'fetch', 'import', 'sweep'
        if m[1] in others or m[1].isupper() or m[1].startswith('-'): return []
        path, faults = known(m[1], False)
        return faults or given(path, [w.split('=')[0] for w in words_of(m[2]) if re.match(r'\w+=', w)])
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
    for where, text, home in documents(root):
        new = re.findall(r'[Nn]ew notebook `nbs/\d\d_(\w+)\.ipynb`', text)  # what a page shows how to write
        for command in commands(text):
            if not any(n in words_of(command) for n in new):
                faults += [f'{where}: `{command}`: {f}' for f in command_faults(root, command)]
        if not home: continue
        for target in re.findall(r'\]\(([^)#\s]+)\)|<img[^>]*src="([^"]+)"', text):
            link = ''.join(target)
            if '://' not in link and not (home/link).exists(): faults.append(f'{where}: no file {link}')
    return faults


CHECK = re.compile(r'\bassert\b|\btest_(eq|ne|close|fail|is|warns|shuffled)\(|ExceptionExpected')


def package_is_mirrored(root):
    """The tests of data.splits are in tests/data/test_splits.py, or its notebook checks what it exports; a test in a
    folder is that of a module there"""
    known = {k: Path(*k.split('.')) for k in modules(root)}
    tests = {p.relative_to(root/'tests').with_suffix('') for p in (root/'tests').rglob('test_*.py')}
    checked = {k for p in libraries(root) if any(CHECK.search(c.source) for c in cells(p)) for k in exports(p)}
    def of(path, suffix=''): return path.with_name(f'test_{path.name}{suffix}')
    faults = [f'{k} has no tests/{of(p)}.py and no check in its notebook' for k, p in known.items()
              if k not in checked and not {of(p), of(p, '_golden')} & tests]
    homes = [f'{of(p)}' for p in known.values()]
    return faults + [f'tests/{p}.py tests no module' for p in sorted(tests) if len(p.parts) > 1
                     and not any(f'{p}' == h or f'{p}'.startswith(f'{h}_') for h in homes)]


RULES = (names_say_modules, imports_point_down, no_import_circles, doors_are_narrow, notebooks_teach,
         parameters_are_literals, pipelines_are_sources, sizes, nothing_of_one_machine, exported_code_is_plain,
         functions_are_documented, options_are_read, settings_keep_tags, documents_tell_the_truth, package_is_mirrored)


@pytest.mark.parametrize('rule', RULES, ids=lambda f: f.__name__)  # tests/check.py looks at the rest
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
    ids = [c | {'id': f'{i:08}'} for i, c in enumerate(cells)]
    text = json.dumps({'cells': ids, 'metadata': {'kernelspec': {k: v for k, v in kernel.items() if v}}, 'nbformat': 4,
                       'nbformat_minor': 5}, indent=1, sort_keys=True)
    path = root/'nbs'/f'{name}.ipynb'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + '\n')


def library(root, name, source, *more):
    module = re.sub(r'\d\d_', '', name)
    start = [words(f'# {module}\n\n> This module is a toy.'), code(f'#| default_exp {module.replace("/", ".")}')]
    notebook(root, name, *start, code('#| export\n' + source), *more)
    path = root/'mirage_nb'/f'{module}.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r'from mirage_nb\.', '.'.join(['from ', *['']*(module.count('/') + 1)]), source) + '\n')


def add_test(root, name):
    path = root/'tests'/name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f'test_{path.name}.py').touch()


PARAMETERS = "dataset = 'A'  # a name\nlr = None  # learning rate"


@pytest.fixture
def toy(tmp_path):
    "A small house in order"
    for d in ('nbs', 'mirage_nb', 'data_manifests', 'tests'): (tmp_path/d).mkdir()
    (tmp_path/'settings.ini').write_text((ROOT/'settings.ini').read_text())
    (tmp_path/'Makefile').write_text('demo: setup\n\ttrue\n')
    (tmp_path/'README.md').write_text('```\nmake demo\npython -m mirage_nb.runs nbs/30_seg_tune.ipynb lr=1\n```\n')
    library(tmp_path, '01_core', 'def f(\n    x:int # a number\n)->int:\n    "One more"\n    return x + 1',
            code('from mirage_nb.core import f\nf(1)'))
    library(tmp_path, '20_runs', 'from mirage_nb.core import f\nif __name__ == "__main__": f(1)')
    for k in ('core', 'runs', 'recipes/settings', 'models/layers_golden', 'tasks/segmentation'): add_test(tmp_path, k)
    library(tmp_path, 'recipes/10_settings', "class Recipe:\n    'Settings'\n    dataset: str = ''", code('Recipe()'))
    library(tmp_path, 'recipes/20_segmentation', 'from mirage_nb.recipes.settings import Recipe\n'
            "class SegRecipe(Recipe):\n    'Settings'\n    lr: float = 1.", code('assert SegRecipe'))
    library(tmp_path, 'models/10_layers', 'from mirage_nb.core import f')
    library(tmp_path, 'eval/segmentation/10_metrics', 'from mirage_nb.core import f', code('test_eq(f(1), 2)'))
    library(tmp_path, 'tasks/10_segmentation', 'def g(cfg:SegRecipe)->float: # settings\n    "Rate"\n    return cfg.lr',
            code('g'))
    notebook(tmp_path, '30_seg_tune', words('# Tune\n\n    papermill nbs/30_seg_tune.ipynb out.ipynb -p lr 1'),
             code(PARAMETERS, 'parameters'), code('SegRecipe(dataset)'))
    return tmp_path


def pipeline(*cells, **more): return lambda r: notebook(r, '30_seg_tune', *cells, **more)


def parameters(text): return pipeline(code(text, 'parameters'), code('SegRecipe(dataset)'))


def readme(text): return lambda r: (r/'README.md').write_text(text)


def drop_test(name): return lambda r: (r/'tests'/f'test_{name}.py').unlink()


def core(source, *more): return lambda r: library(r, '01_core', source, *more)


def lib(name, source, *more): return lambda r: library(r, name, source, *more)


def settings(old, new): return lambda r: (r/'settings.ini').write_text((r/'settings.ini').read_text().replace(old, new))


FULL = code(PARAMETERS, 'parameters')
FAULTS = {  # what is planted: the rule, how, a piece of what it says
    'name is not the module': (names_say_modules, lambda r: (r/'nbs/01_core.ipynb').rename(r/'nbs/01_k.ipynb'), '1_k'),
    'folder is not the module': (names_say_modules, lambda r: (r/'nbs/recipes').rename(r/'nbs/old'), 'export old.'),
    'two notebooks': (names_say_modules, lib('03_core', 'x = 1'), 'core has two notebooks: 01_core.ipynb, 03_core'),
    'stale module': (names_say_modules, lambda r: (r/'mirage_nb/old.py').write_text('x = 1'), 'old has no notebook'),
    'pipeline exports': (names_say_modules, pipeline(code('#| default_exp tune'), FULL), 'is a pipeline'),
    'import points up': (imports_point_down, core('from mirage_nb.recipes.segmentation import f'), 'imports recipes'),
    'import of a higher number': (imports_point_down, lib('recipes/10_settings', 'from mirage_nb.recipes.segmentation '
                                                          'import f'), 'cell 2 imports recipes.segmentation'),
    'test import points up': (imports_point_down, core('x = 1', code('from mirage_nb.runs import f')), 'imports runs'),
    'no layer': (imports_point_down, lib('jobs/10_a', 'x = 1'), 'jobs.a is in no layer'),
    'models import a recipe': (imports_point_down, lib(
        'models/10_layers', 'from mirage_nb.recipes.segmentation import f'), 'models.layers imports recipes'),
    'metrics import models': (imports_point_down, lib('eval/segmentation/10_metrics', 'from mirage_nb.models.layers '
                                                      'import f'), 'metrics imports models.layers'),
    'import inside a function': (imports_point_down, lib(
        'models/10_layers', 'def f():\n    from mirage_nb import runs'), 'imports runs'),
    'circle': (no_import_circles, lib('recipes/10_settings', 'from mirage_nb.recipes.segmentation import f'),
               'recipes.segmentation, recipes.settings'),
    'circle, one import late': (no_import_circles, core('def f():\n    from mirage_nb.runs import g'), 'core, runs'),
    'many names': (doors_are_narrow, core(''.join(f'def f{i}(): ...\n' for i in range(MAX_NAMES + 1))), 'core shows'),
    'a name in two modules': (doors_are_narrow, lib('models/10_layers', 'def f(): ...'), 'f is public in core'),
    'nothing shown': (notebooks_teach, core('x = 1'), '3 of 5 exported cells'),
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
    'option nobody reads': (options_are_read, lib('tasks/10_segmentation', 'x = 1'), 'lr is read nowhere'),
    'option of other settings': (options_are_read, lib('tasks/10_segmentation', 'def g(cfg:Other):\n    return cfg.lr'),
                                 'lr is read nowhere'),
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
    'no such notebook of the command': (documents_tell_the_truth, readme('`mirage-nb seg_tone lr=1`'), 'seg_tone'),
    'no such parameter of the command': (documents_tell_the_truth, readme('`mirage-nb seg_tune dataste=A`'), 'dataste'),
    'no such papermill parameter': (documents_tell_the_truth, readme(
        '    papermill nbs/30_seg_tune.ipynb out.ipynb -p lrr 1'), 'lrr'),
    'papermill, no output': (documents_tell_the_truth, readme('`papermill nbs/30_seg_tune.ipynb -p lr 1`'), 'output'),
    'module without test': (package_is_mirrored, drop_test('runs'), 'runs has no tests/test_runs.py'),
    'test without module': (package_is_mirrored, lambda r: add_test(r, 'models/old'), 'test_old.py tests no'),
    'no such file': (documents_tell_the_truth, readme('[a](b.md)'), 'no file b.md')}


def test_toy_house_is_in_order(toy):
    assert {f'{r.__name__}: {f}' for r in RULES for f in r(toy)} == set()


@pytest.mark.parametrize('source', [
    'class Task:\n    settings: SegRecipe\n    def h(self):\n        return self.settings.lr',
    'class Task:\n    settings: SegRecipe\nclass Other(Task): ...\nclass Last(Other):\n    def h(self):\n'
    '        return self.settings.lr',
    'class Task:\n    settings: SegRecipe\n    def h(self):\n        cfg, x = self.settings, 1\n        return cfg.lr',
    'class Task:\n    def __init__(self, cfg:SegRecipe): self.settings = cfg\nclass Other(Task):\n    def h(self):\n'
    '        return self.settings.lr',
    'class Task:\n    settings: SegRecipe\ndef h(task:Task):\n    return task.settings.lr',
    'class Task:\n    @property\n    def cfg(self)->SegRecipe: ...\ndef h(task:Task):\n    return task.cfg.lr',
    'class Job(Protocol):\n    lr: float\ndef h(cfg:Job):\n    return cfg.lr',
    'def h(cfg:SegRecipe):\n    return [getattr(cfg, k) for k in ["lr"]]'])
def test_options_are_read_where_settings_are_held(toy, source):
    library(toy, 'tasks/10_segmentation', source)
    assert options_are_read(toy) == []


@pytest.mark.parametrize('what', FAULTS)
def test_fault_is_found(toy, what):
    rule, plant, said = FAULTS[what]
    plant(toy)
    faults = rule(toy)
    assert any(said in f for f in faults), faults


KEPT = 'core', 'randomness', 'data.files'


@pytest.mark.slow
def test_out_of_step_modules_are_found(tmp_path):
    copy_of(ROOT, tmp_path)
    for p in libraries(tmp_path):  # the less, the faster
        if module_of(p) not in KEPT: p.unlink()
    for p in pipelines(tmp_path): p.unlink()
    for k, p in modules(tmp_path).items():
        if k not in KEPT: p.unlink()
    (tmp_path/'mirage_nb'/'_modidx.py').unlink()
    core = tmp_path/'mirage_nb'/'core.py'
    core.write_text(core.read_text() + '\nx = 1\n')
    (tmp_path/'mirage_nb'/'old.py').write_text((tmp_path/'mirage_nb'/'randomness.py').read_text())
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    faults = export_faults(tmp_path)
    assert 'mirage_nb/core.py differs from its notebook' in faults and 'mirage_nb/old.py has no notebook' in faults
    assert not any('randomness.py' in f or 'files.py' in f for f in faults)
    changed = tmp_path/'nbs'/'data'/'10_files.ipynb'
    nb = json.loads(changed.read_text())
    nb['cells'][1]['metadata']['scrolled'] = True
    changed.write_text(json.dumps(nb))
    assert clean_faults(tmp_path) == ['data/10_files.ipynb is not clean']
    assert {p: p.read_bytes() for p in before if p != changed} == {
        p: v for p, v in before.items() if p != changed}, 'the check changed a file'
