"""The experiments of chapter 05 that take longer than a lesson: python bench/considerations.py [--only latent] [--workers 2]

Each row of the result is one training with one seed, on one thread, with the embedded Fashion-MNIST. Rows that are already in
ldm_nb/results/considerations.json are kept; delete the file to make all of them again (about 80 minutes on 2 cores).
"""
import argparse, copy, multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'
import torch
import torch.nn.functional as F

from ldm_nb.core import PACKAGE, generator, read_json, seed_for, write_json
from ldm_nb.data import crop_images, fashion_mnist, pad_images
from ldm_nb.loop import cosine_lr, ema_update, fit
from ldm_nb.autoencoder import AutoEncoder, load_classifier, perceptual_distance, psnr
from ldm_nb.vae import VAE, VQVAE, encode_all, kl_divergence, latent_stats, load_autoencoder, reparameterize, vae_loss, vq_loss
from ldm_nb.forward import Schedule
from ldm_nb.denoiser import UNet, diffusion_loss, guided, min_snr, sample_chain
from ldm_nb.training import LatentDiffusion
from ldm_nb.evaluation import feature_stats, frechet_distance

OUT = PACKAGE/'results'/'considerations.json'
SEEDS, SAMPLES, SAMPLING_STEPS, STEPS, AE_STEPS = (0, 1, 2), 500, 15, 200, 400
content = lambda images: crop_images(images, (28, 28)).clamp(-1, 1)


@cache
def images(split):
    data = fashion_mnist(split); return pad_images(data.images), data.labels


@cache
def reference(features): return feature_stats(content(images('test')[0]), features)


def judge(x): # (n, 1, 32, 32)
    return {name: frechet_distance(*feature_stats(content(x), features), *reference(features)) for name, features in dict(distance='classifier', distance_pixels='pixels').items()}


@torch.no_grad()
def draw(net, schedule, prediction, decode, shape, seed, num_steps=None, eta=0.):
    "SAMPLES images of all classes in turn, without guidance."
    noise, labels, out = torch.randn(SAMPLES, *shape, generator=generator(seed, 'draw')), torch.arange(SAMPLES) % 10, []
    for z, y in zip(noise.split(250), labels.split(250)):
        out.append(decode(sample_chain(guided(net, y, schedule, prediction), z, schedule, num_steps or SAMPLING_STEPS, eta, generator(seed, 'fresh', len(out)))))
    return torch.cat(out)


def warmed(steps): # the course's schedule, with a warm-up over a quarter of a short run
    def warmed_cosine(progress, step): return cosine_lr(progress, step, max(steps//4, 1))
    return warmed_cosine


def warmed_constant(progress, step): return min(1., (step + 1)/50)


def denoise(z, seed, steps, batch=64, lr=2e-3, schedule='flow', prediction='flow_prediction', weighting=None, lr_schedule=None, callback=None):
    torch.manual_seed(seed_for(seed, 'net')); net, labels = UNet(z.shape[1], num_classes=10), images('train')[1]
    def loss(model, i):
        y = labels[i].where(torch.rand(len(i)) > .1, 10)
        return diffusion_loss(model, z[i], y, Schedule(schedule), prediction, weighting=weighting)
    return fit(net, loss, len(z), batch, lr, steps, seed=seed, stage='denoiser', ema_decay=.99, lr_schedule=lr_schedule or warmed(steps), callback=callback)


@cache
def shipped():
    vae, stats = load_autoencoder(); return vae, stats, stats.normalize(encode_all(vae, images('train')[0]))


def stage_two(seed, schedule='flow', prediction='flow_prediction', steps=None, **settings):
    "Stage two on the shipped autoencoder's latents."
    vae, stats, z = shipped()
    run = denoise(z, seed, steps or STEPS, schedule=schedule, prediction=prediction, **settings)
    return judge(draw(run['ema'], Schedule(schedule), prediction, lambda z: vae.decode(stats.denormalize(z)), z.shape[1:], seed)) | dict(seconds=run['seconds'], steps=len(run['losses']))


def ema_lengths(seed, lr_schedule=None, decays=(0., .5, .8, .9, .95, .98, .99)):
    "One run, several averages of its weights, without a warm-up; and one of 0.999 with it."
    vae, stats, z = shipped(); averages = {}
    def follow(step, model, ema):
        for d in (*decays, 'warm'):
            if d not in averages: averages[d] = copy.deepcopy(ema) # before the second step: practically the untrained weights
            ema_update(averages[d], model, step - 1 if d == 'warm' else 10**9, .999 if d == 'warm' else d)
    run = denoise(z, seed, STEPS, lr_schedule=lr_schedule, callback=follow)
    decode = lambda z: vae.decode(stats.denormalize(z))
    return dict(distance_by_decay={str(d): judge(draw(net, Schedule('flow'), 'flow_prediction', decode, z.shape[1:], seed))['distance'] for d, net in averages.items()}, seconds=run['seconds'])


def sampling_steps(seed, eta):
    "The shipped denoiser with different numbers of steps."
    ldm = LatentDiffusion.from_pretrained('fashion'); out, seconds = {}, {}
    for n in (2, 4, 8, 16, 32):
        began = time.perf_counter()
        x = draw(ldm.ema, ldm.schedule, ldm.prediction_type, lambda z: ldm.autoencoder.decode(ldm.stats.denormalize(z)), (4, 8, 8), seed, n, eta)
        seconds[str(n)] = time.perf_counter() - began; out[str(n)] = judge(x)['distance']
    return dict(distance_by_steps=out, seconds_by_steps=seconds)


def both_stages(seed, kind='vae', f=4, channels=4, kl_weight=1e-4, loss='L2'):
    "An autoencoder of AE_STEPS steps and a denoiser of about equal arithmetic for each f."
    x, x_test = (images(split)[0] for split in ('train', 'test'))
    shape = dict(f=f, latent_channels=channels, width=16*f); torch.manual_seed(seed_for(seed, 'autoencoder'))
    classifier = load_classifier()
    if kind == 'ae': model, objective = AutoEncoder(**shape), lambda m, i: F.mse_loss(m(x[i]), x[i])
    elif kind == 'vq': model, objective = VQVAE(**shape), lambda m, i: vq_loss(m, x[i])
    elif loss == 'L2': model, objective = VAE(**shape), lambda m, i: vae_loss(m, x[i], kl_weight)
    else:
        model = VAE(**shape)
        def objective(m, i):
            mean, logvar = m.moments(x[i]); r = m.decode(reparameterize(mean, logvar))
            rec = F.l1_loss(r, x[i]) if loss == 'L1' else F.mse_loss(r, x[i]) + .02*perceptual_distance(classifier, crop_images(r, (28, 28)), crop_images(x[i], (28, 28))).mean()
            return rec + kl_weight*kl_divergence(mean, logvar).mean()
    one = fit(model, objective, len(x), 16, 4e-3, AE_STEPS, seed=seed, stage='autoencoder'); model.requires_grad_(False)
    decode = (lambda z: model.decode(model.quantizer(z)[0])) if kind == 'vq' else model.decode
    with torch.no_grad():
        recon = torch.cat([decode(model.encode(b)) for b in x_test.split(250)])
        recon_train = torch.cat([decode(model.encode(b)) for b in x[:SAMPLES].split(250)])
        rate = None
        if kind == 'vae': rate = torch.cat([kl_divergence(*model.moments(b)).sum((1, 2, 3)) for b in x_test.split(250)]).mean().item()/0.6931471805599453
        elif kind == 'vq': rate = (32//f)**2*9.
    z = encode_all(model, x); stats = latent_stats(model, x, z); z = stats.normalize(z)
    steps = {2: STEPS//4, 4: STEPS, 8: 3*STEPS}[f]
    two = denoise(z, seed, steps)
    generated = judge(draw(two['ema'], Schedule('flow'), 'flow_prediction', lambda z: decode(stats.denormalize(z)), z.shape[1:], seed))
    return generated | dict(psnr=psnr(content(recon), content(x_test)).mean().item(), reconstruction_distance=judge(recon_train)['distance'], bits=rate,
                            numbers=z[0].numel(), latent_loss=float(two['losses'][-20:].mean()), seconds_autoencoder=one['seconds'], seconds_denoiser=two['seconds'], steps=[AE_STEPS, steps])


def experiments():
    "{group: {setting: (function, keyword arguments)}}"
    two = lambda **kw: (stage_two, kw); both = lambda **kw: (both_stages, kw)
    return {
        'latent': {f'f={f} c={c}': both(f=f, channels=c) for f, c in [(2, 1), (2, 4), (4, 1), (4, 4), (4, 16), (8, 4), (8, 16)]},
        'kind': {'AE': both(kind='ae'), 'VAE, weight 1e-2': both(kl_weight=1e-2), 'VQ, 512 codes': both(kind='vq')},
        'reconstruction': {'L1': both(loss='L1'), 'L2 + perceptual': both(loss='perceptual')},
        'schedule': {name: two(schedule=name, prediction='v_prediction') for name in ('cosine', 'scaled_linear')},
        'loss': {p: two(prediction=p) for p in ('epsilon', 'sample', 'v_prediction')} | {'epsilon, min-SNR': two(prediction='epsilon', weighting=min_snr)},
        'rate': {'a quarter': two(lr=5e-4), 'four times': two(lr=8e-3)},
        'batch': {'16': two(batch=16, steps=4*STEPS, lr=1e-3), '256': two(batch=256, steps=STEPS//4, lr=4e-3)},
        'ema': {'cosine': (ema_lengths, {}), 'constant': (ema_lengths, dict(lr_schedule=warmed_constant))},
        'steps': {'eta 0': (sampling_steps, dict(eta=0.)), 'eta 1': (sampling_steps, dict(eta=1.))},
    }


def job(group, setting, seed):
    torch.set_num_threads(1)
    function, settings = experiments()[group][setting]
    return dict(group=group, setting=setting, seed=seed) | function(seed, **settings)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='*'); parser.add_argument('--workers', type=int, default=2); args = parser.parse_args()
    result = read_json(OUT) if OUT.exists() else dict(command='python bench/considerations.py', rows=[])
    result |= dict(torch=torch.__version__, threads=1, workers=args.workers, samples=SAMPLES, sampling_steps=SAMPLING_STEPS, guidance=1, features='classifier', reference='fashion test, 2,000 images')
    there = {(r['group'], r['setting'], r['seed']) for r in result['rows']}
    jobs = [(g, s, seed) for seed in SEEDS for g, settings in experiments().items() for s in settings if (not args.only or g in args.only) and (g, s, seed) not in there]
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context('spawn')) as pool:
        for done in as_completed([pool.submit(job, *j) for j in jobs]):
            result['rows'] = sorted(result['rows'] + [done.result()], key=lambda r: (r['group'], r['setting'], r['seed']))
            write_json(OUT, result); print(time.strftime('%X'), {k: v for k, v in done.result().items() if k in ('group', 'setting', 'seed', 'distance', 'psnr', 'seconds')}, flush=True)


if __name__ == '__main__': main()
