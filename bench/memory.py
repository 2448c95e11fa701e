"""How much memory a folder of pictures needs: python bench/memory.py   (three minutes)

It makes 20,000 JPEGs of 128 px, and in fresh processes reads them with `load_data` and
makes a first step of training. The peak is compared with that of the same program on 100
of them, which has all of torch and of the networks in it. What is left belongs to the
pictures: at most twice their size as bytes. The result goes to bench/memory.json.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_nb.core import write_json

CODE = '''
import json, resource, sys, time
from ldm_nb.data import load_data
from ldm_nb.runs import train_latent_diffusion
from ldm_nb.training import RECIPES, train_autoencoder
folder, pixels, what, out = sys.argv[1:]
start = time.perf_counter()
train, test = load_data(folder, int(pixels))
seconds = time.perf_counter() - start
if what == 'step':
    train_autoencoder(train.levels, RECIPES['lesson'], num_steps=1)
else:
    train_latent_diffusion(train, out, steps=1, size='lesson')
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024 # kilobytes, on Linux
print(json.dumps(dict(images=len(train) + len(test), load_seconds=seconds, peak=peak)))
'''


def make(folder, count, side):
    "Smooth coloured pictures of `side` pixels, each another one."
    rng = np.random.default_rng(0)
    for i in range(count):
        small = rng.integers(0, 256, (6, 6, 3), np.uint8)
        im = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        path = folder/'ab'[i % 2]/f'{i:05}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        im.save(path, quality=85)


def measure(folder, side, what):
    "What a fresh process needs for it."
    with tempfile.TemporaryDirectory() as out:
        args = [sys.executable, '-c', CODE, folder, str(side), what, f'{out}/run']
        run = subprocess.run(args, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--images', type=int, default=20_000)
    p.add_argument('--pixels', type=int, default=128)
    args = p.parse_args()
    rows, size = {}, args.images*args.pixels**2*3
    with tempfile.TemporaryDirectory() as d:
        for name, count in dict(few=100, all=args.images).items():
            make(Path(d)/name, count, args.pixels)
        for what in 'step', 'run':
            few, every = (measure(f'{d}/{k}', args.pixels, what) for k in ('few', 'all'))
            extra = every['peak'] - few['peak']
            rows[what] = dict(few=few, all=every, extra=extra, times_their_size=extra/size)
            print(f'{what}: {extra/1e6:,.0f} MB for {args.images:,} pictures of '
                  f'{size/1e6:,.0f} MB: {extra/size:.2f} times their size '
                  f'(the same with 100 pictures: {few["peak"]/1e6:,.0f} MB)')
    result = dict(command='python bench/memory.py', images=args.images,
                  pixels=args.pixels, bytes=size, rows=rows)
    write_json(Path(__file__).parent/'memory.json', result)


if __name__ == '__main__':
    main()
