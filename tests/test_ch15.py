"Chapter 15: what a learner would not want to read, and what its text says of the committed rows."
import types

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ldm_nb.attributes import Attribute
from ldm_nb.augmentation import (SKEWED, Augmented, accuracy, augment, class_probabilities, few_labels, fill_up,
    fit_classifier, group_accuracies, label_with, long_tail, mix_up, skewed_faces)
from ldm_nb.core import PACKAGE, InputError, read_json
from ldm_nb.data import ImageData, fashion_mnist
from ldm_nb.training import paired

ROWS = read_json(PACKAGE/'results'/'augmentation.json')['rows']


def toy(n=12, classes=('a', 'b', 'c'), **more):
    "Images as bright as their class."
    labels = torch.arange(n) % len(classes)
    levels = (labels*50).byte()[:, None, None, None].expand(n, 1, 8, 8).contiguous()
    return ImageData(levels, labels, classes, 'toy', **more)


class Painter:
    "Stands for a LatentDiffusion: what it is asked for is how bright its images are."
    image_size, autoencoder = (8, 8), types.SimpleNamespace(image_channels=1)

    def __init__(self, classes=(), attributes=(), column=None):
        self.classes, self.attributes, self.column, self.asked = classes, attributes, column, None

    def sample(self, n, labels, seed, progress, **how):
        assert len(labels) == n
        self.asked, self.how = labels, how
        label = labels if self.column is None else labels[:, self.column]
        return (label.float()*50/127.5 - 1)[:, None, None, None].expand(n, 1, 8, 8)


class Brightness(nn.Module):
    "Knows the class of a toy image, and is unsure of class 2."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        label = ((x.mean((1, 2, 3)) + 1)*127.5/50).round().long().clamp(0, 2)
        sure = torch.where(label == 2, .1, 9.)[:, None]
        return sure*nn.functional.one_hot(label, 3).float()


def test_labels_follow_their_images():
    data, painter = toy(), Painter(('a', 'b', 'c'))
    both = augment(data, painter, ratio=2.5, progress=False, guidance=3.)
    assert len(both) == 12 + 30 and both.made.counts == [10, 10, 10] and painter.how == dict(guidance=3.)
    for i in range(len(both)):
        image, label = both[i]
        assert ((image.mean() + 1)*127.5/50).round() == label
    assert (both.made.labels == painter.asked).all()


def test_wanted_is_asked_in_turn():
    painter = Painter(('a', 'b', 'c'))
    assert augment(toy(), painter, 1/4, wanted=[2, 2, 1], progress=False).made.counts == [0, 1, 2]
    assert augment(toy(), painter, 1e-9, progress=False).made.labels.shape == (1,)


def test_attributes_of_a_model():
    "The class is one of several attributes, not the first; of the others nothing is said."
    attributes = (Attribute('age'), Attribute('kind', ('a', 'b', 'c')))
    painter = Painter(attributes=attributes, column=1)
    both = augment(toy(), painter, 1, progress=False)
    assert painter.asked[:, 0].isnan().all() and both.made.counts == [4, 4, 4]
    table = torch.stack([torch.linspace(0, 1, 12), torch.arange(12) % 3], 1)
    augment(toy(attributes=attributes, values=table), painter, 1, progress=False)
    assert painter.asked[:, 0].sort().values.allclose(torch.linspace(0, 1, 12))
    rows = torch.tensor([[.5, 2.]])
    made = augment(toy(), painter, .5, rows, progress=False).made
    assert made.counts == [0, 0, 6] and (painter.asked == rows).all()
    with pytest.raises(InputError, match='leave the class out'):
        augment(toy(), painter, .5, torch.tensor([[.5, float('nan')]]), progress=False)


def test_judge_rejects():
    both = augment(toy(), Painter(('a', 'b', 'c')), 2, judge=Brightness(), least=.6, progress=False)
    assert both.made.counts == [8, 8, 0] and len(both) == 28
    assert class_probabilities(Brightness(), both.levels).sum(1).allclose(torch.ones(28))
    assert accuracy(Brightness(), toy()) == 1
    none = augment(toy(3), Painter(('a', 'b', 'c')), 1, judge=Brightness(), least=1., progress=False)
    assert len(none) == 3 and len(none.made) == 0 # nothing was sure enough: the real ones stay


@pytest.mark.parametrize('change, words', [
    (dict(ratio=0), 'above 0'), (dict(ratio=-1), 'above 0'), (dict(ratio=float('nan')), 'above 0'),
    (dict(ratio=float('inf')), 'above 0'), (dict(ratio='2'), 'above 0'),
    (dict(dataset=ImageData(torch.zeros(3, 1, 8, 8))), 'no labels'),
    (dict(dataset=toy(classes=('a', 'c', 'b'))), 'in this order'),
    (dict(dataset=ImageData(torch.zeros(3, 1, 9, 8), [0, 1, 2], ('a', 'b', 'c'))), 'with that size'),
    (dict(dataset=ImageData(torch.zeros(3, 3, 8, 8), [0, 1, 2], ('a', 'b', 'c'))), 'with that size'),
    (dict(wanted=[]), 'wanted'), (dict(wanted=[0, 5]), 'wanted'), (dict(wanted=[[1.]]), 'wanted')])
def test_what_does_not_fit(change, words):
    given = dict(dataset=toy(), model=Painter(('a', 'b', 'c')), ratio=1., progress=False) | change
    with pytest.raises(InputError, match=words):
        augment(**given)


def test_workers_read_it():
    both = Augmented(toy(), toy(6))
    batches = list(DataLoader(both, batch_size=6, num_workers=2))
    assert [len(labels) for _, labels in batches] == [6, 6, 6] and batches[0][0].shape == (6, 1, 8, 8)
    image, label = both[-1]
    assert label == 2 and image.dtype == torch.float32


def test_few_and_tail():
    data = fashion_mnist('train')
    assert few_labels(data, 3, 1).hashes().equal(few_labels(data, 3, 1).hashes())
    small, large = (set(few_labels(data, k, 0).hashes().tolist()) for k in (3, 9))
    assert small < large # more labels are the same images, and others
    tail = long_tail(data, 100, 1, seed=3)
    assert sorted(tail.counts)[0] == 1 and sorted(tail.counts)[-1] == 100
    ratios = [b/a for a, b in zip(sorted(tail.counts)[3:], sorted(tail.counts)[4:])]
    assert max(ratios) < 1.8 and long_tail(data, 100, 1, seed=4).counts != tail.counts
    assert (fill_up(tail).bincount() + torch.tensor(tail.counts)).tolist() == [100]*10
    assert len(fill_up(few_labels(data, 2))) == 0
    for call in (lambda: long_tail(data, 5_000, 1), lambda: few_labels(data, 0), lambda: few_labels(data, 1001),
                 lambda: few_labels(ImageData(torch.zeros(3, 1, 8, 8)), 1)):
        with pytest.raises(InputError):
            call()


def test_mixup_blends_images_and_labels_alike():
    torch.manual_seed(0)
    y = torch.eye(5)
    x = y[:, :, None, None]*torch.ones(5, 5, 2, 2) # an image that shows its label
    mixed, said = mix_up(x, y, .4)
    assert said.sum(1).allclose(torch.ones(5)) and mixed[:, :, 0, 0].allclose(said)


def test_training_repeats_itself():
    data = few_labels(fashion_mnist('train'), 4)
    nets = [fit_classifier(data, 4, flip=True, shift=1, mixup=.2, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].values(), nets[1].values()))
    assert not all(torch.equal(a, b) for a, b in zip(nets[0].values(), nets[2].values()))


def test_skewed_faces():
    data = skewed_faces(40, minority=.1, size=16, seed=2)
    groups, counts = data.values.unique(dim=0, return_counts=True)
    assert groups.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]] and counts.tolist() == [18, 2, 2, 18]
    assert data.labels.equal(data.values[:, 0].long()) and data.attributes == SKEWED
    class Half(nn.Module): # calls all happy
        def __init__(self): super().__init__(); self.weight = nn.Parameter(torch.zeros(1))
        def forward(self, x): return torch.tensor([[1., 0.]]).expand(len(x), 2)
    assert group_accuracies(Half(), data) == {('happy', 'light'): 1, ('happy', 'dark'): 1, ('sad', 'light'): 0, ('sad', 'dark'): 0}
    assert skewed_faces(20, .5, 16).values.unique(dim=0, return_counts=True)[1].tolist() == [5]*4
    with pytest.raises(InputError, match='minority'):
        skewed_faces(20, 1.5, 16)


def test_label_with_a_classifier():
    data = toy(12)
    judged = label_with(Brightness(), ImageData(data.levels), ('a', 'b', 'c'))
    assert judged.labels.equal(data.labels) and judged.classes == ('a', 'b', 'c')
    sure = label_with(Brightness(), data, ('a', 'b', 'c'), least=.9)
    assert sure.counts == [4, 4, 0]


def figures(arm, what='accuracy'):
    return {row['seed']: 100*row[what] for row in ROWS if row['arm'] == arm}


def test_every_arm_has_five_seeds():
    arms = {row['arm'] for row in ROWS}
    assert len(arms) > 45
    for arm in arms:
        assert sorted(figures(arm)) == [0, 1, 2, 3, 4], arm


def mean(arm, what='accuracy'):
    return sum(figures(arm, what).values())/5


def sign(arm, base, what='accuracy'):
    "Of a paired difference: 1 or -1 if its interval does not hold zero, else 0."
    difference, half = paired(figures(arm, what), figures(base, what))
    return (difference > half) - (difference < -half)


def test_what_the_text_says_of_few_labels():
    for k in (20, 50, 200):
        assert all(sign(f'{k}: {way}', f'{k}: none') <= 0 for way in ('standard', 'generated', 'both'))
        assert sign(f'{k}: three times the real images', f'{k}: none') == 1
    assert sign('200: both', '200: none') == sign('50: both', '50: none') == -1
    for arm in ('50: guidance 4', '50: least 0.9', '50: labels of the oracle'):
        assert mean(arm, 'right_labels') > 95 and sign(arm, '50: none') <= 0
    assert all(abs(mean(f'{k}: generated', 'copies')) < 15 for k in (20, 50, 200))
    assert mean('50: copies', 'recall') > 55 # of the 500 images themselves
    assert 15 < mean('50: generated', 'recall') < 25 and mean('50: generated only') < mean('50: none') - 8
    assert sign('50: generated only', '50: none') == -1 == sign('50: ratio 10', '50: none')


def test_what_the_text_says_of_leaks():
    assert round(mean('20: generator with all images', 'recall')) == 43 and round(mean('20: generated', 'recall')) == 27
    assert sign('20: generator with all images', '20: none') <= 0
    assert sign('20: all images, labelled by a first classifier', '20: none') == 0
    assert 98 <= mean('20: all images, labelled by a first classifier', 'right_labels') < 99
    gained, _ = paired(figures('20: all labels'), figures('20: none'))
    assert round(gained) == 10
    assert sign('20: generator with all labels', '20: none') == 1
    assert sign('20: all labels', '20: generator with all labels') == 1


def test_what_the_text_says_of_rare_ones():
    assert sign('tail: generated', 'tail: none', 'rare') == 1
    rival, _ = paired(figures('tail: standard, rare ones again', 'rare'), figures('tail: none', 'rare'))
    ours, _ = paired(figures('tail: generated', 'rare'), figures('tail: none', 'rare'))
    assert round(ours) == 10 and round(rival) == 25 and round(paired(figures('tail: standard, rare ones again'), figures('tail: none'))[0]) == 9 and sign('tail: generated', 'tail: rare ones again', 'rare') == 1
    assert sign('tail: both', 'tail: generated') <= 0 and sign('skew: standard', 'skew: none', 'worst') == -1
    assert sign('faces: standard', 'faces: none') == 1 and sign('tail: standard, rare ones again', 'tail: none') == 1
    assert mean('skew: asked for', 'worst') > 2*mean('skew: none', 'worst')
    assert sign('skew: asked for', 'skew: expression alone', 'worst') == 1
    assert sign('skew: real ones instead', 'skew: asked for', 'worst') == 1
    for way in ('rare ones again', 'standard, rare ones again', 'own generator'):
        assert sign(f'skew: {way}', 'skew: none', 'worst') <= 0
    assert sign('faces: generated', 'faces: none') == -1 == sign('faces: generator with all images', 'faces: none')
    assert mean('faces: none') < 50 and mean('faces: generator with all labels') - mean('faces: none') > 30
