"""Ours against what people would take instead, at equal wall-clock: python bench/peers.py [--minutes 5] [--only ours unlabelled latent pixel]   (half an hour on 2 cores)

On this machine, one after the other, on the same 10,000 images, each for the same minutes of training:
  ours    `ldm_train` at lesson size, with its defaults; sampled by DDIM (classes in turn, autoguidance 3, 15 steps, the defaults of then), and guided by the label
  unlabelled  the same, and the images have no labels: nobody else is given any
  pixel   diffusers' UNet2DModel and DDPMScheduler, as in the first unit of the Hugging Face diffusion course, in batches of 16, the default
          of their training script (on two cores 64 would leave 270 steps in five minutes); sampled by DDIM in 50 steps
  latent  diffusers' AutoencoderKL (20 % of the time, like ours), then a UNet2DModel on its scaled latents, with the schedule of Stable Diffusion;
          sampled by DDIM in 50 steps
The pipelines are sampled twice: with the scheduler's default spacing of the 50 steps, and with spacing "trailing", which begins at the last step of training.
The judge is a network that none of them was trained with: EfficientNet-Lite0 on photographs, images at 64 x 64, test split as reference.
With fewer samples than features a Frechet distance is mostly bias, so it is measured in the reference's 128 leading directions.
Writes bench/peers.json; needs the extra [dev].
"""
import argparse, json, os, tempfile, time
from dataclasses import replace
from functools import cache
from pathlib import Path

os.environ.setdefault('TQDM_DISABLE', '1')
import torch
import torch.nn.functional as F
from torch import nn

from ldm_nb.core import default_device, generator, image_grid, read_json, save_picture, write_json
from ldm_nb.data import crop_images, fashion_mnist, pad_images
from ldm_nb.loop import batch_indices
from ldm_nb.features import extract
from ldm_nb.evaluation import frechet_distance, kid, kid_error, mean_cov
from ldm_nb.runs import train_latent_diffusion
from ldm_nb.training import LatentDiffusion

HERE, DIRECTIONS, DEVICE = Path(__file__).parent, 128, default_device()
parameters = lambda *nets: sum(p.numel() for net in nets for p in net.parameters())


def train(net, loss, seconds, n, batch, lr, warmup, seed, ema=True):
    "The loop of diffusers' `train_unconditional.py`: AdamW, warm-up and cosine (on the clock, since that is the budget), clipping, their EMA."
    from diffusers.training_utils import EMAModel
    from ldm_nb.loop import cosine_lr
    net.to(DEVICE).train(); torch.manual_seed(seed)
    opt = torch.optim.AdamW(net.parameters(), lr=lr, betas=(.95, .999), weight_decay=1e-6, eps=1e-8)
    average = EMAModel(net.parameters(), decay=.9999, use_ema_warmup=True, inv_gamma=1., power=3/4) if ema else None
    began, step = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        for group in opt.param_groups: group['lr'] = lr*cosine_lr(spent/seconds, step, warmup)
        loss(net, batch_indices(step, n, batch, seed)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.); opt.step(); opt.zero_grad(); step += 1
        if average: average.step(net.parameters())
    if average: average.copy_to(net.parameters())
    net.eval(); return step


def noise_loss(x, scheduler):
    def loss(net, i):
        clean = x[i].to(DEVICE); noise = torch.randn_like(clean); t = torch.randint(0, 1000, (len(i),), device=DEVICE)
        return F.mse_loss(net(scheduler.add_noise(clean, noise, t), t).sample, noise)
    return loss


@torch.no_grad()
def ddim(net, scheduler, shape, n, seed, spacing, steps=50, batch=250):
    from diffusers import DDIMScheduler
    sampler = DDIMScheduler.from_config(scheduler.config, timestep_spacing=spacing); sampler.set_timesteps(steps)
    noise, out = torch.randn(n, *shape, generator=generator(seed, 'ddim')), []
    for x in noise.split(batch):
        x = x.to(DEVICE)
        for t in sampler.timesteps: x = sampler.step(net(x, t).sample, t, x).prev_sample
        out.append(x)
    return torch.cat(out)


def course_unet(channels, size, widths, layers, groups, seed):
    "The UNet2DModel of the Hugging Face diffusion course, unit 1 (there 32, 64, 64 channels and 2 layers: 1.7 million parameters)."
    from diffusers import UNet2DModel
    torch.manual_seed(seed)
    return UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=layers, block_out_channels=widths, norm_num_groups=groups,
                       down_block_types=('DownBlock2D', *['AttnDownBlock2D']*(len(widths) - 1)), up_block_types=(*['AttnUpBlock2D']*(len(widths) - 1), 'UpBlock2D'))


def both_spacings(name, draw): # {name: (how, a function that draws)}
    return {name: ('DDIM, 50 steps', lambda: draw('leading')), f'{name}, trailing': ('DDIM, 50 steps, spacing "trailing"', lambda: draw('trailing'))}


def pixel(data, seconds, n, seed):
    from diffusers import DDPMScheduler
    x, scheduler = pad_images(data.images), DDPMScheduler(num_train_timesteps=1000, beta_schedule='squaredcos_cap_v2')
    net = course_unet(1, 32, (32, 64, 64), 2, 32, seed)
    steps = train(net, noise_loss(x, scheduler), seconds, len(x), 16, 4e-4, 100, seed)
    return dict(parameters=parameters(net), steps=steps), both_spacings('pixel', lambda spacing: ddim(net, scheduler, (1, 32, 32), n, seed, spacing).cpu())


def latent(data, seconds, n, seed):
    from diffusers import AutoencoderKL, DDPMScheduler
    x, scheduler = pad_images(data.images), DDPMScheduler(num_train_timesteps=1000, beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012, clip_sample=False); torch.manual_seed(seed) # latents are not in [-1, 1]
    vae = AutoencoderKL(in_channels=1, out_channels=1, down_block_types=('DownEncoderBlock2D',)*3, up_block_types=('UpDecoderBlock2D',)*3, block_out_channels=(16, 32, 64),
                        latent_channels=4, norm_num_groups=8, layers_per_block=1, sample_size=32)
    def reconstruct(net, i):
        images = x[i].to(DEVICE); posterior = net.encode(images).latent_dist
        return F.mse_loss(net.decode(posterior.sample()).sample, images) + 1e-6*posterior.kl().mean()
    first = train(vae, reconstruct, .2*seconds, len(x), 16, 1e-3, 50, seed, ema=False)
    with torch.no_grad(): z = torch.cat([vae.encode(part.to(DEVICE)).latent_dist.mean for part in x.split(250)]).cpu()
    scale = 1/z.std(); net = course_unet(4, 8, (48, 80), 1, 16, seed)
    steps = train(net, noise_loss(z*scale, scheduler), .8*seconds, len(x), 64, 4e-4, 100, seed)
    @torch.no_grad()
    def draw(spacing): z = ddim(net, scheduler, (4, 8, 8), n, seed, spacing)/scale.to(DEVICE); return torch.cat([vae.decode(part).sample for part in z.split(250)]).cpu()
    return dict(parameters=parameters(vae, net), steps=[first, steps]), both_spacings('latent', draw)


def ours(data, seconds, n, seed):
    with tempfile.TemporaryDirectory() as d: ldm, losses = train_latent_diffusion(data, Path(d)/'run', minutes=seconds/60, size='lesson', seed=seed)
    draws = {'ours' if data.classes else 'ours, without labels': ('15 steps, autoguidance 3', lambda: ldm.sample(n, seed=seed, steps=15, sampler='ddim', interval=(0, 1)))}
    if data.classes: draws['ours, guidance 2'] = '15 steps, guidance 2', lambda: ldm.sample(n, guidance=2., seed=seed, steps=15, sampler='ddim', interval=(0, 1))
    return dict(parameters=parameters(ldm.autoencoder, ldm.ema), steps=[len(v) for v in losses.values()]), draws


def unlabelled(data, *args): return ours(replace(data, labels=None, classes=()), *args)


@cache
def reference(): # features, their mean and covariance in the leading directions, and those
    y = extract(fashion_mnist('test').images, 'effnet').double(); mean, cov = mean_cov(y); directions = torch.linalg.eigh(cov)[1][:, -DIRECTIONS:]
    return y, directions.T @ mean, directions.T @ cov @ directions, directions


def judge(images): # {distance, kid x 1,000 and its standard error}
    x, (y, mean, cov, directions) = extract(images.clamp(-1, 1), 'effnet').double(), reference()
    return dict(frechet_distance=frechet_distance(*mean_cov(x @ directions), mean, cov), kid_x1000=1000*kid(x, y), kid_x1000_error=1000*kid_error(x, y))


CONTESTANTS = dict(ours=ours, unlabelled=unlabelled, latent=latent, pixel=pixel)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=5); p.add_argument('--samples', type=int, default=500); p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', nargs='+', default=list(CONTESTANTS), choices=CONTESTANTS); p.add_argument('--out', default=HERE/'peers.json')
    args = p.parse_args()
    data = fashion_mnist()
    rows = []
    for contestant in args.only:
        trained, draws = CONTESTANTS[contestant](data, 60*args.minutes, args.samples, args.seed)
        for name, (how, draw) in draws.items():
            began = time.perf_counter(); images = crop_images(draw(), (28, 28)); spent = time.perf_counter() - began
            rows.append(dict(name=name, **trained, sampling=how, **judge(images), images_per_second=len(images)/spent)); print(json.dumps(rows[-1]), flush=True)
            save_picture(Path('runs')/f'peers-{name.replace(", ", "-").replace(" ", "-")}.png', image_grid(images[:100].clamp(-1, 1), 10))
    real = dict(name='as many training images', **judge(data.images[:args.samples]))
    card = dict(minutes=args.minutes, samples=args.samples, seed=args.seed, reference='fashion test, 2000 images', network='EfficientNet-Lite0, 64 x 64', directions=DIRECTIONS, device=str(DEVICE), threads=torch.get_num_threads(), torch=torch.__version__)
    write_json(args.out, dict(rows=[*rows, real], card=card)); print(json.dumps(real))


if __name__ == '__main__': main()
