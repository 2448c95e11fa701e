"What chapter 08 relies on and no learner wants to read: guidance by hand, calls counted, densities, the slider."
import json
import math
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm_nb.core import PACKAGE, InputError, generator
from ldm_nb.denoiser import guided, sample_chain
from ldm_nb.forward import Schedule
from ldm_nb.guidance import Mixture, chi_square, flow_times, follow_flow, guided_density, guided_mixture, sharpened_density, slider, square_grid

FLOW = Schedule('flow')


class Labelled(nn.Module): # predicts what its label says, and counts the rows that it sees
    num_classes = 10
    def __init__(self, scale=1.): super().__init__(); self.scale, self.rows = scale, 0
    def forward(self, x, t, labels):
        self.rows += len(x)
        return self.scale*labels.float().view(-1, 1).expand_as(x)


def guess(t=1., model=None, labels=torch.arange(10), **how):
    x = torch.randn(10, 3, generator=generator('x'))
    x0, eps = guided(model or Labelled(), labels, FLOW, **how)(x, torch.tensor(t))
    assert torch.allclose((1 - t)*x0 + t*eps, x, atol=1e-5), 'the two guesses belong to x_t'
    return x, x0


def test_negative_labels_by_hand():
    p, away = torch.arange(10.).view(-1, 1), torch.full((10,), 3)
    x, x0 = guess(guidance=2., negative=away)
    assert torch.allclose(x0, x - (p + (p - 3.)), atol=1e-5)
    x, x0 = guess(guidance=0., negative=away) # all the way: only the negative label is left
    assert torch.allclose(x0, x - 3., atol=1e-5)
    x, x0 = guess(labels=None, guidance=2., negative=away) # away from a class, towards none
    assert torch.allclose(x0, x - (10. + 7.), atol=1e-5)


def test_outside_of_the_interval_one_evaluation():
    for t, rows in ((.1, 10), (.2, 20), (.5, 20), (.7, 20), (.9, 10)):
        model, guide = Labelled(), Labelled(2.)
        x, x0 = guess(t, model, guidance=3., guide=guide, autoguidance=2., interval=(.2, .7))
        assert (model.rows, guide.rows) == (rows, rows - 10)
        if rows == 10: assert torch.equal(x0, guess(t)[1])


def test_rescaling_brings_the_deviation_back():
    wide = dict(guidance=4.)
    model = nn.Module(); model.num_classes = 10
    model.forward = lambda x, t, labels: x*(labels.float().view(-1, 1) - 4)/5
    def deviation(**how): return guess(.5, model, **how)[1].std(1)
    plain, strong = deviation(), deviation(**wide)
    assert torch.allclose(deviation(**wide, rescale=1.), plain, atol=1e-5)
    assert torch.allclose(deviation(**wide, rescale=.5), (plain + strong)/2, atol=1e-5)


def mixtures():
    centres = torch.tensor([[-1.4, .7], [-.3, -.7], [.9, -.7]], dtype=torch.float64)
    even = torch.full((2,), .5, dtype=torch.float64)
    return (Mixture(centres[:2], even, .35), Mixture(centres, torch.tensor([.25, .25, .5], dtype=torch.float64), .35))


@pytest.mark.parametrize('g, interval', [(1., (0., 1.)), (3., (0., 1.)), (3., (.2, .7)), (5., (.5, 1.))])
def test_no_mass_is_lost(g, interval):
    (left, whole), (points, area) = mixtures(), square_grid(-5.5, 3.5, 90)
    p = guided_density([(g, left), (1 - g, whole)], points, interval)
    assert p.sum()*area == pytest.approx(1, abs=.01)
    if g == 1: assert torch.allclose(p, left.log_density(points).exp(), atol=2e-3)


def test_there_and_back_is_the_same_place():
    left, whole = mixtures()
    flow, times = guided_mixture([(3., left), (-2., whole)], (.2, .7)), flow_times(60, (.2, .7))
    x = torch.randn(200, 2, dtype=torch.float64, generator=generator('back')) - 1
    up, grown = follow_flow(flow, x, times)
    back, shrunk = follow_flow(flow, up, times[::-1])
    assert (back - x).abs().max() < 1e-3 and (grown + shrunk).abs().max() < 1e-2


def test_one_gaussian_in_closed_form():
    "Two Gaussians of one mean and two widths: the guided flow is linear, so its samples are Gaussian."
    one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    points, area = square_grid(-3., 3., 120)
    p = guided_density([(2., Mixture(*one, .5)), (-1., Mixture(*one, 1.))], points, num_steps=80)
    std = (area*p*points[:, 0]**2).sum().sqrt()
    x = torch.tensor([[1., 0.]], dtype=torch.float64)
    up = follow_flow(guided_mixture([(2., Mixture(*one, .5)), (-1., Mixture(*one, 1.))]), x, flow_times(80))[0]
    assert std == pytest.approx(1/up[0, 0].item(), rel=1e-3)
    sharp = sharpened_density(Mixture(*one, .5), Mixture(*one, 1.), 2., points, area)
    assert (area*sharp*points[:, 0]**2).sum() == pytest.approx(1/(2/.25 - 1), rel=1e-3)


def test_chi_square_of_draws_and_of_others():
    expected = torch.full((50,), 200.)
    def draws(shares, key):
        i = torch.multinomial(shares, 10_000, replacement=True, generator=generator('chi', key))
        return torch.bincount(i, minlength=50)
    z = torch.tensor([chi_square(draws(expected/expected.sum(), k), expected) for k in range(40)])
    assert abs(z.mean()) < 1 and z.abs().max() < 5
    assert chi_square(draws(torch.linspace(1, 2, 50), 0), expected) > 20


def test_every_setting_was_measured(monkeypatch):
    monkeypatch.setenv('TQDM_DISABLE', ''); monkeypatch.syspath_prepend(str(Path(__file__).parent.parent/'bench'))
    import guidance as bench
    rows = json.loads((PACKAGE/'results'/'guidance.json').read_text())['rows']
    assert {(r['name'], r['seed']) for r in rows} == {(name, seed) for name in bench.SETTINGS for seed in range(3)}
    assert len(rows) == 3*len(bench.SETTINGS)
    for r in rows: assert r['evaluations'] == bench.evaluations(**bench.SETTINGS[r['name']])


def pictures(n): return [torch.full((4, 1, 28, 28), k/n) for k in range(n)]


def test_the_slider_is_one_page_for_everybody():
    html = slider(pictures(3), ['a < b', 'two', 'three'], 'the "dial"', 2, first=1).data
    assert html.count('<img') == 3 and html.count('display: none') == 2 and 'http' not in html
    assert re.search(r'<label>the &quot;dial&quot; <input type="range" min="0" max="2"', html)
    assert 'alt="Grid of pictures: a &lt; b"' in html and 'aria-valuetext="two"' in html
    assert '<script' not in html and len(html) < 10_000
    for titles in ([], ['one']):
        with pytest.raises(InputError, match='one for each'): slider(pictures(2), titles, 'dial')


CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def test_the_slider_moves_by_keyboard():
    api = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    if not CHROMIUM: pytest.skip('no Chromium here: apt-get install chromium')
    both = ''.join(slider(pictures(3), [f'{name} {k}' for k in range(3)], name, 2).data for name in ('one', 'other'))
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=390, height=800)); page.set_content(f'<main>{both}</main>')
        dial = page.get_by_label('other'); dial.focus()
        for _ in range(2): page.keyboard.press('ArrowRight')
        shown = page.eval_on_selector_all('img', "all => all.filter(i => i.style.display != 'none').map(i => i.title)")
        assert shown == ['one 0', 'other 2'], 'each slider moves its own pictures'
        assert dial.get_attribute('aria-valuetext') == 'other 2' and page.locator('output').all_inner_texts() == ['one 0', 'other 2']
        assert page.evaluate('document.documentElement.scrollWidth - innerWidth') <= 0
        browser.close()
