"The site without Quarto: its configuration, every link, anchor, picture and citation, and each processed notebook as HTML."
import json, re, shutil, subprocess, sys, unicodedata
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent; NBS = ROOT/'nbs'
NOTEBOOKS = sorted(NBS.glob('*.ipynb')); CHAPTERS = [p for p in NOTEBOOKS if p.stem[0].isdigit()]
PAGES = [*NOTEBOOKS, *NBS.glob('*.qmd'), *(ROOT/name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'bench/RECIPE.md'))]
CONFIG = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
BIB = (NBS/'references.bib').read_text(encoding='utf-8'); KEYS = re.findall(r'^@\w+\{(\w+),$', BIB, re.M)


def cells(path, kind='markdown'): return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]
def prose(path): # the text of a page, without its code blocks
    text = '\n\n'.join(cells(path)) if path.suffix == '.ipynb' else path.read_text(encoding='utf-8')
    return re.sub(r'```.*?```', '', text, flags=re.S)
def headings(path): return re.findall(r'^(#{1,6}) (.+)$', prose(path), re.M)
def anchor(heading): # as pandoc makes it
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).replace('`', '').replace('*', '')
    text = ''.join(c for c in re.sub(r'\s+', ' ', text.strip()) if c.isalnum() or c in '_-. ').replace(' ', '-').lower()
    return re.sub(r'^[^a-zA-Z\u00c0-\uffff]+', '', text) or 'section'


def test_configuration_names_what_is_there():
    pages = [page for section in CONFIG['website']['sidebar']['contents'] for page in section['contents']]
    assert sorted(pages) == [p.name for p in NOTEBOOKS] and [p for p in pages if p[0].isdigit()] == [p.name for p in CHAPTERS]
    bar = [entry['href'] for entry in CONFIG['website']['navbar']['left']]
    files = [*bar, CONFIG['bibliography'], CONFIG['csl'], CONFIG['website']['favicon'], CONFIG['website']['open-graph']['image'], '404.qmd']
    assert not [name for name in files if not (NBS/name).is_file()]
    assert (NBS/'_quarto.yml').is_symlink() and (NBS/'_quarto.yml').read_bytes() == (ROOT/'_quarto.yml').read_bytes()
    assert CONFIG['metadata-files'] == ['nbdev.yml'] and CONFIG['website']['search'] and set(CONFIG['format']['html']['theme']) == {'light', 'dark'}


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.name)
def test_links_anchors_and_pictures_resolve(path):
    for text, target in re.findall(r'(!?\[[^\]]*)\]\(([^)\s]+)\)', prose(path)):
        if re.match(r'https?:', target): continue
        file, _, fragment = target.partition('#')
        if path.suffix == '.qmd': file = file.removeprefix('/').replace('.html', '.ipynb')
        page = path.parent/file if file else path
        assert page.exists(), f'{path.name}: {target}'
        if fragment: assert fragment in [anchor(h) for level, h in headings(page) if len(level) > 1], f'{path.name}: {target}'
        if text.startswith('!'): assert len(text) > 20, f'{path.name}: {target} has no alternative text'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_headings_are_in_order(path):
    levels = [len(level) for level, _ in headings(path)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:]))
    names = [anchor(h) for _, h in headings(path)]; assert len(set(names)) == len(names), 'two headings with one anchor'


NAMED = re.compile(r"((?:van den |van |de )?[A-ZÀ-Ý][\wÀ-ÿń'-]+)(?: et al\.| and [A-ZÀ-Ý][\wÀ-ÿń'-]+)?,? \(?((?:19|20)\d\d)\b( \[@\w+)?")
def key_of(name, year): return re.sub('[^a-z]', '', unicodedata.normalize('NFKD', name).encode('ascii', 'ignore').decode().lower()) + year


def test_every_work_is_cited_and_listed():
    "Every author and year has an entry, the first mention in a chapter's text carries its key, and no entry is left over."
    used = set()
    for path in CHAPTERS:
        first = {}
        for name, year, cited in NAMED.findall(prose(path)): first.setdefault(key_of(name, year), cited)
        assert all(cited == f' [@{key}' for key, cited in first.items()), f'{path.stem}: {[k for k, c in first.items() if c != f" [@{k}"]}'
        used |= set(first) | {key_of(name, year) for name, year, _ in NAMED.findall('\n'.join(cells(path, 'code')))}
        assert set(re.findall(r'\[@(\w+)', prose(path))) <= set(KEYS)
    assert used == set(KEYS), f'not in the bibliography: {used - set(KEYS)}; not used: {set(KEYS) - used}'
    assert len(used) > 50 and KEYS == sorted(set(KEYS))


def test_bibliography_is_whole():
    for entry in re.split(r'\n\n(?=@)', BIB.strip()):
        fields = dict(re.findall(r'^  (\w+) = \{(.+)\},$', entry, re.M)); key = re.match(r'@\w+\{(\w+),', entry)[1]
        assert {'author', 'title', 'year', 'url'} <= set(fields) and entry.endswith('\n}') and key.endswith(fields['year']) and entry.count('{') == entry.count('}'), key
    listed = ''.join(''.join(o['data']['text/markdown']) for c in json.loads((NBS/'references.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code' for o in c['outputs'])
    assert re.findall(r'^\*\*(\w+)\*\*', listed, re.M) == KEYS, 'make notebooks CHAPTERS=references'


def test_glossary_is_in_order():
    entries = [re.match(r'\*\*(.+?)\*\*.*\]\((\d\d_\w+\.ipynb)#\S+\)$', line) for text in cells(NBS/'glossary.ipynb')[2:] for line in text.splitlines()[1:] if line.strip()]
    terms = [unicodedata.normalize('NFKD', m[1].replace('`', '')).encode('ascii', 'ignore').decode().lower() for m in entries]
    assert len(terms) > 60 and terms == sorted(set(terms)) and {m[2] for m in entries} > {'02_autoencoder.ipynb', '07_evaluation.ipynb', '11_showdown.ipynb'}


def figure_cells(path): return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code' and any('image/png' in o.get('data', {}) for o in c['outputs'])]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_figures_have_alternative_texts(path):
    texts = [re.search(r'^#\| fig-alt: "([^"]+)"$', ''.join(c['source']), re.M) for c in figure_cells(path)]
    assert all(m and 60 <= len(m[1]) <= 260 for m in texts), [''.join(c['source'])[:60] for c, m in zip(figure_cells(path), texts) if not m]
    assert len({m[1] for m in texts}) == len(texts)


@pytest.fixture(scope='module')
def processed(tmp_path_factory):
    "The notebooks as nbdev hands them to Quarto: hidden cells gone, API documentation put in."
    copy = tmp_path_factory.mktemp('site')/'ldm_nb'
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns('.venv', 'runs', '.git', '__pycache__', '_proc', '_docs'))
    subprocess.run([sys.executable, '-c', 'from nbdev.serve import proc_nbs; proc_nbs()'], cwd=copy, check=True, capture_output=True)
    return copy/'_proc'


class Page(HTMLParser):
    def __init__(self, html): super().__init__(); self.levels, self.pictures = [], []; self.feed(html)
    def handle_starttag(self, tag, attrs):
        if re.fullmatch('h[1-6]', tag): self.levels.append(int(tag[1]))
        if tag == 'img': self.pictures.append(dict(attrs))


@pytest.mark.parametrize('name', [p.name for p in NOTEBOOKS])
def test_processed_notebook_as_html(processed, name):
    from nbconvert import HTMLExporter
    nb = nbformat.read(processed/name, 4)
    for c in nb.cells: # as Quarto: a cell's fig-alt is the text of its pictures
        if m := re.search(r'^#\| fig-alt: "([^"]+)"$', c.source, re.M): c.metadata['alt'] = m[1]
    title = nb.cells[0]; assert title.cell_type == 'raw' and re.search('^title: .', title.source, re.M) and re.search('^description: .', title.source, re.M) # Quarto's h1
    html, _ = HTMLExporter(template_name='classic').from_notebook_node(nb); page = Page(html)
    assert len(html.encode()) < 6e6 and 1 not in page.levels and page.levels[:1] in ([2], []) and all(b <= a + 1 for a, b in zip(page.levels, page.levels[1:]))
    assert not [str(p)[:80] for p in page.pictures if len(p.get('alt') or '') < 12]
    intro = cells(NBS/name)[1]; assert intro[:60] in '\n'.join(c.source for c in nb.cells), 'nbdev drops what stands in the cell of the title'


def test_processed_site_is_complete(processed):
    assert not [name for name in ('_quarto.yml', 'references.bib', 'numeric.csl', '404.qmd', 'images/samples.png') if not (processed/name).exists()]
    page = nbformat.read(processed/'03_vae.ipynb', 4).cells
    api = '\n'.join(o.data.get('text/markdown', '') for c in page if c.source.strip().endswith('show_doc(reparameterize)') for o in c.outputs)
    assert re.search(r'#+ reparameterize', api) and 'ldm_nb/vae.py' in api, 'API documentation with a link to its source'
    assert any('<details>' in c.source for c in page), 'folded solutions'
