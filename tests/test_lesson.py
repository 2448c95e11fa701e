"""What makes a chapter a lesson: its place in the pipeline, a schematic, three graded
exercises with hints, solutions that are right, and wrong answers that are caught."""
import ast
import math
import re

import pytest
import torch

import ldm_nb.exercises
from ldm_nb.exercises import check
from test_reading import COURSE, MODULES, NOTEBOOKS, allowed, cells

CHAPTERS = [path for path in NOTEBOOKS if re.match(r'\d\d_', path.stem)]
PAGES = [path for path in NOTEBOOKS if path.stem.startswith(('a_exercises', 'a_answers'))]
SOURCE = [c for path in PAGES for c in cells(path, 'code')]
GRADES = 'Warm-up', 'Fill in', 'Project'
by_chapter = pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)


def exercises(path):
    "The text of a chapter from its exercises on, and the names that it checks there."
    text = '\n'.join(cells(path, 'markdown'))
    assert text.count('\n## Exercises') == 1, 'a section "## Exercises"'
    text = text.split('\n## Exercises')[1]
    names = [re.findall(r"^check\('(\w+)', ", source, re.M) for source in cells(path, 'code')]
    return text, [name for found in names for name in found]


def solutions(path):
    found = re.findall(r'<details><summary>Solution</summary>(.*?)</details>',
                       exercises(path)[0], re.S)
    return ['\n'.join(re.findall(r'```python\n(.*?)```', text, re.S)) for text in found]


def graders():
    return list(ldm_nb.exercises.graders())


@by_chapter
def test_a_chapter_says_where_we_are(path):
    "The pipeline stands above the first section, with the chapter's parts lit."
    import json
    before = []
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown' and re.search(r'^## ', source, re.M):
            break
        before.append(source)
    assert len(re.findall(r"^pipeline\('", '\n'.join(before), re.M)) == 1


@by_chapter
def test_a_chapter_has_its_schematic(path):
    drawn = [c for c in cells(path, 'code') if re.search(r'\bdiagram\(', c)]
    assert drawn and all('#| fig-alt: "Schematic' in c for c in drawn)


@by_chapter
def test_three_graded_exercises_with_hints(path):
    text, names = exercises(path)
    assert len(names) >= 3 and len(set(names)) == len(names)
    for grade in GRADES:
        assert re.search(rf'\*\*{grade}[:.]', text), f'no exercise of the grade {grade}'
    hints, answers = (text.count(f'<details><summary>{what}</summary>')
                      for what in ('Hint', 'Solution'))
    assert answers >= 3 and hints >= 3
    for part in text.split('<details><summary>Solution</summary>')[:-1]:
        assert '<details><summary>Hint</summary>' in part.split('</details>\n\n**')[-1]


@by_chapter
def test_solutions_are_right(path):
    "Each in a fresh namespace, with what the chapter may import."
    names = exercises(path)[1]
    modules = [m for m, where in MODULES.items() if where == path]
    used = [*allowed(modules[0]), *modules] if modules else [*allowed('vae'), 'vae']
    checked = []
    for code in solutions(path):
        seen = {}
        def judged(name, answer):
            seen[name] = check(name, answer)
            return seen[name]
        space = dict(torch=torch, math=math, F=torch.nn.functional, nn=torch.nn)
        for module in used:
            exec(f'from ldm_nb.{module} import *', space)
        exec(code, space | dict(check=judged))
        assert all(seen.values()), seen
        checked += seen
    assert set(names) <= set(checked), f'no solution for {set(names) - set(checked)}'


def test_every_grader_belongs_to_one_chapter():
    used = [name for path in CHAPTERS for name in exercises(path)[1]]
    assert sorted(used) == sorted(set(graders()) - {'area'})


def test_every_grader_catches_typical_mistakes():
    "Two wrong answers at least for each, and the hint that each must get."
    source = '\n'.join(SOURCE)
    for name in graders():
        cases = re.search(rf"^wrong_{name} = .*?^(?=\S)(?!\]|\)|\}})", source + '\nend', re.M | re.S)
        assert cases, f'no wrong_{name} on the page'
        assert re.search(rf"^caught\('{name}', wrong_{name}\)", source, re.M)
        value = ast.parse(cases[0]).body[0].value
        assert isinstance(value, (ast.List, ast.Dict))
        assert len(value.elts if isinstance(value, ast.List) else value.keys) >= 2


def test_graders_use_no_later_chapter():
    text = [c for c in SOURCE if '#| export' in c]
    owner = {name: next(p for p in CHAPTERS if name in exercises(p)[1])
             for name in graders() if name != 'area'}
    for cell in text:
        for name in re.findall(r'^def grade_(\w+)', cell, re.M):
            if name == 'area':
                continue
            module = next((m for m, p in MODULES.items() if p == owner[name]), 'vae')
            used = set(re.findall(r'from ldm_nb\.(\w+)', cell))
            assert used <= {module, *allowed(module)}, f'{name} uses {used}'
    top = [line for c in text for line in c.splitlines() if line.startswith('from ldm_nb')]
    allowed_there = {'from ldm_nb.core import *', 'from ldm_nb.exercises import *'}
    assert set(top) <= allowed_there, 'graders import chapters when they run'


def test_the_first_model_is_small():
    "Under sixty lines of model and training code, in all."
    path = next(p for p in CHAPTERS if p.stem == '00_first_model')
    lines = 0
    for source in cells(path, 'code'):
        tree = ast.parse(source)
        wanted = {'ring', 'mix', 'waves', 'layer', 'Network', 'loss_of', 'train', 'walk'}
        for node in tree.body:
            if getattr(node, 'name', None) in wanted:
                lines += node.end_lineno - node.lineno + 1
                wanted.remove(node.name)
    assert 40 < lines < 60
