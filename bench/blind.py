"""Can a stranger tell samples from renders? python bench/blind.py [FOLDER] [--model faces] [--guidance 4] [--seed 1] [--answers "L R ..."]

Without answers: forty pairs of a sample and a render at twice their size, twenty a page, as FOLDER/page0.png and page1.png (default
runs/blind); which side the sample is on depends on the seed. Show the pages to somebody who has not seen this file. With answers, the sides on
which they suppose the samples, in reading order: how many are right goes to bench/blind.json, beside the answers.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm_nb.core import as_levels, generator, read_json, write_json
from ldm_nb.training import LatentDiffusion
from ldm_nb.world import render, sample_params

OUT, N = Path(__file__).parent/'blind.json', 40


def sides(seed): # (40,), True: the sample is on the left
    return torch.rand(N, generator=generator(seed, 'blind sides')) < .5


def pages(model, folder, seed, guidance):
    asked, drawn = sample_params(2*N, seed=400 + seed).chunk(2)
    ldm = LatentDiffusion.from_pretrained(model)
    how = {} if guidance is None else dict(guidance=guidance, autoguidance=ldm.settings()['autoguidance'])
    samples, renders = as_levels(ldm.sample(N, asked, seed=seed, **how)), as_levels(render(drawn))
    left = sides(seed).view(-1, 1, 1, 1)
    pairs = torch.cat([torch.where(left, samples, renders), torch.where(left, renders, samples)], 3) # (40, 3, 64, 128)
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(2):
        tall = pairs[20*k:20*k + 20].movedim(1, -1).numpy().repeat(2, 1).repeat(2, 2)
        tall = np.pad(tall, ((0, 0), (0, 12), (0, 24), (0, 0)), constant_values=255)
        rows = [np.concatenate(tall[i:i + 4], 1) for i in range(0, 20, 4)]
        Image.fromarray(np.concatenate(rows)).save(folder/f'page{k}.png')
    print(f'{N} pairs in {folder}/page0.png and page1.png: four pairs a row, five rows a page')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', nargs='?', type=Path, default=Path('runs/blind'))
    parser.add_argument('--model', default='faces')
    parser.add_argument('--guidance', type=float)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--answers')
    args = parser.parse_args()
    if args.answers is None:
        return pages(args.model, args.folder, args.seed, args.guidance)
    answers = args.answers.upper().split()
    if len(answers) != N or set(answers) - {'L', 'R'}:
        parser.error(f'{N} answers L or R are expected, here are {len(answers)}')
    right = sum((a == 'L') == side for a, side in zip(answers, sides(args.seed).tolist()))
    rows = read_json(OUT) if OUT.exists() else {}
    how = '' if args.guidance is None else f', guidance {args.guidance:g}'
    write_json(OUT, rows | {f'{args.model}{how}, seed {args.seed}': dict(answers=' '.join(answers), right=right, of=N)})
    print(f'{right} of {N} told')


if __name__ == '__main__':
    main()
