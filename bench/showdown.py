"""The rows of chapter 10: python bench/showdown.py [--only NAME ...] [--budgets SECONDS ...] [--seeds SEED ...]   (70 minutes on 2 cores)

A row is one contestant, trained from nothing for some seconds with one seed, in a process of its own, one after the other, on the embedded
Fashion-MNIST; then 500 samples, all classes in turn, against the 2,000 test images. Denoisers are guided by the label, with 2, and once more
by their guide, an early checkpoint, instead (autoguidance 3). Errors are those of chapter 06, over samples and reference.
Memory is measured apart, in ten seconds of training each.
The three rows of 270 seconds: --budgets 270 --seeds 0 --only latents 'pixels, U-Net' 'pixels, U-Net, guide from 35 %' (17 minutes).
Rows that are already in ldm_nb/results/showdown.json are kept: delete the file to make all of them again.
"""
import argparse, os, resource, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'
import torch

from ldm_nb.baselines import draw, drawing_parameters, train_gan, train_latents, train_pixels
from ldm_nb.core import PACKAGE, default_device, read_json, write_json
from ldm_nb.data import fashion_mnist
from ldm_nb.features import class_logits, extract, pixel_features
from ldm_nb.evaluation import measure, memorisation
from ldm_nb.training import Recipe

SEEDS, BUDGETS, SAMPLES = (0, 1, 2), (30, 90), 500
COARSE = Recipe(f=8, latent_channels=4)
CONTESTANTS = {'latents': train_latents, 'latents, f = 8': partial(train_latents, recipe=COARSE), 'GAN': train_gan,
               'pixels, U-Net': partial(train_pixels, guide_at=.1), 'pixels, patches': partial(train_pixels, net='patches', guide_at=.1), 'pixels, U-Net, guide from 35 %': train_pixels}


def quality(images, test):
    "{classifier and effnet: {metric: [value, standard error]}}"
    return {features: measure(extract(images, features), extract(test.images, features), resamples=0) for features in ('classifier', 'effnet')}


def judge(images, train, test): # classes in turn
    "Their quality, and class_accuracy, copies: [share, standard error]."
    right = class_logits(extract(images, 'classifier')).argmax(1) == torch.arange(len(images)) % len(test.classes)
    return quality(images, test) | dict(class_accuracy=right.double().mean().item(), copies=memorisation(pixel_features(images), pixel_features(train.images), pixel_features(test.images)))


def row(name, seed, seconds):
    train, test = fashion_mnist(), fashion_mnist('test')
    with tempfile.TemporaryDirectory() as folder: model = CONTESTANTS[name](train, seconds, Path(folder)/'run', seed=seed)
    draw(model, 20); began = time.perf_counter(); images = draw(model, SAMPLES, seed); spent = time.perf_counter() - began
    result = dict(name=name, seed=seed, seconds=seconds, steps=model.steps, drawing_parameters=drawing_parameters(model),
                  images_per_second=SAMPLES/spent, **judge(images, train, test))
    if name != 'GAN': result['autoguidance'] = judge(draw(model, SAMPLES, seed, guidance=1., autoguidance=3.), train, test)
    if name.startswith('latents'): result['reconstructions'] = quality(model.reconstruct(test.images[:SAMPLES]), test)
    return result


def memory(name): # in GB: training's peak, of the whole process
    with tempfile.TemporaryDirectory() as folder: CONTESTANTS[name](fashion_mnist(), 10, Path(folder)/'run')
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024/1e9


def alone(f, *args): # in a process of its own; ours must stay small, for its peak counts as theirs
    with ProcessPoolExecutor(1, get_context('spawn')) as pool: return pool.submit(f, *args).result()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=CONTESTANTS, default=list(CONTESTANTS), metavar='NAME')
    p.add_argument('--budgets', nargs='+', type=int, default=BUDGETS); p.add_argument('--seeds', nargs='+', type=int, default=SEEDS)
    p.add_argument('--out', type=Path, default=PACKAGE/'results'/'showdown.json')
    args = p.parse_args(); old = read_json(args.out) if args.out.exists() else {}; rows, test = old.get('rows', []), fashion_mnist('test')
    training_images = alone(quality, fashion_mnist().images[:SAMPLES], test) # what as many real pictures get
    peaks = old.get('peak_memory_GB', {}); peaks |= {name: alone(memory, name) for name in args.only if name not in peaks}
    def save():
        rows.sort(key=lambda r: (r['seconds'], r['seed'], list(CONTESTANTS).index(r['name'])))
        write_json(args.out, dict(command='python bench/showdown.py', samples=SAMPLES, reference=f'{len(test.images)} test images', training_images=training_images, peak_memory_GB=peaks, device=str(default_device()), threads=torch.get_num_threads(), torch=torch.__version__, rows=rows))
    for seconds in args.budgets:
        for seed in args.seeds:
            for name in args.only:
                if any((r['name'], r['seed'], r['seconds']) == (name, seed, seconds) for r in rows): continue
                rows.append(r := alone(row, name, seed, seconds))
                ways = {'': r} | ({' with autoguidance': r['autoguidance']} if 'autoguidance' in r else {})
                figures = ', '.join(f"{q['effnet']['frechet_distance'][0]:.0f} and {q['classifier']['frechet_distance'][0]:.2f}{way}" for way, q in ways.items())
                print(f"{name}, {seconds} s, seed {seed}: {r['steps']} steps, distance {figures}, {r['images_per_second']:.0f} images/s", flush=True)
                save()
    save()


if __name__ == '__main__': main()
