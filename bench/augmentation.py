"""What generated images are worth to a classifier: python bench/augmentation.py

Five seeds (others by --seeds). A seed draws the few labelled images, trains a generator on
them, and trains the same small classifier for 1,000 steps in each way (an arm). Clothes are
judged on the 2,000 embedded test images, faces on 1,000 new ones. Rows that are in
ldm_nb/results/augmentation.json are kept, and generators in runs/augmentation, so it may
be stopped and begun again. All is computed in bfloat16 unless
ACCELERATE_MIXED_PRECISION says otherwise. The committed rows were made by two processes
at once, of one thread each (OMP_NUM_THREADS=1, --seeds 0 2 4 and --seeds 1 3), which is
faster here than one of two threads: an hour and a quarter.
"""
import argparse
import json
import os
import time
from functools import lru_cache
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'
os.environ.setdefault('ACCELERATE_MIXED_PRECISION', 'bf16')
import torch
import torch.nn.functional as F

from ldm_nb.augmentation import (Augmented, accuracy, augment, class_probabilities,
    few_labels, fill_up, fit_classifier, group_accuracies, label_with, long_tail,
    skewed_faces)
from ldm_nb.autoencoder import load_classifier
from ldm_nb.core import PACKAGE, read_json, write_json
from ldm_nb.data import ImageData, fashion_mnist
from ldm_nb.evaluation import memorisation, precision_recall
from ldm_nb.features import extract
from ldm_nb.runs import train_latent_diffusion
from ldm_nb.training import LatentDiffusion, Recipe
from ldm_nb.world import faces

OUT, RUNS = PACKAGE/'results'/'augmentation.json', Path('runs')/'augmentation'
FEW = Recipe(batch=32, dropout=.1)
STANDARD = dict(flip=True, shift=2, mixup=.4)
RATIO = 2.
STEPS = {20: 500, 50: 500, 200: 700}


class Rows:
    "Of one seed: the rows that there are, and those that come."
    def __init__(self, seed):
        self.path = RUNS/f'rows-{seed}.json'
        known = read_json(self.path if self.path.exists() else OUT)['rows']
        self.seed, self.rows = seed, [row for row in known if row['seed'] == seed]

    def missing(self, *names): # names of arms
        there = {row['arm'] for row in self.rows}
        return [name for name in names if name not in there]

    def put(self, arm, began, **figures):
        seconds = round(time.perf_counter() - began, 1)
        row = dict(arm=arm, seed=self.seed, **figures, seconds=seconds)
        self.rows.append(row)
        write_json(self.path, dict(rows=self.rows))
        print(time.strftime('%X'), json.dumps(row), flush=True)


def collect():
    "All rows of all seeds, into the package."
    rows = {(row['seed'], row['arm']): row for row in read_json(OUT)['rows']}
    for path in RUNS.glob('rows-*.json'):
        rows |= {(row['seed'], row['arm']): row for row in read_json(path)['rows']}
    about = dict(command='python bench/augmentation.py', steps=1000, batch=32, ratio=RATIO,
                 generator_steps=STEPS, standard=STANDARD, torch=torch.__version__,
                 threads=torch.get_num_threads(),
                 precision=os.environ['ACCELERATE_MIXED_PRECISION'])
    write_json(OUT, about | dict(rows=[rows[key] for key in sorted(rows)]))


def generator_of(data, name, seed, steps):
    "Trained on these images alone; the same every time."
    out = RUNS/f'{name}-{seed}'
    if (out/'model').exists():
        return LatentDiffusion.from_pretrained(out/'model')
    resume = out.exists()
    return train_latent_diffusion(data, out, steps=steps, seed=seed, recipe=FEW,
                                  previews=0, resume=resume)[0]


@lru_cache
def clothes(split):
    return fashion_mnist(split)


@lru_cache
def oracle():
    "Trained on 60,000 labels: it says what a picture shows. No arm may learn from it."
    return load_classifier()


def judged(made, real):
    "Of generated clothes: right labels, precision, recall, copies."
    right = class_probabilities(oracle(), made.levels).argmax(1) == made.labels
    test = clothes('test')
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    x = extract(made.levels[:1000])
    precision, recall = precision_recall(extract(test.levels[order[:len(x)]]), x)
    others = extract(test.levels[order[:len(real)]])
    copies, error = memorisation(x, extract(real.levels), others)
    return dict(right_labels=right.double().mean().item(), precision=precision.mean().item(),
                recall=recall.mean().item(), copies=copies, copies_error=error)


def arm(rows, name, seed, data, test=None, measure=accuracy, **how):
    "Train a classifier on data() in this way, and judge it, unless that was done."
    if not rows.missing(name):
        return
    began, data = time.perf_counter(), data()
    net = fit_classifier(data, seed=seed, **how)
    figures = dict(images=len(data), accuracy=accuracy(net, test or clothes('test')))
    if isinstance(data, Augmented) and test is None and len(data.made):
        figures |= judged(data.made, data.real)
    if measure is not accuracy:
        figures |= measure(net)
    rows.put(name, began, **figures)


def shown_again(real, groups):
    "With the images of each group repeated until it is as large as the largest."
    largest = max(map(len, groups))
    more = [g[torch.arange(largest - len(g)) % len(g)] for g in groups]
    return Augmented(real, real[torch.cat(more)])


def few(rows, seed, k):
    "k labels a class; the generator sees what the classifier sees."
    real = few_labels(clothes('train'), k, seed)
    def ours(**how):
        ldm = generator_of(real, f'few{k}', seed, STEPS[k])
        return augment(real, ldm, **dict(ratio=RATIO, seed=seed, progress=False) | how)
    def given():
        return real
    def more():
        return few_labels(clothes('train'), 3*k, seed)
    arm(rows, f'{k}: none', seed, given)
    arm(rows, f'{k}: standard', seed, given, **STANDARD)
    arm(rows, f'{k}: generated', seed, ours)
    arm(rows, f'{k}: both', seed, ours, **STANDARD)
    arm(rows, f'{k}: three times the real images', seed, more)


def sweep(rows, seed, k=50):
    "Amount, guidance, filter; the parts of the standard changes; why."
    real = few_labels(clothes('train'), k, seed)
    def given():
        return real
    for name, value in STANDARD.items():
        arm(rows, f'{k}: {name}', seed, given, **{name: value})
    names = [f'{k}: {what}' for what in ('ratio 0.5', 'ratio 5', 'ratio 10', 'guidance 1',
        'guidance 2', 'guidance 4', 'least 0.5', 'least 0.9', 'labels of the oracle',
        'generated only', 'copies')]
    if not rows.missing(*names):
        return
    ldm = generator_of(real, f'few{k}', seed, STEPS[k])
    def made(ratio=RATIO, **how):
        return augment(real, ldm, ratio=ratio, seed=seed, progress=False, **how)
    for ratio in (.5, 5., 10.):
        arm(rows, f'{k}: ratio {ratio:g}', seed, lambda: made(ratio))
    for g in (1., 2., 4.):
        arm(rows, f'{k}: guidance {g:g}', seed, lambda: made(guidance=g))
    judge = fit_classifier(real, seed=seed)
    for least in (.5, .9):
        arm(rows, f'{k}: least {least:g}', seed, lambda: made(judge=judge, least=least))
    def put_right():
        both = made()
        said = class_probabilities(oracle(), both.made.levels).argmax(1)
        return Augmented(real, ImageData(both.made.levels, said, real.classes))
    arm(rows, f'{k}: labels of the oracle', seed, put_right)
    def alone():
        return made().made
    arm(rows, f'{k}: generated only', seed, alone)
    def copies():
        again = torch.arange(len(real)).repeat(int(RATIO))
        return Augmented(real, real[again])
    arm(rows, f'{k}: copies', seed, copies)


def foreign(rows, seed, k=20):
    "Generators that have seen more than the classifier: all images, or all labels."
    real, everything = few_labels(clothes('train'), k, seed), clothes('train')
    def unlabelled(): # labelled by a first classifier
        judge = fit_classifier(real, seed=seed)
        data = label_with(judge, everything, real.classes)
        ldm = generator_of(data, 'unlabelled', seed, 1000)
        return augment(real, ldm, 10., seed=seed, progress=False)
    def leaked():
        ldm = LatentDiffusion.from_pretrained('fashion')
        return augment(real, ldm, 10., seed=seed, progress=False)
    arm(rows, f'{k}: generator with all images', seed, unlabelled)
    arm(rows, f'{k}: generator with all images, standard', seed, unlabelled, **STANDARD)
    arm(rows, f'{k}: generator with all labels', seed, leaked)
    def labelled_by_itself(): # self-training
        judge = fit_classifier(real, seed=seed)
        return Augmented(real, label_with(judge, everything, real.classes, .9))
    def all_labels():
        return everything
    arm(rows, f'{k}: all images, labelled by a first classifier', seed, labelled_by_itself)
    arm(rows, f'{k}: all labels', seed, all_labels)


def tail(rows, seed):
    "From 200 images of a class down to 5."
    real = long_tail(clothes('train'), 200, 5, seed)
    rare = sorted(range(10), key=lambda c: real.counts[c])[:3]
    wanted = fill_up(real)
    def rare_accuracy(net):
        test = clothes('test')
        chosen = test[torch.isin(test.labels, torch.tensor(rare))]
        return dict(rare=accuracy(net, chosen))
    def given():
        return real
    def again():
        return shown_again(real, [(real.labels == c).nonzero()[:, 0] for c in range(10)])
    def filled():
        ldm = generator_of(real, 'tail', seed, 500)
        ratio = len(wanted)/len(real)
        return augment(real, ldm, ratio, wanted, seed=seed, progress=False)
    for name, data in ('none', given), ('rare ones again', again), ('generated', filled):
        arm(rows, f'tail: {name}', seed, data, measure=rare_accuracy)
    arm(rows, 'tail: standard, rare ones again', seed, again, measure=rare_accuracy,
        **STANDARD)
    arm(rows, 'tail: both', seed, filled, measure=rare_accuracy, **STANDARD)


@lru_cache(maxsize=1)
def shipped_faces():
    return LatentDiffusion.from_pretrained('faces')


def drawn_by_shipped(asked, labels, classes, seed):
    "Faces of 64 pixels at half their size. That model has seen 40,000 labels."
    images = shipped_faces().sample(len(asked), labels=asked, seed=seed).cpu()
    return ImageData(F.avg_pool2d(images, 2), labels, classes, 'generated')


def rare_faces(n, seed, skin=True):
    "What to ask for: happy with dark skin and sad with light skin, in turn."
    shade = torch.rand(n, generator=torch.Generator().manual_seed(seed))/2
    asked = []
    for i in range(n):
        row = dict(expression=('happy', 'sad')[i % 2])
        if skin:
            row['skin'] = shade[i].item() + (.5 if i % 2 == 0 else 0.)
        asked.append(row)
    return asked, torch.arange(n) % 2


def skew(rows, seed):
    "400 faces, happy or sad; 5 % of the happy ones have dark skin, and of the sad light."
    real, test = skewed_faces(400, seed=seed), skewed_faces(1000, .5, seed=1000)
    def worst(net):
        groups = group_accuracies(net, test)
        names = {' '.join(name): value for name, value in groups.items()}
        return dict(worst=min(names.values()), groups=names)
    groups = [(real.values == row).all(1).nonzero()[:, 0]
              for row in real.values.unique(dim=0)]
    largest = max(map(len, groups))
    missing = sum(largest - len(g) for g in groups)
    def given():
        return real
    def again():
        return shown_again(real, groups)
    def own():
        ldm = generator_of(real, 'skew', seed, 700)
        wanted = torch.tensor([[0., 1.], [1., 0.]])
        ratio = missing/len(real)
        return augment(real, ldm, ratio, wanted, seed=seed, progress=False)
    @lru_cache
    def asked(skin=True):
        made = drawn_by_shipped(*rare_faces(missing, seed, skin), real.classes, seed)
        return Augmented(real, made)
    def more():
        others = skewed_faces(4*missing, .5, seed=100 + seed)
        rare = (others.labels != others.values[:, 1]).nonzero()[:, 0]
        kept = [rare[others.labels[rare] == k][:missing//2] for k in (0, 1)]
        return Augmented(real, others[torch.cat(kept)])
    def whatever():
        return asked(skin=False)
    how = dict(test=test, measure=worst)
    arm(rows, 'skew: none', seed, given, **how)
    arm(rows, 'skew: standard', seed, given, **how, **STANDARD)
    arm(rows, 'skew: rare ones again', seed, again, **how)
    arm(rows, 'skew: standard, rare ones again', seed, again, **how, **STANDARD)
    arm(rows, 'skew: own generator', seed, own, **how)
    arm(rows, 'skew: asked for', seed, asked, **how)
    arm(rows, 'skew: asked for, standard', seed, asked, **how, **STANDARD)
    arm(rows, 'skew: expression alone', seed, whatever, **how)
    arm(rows, 'skew: real ones instead', seed, more, **how)


@lru_cache
def face_sets(split):
    n, seed = dict(pool=(3000, 2000), test=(1000, 3000))[split]
    return faces(n, 32, seed=seed, which='all')


def expressions(rows, seed):
    "Five expressions, 20 faces each."
    pool, test = face_sets('pool'), face_sets('test')
    pool = ImageData(pool.levels, pool.labels, pool.classes, 'faces')
    real = few_labels(pool, 20, seed)
    def own():
        ldm = generator_of(real, 'faces', seed, 600)
        return augment(real, ldm, RATIO, seed=seed, progress=False)
    def unlabelled():
        judge = fit_classifier(real, seed=seed)
        ldm = generator_of(label_with(judge, pool, real.classes), 'faces-unlabelled', seed,
                           1000)
        return augment(real, ldm, 4., seed=seed, progress=False)
    @lru_cache
    def shipped():
        labels = torch.arange(400) % 5
        asked = [dict(expression=real.classes[k]) for k in labels]
        return Augmented(real, drawn_by_shipped(asked, labels, real.classes, seed))
    def given():
        return real
    arm(rows, 'faces: none', seed, given, test)
    arm(rows, 'faces: standard', seed, given, test, **STANDARD)
    arm(rows, 'faces: generated', seed, own, test)
    arm(rows, 'faces: both', seed, own, test, **STANDARD)
    arm(rows, 'faces: generator with all images', seed, unlabelled, test)
    arm(rows, 'faces: generator with all labels', seed, shipped, test)
    arm(rows, 'faces: generator with all labels, standard', seed, shipped, test, **STANDARD)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    for experiments in PARTS:
        for seed in args.seeds:
            for experiment, *given in experiments:
                experiment(Rows(seed), seed, *given)
            collect()


# what matters most is there first
PARTS = (((few, 20), (skew,)), ((few, 50), (foreign,)), ((tail,), (expressions,)),
         ((few, 200), (sweep,)))

if __name__ == '__main__':
    main()
