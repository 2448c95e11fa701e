import math, re
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ldm_nb.core import *
from ldm_nb.loop import *
from ldm_nb.data import *

def words_of(text:str)->list: # of words and commas, in lower case
    "A text as words: what our own text encoder reads."
    return re.findall(r"[\w'-]+|,", text.casefold())

class TextEncoder(nn.Module):
    "A small transformer over whole words, trained from nothing."
    def __init__(self, vocabulary:tuple, # words; others are all the same to it
                 width=128, depth=2, heads=4, longest=24):
        super().__init__()
        self.config = dict(vocabulary=list(vocabulary), width=width, depth=depth,
                           heads=heads, longest=longest)
        self.place = {word: i for i, word in enumerate(vocabulary, 2)} # 0: none, 1: other
        self.longest = longest
        self.words = nn.Embedding(len(vocabulary) + 2, width)
        self.positions = nn.Parameter(.02*torch.randn(longest, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4*width, 0., 'gelu',
                                           batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width),
                                            enable_nested_tensor=False)

    def ids(self, texts)->Tensor: # (n, l), 0 after the last word
        "Texts as numbers of words."
        rows = [torch.tensor([self.place.get(w, 1) for w in words_of(text)[:self.longest]]
                             or [1]) for text in texts]
        return nn.utils.rnn.pad_sequence(rows, True)

    def forward(self, ids):
        "(n, l) numbers of words -> (n, l, width), NaN after the last word"
        there = ids > 0
        x = self.words(ids) + self.positions[:ids.shape[1]]
        x = self.layers(x, src_key_padding_mask=~there)
        return x.masked_fill(~there[..., None], math.nan)

class PictureTexts(nn.Module):
    "Pictures and texts as vectors of length 1, near where they belong together."
    def __init__(self, vocabulary, size=32, widths=(32, 64, 128, 192), width=128):
        super().__init__()
        self.config = dict(vocabulary=list(vocabulary), size=size, widths=list(widths), width=width)
        layers = []
        for before, w in zip((3, *widths), widths):
            layers += [nn.Conv2d(before, w, 3, stride=2, padding=1), nn.GroupNorm(8, w), nn.SiLU()]
        side = size//2**len(widths)
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1]*side**2, width))
        self.text = TextEncoder(vocabulary, width)
        self.out = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.)))

    def of_images(self, x):
        "(n, 3, size, size) in [-1, 1] -> (n, width), of length 1"
        return F.normalize(self.image(x), dim=1)

    def of_texts(self, ids):
        "(n, l) numbers of words -> (n, width), of length 1"
        return F.normalize(self.out(self.text(ids).nanmean(1)), dim=1)

def info_nce(images, texts, scale):
    "(b, d) each, row i belongs to row i -> a scalar (Oord et al. 2018, Radford et al. 2021)"
    scores, own = scale*images @ texts.T, torch.arange(len(images), device=images.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own))/2

@torch.no_grad()
def retrieval(images, texts, among=100, seed=0, rounds=20):
    "(n, d) each: how often the own text is the nearest among so many -> a share"
    right = []
    for k in range(rounds):
        some = torch.randperm(len(images), generator=generator(seed, 'retrieval', k))[:among]
        right.append((images[some] @ texts[some].T).argmax(1) == torch.arange(len(some)))
    return torch.cat(right).double().mean().item()
