"Drawn faces, their judge, edits and inpainting: what a learner of chapter 12 would not want to read."
import math

import pytest
import torch

from ldm_nb.attributes import attribute_row
from ldm_nb.core import PACKAGE, InputError, as_floats, generator, read_json
from ldm_nb.data import load_data
from ldm_nb.faces import (AttributeJudge, agreement, asked_denoiser, draw_from, edit, inpaint,
                          judge_errors, judge_loss, latent_mask, load_judge, matches, save_judge, train_judge)
from ldm_nb.training import LatentDiffusion
from ldm_nb.world import (EXPRESSIONS, FACE_ATTRIBUTES, FACE_NAMES, FACTORS, HELD_OUT, change, clip, faces,
                          is_held_out, render, sample_params)


@pytest.fixture(scope='module')
def ldm():
    return LatentDiffusion.from_pretrained('faces')


@pytest.fixture(scope='module')
def judge():
    return load_judge()


@pytest.mark.parametrize('size', [16, 32, 64, 128])
def test_equal_values_give_equal_bytes_whatever_stands_beside_them(size):
    values = sample_params(37, seed=3, which='all')
    whole = render(values, size)
    assert whole.dtype == torch.uint8 and whole.shape == (37, 3, size, size)
    for part in (1, 5, 16):
        assert torch.equal(torch.cat([render(v, size) for v in values.split(part)]), whole)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    assert torch.equal(render(values[order], size), whole[order])


def test_threads_change_no_byte():
    values, threads = sample_params(24, seed=4), torch.get_num_threads()
    many = render(values)
    torch.set_num_threads(1)
    try:
        assert torch.equal(render(values), many)
    finally:
        torch.set_num_threads(threads)


def test_each_attribute_shows_in_the_picture():
    plain = change(sample_params(60, seed=5)[:1], expression='neutral', hairstyle='short', hat='none', glasses='no',
                   beard='none', age=.5, light=.5, hair='black')
    before = render(plain).float()
    for a in FACE_ATTRIBUTES[1:]:
        values = range(len(a.choices)) if a.choices else (a.low, a.high)
        pictures = [render(change(plain, **{a.name: a.choices[v] if a.choices else v})).float() for v in values]
        assert max((p - before).abs().mean() for p in pictures) > .05, a.name
        assert all((p - q).abs().max() > 10 for p, q in zip(pictures, pictures[1:])), a.name


def test_smaller_pictures_are_the_same_picture():
    "Anti-aliasing: a picture of 128 pixels, averaged to 64, is almost the one drawn at 64."
    values = sample_params(20, seed=6)
    small = torch.nn.functional.avg_pool2d(render(values, 128).float(), 2)
    assert (small - render(values, 64).float()).abs().mean() < 2.5


def test_parameters_have_the_stated_distribution():
    values = dict(zip(FACE_NAMES, sample_params(40_000, seed=7, which='all').unbind(1)))
    for name in ('expression', 'hairstyle', 'clothes', 'background'):
        counts = values[name].long().bincount().double()/40_000
        assert (counts - 1/len(counts)).abs().max() < .01, name
    assert abs((values['glasses'] == 1).double().mean() - .35) < .01
    assert abs((values['hat'] == 0).double().mean() - .5) < .01
    able = ~torch.isin(values['hairstyle'], torch.tensor([3., 5.]))
    assert abs((values['beard'][able] > 0).double().mean() - .5) < .015
    assert (values['beard'][~able] == 0).all()
    assert abs((values['hair'] == 4).double().mean() - .7/3) < .01 # the mean of .7 age²
    light, dark = values['skin'] < .2, values['skin'] > .8
    blond = values['hair'] == 2
    assert blond[light].double().mean() > 2*blond[dark].double().mean()
    for i, name in enumerate(EXPRESSIONS):
        for factor, (low, high) in zip(FACTORS, EXPRESSIONS[name]):
            of = values[factor][values['expression'] == i]
            assert low <= of.min() and of.max() <= high, (name, factor)


def test_train_and_held_out_share_no_pair():
    for pair in HELD_OUT:
        wanted = attribute_row(pair, FACE_ATTRIBUTES)
        def having(which):
            values = sample_params(5000, seed=8, which=which)
            return ((values == wanted) | wanted.isnan()).all(1).sum()
        assert having('train') == 0 and having('held out') > 1000 and having('all') > 50
    assert is_held_out(sample_params(500, which='held out')).all()


def test_data_by_name():
    data = faces(30, 32, seed=9)
    assert data.counts == data.values[:, 0].long().bincount(minlength=5).tolist()
    assert torch.equal(data[3:5].values, data.values[3:5])
    with pytest.raises(InputError, match='square'):
        load_data('faces', (64, 32))
    with pytest.raises(InputError, match='have colours'):
        load_data('faces', 32, channels=1)


@pytest.mark.parametrize('values, words', [
    ('happy', 'expected'), (torch.zeros(3), 'expected'), (torch.zeros(2, 21), '22'),
    (torch.full((1, 22), 9.), 'expression'), (torch.full((1, 22), math.nan), 'not known'),
    (torch.full((1, 22), .5), 'positions')])
def test_rows_that_are_no_faces(values, words):
    with pytest.raises((InputError, ValueError, TypeError), match=words):
        render(values)


def test_no_face_is_no_trouble():
    assert render(torch.zeros(0, 22), 32).shape == (0, 3, 32, 32)


def test_clip_bends_nothing():
    path = sample_params(3, seed=10)
    values = clip(path, 9)
    assert torch.allclose(values[[0, 4, 8]], path, atol=1e-6)
    inside = (values[:, :8, None] == path[:, :8].T[None]).any(2)
    assert inside.all() # choices are those of one of the faces
    with pytest.raises(InputError, match='frames'):
        clip(path, 1)


def test_the_judge_is_as_good_as_its_card(judge):
    card = read_json(PACKAGE/'weights'/'faces-judge'/'card.json')
    assert card['errors']['expression'] <= .01 # the must: 99 % on renders that it never saw
    new = faces(1000, 64, seed=4321, which='all')
    errors = judge_errors(judge.read(new.levels), new.values, FACE_ATTRIBUTES)
    for name, error in card['errors'].items():
        n = 1000
        slack = 4*math.sqrt(max(error*(1 - error), .001)/n) if name in FACE_NAMES[:8] else .25*error
        assert errors[name] <= error + slack, name


def test_a_judge_learns_only_from_what_is_known():
    "Gradients of a missing attribute are zero; a table of nothing but NaN teaches nothing."
    judge = AttributeJudge(FACE_ATTRIBUTES[:2], 1, 16, (8, 8), 8)
    outputs = judge(torch.randn(4, 1, 16, 16))
    table = torch.tensor([[0., math.nan]]*4)
    grads = torch.autograd.grad(judge_loss(outputs, table), outputs[1], allow_unused=True)[0]
    assert grads is None or not grads.any()
    assert judge_loss(outputs, torch.full((4, 2), math.nan)) == 0


def test_a_judge_of_your_own_is_saved_and_read(tmp_path):
    data = faces(64, 64, seed=11)
    run = train_judge(data, 3)
    save_judge(run['model'], tmp_path/'judge', tested_on=100, steps=3)
    again = load_judge(tmp_path/'judge')
    assert again.attributes == FACE_ATTRIBUTES
    assert (again.read(data.levels) == run['model'].eval().read(data.levels)).double().mean() > .3
    assert read_json(tmp_path/'judge'/'card.json')['steps'] == 3


def test_agreement_counts_only_what_was_asked():
    asked = attribute_row(dict(expression='sad', age=.5), FACE_ATTRIBUTES).expand(4, -1)
    read = torch.zeros(4, 22)
    read[:, 0] = torch.tensor([2., 2., 1., 2.])
    read[:, 18] = torch.tensor([.5, .69, .71, .31])
    assert agreement(asked, read, FACE_ATTRIBUTES) == dict(expression=.75, age=.75)
    assert matches(asked, read, FACE_ATTRIBUTES)[:, 18].tolist() == [True, True, False, True]
    moved = judge_errors(read, torch.zeros(4, 22), FACE_ATTRIBUTES)
    assert moved['expression'] == 1 and abs(moved['age'] - .5525) < 1e-6 and moved['hair'] == 0


def test_samples_of_the_shipped_model_are_as_asked(ldm, judge):
    asked = torch.stack([attribute_row(dict(expression=name), FACE_ATTRIBUTES) for name in EXPRESSIONS]*8)
    assert agreement(asked, judge.read(ldm.sample(40, asked, seed=5)), FACE_ATTRIBUTES)['expression'] >= .8


def test_a_sample_from_given_noise_is_that_of_sample(ldm):
    rows = sample_params(2, seed=12)
    noise = torch.randn(2, *ldm._latent_shape, generator=generator(0, 'sample'))
    wanted = ldm.sample(2, rows, guidance=1., autoguidance=1., steps=5, interval=(0, 1))
    assert torch.allclose(draw_from(ldm, noise, rows, 5).cpu(), wanted.cpu(), atol=2e-3)


def test_edits_of_little_strength_change_little_and_by_inversion_nothing(ldm):
    values = sample_params(3, seed=13)
    x = render(values)
    there = ldm.decode(ldm.encode(x))
    def moved(**how):
        return (edit(ldm, x, values, guidance=1., **how) - there).abs().mean().item()
    little, more = moved(strength=.05), moved(strength=.8)
    assert little < .03 and more > 1.5*little
    assert moved(strength=1., before=values, steps=20) < .5*moved(strength=1., steps=20)
    for strength in (0, 1.5, math.nan, 'much'):
        with pytest.raises(InputError, match='strength'):
            edit(ldm, x, values, strength)


def test_inpainting_leaves_the_latents_and_pixels_outside_alone(ldm, monkeypatch):
    values, mask, decoded = sample_params(2, seed=14), torch.zeros(1, 1, 64, 64), []
    mask[..., 20:40, 10:50] = 1
    decode, images = ldm.decode, render(values)
    monkeypatch.setattr(ldm, 'decode', lambda z: decoded.append(z) or decode(z))
    new = inpaint(ldm, images, mask, values, steps=4)
    z, outside = ldm.encode(images), latent_mask(mask, 4) == 0
    assert torch.allclose(decoded[0]*outside, z*outside, atol=1e-5)
    assert ((decoded[0] - z)*~outside).abs().max() > .1
    kept = torch.ones(1, 1, 64, 64)
    kept[..., 20:40, 8:52] = 0
    assert torch.equal(new*kept, as_floats(images)*kept)


def test_guidance_by_name(ldm):
    rows, x = sample_params(2, seed=15), torch.randn(2, *ldm._latent_shape)
    t = torch.tensor(.5)
    plain, same, led = (asked_denoiser(ldm, rows, g)(x, t)[0] for g in (1., {'age': 1.}, {'age': 3.}))
    assert torch.equal(plain, same) and not torch.allclose(plain, led)
    with pytest.raises(InputError, match='no attribute'):
        asked_denoiser(ldm, rows, {'mood': 2.})


def test_a_mask_touches_every_latent_of_its_pixels():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3, 4] = 1
    assert latent_mask(mask, 4).tolist() == [[[[0, 1], [0, 0]]]]


def test_the_denoiser_refuses_what_is_no_row(ldm):
    with pytest.raises(InputError, match='expected'):
        asked_denoiser(ldm, torch.full((1, 22), 99.))
    with pytest.raises(InputError, match='expected'):
        asked_denoiser(ldm, torch.zeros(1, 3))


def test_the_stored_measurement_is_of_the_shipped_model(ldm):
    found = read_json(PACKAGE/'results'/'faces.json')
    assert found['card'] == {k: ldm.card[k] for k in found['card']}
    assert found['settings'] == {k: list(v) if isinstance(v, tuple) else v for k, v in ldm.settings().items()}


def test_the_stored_shares_are_what_they_are_called():
    found = read_json(PACKAGE/'results'/'faces.json')
    table = list(found['confusion']['table'].values())
    assert all(sum(row) == 500 for row in table)
    assert found['confusion']['right'] == sum(row[i] for i, row in enumerate(table))/2500
    for name, rows in found['choices'].items():
        a = FACE_ATTRIBUTES[FACE_NAMES.index(name)]
        assert list(rows) == list(a.choices) and all(0 <= row['right'] <= 1 for row in rows.values())
    assert set(found['numbers']) == {a.name for a in FACE_ATTRIBUTES if not a.choices}
