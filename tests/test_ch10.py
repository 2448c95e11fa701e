"What chapter 10 claims and no learner wants to read: the rivals' losses and refusals, and every comparison of its text with the stored rows."
import dataclasses
import json
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastcore.test import test_close as close, test_fail as fails
from torch import nn

from ldm_nb.baselines import *
from ldm_nb.core import PACKAGE
from ldm_nb.data import fashion_mnist
from ldm_nb.denoiser import DiT, UNet, x0_weight

ROWS = json.loads((PACKAGE/'results'/'showdown.json').read_text())['rows']
U, LATE = 'pixels, U-Net', 'pixels, U-Net, guide from 35 %'


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(2, 2)
        self.discriminator = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))


def test_each_side_moves_its_own_weights():
    def grads(loss, net): return torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
    torch.manual_seed(0)
    pair, eps, points = Pair(), torch.randn(512, 2), torch.randn(512, 2) + 1
    total, d, g, penalty = gan_loss(pair, eps, points)
    close(total, d + penalty/2 + g)
    assert grads(g, pair.discriminator) == (None,)*4 and grads(d + penalty, pair.generator) == (None, None)
    margin = pair.discriminator(points) - pair.discriminator(pair.generator(eps))
    for ours, plainly in zip(grads(total, pair.generator), grads(F.softplus(margin).mean(), pair.generator)): close(ours, plainly)
    close(gan_loss(pair, eps, points, share=.25)[3], penalty, eps=.2*penalty.item())
    assert gan_loss(pair, eps, points, gamma=0)[3] == 0


def test_weights_and_rates():
    σ = torch.tensor([.9, .5, .1, .01])
    weight = velocity_weight(((1 - σ)/σ)**2)
    close(weight, torch.tensor([1/.9**2, 4., 100., 400.]), eps=1e-2)
    close(weight[:3], x0_weight('flow_prediction', 1 - σ, σ)[:3], eps=1e-3)
    close([gan_rate(0., 0), gan_rate(0., 500), gan_rate(.5, 500), gan_rate(1., 500)], [.01, 1., .55, .1])


def test_refusals():
    def changed(**kwargs): return dataclasses.replace(fashion_mnist('test'), **kwargs)
    assert labelled_images(changed()).shape == (2000, 1, 32, 32)
    fails(lambda: labelled_images(changed(classes=(), labels=None)), contains='have none')
    fails(lambda: labelled_images(changed(levels=torch.zeros(2000, 1, 64, 64))), contains='64 x 64')
    fails(lambda: train_pixels(fashion_mnist(), 1., net='vit'), contains='choose unet or patches')


def test_a_guide_that_is_the_network_changes_nothing():
    unet = UNet(1, (32, 64, 96), num_classes=10, emb_dim=240)
    alone, with_equal = PixelDiffusion(unet), PixelDiffusion(unet, guide=unet)
    close(with_equal.sample(3), alone.sample(3, guidance=1.), eps=1e-3)
    fails(lambda: alone.sample(3, autoguidance=3.), contains='no guide')


@pytest.mark.parametrize('train', [train_gan, train_pixels])
def test_steps_instead_of_seconds(train):
    model = train(fashion_mnist()[:64], steps=2)
    assert model.steps == 2 and draw(model, 3, **({} if train is train_gan else dict(steps=1))).shape == (3, 1, 28, 28)
    fails(lambda: train(fashion_mnist()[:64]))


def values(name, seconds, metric, auto=False):
    rows = [r for r in ROWS if (r['name'], r['seconds']) == (name, seconds)]
    return np.array([(r['autoguidance'] if auto else r)['effnet'][metric][0] for r in rows])


def decided(a, b): # the sign of a - b, or 0 if the 95 % interval of the difference of the means holds 0
    gap = a.mean() - b.mean()
    return np.sign(gap)*(abs(gap) > 2.776*np.sqrt((a.var(ddof=1) + b.var(ddof=1))/3))


METRICS = 'frechet_distance', 'kid', 'recall', 'precision', 'coverage'


@pytest.mark.parametrize('seconds,auto,signs', [(30, False, (-1, 0, 0, 1, 1)), (90, False, (0, 1, -1, 0, 1)),
                                                (30, True, (1, 1, -1, 0, 0)), (90, True, (0, 0, -1, 1, 1))])
def test_latents_against_the_unet(seconds, auto, signs):
    "As the text says it: which of distance, KID, recall, precision, coverage is established, and for whom."
    rival = LATE if auto else U
    found = [decided(values('latents', seconds, m, auto), values(rival, seconds, m, auto)) for m in METRICS]
    assert tuple(found) == signs


def test_what_else_the_text_says_of_the_rows():
    def at(name, seconds=90, **kwargs): return values(name, seconds, 'frechet_distance', **kwargs)
    assert all(decided(at('latents'), at(k)) < 0 for k in ('GAN', 'pixels, patches', 'latents, f = 8'))
    assert all(decided(at('GAN'), at(k)) > 0 for k in ('latents', 'latents, f = 8', U, 'pixels, patches'))
    assert values('GAN', 90, 'recall').max() < .03 and at('GAN').mean() < at('GAN', 30).mean()
    assert all(abs(share) <= 2*error for share, error in (r['copies'] for r in ROWS))
    # autoguidance
    for name, seconds in product(('latents', LATE), (90, 270)): assert at(name, seconds, auto=True).mean() < .93*at(name, seconds).mean()
    assert at(U, auto=True).mean() > 1.1*at(U).mean()
    assert abs(at('latents, f = 8', auto=True).mean()/at('latents, f = 8').mean() - 1) < .03
    # equal seconds, unequal steps: the U-Net an hour later
    def steps(name): return np.mean([r['steps'] for r in ROWS if (r['name'], r['seconds']) == (name, 90)])
    assert 1.15 < steps(LATE)/steps(U) < 1.25
    # the ceiling
    def ceiling(name, seconds, metric='frechet_distance'): return np.array([r['reconstructions']['effnet'][metric][0] for r in ROWS if (r['name'], r['seconds']) == (name, seconds)])
    assert at('latents, f = 8').mean() < 1.1*ceiling('latents, f = 8', 90).mean()
    assert at('latents').mean() > 1.2*ceiling('latents', 90).mean()
    assert ceiling('latents, f = 8', 90, 'kid').mean() > values('latents, f = 8', 90, 'kid').mean()
    assert all(ceiling(k, 90).mean() < ceiling(k, 30).mean() for k in ('latents', 'latents, f = 8'))
    assert at(U).max() < ceiling('latents, f = 8', 90).mean()
    # speeds, and the parameters that draw
    def speed(name): return np.mean([r['images_per_second'] for r in ROWS if (r['name'], r['seconds']) == (name, 90)])
    assert 6 < speed('latents')/speed(U) < 10 and speed('GAN') > 10*speed('latents')
    assert all(abs(r['drawing_parameters']/1560468 - 1) < .05 for r in ROWS)
