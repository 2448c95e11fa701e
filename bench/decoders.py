"""The decoder's last layers at 64 px: python bench/decoders.py [--seconds S]   (eight minutes on 2 cores)

Stage one alone (f = 4, 4 channels, width 64), on the pictures of own.py: each row the same seconds, one seed. Reconstructions of the
held-out pictures are judged as in own.py: decibels, mesh, distance and KID. The last row has four times as long.
Writes ldm_nb/results/decoders.json, which chapter 11 shows, and the table of bench/RECIPE.md.
"""
import argparse
import os

os.environ.setdefault('TQDM_DISABLE', '1')
import torch
import torch.nn.functional as F
from torch import nn

from ldm_nb.autoencoder import clipped_mse, psnr, resize_convolutions, shuffled, zero_init
from ldm_nb.core import PACKAGE, as_floats, seed_for, write_json
from ldm_nb.loop import fit
from ldm_nb.own_images import mesh_ratio
from ldm_nb.vae import VAE, vae_loss
from own import SAMPLES, Judge, generator, pictures
from tables import put_table

F_, WIDTH = 4, 64


def conv(a, b): return nn.Conv2d(a, b, 3, padding=1)


class Residual(nn.Module):
    "An image, and a correction of it by two convolutions at full size that starts from zero."
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(conv(3, width), nn.SiLU(), zero_init(conv(width, 3)))
    def forward(self, x):
        return x + self.body(x)


class Smooth(nn.Module):
    "A small image, enlarged smoothly, and shuffled detail that starts from zero."
    def __init__(self, width):
        super().__init__()
        self.coarse = conv(width, 3)
        self.detail = nn.Sequential(zero_init(conv(width, 3*F_*F_)), nn.PixelShuffle(F_))
    def forward(self, h):
        return F.interpolate(self.coarse(h), scale_factor=F_, mode='bilinear') + self.detail(h)


ENDS = {
    'pixel shuffle': lambda: shuffled(F_, WIDTH, 3),
    'a residual of two convolutions after the shuffle': lambda: [*shuffled(F_, WIDTH, 3), Residual(16)],
    '8 channels shuffled, then a convolution': lambda: [*shuffled(F_, WIDTH, 8), nn.SiLU(), conv(8, 3)],
    'two shuffles by 2': lambda: [*shuffled(2, WIDTH, WIDTH//2), nn.SiLU(), *shuffled(2, WIDTH//2, 3)],
    'a smooth enlarged image, plus shuffled detail': lambda: [Smooth(WIDTH)],
    'resize-convolutions': lambda: resize_convolutions(F_, WIDTH, 3),
}
ROWS = [dict(end=end, edge_weight=0., batch=16, times=1) for end in ENDS] + [
    dict(end='pixel shuffle', edge_weight=1., batch=16, times=1),
    dict(end='resize-convolutions', edge_weight=1., batch=16, times=1),
    dict(end='resize-convolutions', edge_weight=1., batch=8, times=1),
    dict(end='resize-convolutions', edge_weight=1., batch=8, times=4)]


def trained(images, row, seconds):
    "The autoencoder of a row, and its steps."
    torch.manual_seed(seed_for(0, 'autoencoder'))
    vae = VAE(F_, 4, WIDTH, 2, 3, 3)
    vae.decoder = nn.Sequential(*vae.decoder[:-2], *ENDS[row['end']]())
    def error(x, target):
        return clipped_mse(x, target, row['edge_weight'])
    def loss(model, i):
        return vae_loss(model, as_floats(images[i]), 3e-3, reconstruction=error)
    fitted = fit(vae, loss, len(images), row['batch'], 4e-3, seconds=row['times']*seconds, seed=0)
    return fitted['model'].eval(), len(fitted['losses'])


@torch.no_grad()
def through(vae, images):
    return torch.cat([vae.decode(vae.encode(b)).clamp(-1, 1) for b in images.split(100)])


def table(rows):
    "The rows as Markdown."
    yield '| | edges | batch | seconds | steps | dB | mesh | reconstructions |'
    yield '|---|---|---|---|---|---|---|---|'
    for r in rows:
        yield (f'| {r["end"]} | {r["edge_weight"]:g} | {r["batch"]} | {r["seconds"]:g} | {r["steps"]:,} | {r["psnr"]:.1f} | {r["mesh"]:.2f} '
               f'| {r["frechet_distance"]:.0f} / {r["kid_x1000"]:,.0f} |')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seconds', type=float, default=30.)
    seconds = p.parse_args().seconds
    train, test = pictures(64)
    judge, rows = Judge(test), []
    for row in ROWS:
        vae, steps = trained(train.levels, row, seconds)
        recon = through(vae, test.images)
        rows.append(row | dict(seconds=row['times']*seconds, steps=steps, psnr=psnr(recon, test.images).mean().item(), mesh=mesh_ratio(recon)) | judge(recon))
        print(*table(rows[-1:]), sep='\n', flush=True)
    some = train.images[torch.randperm(len(train), generator=generator(0, 'real'))[:SAMPLES]]
    real = judge(some) | dict(mesh=mesh_ratio(test.images))
    card = dict(command='python bench/decoders.py', pixels=64, n=len(train), held_out=len(test), seed=0, threads=torch.get_num_threads(), torch=torch.__version__)
    write_json(PACKAGE/'results'/'decoders.json', dict(rows=rows, real=real, card=card))
    put_table('decoders', '\n'.join(table(rows)))


if __name__ == '__main__': main()
