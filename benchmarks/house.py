"Counts of any version of the kit, read off its files: python -m benchmarks.house [ROOT] [--compare ROOT] [--draw SVG]"
import argparse
import ast
import json
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
PIPELINE = 30         # pipeline notebooks are numbered from here, at the top of nbs/
SKIPPED = ('__init__.py', '_modidx.py', '_nbdev.py')
DATA_BASES = {'NamedTuple', 'TypedDict', 'BaseModel', 'BaseSettings'}
VERBS = set('''
accept accumulate act add adjust advance aggregate align allocate allow answer append apply approximate arrange ask
assemble assert assign attach attend audit augment balance begin bind blend blur bootstrap bound bring broadcast
build cache calculate calibrate call cancel capture carry cast change check choose clean clear clip close
coerce collate collect colour combine compare compile complete compose compress compute concatenate configure confirm
connect construct convert copy correct count cover create crop cut deal decide decode decrypt define delete derive
describe detach detect determine disable discard display distribute divide do dot download draw drop embed emit enable
encode end ensure enter enumerate erase estimate evaluate exclude execute exit expand explain export express extend
extract fail fetch fill filter finalize find finish fit fix flag flatten flip flush fold follow forget format forward
freeze fuse gather generate get give go group guard guess handle hash hide hold identify ignore import include increase
index infer initialise initialize insert inspect install instantiate interpolate interpret invert iterate join judge
jitter keep label launch lay learn leave let lift limit link list load locate lock log look lower make map mark mask
match measure merge mirror mix modify move name normalise normalize obtain omit open order override pack pad paint
parse partition pass perform permute pick plan plot pool pop predict prefetch prepare prepend pre-train preserve
print process produce project propose prune pull push put quantise quantize query queue raise randomise randomize rank
read rebuild recall receive recompute reconstruct record recover reduce refuse register reject release reload remap
remember remove rename render reorder repeat replace replay report request require resample rescale reset reshape
resize resolve restore restrict resume retrieve return reverse rewrite rotate route run sample save say scale scan
schedule score search seed select send separate serialise serialize set shift show shrink shuffle sign simulate skip
slice solve sort split spread stack standardise standardize start step stop store stretch strip submit
subtract sum summarise summarize supply swap switch synthesise synthesize take tell test tile time trace track train
transfer transform translate transpose trim try tune turn undo unfreeze unite unpack unwrap update upload use validate
verify visit wait walk warm warn warp weigh weight widen wrap write yield zoom'''.split())
NOUNS = {'of', 'that', 'which', 'where', 'whose', 'is', 'are', 'and', 'or', 'at'}  # 'Mask of a slice' is no imperative


# ------------------------------------------------------------------ reading the tree

@dataclass(frozen=True)
class Definition:
    "Hold one top-level function, class or upper-case constant."
    module: str
    name: str
    node: ast.AST

    @property
    def public(self) -> bool: return not self.name.startswith('_')


@dataclass
class Module:
    "Hold one file of the package, with the full names that it imports or reads."
    name: str  # dotted, without the package; the package itself is ''
    path: Path
    text: str
    code: ast.Module = field(repr=False)

    @property
    def home(self) -> list[str]:
        "Return the parts of the sub-package from which relative imports count."
        parts = self.name.split('.') if self.name else []
        return parts if self.path.name == '__init__.py' else parts[:-1]

    def definitions(self) -> list[Definition]:
        "Return functions, classes and upper-case constants at the top level, those below if and try too."
        return [Definition(self.name, n, node) for node in top_level(self.code.body) for n in names_of(node)]


def top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    "Yield the statements of a body, and those of its conditions."
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            parts = [node.body, node.orelse, *(h.body for h in getattr(node, 'handlers', []))]
            for part in parts: yield from top_level(part)


def names_of(node: ast.stmt) -> list[str]:
    "Return the names that a statement defines, of variables the upper-case ones only."
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)): return [node.name]
    if isinstance(node, ast.Assign): targets: list[ast.expr] = node.targets
    elif isinstance(node, ast.AnnAssign): targets = [node.target]
    else: return []
    found = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return [n for n in found if n.isupper() and not n.startswith('__')]


def dotted(node: ast.AST) -> str:
    "Return a.b.c of a chain of attributes, and nothing of any other expression."
    if isinstance(node, ast.Name): return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ''
    return f'{inner}.{node.attr}' if inner and isinstance(node, ast.Attribute) else ''


def bindings(code: ast.AST, package: str, home: list[str]) -> dict[str, str]:
    "Return what each imported name stands for, as a full dotted name."
    found = {}
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            for a in node.names: found[a.asname or a.name] = a.name
        elif isinstance(node, ast.ImportFrom):
            base = [package, *home[:len(home) - node.level + 1]] if node.level else []
            whole = '.'.join([*base, *([node.module] if node.module else [])])
            for a in node.names: found[a.asname or a.name] = f'{whole}.{a.name}'
    return found


def full_names(code: ast.AST, package: str, home: list[str]) -> set[str]:
    "Return the full names below a package that code imports, or reads as attributes of an import."
    known = bindings(code, package, home)
    chains = [d for n in ast.walk(code) if isinstance(n, ast.Attribute) and (d := dotted(n))]
    read = {known[head] + chain.removeprefix(head) for chain in chains if (head := chain.split('.')[0]) in known}
    found = {*known.values(), *read, *(c for c in chains if c.startswith(f'{package}.') and package not in known)}
    return {n.removeprefix(f'{package}.') for n in found if n.startswith(f'{package}.')}


@dataclass
class Notebook:
    "Hold one notebook."
    path: Path
    name: str  # its path below nbs/
    cells: list[dict[str, Any]] = field(repr=False)

    @cached_property
    def code(self) -> list[str]: return [''.join(c['source']) for c in self.cells if c['cell_type'] == 'code']

    @property
    def library(self) -> bool: return any(re.search(r'^#\| *default_exp +\S', c, re.M) for c in self.code)

    @property
    def pipeline(self) -> bool:
        number = re.match(r'\d+', self.name)
        return '/' not in self.name and number is not None and int(number[0]) >= PIPELINE and not self.library

    @property
    def pictured(self) -> bool:
        "Tell whether an output holds an image."
        outputs = [o.get('data', {}) for c in self.cells for o in c.get('outputs', [])]
        return any(k.startswith('image/') for data in outputs for k in data)


def parsed(source: str) -> ast.Module:
    "Parse a cell without its magics, and take a cell that is not Python as empty."
    plain = '\n'.join('pass' if re.match(r'\s*[%!]', line) else line for line in source.split('\n'))
    try: return ast.parse(plain)
    except SyntaxError: return ast.parse('')


def imports_only(source: str) -> bool:
    "Tell whether a cell holds nothing but imports and comments."
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in parsed(source).body)


def exported(source: str) -> bool: return re.search(r'^#\| *exports?i?\b', source, re.M) is not None


@dataclass
class Tree:
    "Hold the files of one version of the kit."
    root: Path

    @cached_property
    def package(self) -> str:
        "Return the name of the package, by settings.ini."
        settings = ConfigParser(interpolation=None)
        settings.read(self.root/'settings.ini')
        return settings.defaults().get('lib_path', 'mirage_nb')

    @cached_property
    def files(self) -> dict[str, Module]:
        "Return every file of the package by its dotted name, the __init__ under the name of its folder."
        found, lib = {}, self.root/self.package
        for path in sorted(lib.rglob('*.py')):
            parts = path.relative_to(lib).with_suffix('').parts
            name, text = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts), path.read_text(encoding='utf-8')
            found[name] = Module(name, path, text, ast.parse(text))
        if not found: raise FileNotFoundError(f'{lib} holds no module; name the root of a checkout')
        return found

    @cached_property
    def modules(self) -> dict[str, Module]:
        "Return the modules that count: an __init__ does if it defines something public."
        kept = {k: m for k, m in self.files.items() if m.path.name not in SKIPPED}
        doors = {k: m for k, m in self.files.items() if m.path.name == '__init__.py' and k}
        return kept | {k: m for k, m in doors.items() if any(d.public for d in m.definitions())}

    @cached_property
    def notebooks(self) -> list[Notebook]:
        "Return the notebooks below nbs/, hidden ones left out."
        nbs = self.root/'nbs'
        names = [p.relative_to(nbs) for p in sorted(nbs.rglob('*.ipynb'))]
        shown = [n for n in names if not any(part[0] in '._' for part in n.parts)]
        return [Notebook(nbs/n, n.as_posix(), json.loads((nbs/n).read_text(encoding='utf-8'))['cells']) for n in shown]

    @cached_property
    def definitions(self) -> list[Definition]: return [d for m in self.modules.values() for d in m.definitions()]

    @cached_property
    def imported(self) -> dict[str, set[str]]:
        "Return the full names that each file reads."
        return {k: full_names(m.code, self.package, m.home) for k, m in self.files.items()}

    @cached_property
    def given_on(self) -> dict[str, str]:
        "Return what the names that a file imports stand for, so that a name can be followed to its definition."
        every = {f'{k}.{n}'.strip('.'): full for k, m in self.files.items()
                 for n, full in bindings(m.code, self.package, m.home).items()}
        return {k: v.removeprefix(f'{self.package}.') for k, v in every.items() if v.startswith(f'{self.package}.')}

    def defined_at(self, name: str) -> str:
        "Follow a full name through the modules that pass it on."
        seen = set()
        while name in self.given_on and name not in seen and name not in self.files:
            seen.add(name)
            name = self.given_on[name]
        return name

    @cached_property
    def graph(self) -> dict[str, set[str]]:
        "Return the modules that each module imports, anywhere in its code."
        targets = {k: {owner(self.defined_at(n), self.modules) for n in self.imported[k]} for k in self.modules}
        return {k: {t for t in found if t} - {k} for k, found in targets.items()}


def owner(name: str, known: Iterable[str]) -> str:
    "Return the longest known module that a full name begins with."
    parts = name.split('.')
    heads = ['.'.join(parts[:i]) for i in range(len(parts), 0, -1)]
    return next((h for h in heads if h in known), '')


# ------------------------------------------------------------------ counting

def nearest_rank(values: list[int], share: float) -> int: return sorted(values)[math.ceil(share*len(values)) - 1]


def percent(part: int, whole: int) -> str: return f'{100*part/whole:.1f} % ({part} of {whole})' if whole else '-'


def listing(counts: Iterable[tuple[str, object]]) -> list[str]: return [f'{k} {v}' for k, v in counts]


def methods(tree: Tree) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    "Return the public functions of modules, and the public methods of their public classes."
    public = [d.node for d in tree.definitions if d.public]
    inner = [n for c in public if isinstance(c, ast.ClassDef) for n in c.body if isinstance(n, FUNCTIONS)]
    return [n for n in [*public, *inner] if isinstance(n, FUNCTIONS) and not n.name.startswith('_')]


def typed(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    "Tell whether every parameter but self and cls has a type."
    a = node.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(v for v in (a.vararg, a.kwarg) if v)]
    return all(p.annotation or p.arg in ('self', 'cls') for p in every)


def imperative(node: ast.AST) -> bool:
    "Tell whether a docstring begins with a known verb that is not followed as a noun is."
    assert isinstance(node, FUNCTIONS)
    first, second, *_ = [*re.findall(r"[\w'-]+", ast.get_docstring(node) or ''), '', '']
    return first.lower() in VERBS and second.lower() not in NOUNS


def data_classes(tree: Tree) -> set[str]:
    "Return the names of data classes, named tuples and typed models, and of what inherits from them."
    classes = [d.node for d in tree.definitions if isinstance(d.node, ast.ClassDef)]
    last = {c.name: {dotted(b).split('.')[-1] for b in c.bases} for c in classes}
    found = {c.name for c in classes if any('dataclass' in ast.unparse(d) for d in c.decorator_list)}
    grown = found | {k for k, bases in last.items() if bases & (DATA_BASES | found)}
    while grown != found: found, grown = grown, grown | {k for k, bases in last.items() if bases & grown}
    return found


def size_rows(tree: Tree) -> Iterator[tuple[str, object]]:
    "Yield the sizes of modules and functions."
    modules = tree.modules.values()
    every = [n for m in modules for n in ast.walk(m.code) if isinstance(n, FUNCTIONS)]
    lengths = [(n.end_lineno or n.lineno) - n.lineno + 1 for n in every]
    lines = {k: m.text.count('\n') for k, m in tree.modules.items()}
    yield 'modules', len(lines)
    yield 'lines of modules, all / longest', f'{sum(lines.values())} / {max(lines.values())}'
    yield 'functions and methods, nested ones too', len(every)
    yield 'lines from def to end, p90 / longest', f'{nearest_rank(lengths, .9)} / {max(lengths)}'


def name_rows(tree: Tree) -> Iterator[tuple[str, object]]:
    "Yield how many public names modules show."
    public, records = [d for d in tree.definitions if d.public], data_classes(tree)
    both = Counter({k: 0 for k in tree.modules}), Counter({k: 0 for k in tree.modules})
    both[0].update(d.module for d in public)
    both[1].update(d.module for d in public if d.name not in records)
    for found, text in zip(both, ('', ', data classes left out'), strict=True):
        yield f'public names of a module{text}, median / most', \
            f'{statistics.median(found.values()):g} / {max(found.values())}'
    yield 'modules with most public names', listing(both[0].most_common(5))


def use_rows(tree: Tree) -> Iterator[tuple[str, object]]:
    "Yield the definitions that no other module and no pipeline uses, and the names defined twice."
    read = [(k, names) for k, names in tree.imported.items() if tree.files[k].path.name != '__init__.py']
    read += [('', full_names(parsed(c), tree.package, [])) for n in tree.notebooks if n.pipeline for c in n.code]
    used = {full for k, names in read for n in names if owner(full := tree.defined_at(n), tree.modules) != k}
    alone = [d for d in tree.definitions if f'{d.module}.{d.name}' not in used]
    yield 'definitions that nobody else uses', percent(len(alone), len(tree.definitions))
    big = [not isinstance(d.node, (ast.Assign, ast.AnnAssign)) for d in alone]
    yield 'the same without constants', percent(sum(big), sum(not isinstance(d.node, (ast.Assign, ast.AnnAssign))
                                                              for d in tree.definitions))
    yield 'of them public', sum(d.public for d in alone)
    yield 'of them public, most in', listing(Counter(d.module for d in alone if d.public).most_common(5))
    places = defaultdict(set)
    for d in tree.definitions:
        if d.public: places[d.name].add(d.module)
    twice = [(k, ', '.join(sorted(v))) for k, v in sorted(places.items()) if len(v) > 1]
    yield 'public names defined in more than one module', len(twice)
    yield 'names', [f'{k}: {v}' for k, v in twice]


def followed(notebook: Notebook) -> list[bool]:
    "Tell of each exported cell that defines something whether a cell that checks or shows comes before the next."
    found: list[bool] = []
    for source in notebook.code:
        if imports_only(source): continue
        if exported(source): found.append(False)
        elif found: found[-1] = True
    return found


def notebook_rows(tree: Tree) -> Iterator[tuple[str, object]]:
    "Yield counts of notebooks and of their exported cells."
    books = [n for n in tree.notebooks if n.library]
    cells = {n.name: followed(n) for n in books}
    lowest = sorted((c for c in cells.items() if c[1]), key=lambda c: sum(c[1])/len(c[1]))[:5]
    kib = {n.name: n.path.stat().st_size/1024 for n in tree.notebooks}
    yield 'exported cells followed by a check or a result', percent(sum(map(sum, cells.values())),
                                                                    sum(map(len, cells.values())))
    yield 'lowest notebooks', [f'{k} {percent(sum(v), len(v))}' for k, v in lowest]
    yield 'notebooks, library / pipeline', f'{len(books)} / {sum(n.pipeline for n in tree.notebooks)}'
    yield 'largest notebook', f'{max(kib.values()):.0f} KiB ({max(kib, key=lambda k: kib[k])})' if kib else '-'
    yield 'library notebooks that store an image', percent(sum(n.pictured for n in books), len(books))


def form_rows(tree: Tree) -> Iterator[tuple[str, object]]:
    "Yield counts of import circles, types and docstrings."
    circles, boxes = rings(tree.graph), rings(folder_graph(tree)[0])
    functions = methods(tree)
    told = [n for n in functions if ast.get_docstring(n)]
    yield 'import circles between modules', len(circles)
    yield 'modules in them', [' '.join(sorted(c)) for c in circles]
    yield 'import circles between folders', len(boxes)
    yield 'folders in them', [' '.join(sorted(c)) for c in boxes]
    yield 'public functions and methods, all parameters typed', percent(sum(map(typed, functions)), len(functions))
    yield 'with a docstring', percent(len(told), len(functions))
    yield 'docstrings that begin with a known verb', percent(sum(map(imperative, told)), len(told))


def table(tree: Tree) -> dict[str, list[str]]:
    "Return all counts as lines by what they count."
    parts = (size_rows, name_rows, use_rows, notebook_rows, form_rows)
    rows = [row for part in parts for row in part(tree)]
    return {k: v if isinstance(v, list) else [str(v)] for k, v in rows}


def as_text(trees: list[Tree]) -> str:
    "Write the tables of trees side by side in markdown."
    tables = [table(t) for t in trees]
    lines = [['point', *(str(t.root) for t in trees)]]
    for key in tables[0]:
        for i, values in enumerate(zip_longest(*(t[key] for t in tables), fillvalue='')):
            lines.append([key if not i else '', *values])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ['| ' + ' | '.join(v.ljust(w) for v, w in zip(line, widths, strict=True)) + ' |' for line in lines]
    return '\n'.join([rows[0], '|' + '|'.join('-'*(w + 2) for w in widths) + '|', *rows[1:]])


# ------------------------------------------------------------------ the graph

def reach(graph: dict[str, set[str]], start: str) -> set[str]:
    "Return what can be reached from a node in one step or more."
    seen, queue = set(), [*graph[start]]
    while queue:
        node = queue.pop()
        if node not in seen:
            seen.add(node)
            queue += graph[node]
    return seen


def rings(graph: dict[str, set[str]]) -> list[set[str]]:
    "Return the groups of nodes that reach each other."
    far = {k: reach(graph, k) for k in graph}
    found: list[set[str]] = []
    for k in graph:
        group = {n for n in far[k] if k in far[n]}
        if group and group not in found: found.append(group)
    return found


def folder(module: str) -> str: return module.split('.')[0]


def folder_graph(tree: Tree) -> tuple[dict[str, set[str]], Counter[tuple[str, str]]]:
    "Return the imports between folders, a module at the top being its own, and how many modules' imports each holds."
    pairs = Counter((folder(k), folder(t)) for k, found in tree.graph.items() for t in found if folder(k) != folder(t))
    return {folder(k): {b for a, b in pairs if a == folder(k)} for k in tree.graph}, pairs


def levels(graph: dict[str, set[str]], weight: Counter[tuple[str, str]]) -> dict[str, int]:
    "Return the layer of each node above all that it imports, the lightest imports of a circle left out."
    down, cut = {k: set(v) for k, v in graph.items()}, []
    while found := rings(down):
        inside = [(weight[a, b], a, b) for ring in found for a in ring for b in down[a] & ring]
        _, a, b = min(inside)
        down[a].discard(b)
        cut.append((a, b))
    for a, b in reversed(cut):  # one cut early may close no circle after all
        if a not in reach(down, b): down[a].add(b)
    level: dict[str, int] = {}
    while len(level) < len(down):
        ready = [k for k in down if k not in level and down[k] <= level.keys()]
        level |= {k: 1 + max((level[t] for t in down[k]), default=-1) for k in ready}
    return level


@dataclass
class Box:
    "Hold a box of the picture, or a bend where arrows to one box join."
    name: str    # of the folder
    level: int
    lines: list[str] = field(default_factory=list)  # none is a bend
    leaving: int = 0
    x: float = 0.

    @property
    def width(self) -> float:
        if not self.lines: return .3
        return max(.115*len(self.name) + .3, max(.078*len(s) for s in self.lines) + .3, .9, .24*self.leaving)

    @property
    def height(self) -> float: return .185*len(self.lines) + .4 if self.lines else 0.


def in_columns(names: list[str], most: int = 7) -> list[str]:
    "Set names in as many columns as keep a box low."
    columns = math.ceil(len(names)/most)
    rows, width = math.ceil(len(names)/columns), max(map(len, names)) + 2
    return [''.join(n.ljust(width) for n in names[i::rows]).rstrip() for i in range(rows)]


Key = tuple[str, int]
Arrows = Counter[tuple[Key, Key]]


def make_boxes(tree: Tree, level: dict[str, int]) -> dict[tuple[str, int], Box]:
    "Return the boxes of folders by their name and layer."
    inside = defaultdict(list)
    for k in tree.graph: inside[folder(k)].append(k.partition('.')[2])
    return {(k, level[k]): Box(k, level[k], in_columns(v) if v != [''] else [' ']) for k, v in inside.items()}


def make_arrows(level: dict[str, int], weight: Counter[tuple[str, str]]) -> Arrows:
    "Lead the arrows down from layer to layer, those to one box joined on the way."
    down = Arrows()
    for (a, b), n in weight.items():
        path = [(a, level[a]), *((b, i) for i in range(level[a] - 1, level[b] - 1, -1))]
        for pair in zip(path, path[1:], strict=False): down[pair] += n
    return down


def set_out(rows: list[list[Box]], near: dict[Key, list[Key]], boxes: dict[Key, Box]) -> None:
    "Place the boxes of each row next to what they join, without overlap."
    for row in rows: spread(row, [i*1. for i in range(len(row))])
    for turn in range(60):
        for row in rows if turn % 2 else rows[::-1]:
            wanted = [statistics.fmean([boxes[k].x for k in near[b.name, b.level]] or [b.x]) for b in row]
            order = sorted(range(len(row)), key=lambda i: wanted[i])
            row[:] = [row[i] for i in order]
            spread(row, [wanted[i] for i in order])


def spread(row: list[Box], wanted: list[float], gap: float = .45) -> None:
    "Move the boxes of a row apart, as near as may be to the places wanted."
    groups: list[tuple[list[int], float]] = []  # boxes that touch, and the place of the first
    offset = [0.]
    for a, b in zip(row, row[1:], strict=False): offset.append(offset[-1] + (a.width + b.width)/2 + gap)
    for i, x in enumerate(wanted):
        group, place = [i], x - offset[i]
        while groups and groups[-1][1] > place:
            group = groups.pop()[0] + group
            place = statistics.fmean(wanted[j] - offset[j] for j in group)
        groups.append((group, place))
    for group, place in groups:
        for j in group: row[j].x = place + offset[j]


def heights(rows: list[list[Box]], gap: float = 1.) -> dict[int, float]:
    "Return the middle of each row, from the bottom up."
    middle, y = {}, 0.
    for i, row in enumerate(rows):
        tall = max(b.height for b in row)
        middle[i], y = y + tall/2, y + tall + gap
    return middle


def lay(boxes: dict[Key, Box], down: Arrows) -> dict[int, float]:
    "Place all boxes and bends, and return the middle of each row."
    for key in {k for pair in down for k in pair} - boxes.keys(): boxes[key] = Box(*key)
    tops = range(1 + max(b.level for b in boxes.values()))
    rows = [sorted((b for b in boxes.values() if b.level == i), key=lambda b: b.name) for i in tops]
    near = defaultdict(list)
    for a, b in down:
        boxes[a].leaving += 1
        near[a].append(b)
        near[b].append(a)
    set_out(rows, near, boxes)
    return heights(rows)


def draw(tree: Tree, file: Path) -> None:
    "Draw the folders in layers, what is imported below, with arrows as wide as the imports are many."
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    graph, weight = folder_graph(tree)
    level = levels(graph, weight)
    circle = {(a, b): n for (a, b), n in weight.items() if level[a] <= level[b]}
    down = make_arrows(level, weight - Counter(circle))
    boxes = make_boxes(tree, level)
    middle = lay(boxes, down)
    ends = [b.x + s*b.width/2 for b in boxes.values() for s in (-1, 1)]
    low, high = -.2, max(middle[b.level] + b.height/2 for b in boxes.values()) + .3
    fig = plt.figure(figsize=(max(ends) - min(ends) + .6, high - low))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(min(ends) - .3, max(ends) + .3), ylim=(low, high))
    ax.axis('off')
    ax.set_title(f'{tree.package}: {len(tree.graph)} modules. An arrow points to what is imported; its number says how '
                 'often, red closes a circle', loc='left', fontsize=11)
    paint_arrows(ax, boxes, middle, down)
    paint_circles(ax, boxes, middle, circle)
    for box in boxes.values(): paint_box(ax, box, middle[box.level])
    fig.savefig(file, bbox_inches='tight', dpi=110)
    plt.close(fig)


def thickness(n: int) -> float: return .7 + .22*n


def ports(down: Arrows, boxes: dict[Key, Box], end: int) -> dict[tuple[Key, Key], float]:
    "Return where arrows leave (end 0) or meet (end 1) their boxes, side by side in the order of the other ends."
    found = {}
    for key, box in boxes.items():
        mine = sorted((p for p in down if p[end] == key), key=lambda p: boxes[p[1 - end]].x)
        for i, p in enumerate(mine):
            shift = box.width*((i + 1)/(len(mine) + 1) - .5) if box.lines else 0
            found[p] = box.x + shift
    return found


def colours(down: Arrows) -> dict[str, Any]:
    "Return a colour for each box that arrows lead to, the strongest for those with most, and no red."
    from matplotlib import colormaps
    order, led = [i for i in [*range(0, 20, 2), *range(1, 20, 2)] if i not in (6, 7)], Counter[str]()
    for (_, b), n in down.items(): led[b[0]] += n
    return {k: colormaps['tab20'](order[i % len(order)]) for i, (k, _) in enumerate(led.most_common())}


def paint_arrows(ax: Any, boxes: dict[Key, Box], middle: dict[int, float], down: Arrows) -> None:
    "Paint the arrows in the colour of the box they lead to, numbers where they leave a box."
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve
    hues = colours(down)
    tall = {i: max(b.height for b in boxes.values() if b.level == i)/2 for i in middle}
    start, end = ports(down, boxes, 0), ports(down, boxes, 1)
    for (a, b), n in down.items():
        y0 = middle[a[1]] - (boxes[a].height/2 if boxes[a].lines else -tall[a[1]])
        y1 = middle[b[1]] + (boxes[b].height/2 if boxes[b].lines else tall[b[1]])
        top, foot = middle[a[1]] - tall[a[1]], middle[b[1]] + tall[b[1]]
        half_way, x0, x1 = (top + foot)/2, start[a, b], end[a, b]
        points = [(x0, y0), (x0, top), (x0, half_way), (x1, half_way), (x1, foot), (x1, y1)]
        codes = [Curve.MOVETO, Curve.LINETO, *[Curve.CURVE4]*3, Curve.LINETO]
        style = {'lw': thickness(n), 'ec': hues[b[0]], 'alpha': .75, 'fc': 'none', 'capstyle': 'butt', 'zorder': 1}
        ax.add_patch(PathPatch(Curve(points, codes), **style))
        if boxes[b].lines: ax.plot(x1, y1 + .05, 'v', ms=4 + thickness(n), color=hues[b[0]], zorder=2)
        if boxes[a].lines: ax.text(x0 + .03, y0 - .04, n, fontsize=8, va='top', color='.15', zorder=5)


def paint_circles(ax: Any, boxes: dict[Key, Box], middle: dict[int, float], circle: dict[tuple[str, str], int]) -> None:
    "Paint in red the arrows that do not point down, which are those that close a circle."
    level = {k: i for (k, i), box in boxes.items() if box.lines}
    for (a, b), n in circle.items():
        (xa, ya), (xb, yb) = [(boxes[k, level[k]].x, middle[level[k]]) for k in (a, b)]
        tail, side = ya + boxes[a, level[a]].height/2, boxes[b, level[b]].height/2
        style = {'arrowstyle': '-|>', 'color': 'red', 'lw': thickness(n), 'connectionstyle': 'arc3,rad=.25',
                 'shrinkA': 0, 'shrinkB': 0, 'mutation_scale': 14}
        ax.annotate('', (xb, yb - side if yb > ya else yb + side), (xa, tail), arrowprops=style, zorder=4)
        ax.text(xa, tail + .12, n, color='red', fontsize=9, ha='right', va='center', zorder=6)


def paint_box(ax: Any, box: Box, y: float) -> None:
    "Paint a box with its name and its modules."
    if not box.lines: return
    from matplotlib.patches import FancyBboxPatch
    corner = box.x - box.width/2, y - box.height/2
    ax.add_patch(FancyBboxPatch(corner, box.width, box.height, boxstyle='round,pad=0,rounding_size=.08', fc='white',
                                ec='.3', lw=1.2, zorder=3))
    alone = box.lines == [' ']
    ax.text(box.x, y if alone else corner[1] + box.height - .1, box.name, ha='center', va='center' if alone else 'top',
            fontsize=11, weight='bold', zorder=5)
    ax.text(corner[0] + .15, corner[1] + .08, '\n'.join(box.lines), va='bottom', family='monospace', fontsize=9,
            linespacing=1.45, zorder=5)


def main() -> None:
    "Print the counts, and draw the imports if asked."
    parser = argparse.ArgumentParser(prog='python -m benchmarks.house', description=__doc__)
    parser.add_argument('root', nargs='?', type=Path, default=HERE, help='of a checkout; this one if not given')
    parser.add_argument('--compare', type=Path, metavar='ROOT', help='of another checkout, in a second column')
    parser.add_argument('--draw', type=Path, metavar='FILE', help='.svg or .png of the imports between folders')
    asked = parser.parse_args()
    trees = [Tree(r) for r in (asked.root, asked.compare) if r]
    print(as_text(trees))
    if asked.draw: draw(trees[0], asked.draw)


if __name__ == '__main__': main()
