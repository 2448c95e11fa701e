"What chapter 04 relies on and no learner wants to read: weights, losses, guidance and networks, on numbers."
import math

import pytest
import torch
from fastcore.test import test_close as close, test_eq as equal, test_fail as fails
from torch import nn

from ldm_nb.core import generator
from ldm_nb.denoiser import DiT, DiTBlock, SelfAttention, TimeResBlock, UNet, diffusion_loss, guided, min_snr, patchify, position_embedding, sample_chain, unpatchify, x0_weight
from ldm_nb.forward import PREDICTIONS, SCHEDULES, Schedule, expand_like, target, to_x0_eps


@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.parametrize('kind', PREDICTIONS)
def test_the_error_of_any_target_is_a_weighted_error_of_x0(name, kind):
    x0, eps, guess = torch.randn(3, 50, 2, dtype=torch.float64, generator=generator('weights'))
    α, σ = (expand_like(v, x0) for v in Schedule(name)(torch.linspace(.1, .9, 50, dtype=torch.float64)))
    got = target(kind, guess, (α*x0 + σ*eps - α*guess)/σ, α, σ)
    weight = (target(kind, x0, eps, α, σ) - got).square()/(x0 - guess).square()
    close(weight/x0_weight(kind, α, σ), torch.ones(50, 2), eps=1e-6)


def blind(x, t, labels): return torch.zeros_like(x)


def test_loss_of_a_blind_model_is_what_its_weights_say():
    data = torch.randn(2000, 2, generator=generator('blind'))
    def loss(**kwargs):
        torch.manual_seed(0)
        return diffusion_loss(blind, data, t=torch.full((len(data),), .4), **kwargs)
    power = data.square().mean()
    close(loss(prediction_type='sample'), power, eps=1e-5)
    close(loss(prediction_type='sample', weighting=lambda snr: 3*snr), 3*(.6/.4)**2*power, eps=1e-4)
    close(loss(weighting=lambda snr: (1 + snr.sqrt())**2), loss(), eps=1e-4)
    for kind in PREDICTIONS: # at the ends of a chain, too
        assert diffusion_loss(blind, data[:2], None, Schedule('zero_snr'), kind, torch.tensor([0., 1.]), min_snr).isfinite()


def test_networks_begin_at_zero_and_blocks_as_the_identity():
    z, t, labels = torch.randn(3, 4, 8, 8), torch.rand(3), torch.tensor([0, 5, 10])
    for network in UNet, DiT:
        net = network(num_classes=10)
        equal(net(z, t, labels).detach(), torch.zeros(3, 4, 8, 8))
        fails(lambda: net(z[..., :7], t), contains='multiple of 2')
    h, tokens = torch.randn(2, 64, 4, 4), torch.randn(2, 16, 128)
    equal(SelfAttention(64)(h).detach(), h)
    equal(TimeResBlock(64, 64, 32)(h, torch.randn(2, 32)).detach(), h)
    equal(DiTBlock(128, 144)(tokens, torch.randn(2, 144)).detach(), tokens)
    fails(lambda: UNet(widths=(64, 104)), contains='width is 104')
    fails(lambda: DiT(width=48), contains='multiple of 32')
    parameters = [sum(p.numel() for p in network(num_classes=10).parameters()) for network in (UNet, DiT)]
    close(parameters[1]/parameters[0], 1, eps=.05)


def test_first_loss_is_the_variance_of_the_target_and_larger_without_the_zero():
    torch.manual_seed(0)
    latents, eps = torch.randn(2, 256, 4, 8, 8, generator=generator('zero'))
    zero, not_zero = UNet(num_classes=10), UNet(num_classes=10)
    not_zero.out[-1].reset_parameters()
    with torch.no_grad(): first, other = ((net(.5*latents + .5*eps, torch.full((256,), .5)) - (eps - latents)).square().mean() for net in (zero, not_zero))
    close(first, (eps - latents).square().mean(), eps=1e-5)
    assert other > first


def test_patches_come_back_and_attention_is_blind_to_order():
    z = torch.randn(3, 4, 8, 8)
    tokens = patchify(z, 2)
    equal(tokens.shape, (3, 16, 16)); equal(unpatchify(tokens, 2, 8, 8), z)
    where = position_embedding(4, 4, 64)
    assert torch.cdist(where, where).add(9*torch.eye(16)).min() > .5
    block, tokens, order = DiTBlock(128, 144), torch.randn(2, 16, 128), torch.randperm(16, generator=generator('order'))
    close(block.attend(tokens[:, order]), block.attend(tokens)[:, order], eps=1e-5)


class Labelled(nn.Module): # predicts what its label says
    num_classes = 10
    def __init__(self, scale): super().__init__(); self.scale = scale
    def forward(self, x, t, labels): return self.scale*labels.float().view(-1, 1).expand_as(x)


def test_both_kinds_of_guidance_by_hand():
    schedule, labels, x, one = Schedule('flow'), torch.arange(10), torch.randn(10, 3), torch.ones(())
    model, guide = Labelled(1.), Labelled(2.)
    def guess(**kwargs): return guided(model, labels, schedule, **kwargs)(x, one)[0]
    p, none = labels.float().view(-1, 1).expand_as(x), torch.full_like(x, 10.)
    close(guess(), x - p); close(guess(guidance=0.), x - none)
    close(guess(guidance=2.), x - (none + 2*(p - none)), eps=1e-4)
    close(guess(guide=guide, autoguidance=3.), x - (2*p + 3*(p - 2*p)), eps=1e-4)
    close(guess(guidance=2., guide=guide, autoguidance=3.), x - (none + 2*(p - none) + 2*(p - 2*p)), eps=1e-4)
    fails(lambda: guess(autoguidance=3.), contains='no guide')


@pytest.mark.parametrize('eta', [0., .5, 1.])
def test_a_step_with_true_guesses_keeps_the_marginal(eta, n=200_000):
    "Given x_0, the place after the step has mean α_s x_0 and variance σ_s²."
    for name in 'flow', 'cosine':
        schedule, times, path = Schedule(name), torch.linspace(1, 0, 5), []
        x0 = torch.full((n, 1), 1.3)
        def true(x, t): return to_x0_eps('sample', x0, x, *schedule(t))
        sample_chain(true, schedule(times[0])[0]*x0 + torch.randn(n, 1, generator=generator('true')), schedule, 4, eta, generator('fresh'), lambda step, x, x0: path.append(x))
        for s, x in zip(times[1:], path):
            α, σ = schedule(s)
            assert abs(x.mean() - α*1.3) < 5*σ/n**.5 + 1e-3 and abs(x.std() - σ) < 5*σ/n**.5 + 1e-3


@pytest.mark.parametrize('name', ['scaled_linear', 'zero_snr'])
def test_the_leak_of_brightness_is_that_of_the_formula(name, N=64):
    "A world of 64 positions of one brightness, exact denoiser (chapter 03's formula)."
    schedule = Schedule(name)
    def denoise(x, t):
        α, σ = schedule(t)
        x0 = (α*x.mean(1, keepdim=True)/(α**2 + σ**2/N)).expand_as(x)
        return x0, (x - α*x0)/σ
    flat = sample_chain(denoise, torch.randn(4000, N, generator=generator('flat')), schedule, 400).mean(1).std().item()
    α, σ = schedule(torch.ones(1))
    close(flat, ((1/N)/(α**2 + σ**2/N)).sqrt().item() if name == 'scaled_linear' else 1, eps=.05)


def test_the_plain_gaussian_of_the_first_term_costs_little():
    close(math.log(1 + (.02/.98/.15)**2), .018, eps=1e-3)
