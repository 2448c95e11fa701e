"What chapter 07 relies on: parity with diffusers' schedulers, their defaults re-created, orders, ends, and errors."
import math

import pytest
import torch
from fastcore.test import test_close as close, test_eq as equal, test_fail as fails
from torch import nn

from ldm_nb.core import InputError, generator
from ldm_nb.denoiser import mixture_denoiser, sample_chain
from ldm_nb.forward import SCHEDULES, Schedule, to_x0_eps
from ldm_nb.samplers import SAMPLERS, SPACINGS, count_evaluations, ddim, ddpm, dpm, euler, heun, invert, spaced_times, time_at, walk

f64 = torch.float64
CHAINS = {'linear': dict(beta_schedule='linear', beta_start=1e-4, beta_end=.02), 'scaled_linear': dict(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012)}
chains = pytest.mark.parametrize('name', CHAINS)
biggest = lambda a, b: (a - b).abs().max().item()
network = lambda x: .7*torch.tanh(x) + .2*x.flip(-1) # made up
noise = torch.randn(8, 4, 8, 8, generator=generator('parity'))


def theirs(scheduler, **given):
    import diffusers
    return getattr(diffusers, scheduler)(**given)


@pytest.fixture(autouse=True, scope='module')
def needs_diffusers(): pytest.importorskip('diffusers', reason='diffusers is in the [dev] extra')


def run(scheduler, x, n, scaled=False, seed=None, **set_timesteps):
    "Their sampler with the made-up network: every x_t that it passes. `scaled`: it walks in x/alpha."
    scheduler.set_timesteps(**(set_timesteps or dict(num_inference_steps=n)))
    way, kwargs = [], {} if seed is None else dict(generator=torch.Generator().manual_seed(seed))
    for k in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, k) if scaled else x
        x = scheduler.step(network(seen), k, x, **kwargs).prev_sample; way.append(x)
    return way


def ours(sampler, kind, schedule, times, x=noise, seed=None, clip=False, **more):
    way = []
    def denoise(x, t):
        x0, eps = to_x0_eps(kind, network(x), x, *schedule(t))
        return (x0.clamp(-1, 1) if clip else x0), eps
    sampler(denoise, x, schedule, times, torch.Generator().manual_seed(seed or 0), lambda step, x, x0: way.append(x), **more)
    return way


def same_way(a, b, tol=1e-4):
    equal(len(a), len(b))
    scale = max(1., max(x.abs().max().item() for x in b))
    assert max(map(biggest, a, b)) < tol*scale


@chains
def test_ddim_and_ddpm(name):
    given = dict(CHAINS[name], clip_sample=False, timestep_spacing='trailing')
    schedule = Schedule(name); times = spaced_times('trailing', 20, schedule)
    same_way(ours(ddim, 'epsilon', schedule, times), run(theirs('DDIMScheduler', **given), noise, 20))
    same_way(ours(euler, 'epsilon', schedule, times), run(theirs('DDIMScheduler', **given), noise, 20))
    # their last step draws no noise, as ours: sigma ends at 0
    same_way(ours(ddpm, 'epsilon', schedule, times, seed=3), run(theirs('DDPMScheduler', **given, variance_type='fixed_small'), noise, 20, seed=3))


@chains
def test_euler_and_heun_of_karras(name):
    "They walk in y = x/alpha, whose schedule is (1, sigma/alpha); Euler does not see the difference, Heun does."
    given = dict(CHAINS[name], timestep_spacing='trailing'); schedule = Schedule(name); times = spaced_times('trailing', 12, schedule)
    ratio = lambda t: (schedule(t)[1]/schedule(t)[0])
    scaled = lambda t: (torch.ones_like(t), ratio(t))
    def denoise(y, t):
        eps = network(y/(1 + ratio(t)**2).sqrt()); return y - ratio(t)*eps, eps
    begin, out = noise*(1 + ratio(torch.tensor(1.))**2).sqrt(), {}
    for sampler, scheduler in (euler, 'EulerDiscreteScheduler'), (heun, 'HeunDiscreteScheduler'):
        way = run(theirs(scheduler, **given), begin, 12, scaled=True); ends = []
        sampler(denoise, begin, scaled, times, callback=lambda step, x, x0: ends.append(x))
        same_way(ends, way if sampler is euler else way[1::2] + way[-1:], 3e-4) # two of their steps are one of ours; their sigmas are float32
        out[sampler] = ends[-1]
    began = begin*schedule(torch.tensor(1.))[0]
    def vp(x, t): return to_x0_eps('epsilon', network(x), x, *schedule(t))
    assert biggest(euler(vp, began, schedule, times), out[euler]) < 3e-4*out[euler].abs().max()
    assert biggest(heun(vp, began, schedule, times), out[heun]) > 1e-2*out[heun].abs().max()


def test_flow_matching_euler_and_heun():
    import numpy as np
    schedule, times = Schedule('flow'), torch.linspace(1, 0, 26, dtype=f64)
    same_way(ours(euler, 'flow_prediction', schedule, times), run(theirs('FlowMatchEulerDiscreteScheduler'), noise, 25, sigmas=np.linspace(1, 1/25, 25)))
    scheduler = theirs('FlowMatchHeunDiscreteScheduler'); way = run(scheduler, noise, 10)
    their_times = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]).double()
    same_way(ours(heun, 'flow_prediction', schedule, their_times), way[1::2] + way[-1:])


@chains
@pytest.mark.parametrize('n', [6, 20])
def test_dpm_on_a_chain(name, n):
    scheduler = theirs('DPMSolverMultistepScheduler', **CHAINS[name], algorithm_type='dpmsolver++', solver_order=2, timestep_spacing='trailing')
    schedule = Schedule(name)
    same_way(ours(dpm, 'epsilon', schedule, spaced_times('trailing', n, schedule)), run(scheduler, noise, n))


def test_dpm_on_the_flow():
    scheduler = theirs('DPMSolverMultistepScheduler', prediction_type='flow_prediction', use_flow_sigmas=True, algorithm_type='dpmsolver++', solver_order=2)
    way = run(scheduler, noise, 10)
    same_way(ours(dpm, 'flow_prediction', Schedule('flow'), scheduler.sigmas.double()), way)


# their defaults, as the chapter re-creates them

def leading(n, offset=0, T=1000): return [(k*(T//n) + 1 + offset)/T for k in reversed(range(n))]


@chains
def test_their_defaults_are_what_the_chapter_says(name):
    schedule = Schedule(name)
    def times(n, offset, last): return torch.tensor([*leading(n, offset), last], dtype=f64)
    default = theirs('DDIMScheduler', **CHAINS[name])
    assert default.config.timestep_spacing == 'leading' and default.config.clip_sample and default.config.set_alpha_to_one
    same_way(ours(ddim, 'epsilon', schedule, times(20, 0, 0.), clip=True), run(default, noise, 20))
    stable = theirs('DDIMScheduler', **CHAINS[name], clip_sample=False, set_alpha_to_one=False, steps_offset=1) # as Stable Diffusion 1 is configured
    same_way(ours(ddim, 'epsilon', schedule, times(20, 1, 1/1000)), run(stable, noise, 20))
    assert theirs('DDPMScheduler').config.clip_sample and theirs('DDPMScheduler').config.timestep_spacing == 'leading'
    early = theirs('DPMSolverMultistepScheduler', **CHAINS[name], timestep_spacing='trailing', final_sigmas_type='sigma_min', lower_order_final=False)
    short = torch.cat([spaced_times('trailing', 8, schedule)[:-1], torch.tensor([1/1000], dtype=f64)])
    same_way(ours(dpm, 'epsilon', schedule, short), run(early, noise, 8))


# spacings

@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.parametrize('spacing', SPACINGS)
def test_times_fall_from_1_to_0(name, spacing):
    schedule = Schedule(name)
    for n in 1, 2, 5, 30:
        times = spaced_times(spacing, n, schedule)
        equal((times.shape, times.dtype, times[0].item(), times[-1].item()), ((n + 1,), f64, 1., 0.))
        assert (times.diff() <= 0).all() and (n > 5 or (times.diff() < 0).all()) # near 0 many levels may lie within one step of a chain
    x = walk(lambda x, t: to_x0_eps('v_prediction', .1*x, x, *schedule(t)), noise, schedule, 900, 'dpm', spacing) # several levels fall on one step of a chain
    assert x.isfinite().all()


def test_levels_are_even():
    flow, edm = Schedule('flow'), Schedule('edm')
    t = spaced_times('snr', 9, flow)[1:-1]
    close(((1 - t)/t).log().diff(), torch.full((7,), math.log(80/.002)/8, dtype=f64), eps=1e-9) # 0.002 is at t = 0.002: above 0.001
    close(spaced_times('karras', 9, edm)[1:-1].diff(), torch.full((7,), -.999/8, dtype=f64), eps=1e-4) # EDM's own grid
    ratio = torch.tensor([.01, 1., 30.], dtype=f64)
    close(time_at(ratio, flow), ratio/(1 + ratio), eps=1e-9)


def test_mistakes():
    schedule = Schedule('flow')
    def denoise(x, t): return x, x
    fails(lambda: walk(denoise, noise, schedule, 4, 'plms'), contains='choose one of ddpm, ddim, euler, heun, dpm', exc=InputError)
    fails(lambda: walk(denoise, noise, schedule, 4, ['dpm']), contains='choose one of', exc=InputError)
    fails(lambda: walk(denoise, noise, schedule, 4, spacing='leading'), contains='uniform, snr, karras, trailing', exc=InputError)
    fails(lambda: walk(denoise, noise, schedule, 0), contains='num_steps', exc=InputError)
    fails(lambda: walk(denoise, noise, schedule, 4, 'heun', eta=.5), contains='only ddim', exc=InputError)
    fails(lambda: invert(denoise, noise, schedule, 4, 'dpm'), contains='backwards', exc=InputError)


# samplers

@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.parametrize('sampler', SAMPLERS)
def test_any_sampler_on_any_schedule(name, sampler):
    "A single point as data: all guesses are right, so all samplers end there, in any number of steps."
    schedule, point = Schedule(name), torch.tensor([[.3, -1.2]])
    x = torch.randn(50, 2, generator=generator('any'))
    def denoise(x, t): return to_x0_eps('sample', point.expand(len(x), 2), x, *schedule(t))
    for n in 1, 2, 7:
        seen = []
        got = walk(denoise, x, schedule, n, sampler, generator=generator('fresh'), callback=lambda *v: seen.append(v))
        close(got, point.expand(50, 2), eps=1e-4 if name != 'edm' else .01) # its sigma ends at 0.002
        equal([v[0] for v in seen], list(range(n))); equal(seen[-1][1], got)


def test_walk_is_the_sampler_it_names():
    schedule, times = Schedule('flow'), torch.linspace(1, 0, 8)
    def denoise(x, t): return to_x0_eps('flow_prediction', network(x), x, *schedule(t))
    for name, sampler in SAMPLERS.items():
        a, b = (f(generator('w')) for f in (lambda g: walk(denoise, noise, schedule, 7, name, generator=g), lambda g: sampler(denoise, noise, schedule, times, g)))
        close(a, b, eps=1e-5); close(walk(denoise, noise, schedule, 7, sampler, generator=generator('w')), b, eps=1e-5)
    half = walk(denoise, noise, schedule, 7, 'ddim', eta=.5, generator=generator('w'))
    close(half, sample_chain(denoise, noise, schedule, 7, .5, generator('w')), eps=1e-5)


@pytest.mark.parametrize('name', ['flow', 'edm'])
def test_orders_on_one_gaussian(name):
    "Where the exact solution is a formula: (x - alpha mu) over the marginal's deviation stays."
    schedule, μ, s = Schedule(name), .7, .6
    one, unit = torch.tensor([[μ]], dtype=f64), torch.ones(1, dtype=f64)
    def denoise(x, t): return to_x0_eps('sample', mixture_denoiser(x, *schedule(t), one, unit, s), x, *schedule(t))
    def width(t): α, σ = schedule(t); return (α**2*s**2 + σ**2).sqrt()
    times = torch.tensor([.9, .1], dtype=f64); (t, e) = times
    x = torch.linspace(-2, 2, 9, dtype=f64)[:, None]
    exact = schedule(e)[0]*μ + (x - schedule(t)[0]*μ)*width(e)/width(t)
    for sampler, order in (euler, 1), (ddim, 1), (heun, 2), (dpm, 2):
        error = [(sampler(denoise, x, schedule, torch.linspace(.9, .1, n + 1, dtype=f64)) - exact).abs().max().log2().item() for n in (64, 128, 256)]
        for a, b in zip(error, error[1:]): assert abs(a - b - order) < .15


def test_there_and_back():
    schedule, μ, s = Schedule('flow'), .7, .6
    one, unit = torch.tensor([[μ]], dtype=f64), torch.ones(1, dtype=f64)
    def denoise(x, t): return to_x0_eps('sample', mixture_denoiser(x, *schedule(t), one, unit, s), x, *schedule(t))
    x0 = torch.linspace(-1, 2, 7, dtype=f64)[:, None]
    close(invert(denoise, x0, schedule, 400), (x0 - μ)/s, eps=1e-4)
    close(walk(denoise, invert(denoise, x0, schedule, 200), schedule, 200, 'heun'), x0, eps=1e-3)


def test_evaluations_are_counted_for_each_image():
    net, guide = nn.Linear(2, 2), nn.Linear(2, 2); x = torch.randn(6, 2)
    def draw(): net(torch.cat([x, x])); net(x[:3]); net(x[3:]); guide(x)
    equal(count_evaluations(draw, 6, net, guide), 4.); equal(count_evaluations(draw, 6, net), 3.); equal(count_evaluations(draw, 6, net, net), 3.)
    def breaks(): net(x); raise KeyError('x')
    fails(lambda: count_evaluations(breaks, 6, net)); assert not net._forward_pre_hooks


def test_both_ends_are_their_default():
    "Euler's last evaluation is at the first step of the chain, flow matching's at t = 0.001."
    scheduler = theirs('FlowMatchEulerDiscreteScheduler'); scheduler.set_timesteps(8)
    close(scheduler.sigmas.double(), torch.cat([torch.linspace(1, .001, 8, dtype=f64), torch.zeros(1, dtype=f64)]), eps=1e-6)
    scheduler = theirs('EulerDiscreteScheduler', **CHAINS['linear']); scheduler.set_timesteps(8)
    equal((scheduler.timesteps[0].item(), scheduler.timesteps[-1].item(), scheduler.sigmas[-1].item()), (999, 0, 0))
