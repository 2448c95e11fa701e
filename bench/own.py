"""Own colour pictures: emoji at 32, 64 and 128 px, against diffusers: python bench/own.py [--only ROW ...]   (an hour on 2 cores)

The pictures, made once in runs/own-data, in ten folders (categories); a tenth is held out by `load_data`:
  both      7,5xx pictures of 64 px, Noto and Twemoji: npm pack emoji-datasource-google@16.0.0 and emoji-datasource-twitter@16.0.0, both .tgz in $LDM_EMOJI
  font      3,7xx Noto emoji of 136 x 128 px, drawn from the font of the Debian package fonts-noto-color-emoji
The rows (each in a process of its own, so that its peak memory is its own): `Recipe.for_data` at 32, 64 and 128 px, 2 and 8 minutes; 300 pictures; a tenth of the Twemoji from
nothing, and from a model of the Noto emoji (`base`); `pipeline`: diffusers' AutoencoderKL and UNet2DModel as in peers.py, in batches of 8 and 16, so that both make enough steps.
The judge is EfficientNet-Lite0 at 64 px in the 128 leading directions of the held-out pictures, 500 samples with the default settings. Mesh: `mesh_ratio` of chapter 11.
Writes ldm_nb/results/own.json, samples of each row to runs/own, and the table of bench/RECIPE.md. Finished rows are kept in runs/own and not made again.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault('TQDM_DISABLE', '1')
import torch
import torch.nn.functional as F

from ldm_nb.autoencoder import psnr
from ldm_nb.core import PACKAGE, generator, image_grid, read_json, save_picture, write_json
from ldm_nb.data import _emoji_pictures, emoji_table, load_data, proportional_labels
from ldm_nb.evaluation import frechet_distance, kid, kid_error, mean_cov
from ldm_nb.features import extract
from ldm_nb.own_images import mesh_ratio
from ldm_nb.runs import recipe_like, train_latent_diffusion
from ldm_nb.training import LatentDiffusion, Recipe
from peers import course_unet, ddim, noise_loss, parameters, train
from tables import put_table

RUNS, DATA = Path('runs/own'), Path('runs/own-data')
SAMPLES, DIRECTIONS = 500, 128
FONT = '/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf'
ROWS = {
    '64, 8 minutes': dict(pixels=64, minutes=8),
    'pipeline': dict(pixels=64, minutes=8),
    '64, 2 minutes': dict(pixels=64, minutes=2),
    '32, 8 minutes': dict(pixels=32, minutes=8),
    '32, 2 minutes': dict(pixels=32, minutes=2),
    '128, 8 minutes': dict(pixels=128, minutes=8, data='font'),
    '128, 2 minutes': dict(pixels=128, minutes=2, data='font'),
    '300 pictures, 2 minutes': dict(pixels=64, minutes=2, images=300),
    'the Noto emoji, to start from': dict(pixels=64, minutes=4, data='google'),
    'a tenth of the Twemoji': dict(pixels=64, minutes=2, data='twitter', part=.1),
    'the same, from the Noto emoji': dict(pixels=64, minutes=2, data='twitter', part=.1,
                                          init='the Noto emoji, to start from'),
}


def drawn(row):
    "An emoji of the font as a picture, or None if the font does not have it as one sign."
    from PIL import Image, ImageDraw, ImageFont
    font, text = ImageFont.truetype(FONT, 109), ''.join(chr(int(c, 16)) for c in row['id'].split('-'))
    if font.getbbox(text) != (0, 0, 136, 128):
        return None
    picture = Image.new('RGBA', (136, 128))
    ImageDraw.Draw(picture).text((0, 0), text, font=font, embedded_color=True)
    return picture if picture.getbbox() else None


def folder_of(name):
    "The folder of pictures, made if it is not there."
    out = DATA/name
    if not out.is_dir():
        part = DATA/f'{name}.part'
        def place(row, style):
            path = part/row['category'].replace(' & ', ' and ')/f'{style}-{row["id"].lower()}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            return path
        if name == 'font':
            for row in emoji_table('all'):
                if picture := drawn(row):
                    picture.save(place(row, name))
        for style in dict(both=['google', 'twitter'], font=[]).get(name, [name]):
            for row, data in zip(*_emoji_pictures(style)):
                place(row, style).write_bytes(data)
        part.rename(out)
    return out


def pictures(pixels, data='both', images=None, part=1., **_):
    "Training and held-out pictures of a row; fewer of the first if it says so."
    train, test = load_data(folder_of(data), pixels)
    n = images or round(part*len(train))
    return train[torch.randperm(len(train), generator=generator(0, 'part'))[:n]], test


class Judge:
    "Distance, KID and its standard error of images against `data`."
    def __init__(self, data):
        self.y = extract(data, 'effnet').double()
        mean, cov = mean_cov(self.y)
        self.axes = torch.linalg.eigh(cov)[1][:, -DIRECTIONS:]
        self.mean, self.cov = self.axes.T @ mean, self.axes.T @ cov @ self.axes
    def __call__(self, images):
        x = extract(images, 'effnet').double()
        distance = frechet_distance(*mean_cov(x @ self.axes), self.mean, self.cov)
        return dict(frechet_distance=distance, kid_x1000=1000*kid(x, self.y), kid_x1000_error=1000*kid_error(x, self.y))


def ours(name, train, test, spec):
    "A run of the package. Returns the model's functions and what is known of it."
    recipe, why = Recipe.for_data(train.levels.shape[1:], len(train), minutes=spec['minutes'], reasons=True)
    init = RUNS/spec['init']/'run'/'model' if 'init' in spec else None
    began = time.perf_counter()
    ldm, losses = train_latent_diffusion(train, RUNS/name/'run', minutes=spec['minutes'], recipe=recipe_like(init, recipe) if init else recipe, held_out=test, init=init)
    steps = {stage: len(v) for stage, v in losses.items()}
    labels = proportional_labels(train.counts, SAMPLES)
    facts = dict(steps=steps, seconds_per_step={k: v/max(steps[k], 1) for k, v in ldm.card['seconds'].items()}, parameters=parameters(ldm.autoencoder, ldm.ema),
                 recipe=ldm.card['recipe'], why=why, training_seconds=time.perf_counter() - began)
    return lambda: ldm.sample(SAMPLES, labels), lambda x: torch.cat([ldm.reconstruct(b) for b in x.split(100)]), facts


def diffusers(name, data, test, spec):
    "AutoencoderKL for a fifth of the time, UNet2DModel on its scaled latents for the rest; DDIM, 50 steps."
    from diffusers import AutoencoderKL, DDPMScheduler
    torch.manual_seed(0)
    x, seconds = data.images, 60*spec['minutes']
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012, clip_sample=False)
    vae = AutoencoderKL(in_channels=3, out_channels=3, down_block_types=('DownEncoderBlock2D',)*3, up_block_types=('UpDecoderBlock2D',)*3,
                        block_out_channels=(16, 32, 64), latent_channels=4, norm_num_groups=8, layers_per_block=1, sample_size=64)
    def reconstruct(net, i):
        posterior = net.encode(x[i]).latent_dist
        return F.mse_loss(net.decode(posterior.sample()).sample, x[i]) + 1e-6*posterior.kl().mean()
    first = train(vae, reconstruct, .3*seconds, len(x), 8, 1e-3, 50, 0, ema=False)
    @torch.no_grad()
    def through(images): return torch.cat([vae.decode(vae.encode(b).latent_dist.mean).sample.clamp(-1, 1) for b in images.split(100)])
    with torch.no_grad():
        z = torch.cat([vae.encode(b).latent_dist.mean for b in x.split(100)])
    scale, net = 1/z.std(), course_unet(4, 16, (48, 80), 1, 16, 0)
    second = train(net, noise_loss(z*scale, scheduler), .7*seconds, len(x), 16, 4e-4, 100, 0)
    @torch.no_grad()
    def draw():
        found = ddim(net, scheduler, (4, 16, 16), SAMPLES, 0, 'trailing')/scale
        return torch.cat([vae.decode(b).sample.clamp(-1, 1) for b in found.split(100)])
    facts = dict(steps=dict(autoencoder=first, denoiser=second), parameters=parameters(vae, net),
                 seconds_per_step=dict(autoencoder=.3*seconds/first, denoiser=.7*seconds/second))
    return draw, through, facts


def make(name):
    "Train and judge one row, in this process."
    spec = ROWS[name]
    data, test = pictures(**spec)
    draw, through, facts = (diffusers if name == 'pipeline' else ours)(name, data, test, spec)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6
    began = time.perf_counter()
    images = draw()
    seconds = time.perf_counter() - began
    judge, recon = Judge(test), through(test.images)
    some = data.images[torch.randperm(len(data), generator=generator(0, 'real'))[:SAMPLES]]
    row = dict(name=name, **spec, n=len(data), held_out=len(test), **facts, peak_gb=peak, sampling_seconds=seconds, samples=judge(images) | dict(n=len(images), mesh=mesh_ratio(images)),
               reconstructions=judge(recon) | dict(psnr=psnr(recon, test.images).mean().item(), mesh=mesh_ratio(recon)),
               real=judge(some) | dict(n=len(some), mesh=mesh_ratio(test.images)))
    for kind, shown in dict(samples=images[:100], reconstructions=torch.stack([test.images[:50], recon[:50]], 1).flatten(0, 1)).items():
        save_picture(RUNS/name/f'{kind}.png', image_grid(shown, 10))
    write_json(RUNS/name/'row.json', row)


def table(rows):
    "The rows as Markdown."
    yield '| | images | steps | dB | mesh (real) | reconstructions | samples | real | ms a step | peak GB | 500 samples |'
    yield '|---|---|---|---|---|---|---|---|---|---|---|'
    def pair(d): return f'{d["frechet_distance"]:.0f} / {d["kid_x1000"]:,.0f}'
    for r in rows:
        steps, recon = r['steps'].values(), r['reconstructions']
        yield (f'| {r["name"]} | {r["n"]:,} | {" + ".join(f"{s:,}" for s in steps)} | {recon["psnr"]:.1f} | {recon["mesh"]:.2f} ({r["real"]["mesh"]:.2f}) | {pair(recon)} | {pair(r["samples"])} | {pair(r["real"])} '
               f'| {" + ".join(f"{1000*s:.0f}" for s in r["seconds_per_step"].values())} | {r["peak_gb"]:.1f} | {r["sampling_seconds"]:.0f} s |')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', default=list(ROWS), choices=ROWS)
    p.add_argument('--row', choices=ROWS, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.row:
        return make(args.row)
    for name in args.only:
        if not (RUNS/name/'row.json').exists():
            subprocess.run([sys.executable, __file__, '--row', name], check=True)
            print(json.dumps({k: v for k, v in read_json(RUNS/name/'row.json').items() if k != 'recipe'}), flush=True)
    rows = [read_json(RUNS/name/'row.json') for name in ROWS if (RUNS/name/'row.json').exists()]
    card = dict(samples=SAMPLES, directions=DIRECTIONS, network='EfficientNet-Lite0, 64 x 64', seed=0, threads=torch.get_num_threads(), torch=torch.__version__)
    write_json(PACKAGE/'results'/'own.json', dict(rows=rows, card=card))
    put_table('own', '\n'.join(table(rows)))


if __name__ == '__main__': main()
