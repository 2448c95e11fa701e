"""What f and channels cost after a longer training: python bench/sweep.py

The nine layouts of chapter 01 (width 16f: nearly equal arithmetic), trained for ten
times as many steps as in a lesson. Equal steps, one seed. Rows that are already in
ldm_nb/results/sweep.json are kept; delete the file to make all of them again (half an
hour on 2 cores).
"""
import argparse
import os
import time

os.environ['TQDM_DISABLE'] = '1'
import torch
import torch.nn.functional as F

from ldm_nb.core import PACKAGE, default_device, read_json, write_json
from ldm_nb.data import crop_images, fashion_mnist, pad_images
from ldm_nb.loop import fit
from ldm_nb.autoencoder import (AutoEncoder, load_classifier, perceptual_distance,
                                psnr, ssim)

OUT = PACKAGE/'results'/'sweep.json'
SHAPES = [(4, 4), (2, 1), (8, 16), (2, 4), (4, 1), (4, 16), (8, 4), (8, 64), (1, 1)]


def content(images):
    return crop_images(images, (28, 28)).clamp(-1, 1)


@torch.no_grad()
def judge(model, images):
    recon = torch.cat([model(batch) for batch in images.split(250)])
    a, b = content(recon), content(images)
    far = perceptual_distance(load_classifier().to(a.device), a[:500], b[:500])
    return dict(PSNR=psnr(a, b).mean().item(), SSIM=ssim(a, b).mean().item(),
                perceptual=far.mean().item())


def trial(f, channels, images, test, steps, seed):
    torch.manual_seed(seed)
    model = AutoEncoder(f, channels, 16*f).to(images.device)
    def squared_error(model, i):
        return F.mse_loss(model(images[i]), images[i])
    run = fit(model, squared_error, len(images), num_steps=steps, seed=seed)
    return dict(f=f, channels=channels, width=16*f, numbers=1024*channels//f**2,
                steps=steps, seed=seed, **judge(model, test),
                seconds=round(run['seconds'], 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=2500)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    device = default_device()
    images, test = (pad_images(fashion_mnist(split).images).to(device)
                    for split in ('train', 'test'))
    result = read_json(OUT) if OUT.exists() else dict(rows=[])
    result |= dict(command='python bench/sweep.py', device=str(device),
                   torch=torch.__version__, threads=torch.get_num_threads(),
                   reference=f'fashion test, {len(test)} images')
    there = {(r['f'], r['channels'], r['steps'], r['seed']) for r in result['rows']}
    for f, channels in SHAPES:
        if (f, channels, args.steps, args.seed) in there:
            continue
        row = trial(f, channels, images, test, args.steps, args.seed)
        result['rows'].append(row)
        write_json(OUT, result)
        print(time.strftime('%X'), row, flush=True)


if __name__ == '__main__':
    main()
