"""What a claim about copies needs, and what finds them: python bench/copies.py

1. A known share of the samples is copied from the images trained on, the others are
   images that nobody trained on: how wide is the 95 % interval of `memorisation`, how
   often does it hold that share, how often does it show that there are copies at all?
   Fashion-MNIST, thumbnails of 8 x 8, copies with noise.
2. Emoji at 64 px, each copied in several ways: how many are found by what they are
   searched in?
Writes ldm_nb/results/copies.json (a minute on 2 cores).
"""
import argparse
import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ldm_nb.core import PACKAGE, from_uint8, generator, to_uint8, write_json
from ldm_nb.data import emoji, fashion_mnist
from ldm_nb.evaluation import memorisation
from ldm_nb.features import extract, has_effnet

OUT = PACKAGE/'results'/'copies.json'
TRAINED, REPEATS, NOISE = 2000, 30, .1


def trial(plain, noised, share, n, m, g): # thumbnails of all images, and of their copies
    "Estimate and error of one planted share, in one random split of real images."
    order = torch.randperm(len(plain), generator=g)
    train, test, fresh = order.split([TRAINED, m, len(order) - TRAINED - m])
    copied = round(share*n)
    chosen = train[torch.randint(TRAINED, (copied,), generator=g)]
    samples = torch.cat([noised[chosen], plain[fresh[:n - copied]]])
    return memorisation(samples, plain[train], plain[test])


def interval(share, n, m, plain, noised, repeats=REPEATS, seed=0):
    "Width, coverage and power of the 95 % interval over random splits."
    g = generator(seed, f'copies {share} {n} {m}')
    found = [trial(plain, noised, share, n, m, g) for _ in range(repeats)]
    value, error = torch.tensor(found, dtype=torch.float64).T
    low, high = value - 1.96*error, value + 1.96*error
    return dict(share=share, samples=n, held_out=m, mean=value.mean().item(),
                width=(high - low).mean().item(),
                covered=((low <= share) & (share <= high)).double().mean().item(),
                power=(low > 0).double().mean().item())


def noisy(x, σ, seed=1):
    noise = torch.randn(x.shape, generator=generator(seed, 'noise'))
    return (x + σ*noise).clamp(-1, 1)


def as_jpeg(x, quality=50):
    out = []
    for a in to_uint8(x):
        file = io.BytesIO()
        Image.fromarray(a).save(file, 'jpeg', quality=quality)
        out.append(np.asarray(Image.open(file)))
    return from_uint8(np.stack(out))


def shifted(x, k=2):
    return F.pad(x, (k, 0, 0, 0), mode='replicate')[..., :x.shape[3]]


def searched_in(name): # a function of images (n, c, h, w) -> (n, d)
    if name == 'effnet':
        return lambda x: extract(x, 'effnet')
    return lambda x: F.adaptive_avg_pool2d(x, int(name)).flatten(1)


def found(copies=100, images=1500):
    "The share of copies whose nearest image is the one that was copied."
    train = emoji(size=64)
    rows = torch.randperm(len(train), generator=generator(0, 'rows'))[:images]
    images = train[rows].images
    x = images[:copies]
    ways = dict(exact=x, shifted=shifted(x), noised=noisy(x, .3), jpeg=as_jpeg(x),
                darker=(x + 1)*.9 - 1)
    result = []
    for name in ['8', '16', '32'] + ['effnet']*has_effnet():
        features = searched_in(name)
        y = features(images)
        for way, copy in ways.items():
            nearest = torch.cdist(features(copy), y).argmin(1)
            hit = (nearest == torch.arange(copies)).double().mean().item()
            result.append(dict(searched_in=name, copied=way, found=hit))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--repeats', type=int, default=REPEATS)
    repeats = parser.parse_args().repeats
    images = torch.cat([fashion_mnist().images, fashion_mnist('test').images])
    plain, noised = extract(images, 'pixels'), extract(noisy(images, NOISE), 'pixels')
    rows = [interval(share, n, m, plain, noised, repeats)
            for m in (100, 500, 2000) for n in (100, 500, 2000)
            for share in (0, .01, .05, .2, .5)]
    for row in rows:
        print(row)
    write_json(OUT, dict(rows=rows, found=found(), trained=TRAINED, repeats=repeats,
                         noise=NOISE, command='python bench/copies.py'))


if __name__ == '__main__':
    main()
