"""Train what the package ships again: python tools/make_weights.py   (five hours on 2 CPU cores)

1. the classifier that evaluation uses; 2. `ldm_train --data fashion-full --steps 12000 --size lesson`, of which
the averaged denoiser and its early copy, the autoencoder and the card go to ldm_nb/weights/fashion; 3. its student, by `distil`, goes to
ldm_nb/weights/fashion-fast (eight minutes; alone: --only fast); 4. the judge of drawn faces (--only judge, eight minutes);
5. the model of drawn faces (--only faces, an hour and three quarters, in bfloat16); 6. the model of emoji
that is asked in words (--only words, an hour and a half, in bfloat16) and its judges (--only emoji_judges, six minutes). All stop and go on: the runs are resumed.
"""
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ldm_nb.attributes import scale_values, sizes_of
from ldm_nb.core import PACKAGE, read_json
from ldm_nb.data import emoji, emoji_table, fashion_mnist, pad_images
from ldm_nb.faces import save_judge, train_judge
from ldm_nb.features import train_classifier
from ldm_nb.commands import ldm_eval, ldm_train
from ldm_nb.samplers import distil
from ldm_nb.runs import train_latent_diffusion
from ldm_nb.text import PEOPLE, combination_held_out, emoji_combinations, people_values, save_picture_texts, train_picture_texts
from ldm_nb.training import LatentDiffusion, Recipe, train_denoiser
from ldm_nb.vae import encode_all, latent_stats
from ldm_nb.world import faces

WEIGHTS, RUNS, MINUTES, WORD_MINUTES = PACKAGE/'weights', Path('runs'), 93, (60, 36)


def fast():
    teacher = LatentDiffusion.from_pretrained(WEIGHTS/'fashion')
    student, _ = distil(teacher, n=32_000, num_steps=3_000, checkpoint=RUNS/'fast'/'checkpoints')
    student.save_pretrained(WEIGHTS/'fashion-fast', overwrite=True, ema_only=True, half=True)


def judge():
    "Trained on faces of all kinds, held-out pairs too; measured on others (ldm_nb/weights/faces-judge/card.json)."
    data = faces(30_000, 64, seed=100, which='all', progress=True)
    run = train_judge(data, 8_000, checkpoint=RUNS/'faces-judge')
    save_judge(run['ema'], WEIGHTS/'faces-judge', seconds=run['seconds'], steps=8_000, data=data.name, images=len(data), seed=0)


def rounded(ldm, images): # and the latents, standardised
    """`ldm`, its autoencoder rounded to what float16 holds, so that it is saved in half the bytes, and the statistics measured again.

    The denoiser knows the old ones: that they are the same to a thousandth of a deviation is asserted."""
    for p in ldm.autoencoder.parameters():
        p.data = p.data.half().float()
    latents = encode_all(ldm.autoencoder, images)
    stats, old = latent_stats(ldm.autoencoder, images, latents), ldm.stats
    for a, b, std in zip(stats.mean + stats.std, old.mean + old.std, old.std*2):
        assert abs(a - b) < 1e-3*std, (a, b)
    ldm.stats = stats
    for net in {ldm.ema, ldm.denoiser, ldm.guide, ldm.late} - {None}:
        net.trained_on = stats.fingerprint
    ldm.card['rounded'] = 'the autoencoder, to float16, after training'
    return ldm, stats.normalize(latents)


def halve():
    "Clothes in float16, if the samples cannot tell: how far they move is said on the card."
    images = pad_images(fashion_mnist('train', full=True).levels)
    for folder in WEIGHTS/'fashion', WEIGHTS/'fashion-fast':
        ldm = LatentDiffusion.from_pretrained(folder)
        before = ldm.sample(200, seed=1)
        ldm, _ = rounded(ldm, images)
        ldm.save_pretrained(folder, overwrite=True, ema_only=True, half=True)
        moved = (LatentDiffusion.from_pretrained(folder).sample(200, seed=1) - before).abs()*127.5
        ldm.card['rounded'] = f'to float16 after training: 200 samples move by {moved.mean():.2f} levels of 255 on average, {moved.max():.0f} at most'
        ldm.save_pretrained(folder, overwrite=True, ema_only=True, half=True)
        print(folder.name, ldm.card['rounded'])


def small_guide(ldm, latents, data, recipe):
    "A weaker denoiser for autoguidance: narrower, and trained for a tenth of the time (Karras et al. 2024); less than a third of the early copy's bytes."
    rows, sizes = scale_values(data.values, data.attributes), sizes_of(data.attributes)
    run = train_denoiser(latents, rows, ldm.stats, replace(recipe, widths=(32, 64, 96)), attributes=sizes, seconds=60*MINUTES*.07,
                         checkpoint=RUNS/'faces-guide')
    ldm.card['guide'] = dict(widths=[32, 64, 96], steps=len(run['losses']), seconds=round(run['seconds']))
    return run['ema']


def draw_faces():
    "f = 4 and 8 channels: what the autoencoder keeps decides (chapter 12). In bfloat16, see bench/precision.py."
    recipe = Recipe.for_data((3, 64, 64), 40_000, MINUTES)
    recipe = replace(recipe, f=4, latent_channels=8, ae_width=128, kl_weight=1e-3, ae_batch=16, ae_lr=2e-3, ae_share=.33,
                     widths=(64, 128, 192), batch=32, lr=1.5e-3, ema_decay=.999)
    os.environ.setdefault('ACCELERATE_MIXED_PRECISION', 'bf16')
    folder, others = RUNS/'faces', faces(2_000, 64, seed=1)
    data = faces(40_000, 64, seed=0, progress=True)
    ldm, _ = train_latent_diffusion(data, folder, MINUTES, recipe=recipe, held_out=others, resume=folder.exists())
    ldm, latents = rounded(ldm, data.levels)
    ldm.guide = small_guide(ldm, latents, data, recipe)
    ldm.sampling = dict(steps=10, guidance=6., autoguidance=2.) # what is asked comes first, see bench/RECIPE.md
    ldm.save_pretrained(WEIGHTS/'faces', overwrite=True, ema_only=True, half=True)


def seen_emoji():
    "All but the tenth of the designs that `emoji('test')` has, and but the combinations held out."
    known, unseen = emoji_combinations()
    return known[~torch.isin(known.hashes(), emoji('test').hashes())], unseen


def emoji_judges():
    "Of skin, gender and trade, and of pictures and texts."
    train, unseen = seen_emoji()
    def people(data, rows): # those with a skin, a gender or a trade
        values = people_values(rows)
        return replace(data, labels=None, classes=(), captions=None, attributes=PEOPLE, values=values)[~values.isnan().all(1)]
    held_out = [combination_held_out(row) for row in emoji_table('all')]
    rows = {kept: [row for row, out in zip(emoji_table('all'), held_out) if out == kept] for kept in (False, True)}
    shown = people(emoji_combinations()[0], rows[False])
    run = train_judge(shown, 4_000, checkpoint=RUNS/'emoji-judge')
    save_judge(run['ema'], WEIGHTS/'emoji-judge', people(unseen, rows[True]), seconds=run['seconds'], steps=4_000, data='emoji, people',
               images=len(shown), seed=0)
    run = train_picture_texts(train, 2_500, checkpoint=RUNS/'emoji-texts')
    save_picture_texts(run['ema'], WEIGHTS/'emoji-texts', seconds=run['seconds'], steps=2_500, data=train.name, images=len(train), seed=0)


def words():
    """The model that is asked in words; in bfloat16. First each caption as it is, then a cloud of noise around it, so that words
    between captions draw pictures too (chapter 13)."""
    os.environ.setdefault('ACCELERATE_MIXED_PRECISION', 'bf16')
    train, unseen = seen_emoji()
    things = torch.tensor([' skin' not in own[0] for own in train.captions]).nonzero()[:, 0] # one picture each, people have six
    twice = train[torch.cat([torch.arange(len(train)), things])]
    recipe = Recipe(f=4, latent_channels=8, ae_width=96, kl_weight=1e-3, ae_batch=16, ae_lr=2e-3, ae_share=1/6,
                    widths=(64, 128), emb_dim=384, batch=128, lr=3e-3, ema_decay=.999, sample_steps=10)
    first, then = RUNS/'emoji', RUNS/'emoji-noise'
    if not (first/'model').exists():
        train_latent_diffusion(twice, first, WORD_MINUTES[0], recipe=recipe, held_out=unseen, resume=first.exists())
    ldm, _ = train_latent_diffusion(twice, then, WORD_MINUTES[1], recipe=replace(recipe, caption_noise=1.2, lr=2e-3), held_out=unseen,
                                    init=first/'model', keep='autoencoder', resume=then.exists())
    before = read_json(first/'model'/'card.json')
    ldm.card |= dict(images=len(train), before={k: before[k] for k in ('steps', 'seconds', 'minutes')},
                     repeated=f'{len(things)} pictures without a skin are there twice')
    ldm, _ = rounded(ldm, twice.levels)
    ldm.guide = None
    ldm.sampling = dict(steps=10, guidance=2.)
    ldm.save_pretrained(WEIGHTS/'emoji', overwrite=True, ema_only=True, int8=True)


ONLY = dict(fast=fast, judge=judge, faces=draw_faces, words=words, emoji_judges=emoji_judges, halve=halve)


def main():
    if '--only' in sys.argv: return ONLY[sys.argv[sys.argv.index('--only') + 1]]()
    if not (RUNS/'classifier'/'card.json').exists(): train_classifier(fashion_mnist('train', full=True), 3000, RUNS/'classifier')
    shutil.copytree(RUNS/'classifier', WEIGHTS/'classifier', dirs_exist_ok=True)
    ldm_train('fashion-full', str(RUNS/'fashion'), steps=12_000, size='lesson', resume=(RUNS/'fashion').exists())
    LatentDiffusion.from_pretrained(RUNS/'fashion').save_pretrained(WEIGHTS/'fashion', overwrite=True, ema_only=True)
    ldm_eval(str(WEIGHTS/'fashion'), out='bench/shipped.json')
    fast()
    halve()
    judge()
    draw_faces()
    words()
    emoji_judges()


if __name__ == '__main__': main()
