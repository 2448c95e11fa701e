"A reader's JupyterLab in a real browser: it starts, the first page of the workshop opens, Restart and Run All finishes at smoke size, a figure and a film are to be seen. LAB_CHAPTERS=all: every chapter."
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

ROOT, TOKEN = Path(__file__).parent.parent, 'reader'
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
api = pytest.importorskip('playwright.sync_api', reason='no Playwright here: pip install playwright')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium here: apt-get install chromium')


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "The address of a JupyterLab on a copy of the chapters, with settings of its own, and the folder of that copy."
    folder = tmp_path_factory.mktemp('lab'); nbs = shutil.copytree(ROOT/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('_quarto.yml'))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | dict(LDM_SIZE='smoke', OMP_NUM_THREADS='1', JUPYTER_CONFIG_DIR=str(folder/'config'), JUPYTER_DATA_DIR=str(folder/'data'),
                                                                       JUPYTER_RUNTIME_DIR=str(folder/'runtime'), IPYTHONDIR=str(folder/'ipython'), JUPYTERLAB_SETTINGS_DIR=str(folder/'settings'), JUPYTERLAB_WORKSPACES_DIR=str(folder/'workspaces'))
    log = open(folder/'log', 'w')
    server = subprocess.Popen([Path(sys.executable).parent/'jupyter', 'lab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0', f'--IdentityProvider.token={TOKEN}', nbs/'index.ipynb'],
                              env=env, cwd=folder, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=1); break
            except OSError: assert server.poll() is None, (folder/'log').read_text(); time.sleep(.25)
        else: pytest.fail((folder/'log').read_text())
        yield f'http://127.0.0.1:{port}', nbs
    finally: server.terminate(); server.wait(20); log.close()


@pytest.fixture(scope='module')
def page(lab):
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1200, height=1000)); page.set_default_timeout(60_000)
        yield page
        browser.close()


def executed(path): # the code cells of a notebook that were run
    return [c['execution_count'] for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']


def restart_and_run_all(page, address, chapter): # the outputs of its code cells
    assert not any(executed(chapter)), 'committed notebooks carry no execution counts'
    for attempt in range(3): # on a busy machine a restart can lose its cells: open the page again
        page.goto(f'{address}/lab/tree/{chapter.name}?token={TOKEN}&reset')
        page.locator('.jp-Notebook').get_by_role('heading', level=1).first.wait_for()
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for() # the kernel is there
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_role('menuitem', name='Restart Kernel and Run All Cells').click()
        page.get_by_role('button', name='Confirm Kernel Restart').click()
        if wait_until_run(page, chapter): break
    seen = page.locator('.jp-Notebook-ExecutionIndicator').first.get_attribute('data-status')
    dialogs = page.locator('.jp-Dialog').all_inner_texts()
    assert executed(chapter) == [*range(1, len(executed(chapter)) + 1)], f'not run from top to bottom: kernel {seen}, {dialogs}'
    return outputs_of(chapter)


def outputs_of(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [o for c in cells if c['cell_type'] == 'code' for o in c['outputs']]


def wait_until_run(page, chapter): # whether it runs: False when the kernel waits and not one cell was run
    status = page.locator('.jp-Notebook-ExecutionIndicator').first
    for second in range(180):
        time.sleep(1)
        if status.get_attribute('data-status') != 'idle': continue # a save while another is under way would ask questions
        page.keyboard.press('Control+s'); time.sleep(1)
        assert not (errors := [o for o in outputs_of(chapter) if o['output_type'] == 'error']), errors
        if all(executed(chapter)): return True
        if second > 60 and not any(executed(chapter)): return False
    return any(executed(chapter))


def test_first_page_of_the_workshop_runs_and_is_seen(lab, page):
    address, nbs = lab; outputs = restart_and_run_all(page, address, nbs/'a_core.ipynb')
    assert any('image/png' in o.get('data', {}) for o in outputs)
    assert page.evaluate(FIND, '.jp-RenderedImage img'), 'no figure to be seen'
    assert page.evaluate(FIND, '.animation img'), 'no film to be seen'
    seen = []
    page.locator('.animation button[title="Pause"]').first.click() # it plays once by itself
    for button in ('Last frame', 'First frame', 'Next frame'): # its buttons change the picture
        page.locator(f'.animation button[title="{button}"]').first.click(); time.sleep(.3)
        seen.append(page.evaluate("document.querySelector('.animation img').src"))
    assert len(set(seen)) == 3


@pytest.mark.skipif(os.environ.get('LAB_CHAPTERS') != 'all', reason='four minutes more: LAB_CHAPTERS=all')
@pytest.mark.parametrize('chapter', sorted(p.name for p in (ROOT/'nbs').glob('*_*.ipynb') if p.name != 'a_core.ipynb'))
def test_every_other_chapter_runs(lab, page, chapter):
    address, nbs = lab; assert any('image/png' in o.get('data', {}) for o in restart_and_run_all(page, address, nbs/chapter))


FIND = """async selector => { // JupyterLab keeps only cells near the window in the page: scroll until a loaded picture is there
  const scroller = document.querySelector('.jp-WindowedPanel-outer') ?? document.querySelector('.jp-Notebook')
  for (let y = 0; y <= scroller.scrollHeight; y += 400) {
    scroller.scrollTop = y; await new Promise(done => setTimeout(done, 150))
    const img = document.querySelector(selector)
    if (img && img.naturalWidth > 50 && img.naturalHeight > 50) { img.scrollIntoView({block: 'center'}); return img.src }
  }
}"""
