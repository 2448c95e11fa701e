"""What the evaluation costs: python bench/evaluation.py   (a minute on 2 cores; writes bench/evaluation.json)

1. `ldm_eval` on 10,000 images in a file, classifier features, all metrics: seconds of the whole process and its peak memory.
2. EfficientNet-Lite0 at 64 x 64: images a second. 3. One Fréchet distance of 2,048 features.
"""
import json, resource, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from ldm_nb.core import read_json, save_npy, to_uint8, write_json
from ldm_nb.data import fashion_mnist
from ldm_nb.features import extract
from ldm_nb.evaluation import frechet_distance

BIN = Path(sys.executable).parent


def whole_command(n=10_000):
    "Seconds and GB of `ldm_eval FILE.npy`; the images are the training set, so only the cost means anything."
    with tempfile.TemporaryDirectory() as d:
        save_npy(Path(d)/'images.npy', to_uint8(fashion_mnist().images[:n]))
        began = time.perf_counter(); subprocess.run([BIN/'ldm_eval', f'{d}/images.npy', '--out', f'{d}/figures.json'], check=True, capture_output=True)
        seconds = time.perf_counter() - began
        assert read_json(f'{d}/figures.json')['n'] == n
    return dict(images=n, seconds=seconds, peak_memory_GB=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss*1024/1e9)


def effnet_rate(n=1000):
    images = torch.nn.functional.interpolate(fashion_mnist().images[:n], (64, 64))
    extract(images[:250], 'effnet')                                        # loads the weights
    began = time.perf_counter(); extract(images, 'effnet')
    return n/(time.perf_counter() - began)


def frechet_seconds(d=2048):
    A, B = (torch.cov(torch.randn(d, 2*d, dtype=torch.float64)) for _ in range(2))
    began = time.perf_counter(); frechet_distance(A[0], A, B[0], B)
    return time.perf_counter() - began


def main():
    figures = dict(ldm_eval=whole_command(), effnet_images_per_second=effnet_rate(), frechet_2048_seconds=frechet_seconds(), threads=torch.get_num_threads(), torch=torch.__version__)
    write_json(Path(__file__).with_suffix('.json'), figures); print(json.dumps(figures, indent=1))


if __name__ == '__main__': main()
