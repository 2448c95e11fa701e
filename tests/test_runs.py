"Runs as people have them: begun, killed, resumed with other wishes, sampled too early, asked for the wrong thing."
import copy
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import ldm_nb.loop as loop
import ldm_nb.runs as r
import ldm_nb.training as t
from ldm_nb.baselines import GAN, PixelDiffusion, train_gan, train_pixels
from ldm_nb.core import InputError, as_floats, fingerprint, read_json, write_json
from ldm_nb.data import ImageData, fashion_mnist, pad_images
from ldm_nb.denoiser import UNet
from ldm_nb.joint import finetune
from ldm_nb.loop import Checkpoints, differences, fit
from ldm_nb.runs import memory_needed, train_latent_diffusion
from ldm_nb.training import RECIPES, LatentDiffusion
from ldm_nb.vae import VAE, batch_for, encode_all, latent_stats

SMALL = fashion_mnist()[:60]
SMOKE = RECIPES['smoke']


def train(out, data=SMALL, steps=4, **kwargs):
    return train_latent_diffusion(data, out, steps=steps, size='smoke', **kwargs)


def stop_in(monkeypatch, stage, step, error=RuntimeError):
    "From now on `fit` raises `error` in `stage` when `step` steps are made; saves all."
    original = loop.fit
    def callback(k, *_):
        if k == step:
            raise error
    def stopping(*args, **kwargs):
        watch = callback if kwargs['stage'] == stage else None
        return original(*args, **kwargs | dict(save_every=0, callback=watch))
    monkeypatch.setattr(t, 'fit', stopping)


def stopped(out, monkeypatch, stage, step, **kwargs):
    "The folder of a run that was stopped; its last checkpoint is one step before."
    with monkeypatch.context() as patch:
        stop_in(patch, stage, step)
        with pytest.raises(RuntimeError):
            train(out, **kwargs)
    return out


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def shipped():
    return LatentDiffusion.from_pretrained('fashion')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp('runs')/'a')[0]


# classes as often as in the data

def unequal():
    labels = torch.tensor([0]*30 + [2]*10) # and none of class 1
    return ImageData(SMALL.levels[:40], labels, ('cat', 'eel', 'dog'))


def test_samples_have_the_classes_of_the_data(tmp_path, shipped):
    ldm, _ = train(tmp_path/'r', unequal(), steps=1)
    loaded = LatentDiffusion.from_pretrained(tmp_path/'r')
    for model in (ldm, loaded):
        assert model.card['class_counts'] == [30, 0, 10]
        assert model._labels(8, None).bincount().tolist() == [6, 0, 2]
    in_turn = torch.arange(12) % 10
    assert shipped._labels(12, None).equal(in_turn) # older: its card counts no classes
    tuned, _ = finetune(shipped, SMALL, 'denoiser', batch_size=8, num_steps=1)
    assert tuned.card['class_counts'] == SMALL.counts


def test_the_rivals_draw_the_classes_of_the_data():
    unet = UNet(1, (8, 16), num_classes=3, emb_dim=32)
    for counts, expected in (([30, 0, 10], [6, 0, 2]), (None, [3, 3, 2])):
        gan, pixels = GAN(num_classes=3, counts=counts), PixelDiffusion(unet, counts=counts)
        seen = []
        gan.generator.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
        gan.sample(8)
        hook = unet.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
        pixels.sample(8, steps=1, guidance=1.)
        hook.remove()
        assert [y.bincount(minlength=3).tolist() for y in seen] == [expected]*2
    assert train_gan(SMALL, steps=1).counts == SMALL.counts
    assert train_pixels(SMALL, steps=1).counts == SMALL.counts


# which images a model was trained on

def test_a_model_knows_its_images(trained, shipped, tmp_path):
    test = fashion_mnist('test')[:50]
    trained.save_pretrained(tmp_path/'m', ema_only=True)
    for model in (trained, LatentDiffusion.from_pretrained(tmp_path/'m')):
        assert model.trained_on(SMALL).all() and not model.trained_on(test).any()
        mixed = ImageData(torch.cat([test.levels[:2], SMALL.levels[7:9]]))
        assert model.trained_on(mixed).tolist() == [False, False, True, True]
    assert shipped.trained_on(SMALL).all() and not shipped.trained_on(test).any()
    older = copy.copy(shipped)
    older.seen = None                                           # as saved before
    assert older.trained_on(SMALL) is None
    tuned, _ = finetune(trained, test, 'denoiser', batch_size=8, num_steps=1)
    assert tuned.trained_on(SMALL).all() and tuned.trained_on(test).all()
    assert finetune(older, test, 'denoiser', batch_size=8, num_steps=1)[0].seen is None
    data = bytearray((tmp_path/'m'/'seen.safetensors').read_bytes())
    data[-1] ^= 1
    (tmp_path/'m'/'seen.safetensors').write_bytes(data)
    with pytest.raises(InputError, match='seen.safetensors is truncated or was changed'):
        LatentDiffusion.from_pretrained(tmp_path/'m')


# labels

def with_classes(ldm, names):
    return LatentDiffusion(ldm.autoencoder, ldm.stats, ldm.denoiser, ldm.ema, classes=names)


PETS = ('cat', 'dog', *'efghijkl') # ten names
FOLDERS = tuple(map(str, range(1, 11))) # 1 to 10
ZEROS = tuple(f'{k:02}' for k in range(10)) # 00 to 09
LABELS = [ # the classes, what is given for n = 2, the positions or what the error says
    (PETS, 'dog', [1, 1]), (PETS, ['dog', 'cat'], [1, 0]), (PETS, '3', [3, 3]),
    (PETS, 3, [3, 3]), (PETS, np.int64(3), [3, 3]), (PETS, (1, 'l'), [1, 9]),
    (PETS, torch.tensor([4, 5]), [4, 5]), (PETS, torch.tensor(4), [4, 4]),
    (PETS, np.array([4, 5], np.uint8), [4, 5]), (PETS, range(2), [0, 1]),
    (FOLDERS, '2', [1, 1]), (FOLDERS, ['10', '1'], [9, 0]),
    (FOLDERS, torch.tensor([2, 0]), [2, 0]), (tuple('0123456789'), 2, [2, 2]),
    (FOLDERS, 2, "as text, such as '1', or a tensor of positions"),
    (FOLDERS, [2, 3], 'or a tensor of positions'), (FOLDERS, '0', 'or a tensor of'),
    (ZEROS, '7', 'the classes are numbers, but not their positions'),
    (PETS, 'bird', r"label is 'bird': expected a class \(cat, dog, e"),
    (PETS, 10, 'from 0 to 9'), (PETS, -1, 'from 0 to 9'), (PETS, '10', 'from 0 to 9'),
    (PETS, 1., 'label is 1.0'), (PETS, True, 'label is True'), (PETS, [0, None], 'None'),
    (PETS, [0, 1, 2], r'\(3,\) labels for n = 2'), (PETS, [], r'\(0,\) labels'),
    (PETS, torch.tensor([float('nan')]*2), 'labels are float32 nan, nan'),
    (PETS, torch.tensor([True, False]), 'labels are bool'),
    (PETS, torch.tensor([0, 10]), 'whole numbers from 0 to 9')]


@pytest.mark.parametrize('names,given,expected', LABELS)
def test_labels_have_one_meaning(shipped, names, given, expected):
    ldm = with_classes(shipped, names)
    if isinstance(expected, list):
        found = ldm._labels(2, given)
        assert found.dtype == torch.int64 and found.tolist() == expected
    else:
        with pytest.raises(InputError, match=expected):
            ldm.sample(2, given)


def test_two_hundred_classes_are_not_all_listed():
    torch.manual_seed(0)
    names = [f'kind {k}' for k in range(200)]
    many = SimpleNamespace(classes=names, ema=SimpleNamespace(num_classes=200))
    with pytest.raises(InputError) as e:
        LatentDiffusion._label(many, 'none')
    assert len(str(e.value)) < 250 and '(200 in all)' in str(e.value)


# a run without a step

DIES = '''
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_runs import *
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
t.vae_loss = die
t.kept_for_backward = lambda *_: 0
train({out!r}, seed=3)
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='needs SIGKILL')
def test_a_run_that_was_killed_before_its_first_step_blocks_nothing(tmp_path):
    code = DIES.format(tests=str(Path(__file__).parent), out=str(tmp_path/'r'))
    killed = subprocess.run([sys.executable, '-c', code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_json(tmp_path/'r'/'run.json')['seed'] == 3
    ldm, _ = train(tmp_path/'r', seed=4, source=dict(data='x'))
    assert read_json(tmp_path/'r'/'run.json')['source'] == dict(data='x')
    assert ldm.card['seed'] == read_json(tmp_path/'r'/'run.json')['seed'] == 4
    with pytest.raises(InputError, match='already holds a run'):
        train(tmp_path/'r', seed=4)


def test_a_run_that_failed_in_its_first_step_blocks_nothing(tmp_path, monkeypatch):
    def fail(*_, **__): raise MemoryError('no room')
    out = tmp_path/'r'
    with monkeypatch.context() as patch:
        patch.setattr(r, 'train_autoencoder', fail)
        with pytest.raises(MemoryError):
            train(out)
    (out/'checkpoints'/'autoencoder').mkdir(parents=True)
    (out/'checkpoints'/'autoencoder'/'.step-00000001.safetensors.7.part').touch()
    (out/'notes.txt').write_text('mine')
    train(out, SMALL[:50], steps=2, seed=1, resume=True) # with resume, too
    assert (out/'notes.txt').read_text() == 'mine'


def test_what_is_not_ours_is_never_touched(tmp_path):
    (tmp_path/'theirs').mkdir()
    write_json(tmp_path/'theirs'/'run.json', dict(run='of another program'))
    (tmp_path/'file').write_text('mine')
    before = contents(tmp_path)
    for name in ('theirs', 'file'):
        with pytest.raises(InputError, match='is not empty: choose another folder'):
            train(tmp_path/name)
    assert contents(tmp_path) == before


NOTHING_WRITTEN = [ # what is given, what the error says
    (dict(data='photos'), "data is 'photos': expected ImageData; load_data makes it"),
    (dict(data=Path('photos')), 'load_data makes it'),
    (dict(data=SMALL[:0]), 'holds 0 images'),
    (dict(data=ImageData(SMALL.levels, SMALL.labels)), 'names for all of their labels'),
    (dict(steps=2.5), 'steps is 2.5: expected a whole number'),
    (dict(steps=0), 'the budget is 0: it must be more than nothing'),
    (dict(steps=True), 'steps is True'),
    (dict(steps=None, minutes=float('nan')), 'minutes is nan: expected a finite'),
    (dict(steps=None, minutes=float('inf')), 'minutes is inf: expected a finite'),
    (dict(steps=None, minutes='ten'), "minutes is 'ten'"),
    (dict(steps=None, minutes=0.), 'it must be more than nothing'),
    (dict(seed=.5), 'seed is 0.5'),
    (dict(recipe='lesson'), "recipe is 'lesson': expected a Recipe"),
    (dict(recipe=replace(SMOKE, batch=0)), 'batch is 0'),
    (dict(recipe=replace(SMOKE, accumulate=2.)), 'accumulate is 2.0')]


@pytest.mark.parametrize('given,message', NOTHING_WRITTEN)
def test_what_can_be_checked_is_checked_before_anything_is_written(tmp_path, given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        train(tmp_path/'r', **given)
    assert not (tmp_path/'r').exists()


def test_a_model_samples_as_its_recipe_says(tmp_path):
    recipe = replace(SMOKE, sample_steps=5, autoguidance=2.)
    ldm, _ = train(tmp_path/'r', recipe=recipe, steps=20)
    again = LatentDiffusion.from_pretrained(tmp_path/'r'/'model')
    for model in (ldm, again):
        assert (model.settings()['steps'], model.settings()['autoguidance']) == (5, 2.)
        assert model.settings(guidance=1.5)['autoguidance'] == 1
    assert again.sample(2).equal(ldm.sample(2, steps=5, autoguidance=2.))
    assert train(tmp_path/'usual', steps=20)[0].sampling == {}


def test_a_wrong_device_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('LDM_DEVICE', 'gpu')
    with pytest.raises(InputError, match="the device 'gpu' cannot be used"):
        train(tmp_path/'r')
    assert not (tmp_path/'r').exists()


# resume

def fewer(data): return data[:50]
def other_labels(data): return replace(data, labels=data.labels.flip(0))


CHANGED = [ # what is asked for when the run is resumed, the words for it
    (dict(seed=1), 'seed 0 then, 1 now'),
    (dict(data=fewer(SMALL)), r'the images are others \(count 60 then, 50 now\)'),
    (dict(data=other_labels(SMALL)), r'the images are others \(as many of the same size\)'),
    (dict(recipe=replace(SMOKE, widths=(64, 96))), 'widths 16, 32 then, 64, 96 now'),
    (dict(recipe=replace(SMOKE, kl_weight=.1)), 'run: kl_weight 0.003 then, 0.1 now. Re'),
    (dict(recipe=replace(SMOKE, schedule='cosine')), 'schedule flow then, cosine now'),
    (dict(recipe=replace(SMOKE, f=2, batch=8)), 'f 4 then, 2 now; batch 64 then, 8 now')]


@pytest.mark.parametrize('asked,words', CHANGED)
def test_resume_says_in_words_what_differs(tmp_path, monkeypatch, asked, words):
    out = stopped(tmp_path/'r', monkeypatch, 'denoiser', 3)
    before = contents(out)
    with pytest.raises(InputError, match=words) as e:
        train(out, resume=True, **asked)
    assert not re.search(r'[0-9a-f]{16}|\{', str(e.value)) and len(str(e.value)) < 300
    assert contents(out) == before


def test_differences_in_words():
    then = dict(a=1000, b=[1, 2], c=None, d='0123456789abcdef', same=1, apart=1, gone=1)
    now = dict(a=1001, b=[1, 3], c=True, d='0123456789abcdee', same=1, apart=2, new=1)
    assert differences(then, now, ['apart']) == [
        'a 1,000 then, 1,001 now', 'b 1, 2 then, 1, 3 now', 'c none then, True now',
        'the d not the same']


GOES_ON = [dict(steps=6), dict(recipe=replace(SMOKE, lr=1e-4, ae_lr=1e-4)),
           dict(data=replace(SMALL, name='renamed')), dict(data=SMALL, steps=7)]


@pytest.mark.parametrize('asked', GOES_ON)
@pytest.mark.parametrize('finished', [False, True])
def test_resume_with_other_wishes_leaves_stage_one(tmp_path, monkeypatch, asked, finished):
    "Stage two has begun: its latents, and so stage one, stay as they are."
    out = tmp_path/'r'
    if finished:
        train(out)
    else:
        stopped(out, monkeypatch, 'denoiser', 3)
    before, _ = Checkpoints(out/'checkpoints'/'autoencoder').load()
    ldm, losses = train(out, resume=True, **asked)
    expected = dict(autoencoder=4, denoiser=asked.get('steps', 4))
    assert ldm.card['steps'] == {k: len(v) for k, v in losses.items()} == expected
    after = ldm.autoencoder.state_dict()
    assert all(v.equal(before[f'model.{k}']) for k, v in after.items())
    assert ldm.card['data'] == asked.get('data', SMALL).name
    loaded = LatentDiffusion.from_pretrained(out)
    assert loaded.sample(2, steps=2).equal(ldm.sample(2, steps=2))
    again, _ = train(out, resume=True, **asked) # and nothing is trained once more
    assert fingerprint(again.ema) == fingerprint(ldm.ema)


def test_the_new_rate_is_used_for_what_is_left(tmp_path, monkeypatch):
    out = stopped(tmp_path/'r', monkeypatch, 'denoiser', 3)
    train(out, resume=True, recipe=replace(SMOKE, lr=2e-5))
    then = Checkpoints(out/'checkpoints'/'denoiser').load()[0]['history.lr'].tolist()
    rates = [rate*loop.cosine_lr(k/4, k) for k, rate in enumerate((2e-3, 2e-3, 2e-5, 2e-5))]
    assert then == pytest.approx(rates)


def test_before_stage_two_both_stages_take_the_new_budget(tmp_path, monkeypatch):
    out = stopped(tmp_path/'r', monkeypatch, 'autoencoder', 3)
    ldm, _ = train(out, steps=6, resume=True)
    assert ldm.card['steps'] == dict(autoencoder=6, denoiser=6)


def test_steps_become_minutes_and_minutes_steps(tmp_path, monkeypatch):
    out = stopped(tmp_path/'r', monkeypatch, 'denoiser', 3, steps=5)
    ldm, _ = train(out, steps=None, minutes=.02, resume=True)
    assert ldm.card['steps']['autoencoder'] == 5 and ldm.card['steps']['denoiser'] > 5
    more = ldm.card['steps']['denoiser'] + 2
    ldm, _ = train(out, steps=more, resume=True)
    assert ldm.card['steps'] == dict(autoencoder=5, denoiser=more)


def test_fewer_steps_than_are_made_end_at_once(tmp_path):
    first, _ = train(tmp_path/'r', steps=4)
    with pytest.warns(UserWarning, match='denoiser: 4 steps are made, no fewer than'):
        again, _ = train(tmp_path/'r', steps=2, resume=True)
    assert again.card['steps'] == dict(autoencoder=4, denoiser=4)
    assert fingerprint(again.ema) == fingerprint(first.ema)


@pytest.mark.parametrize('what, then', [('ldm_nb', '0.0.9'), ('precision', 'bf16')])
def test_another_version_or_precision_is_a_warning(tmp_path, monkeypatch, what, then):
    out = stopped(tmp_path/'r', monkeypatch, 'denoiser', 3)
    write_json(out/'run.json', read_json(out/'run.json') | {what: then})
    with pytest.warns(UserWarning, match=f'was begun with {what} {then}, and goes on with'):
        train(out, resume=True)


def test_an_older_run_says_nothing_of_its_precision(tmp_path, monkeypatch, recwarn):
    out = stopped(tmp_path/'r', monkeypatch, 'denoiser', 3)
    older = read_json(out/'run.json')
    del older['precision']
    write_json(out/'run.json', older)
    train(out, resume=True)
    assert not [w for w in recwarn if 'was begun with' in str(w.message)]


def test_the_old_model_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    out = tmp_path/'r'
    old, _ = train(out)
    before = contents(out/'model')
    stopped(out, monkeypatch, 'denoiser', 6, steps=8, resume=True)
    assert contents(out/'model') == before
    assert LatentDiffusion.from_pretrained(out).card['steps']['denoiser'] == 4
    train(out, steps=8, resume=True)
    assert LatentDiffusion.from_pretrained(out).card['steps']['denoiser'] == 8


def test_a_denoiser_is_not_resumed_on_moved_latents(tmp_path, trained):
    z, stats = torch.randn(8, 4, 8, 8), trained.stats
    def denoiser(stats, num_steps):
        return t.train_denoiser(z, None, stats, SMOKE, checkpoint=tmp_path,
                                num_steps=num_steps)
    denoiser(stats, 1)
    with pytest.raises(InputError, match='another run .the latents not the same.'):
        denoiser(replace(stats, mean=[0.]*4), 2)
    assert len(denoiser(stats, 2)['losses']) == 2


def small_fit(checkpoint, **kwargs):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)), torch.ones(16, 2)
    def loss(model, i): return model(x[i]).square().mean()
    return fit(net, loss, 16, 8, checkpoint=checkpoint, **kwargs)


def test_fit_goes_on_with_another_budget_or_rate(tmp_path):
    made = [small_fit(tmp_path, lr=lr, **budget)['history']['lr'] for lr, budget in
            ((1e-2, dict(num_steps=3)), (1e-2, dict(num_steps=5)),
             (1e-3, dict(num_steps=6)), (1e-3, dict(seconds=.2)))]
    assert [len(lr) for lr in made[:3]] == [3, 5, 6] and len(made[3]) > 6
    rates = [1e-2*loop.cosine_lr(k/3, k) for k in range(3)]
    rates += [1e-2*loop.cosine_lr(k/5, k) for k in (3, 4)] + [1e-3*loop.cosine_lr(5/6, 5)]
    assert made[2] == pytest.approx(rates)


FIT_CHANGED = [(dict(ema_decay=.9), 'ema_decay none then, 0.9 now'),
               (dict(clip=2.), 'clip 1.0 then, 2.0 now'),
               (dict(betas=(.5, .9)), 'betas 0.9, 0.99 then, 0.5, 0.9 now'),
               (dict(lr={'1': 1e-2}), 'learns none then, 1 now'),
               (dict(same=dict(data='f'*16)), r'\(the data not the same\)')]


@pytest.mark.parametrize('asked,words', FIT_CHANGED)
def test_fit_says_what_else_differs(tmp_path, asked, words):
    first = dict(num_steps=2, same=dict(data='0'*16))
    small_fit(tmp_path, **first)
    with pytest.raises(InputError, match=f'belongs to another run .*{words}'):
        small_fit(tmp_path, **first | asked)


@pytest.mark.parametrize('given', [dict(num_steps=2.5), dict(num_steps=0),
                                   dict(seconds=float('nan')), dict(num_steps=True),
                                   dict(num_steps=2, accumulate=0)])
def test_fit_refuses_budgets_that_are_none(given):
    with pytest.raises(InputError):
        small_fit(None, **given)


# a run that is not finished

def test_an_unfinished_run_says_where_it_stands(tmp_path, monkeypatch):
    out = stopped(tmp_path/'r', monkeypatch, 'autoencoder', 3, steps=1000)
    for folder in (out, out/'model'):
        with pytest.raises(InputError, match='is a run that is not finished') as e:
            LatentDiffusion.from_pretrained(folder)
        said = str(e.value)
        assert '(autoencoder, step 2 of 1,000)' in said and '--unfinished' in said
        assert f'ldm_train --resume --out {out}' in said
    with pytest.raises(InputError, match='stage two has not begun .autoencoder, step 2 of'):
        LatentDiffusion.from_pretrained(out, unfinished=True)


def test_an_unfinished_run_of_minutes_says_where_it_stands(tmp_path, monkeypatch):
    out = stopped(tmp_path/'r', monkeypatch, 'denoiser', 3, steps=None, minutes=.05)
    with pytest.raises(InputError, match='denoiser, step 2 in a budget of 0.04 minutes'):
        LatentDiffusion.from_pretrained(out)


def test_a_model_of_the_newest_checkpoint(tmp_path, monkeypatch):
    out = stopped(tmp_path/'r', monkeypatch, 'denoiser', 4, steps=6)
    early = LatentDiffusion.from_pretrained(out, unfinished=True)
    tensors, _ = Checkpoints(out/'checkpoints'/'denoiser').load()
    for part, net in (('model', early.denoiser), ('ema', early.ema), ('guide', early.guide)):
        assert all(v.equal(tensors[f'{part}.{k}']) for k, v in net.state_dict().items())
    assert early.card['unfinished'] and early.card['steps'] == dict(autoencoder=6, denoiser=3)
    assert early.classes == SMALL.classes and early.trained_on(SMALL).all()
    assert early.sample(2, steps=2).shape == (2, 1, 28, 28)
    ldm, _ = train(out, steps=6, resume=True) # which it did not disturb
    assert early.stats == ldm.stats and early.card['class_counts'] == SMALL.counts
    late = LatentDiffusion.from_pretrained(out, unfinished=True)
    assert late.sample(3, steps=2).equal(ldm.sample(3, steps=2))


def test_an_unfinished_run_is_only_looked_at(tmp_path, monkeypatch):
    "Its newest checkpoint is damaged, and another one is being written."
    out = stopped(tmp_path/'r', monkeypatch, 'denoiser', 4, steps=6)
    box = Checkpoints(out/'checkpoints'/'denoiser')
    newest = box.files()[-1]
    newest.write_bytes(newest.read_bytes()[:-9])
    (box.folder/'.step-00000004.safetensors.7.part').touch()
    before = contents(out)
    with pytest.warns(UserWarning, match='the checkpoint before it is used'):
        early = LatentDiffusion.from_pretrained(out, unfinished=True)
    assert early.card['steps']['denoiser'] == 2 and contents(out) == before


BROKEN = ['', '[]', 'null', '{}', '{"images": 1, "recipe": 1, "seed": 1}', '\xff', 'folder']


@pytest.mark.parametrize('content', BROKEN)
def test_a_broken_run_json_is_no_run(tmp_path, content):
    if content == 'folder':
        (tmp_path/'run.json').mkdir()
    else:
        (tmp_path/'run.json').write_text(content, encoding='latin-1')
    for unfinished, words in ((False, 'is not a model'), (True, 'is not the folder of a run')):
        with pytest.raises(InputError, match=words):
            LatentDiffusion.from_pretrained(tmp_path, unfinished=unfinished)
    with pytest.raises(InputError, match='is not empty: choose another folder'):
        train(tmp_path)


def test_a_changed_run_json_is_noticed(tmp_path, monkeypatch):
    out = stopped(tmp_path/'r', monkeypatch, 'denoiser', 3)
    plan = read_json(out/'run.json')
    wide = plan['recipe'] | dict(widths=[8, 16])
    for changed in (dict(recipe=wide), dict(recipe={}), dict(shape=None), dict(classes=3)):
        write_json(out/'run.json', plan | changed)
        with pytest.raises(InputError, match='run.json does not fit the checkpoints'):
            LatentDiffusion.from_pretrained(out, unfinished=True)


def test_unfinished_needs_a_run(tmp_path):
    for name in ('fashion', tmp_path):
        with pytest.raises(InputError, match='is not the folder of a run'):
            LatentDiffusion.from_pretrained(name, unfinished=True)


# wrong types

WRONG = [dict(n=2.5), dict(n=0), dict(n=True), dict(steps=2.5), dict(steps=0),
         dict(batch_size=0), dict(batch_size=1.), dict(eta=float('nan')), dict(eta=1.5),
         dict(eta=-.1), dict(eta='1'), dict(guidance=float('nan')), dict(guidance='high'),
         dict(guidance=True), dict(autoguidance=float('inf')), dict(autoguidance=[3.])]


@pytest.mark.parametrize('given', WRONG)
def test_sample_names_what_is_wrong(shipped, given):
    name, value = *given, *given.values()
    with pytest.raises(InputError, match=re.escape(f'{name} is {value!r}')):
        shipped.sample(**dict(n=2, steps=1) | given)


@pytest.mark.parametrize('given', [dict(n=10**20), dict(n=10**400), dict(steps=10**20)])
def test_more_than_a_machine_can_hold(shipped, given):
    words = '10,000 at most' if 'steps' in given else 'MB are available: draw fewer'
    with pytest.raises(InputError, match=words):
        shipped.sample(**given)


@pytest.mark.parametrize('shape', [(2, 3, 28, 28), (1, 28, 28), (28, 28)])
def test_images_of_another_kind_are_refused(shipped, shape):
    for method in (shipped.encode, shipped.reconstruct):
        with pytest.raises(InputError, match=r'expected \(n, 1, h, w\)'):
            method(torch.zeros(shape))


# the log

WATCHES = '''
import sys, time
from functools import partial
sys.path.insert(0, {tests!r})
from test_runs import *
loop.progress_bar = partial(loop.progress_bar, every={every})
small_fit(None, num_steps=12, callback=lambda *_: time.sleep(.13))
'''


@pytest.mark.parametrize('every,most', [(30., 0), (.6, 3)])
def test_a_log_gets_few_lines(every, most):
    code = WATCHES.format(tests=str(Path(__file__).parent), every=every)
    env = {k: v for k, v in os.environ.items() if k != 'TQDM_DISABLE'}
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    lines = p.stderr.splitlines()
    assert p.returncode == 0 and '\r' not in p.stderr and len(lines) <= most, p.stderr
    assert all(re.match(r'training: +\d+%.*loss=', line) for line in lines)
    assert bool(lines) == bool(most)


# levels until a batch is made

def test_levels_and_floats_train_the_same_networks():
    levels = pad_images(SMALL.levels)
    nets = [t.train_autoencoder(x, SMOKE, num_steps=2)['model']
            for x in (levels, as_floats(levels))]
    assert fingerprint(nets[0]) == fingerprint(nets[1])
    z = [encode_all(nets[0], x) for x in (levels, as_floats(levels))]
    assert z[0].equal(z[1])
    stats = latent_stats(nets[0], levels)
    by_channel = z[0].double().transpose(0, 1).flatten(1)
    assert stats.mean == by_channel.mean(1).tolist()
    assert stats.std == pytest.approx(by_channel.std(1).tolist(), rel=1e-12)


def test_no_float_copy_of_the_whole_set(tmp_path, monkeypatch, shipped):
    def refuse(self): raise AssertionError('all images as floats')
    most = []
    def watched(images):
        most.append(len(images))
        return as_floats(images)
    monkeypatch.setattr(ImageData, 'images', property(refuse))
    import ldm_nb.baselines as baselines
    import ldm_nb.joint as joint
    import ldm_nb.vae as vae
    for module in (t, r, vae, joint, baselines):
        monkeypatch.setattr(module, 'as_floats', watched)
    data = fashion_mnist()[:300]
    ldm, _ = train(tmp_path/'r', data, steps=1)
    for method in ('denoiser', 'naive', 'normalised'):
        finetune(ldm, data, method, batch_size=8, num_steps=1)
    train_gan(data, steps=1)
    train_pixels(data, steps=1)
    assert ldm.reconstruct(data.levels).shape == (300, 1, 28, 28)
    assert ldm.reconstruct(data.levels).dtype == torch.float32
    assert max(most) == 250 # of encode_all; a batch is smaller


# memory

def test_large_images_are_encoded_few_at_a_time(monkeypatch):
    sides = (28, 64, 128, 256, 2048)
    assert [batch_for(side, side) for side in sides] == [250, 250, 62, 15, 1]
    seen = []
    vae = VAE(width=8, encoder_depth=0, decoder_depth=0)
    vae.encoder.register_forward_hook(lambda _, given, out: seen.append(len(given[0])))
    encode_all(vae, torch.zeros(20, 1, 256, 256, dtype=torch.uint8))
    assert seen == [15, 5]


def photos(n=100, side=30): return ImageData(torch.zeros(n, 3, side, side, dtype=torch.uint8))


def test_the_estimate_counts_what_is_known():
    needed = memory_needed(photos(), SMOKE)
    assert needed['images'] == 100*3*32*32 # padded to a multiple of eight
    assert needed['latents'] == 5*100*4*8*8*4 # as floats, five times while they are written
    assert memory_needed(photos(side=32), SMOKE)['images'] == 0
    larger = [memory_needed(photos(side=64), SMOKE), memory_needed(photos(), RECIPES['full'])]
    assert all(more['networks'] > needed['networks'] for more in larger)
    parts = memory_needed(photos(), replace(SMOKE, accumulate=4))
    assert parts['networks'] < needed['networks']


def test_too_little_memory_is_said_before_training(tmp_path, monkeypatch):
    import psutil
    needed = sum(memory_needed(photos(), SMOKE).values())
    for free in (needed - 1, 0):
        monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=free))
        words = f'training needs about {needed/1e9:.3g} GB more of memory .*available: take'
        with pytest.raises(InputError, match=words):
            train(tmp_path/'r', photos())
        assert not (tmp_path/'r').exists()
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=needed))
    assert train(tmp_path/'r', photos(), steps=1)[0].card['images'] == 100
