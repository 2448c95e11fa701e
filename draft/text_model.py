import math
from functools import partial
from typing import NamedTuple
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ldm_nb.core import *
from ldm_nb.autoencoder import zero_init
from ldm_nb.denoiser import *
from ldm_nb.denoiser import embed

class CrossAttention(nn.Module):
    "x + what each position looks up in a sequence of words; zero at the start."
    def __init__(self, width:int, word_width:int, head_width=32):
        super().__init__()
        self.heads = max(width//head_width, 1)
        if width % self.heads:
            raise InputError(f'width is {width}: attention with {self.heads} heads '
                             f'needs a multiple of {self.heads}, best of {head_width}')
        self.norm = nn.GroupNorm(8, width)
        self.query = nn.Conv2d(width, width, 1)
        self.key_value = nn.Linear(word_width, 2*width)
        self.out = zero_init(nn.Conv2d(width, width, 1))

    def by_head(self, v):
        "(b, n, width) -> (b, heads, n, width/heads)"
        return v.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def asked(self, x):
        "(b, width, h, w) features -> queries (b, heads, h*w, width/heads)"
        return self.by_head(self.query(self.norm(x)).flatten(2).transpose(1, 2))

    def forward(self, x, words, seen):
        "(b, width, h, w), words (b, n, word_width), which there are (b, n) -> like x"
        k, v = map(self.by_head, self.key_value(words).chunk(2, 2))
        mixed = F.scaled_dot_product_attention(self.asked(x), k, v, seen[:, None, None])
        return x + self.out(mixed.transpose(-1, -2).reshape(x.shape))

    def weights(self, x, words, seen):
        "How much each position looks at each word: (b, heads, h*w, n), sums of 1"
        k = self.by_head(self.key_value(words).chunk(2, 2)[0])
        scores = self.asked(x) @ k.transpose(-1, -2)/math.sqrt(k.shape[-1])
        return scores.masked_fill(~seen[:, None, None], -math.inf).softmax(-1)

class WordEmbedding(nn.Module):
    "A vector and a sequence from the features of a sentence's tokens (NaN: no token)."
    def __init__(self, features:int, emb_dim:int, word_width=128):
        super().__init__()
        self.features = features
        self.tokens = nn.Linear(features, word_width)
        self.first = nn.Parameter(.02*torch.randn(word_width)) # always there to look at
        self.layers = nn.Sequential(nn.Linear(features + 1, emb_dim), nn.SiLU(),
                                    nn.Linear(emb_dim, emb_dim))

    def nothing(self, x):
        "Sentences without tokens, (b, 1, features), for latents x (b, ...)"
        return x.new_full((len(x), 1, self.features), math.nan)

    def sequence(self, rows):
        "(b, n, features) -> words (b, 1 + n, word_width), which there are (b, 1 + n)"
        seen = F.pad(~rows.isnan().any(2), (1, 0), value=True)
        first = self.first.expand(len(rows), 1, -1)
        return torch.cat([first, self.tokens(rows.nan_to_num())], 1), seen

    def forward(self, rows):
        "(b, n, features) -> (b, emb_dim), of the mean of the tokens"
        count = (~rows.isnan().any(2)).sum(1, keepdim=True)
        mean = rows.nan_to_num().sum(1)/count.clamp(min=1)
        return self.layers(torch.cat([mean, count == 0], 1))

class Told(NamedTuple):
    "What a denoiser of words is told, in each of its blocks."
    emb: Tensor   # (b, emb_dim), time and the mean of the words
    words: Tensor # (b, n, word_width)
    seen: Tensor  # (b, n), bool

class WordBlock(TimeResBlock):
    "A residual block that then looks at the words."
    def __init__(self, in_width:int, width:int, emb_dim:int, dropout=0., word_width=128):
        super().__init__(in_width, width, emb_dim, dropout)
        self.look = CrossAttention(width, word_width)

    def forward(self, x, told):
        "(b, in_width, h, w) features, a Told -> (b, width, h, w)"
        return self.look(super().forward(x, told.emb), told.words, told.seen)

class WordUNet(UNet):
    "A `UNet` led by a sentence: its mean enters with the time, its words by attention."
    def __init__(self, channels=4, widths=(64, 96), blocks=1, emb_dim=192, dropout=0.,
                 augment=0,
                 features=96,    # numbers of each token
                 word_width=128, # of the words that the network looks at
                 cross=True):    # False: no attention, the mean alone
        kind = partial(WordBlock, word_width=word_width) if cross else TimeResBlock
        super().__init__(channels, widths, blocks, 0, emb_dim, dropout, augment,
                         kind=kind)
        self.label = WordEmbedding(features, emb_dim, word_width)
        self.config = dict(channels=channels, widths=list(widths), blocks=blocks,
                           emb_dim=emb_dim, dropout=dropout, augment=augment,
                           features=features, word_width=word_width, cross=cross)

    def embed(self, x, t, labels, augment=None):
        "As `UNet`'s, and the words."
        rows = self.label.nothing(x) if labels is None else labels
        emb = embed(self, x, t, rows, augment)
        return Told(emb, *self.label.sequence(rows)) if self.config['cross'] else emb

class WordDiT(DiT):
    "A `DiT` led by a sentence: its words are tokens beside the patches of the image."
    def __init__(self, channels=4, width=128, depth=4, patch_size=2, emb_dim=144,
                 features=96): # numbers of each token
        super().__init__(channels, width, depth, patch_size, 0, emb_dim)
        self.label = WordEmbedding(features, emb_dim, width)
        self.config = dict(channels=channels, width=width, depth=depth,
                           patch_size=patch_size, emb_dim=emb_dim, features=features)

    def forward(self, x, t, labels=None):
        "(b, channels, h, w) latents, (b,) times, sentences (b, n, features) -> like x"
        p, (h, w) = self.patch_size, x.shape[-2:]
        check_sides(x, p)
        rows = self.label.nothing(x) if labels is None else labels
        emb = embed(self, x, t, rows)
        words, seen = self.label.sequence(rows)
        where = position_embedding(h//p, w//p, self.width).to(x)
        n = len(where)
        tokens = torch.cat([self.embed_patch(patchify(x, p)) + where, words], 1)
        seen = F.pad(seen, (n, 0), value=True)
        for block in self.blocks:
            tokens = block(tokens, emb, seen)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=2)
        out = self.out(self.norm(tokens[:, :n])*(1 + scale) + shift)
        return unpatchify(out, p, h, w)
