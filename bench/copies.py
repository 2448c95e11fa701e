"""How many samples and held-out images a claim about copies needs: ldm_nb/results/copies.json.

Real clothes stand for samples that are no copies, training images for those that are. A share
of copies is planted, and `memorisation` looks for it in thumbnails, REPEATS times: how wide is
its 95 % interval, how often does it hold the planted share, how often does it exclude 0 (the
power)?
"""
import time

import torch

from ldm_nb.core import PACKAGE, generator, write_json
from ldm_nb.data import fashion_mnist
from ldm_nb.evaluation import memorisation, memorisation_error
from ldm_nb.features import extract

SHARES, SAMPLES, HELD_OUT = (0, .01, .05, .2, .5), (100, 500, 2000), (100, 500, 2000)
LEARNED, REPEATS = 5000, 8


def one(thumbs, share, n, m, *key):
    "Estimate and standard error, for one draw of everything."
    train, rest = thumbs[0], thumbs[1]
    rest = rest[torch.randperm(len(rest), generator=generator('rest', *key))]
    test, fresh = rest[:m], rest[m:]
    copies = round(share*n)
    of = torch.randperm(len(train), generator=generator('copies', *key))[:copies]
    return memorisation(torch.cat([train[of], fresh[:n - copies]]), train, test)


def row(thumbs, share, n, m):
    found = torch.tensor([one(thumbs, share, n, m, share, n, m, k) for k in range(REPEATS)])
    value, error = found.T
    half = 1.96*error
    return dict(share=share, samples=n, held_out=m, mean=value.mean().item(),
                half_interval=half.mean().item(), scatter=value.std().item(),
                predicted=1.96*memorisation_error(share, n, LEARNED, m),
                holds=((value - share).abs() <= half).double().mean().item(),
                power=(value > half).double().mean().item())


if __name__ == '__main__':
    start = time.perf_counter()
    clothes = extract(fashion_mnist(), 'pixels')
    both = torch.cat([clothes, extract(fashion_mnist('test'), 'pixels')])
    both = both[torch.randperm(len(both), generator=generator('clothes'))]
    thumbs = both[:LEARNED], both[LEARNED:]
    rows = [row(thumbs, share, n, m) for m in HELD_OUT for n in SAMPLES for share in SHARES]
    seconds = round(time.perf_counter() - start)
    write_json(PACKAGE/'results'/'copies.json',
               dict(learned=LEARNED, repeats=REPEATS, rows=rows, seconds=seconds))
    for r in rows:
        print({k: round(v, 3) for k, v in r.items()}, flush=True)
    print(seconds, 's')
