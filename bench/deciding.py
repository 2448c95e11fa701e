"""The choices that decide the recipe, at equal steps: python bench/deciding.py

bench/recipe.py gives every variant equal seconds, one seed; what the machine does beside
it moves its rows. Here each variant gets equal steps (by default 1,800 of the autoencoder
and 1,750 of the denoiser) and three seeds, so that a row does not depend on the machine,
and a difference has an error. Judge and samples are those of bench/recipe.py: EfficientNet
features, 500 samples, 128 directions. Not FID. Rows that are in
ldm_nb/results/deciding.json are kept (an hour on 2 cores for all).
"""
import argparse
import json
import os
import time
from dataclasses import replace

os.environ['TQDM_DISABLE'] = '1'
import torch
import torch.nn.functional as F

from ldm_nb.core import PACKAGE, default_device, read_json, seed_for, write_json
from ldm_nb.data import fashion_mnist, pad_images
from ldm_nb.autoencoder import clipped_mse, psnr
from ldm_nb.vae import VAE, encode_all, latent_stats, vae_loss
from ldm_nb.denoiser import UNet, diffusion_loss
from ldm_nb.loop import fit
from ldm_nb.training import RECIPES, LatentDiffusion, train_denoiser
from peers import judge

OUT = PACKAGE/'results'/'deciding.json'
DEVICE = default_device()
VARIANTS = { # name: (changes of the recipe, reconstruction loss, times of stage two)
    'the recipe': ({}, clipped_mse, 'logit-normal'),
    'squared error': ({}, F.mse_loss, 'logit-normal'),
    'KL 1e-4': (dict(kl_weight=1e-4), clipped_mse, 'logit-normal'),
    'KL 1e-2': (dict(kl_weight=1e-2), clipped_mse, 'logit-normal'),
    '8 channels, KL 1e-2': (dict(latent_channels=8, kl_weight=1e-2), clipped_mse,
                            'logit-normal'),
    'uniform t': ({}, clipped_mse, 'uniform'),
    'predicts the data': (dict(prediction_type='sample'), clipped_mse, 'logit-normal')}


def autoencoder(recipe, reconstruction, x, steps, seed):
    torch.manual_seed(seed_for(seed, 'autoencoder'))
    vae = VAE(recipe.f, recipe.latent_channels, recipe.ae_width, recipe.encoder_depth,
              recipe.decoder_depth, x.shape[1])
    def loss(model, i):
        images = x[i].to(DEVICE)
        return vae_loss(model, images, recipe.kl_weight, reconstruction=reconstruction)
    fit(vae, loss, len(x), recipe.ae_batch, recipe.ae_lr, steps, seed=seed)
    return vae.eval().requires_grad_(False)


def denoiser(recipe, times, z, labels, stats, steps, seed):
    if times == 'logit-normal':
        return train_denoiser(z, labels, stats, recipe, 10, seed, num_steps=steps)
    torch.manual_seed(seed_for(seed, 'denoiser'))
    net = UNet(z.shape[1], recipe.widths, recipe.blocks, 10, recipe.emb_dim)
    net.trained_on = stats.fingerprint
    def loss(model, i):
        kept = torch.rand(len(i)) >= recipe.label_dropout
        y = labels[i].where(kept, 10).to(DEVICE)
        return diffusion_loss(model, z[i].to(DEVICE), y, t=torch.rand(len(i)))
    return fit(net, loss, len(z), recipe.batch, recipe.lr, steps, seed=seed,
               ema_decay=recipe.ema_decay, guide_at=recipe.guide_at)


def trial(name, seed, steps, kept):
    changes, reconstruction, times = VARIANTS[name]
    recipe, data, test = replace(RECIPES['lesson'], **changes), *kept['data']
    x = pad_images(data.images)
    key = recipe.latent_channels, recipe.kl_weight, reconstruction, seed
    if key not in kept:
        kept[key] = autoencoder(recipe, reconstruction, x, steps[0], seed)
    vae = kept[key]
    z = encode_all(vae, x)
    stats = latent_stats(vae, x, z)
    two = denoiser(recipe, times, stats.normalize(z), data.labels, stats, steps[1], seed)
    ldm = LatentDiffusion(vae, stats, two['model'], two['ema'], recipe.schedule,
                          recipe.prediction_type, data.images.shape[-2:], data.classes,
                          guide=two['guide'])
    with torch.no_grad():
        recon = torch.cat([ldm.decode(ldm.encode(b))
                           for b in test.images[:500].split(250)])
    drawn = {'guidance 1': dict(guidance=1.), 'guidance 2': dict(guidance=2.),
             'autoguidance 3': dict(autoguidance=3.)}
    samples = {what: judge(ldm.sample(500, steps=30, seed=seed, sampler='ddim', interval=(0, 1), **how))
               for what, how in drawn.items()}
    return dict(name=name, seed=seed, steps=list(steps), samples=samples,
                psnr=psnr(recon, test.images[:500]).mean().item(),
                reconstructions=judge(recon))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--steps', nargs=2, type=int, default=[1800, 1750])
    args = parser.parse_args()
    result = read_json(OUT) if OUT.exists() else dict(rows=[])
    result |= dict(command='python bench/deciding.py', samples=500, sampling_steps=30,
                   network='EfficientNet-Lite0, 64 x 64', directions=128,
                   reference='fashion test, 2000 images', device=str(DEVICE),
                   torch=torch.__version__)
    there = {(r['name'], r['seed'], *r['steps']) for r in result['rows']}
    for seed in args.seeds:
        kept = dict(data=(fashion_mnist(), fashion_mnist('test')))
        for name in args.only:
            if (name, seed, *args.steps) in there:
                continue
            row = trial(name, seed, args.steps, kept)
            if OUT.exists(): # another process may have added rows
                result['rows'] = read_json(OUT)['rows']
            result['rows'].append(row)
            write_json(OUT, result)
            print(time.strftime('%X'), json.dumps(row), flush=True)


if __name__ == '__main__':
    main()
