"""Does it draw what the words say? python bench/words.py [MODEL]   (an hour on 2 CPU cores; the part `ways` alone half of it)

The shipped model of emoji, read by the shipped judges: of attributes (skin, gender, trade) and of pictures and texts. `ways` trains twelve
denoisers on the latents of the shipped autoencoder, three seeds each: the mean of the tokens alone, the tokens by cross-attention, tokens of our
own encoder, and one caption a picture. Each part is a key of ldm_nb/results/words.json, and is kept once it is there.
"""
import math
import os
import sys
import time
from dataclasses import replace

os.environ.setdefault('TQDM_DISABLE', '1')
os.environ.setdefault('ACCELERATE_MIXED_PRECISION', 'bf16')
import torch

from ldm_nb.attributes import drop_conditions
from ldm_nb.core import PACKAGE, as_floats, generator, read_json, seed_for, write_json
from ldm_nb.data import emoji_table
from ldm_nb.denoiser import diffusion_loss
from ldm_nb.evaluation import find_copies
from ldm_nb.faces import agreement, load_judge
from ldm_nb.loop import fit
from ldm_nb.text import PEOPLE, WordUNet, combination_held_out, emoji_combinations, load_picture_texts, people_values, retrieval
from ldm_nb.training import LatentDiffusion
from ldm_nb.words import CaptionTable

OUT = PACKAGE/'results'/'words.json'
MINUTES, SEEDS = 4, (0, 1, 2)


def known_people(): # pictures of all three attributes: their plainest captions, values, and which are held out
    rows = [row for row in emoji_table('all') if not people_values([row]).isnan().any()]
    data = [own[0] for part in emoji_combinations() for own in part.captions]
    return rows, data


