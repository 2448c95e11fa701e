"""Own colour pictures: emoji at 32, 64 and 128 px, against diffusers: python bench/own.py [--only ROW ...]   (about an hour and a half on 2 cores)

Pictures, made once in runs/own-data:
  emoji     7,572 pictures of 64 px in ten folders, Noto and Twemoji: npm pack emoji-datasource-google@16.0.0 and emoji-datasource-twitter@16.0.0, both .tgz in $LDM_EMOJI
  emoji128  3,779 Noto emoji of 136 x 128 px, drawn from the font of the Debian package fonts-noto-color-emoji
Rows (each in a process of its own, so that its peak memory is its own):
  32, 64, 128   `train_latent_diffusion` with `Recipe.for_data`, 2 and 8 minutes, 500 samples with the default settings
  pipeline      diffusers' AutoencoderKL and UNet2DModel on the 64-px pictures, 8 minutes: as in peers.py, in batches of 4 and 16 so that both make enough steps
  few           300 of the pictures, 64 px, 2 minutes
  own, init     a tenth of the Twemoji, 64 px, 2 minutes, from nothing and from a model of the Noto emoji (`base`, 4 minutes)
The judge is that of peers.py: EfficientNet-Lite0 at 64 px in 128 leading directions of the held-out tenth, 500 samples. Mesh: `mesh_ratio` of chapter 11.
Writes ldm_nb/results/own.json, a grid of samples of each row to runs/own, and the table of bench/RECIPE.md. Finished rows are kept in runs/own and not made again.
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
from ldm_nb.core import PACKAGE, default_device, generator, image_grid, read_json, save_picture, write_json
from ldm_nb.data import _emoji_files, load_data, proportional_labels
from ldm_nb.evaluation import evaluate, frechet_distance, kid, kid_error, mean_cov
from ldm_nb.features import extract
from ldm_nb.own_images import mesh_ratio
from ldm_nb.runs import train_latent_diffusion
from ldm_nb.training import LatentDiffusion, Recipe

HERE, RUNS, DATA = Path(__file__).parent, Path('runs/own'), Path('runs/own-data')
SAMPLES, DIRECTIONS = 500, 128
FONT = Path('/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf')
ROWS = {
    '64, 8 minutes': dict(pixels=64, minutes=8),
    'pipeline': dict(pixels=64, minutes=8),
    '64, 2 minutes': dict(pixels=64, minutes=2),
    '32, 8 minutes': dict(pixels=32, minutes=8),
    '32, 2 minutes': dict(pixels=32, minutes=2),
    '128, 8 minutes': dict(pixels=128, minutes=8, data='emoji128'),
    '128, 2 minutes': dict(pixels=128, minutes=2, data='emoji128'),
    'few': dict(pixels=64, minutes=2, images=300),
    'base': dict(pixels=64, minutes=4, style='google'),
    'own': dict(pixels=64, minutes=2, style='twitter', images=379),
    'init': dict(pixels=64, minutes=2, style='twitter', images=379, init='base'),
}


def emoji_table():
    "(category, file name, text) of each emoji of the npm package's table."
    from ldm_nb.data import _emoji_rows
    return _emoji_rows()


def folder_of(name, style=None):
    "The folder of pictures, made if it is not there."
    out = DATA/f'{name}-{style}' if style else DATA/name
    if out.is_dir():
        return out
    part = out.with_name(out.name + '.part')
    for category, file, text in emoji_table():
        for one in [style] if style else ['google', 'twitter']:
            target = part/category.replace(' & ', ' and ')/f'{one}-{file}'
            picture = drawn(text) if name == 'emoji128' else pictures(one).get(file)
            if picture:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(picture)
    part.rename(out)
    return out
