"Runs that start from a trained model, change their images, and are watched while they learn."
import json
import re
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker, on_main_process
from PIL import Image
from torch import nn

import ldm_nb.loop as loop
import ldm_nb.runs as r
from ldm_nb.core import InputError, as_floats, fingerprint, generator, load_tensors, read_json, seed_for
from ldm_nb.data import ImageData, fashion_mnist, pad_images
from ldm_nb.denoiser import UNet, diffusion_loss, guided, sample_chain
from ldm_nb.forward import Schedule
from ldm_nb.loop import fit, plot_losses
from ldm_nb.runs import Tracking, for_classes, held_out_losses, recipe_like, rises, train_latent_diffusion
from ldm_nb.training import RECIPES, LatentDiffusion, change_images, changed_mask, random_changes, train_denoiser
from ldm_nb.vae import LatentStats, VAE, vae_loss
from ldm_nb.autoencoder import clipped_mse

SMALL, TEST = fashion_mnist()[:60], fashion_mnist('test')[:40]
SMOKE = RECIPES['smoke']
UNIT = LatentStats([0.], [1.], 1, '0'*16, '0'*16) # of latents that are what they are


def train(out, data=SMALL, steps=4, **kwargs):
    return train_latent_diffusion(data, out, steps=steps, size='smoke', **kwargs)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'a'
    return train(out, steps=30)[0], out


# images that are changed

def test_a_recipe_without_changes_trains_as_before():
    "Bit for bit: the loop as it was, on the same seed."
    z, labels = torch.randn(40, 4, 8, 8, generator=generator('z')), torch.arange(40) % 10
    ours = train_denoiser(z, labels, UNIT, SMOKE, 10, num_steps=6)
    torch.manual_seed(seed_for(0, 'denoiser'))
    unet = UNet(4, SMOKE.widths, SMOKE.blocks, 10, SMOKE.emb_dim)
    def loss(model, i):
        kept = torch.rand(len(i)) >= SMOKE.label_dropout
        return diffusion_loss(model, z[i], labels[i].where(kept, 10), Schedule('flow'))
    before = fit(unet, loss, 40, SMOKE.batch, SMOKE.lr, num_steps=6, stage='denoiser', ema_decay=SMOKE.ema_decay)
    for name in 'model', 'ema':
        assert fingerprint(ours[name]) == fingerprint(before[name])


ARROW = torch.tensor([[1., -1, -1, -1], [1, 1, 1, -1], [1, 1, 1, -1], [1, -1, -1, -1]]) # points right


def share_pointing_right(model, n=100):
    noise = torch.randn(n, 1, 4, 4, generator=generator('arrows'))
    drawn = sample_chain(guided(model, None, Schedule('flow')), noise, Schedule('flow'), 8)
    return (drawn[..., 0].sum((1, 2)) > drawn[..., 3].sum((1, 2))).float().mean().item()


def test_flips_do_not_leak():
    "A network that is told of the flips draws arrows that point right; one that is not draws half of them to the left."
    x = ARROW + .1*torch.randn(64, 1, 4, 4, generator=generator('x'))
    recipe = replace(SMOKE, widths=(32,), batch=32, lr=8e-3)
    def encode(i, changes): return change_images(x[i], changes, 0)
    told = train_denoiser(x, None, UNIT, replace(recipe, flip=True), encode=encode, num_steps=200)
    untold = train_denoiser(torch.cat([x, x.flip(-1)]), None, UNIT, recipe, num_steps=100)
    shares = share_pointing_right(told['model']), share_pointing_right(untold['model'])
    assert shares[0] > .95 and .25 < shares[1] < .75, shares


def test_changes_are_what_they_say():
    torch.manual_seed(0)
    changes = random_changes(400, replace(SMOKE, flip=True, shift=2))
    assert set(changes[:, 0].tolist()) == {0, 1} and .4 < changes[:, 0].mean() < .6
    assert set(changes[:, 1:].flatten().tolist()) == {-1, -.5, 0, .5, 1}
    x = torch.randint(256, (3, 3, 6, 8), dtype=torch.uint8)
    said = torch.tensor([[0., 0, 0], [1, 0, 0], [1, .5, -1]])
    same, mirrored, both = change_images(x, said, 2)
    assert same.equal(x[0]) and mirrored.equal(x[1].flip(-1))
    assert both[:, :4, 1:].equal(x[2].flip(-1)[:, 2:, :-1]) and both[:, :4, 0].equal(both[:, :4, 1])
    assert random_changes(3, replace(SMOKE, shift=1))[:, 0].tolist() == [0, 0, 0]


def test_no_change_given_is_no_change():
    torch.manual_seed(0)
    net = UNet(widths=(16, 32), emb_dim=32, augment=3, dropout=.5).eval()
    for p in net.parameters(): nn.init.normal_(p, std=.1) # many begin as zero
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([.3, .6])
    assert net(x, t).equal(net(x, t, None, torch.zeros(2, 3))) and not net(x, t).equal(net(x, t, None, torch.ones(2, 3)))
    assert not net.train()(x, t).equal(net(x, t)) # dropout
    old = UNet(widths=(16, 32), emb_dim=32) # weights of before load unchanged
    assert UNet(**{k: v for k, v in old.config.items() if k not in ('dropout', 'augment')}).load_state_dict(old.state_dict())
    with pytest.raises(InputError, match='pass encode'):
        train_denoiser(torch.randn(8, 4, 8, 8), None, UNIT, replace(SMOKE, flip=True), num_steps=1)


def test_a_run_that_flips(tmp_path):
    recipe = replace(SMOKE, flip=True, shift=2, dropout=.1)
    ldm, _ = train(tmp_path/'a', steps=3, recipe=recipe)
    again = LatentDiffusion.from_pretrained(tmp_path/'a')
    assert ldm.ema.config['augment'] == 3 and again.sample(2, steps=2).equal(ldm.sample(2, steps=2))
    longer, _ = train(tmp_path/'a', steps=5, recipe=recipe, resume=True)
    whole, _ = train(tmp_path/'b', steps=3, recipe=recipe)
    assert fingerprint(whole.ema) == fingerprint(ldm.ema) != fingerprint(longer.ema)
    assert LatentDiffusion.from_pretrained(tmp_path/'a', unfinished=True).sample(2, steps=2).isfinite().all()


@pytest.mark.parametrize('field, value', [('shift', -1), ('shift', .5), ('dropout', 1.), ('dropout', 'much')])
def test_changes_that_cannot_be(tmp_path, field, value):
    with pytest.raises(InputError, match=f'^{field} is'): train(tmp_path/'r', recipe=replace(SMOKE, **{field: value}))
    assert not (tmp_path/'r').exists()


# padding

def test_the_loss_sees_no_padding():
    x0, mask = torch.randn(3, 2, 4, 4), torch.zeros(3, 1, 4, 4)
    mask[..., 1:3] = 1
    eps = []
    def model(x, t, labels):
        eps.append(x)
        return torch.zeros_like(x)
    torch.manual_seed(0); whole = diffusion_loss(model, x0[..., 1:3], t=torch.full((3,), .5))
    def wanted(mask):
        torch.manual_seed(0)
        return diffusion_loss(model, x0, t=torch.full((3,), .5), mask=mask)
    torch.manual_seed(0); noise = torch.randn(x0.shape)
    assert torch.allclose(wanted(mask), (noise - x0)[..., 1:3].square().mean())
    assert torch.allclose(wanted(torch.ones(3, 1, 4, 4)), (noise - x0).square().mean())
    from ldm_nb.training import _within
    x, target = torch.randn(3, 1, 4, 4), torch.rand(3, 1, 4, 4)*2 - 1
    assert torch.allclose(_within(mask)(x, target), clipped_mse(x[..., 1:3], target[..., 1:3]))


def test_a_padded_set_trains(tmp_path):
    data, other = ImageData(SMALL.levels, SMALL.labels, SMALL.classes), ImageData(SMALL.levels, SMALL.labels, SMALL.classes)
    data.content = torch.tensor([[0, 7, 28, 14]], dtype=torch.int32).repeat(60, 1)
    _, masked = train(tmp_path/'a', data, steps=2)
    _, plain = train(tmp_path/'b', other, steps=2)
    for stage in masked: assert masked[stage][0] != plain[stage][0]


# images held out, previews

def test_looking_changes_nothing(tmp_path):
    ldm, _ = train(tmp_path/'a', steps=6)
    seen, losses = train(tmp_path/'b', steps=6, held_out=TEST, previews=3)
    for net in 'autoencoder', 'ema', 'denoiser':
        assert fingerprint(getattr(seen, net)) == fingerprint(getattr(ldm, net))
    found = held_out_losses(tmp_path/'b')
    assert {k: v[0] for k, v in found.items()} == dict(autoencoder=[*range(1, 7)], denoiser=[*range(1, 7)])
    best = seen.card['held_out']['denoiser']
    assert best['best'] == min(found['denoiser'][1]) and best['last'] == found['denoiser'][1][-1]
    assert held_out_losses(tmp_path/'a') == {} and ldm.card['held_out'] == {}
    ax = plot_losses(losses, found).axes[1]
    assert [line.get_label() for line in ax.lines] == ['training', 'held out']
    # a mean over the same images that anyone can compute
    z = seen.encode(TEST.levels)
    groups = zip(z.tensor_split(16), TEST.labels.tensor_split(16))
    values = []
    for k, (part, y) in enumerate(groups):
        torch.manual_seed(seed_for('held out', k))
        values.append(diffusion_loss(seen.ema, part, y, Schedule('flow')).item())
    assert np.isclose(np.mean(values), best['last'], rtol=1e-4)


def test_previews_and_film(tmp_path):
    train(tmp_path/'r', steps=9, held_out=TEST, previews=3)
    names = sorted(p.name for p in (tmp_path/'r'/'previews').iterdir())
    assert names == [f'{stage}-{step:08}.png' for stage in ('autoencoder', 'denoiser') for step in (1, 4, 9)]
    pictures = [Image.open(tmp_path/'r'/'previews'/name) for name in names]
    with Image.open(tmp_path/'r'/'film.gif') as film:
        assert film.n_frames <= 3 and film.size == pictures[-1].size
    sizes = {p.size for p in pictures[:3]}, {p.size for p in pictures[3:]}
    assert all(len(s) == 1 for s in sizes)
    train(tmp_path/'none', steps=2)
    assert not (tmp_path/'none'/'previews').exists() and not (tmp_path/'none'/'film.gif').exists()


def test_a_resumed_run_has_looked_once_at_each_point(tmp_path, monkeypatch):
    train(tmp_path/'a', steps=8, held_out=TEST, previews=2)
    original = loop.fit
    def stopping(*args, **kwargs):
        def stop(step, *_):
            if step == 5 and kwargs['stage'] == 'denoiser': raise RuntimeError
        return original(*args, **kwargs | dict(callback=stop))
    with monkeypatch.context() as patch:
        patch.setattr('ldm_nb.training.fit', stopping)
        with pytest.raises(RuntimeError): train(tmp_path/'b', steps=8, held_out=TEST, previews=2, save_every=0)
    train(tmp_path/'b', steps=8, held_out=TEST, previews=2, resume=True)
    for name in 'held_out.json', 'film.gif': assert (tmp_path/'a'/name).read_bytes() == (tmp_path/'b'/name).read_bytes()


def test_on_the_clock_looks_cost_little():
    "A look that takes a second comes again when it is 1.5 % of the time."
    clock, calls = [0.], []
    def look(run):
        clock[0] += 1
        calls.append(run.seconds)
    class Run:
        settings = dict(num_steps=None, budget=1000.)
        step = 0
        seconds = property(lambda self: clock[0])
        progress = property(lambda self: clock[0]/1000)
    import time
    patch = pytest.MonkeyPatch()
    patch.setattr(time, 'perf_counter', lambda: clock[0])
    looks, run = r._Looks(look, np.arange(1, 21)/20), Run()
    while run.progress < 1:
        clock[0] += .5
        run.step += 1
        looks(run)
    patch.undo()
    assert calls[0] < 52 and len(calls) <= .015*1000 + 1 and np.diff(calls).min() > 49


@pytest.mark.parametrize('losses, expected', [
    ([9, 8, 7, 6, 5, 6, 7, 8, 9], True),
    ([9, 8, 7, 6, 5, 6, 7, 8, 4.9], False),  # the last is the best
    ([9, 8, 7, 6, 5, 5, 5, 5, 5], False),    # flat
    ([9, 8, 7, 5, 6, 7, 8, 9], False),       # too few to tell
])
def test_when_a_loss_has_risen(losses, expected):
    assert rises(torch.tensor(losses, dtype=torch.float)[:, None] + torch.linspace(0, 1, 16)) == expected


def test_learning_by_heart_is_said(trained, tmp_path):
    recipe = replace(SMOKE, lr=8e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        ldm, _ = train(tmp_path/'r', SMALL[:8], steps=400, recipe=recipe, held_out=TEST, init=trained[0].autoencoder)
    said = [str(w.message) for w in caught if 'by heart' in str(w.message)]
    assert any(re.match(r'denoiser: the loss on images held out was lowest at step [\d,]+ and has risen', words) for words in said), said
    best = ldm.card['held_out']['denoiser']
    assert len(said) == 1 and best["best_step"] < 300 and best['last'] > best['best']


def test_held_out_images_must_fit(tmp_path):
    colour = ImageData(TEST.levels.expand(-1, 3, -1, -1).contiguous())
    with pytest.raises(InputError, match='held_out has 3 channel'): train(tmp_path/'r', held_out=colour)


# a trained model to start from

def test_both_stages_start_from_a_model(trained, tmp_path):
    ldm, _ = trained
    fresh, begun = (train(tmp_path/k, steps=2, init=init)[1] for k, init in (('a', None), ('b', ldm)))
    for stage in begun: assert begun[stage][0] < .9*fresh[stage][0], stage
    mine = LatentDiffusion.from_pretrained(tmp_path/'b')
    assert mine.card['keep'] == 'both' and mine.card['init'] == read_json(tmp_path/'b'/'run.json')['init']
    assert mine.stats.fingerprint != ldm.stats.fingerprint


def test_an_autoencoder_that_stays(trained, tmp_path):
    ldm, folder = trained
    mine, losses = train(tmp_path/'r', steps=3, init=str(folder), keep='autoencoder')
    assert set(losses) == {'denoiser'} and mine.stats == ldm.stats
    assert fingerprint(mine.autoencoder) == fingerprint(ldm.autoencoder)
    assert mine.card['steps'] == dict(autoencoder=0, denoiser=3)
    half = LatentDiffusion.from_pretrained(tmp_path/'r', unfinished=True)
    assert half.sample(2, steps=2).equal(mine.sample(2, steps=2))
    alone = train(tmp_path/'alone', steps=3, init=ldm.autoencoder, seed=1)[0]
    only = train(tmp_path/'only', steps=3, init=ldm, keep='only-autoencoder', seed=1)[0]
    assert fingerprint(alone.ema) == fingerprint(only.ema)
    assert fingerprint(alone.autoencoder) == fingerprint(ldm.autoencoder)
    assert r._budgets(2, None, r._start(ldm, 'autoencoder').share(SMOKE))['denoiser']['seconds'] == 120


def test_other_classes_and_another_size(trained, tmp_path):
    ldm, _ = trained
    names = ('sneaker', 'hat', ldm.classes[0])
    data = ImageData(torch.nn.functional.pad(SMALL.levels, (2, 10, 2, 2)), torch.arange(60) % 3, names)
    mine, _ = train(tmp_path/'r', data, steps=1, init=ldm, keep='autoencoder')
    assert mine.sample(2, 'hat', steps=2).shape == (2, 1, 32, 40)
    copied = for_classes(ldm.ema, ldm.classes, names)
    where = [ldm.classes.index('sneaker'), 10, 0, 10]
    assert copied.label.weight.equal(ldm.ema.label.weight[where])
    bare, _ = train(tmp_path/'none', ImageData(SMALL.levels), steps=1, init=ldm)
    assert bare.ema.num_classes == 0


def test_the_recipe_follows_the_model(trained, tmp_path):
    ldm, _ = trained
    assert recipe_like(ldm, RECIPES['lesson']) == replace(
        RECIPES['lesson'], **{k: getattr(SMOKE, k) for k in ('ae_width', 'encoder_depth', 'decoder_depth', 'widths', 'emb_dim')})
    wide = replace(SMOKE, widths=(32, 32))
    assert recipe_like(ldm.autoencoder, wide).widths == (32, 32)
    wrong = [(dict(init=ldm, recipe=wide), r'widths 32, 32 then, 16, 32 now'), (dict(init=ldm, keep='all'), "keep is 'all'"),
             (dict(init='nowhere'), 'nowhere is not a model'),
             (dict(init=ldm, data=ImageData(SMALL.levels.expand(-1, 3, -1, -1).contiguous())), 'init has 1 channel')]
    for options, words in wrong:
        with pytest.raises(InputError, match=words): train(tmp_path/'r', **options)
    assert not (tmp_path/'r').exists()


def test_a_run_from_a_model_goes_on(trained, tmp_path):
    ldm, _ = trained
    whole, _ = train(tmp_path/'a', steps=4, init=ldm)
    train(tmp_path/'b', steps=2, init=ldm)
    with pytest.raises(InputError, match='the init not the same|init .* then, none now'): train(tmp_path/'b', steps=4, resume=True)
    longer, _ = train(tmp_path/'b', steps=4, init=ldm, resume=True)
    assert len(LatentDiffusion.from_pretrained(tmp_path/'b').card['steps']) == 2 and longer.card['steps']['denoiser'] == 4
    with pytest.raises(InputError, match='another run'): train(tmp_path/'b', steps=5, init=whole, resume=True)


# trackers

class Lines(GeneralTracker):
    "Writes what it is told as lines of JSON."
    name, requires_logging_directory = 'lines', False
    def __init__(self, path):
        super().__init__(_blank=True)
        self.path, self.ended = path, 0
    tracker = property(lambda self: self.path)
    def write(self, kind, **values):
        with self.path.open('a') as f: print(json.dumps(dict(kind=kind, **values)), file=f)
    def store_init_configuration(self, values): self.write('config', values=values)
    def log(self, values, step=None, **_): self.write('log', values=values, step=step)
    def log_images(self, values, step=None, **_): self.write('images', values={k: list(np.shape(v)) for k, v in values.items()}, step=step)
    def finish(self): self.ended += 1


def test_a_tracker_is_told(tmp_path):
    lines = Lines(tmp_path/'lines')
    ldm, losses = train(tmp_path/'r', steps=4, held_out=TEST, previews=1, track=lines)
    rows = [json.loads(line) for line in lines.path.read_text().splitlines()]
    assert rows[0]['kind'] == 'config' and rows[0]['values']['batch'] == SMOKE.batch and rows[0]['values']['count'] == 60
    told = {k: [(row['step'], row['values'][k]) for row in rows if row['kind'] == 'log' and k in row['values']]
            for k in ('autoencoder/loss', 'denoiser/loss', 'denoiser/lr', 'denoiser/held_out_loss')}
    assert [step for step, _ in told['autoencoder/loss']] == [1, 2, 3, 4] and [step for step, _ in told['denoiser/loss']] == [5, 6, 7, 8]
    assert np.isclose(told['denoiser/loss'][-1][1], losses['denoiser'].mean())
    assert [v for _, v in told['denoiser/held_out_loss']] == held_out_losses(tmp_path/'r')['denoiser'][1]
    assert [row['values'] for row in rows if row['kind'] == 'images'][-1]['denoiser/preview'][::3] == [1, 3] and lines.ended == 1
    with Tracking(lines, tmp_path) as tracking: # of the caller, who may add a report
        train(tmp_path/'s', steps=1, track=tracking)
        assert lines.ended == 1
    assert lines.ended == 2


@pytest.mark.parametrize('name, words', [('swanlab', 'not installed: pip install it'), ('notes', 'unknown')])
def test_a_tracker_that_is_not_there(tmp_path, name, words):
    with pytest.raises(InputError, match=words): train(tmp_path/'r', track=name)
    assert not (tmp_path/'r').exists()


# figures that stay on the device

def toy(broken=None, **kwargs):
    x = torch.linspace(-1, 1, 64)[:, None].clone()
    if broken is not None: x[broken] = float('nan')
    torch.manual_seed(0)
    def loss(model, i): return (model(x[i]) - x[i].square()).square().mean()
    return fit(nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1)), loss, 64, 8, ema_decay=.9, **kwargs)


@pytest.mark.parametrize('steps', [7, 60, 100])
def test_figures_that_are_fetched_late_are_the_same(monkeypatch, tmp_path, steps):
    at_once = toy(num_steps=steps)
    monkeypatch.setattr(loop, '_lag', lambda _: 50)
    late = toy(num_steps=steps, checkpoint=tmp_path/'c', save_every=0)
    for name in 'model', 'ema': assert fingerprint(at_once[name]) == fingerprint(late[name])
    for name in 'figures', 'lr', 'grad_norm': assert np.allclose(at_once['history'][name], late['history'][name], rtol=1e-6)


def test_a_fault_that_is_seen_late_is_still_found(monkeypatch, tmp_path):
    monkeypatch.setattr(loop, '_lag', lambda _: 50)
    with pytest.raises(InputError, match=r'training stopped at step \d+, .*the examples \[5\] alone give such a loss'):
        toy(broken=5, num_steps=100, checkpoint=tmp_path/'c')
    assert not list((tmp_path/'c').glob('*')) # nothing was saved after it


def test_compile_is_asked_for_and_taken_off(monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, 'compile', lambda self, *a, **k: asked.append(self))
    run = toy(num_steps=2, compile=True)
    assert asked == [run['model']] and run['model']._compiled_call_impl is None and fingerprint(run['model']) == fingerprint(toy(num_steps=2)['model'])
