"""What each choice in the recipe is worth: python bench/recipe.py [--only NAME ...] [--seconds 90]   (forty minutes on 2 cores)
and what of it lasts: python bench/recipe.py --seconds 300   (an hour and a quarter, thirteen variants)

Every variant trains both stages from nothing for the same seconds, 2 in 7 of them for the autoencoder unless the row says otherwise, one seed, on the embedded
Fashion-MNIST. Variants that share their autoencoder share one training of it. The judge is that of peers.py: EfficientNet-Lite0, 500
samples, 128 leading directions of the test split. The last column is autoguidance with 3 (Karras et al. 2024), the default of `sample`. Rows are kept in ldm_nb/results/recipe.json, and written as a table to bench/RECIPE.md; a variant that is there is not trained again.
"""
import argparse, json, os, time
from dataclasses import asdict, replace
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'
import torch
import torch.nn.functional as F
from torch import nn

from ldm_nb.core import PACKAGE, default_device, generator, read_json, seed_for, write_json
from ldm_nb.data import crop_images, fashion_mnist, pad_images
from ldm_nb.autoencoder import PatchDiscriminator, ResBlock, adaptive_weight, clipped_mse, hinge_loss, load_classifier, perceptual_distance, psnr
from ldm_nb.vae import VAE, encode_all, kl_divergence, latent_stats, reparameterize, vae_loss
from ldm_nb.denoiser import DiT, UNet, diffusion_loss
from ldm_nb.loop import fit
from ldm_nb.training import RECIPES, LatentDiffusion, train_denoiser
from ldm_nb.features import pixel_features
from ldm_nb.evaluation import memorisation
from ldm_nb.baselines import GANBlock, conv3, judged, relativistic_losses
from peers import judge

DEVICE, BASE = default_device(), replace(RECIPES['lesson'], ae_share=2/7)
STAGE_ONE = ('f', 'latent_channels', 'ae_width', 'encoder_depth', 'decoder_depth', 'kl_weight', 'ae_batch', 'ae_lr', 'ae_share')
VARIANTS = { # name: (changes of the recipe, reconstruction loss, what else)
    'the recipe': ({}, 'clipped', None), 'as it was: squared error, KL 1e-4': (dict(kl_weight=1e-4), 'mse', None),
    'squared error': ({}, 'mse', None), 'KL 1e-4': (dict(kl_weight=1e-4), 'clipped', None), 'KL 1e-2': (dict(kl_weight=1e-2), 'clipped', None),
    'learns draws, not means': ({}, 'clipped', 'draws'), 'predicts the data': (dict(prediction_type='sample'), 'clipped', None), 'U-Net 96, 128': (dict(widths=(96, 128)), 'clipped', None),
    'with a patch-GAN': ({}, 'gan', None), 'with a perceptual loss': ({}, 'perceptual', None), '8 channels, KL 1e-2': (dict(latent_channels=8, kl_weight=1e-2), 'clipped', None),
    'DiT': ({}, 'clipped', 'dit'), 'Muon': ({}, 'clipped', 'muon'), 'uniform t': ({}, 'clipped', 'uniform'), 'batch 32': (dict(batch=32), 'clipped', None),
    'EMA 0.998': (dict(ema_decay=.998), 'clipped', None), 'KL 1e-3': (dict(kl_weight=1e-3), 'clipped', None),
    'the recipe, once more': ({}, 'clipped', None), 'a fifth for the autoencoder': (dict(ae_share=.2), 'clipped', None), 'two fifths for the autoencoder': (dict(ae_share=.4), 'clipped', None), 'mirrored too, labelled so': ({}, 'clipped', 'mirrored'),
    'latents 16 x 4 x 4': (dict(f=8, latent_channels=16), 'clipped', None), 'U-Net 64, 64, two blocks': (dict(widths=(64, 64), blocks=2), 'clipped', None),
    'decoder finished against a patch-GAN': ({}, 'finished', None), 'a hundred clusters of each class': ({}, 'clipped', 'clusters'), 'no labels': ({}, 'clipped', 'unlabelled'),
    'no labels, a thousand clusters': ({}, 'clipped', 'unlabelled clusters'), 'an autoencoder that works at 16 x 16, 8 channels': (dict(latent_channels=8), 'finer', None),
    'at 16 x 16, 8 channels, a fifth for the autoencoder': (dict(latent_channels=8, ae_share=.2), 'finer', None), '8 channels, KL 1e-2, once more': (dict(latent_channels=8, kl_weight=1e-2), 'clipped', None)}
LONGER = ['the recipe', 'a fifth for the autoencoder', '8 channels, KL 1e-2', 'KL 1e-2', 'two fifths for the autoencoder', 'U-Net 64, 64, two blocks', 'decoder finished against a patch-GAN', 'a hundred clusters of each class', 'no labels', 'no labels, a thousand clusters', 'an autoencoder that works at 16 x 16, 8 channels',
          'at 16 x 16, 8 channels, a fifth for the autoencoder', '8 channels, KL 1e-2, once more'] # tried in 300 seconds; all after the fourth in these only


class WithJudge(nn.Module):
    "An autoencoder and its discriminator, trained in one step: each gets the gradient of its own side."
    def __init__(self, vae): super().__init__(); self.vae, self.disc = vae, PatchDiscriminator()


def reconstruction_loss(kind, x, kl_weight, share=.05, perceptual=.1, first=500):
    if kind in ('mse', 'clipped'): return lambda m, i: vae_loss(m, x[i].to(DEVICE), kl_weight, reconstruction=F.mse_loss if kind == 'mse' else clipped_mse)
    def parts(vae, i):
        images = x[i].to(DEVICE); mean, logvar = vae.moments(images); r = vae.decode(reparameterize(mean, logvar))
        return images, r, clipped_mse(r, images) + kl_weight*kl_divergence(mean, logvar).mean()
    if kind == 'perceptual':
        net, content = load_classifier(), lambda v: crop_images(v, (28, 28))
        def loss(m, i): images, r, rec = parts(m, i); return rec + perceptual*perceptual_distance(net, content(r).clamp(-1, 1), content(images)).mean()
        return loss
    steps = [0]
    def loss(m, i): # the discriminator waits until there is something to judge
        images, r, rec = parts(m.vae, i); r = r.clamp(-1, 1); steps[0] += 1; d = hinge_loss(m.disc(images), m.disc(r.detach()))
        if steps[0] <= first: return rec + d, rec
        adv = -torch.func.functional_call(m.disc, {k: p.detach() for k, p in m.disc.named_parameters()}, (r,)).mean()
        return rec + share*adaptive_weight(rec, adv, m.vae.decoder[-2].weight)*adv + d, rec
    return loss


class FinerVAE(VAE):
    "The same blocks at half of the images' resolution, with half of the channels, and latents at a quarter of it."
    def __init__(self, f, latent_channels, width, encoder_depth, decoder_depth, c):
        super().__init__(f, latent_channels, width, encoder_depth, decoder_depth, c); w, norm = width//2, lambda: [nn.GroupNorm(8, width//2), nn.SiLU()]
        self.encoder = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4*c, w, 3, padding=1), *[ResBlock(w) for _ in range(encoder_depth)], *norm(), nn.PixelUnshuffle(2), nn.Conv2d(4*w, 2*latent_channels, 3, padding=1))
        self.decoder = nn.Sequential(nn.Conv2d(latent_channels, 4*w, 3, padding=1), nn.PixelShuffle(2), *[ResBlock(w) for _ in range(decoder_depth)], *norm(), nn.Conv2d(w, 4*c, 3, padding=1), nn.PixelShuffle(2))


def stage_one(recipe, kind, x, seconds):
    torch.manual_seed(seed_for(0, 'autoencoder'))
    vae = (FinerVAE if kind == 'finer' else VAE)(recipe.f, recipe.latent_channels, recipe.ae_width, recipe.encoder_depth, recipe.decoder_depth, x.shape[1]); gan = kind == 'gan'
    run = fit(WithJudge(vae) if gan else vae, reconstruction_loss('clipped' if kind in ('finished', 'finer') else kind, x, recipe.kl_weight), len(x), recipe.ae_batch, dict(vae=recipe.ae_lr, disc=5e-4) if gan else recipe.ae_lr, seconds=seconds*(.75 if kind == 'finished' else 1))
    if kind == 'finished': vae.decoder = finish(vae.requires_grad_(False), x, seconds/4)
    return vae.eval().requires_grad_(False), len(run['losses'])


class Finish(nn.Module):
    "A trained decoder, and a discriminator of patches that leaves full resolution at once, as the encoder does."
    def __init__(self, decoder, c, f, width=64):
        super().__init__(); self.decoder = decoder.requires_grad_(True)
        self.disc = nn.Sequential(nn.PixelUnshuffle(f), conv3(c*f*f, width), GANBlock(width), GANBlock(width), nn.LeakyReLU(.2), conv3(width, 1, .3))


def finish(vae, x, seconds, share=.01, batch=32):
    "The decoder alone goes on, on draws of the latents, which stay as they are: its squared error, and a small share of the relativistic loss."
    with torch.no_grad(): mean, logvar = (torch.cat(v) for v in zip(*[vae.moments(b.to(DEVICE)) for b in x.split(250)]))
    def loss(m, i):
        real = x[i].to(DEVICE); fake = m.decoder(reparameterize(mean[i], logvar[i]))
        seen = torch.where(((real <= -1) & (fake < -1)) | ((real >= 1) & (fake > 1)), real, fake) # clipping mends the rest
        dy, dx = torch.randint(0, vae.f, (2,)).tolist(); shift = lambda v: F.pad(v, (dx, 0, dy, 0), value=-1)[..., :v.shape[-2], :v.shape[-1]] # any place of the patches' grid
        a, b = m.disc(torch.cat([shift(real), shift(seen.detach())])).flatten(1).chunk(2)
        adv = relativistic_losses(a.detach().flatten(), judged(m.disc, shift(seen)))[1]
        return relativistic_losses(a, b)[0] + clipped_mse(fake, real) + share*adv
    return fit(Finish(vae.decoder, x.shape[1], vae.f), loss, len(x), batch, dict(decoder=1e-3, disc=1e-3), seconds=seconds, ema_decay=.99, betas=(0., .99), clip=float('inf'), stage='finish')['ema'].decoder


def orthogonalize(G, steps=5): # (m, n): U V' of G = U S V', nearly
    "Newton-Schulz as in Muon (Jordan et al. 2024), iterated on the smaller Gram matrix: two large products instead of ten."
    X = G.T if G.shape[0] > G.shape[1] else G; A = X @ X.T; scale = A.trace() + 1e-14
    A, one = A/scale, torch.eye(len(A), device=G.device); P = one/scale.sqrt()
    for _ in range(steps): M = 3.4445*one - 4.775*A + 2.0315*A @ A; P, A = M @ P, M @ A @ M
    return (P @ X).T if G.shape[0] > G.shape[1] else P @ X


class Muon(torch.optim.AdamW):
    "Muon for convolutions of 16 channels or more, AdamW for the rest."
    rate, momentum = .02, .95
    def __init__(self, groups, **kwargs):
        matrix = lambda p: p.ndim == 4 and min(p.shape[:2]) >= 16
        self.matrices = [p for g in groups for p in g['params'] if matrix(p)]; self.base = groups[0]['base']
        super().__init__([g | dict(params=[p for p in g['params'] if not matrix(p)]) for g in groups], **kwargs)
        self.moments = [torch.zeros_like(p).flatten(1) for p in self.matrices]
    @torch.no_grad()
    def step(self, closure=None):
        super().step(); factor = self.param_groups[0]['lr']/self.base
        for p, m in zip(self.matrices, self.moments):
            g = p.grad.flatten(1); m.mul_(self.momentum).add_(g); u = orthogonalize(g + self.momentum*m)
            p.add_((u*max(1, u.shape[0]/u.shape[1])**.5).view(p.shape), alpha=-self.rate*factor)


def clustered(z, labels, k): # latents (n, ...), labels (n,) -> (n,), k clusters of each class, numbered through
    "K-means of the latents, one class at a time, as labels (Adaloglou et al. 2024)."
    from scipy.cluster.vq import kmeans2
    out = torch.empty_like(labels)
    for c in labels.unique():
        i = (labels == c).nonzero()[:, 0]; out[i] = c*k + torch.as_tensor(kmeans2(z[i].flatten(1).numpy(), k, iter=30, minit='points', missing='warn', seed=0)[1], dtype=labels.dtype)
    return out


def stage_two(recipe, extra, z, deviation, labels, stats, seconds): # z: normalized means, deviation: of the encoder's draws
    if extra == 'unlabelled': return train_denoiser(z, None, stats, recipe, seconds=seconds)
    if extra in (None, 'muon', 'mirrored', 'clusters', 'unlabelled clusters'):
        adamw = torch.optim.AdamW
        try:
            if extra == 'muon': torch.optim.AdamW = Muon
            return train_denoiser(z, labels, stats, recipe, int(labels.max()) + 1, seconds=seconds)
        finally: torch.optim.AdamW = adamw
    torch.manual_seed(seed_for(0, 'denoiser')); net = DiT(z.shape[1], num_classes=10) if extra == 'dit' else UNet(z.shape[1], recipe.widths, recipe.blocks, 10, recipe.emb_dim)
    net.trained_on, net.shrinks = stats.fingerprint, 1
    def loss(m, i):
        y = labels[i].where(torch.rand(len(i)) >= recipe.label_dropout, 10).to(DEVICE)
        latents = z[i] + deviation[i]*torch.randn(z[i].shape) if extra == 'draws' else z[i]
        return diffusion_loss(m, latents.to(DEVICE), y, t=torch.rand(len(i)) if extra == 'uniform' else None)
    return fit(net, loss, len(z), recipe.batch, recipe.lr, seconds=seconds, stage='denoiser', ema_decay=recipe.ema_decay, guide_at=recipe.guide_at)


def table(rows):
    "The rows in Markdown, a table for each budget, best first."
    pair, out = lambda v: f"{v['frechet_distance']:.0f} / {v['kid_x1000']:,.0f}", 'Distance / KID x 1,000, lower is better.'
    for seconds in sorted({r['seconds'] for r in rows}):
        some = sorted((r for r in rows if r['seconds'] == seconds), key=lambda r: r['samples'].get('autoguidance', r['samples']['2.0'])['frechet_distance'])
        late = ' autoguidance 3 |' if any('autoguidance' in r['samples'] for r in some) else ''
        out += f"\n\n| {seconds:.0f} seconds | steps | dB | reconstructions | guidance 1 | 2 | 3 |{late}\n|---|---|---|---|---|---|---|{'---|'*bool(late)}\n"
        out += '\n'.join(f"| {r['name']} | {' + '.join(f'{n:,}' for n in r['steps'])} | {r['psnr']:.1f} | {pair(r['reconstructions'])} | " + ' | '.join(map(pair, r['samples'].values())) + (' | |' if late and 'autoguidance' not in r['samples'] else ' |') for r in some)
    return out


def write_table(rows):
    path = Path(__file__).parent/'RECIPE.md'; head, rest = path.read_text(encoding='utf-8').split('<!-- table -->')
    path.write_text(f'{head}<!-- table -->\n{table(rows)}\n<!-- end -->{rest.split("<!-- end -->")[1]}', encoding='utf-8')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=VARIANTS, metavar='NAME'); p.add_argument('--seconds', type=float, default=90.); p.add_argument('--out', type=Path, default=PACKAGE/'results'/'recipe.json')
    args = p.parse_args(); data, test = fashion_mnist(), fashion_mnist('test'); x, kept = pad_images(data.images), {}
    rows = read_json(args.out)['rows'] if args.out.exists() else []
    for name in args.only or (LONGER if args.seconds > 90 else [v for v in VARIANTS if v not in LONGER[4:]]):
        if any((r['name'], r['seconds']) == (name, args.seconds) for r in rows): continue
        changes, kind, extra = VARIANTS[name]; recipe = replace(BASE, **changes); key = (kind, *(asdict(recipe)[k] for k in STAGE_ONE))
        if key not in kept: kept[key] = stage_one(recipe, kind, x, args.seconds*recipe.ae_share)
        vae, steps = kept[key]; z = encode_all(vae, x); stats = latent_stats(vae, x, z)
        with torch.no_grad(): deviation = torch.cat([(vae.moments(b.to(DEVICE))[1]/2).exp().cpu() for b in x.split(250)])/torch.tensor(stats.std).view(-1, 1, 1)
        labels = data.labels
        if extra == 'mirrored': z, labels = torch.cat([z, encode_all(vae, x.flip(-1))]), torch.cat([labels, labels + 10]) # classes of their own, so that nothing leaks
        picked, began = None, time.perf_counter() # what is drawn: the classes in turn
        if extra and 'clusters' in extra:
            classes = labels if extra == 'clusters' else torch.zeros_like(labels); labels = clustered(stats.normalize(z), classes, 100 if extra == 'clusters' else 1000)
            pick = generator(0, 'clusters'); members = [labels[classes == c] for c in classes.unique()] # a cluster as often as it is in the data
            picked = torch.stack([m[torch.randint(len(m), (), generator=pick)] for m in (members[k % len(members)] for k in range(500))])
        two = stage_two(recipe, extra, stats.normalize(z), deviation, labels, stats, args.seconds*(1 - recipe.ae_share) - (time.perf_counter() - began))
        ldm = LatentDiffusion(vae, stats, two['model'], two['ema'], recipe.schedule, recipe.prediction_type, data.images.shape[-2:], data.classes, guide=two['guide'])
        with torch.no_grad(): r = torch.cat([ldm.decode(ldm.encode(b)) for b in test.images[:500].split(250)])
        began = time.perf_counter(); drawn = {g: ldm.sample(500, picked, guidance=g, steps=30, sampler='ddim', interval=(0, 1)) for g in (1., 2., 3.)}; speed = 1500/(time.perf_counter() - began)
        drawn['autoguidance'] = ldm.sample(500, picked, autoguidance=3., steps=30, sampler='ddim', interval=(0, 1))
        rows.append(dict(name=name, seconds=args.seconds, steps=[steps, len(two['losses'])], psnr=psnr(r, test.images[:500]).mean().item(), reconstructions=judge(r),
                         samples={str(g): judge(v) for g, v in drawn.items()}, copies=memorisation(*(pixel_features(v) for v in (drawn['autoguidance'], data.images, test.images))), images_per_second=speed)); print(json.dumps(rows[-1]), flush=True)
        write_json(args.out, dict(command='python bench/recipe.py', rows=rows, card=dict(samples=500, network='EfficientNet-Lite0, 64 x 64', directions=128, reference='fashion test, 2000 images', device=str(DEVICE), threads=torch.get_num_threads(), torch=torch.__version__)))
        if args.out == p.get_default('out'): write_table(rows)


if __name__ == '__main__': main()
