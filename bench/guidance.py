"""What strength and kind of guidance do: python bench/guidance.py [--quick]

The shipped model, sampled with every setting of SETTINGS from the same noise, 500 samples
of all classes in turn, 15 steps of `sample_chain`, three seeds. Precision, recall and class
accuracy are seen by our classifier, against 500 test images; the Fréchet distance by the
judge of bench/peers.py (EfficientNet-Lite0, 128 directions, the whole test split).
Rows that are in ldm_nb/results/guidance.json are kept, so it may be stopped and begun
again (half an hour on 2 cores for all). With --quick 100 samples of a few settings, one
seed, into runs/guidance-quick.json.
"""
import argparse
import json
import os
import time
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'
import torch

from ldm_nb.core import PACKAGE, generator, read_json, write_json
from ldm_nb.data import fashion_mnist
from ldm_nb.denoiser import guided, sample_chain
from ldm_nb.evaluation import precision_recall
from ldm_nb.features import class_logits, extract
from ldm_nb.training import LatentDiffusion
from peers import DIRECTIONS, judge

OUT = PACKAGE/'results'/'guidance.json'
STEPS, MIDDLE, EARLY = 15, (.2, .7), (.2, 1.)
STRENGTHS = 1.5, 2., 3., 4., 6., 8.
SETTINGS = {f'guidance {g:g}': dict(guidance=g) for g in (1., 0., *STRENGTHS)}
SETTINGS |= {f'autoguidance {a:g}': dict(autoguidance=a) for a in STRENGTHS}
SETTINGS |= {f'guidance {g:g}, t 0.2 to 0.7': dict(guidance=g, interval=MIDDLE)
             for g in STRENGTHS}
SETTINGS |= {f'guidance {g:g}, rescale 0.7': dict(guidance=g, rescale=.7)
             for g in STRENGTHS}
SETTINGS |= {f'autoguidance {a:g}, t 0.2 to 1': dict(autoguidance=a, interval=EARLY)
             for a in (3., 6.)}
SETTINGS |= {f'guidance {g:g}, autoguidance {a:g}': dict(guidance=g, autoguidance=a)
             for g in (1.5, 2.) for a in (2., 3.)}
QUICK = 'guidance 1', 'guidance 4', 'guidance 4, t 0.2 to 0.7', 'autoguidance 3'


def evaluations(guidance=1., autoguidance=1., interval=(0., 1.), rescale=0.):
    "How often a network of this size is called for one sample."
    times = torch.linspace(1, 0, STEPS + 1)[:-1].tolist()
    more = (guidance not in (0., 1.)) + (autoguidance != 1.)
    return STEPS + more*sum(interval[0] <= t <= interval[1] for t in times)


@torch.no_grad()
def draw(ldm, labels, seed, **how):
    "Images of the labels; the noise is that of `ldm.sample`."
    noise = torch.randn(len(labels), *ldm._latent_shape, generator=generator(seed, 'sample'))
    images = []
    for z, y in zip(noise.split(100), labels.split(100)):
        denoise = guided(ldm.ema, y.to(ldm.device), ldm.schedule, ldm.prediction_type,
                         guide=ldm.guide, **how)
        images.append(ldm.decode(sample_chain(denoise, z.to(ldm.device), ldm.schedule, STEPS)))
    return torch.cat(images).cpu()


def measured(images, labels, real):
    "Of images (n, 1, 28, 28): the three shares, and the distance from n = 128 on."
    x = extract(images.clamp(-1, 1))
    precision, recall = precision_recall(extract(real[:len(images)]), x)
    right = (class_logits(x).argmax(1) == labels).double()
    shares = dict(precision=precision, recall=recall, class_accuracy=right)
    row = {name: v.double().mean().item() for name, v in shares.items()}
    if len(images) > DIRECTIONS:
        row['frechet_distance'] = judge(images)['frechet_distance']
    return row | dict(deviation=images.flatten(1).std(1).mean().item())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    args = parser.parse_args()
    n, out = (100, Path('runs')/'guidance-quick.json') if args.quick else (500, OUT)
    seeds, names = ([0], QUICK) if args.quick else (args.seeds, SETTINGS)
    ldm, test = LatentDiffusion.from_pretrained('fashion'), fashion_mnist('test')
    order = torch.randperm(len(test), generator=generator(0, 'guidance'))
    test, labels = test[order], torch.arange(n) % 10
    result = read_json(out) if out.exists() else dict(rows=[])
    result |= dict(command='python bench/guidance.py', samples=n, steps=STEPS,
                   network='EfficientNet-Lite0, 64 x 64', directions=DIRECTIONS,
                   shares='classifier features, k = 3, 500 test images',
                   reference='fashion test, 2000 images', device=str(ldm.device),
                   threads=torch.get_num_threads(), torch=torch.__version__)
    other = test[n:2*n] # as many other test images: the floor
    result['real'] = measured(other.images, other.labels, test.images)
    there = {(row['name'], row['seed']) for row in result['rows']}
    out.parent.mkdir(exist_ok=True)
    for seed in seeds:
        for name in names:
            if (name, seed) in there:
                continue
            how, began = SETTINGS[name], time.perf_counter()
            images = draw(ldm, labels, seed, **how)
            spent = time.perf_counter() - began
            row = dict(name=name, seed=seed, **how, **measured(images, labels, test.images),
                       evaluations=evaluations(**how), seconds=spent)
            result['rows'].append(row)
            write_json(out, result)
            print(time.strftime('%X'), json.dumps(row), flush=True)


if __name__ == '__main__':
    main()
