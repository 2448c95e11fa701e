"""Every sampler at every number of steps: python bench/samplers.py   (a quarter of an hour on 2 cores; --quick: two minutes, one seed, a few rows)

The shipped model draws 500 images a row and seed, as `sample` does, and the judge of peers.py compares them with the test split (EfficientNet-Lite0, 128 leading
directions). Rows: each sampler over its steps, spacings of the times, autoguidance within an interval of times, and diffusers' UniPC where it is installed. Beside
them the floor (as many training images) and training images that only went through the autoencoder. Evaluations are forward passes of networks for each image: those
of the guide count, and Heun's second ones. Seconds are those of `sample`, decoding included, the judge's not.
What is measured is kept after each seed of each row: a run that was stopped goes on where it was. Writes ldm_nb/results/samplers.json, from which chapter 07
draws its plots.
"""
import argparse, os, time
from importlib.util import find_spec
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'
import torch

from ldm_nb.core import PACKAGE, read_json, write_json
from ldm_nb.data import fashion_mnist
from ldm_nb.samplers import count_evaluations
from ldm_nb.training import LatentDiffusion
from peers import DIRECTIONS, judge

SAMPLES, GUIDANCE = 500, 3. # autoguidance, the model's default
STEPS = dict(dpm=(3, 4, 5, 6, 7, 8, 10, 12, 15, 20), ddim=(3, 4, 5, 6, 8, 10, 12, 15, 20), heun=(2, 3, 4, 5, 6, 8), ddpm=(6, 8, 12, 20))
INTERVALS = ((7, 3., (.2, .9)), (5, 4., (.3, .9)), (6, 4., (.3, .9)), (7, 4., (.2, .9)), (7, 4., (.3, .9)), (8, 4., (.3, .9)), (8, 4., (.35, .8)), (9, 5., (.4, .7)))


def unipc(denoise, x, schedule, times, generator=None, callback=None):
    "diffusers' UniPC (second order, bh2) with the same guesses; it begins at t = 0.999, since at 1 its logarithm is not finite."
    from diffusers import UniPCMultistepScheduler
    theirs = UniPCMultistepScheduler(solver_order=2, prediction_type='flow_prediction', use_flow_sigmas=True); theirs.set_timesteps(len(times) - 1)
    theirs.sigmas = times.clamp(max=.999).float()
    for step, (k, t) in enumerate(zip(theirs.timesteps, times.to(x))):
        x0, eps = denoise(x, t); x = theirs.step(eps - x0, k, x).prev_sample
        if callback: callback(step, x, x0)
    return x


def row(sampler, steps, spacing='uniform', autoguidance=GUIDANCE, interval=(0., 1.)):
    return dict(sampler=sampler, steps=steps, spacing=spacing, autoguidance=autoguidance, interval=list(interval))


def plan(quick):
    if quick: return [row('ddim', 4), row('dpm', 4), row('dpm', 4, 'snr'), row('dpm', 6, autoguidance=4., interval=(.3, .9))]
    rows = [row('dpm', n, 'uniform', guidance, interval) for n, guidance, interval in INTERVALS] + [row(sampler, n) for sampler, counts in STEPS.items() for n in counts]
    rows += [row(sampler, n, spacing) for sampler, counts in (('dpm', (6, 8, 12)), ('ddim', (8,))) for spacing in ('snr', 'karras') for n in counts]
    return rows + [row('unipc', n) for n in (6, 8, 12) if find_spec('diffusers')]


def save(path, rows, references, args, ldm):
    card = dict(model='fashion', samples=args.samples, seeds=args.seeds, network='EfficientNet-Lite0, 64 x 64', directions=DIRECTIONS, reference='fashion test, 2000 images', device=str(ldm.device), threads=torch.get_num_threads(), torch=torch.__version__)
    write_json(path, dict(command='python bench/samplers.py', rows=rows, references=references, card=card))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=3); p.add_argument('--samples', type=int, default=SAMPLES)
    p.add_argument('--quick', action='store_true'); p.add_argument('--out', type=Path, default=PACKAGE/'results'/'samplers.json')
    args = p.parse_args()
    if args.quick: args.seeds = 1
    old = read_json(args.out) if args.out.exists() else dict(rows=[], references=[])
    if old.get('card', {}).get('samples', args.samples) != args.samples: p.error(f'{args.out} holds rows of other sample counts: choose another --out')
    ldm, data = LatentDiffusion.from_pretrained('fashion'), fashion_mnist()
    same = lambda a, b: all(a[k] == b[k] for k in b)
    rows = []
    for wanted in plan(args.quick): # the rows of the file come first, so that a changed plan loses nothing
        found = next((r for r in old['rows'] if same(r, wanted)), None)
        rows.append(found or dict(wanted, evaluations=None, frechet_distance=[], kid_x1000=[], seconds=[]))
    rows += [r for r in old['rows'] if r not in rows]
    references = old['references'] or [dict(name=name, frechet_distance=[]) for name in ('training images', 'reconstructions')]
    ldm.sample(20) # the first call is slower than the others
    for seed in range(args.seeds):
        images = data.images[seed*args.samples:(seed + 1)*args.samples]
        for r in references:
            if len(r['frechet_distance']) == seed: r['frechet_distance'].append(judge(images if r['name'] == 'training images' else ldm.reconstruct(images))['frechet_distance'])
        for r in rows:
            if len(r['seconds']) != seed: continue
            made, sampler = [], unipc if r['sampler'] == 'unipc' else r['sampler']
            def draw():
                began = time.perf_counter()
                made.append(ldm.sample(args.samples, seed=seed, steps=r['steps'], sampler=sampler, spacing=r['spacing'], autoguidance=r['autoguidance'], guidance=1., interval=tuple(r['interval'])))
                return time.perf_counter() - began
            spent = []
            r['evaluations'] = count_evaluations(lambda: spent.append(draw()), args.samples, ldm.ema, ldm.guide)
            judged = judge(made[0])
            for key, value in (('frechet_distance', judged['frechet_distance']), ('kid_x1000', judged['kid_x1000']), ('seconds', spent[0])): r[key].append(value)
            save(args.out, rows, references, args, ldm)
            print(seed, *(r[k] for k in ('sampler', 'steps', 'spacing', 'autoguidance', 'interval', 'evaluations')), f"{r['frechet_distance'][-1]:.0f} {r['seconds'][-1]:.1f} s", flush=True)
    save(args.out, rows, references, args, ldm)


if __name__ == '__main__': main()
