"Few steps: the identity of MeanFlow on a Gaussian, the energy distance, the student and its settings."
import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ldm_nb.core import InputError, fingerprint, generator
from ldm_nb.forward import Schedule
from ldm_nb.samplers import consistency, count_evaluations, distil, distil_loss, energy_distance, jumps, meanflow_loss, spaced_times, teacher_walks, walk
from ldm_nb.training import LatentDiffusion
from ldm_nb.vae import VAE

FLOW, MEAN, WIDTH = Schedule('flow'), .7, .4


@pytest.fixture(scope='module')
def shipped():
    return LatentDiffusion.from_pretrained('fashion')


@pytest.fixture(scope='module')
def student(shipped):
    return distil(shipped, 48, num_steps=2, batch_size=16)[0]


def exact_jump(x, t, r):
    "Of data N(0.7, 0.16): a particle keeps its place in the bell, counted in standard deviations."
    def bell(t): return (1 - t)*MEAN, ((1 - t)**2*WIDTH**2 + t**2).sqrt()
    (m_t, s_t), (m_r, s_r) = (bell(v[:, None]) for v in (t, r))
    end = m_r + s_r/s_t*(x - m_t)
    far = (t - r)[:, None]
    return torch.where(far > 1e-3, (x - end)/far.clamp(min=1e-3), 0)


class Scaled(nn.Module):
    def __init__(self, base): super().__init__(); self.base, self.scale, self.shift = base, nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
    def forward(self, x, t, r): return self.scale*self.base(x, t, r) + self.shift


def pulls(base, n=40_000):
    "The gradients of the loss after a scale and a shift of the network, and their standard errors."
    net, found = Scaled(base), []
    for k in range(20):
        rng = generator(k, 'meanflow')
        x0 = MEAN + WIDTH*torch.randn(n//20, 1, generator=rng)
        loss = meanflow_loss(net, x0, rng, equal=0., delta=.002)
        found.append(torch.stack(torch.autograd.grad(loss, (net.scale, net.shift))))
    found = torch.stack(found)
    return found.mean(0), found.std(0)/20**.5


def test_meanflow_leaves_the_exact_mean_velocity_alone():
    "And does not leave alone the velocity of the moment, which flow matching learns."
    mean, error = pulls(exact_jump)
    assert (mean.abs() < 4*error).all(), (mean, error)
    def velocity(x, t, r): return exact_jump(x, t, t - .002)
    mean, error = pulls(velocity)
    assert (mean.abs() > 8*error).any(), (mean, error)


def test_exact_jumps_end_where_the_ode_ends():
    noise = torch.randn(200, 1, generator=generator('jumps'))
    for k in 1, 2, 4:
        assert (jumps(exact_jump, noise, k) - (MEAN + WIDTH*noise)).abs().max() < 1e-4


def test_energy_distance():
    "Of two single numbers' crowds by hand; unbiased for equal ones; grows with a shift."
    x, y = torch.tensor([[0.], [2.]]), torch.tensor([[1.], [1.]])
    assert energy_distance(x, y).item() == pytest.approx(2*1 - 2 - 0)
    rng = generator('energy')
    def crowd(shift=0.): return torch.randn(100, 2, generator=rng) + shift
    same = torch.stack([energy_distance(crowd(), crowd()) for _ in range(100)])
    assert same.mean().abs() < 4*same.std()/10 and energy_distance(crowd(), crowd(1.)) > .2


def test_energy_distance_has_finite_gradients():
    x = torch.zeros(4, 2, requires_grad=True)
    energy_distance(x, torch.zeros(4, 2)).backward()
    assert x.grad.isfinite().all()


def test_consistency_with_one_answer():
    "If the denoiser always answers alike, that is the end, in any number of steps; the same generator, the same samples."
    answer = torch.full((3, 2), .5)
    def denoise(x, t): return answer, (x - (1 - t)*answer)/t
    noise = torch.randn(3, 2, generator=generator('c'))
    for k in 1, 2, 3, 6:
        assert (walk(denoise, noise, FLOW, k, 'consistency', 'late') - answer).abs().max() < 1e-5
    def mean(x, t): return .3*x, x
    one, two = (walk(mean, noise, FLOW, 4, 'consistency', 'late', generator=generator('n')) for _ in range(2))
    assert one.equal(two) and not one.equal(walk(mean, noise, FLOW, 4, 'consistency', 'late', generator=generator('m')))
    assert consistency(mean, noise, FLOW, torch.tensor([1., 0.])).shape == noise.shape


def test_late_times():
    assert spaced_times('late', 1, FLOW).tolist() == [1, 0]
    assert spaced_times('late', 2, FLOW).tolist() == pytest.approx([1, .3, 0])
    assert spaced_times('late', 4, FLOW).tolist() == pytest.approx([1, .6, .3, .15, 0])


def test_walks_end_where_sample_ends(shipped):
    walks, labels = teacher_walks(shipped, 6, num_steps=7, seed=3)
    assert walks.shape == (8, 6, 4, 8, 8) and labels.shape == (6,)
    how = shipped.settings()
    end = shipped._walk(walks[0].to(shipped.device), labels.to(shipped.device), None, how, None, None)
    assert (walks[-1] - end.cpu()).abs().max() < 1e-4


def test_a_perfect_student_has_no_loss():
    "It answers with the ends of walks that all end alike; states of the lower half are not asked about."
    walks, asked = torch.randn(11, 400, 4, 2, 2, generator=generator('walks')), []
    walks[-1] = .5
    def right(x, t, y):
        asked.append(t)
        return torch.full_like(x, .5)
    def wrong(x, t, y): return torch.full_like(x, .7)
    assert distil_loss(right, walks, None, FLOW, 'sample').item() == pytest.approx(0, abs=1e-9)
    assert distil_loss(wrong, walks, None, FLOW, 'sample').item() == pytest.approx(.04, abs=1e-4)
    times = asked[0].unique()
    assert torch.allclose(times, torch.tensor([.5, .6, .7, .8, .9, 1.])) and .5 < (asked[0] == 1).float().mean() < .7


def test_a_student_asks_once_a_step_and_has_no_dial(student, shipped):
    for k in 1, 2, 4:
        assert count_evaluations(lambda: student.sample(5, steps=k), 5, student.ema, student.late) == k
    assert student.settings()['steps'] == 4 and student.guide is None
    for dial in dict(guidance=2.), dict(autoguidance=2.), dict(negative=1):
        with pytest.raises(InputError, match='no dial'):
            student.sample(2, **dial)
    assert 'distilled' in student.card and 'distilled' not in shipped.card
    assert student.sample(3, steps=1, seed=1).equal(student.sample(3, steps=1, seed=1))
    assert all(not p.requires_grad for p in student.parameters())


def test_a_student_is_saved_with_its_settings(student, tmp_path):
    student.save_pretrained(tmp_path/'fast')
    again = LatentDiffusion.from_pretrained(tmp_path/'fast')
    assert again.settings() == student.settings() and again.sample(3).equal(student.sample(3))
    assert again.card['distilled'] == student.card['distilled'] and again.seen.equal(student.seen)


def test_half_the_size_is_as_good(student, tmp_path):
    for half in False, True:
        student.save_pretrained(tmp_path/str(half), half=half)
    def size(folder): return sum(p.stat().st_size for name in ('ema', 'late') for p in folder.glob(f'{name}.safetensors'))
    assert size(tmp_path/'True') < .51*size(tmp_path/'False')
    one, two = (LatentDiffusion.from_pretrained(tmp_path/str(half)) for half in (False, True))
    assert (one.sample(8) - two.sample(8)).abs().mean() < .01


def test_an_autoencoder_is_halved_only_if_nothing_is_lost(shipped, tmp_path):
    "Its statistics know its exact weights: what float16 cannot hold stays float32."
    vae = VAE(**shipped.autoencoder.config).eval()
    vae.load_state_dict({k: v.half().float() for k, v in shipped.autoencoder.state_dict().items()})
    stats = replace(shipped.stats, encoder=fingerprint(vae))
    ema = copy.deepcopy(shipped.ema)
    ema.trained_on = stats.fingerprint
    rounded = LatentDiffusion(vae, stats, ema, ema)
    fine = copy.deepcopy(vae)
    with torch.no_grad():
        next(fine.parameters()).add_(1e-5) # what float16 cannot hold
    stats = replace(shipped.stats, encoder=fingerprint(fine))
    ema = copy.deepcopy(shipped.ema)
    ema.trained_on = stats.fingerprint
    for name, ldm in dict(exact=LatentDiffusion(fine, stats, ema, ema), rounded=rounded).items():
        ldm.save_pretrained(tmp_path/name, ema_only=True, half=True)
    exact, half = (tmp_path/name/'autoencoder.safetensors' for name in ('exact', 'rounded'))
    assert half.stat().st_size < .51*exact.stat().st_size
    again = LatentDiffusion.from_pretrained(tmp_path/'rounded')
    assert fingerprint(again.autoencoder) == fingerprint(vae) and again.autoencoder.decode(torch.ones(1, 4, 7, 7)).dtype == torch.float32


def test_the_teacher_stays_as_it_was(shipped, student):
    other = LatentDiffusion.from_pretrained('fashion')
    assert shipped.sample(2).equal(other.sample(2)) and student.ema is not shipped.ema and student.late is shipped.ema


def test_a_model_without_labels_has_students_too(shipped):
    alone = LatentDiffusion(shipped.autoencoder, shipped.stats, shipped.ema, shipped.ema)
    alone.ema.num_classes, before = 0, alone.ema.num_classes
    try:
        walks, labels = teacher_walks(alone, 3, num_steps=2)
        assert labels is None and walks.isfinite().all()
    finally:
        alone.ema.num_classes = before


def test_fashion_fast_draws_what_is_asked():
    from ldm_nb.features import class_logits, extract
    fast, labels = LatentDiffusion.from_pretrained('fashion-fast'), torch.arange(200) % 10
    assert fast.settings()['steps'] == 4 and fast.card['distilled']['steps'] == 3_000
    for k in 1, 2, 4:
        seen = class_logits(extract(fast.sample(200, labels, steps=k))).argmax(1)
        assert (seen == labels).float().mean() > .85, k


def test_models_show_their_parts(shipped, student):
    assert 'late        1,326,404 parameters' in repr(student) and 'late        none' in repr(shipped)


def test_a_student_is_not_fine_tuned(student):
    from ldm_nb.data import fashion_mnist
    from ldm_nb.joint import finetune
    with pytest.raises(InputError, match='distil it again'): finetune(student, fashion_mnist('test'), 'denoiser', num_steps=1)


@pytest.mark.parametrize('wrong', [(.9, .2), 3, (0, 2), (.1,)])
def test_an_interval_is_two_times_in_order(shipped, wrong):
    with pytest.raises(InputError, match='interval'): shipped.sample(2, interval=wrong)
