"""Make ldm_nb/datasets/emoji_words.npz: what a language model makes of the captions of the emoji, and of the prompts of chapter 13.

    pip install -c constraints.txt -e '.[text]'
    python tools/embed_words.py            # write it
    python tools/embed_words.py --check    # exit 1 unless the committed file holds what this makes

Each token has 384 numbers; 64 directions of most variance are kept (PCA over all tokens of all captions), as int8.
The features depend on the processor in their last digits, so --check compares them to within one level.
"""
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch

from ldm_nb.data import emoji_table
from ldm_nb.text import HARD, INVENTED
from ldm_nb.words import LanguageModel, emoji_captions

TARGET = Path(__file__).parent.parent/'ldm_nb'/'datasets'/'emoji_words.npz'
DIRECTIONS = 64


def tokens_of(captions): # (tokens, 384), and how many each caption has
    model = LanguageModel()
    rows = [row for first in range(0, len(captions), 256) for row in model(captions[first:first + 256])]
    return torch.cat(rows), [len(row) for row in rows]


def made():
    captions = sorted({text for row in emoji_table('all') for text in emoji_captions(row)})
    prompts = sorted({*INVENTED, *HARD} - {*captions})
    tokens, lengths = tokens_of(captions)
    mean = tokens.mean(0)
    variance, axes = torch.linalg.eigh(torch.cov(tokens.T))
    axes = axes[:, -DIRECTIONS:].flip(1)
    axes = axes*axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign() # eigenvectors have no sign of their own
    axes = axes/((tokens - mean) @ axes).std() # features of deviation 1
    features = (tokens - mean) @ axes
    step = features.abs().max()/127
    print(f'{len(captions):,} captions, {len(tokens):,} tokens; {DIRECTIONS} directions hold {variance[-DIRECTIONS:].sum()/variance.sum():.0%} of the variance; '
          f'rounding is off by {(features - (features/step).round()*step).std():.3f} of a deviation')
    new, more = tokens_of(prompts) # which change neither the directions nor the step
    levels = torch.cat([features, (new - mean) @ axes])/step
    return dict(captions=np.frombuffer(json.dumps(captions + prompts).encode(), np.uint8), lengths=np.array(lengths + more, np.uint8),
                levels=levels.round().clamp(-127, 127).to(torch.int8).numpy(), step=step.numpy(), mean=mean.numpy(), axes=axes.numpy())


def main():
    if sys.argv[1:] not in ([], ['--check']):
        sys.exit(__doc__)
    new = made()
    if sys.argv[1:]:
        with np.load(TARGET, allow_pickle=False) as old:
            same = all(old[k].shape == v.shape and np.allclose(old[k], v, rtol=1e-2, atol=1 if k == 'levels' else 1e-3) for k, v in new.items())
        return print('the same') if same else sys.exit(f'{TARGET} differs from what this script makes')
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **new)
    TARGET.write_bytes(buffer.getvalue())
    print(f'{TARGET}: {len(buffer.getvalue()):,} bytes')


if __name__ == '__main__':
    main()
