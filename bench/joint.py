"""The table of chapter 09: python bench/joint.py [--workers 2]

For each of three seeds a short two-stage model is trained (400 and 200 steps), and then each method goes on from it for 45 seconds,
on one thread. The same from a weak autoencoder (40 steps), for the methods whose names begin with "weak". Rows that are in ldm_nb/results/joint.json are kept; delete the file to make all again (a quarter of an hour on 2 cores).
"""
import argparse, multiprocessing, os, tempfile, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'
import torch

from ldm_nb.core import PACKAGE, load_tensors, read_json, save_tensors, write_json
from ldm_nb.data import fashion_mnist, pad_images
from ldm_nb.autoencoder import Classifier, psnr
from ldm_nb.vae import encode_all, latent_stats
from ldm_nb.training import RECIPES, LatentDiffusion, train_autoencoder, train_denoiser
from ldm_nb.features import train_classifier
from ldm_nb.evaluation import feature_distance
from ldm_nb.joint import CutFeatures, effective_rank, finetune

OUT = PACKAGE/'results'/'joint.json'
SEEDS, SECONDS, SAMPLES = (0, 1, 2), 45., 500
ARMS = {
    'two-stage': [dict(method='denoiser', seconds=SECONDS)],
    'two-stage, 290 steps': [dict(method='denoiser', num_steps=290)],
    'naive joint': [dict(method='naive', seconds=SECONDS)],
    'naive, normalised': [dict(method='normalised', seconds=SECONDS)],
    'decoder only': [dict(method='denoiser', seconds=.7*SECONDS), dict(method='decoder', batch_size=16, seconds=.3*SECONDS)],
    'aligned joint': [dict(method='aligned', seconds=SECONDS)],
    'aligned, encoder rate 1e-4': [dict(method='aligned', vae_lr=1e-4, seconds=SECONDS)],
    'aligned, batch 16': [dict(method='aligned', batch_size=16, lr=5e-4, vae_lr=2.5e-4, seconds=SECONDS)],
}
WEAK = ('two-stage', 'decoder only', 'aligned, batch 16')
ARMS |= {f'weak: {arm}': ARMS[arm] for arm in WEAK}


def start(folder, seed, kind):
    "The two-stage model from which all methods of one seed set out."
    torch.set_num_threads(1); train, recipe = fashion_mnist(), RECIPES['lesson']
    images = pad_images(train.images)
    vae = train_autoencoder(images, recipe, seed, num_steps=dict(good=400, weak=40)[kind])['model'].requires_grad_(False)
    z = encode_all(vae, images); stats = latent_stats(vae, images, z)
    two = train_denoiser(stats.normalize(z), train.labels, stats, recipe, 10, seed, num_steps=200)
    LatentDiffusion(vae, stats, two['model'], two['ema'], classes=train.classes).save_pretrained(folder/f'{kind}-{seed}')
    if (seed, kind) == (SEEDS[0], 'good'): # the frozen features, from a classifier that is not the judge
        net = train_classifier(train, 400, seed=100); save_tensors(folder/'teacher.safetensors', net.state_dict(), net.config)


@cache
def teacher(folder):
    tensors, config = load_tensors(folder/'teacher.safetensors'); net = Classifier(**config); net.load_state_dict(tensors)
    return net.eval().requires_grad_(False)


def measure(ldm):
    train, test = fashion_mnist(), fashion_mnist('test')
    recon = ldm.decode(ldm.encode(test.images[:SAMPLES]))
    z = ldm.encode(test.images[:SAMPLES]).cpu()
    return dict(distance=feature_distance(ldm.sample(SAMPLES, guidance=1., steps=15, sampler='ddim'), test.images), reconstruction_distance=feature_distance(ldm.decode(ldm.encode(train.images[:SAMPLES])), test.images),
                psnr=psnr(recon, test.images[:SAMPLES]).mean().item(), rank=effective_rank(z))


def job(folder, arm, seed):
    torch.set_num_threads(1); before = ldm = LatentDiffusion.from_pretrained(folder/f'{"weak" if arm.startswith("weak") else "good"}-{seed}')
    seconds, steps, losses = 0., [], None
    for stage in ARMS.get(arm, []):
        features = {'aligned': lambda: CutFeatures(teacher(folder)), 'decoder': lambda: teacher(folder)}.get(stage['method'], lambda: None)()
        ldm, run = finetune(ldm, fashion_mnist(), features=features, seed=seed, **stage)
        seconds += run['seconds']; steps.append(len(run['losses'])); losses = run['history']['figures'][-20:, min(1, run['history']['figures'].shape[1] - 1)].mean()
    result = measure(ldm)
    with torch.no_grad(): spread = (ldm.autoencoder.encode(pad_images(fashion_mnist('test').images[:SAMPLES])).std((0, 2, 3))/torch.tensor(before.stats.std)).mean().item()
    return dict(arm=arm, seed=seed) | result | dict(spread=spread, seconds=seconds, steps=steps, last_loss=None if losses is None else float(losses))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0]); parser.add_argument('--workers', type=int, default=2); args = parser.parse_args()
    result = read_json(OUT) if OUT.exists() else dict(command='python bench/joint.py', rows=[])
    result |= dict(torch=torch.__version__, threads=1, workers=args.workers, seconds=SECONDS, samples=SAMPLES, sampling_steps=15, guidance=1, features='classifier', reference='fashion test, 2,000 images')
    there = {(r['arm'], r['seed']) for r in result['rows']}
    jobs = [(arm, seed) for seed in SEEDS for arm in ('before', 'weak: before', *ARMS) if (arm, seed) not in there]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(args.workers, multiprocessing.get_context('spawn')) as pool:
        folder = Path(folder)
        starts = {(seed, 'weak' if arm.startswith('weak') else 'good') for arm, seed in jobs} | {(SEEDS[0], 'good')}
        for f in [pool.submit(start, folder, *s) for s in sorted(starts)]: f.result()
        for done in as_completed([pool.submit(job, folder, *j) for j in jobs]):
            result['rows'] = sorted(result['rows'] + [done.result()], key=lambda r: (r['arm'], r['seed']))
            write_json(OUT, result); print(time.strftime('%X'), done.result(), flush=True)


if __name__ == '__main__': main()
