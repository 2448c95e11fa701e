"What we teach, against the libraries that people use: largest absolute or relative difference."
import numpy as np
import pytest
import torch

from ldm_nb.autoencoder import psnr, ssim
from ldm_nb.core import generator
from ldm_nb.data import fashion_mnist, pad_images
from ldm_nb.denoiser import DiTBlock, sample_chain, timestep_embedding
from ldm_nb.forward import Schedule, add_noise, edm_sigma, q_posterior, target, to_x0_eps
from ldm_nb.vae import VectorQuantizer, kl_divergence

diffusers = pytest.importorskip('diffusers', reason='diffusers is in the [dev] extra')
NAMES = {'linear': dict(beta_schedule='linear', beta_start=1e-4, beta_end=.02), 'scaled_linear': dict(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012),
         'cosine': dict(beta_schedule='squaredcos_cap_v2'),
         'zero_snr': dict(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012, rescale_betas_zero_snr=True)}
biggest = lambda a, b: (a - b).abs().max().item()


@pytest.mark.parametrize('name', NAMES)
def test_schedules(name):
    theirs = diffusers.DDPMScheduler(**NAMES[name])
    ours = Schedule(name)
    assert biggest(ours.alpha_bar[1:].float(), theirs.alphas_cumprod) < 1e-5
    x0, eps = torch.randn(2, 16, 4, 8, 8, generator=generator('parity'))
    k = torch.linspace(0, 999, 16).round().long(); t = (k + 1)/1000
    assert biggest(add_noise(ours, x0, eps, t), theirs.add_noise(x0, eps, k)) < 1e-3
    α, σ = (v.view(-1, 1, 1, 1) for v in ours(t))
    assert biggest(target('v_prediction', x0, eps, α, σ), theirs.get_velocity(x0, eps, k)) < 1e-3


def test_edm_sigmas():
    theirs = diffusers.EDMEulerScheduler(sigma_min=.002, sigma_max=80., rho=7.)
    theirs.set_timesteps(40)
    ours = edm_sigma(torch.linspace(1, 0, 40, dtype=torch.float64))
    assert (theirs.sigmas[:40].double()/ours - 1).abs().max() < 1e-5


@pytest.mark.parametrize('name', ['linear', 'scaled_linear', 'cosine'])
def test_one_step_back(name):
    "Our posterior against DDPMScheduler.step with the clean data given as its prediction, fresh noise included."
    theirs = diffusers.DDPMScheduler(**NAMES[name], prediction_type='sample', clip_sample=False, variance_type='fixed_small')
    theirs.set_timesteps(1000)
    schedule = Schedule(name)
    x0, x_t = torch.randn(2, 8, 4, 8, 8, generator=generator('posterior'))
    for k in 10, 300, 900: # index k of diffusers is step k + 1 of the chain
        (α_s, σ_s), (α_t, σ_t) = schedule(torch.tensor(k/1000, dtype=torch.float64)), schedule(torch.tensor((k + 1)/1000, dtype=torch.float64))
        mean, std = q_posterior(x0, x_t, α_s, σ_s, α_t, σ_t)
        noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(k))
        assert biggest(mean + std*noise, theirs.step(x0, k, x_t, generator=torch.Generator().manual_seed(k)).prev_sample) < 1e-5 + 1e-6/σ_s**2 # their 1 - alpha_bar is float32


@pytest.mark.parametrize('kind', ['epsilon', 'sample', 'v_prediction'])
def test_ddim_steps(kind):
    "Our chain at eta 0 against DDIMScheduler, with a made-up network."
    theirs = diffusers.DDIMScheduler(**NAMES['scaled_linear'], prediction_type=kind, clip_sample=False, set_alpha_to_one=True, timestep_spacing='trailing')
    theirs.set_timesteps(20)
    network = lambda x: torch.tanh(x)*.7
    x = noise = torch.randn(8, 4, 8, 8, generator=generator('ddim'))
    for k in theirs.timesteps: x = theirs.step(network(x), k, x).prev_sample
    schedule = Schedule('scaled_linear')
    ours = sample_chain(lambda x, t: to_x0_eps(kind, network(x), x, *schedule(t)), noise, schedule, 20)
    assert biggest(x, ours) < 1e-3*x.abs().max()


def test_flow_matching_steps():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=np.linspace(1, 1/25, 25))
    network = lambda x: torch.sin(x)
    x = noise = torch.randn(8, 4, 8, 8, generator=generator('euler'))
    for k in theirs.timesteps: x = theirs.step(network(x), k, x).prev_sample
    schedule = Schedule('flow')
    ours = sample_chain(lambda x, t: to_x0_eps('flow_prediction', network(x), x, *schedule(t)), noise, schedule, 25)
    assert biggest(x, ours) < 1e-4


def test_timestep_embedding():
    from diffusers.models.embeddings import get_timestep_embedding
    t = torch.linspace(0, 1, 50)
    assert biggest(timestep_embedding(t, 64), get_timestep_embedding(1000*t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)) < 1e-3


def test_psnr():
    from torchmetrics.functional.image import peak_signal_noise_ratio
    x = pad_images(fashion_mnist('test').images[:32]); y = (x + .1*torch.randn(x.shape, generator=generator('psnr'))).clamp(-1, 1)
    theirs = peak_signal_noise_ratio(y, x, data_range=2., dim=(1, 2, 3), reduction='none')
    assert biggest(psnr(y, x), theirs) < 1e-4


def test_ssim():
    "torchmetrics also averages windows that stick out (mirrored at the border); the paper's own code, and ours, do not."
    from torchmetrics.functional.image import structural_similarity_index_measure
    x = fashion_mnist('test').images[:32]
    for y in (x + .1*torch.randn(x.shape, generator=generator('ssim'))).clamp(-1, 1), x.roll(1, 3), -x:
        _, windows = structural_similarity_index_measure(y + 1, x + 1, data_range=2., reduction='none', return_full_image=True)
        assert biggest(ssim(y, x), windows[..., 5:-5, 5:-5].mean((1, 2, 3))) < 1e-4


def test_kl_of_a_vae():
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    mean, logvar = torch.randn(2, 8, 4, 8, 8, generator=generator('kl'))
    theirs = DiagonalGaussianDistribution(torch.cat([mean, logvar], 1)).kl()
    assert (kl_divergence(mean, logvar).sum((1, 2, 3))/theirs - 1).abs().max() < 1e-5


def test_vector_quantizer():
    from diffusers.models.autoencoders.vae import VectorQuantizer as Theirs
    ours, theirs = VectorQuantizer(64, 4).eval(), Theirs(64, 4, beta=.25, legacy=False)
    ours.codebook.data.normal_(generator=generator('codes')); theirs.embedding.weight.data.copy_(ours.codebook)
    z = torch.randn(8, 4, 8, 8, generator=generator('vq'))
    (q, codes, loss), (q_, loss_, (_, _, codes_)) = ours(z), theirs(z)
    assert codes.flatten().equal(codes_) and biggest(q, q_) < 1e-6 and biggest(loss, loss_) < 1e-6


def test_dit_attention():
    ours, theirs = DiTBlock(64, 32), torch.nn.MultiheadAttention(64, 2, batch_first=True)
    theirs.in_proj_weight.data.copy_(ours.qkv.weight); theirs.in_proj_bias.data.copy_(ours.qkv.bias)
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(8, 16, 64, generator=generator('attention'))
    assert biggest(ours.attend(x), theirs(x, x, x)[0]) < 1e-5
