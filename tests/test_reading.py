"The chapters as a reader meets them: lines that fit on a page, chapters that end, nothing from a later chapter."
import ast, inspect, json, re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
BASE = ['core', 'schematics', 'folder', 'hub', 'attributes', 'words', 'data', 'world', 'clips', 'loop'] # the workshop below the course
COURSE = ['autoencoder', 'vae', 'forward', 'denoiser', 'training', 'evaluation', 'samplers', 'guidance', 'joint', 'baselines', 'own_images', 'faces', 'text', 'augmentation']
ABOVE = dict(features=[*BASE, 'autoencoder'], # stands above those that it uses
             runs=[*BASE, *COURSE[:5]],
             commands=[*BASE, *COURSE[:7], 'runs', 'features', 'own_images'],
             exercises=[*BASE, 'answers_model', 'answers_sampling', 'answers_beyond'],
             answers_model=[*BASE, 'exercises', *COURSE[:4]], # test_lesson.py holds each
             answers_sampling=[*BASE, 'exercises', *COURSE[:7], 'features'],
             answers_beyond=[*BASE, 'exercises', *COURSE, 'features']) # grader to its chapter

# `sample` finds its sampler by name, a run that is not finished its checkpoints, a model its pretrained autoencoder: read later
WHEN_CALLED = dict(training={'samplers', 'runs', 'own_images', 'text'}, data={'world'})


def cells(path, kind):
    return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]


def module_of(path):
    found = re.match(r'#\| default_exp (\w+)', cells(path, 'code')[0])
    return found[1] if found else None


def code_lines(path):
    return [line for c in cells(path, 'code') for line in c.splitlines() if not line.startswith('#|')]


MODULES = {module_of(p): p for p in NOTEBOOKS if cells(p, 'code') and module_of(p)}


def allowed(name):
    "The modules that a page may use, in its text's cells as in the exported ones."
    if name in ABOVE: return ABOVE[name]
    if name in BASE: return BASE[:BASE.index(name)]
    earlier = COURSE[:COURSE.index(name)]
    return [*BASE, 'exercises', *earlier, *(['features'] if 'autoencoder' in earlier else []),
            *(['runs'] if 'training' in earlier else [])]


def test_every_module_has_its_place():
    assert set(MODULES) == {*BASE, *COURSE, *ABOVE}
    numbers = [p.stem[:2] for p in NOTEBOOKS if p.stem[0].isdigit()]
    assert ['00', *(MODULES[name].stem[:2] for name in COURSE)] == sorted(numbers)
    assert all(MODULES[name].stem == f'a_{name}' for name in [*BASE, *ABOVE])


@pytest.mark.parametrize('name', sorted(MODULES))
def test_no_chapter_uses_a_later_one(name):
    "Exported cells and examples alike; there is one exception, inside a function."
    source = '\n'.join(cells(MODULES[name], 'code'))
    used = set(re.findall(r'(?:from|import) ldm_nb\.(\w+)', source))
    at_once = set(re.findall(r'^(?:from|import) ldm_nb\.(\w+)', source, re.M))
    for found, more in (at_once, set()), (used, WHEN_CALLED.get(name, set())):
        assert found <= {name, *allowed(name), *more}, f'{name} uses {found - set(allowed(name))}'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_lines_fit_on_a_page(path):
    lines = code_lines(path)
    assert not [line for line in lines if len(line) > 100]
    assert sum(len(line) > 88 for line in lines) <= len(lines)/10



@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_one_statement_a_line_and_no_puzzles(path):
    "No two statements on a line, no lambda in a lambda, no lambda that is called where it stands."
    for source in cells(path, 'code'):
        tree = ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.M))
        bodies = [getattr(n, field, None) for n in ast.walk(tree) for field in ('body', 'orelse', 'finalbody')]
        for body in bodies:
            if isinstance(body, list):
                begins = [statement.lineno for statement in body]
                assert len(set(begins)) == len(begins), f'{path.stem}: two statements a line in\n{source[:200]}'
        for node in ast.walk(tree):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.Lambda) and n is not node]
            assert not (isinstance(node, ast.Lambda) and inner), f'{path.stem}: nested lambda in\n{source[:200]}'
            assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Lambda)), source[:200]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_is_one_chapter(path):
    words = sum(len(text.split()) for text in cells(path, 'markdown'))
    assert len(cells(path, 'code')) <= 60 and words <= 4000, f'{len(cells(path, "code"))} code cells, {words} words'


@pytest.mark.parametrize('path', list(MODULES.values()), ids=lambda p: p.stem)
def test_long_figures_are_folded(path):
    "The reader sees prose, idea, figure: the code of a figure of more than six lines waits behind a click."
    for source in cells(path, 'code'):
        lines = [line for line in source.splitlines() if line.strip() and not line.startswith('#|')]
        draws = re.search(r'\bplt\.subplots\(|\bpanels\(', source) and not re.search(r'^#\| *(export|hide)', source, re.M)
        if draws and len(lines) > 6:
            assert '#| code-fold: true' in source and '#| code-summary: "' in source, f'{path.stem}:\n{source[:200]}'


def public(name):
    "The public classes and functions that a module defines, and the methods of the classes."
    module = import_module(f'ldm_nb.{name}')
    for thing in (getattr(module, key) for key in module.__all__):
        if getattr(thing, '__module__', None) != module.__name__: continue
        if inspect.isclass(thing):
            yield thing.__name__, thing, thing.__doc__
            for key, method in vars(thing).items():
                if key == 'forward' or (inspect.isfunction(method) and not key.startswith('_')):
                    yield f'{thing.__name__}.{key}', method, method.__doc__
        elif inspect.isfunction(thing):
            yield thing.__name__, thing, thing.__doc__


@pytest.mark.parametrize('name', sorted(MODULES))
def test_public_names_explain_themselves(name):
    "A docstring of its own for each; nothing that the site would turn into emphasis or a stray link."
    for label, thing, doc in public(name):
        assert doc and doc.strip() and 'Call self as a function' not in doc, f'{label} has no docstring'
        assert not (inspect.isclass(thing) and doc.startswith(f'{thing.__name__}(')), f'{label}: the docstring of a dataclass'
        bare = re.sub(r'`[^`]*`', '', doc)
        assert '*' not in bare and '](' not in bare, f'{label}: {doc}'


@pytest.mark.parametrize('name', sorted(MODULES))
def test_parameter_comments_hold_no_markup(name):
    "nbdev makes raw links of it in the table of parameters."
    for source in cells(MODULES[name], 'code'):
        if not re.search(r'^#\| *export', source, re.M): continue
        for signature in re.findall(r'^(?:@\w+.*\n)*def .*?(?:\n    ["\'\w]|\Z)', source, re.M | re.S):
            for comment in re.findall(r'#([^|].*)$', signature, re.M):
                assert '](' not in comment and '`' not in comment, f'{name}: {comment}'
