"""Make ldm_nb/datasets/fashion_mnist.npz from the original IDX files: the first 1,000 training and 200 test images of each class.

    python tools/embed_fashion_mnist.py            # write it
    python tools/embed_fashion_mnist.py --check    # exit 1 unless the committed file is what this makes, byte for byte

The IDX files are found as `fashion_mnist(full=True)` finds them (Debian: apt-get install dataset-fashion-mnist).
The zip stores no time of day, so the bytes depend on the images and on zlib alone.
"""
import io, sys
from pathlib import Path

import numpy as np

from ldm_nb.data import _full

TARGET = Path(__file__).parent.parent/'ldm_nb'/'datasets'/'fashion_mnist.npz'


def balanced(split, per_class):
    images, labels = _full(split)
    keep = np.sort(np.concatenate([np.flatnonzero(labels == k)[:per_class] for k in range(10)]))
    return {f'{split}_images': images[keep], f'{split}_labels': labels[keep]}


def main():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **balanced('train', 1000), **balanced('test', 200))
    made = buffer.getvalue()
    if '--check' in sys.argv[1:]:
        if TARGET.read_bytes() != made: sys.exit(f'{TARGET} differs from what this script makes')
        print(f'{TARGET.name}: {len(made):,} bytes, the same')
    else:
        TARGET.write_bytes(made)
        print(f'{TARGET}: {len(made):,} bytes')


if __name__ == '__main__': main()
