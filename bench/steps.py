"""How few steps the sampler needs: python bench/steps.py [--model fashion] [--seeds 3]   (three minutes on 2 cores)

The shipped model, sampled by DDIM (autoguidance 3 in all steps), which was the default before chapter 07, with fewer steps and with more
(bench/samplers.py measures the other samplers, and `fashion-fast` is measured by bench/fast.py). Judged as in peers.py (EfficientNet-Lite0,
500 samples, 128 leading directions of the test split); mean over seeds, and standard deviation. Writes bench/steps.json and the table in RECIPE.md;
with --out that file only.
"""
import argparse, os, time
from pathlib import Path
from statistics import mean, stdev

os.environ['TQDM_DISABLE'] = '1'
import torch

from ldm_nb.core import write_json
from ldm_nb.training import LatentDiffusion
from peers import DIRECTIONS, judge
from tables import put_table

HERE, STEPS, SAMPLES = Path(__file__).parent, (3, 5, 8, 10, 15, 20, 30, 60), 500


def table(rows):
    "The rows in Markdown."
    pm = lambda values, spec: f'{mean(values):{spec}} ± {stdev(values):{spec}}' if len(values) > 1 else f'{values[0]:{spec}}'
    return '| steps | distance | KID x 1,000 | images/s |\n|---|---|---|---|\n' + '\n'.join(f"| {r['steps']} | {pm(r['frechet_distance'], '.0f')} | {pm(r['kid_x1000'], '.0f')} | {mean(r['images_per_second']):.0f} |" for r in rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', default='fashion'); p.add_argument('--seeds', type=int, default=3); p.add_argument('--out', type=Path, default=HERE/'steps.json')
    args = p.parse_args(); ldm = LatentDiffusion.from_pretrained(args.model); rows = {n: dict(steps=n, frechet_distance=[], kid_x1000=[], images_per_second=[]) for n in STEPS}
    for seed in range(args.seeds):
        for n, row in rows.items():
            began = time.perf_counter(); images = ldm.sample(SAMPLES, steps=n, seed=seed, sampler='ddim', interval=(0, 1)); spent = time.perf_counter() - began
            for k, v in dict(judge(images), images_per_second=SAMPLES/spent).items():
                if k in row: row[k].append(v)
            print(seed, n, *(f'{row[k][-1]:.0f}' for k in list(row)[1:]), flush=True)
    write_json(args.out, dict(command='python bench/steps.py', rows=list(rows.values()), card=dict(model=args.model, samples=SAMPLES, network='EfficientNet-Lite0, 64 x 64', directions=DIRECTIONS, reference='fashion test, 2000 images', device=str(ldm.device), threads=torch.get_num_threads(), torch=torch.__version__)))
    if args.out != p.get_default('out'): return
    put_table('steps', table(list(rows.values())))


if __name__ == '__main__': main()
