"Conditions: labels and tables of attributes, from a file beside a folder to a sample."
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ldm_nb.attributes import (
    Attribute, attribute_row, attribute_table, check_values, drop_conditions,
    named_pairs, read_attributes, scale_values, sizes_of)
from ldm_nb.core import InputError, fingerprint
from ldm_nb.data import ImageData, fashion_mnist, load_data
from ldm_nb.denoiser import AttributeEmbedding, UNet, guided
from ldm_nb.evaluation import print_report, report
from ldm_nb.forward import Schedule, to_x0_eps
from ldm_nb.joint import finetune
from ldm_nb.own_images import export_onnx, write_model_card
from ldm_nb.runs import train_latent_diffusion
from ldm_nb.samplers import teacher_walks
from ldm_nb.training import RECIPES, LatentDiffusion, train_denoiser
from ldm_nb.vae import LatentStats
from shell import shell

NAN = math.nan
FACES = (Attribute('expression', ('angry', 'happy', 'sad')),
         Attribute('glasses', ('no', 'yes')),
         Attribute('age', (), 20., 60.))
FLOW = Schedule('flow')


def clothes(n=60, split='train'):
    "Clothes with a table: top or other, and their mean level; a few are not known."
    data = fashion_mnist(split)[:n]
    top = torch.tensor([0, 2, 3, 4, 6])
    kind = (~torch.isin(data.labels, top)).float()
    values = torch.stack([kind, data.levels.float().mean((1, 2, 3))], 1)
    values[::7, 0] = NAN
    attributes = (Attribute('kind', ('top', 'other')), Attribute('light', (), 0., 255.))
    return replace(data, attributes=attributes, values=values)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "The folder of a run on a table of attributes."
    out = tmp_path_factory.mktemp('run')/'run'
    train_latent_diffusion(clothes(), out, steps=6, size='smoke', previews=1,
                           held_out=clothes(30, 'test'))
    return out


# the table

@pytest.mark.parametrize('made,words', [
    (dict(name='', choices=()), 'expected text'),
    (dict(name='hat', choices=('no',)), 'two or more'),
    (dict(name='hat', choices=('no', 'no')), 'each once'),
    (dict(name='age', low=3., high=3.), 'a lower and a higher'),
    (dict(name='age', low=0., high=math.inf), 'a lower and a higher')])
def test_an_attribute_that_cannot_be(made, words):
    with pytest.raises(InputError, match=words):
        Attribute(**made)


@pytest.mark.parametrize('values,words', [
    ([[0., 0, 30], [3, 0, 30]], 'expression reach from 0 to 3'),
    ([[.5, 0, 30]], 'positions of choices from 0 to 2'),
    ([[0, -1, 30]], 'glasses'), ([[0, 0, 61]], 'numbers from 20 to 60'),
    ([[0, 0, math.inf]], 'age'), ([[0, 0]], 'a column for each of expression')])
def test_values_that_cannot_be(values, words):
    with pytest.raises(InputError, match=words):
        check_values(values, FACES)


def test_what_the_network_is_given():
    scaled = scale_values(torch.tensor([[2, NAN, 20], [NAN, 1, 50]]), FACES)
    expected = torch.tensor([[2, NAN, -1], [NAN, 1, .5]])
    assert torch.equal(scaled.isnan(), expected.isnan())
    torch.testing.assert_close(scaled.nan_to_num(), expected.nan_to_num())


def test_a_number_that_float32_rounds_is_within_its_range():
    tenth = (Attribute('share', (), .1, .7),)
    for value in .1, .7, '0.1':
        row = attribute_row(dict(share=value), tenth)
        assert scale_values(row[None], tenth).abs().item() == pytest.approx(1)


@pytest.mark.parametrize('given,row', [
    ({}, [NAN]*3), (dict(expression='Happy', age='40'), [1, NAN, 40]),
    (dict(glasses='yes', age=20), [NAN, 1, 20]), (dict(AGE=60.), [NAN, NAN, 60]),
    (dict(expression=None, glasses=''), [NAN]*3)])
def test_a_dict_becomes_a_row(given, row):
    np.testing.assert_equal(attribute_row(given, FACES).tolist(), row)


@pytest.mark.parametrize('given,words', [
    (dict(hat='yes'), "'hat' is no attribute .* expression .angry, happy, .*glasses"),
    (dict(expression='bored'), 'choose one of angry, happy, sad'),
    (dict(expression=1), 'choose one of angry'), (dict(glasses=True), 'no, yes'),
    (dict(age=61), 'age is .61.: expected a number from 20 to 60'),
    (dict(age='old'), 'expected a number'), (dict(age=True), 'expected a number'),
    (dict(age='inf'), 'expected a number'), (dict(age=[3]), 'expected a number')])
def test_a_dict_that_cannot_be(given, words):
    with pytest.raises(InputError, match=words):
        attribute_row(given, FACES)


def test_tables_that_are_asked_for():
    assert attribute_table(dict(age=30), FACES, 4)[:, 2].tolist() == [30]*4
    rows = attribute_table([dict(age=30), dict(age=40)], FACES, 2)
    assert rows[:, 2].tolist() == [30, 40]
    table = torch.tensor([[0, NAN, 30.]])
    assert attribute_table(table, FACES, 1)[0, 2] == 30
    for given, n in ((rows, 3), ([dict(age=30)], 2), ('happy', 1), (3, 1), (['a'], 1)):
        with pytest.raises(InputError):
            attribute_table(given, FACES, n)


def test_pairs_as_they_are_typed():
    assert named_pairs(' a=1, b = dark red', 'x') == {'a': '1', 'b': 'dark red'}
    for text in '', 'a', 'a=1,b', '=3':
        with pytest.raises(InputError, match='name=value'):
            named_pairs(text, 'negative')


# files

def write(tmp_path, text, name='table.csv'):
    path = tmp_path/name
    path.write_text(text, encoding='utf-8')
    return path


def test_a_csv(tmp_path):
    "Rows in the order of the pictures; numbers, words, and what is not known."
    file = write(tmp_path, '\ufefffile;mood;age\n./b/2.png;sad;30.5\n1.png;glad;\n'
                           '3.png;;10\n4.png;glad;20\n')
    names = ['a/1.png', 'b/2.png', 'c/3.png']
    attributes, values = read_attributes(file, names)
    assert attributes == (Attribute('mood', ('glad', 'sad')),
                          Attribute('age', (), 10., 30.5))
    np.testing.assert_equal(values.tolist(), [[0, NAN], [1, 30.5], [NAN, 10]])


def test_a_bare_name_is_no_key_if_two_pictures_have_it(tmp_path):
    file = write(tmp_path, 'file,age\n1.png,1\na/2.png,2\nb/2.png,3\n')
    names = ['a/1.png', 'b/1.png', 'a/2.png', 'b/2.png']
    with pytest.warns(UserWarning, match='2 of 4 pictures have no row'):
        _, values = read_attributes(file, names)
    np.testing.assert_equal(values[:, 0].tolist(), [NAN, NAN, 2, 3])


CELEBA = '3\nSmiling  Bald Male\n1.jpg -1  1 1\n2.jpg  1 -1 1\n3.jpg  1 -1 1\n'
KAGGLE = 'image_id,Smiling,Bald,Male\n1.jpg,-1,1,1\n2.jpg,1,-1,1\n3.jpg,1,-1,1\n'


@pytest.mark.parametrize('text', [CELEBA, KAGGLE])
def test_the_form_of_celeba(tmp_path, text):
    file = write(tmp_path, text, 'list_attr_celeba.txt')
    with pytest.warns(UserWarning, match='Male are left out'):
        attributes, values = read_attributes(file, ['2.jpg', '1.jpg'])
    assert attributes == tuple(Attribute(v, ('no', 'yes')) for v in ('Smiling', 'Bald'))
    assert values.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize('text,words', [
    (None, 'cannot be read'), ('', 'holds no table'), ('file,age\n', 'holds no table'),
    ('file\n1.png\n', 'holds no table'), ('file,a\n1.png,1,2\n', 'line 2 has 3 fields'),
    ('file,a,A\n1.png,1,2\n', 'a name of its own'), ('file,\n1.png,1\n', 'of its own'),
    ('file,a\n1.png,1\n1.png,2\n', 'two rows for 1.png'),
    ('file,a\n80.png,1\n90.png,2\n', 'knows none of the pictures.*80.png.*1.png'),
    ('file,a\n1.png,1\n2.png,1\n', 'no column says anything'),
    ('file,a\n' + ''.join(f'{i}.png,w{i}\n' for i in range(60)), '59 different words'),
    ('2\nSmiling Bald\n1.png 1 -1\n2.png 1\n', 'line 4'),
    ('2\nSmiling\n1.png 1\n2.png 0\n', 'line 4: .* -1 or 1')])
def test_bad_tables(tmp_path, text, words):
    file = tmp_path/'nothing.csv' if text is None else write(tmp_path, text)
    with pytest.raises(InputError, match=words):
        with warnings.catch_warnings(action='ignore'): # most pictures have no row
            read_attributes(file, [f'{i}.png' for i in range(1, 60)])


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path/'t.csv').write_bytes(b'\xff\xfe\x00\x81')
    with pytest.raises(InputError, match='UTF-8'):
        read_attributes(tmp_path/'t.csv', ['1.png'])


def pictures(folder, n=40, twins=0):
    "Grey squares and a table that says how light each is; copies have other names."
    levels = [20 + 3*i for i in range(n)]
    lines = ['file,kind,light']
    for i, level in enumerate(levels + levels[:twins]):
        path = folder/'abc'[i % 3]/f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16), level, np.uint8)).save(path)
        kind = 'dark' if level < 100 else 'light'
        lines.append(f'{path.relative_to(folder)},{kind},{level}')
    return write(folder.parent, '\n'.join(lines[:1] + lines[:0:-1]))


@pytest.mark.parametrize('cache', [False, True])
def test_rows_stay_with_their_pictures(tmp_path, cache):
    "Through the shuffle of held-out pictures, and read again from a cache."
    file = pictures(tmp_path/'p')
    how = dict(attributes=file, cache=tmp_path/'c' if cache else None)
    for _ in range(1 + cache):
        train, test = load_data(tmp_path/'p', 16, **how)
        assert len(train) + len(test) == 40
        assert train.attributes == test.attributes and train.classes == tuple('abc')
        for part in train, test:
            level = part.levels[:, 0, 0, 0].float()
            assert part.values[:, 1].equal(level)
            assert part.values[:, 0].equal((level >= 100).float())


def test_twins_that_are_left_out_take_their_rows_with_them(tmp_path):
    file = pictures(tmp_path/'p', twins=6)
    pixels = [np.full((16, 16), v, np.uint8) for v in range(20, 140, 3)]
    for i in range(40, 46): # the same picture in another file
        path = tmp_path/'p'/'abc'[i % 3]/f'{i}.png'
        Image.fromarray(pixels[i - 40]).save(path, compress_level=0)
    with warnings.catch_warnings(action='ignore'):
        train, test = load_data(tmp_path/'p', 16, .4, attributes=file)
    for part in train, test:
        assert part.values[:, 1].equal(part.levels[:, 0, 0, 0].float())


def test_a_table_belongs_to_a_folder(tmp_path):
    with pytest.raises(InputError, match='attributes belong to a folder'):
        load_data('fashion', attributes='x.csv')


# images with a table

def test_image_data_carries_its_table():
    data = clothes(20)
    assert '2 attributes: kind (top, other), light (0 to 255)' in repr(data)
    some = data[torch.tensor([3, 1])]
    assert some.values.equal(data.values[[3, 1]]) and some.attributes == data.attributes
    assert data[4].values.shape == (1, 2) and data[:0].values.shape == (0, 2)
    bare = replace(data, attributes=(), values=None)
    assert bare.fingerprint() != data.fingerprint()
    other = replace(data, values=data.values.flip(0))
    assert other.fingerprint() != data.fingerprint()
    renamed = replace(data.attributes[0], name='sort'), data.attributes[1]
    assert replace(data, attributes=renamed).fingerprint() != data.fingerprint()


def test_the_fingerprint_without_a_table_is_as_before():
    data = fashion_mnist()[:5]
    before = fingerprint(dict(images=data.levels, labels=data.labels))
    assert data.fingerprint() == before


@pytest.mark.parametrize('changes,words', [
    (dict(values=None), 'expected both'), (dict(attributes=()), 'expected both'),
    (dict(attributes=('kind', 'light')), 'expected both'),
    (dict(values=torch.zeros(3, 2)), '3 rows of attributes for 20 images'),
    (dict(values=torch.full((20, 2), 2.)), 'kind reach'),
    (dict(attributes=[Attribute('a'), Attribute('a')]), 'each name once')])
def test_image_data_with_a_wrong_table(changes, words):
    with pytest.raises(InputError, match=words):
        replace(clothes(20), **changes)


# the network

def stir(net):
    "Weights of which none is zero, so that what is said to the network matters."
    for p in net.parameters():
        nn.init.normal_(p, std=.2)


def test_each_attribute_is_left_out_on_its_own():
    net = AttributeEmbedding((3, 2, 0), 8)
    row = torch.tensor([[2., 1, -.5]])
    full = net.code(row)[0]
    assert full.tolist() == [0, 0, 1, 0, 0, 1, 0, -.5, 0]
    places = dict(zip(range(3), (slice(0, 4), slice(4, 7), slice(7, 9))))
    for i, mine in places.items():
        without = row.clone()
        without[0, i] = NAN
        code = net.code(without)[0]
        assert code[mine].tolist() == [0.]*(mine.stop - mine.start - 1) + [1.]
        for j, others in places.items():
            assert j == i or code[others].equal(full[others])
    assert not net(row).isnan().any() and net(row*NAN).isfinite().all()


def test_attributes_interact():
    "Two layers: what two attributes do together is not the sum of what each does."
    torch.manual_seed(0)
    net = AttributeEmbedding((2, 2), 16)
    a, b, c, d = net(torch.tensor([[0., 0], [0, 1], [1, 0], [1, 1]]))
    assert ((a + d) - (b + c)).abs().max() > 1e-3


def test_the_network_refuses_a_wrong_table():
    unet = UNet(4, (16, 32), attributes=(3, 0), emb_dim=32)
    x, t = torch.zeros(2, 4, 4, 4), torch.zeros(2)
    for labels in torch.zeros(2, 3), torch.zeros(2):
        with pytest.raises(InputError, match='expected .b, 2.'):
            unet(x, t, labels)
    with pytest.raises(InputError, match='one of both'):
        UNet(num_classes=3, attributes=(2,))


def test_nothing_said_is_all_left_out():
    torch.manual_seed(0)
    unet = UNet(4, (16, 32), attributes=(3, 0), emb_dim=32)
    stir(unet)
    x, t = torch.randn(2, 4, 4, 4), torch.rand(2)
    assert unet(x, t).equal(unet(x, t, torch.full((2, 2), NAN)))
    assert not unet(x, t).equal(unet(x, t, torch.zeros(2, 2)))


def test_a_config_of_before_still_makes_the_same_network():
    torch.manual_seed(0)
    net = UNet(4, (16, 32), num_classes=3, emb_dim=32)
    old = {k: v for k, v in net.config.items() if k != 'attributes'}
    same = UNet(**old)
    same.load_state_dict(net.state_dict())
    assert same.config == net.config and 'label.weight' in net.state_dict()


# guidance

class Linear:
    "A prediction that is linear in x and in what is given; counts its calls."
    num_classes = 10
    def __init__(self, k=3):
        self.calls, self.rows = 0, 0
        self.weights = torch.tensor([1., 10., 100.])[:k]
    def __call__(self, x, t, labels):
        self.calls += 1
        self.rows += len(x)
        if labels is None:
            said = 0
        elif labels.ndim == 2: # one that is left out counts 7
            said = labels.nan_to_num(7.) @ self.weights
        else:
            said = labels.float()
        return .3*x + said.view(-1, 1) if labels is not None else .3*x


def predicted(denoise, x, t=.5):
    "The prediction that (x0, eps) of the flow came from: eps - x0."
    x0, eps = denoise(x, torch.tensor(t))
    return eps - x0


X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([[1., 2, 3], [0, 1, NAN], [2, 2, 2], [1, NAN, NAN]])


def test_a_strength_for_each_attribute_by_hand():
    model = Linear()
    found = predicted(guided(model, ROWS, FLOW, guidance={0: 3., 2: 1.5}), X)
    full = ROWS.nan_to_num(7)
    said = full @ model.weights
    # p - p without i: the weight of i, times what is given less 7
    expected = said + 2*1*(full[:, 0] - 7) + .5*100*(full[:, 2] - 7)
    torch.testing.assert_close(found, .3*X + expected[:, None], rtol=1e-4, atol=1e-3)
    assert model.calls == 1 and model.rows == 3*len(X)


def test_negative_attributes_by_hand():
    "Of what is negative, the strength goes from there; of the others, from nothing."
    model = Linear()
    away = torch.tensor([[NAN, 0., NAN]]).expand(4, -1)
    found = predicted(guided(model, ROWS, FLOW, guidance={0: 2., 1: 4.},
                             negative=away), X)
    full = ROWS.nan_to_num(7)
    expected = full @ model.weights + 1*(full[:, 0] - 7) + 3*10*full[:, 1]
    torch.testing.assert_close(found, .3*X + expected[:, None], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('negative', [None, [[NAN, 0., NAN]]])
def test_one_strength_goes_away_from_all_left_out_or_the_negative(negative):
    model = Linear()
    away = torch.full((4, 3), NAN) if negative is None else torch.tensor(negative*4)
    given = None if negative is None else away
    found = predicted(guided(model, ROWS, FLOW, guidance=3., negative=given), X)
    p, other = (v.nan_to_num(7) @ model.weights for v in (ROWS, away))
    expected = .3*X + (p + 2*(p - other))[:, None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert model.rows == 2*len(X)


def test_strengths_of_one_cost_nothing_and_outside_the_interval_there_are_none():
    for guidance, t, rows in (({}, .5, 4), ({0: 1., 1: 1.}, .5, 4), ({0: 2.}, .95, 4),
                              ({0: 2., 1: 1.}, .5, 8), (1., .5, 4), (0., .5, 4)):
        model = Linear()
        denoise = guided(model, ROWS, FLOW, guidance=guidance, interval=(.2, .9))
        predicted(denoise, X, t)
        assert model.rows == rows, guidance


def test_an_attribute_that_is_left_out_has_no_strength():
    rows = torch.full((4, 3), NAN)
    found = predicted(guided(Linear(), rows, FLOW, guidance={1: 9.}), X)
    plain = predicted(guided(Linear(), rows, FLOW), X)
    torch.testing.assert_close(found, plain)


def guided_before(model, labels, guidance, negative):
    "The guidance of labels as it was when there were only labels."
    if labels is None and negative is None:
        away = None
    else:
        given = negative if labels is None else labels
        none = torch.full_like(given, model.num_classes)
        labels, away = (none if v is None else v for v in (labels, negative))
    if away is not None and guidance == 0:
        labels, guidance = away, 1.
    def denoise(x, t):
        times = t.expand(len(x))
        if away is None or guidance == 1:
            p = worse = model(x, times, labels)
        else:
            p, worse = model(torch.cat([x, x]), times.repeat(2),
                             torch.cat([labels, away])).chunk(2)
        return to_x0_eps('flow_prediction', p + (guidance - 1)*(p - worse), x, *FLOW(t))
    return denoise


@pytest.mark.parametrize('guidance', [0., 1., 2., 3.5])
@pytest.mark.parametrize('labels,negative', [
    (None, None), ([1, 2, 3], None), ([1, 2, 3], [4, 5, 10]), (None, [4, 5, 6])])
def test_labels_are_guided_as_before_bit_for_bit(guidance, labels, negative):
    torch.manual_seed(0)
    net = UNet(4, (16, 32), num_classes=10, emb_dim=32).requires_grad_(False)
    stir(net)
    x = torch.randn(3, 4, 4, 4)
    labels, negative = (v and torch.tensor(v) for v in (labels, negative))
    now = guided(net, labels, FLOW, guidance=guidance, negative=negative)
    before = guided_before(net, labels, guidance, negative)
    for a, b in zip(now(x, torch.tensor(.5)), before(x, torch.tensor(.5))):
        assert a.equal(b)


# training

def test_labels_are_hidden_as_before():
    labels = torch.arange(1000) % 10
    torch.manual_seed(3)
    kept = torch.rand(1000) >= .3
    torch.manual_seed(3)
    assert drop_conditions(labels, 10, .3).equal(labels.where(kept, 10))


@pytest.mark.parametrize('k', [1, 4])
def test_every_number_of_attributes_is_as_frequent(k):
    "And which of them are left out is a matter of chance; what is NaN stays NaN."
    torch.manual_seed(0)
    n, p = 60_000, .2
    rows = torch.arange(n*k).view(n, k).float()
    found = drop_conditions(rows, 0, p)
    known = ~found.isnan()
    assert found[known].equal(rows[known])
    shares = known.sum(1).bincount(minlength=k + 1)/n
    expected = torch.full((k + 1,), (1 - p)/(k + 1))
    expected[0] += p
    assert (shares - expected).abs().max() < .01
    assert (known.double().mean(0) - (1 - p)/2).abs().max() < .01
    one = known[known.sum(1) == 1].double().mean(0)
    assert (one - 1/k).abs().max() < .02
    assert drop_conditions(torch.full((9, k), NAN), 0, 0.).isnan().all()
    assert drop_conditions(rows, 0, 1.).isnan().all()


def test_a_denoiser_learns_any_part_of_a_row():
    "Two attributes, a channel each: asked for one, the other stays at its mean."
    torch.manual_seed(0)
    rows = torch.stack([(torch.rand(2000) < .5).float(), 2*torch.rand(2000) - 1], 1)
    means = torch.stack([2*rows[:, 0] - 1, rows[:, 1]], 1)
    z = means[:, :, None, None] + .1*torch.randn(2000, 2, 4, 4)
    recipe = replace(RECIPES['smoke'], widths=(16,), batch=128, lr=5e-3, ema_decay=.97)
    stats = LatentStats([0.]*2, [1.]*2, 2000, 'ab', 'cd')
    run = train_denoiser(z, rows, stats, recipe, attributes=(2, 0), num_steps=400)
    net = run['ema'].cpu().eval()
    t, eps = torch.ones(200), torch.randn(200, 2, 4, 4)
    def guess(*row): # of each channel, from noise alone
        with torch.no_grad():
            u = net(eps, t, torch.tensor([row]).expand(200, -1))
        return (eps - u).mean((0, 2, 3))
    for row, wanted in (((1., NAN), (1, 0)), ((0., NAN), (-1, 0)),
                        ((NAN, .8), (0, .8)), ((NAN, -.8), (0, -.8)),
                        ((1., -.8), (1, -.8)), ((NAN, NAN), (0, 0))):
        assert (guess(*row) - torch.tensor(wanted)).abs().max() < .3, row


# the whole

def test_the_run_is_a_model_of_attributes(model):
    ldm = LatentDiffusion.from_pretrained(model)
    assert ldm.attributes == clothes(5).attributes and not ldm.classes
    assert ldm.ema.config['attributes'] == [2, 0] and not ldm.ema.num_classes
    assert 'attributes  2: kind (top, other), light (0 to 255)' in repr(ldm)
    unfinished = LatentDiffusion.from_pretrained(model, unfinished=True)
    assert unfinished.attributes == ldm.attributes
    assert list((model/'previews').glob('denoiser-*.png'))
    seen = json.loads((model/'held_out.json').read_text())
    assert {p['stage'] for p in seen} == {'autoencoder', 'denoiser'}


def stirred(model):
    "The model with weights that answer, as six steps do not teach much."
    ldm = LatentDiffusion.from_pretrained(model)
    torch.manual_seed(0)
    for net in (ldm.ema, ldm.guide):
        for layer in [*net.label.layers[::2], net.out[2]]:
            nn.init.normal_(layer.weight, std=.3)
    return ldm


ASKED = [dict(), dict(labels=dict(kind='top')), dict(labels=dict(light='80')),
         dict(labels=dict(kind='other', light=80), guidance=dict(kind=3, light=2)),
         dict(labels=dict(kind='top'), guidance=3, autoguidance=1),
         dict(labels=dict(kind='top'), negative=dict(light=255)),
         dict(labels=[dict(kind='top'), dict(), dict(light=3)]),
         dict(labels=torch.tensor([[0, NAN], [NAN, 3], [1, 200]]))]


def test_all_ways_to_ask_and_the_saved_model_answers_alike(model, tmp_path):
    ldm = stirred(model)
    ldm.save_pretrained(tmp_path/'m')
    again = LatentDiffusion.from_pretrained(tmp_path/'m')
    found = [ldm.sample(3, steps=3, seed=2, **how) for how in ASKED]
    for how, images in zip(ASKED, found):
        assert images.equal(again.sample(3, steps=3, seed=2, **how)), how
    for i, images in enumerate(found):
        assert not any(images.equal(other) for other in found[:i]), ASKED[i]


def test_dicts_tables_and_batches_agree(model):
    ldm, how = stirred(model), dict(steps=3, seed=2, guidance=dict(light=2))
    rows = [dict(kind='top', light=9), dict(light=100), dict(kind='other', light=200)]
    table = torch.tensor([[0, 9], [NAN, 100], [1, 200]])
    a, b = ldm.sample(3, rows, **how), ldm.sample(3, table, **how)
    assert a.equal(b)
    torch.testing.assert_close(ldm.sample(3, rows, batch_size=1, **how), a, atol=1e-4,
                               rtol=1e-4)
    assert ldm.settings(dict(Light=2))['guidance'] == dict(light=2.)


@pytest.mark.parametrize('how,words', [
    (dict(labels='top'), 'this model has attributes'), (dict(labels=1), 'attributes'),
    (dict(labels=dict(sort='top')), 'it has kind .top, other.; light .0 to 255.'),
    (dict(labels=dict(kind='hat')), 'choose one of top, other'),
    (dict(labels=[dict(kind='top')]), '1 rows of attributes for n = 2'),
    (dict(labels=dict(kind='top'), guidance=dict(light=2)), 'light, which nobody asks'),
    (dict(guidance=dict(kind=2)), 'asked for: nothing'),
    (dict(labels=dict(kind='top'), guidance=dict(sort=2)), 'no attribute'),
    (dict(labels=dict(kind='top'), guidance=dict(kind='a')), 'guidance of kind'),
    (dict(negative=dict(kind='hat')), 'choose one of')])
def test_what_a_model_of_attributes_refuses(model, how, words):
    with pytest.raises(InputError, match=words):
        LatentDiffusion.from_pretrained(model).sample(2, **how)


def test_a_model_without_a_guide_brings_its_guidance():
    "Its own settings may lead, and can be changed: it is no student."
    fashion = LatentDiffusion.from_pretrained('fashion')
    alone = LatentDiffusion(fashion.autoencoder, fashion.stats, fashion.ema, fashion.ema, classes=fashion.classes,
                            sampling=dict(guidance=3., autoguidance=4.))
    assert alone.guidances() == (3., 1.) and alone.settings()['guidance'] == 3. and alone.settings(guidance=1.5)['guidance'] == 1.5
    led, less = (alone.sample(2, 'bag', steps=2, guidance=g) for g in (None, 1.))
    assert torch.equal(led, alone.sample(2, 'bag', steps=2, guidance=3.)) and not torch.equal(led, less)
    assert LatentDiffusion(fashion.autoencoder, fashion.stats, fashion.ema, fashion.ema).guidances() == (2., 1.)


def test_nothing_negative_without_guidance():
    "Guidance 1 would ignore it without a word; left alone, it is 2, which does not."
    ldm = LatentDiffusion.from_pretrained('fashion')
    with pytest.raises(InputError, match='take more, or leave negative out'):
        ldm.sample(2, 'bag', negative='boot', guidance=1)
    plain, away = (ldm.sample(2, 'bag', steps=2, guidance=2., negative=v) for v in (None, 'boot'))
    assert (plain - away).abs().max() > .1
    assert torch.equal(ldm.sample(2, 'bag', steps=2, negative='boot'), away)


@pytest.mark.parametrize('how', [
    dict(labels=dict(kind='top')), dict(labels=[dict(kind='top')]*2),
    dict(negative=dict(kind='top')), dict(guidance=dict(kind=2))])
def test_a_model_of_classes_refuses_attributes(how):
    with pytest.raises(InputError):
        LatentDiffusion.from_pretrained('fashion').sample(2, **how)


def test_a_report_draws_rows_of_the_table(model, monkeypatch, capsys):
    asked = []
    def sample(self, n, labels=None, **how):
        asked.append(labels)
        return torch.rand(n, 1, 28, 28)*2 - 1
    monkeypatch.setattr(LatentDiffusion, 'sample', sample)
    ldm, data, test = LatentDiffusion.from_pretrained(model), clothes(), clothes(30)
    how = dict(n=20, features='pixels', guidance=dict(kind=2, light=3))
    result, _ = report(ldm, data, test, **how)
    report(ldm, data, test, **how)
    assert asked[0].shape == (20, 2) and torch.equal(asked[0], asked[1]) or (
        asked[0].nan_to_num(-1).equal(asked[1].nan_to_num(-1)))
    rows = {tuple(row) for row in data.values.nan_to_num(-1).tolist()}
    assert {tuple(row) for row in asked[0].nan_to_num(-1).tolist()} <= rows
    print_report(result)
    assert 'kind=2,light=3' in capsys.readouterr().out
    bare = replace(data, attributes=(), values=None)
    result, _ = report(ldm, bare, test, n=20, features='pixels')
    assert asked[-1] is None and any('left out' in note for note in result['notes'])


def test_a_run_goes_on_and_others_are_refused(model, tmp_path):
    out = tmp_path/'r'
    how = dict(size='smoke')
    train_latent_diffusion(clothes(), out, steps=3, **how)
    other = clothes()
    other = replace(other, values=other.values.flip(0))
    with pytest.raises(InputError, match='the images are others'):
        train_latent_diffusion(other, out, steps=4, resume=True, **how)
    bare = replace(other, attributes=(), values=None)
    with pytest.raises(InputError, match='attributes kind, light then, none now'):
        train_latent_diffusion(bare, out, steps=4, resume=True, **how)
    ldm, _ = train_latent_diffusion(clothes(), out, steps=4, resume=True, **how)
    assert ldm.card['steps']['denoiser'] == 4
    with pytest.raises(InputError, match='held_out has the attributes none'):
        train_latent_diffusion(clothes(), tmp_path/'s', steps=3, held_out=bare, **how)


def first_net(monkeypatch, data, out, init):
    "What the denoiser of a run begins with."
    import ldm_nb.runs as runs
    taken = {}
    original = runs.train_denoiser
    def keep(*args, **kwargs):
        taken['init'] = kwargs['init']
        return original(*args, **kwargs)
    monkeypatch.setattr(runs, 'train_denoiser', keep)
    train_latent_diffusion(data, out, steps=2, size='smoke', init=init)
    return taken['init'].state_dict()


def test_a_run_starts_from_another_model(model, tmp_path, monkeypatch):
    "With the same attributes from all of it, else from all but what is said to it."
    ldm = LatentDiffusion.from_pretrained(model)
    theirs = ldm.ema.state_dict()
    same = first_net(monkeypatch, clothes(), tmp_path/'a', ldm)
    assert all(v.equal(theirs[k]) for k, v in same.items())
    classes = first_net(monkeypatch, fashion_mnist()[:60], tmp_path/'b', ldm)
    assert classes['label.weight'].shape[0] == 11
    assert classes['time.0.weight'].equal(theirs['time.0.weight'])


def test_what_a_model_of_attributes_cannot_do_yet(model, tmp_path):
    ldm = LatentDiffusion.from_pretrained(model)
    with pytest.raises(InputError, match='cannot yet be exported'):
        export_onnx(ldm, tmp_path/'o')
    with pytest.raises(InputError, match='cannot yet be distilled'):
        teacher_walks(ldm, 2)
    with pytest.raises(InputError, match='cannot yet be fine-tuned'):
        finetune(ldm, clothes(), 'denoiser', num_steps=1)
    card = write_model_card(model, tmp_path/'card').read_text()
    assert 'Its attributes: kind (top, other); light (0 to 255).' in card
    assert "labels={'kind': 'top'}" in card


def test_attributes_must_be_those_of_the_denoiser(model):
    ldm = LatentDiffusion.from_pretrained(model)
    with pytest.raises(InputError, match='they must agree'):
        LatentDiffusion(ldm.autoencoder, ldm.stats, ldm.denoiser, ldm.ema,
                        attributes=FACES)
    assert sizes_of(FACES) == (3, 2, 0)


# the commands

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A folder with a run of `ldm_train --attributes`."
    home = tmp_path_factory.mktemp('shell')
    pictures(home/'p', 60)
    run = shell('ldm_train', '--data', 'p', '--attributes', 'table.csv', '--size',
                'smoke', '--steps', 5, '--pixels', 16, '--out', 'r', cwd=home)
    assert run.returncode == 0, run.stderr
    return home, run


def test_a_table_on_the_command_line(trained):
    home, run = trained
    assert 'trained on 2 attributes: kind (dark, light), light (20 to ' in run.stdout
    source = json.loads((home/'r'/'run.json').read_text())['source']
    assert source['attributes'] == str(home/'table.csv')
    more = shell('ldm_train', '--resume', '--out', home/'r', '--steps', 7, cwd='/')
    assert more.returncode == 0, more.stderr
    ldm = LatentDiffusion.from_pretrained(home/'r')
    assert ldm.card['steps']['denoiser'] == 7 and len(ldm.attributes) == 2


@pytest.mark.parametrize('args', [
    ['r', '--kind', 'dark'], ['--kind', 'dark', 'r', '--light', '100'],
    ['r', '--KIND=Dark', '--guidance', 'kind=3'], ['r', '--guidance', '2'],
    ['r', '--light=50', '--negative', 'kind=dark'], ['r', '--label', 'kind=light'],
    ['r', '--kind', 'dark', '--light', '60', '--guidance', 'kind=3,light=1.5']])
def test_samples_with_attributes(trained, args, tmp_path):
    home, _ = trained
    out = tmp_path/'s.npy'
    run = shell('ldm_sample', *args, '--n', 2, '--steps', 2, '--npy', out,
                '--out', tmp_path/'s.png', cwd=home)
    assert run.returncode == 0, run.stderr
    assert np.load(out).shape == (2, 16, 16)


@pytest.mark.parametrize('args,words', [
    (['r', '--hat', 'yes'], "'hat' is no attribute of this model: it has kind (dark, "),
    (['r', '--kind', 'blue'], 'choose one of dark, light'),
    (['r', '--light', '1000'], 'expected a number from 20 to'),
    (['r', '--kind', 'dark', '--guidance', 'light=2'], 'light, which nobody asks for'),
    (['r', '--kind', 'dark', '--guidance', 'kind=x'], 'expected a number, or attr'),
    (['r', '--guidance', 'much'], 'expected a number, or attribute=number'),
    (['r', '--negative', 'dark'], 'expected name=value'),
    (['r', '--label', 'dark'], 'expected name=value'),
    (['fashion', '--kind', 'dark'], '--kind: there is no such option'),
    (['fashion', '--stpes', '3'], 'has the classes T-shirt')])
def test_wrong_attributes_are_one_line_and_exit_code_2(trained, args, words):
    home, _ = trained
    run = shell('ldm_sample', *args, '--n', 2, '--out', 'no.png', cwd=home)
    lines = run.stderr.strip().splitlines()
    assert run.returncode == 2 and len(lines) == 1 and words in lines[0], run
    assert not (home/'no.png').exists()


@pytest.mark.parametrize('args', [
    ['ldm_sample', 'r', '--kind'], ['ldm_sample', 'r', '--kind', '--light', '3'],
    ['ldm_sample', 'r', 'more'], ['ldm_eval', 'r', '--kind', 'dark'],
    ['ldm_train', '--kind', 'dark'], ['ldm_demo', '--kind', 'dark']])
def test_other_commands_and_half_options_are_refused_as_before(trained, args):
    run = shell(*args, cwd=trained[0])
    assert run.returncode == 2 and 'usage' in run.stderr, run


def test_an_evaluation_draws_by_the_table(trained):
    home, _ = trained
    run = shell('ldm_eval', 'r', '--data', 'p', '--attributes', 'table.csv', '--n', 20,
                '--features', 'pixels', cwd=home)
    assert run.returncode == 0 and 'all of them left out' not in run.stdout, run
    run = shell('ldm_eval', 'r', '--data', 'p', '--n', 20, '--features', 'pixels',
                cwd=home)
    assert 'all of them left out' in run.stdout, run


def test_bad_tables_on_the_command_line(trained):
    home, _ = trained
    for given, words in (('nothing.csv', 'cannot be read'), ('p', 'cannot be read')):
        run = shell('ldm_train', '--data', 'p', '--attributes', given, '--steps', 2,
                    '--size', 'smoke', '--out', 'x', cwd=home)
        lines = run.stderr.strip().splitlines()
        assert run.returncode == 2 and words in lines[-1], run
        assert not (home/'x'/'model').exists()
