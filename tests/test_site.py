"The site without Quarto: its configuration, every link, anchor, picture and citation, and each processed notebook as HTML."
import ast, configparser, json, os, re, shutil, subprocess, sys, tempfile, unicodedata
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent; NBS = ROOT/'nbs'
NOTEBOOKS = sorted(NBS.glob('*.ipynb'))
CHAPTERS = [p for p in NOTEBOOKS if re.match(r'\d\d_|a_', p.stem)] # and the workshop
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


SITE = CONFIG['website']
ENTRIES = [e for group in SITE['sidebar']['contents'] for e in group.get('contents', [group])]


def title(path): return headings(path)[0][1]


def test_configuration_names_what_is_there():
    pages = [entry['href'] for entry in ENTRIES]
    assert sorted(pages) == [p.name for p in NOTEBOOKS]
    assert [p for p in pages if p[0].isdigit()] == [p.name for p in CHAPTERS if p.stem[0].isdigit()]
    bar = [entry['href'].partition('#')[0] for entry in SITE['navbar']['left']]
    cards = [SITE[card]['image'] for card in ('open-graph', 'twitter-card')]
    files = [*bar, *cards, CONFIG['bibliography'], CONFIG['csl'], CONFIG['format']['html']['css'],
             SITE['favicon'], '404.qmd']
    assert not [name for name in files if not (NBS/name).is_file()]
    link = NBS/'_quarto.yml'
    assert link.is_symlink() and link.read_bytes() == (ROOT/'_quarto.yml').read_bytes()
    assert CONFIG['metadata-files'] == ['nbdev.yml'] and SITE['search']
    assert set(CONFIG['format']['html']['theme']) == {'light', 'dark'}


def test_sidebar_goes_in_reading_order():
    "The course by number, the workshop, then what is looked up."
    groups = {g.get('section', g.get('text')): [e['href'] for e in g.get('contents', [g])]
              for g in SITE['sidebar']['contents']}
    assert list(groups) == ['Start', 'The model', 'Training and evaluation', 'Beyond',
                            'The workshop', 'To look things up']
    stems = lambda name: [href.partition('_')[0] for href in groups[name]]
    assert stems('The model') == ['00', '01', '02', '03', '04']
    assert stems('Training and evaluation') == ['05', '06', '07', '08']
    assert stems('Beyond') == ['09', '10', '11', '12', '13', '15'] # 14 is being built
    assert set(stems('The workshop')) == {'a'} and groups['The workshop'][0] == 'a_core.ipynb'
    numbers = [int(e['href'][:2]) for e in ENTRIES if e['href'][0].isdigit()]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda e: e['href'])
def test_sidebar_says_the_title(entry):
    "Number and title of the page, or the title's first words; the page bears its number, too."
    if entry['href'] == 'index.ipynb': return
    path = NBS/entry['href']; said = entry['text']
    assert re.match(re.escape(said) + r'(?!\w)', title(path)), '_quarto.yml has another title'
    number = path.stem[:3].replace('_', ' ') if path.stem[0].isdigit() else ''
    assert said.startswith(number) and bool(number) == said[0].isdigit()


def test_bar_leads_to_the_map_and_to_the_repository():
    _, chapters, _ = SITE['navbar']['left']; file, _, fragment = chapters['href'].partition('#')
    assert (chapters['text'], file) == ('Chapters', 'index.ipynb')
    assert fragment in [anchor(h) for _, h in headings(NBS/file)]
    code, = SITE['navbar']['right']
    settings = configparser.ConfigParser(); settings.read(ROOT/'settings.ini')
    assert code['icon'] == 'github' and code['href'] == settings['DEFAULT']['git_url']
    assert code['aria-label']


def test_source_links_lead_into_the_folder_of_the_notebooks(processed):
    "nbdev.yml gives repository and branch, _quarto.yml the folder; neither hides the other."
    made = yaml.safe_load((processed.parent/'nbs'/'nbdev.yml').read_text())['website']
    assert not set(made) & set(SITE) and SITE['repo-subdir'] == NBS.name
    there = f"{made['repo-url']}/blob/{made['repo-branch']}/{SITE['repo-subdir']}/02_vae.ipynb"
    assert there == 'https://github.com/ldm-nb/ldm_nb/blob/main/nbs/02_vae.ipynb'


def test_icon_and_card_have_their_sizes():
    from PIL import Image
    assert Image.open(NBS/SITE['favicon']).size == (64, 64)
    card = SITE['open-graph']; size = card['image-width'], card['image-height']
    assert Image.open(NBS/card['image']).size == size == (1200, 630)
    assert all(len(SITE[kind]['image-alt']) > 40 for kind in ('open-graph', 'twitter-card'))


def test_quarto_is_pinned_once():
    version, = re.findall(r'^quarto-cli==([\d.]+)$', (ROOT/'constraints.txt').read_text(), re.M)
    others = [ROOT/'Makefile', ROOT/'_quarto.yml', ROOT/'settings.ini',
              *(ROOT/'.github'/'workflows').glob('*.yml')]
    assert not [p.name for p in others if version in p.read_text(encoding='utf-8')]
    jobs = yaml.safe_load((ROOT/'.github/workflows/site.yml').read_text())['jobs']
    steps = jobs['build']['steps']
    reads, = (s for s in steps if s.get('id') == 'quarto')
    uses, = (s for s in steps if 'quarto-actions' in s.get('uses', ''))
    assert steps.index(reads) < steps.index(uses)
    assert uses['with']['version'] == '${{ steps.quarto.outputs.version }}'
    with tempfile.NamedTemporaryFile('r') as out: # the step as the workflow runs it
        env = os.environ | {'GITHUB_OUTPUT': out.name}
        subprocess.run(['bash', '-c', reads['run']], cwd=ROOT, env=env, check=True)
        assert out.read() == f'version={version}\n'


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
    link = re.compile(r'\*\*(.+?)\*\*.*\[([^\]]+)\]\(((?:\d\d|a)_\w+\.ipynb)#\S+\)$')
    entries = [link.match(line) for text in cells(NBS/'glossary.ipynb')[2:]
               for line in text.splitlines()[1:] if line.strip()]
    plain = lambda s: unicodedata.normalize('NFKD', s).encode('ascii', 'ignore').decode().lower()
    terms = [plain(m[1].replace('`', '')) for m in entries]
    assert len(terms) > 60 and terms == sorted(set(terms))
    assert {m[3] for m in entries} > {'01_autoencoder.ipynb', '06_evaluation.ipynb',
                                      '10_showdown.ipynb', 'a_loop.ipynb', 'a_features.ipynb'}
    for m in entries: # the text of a link names its page
        if m[3][0].isdigit(): assert m[2] == f'chapter {m[3][:2]}', m[1]
        else: assert m[2] == f'the {m[3][2:-6]}', m[1]


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
    code = 'import nbdev.quarto as q; q.refresh_quarto_yml(); q.proc_nbs()'
    subprocess.run([sys.executable, '-c', code], cwd=copy, check=True, capture_output=True)
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
    files = ('_quarto.yml', 'styles.css', 'references.bib', 'numeric.csl', '404.qmd',
             'images/samples.png', 'images/card.png', 'images/favicon.png')
    assert not [name for name in files if not (processed/name).exists()]
    page = nbformat.read(processed/'02_vae.ipynb', 4).cells
    api = '\n'.join(o.data.get('text/markdown', '') for c in page if c.source.strip().endswith('show_doc(reparameterize)') for o in c.outputs)
    assert re.search(r'#+ reparameterize', api) and 'ldm_nb/vae.py' in api, 'API documentation with a link to its source'
    assert any('<details>' in c.source for c in page), 'folded solutions'


def test_processed_titles_are_those_of_the_sidebar(processed):
    "What nbdev makes of a title is what Quarto shows: above the page, in the tab, in the search."
    for entry in ENTRIES:
        raw = nbformat.read(processed/entry['href'], 4).cells[0].source
        shown = yaml.safe_load(raw.strip().strip('-'))['title']
        assert shown == title(NBS/entry['href'])
        if entry['href'] != 'index.ipynb': assert shown.startswith(entry['text'])


def test_index_tables_name_every_page():
    "The course, then the workshop, in the order of the sidebar; the minutes where they are known."
    found = json.loads((NBS/'index.ipynb').read_text(encoding='utf-8'))['cells']
    outputs = '\n'.join(''.join(o['data'].get('text/markdown', '')) for c in found
                        if c['cell_type'] == 'code' for o in c['outputs'])
    rows = re.findall(r'^\| \[([^\]]+)\]\((\w+\.ipynb)\) \| .+ \| ([\d.]*) \|$', outputs, re.M)
    pages = [e['href'] for e in ENTRIES if '_' in e['href']]
    assert [name for _, name, _ in rows] == pages
    assert all(text[:2] == name[:2] for text, name, _ in rows if name[0].isdigit())
    assert all(len(text) <= 18 for text, _, _ in rows), 'a name in the table fits on one line'


@pytest.mark.parametrize('name', ['index', 'references'])
def test_code_of_the_outer_pages_is_plain(name):
    "At most 88 columns, one statement a line."
    for source in cells(NBS/f'{name}.ipynb', 'code'):
        assert all(len(line) <= 88 for line in source.splitlines()), source[:80]
        starts = [node.lineno for node in ast.walk(ast.parse(source))
                  if isinstance(node, ast.stmt) and not isinstance(node, ast.Return)]
        assert len(set(starts)) == len(starts), source[:80]


QUARTO = """#!/bin/sh
# Does what nbdev expects of quarto: a page for the site, or a README of its own.
if [ "$1" = --version ]; then echo 1.7.32; exit; fi
mkdir -p _docs
case "$*" in *README.md*) echo another > _docs/README.md;; *) echo page > _docs/index.html;; esac
"""


@pytest.mark.skipif(not all(map(shutil.which, ('make', 'git'))), reason='no make or no git here')
def test_make_docs_leaves_the_tree_clean(tmp_path):
    "nbdev_docs would write a README of its own where that is older than the index."
    copy = tmp_path/'ldm_nb'
    ignore = shutil.ignore_patterns('.venv', 'runs', '.git', '__pycache__', '_proc', '_docs',
                                    'build', 'dist', '*.egg-info', 'nbdev.yml', 'sidebar.yml')
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
    (tmp_path/'bin').mkdir(); quarto = tmp_path/'bin'/'quarto'
    quarto.write_text(QUARTO); quarto.chmod(0o755)
    git = ['git', '-c', 'user.name=t', '-c', 'user.email=t@t', '-c', 'core.autocrlf=false']
    for command in (['init', '-q'], ['add', '-A'], ['commit', '-qm', 'all']):
        subprocess.run([*git, *command], cwd=copy, check=True, capture_output=True)
    os.utime(copy/'README.md', (1, 1)) # as after a clone, where the order of files is chance
    env = os.environ | {'PATH': f"{quarto.parent}{os.pathsep}{os.environ['PATH']}",
                        'PYTHONPATH': str(copy)}
    make = ['make', '-o', '.venv/.dev', 'docs', f'BIN={Path(sys.executable).parent}']
    made = subprocess.run(make, cwd=copy, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert (copy/'_docs'/'index.html').read_text() == 'page\n'
    status = subprocess.run([*git, 'status', '--porcelain'], cwd=copy, check=True,
                            capture_output=True, text=True).stdout
    assert not status, status


def test_plots_and_pictures_are_told_apart():
    "The dark theme turns plots round: 'Grid of' begins the text of pictures, and of them only."
    css = (NBS/'styles.css').read_text()
    for spared in ('[alt^="Grid of"]', '[alt*=" grids of "]'): assert spared in css
    for path in NOTEBOOKS:
        for cell in figure_cells(path):
            source = ''.join(cell['source'])
            text = re.search(r'^#\| fig-alt: "([^"]+)"$', source, re.M)[1]
            calls = (r"\bshow_(images|rows|named)\(|image_grid\(|imshow\([^\n]*cmap='gr[ae]y'"
                     r"|\bpreviews=")
            shows = bool(re.search(calls, source))
            spared = text.startswith('Grid of') or ' grids of ' in text
            assert shows == spared, f'{path.stem}: {text[:60]}'


CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
                None)
DOT = ('data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+'
       'Av4N70a4AAAAAElFTkSuQmCC')
WIDE = '<span style="display: inline-block; width: 1500px">formula</span>'
BODY = f"""
<header><nav class="navbar" style="display: flex"><div class="navbar-container" 
 style="display: flex; width: 100%">
<button class="navbar-toggler">=</button><div class="navbar-brand-container">
<a class="navbar-brand"><span class="navbar-title">ldm_nb</span></a></div>
<div class="quarto-navbar-tools">o</div>
<div id="quarto-search"><button style="width: 32px">?</button></div></div></nav></header>
<main class="content">
<p>text <span class="math display"><mjx-container display="true" style="display: block">{WIDE}
</mjx-container></span></p>
<p id="inline">so <span class="math inline">{WIDE}</span></p>
<table class="table"><tbody><tr><td><a href="x">01_autoencoder_of_the_course</a></td>
{'<td>wide_column_without_a_gap</td>'*9}</tr></tbody></table>
<p>with <code id="chip">code</code></p>
<div class="cell-output cell-output-display"><div><figure class="figure">
<img id="plot" class="figure-img" width="1400" height="300" src="{DOT}" alt="Line plot of x">
<figcaption>caption</figcaption></figure></div></div>
<div class="cell-output cell-output-display"><figure class="figure">
<img id="grid" class="figure-img" src="{DOT}" alt="Grid of pictures: x"></figure></div>
<div class="cell-output cell-output-display"><figure class="figure">
<img id="grids" class="figure-img" src="{DOT}" alt="Four grids of samples"></figure></div>
<div class="cell-output cell-output-display"><div class="animation">
<img id="film" width="1400" src="{DOT}" alt="Film of 3 frames"><div class="anim-controls">
<input type="range"><div class="anim-buttons"><button title="Play">play</button></div>
<form class="anim-state"><label>Once</label></form></div></div></div>
</main>"""
BASE = """* { box-sizing: border-box } body { margin: 0; font: 17px sans-serif }
main { width: min(100%, 750px); padding: 0 16px } th, td { padding: 8px }
body.quarto-dark { background: #222; color: #fff } code { background: #f8f9fa; color: #7d12ba }
.anim-buttons button { background: #efefef; color: #000 }"""
LOOK = """() => {
  const get = s => document.querySelector(s), style = s => getComputedStyle(get(s))
  const fits = e => {
    const r = e.getBoundingClientRect()
    return r.left >= 0 && r.right <= innerWidth
  }
  const boxes = ['.math.display', '#inline', 'table']
  return {
    sideways: document.documentElement.scrollWidth - innerWidth,
    scroll: boxes.every(s => get(s).scrollWidth > get(s).clientWidth && fits(get(s)) &&
                             style(s).overflowX == 'auto'),
    fit: ['img', '#quarto-search', '.animation', 'input'].every(
      s => [...document.querySelectorAll(s)].every(fits)),
    name: get('td a').getClientRects().length,
    button: [style('button[title]').color, style('button[title]').backgroundColor],
    chip: style('#chip').backgroundColor, text: style('main').color,
    filters: ['plot', 'grid', 'grids', 'film'].map(i => style('#' + i).filter),
  }
}"""


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    if not CHROMIUM: pytest.skip('no Chromium here: apt-get install chromium')
    with api.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield found
        found.close()


@pytest.mark.parametrize('theme', ['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1280])
def test_styles_in_a_browser(browser, width, theme):
    "Classes as in a page of Quarto's: nothing leaves the screen, and the dark theme is legible."
    page = browser.new_page(viewport=dict(width=width, height=800))
    css = (NBS/'styles.css').read_text()
    page.set_content(f'<style>{BASE}{css}</style><body class="quarto-{theme}">{BODY}')
    look = page.evaluate(LOOK); page.close()
    assert look['sideways'] <= 0 and look['scroll'] and look['fit'], look
    assert look['name'] == 1, 'the name of a chapter is broken'
    assert look['button'] == [look['text'], 'rgba(0, 0, 0, 0)']
    plot, *pictures = look['filters']
    assert set(pictures) == {'none'}
    assert plot == ('none' if theme == 'light' else 'invert(0.87) hue-rotate(180deg)')
    light = look['chip'] == 'rgb(248, 249, 250)'
    assert light == (theme == 'light'), look['chip']
