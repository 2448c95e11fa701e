"Chapter 11: pretrained autoencoders against diffusers, exported models against ours, cards against the Hub's rules."
import builtins
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import huggingface_hub
from ldm_nb import own_images
from ldm_nb.core import InputError, fingerprint, generator
from ldm_nb.data import ImageData
from ldm_nb.denoiser import UNet
from ldm_nb.own_images import *
from ldm_nb.runs import train_latent_diffusion
from ldm_nb.training import RECIPES, LatentDiffusion, train_denoiser
from ldm_nb.vae import VAE, LatentStats, encode_all, latent_stats

# ---- pretrained autoencoders


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
    "Small ones of diffusers with random weights, in memory and as folders."
    diffusers, root = pytest.importorskip('diffusers'), tmp_path_factory.mktemp('theirs')
    torch.manual_seed(0)
    def kl(n, **more):
        return diffusers.AutoencoderKL(block_out_channels=(8,)*n, down_block_types=['DownEncoderBlock2D']*n,
                                       up_block_types=['UpDecoderBlock2D']*n, norm_num_groups=4, **more)
    def tiny(n, channels=4):
        return diffusers.AutoencoderTiny(encoder_block_out_channels=[8]*n, decoder_block_out_channels=[8]*n,
                                         num_encoder_blocks=[1]*n, num_decoder_blocks=[1]*n, latent_channels=channels)
    nets = {'kl, f = 2': kl(2), 'kl, f = 8': kl(4), 'kl, 16 channels, no quant': kl(3, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=.1, scaling_factor=.36),
            'tiny, f = 4': tiny(3), 'tiny, f = 8, 16 channels': tiny(4, 16)}
    for name, net in nets.items():
        net.eval().save_pretrained(root/name)
    nets['kl, f = 2'].save_pretrained(root/'pipeline'/'vae')
    nets['kl, f = 2'].save_pretrained(root/'pickled', safe_serialization=False)
    diffusers.UNet2DModel(block_out_channels=(32,), down_block_types=['DownBlock2D'], up_block_types=['UpBlock2D'], norm_num_groups=4).save_pretrained(root/'unet')
    (root/'empty').mkdir()
    return root, nets


FACES = {'kl, f = 2': (2, 4), 'kl, f = 8': (8, 4), 'kl, 16 channels, no quant': (4, 16), 'tiny, f = 4': (4, 4), 'tiny, f = 8, 16 channels': (8, 16)}


@pytest.mark.parametrize('name', FACES)
def test_latents_and_images_are_those_of_diffusers(theirs, name):
    root, nets = theirs
    ae, net, x = pretrained_autoencoder(root/name), nets[name], torch.rand(2, 3, 32, 48, generator=generator('x'))*2 - 1
    assert (ae.f, ae.latent_channels, ae.image_channels, ae.config['origin']) == (*FACES[name], 3, name)
    assert not ae.training and not any(p.requires_grad for p in ae.parameters())
    with torch.no_grad():
        made = net.encode(x)
        mean, logvar = (made.latent_dist.mean, made.latent_dist.logvar) if hasattr(made, 'latent_dist') else (made.latents, None)
        assert ae.encode(x).shape == (2, ae.latent_channels, 32//ae.f, 48//ae.f)
        torch.testing.assert_close(ae.encode(x), mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(ae.decode(mean), net.decode(mean).sample, atol=1e-5, rtol=0)
        torch.testing.assert_close(ae.moments(x)[1], torch.full_like(mean, -20) if logvar is None else logvar, atol=1e-4, rtol=0)
    assert fingerprint(ae) == fingerprint(pretrained_autoencoder(root/name)) and ae(x).shape == x.shape


@pytest.mark.parametrize('name,words', [('pickled', 'safetensors'), ('unet', 'expected one of AutoencoderKL'), ('empty', 'config.json'), ('nowhere', 'cannot be loaded'), ('owner/nothing', 'Hub id')])
def test_what_is_no_autoencoder_is_refused(theirs, monkeypatch, name, words):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(InputError, match=words): pretrained_autoencoder(name if '/' in name else theirs[0]/name)


def test_the_autoencoder_of_a_whole_pipeline(theirs):
    wanted = fingerprint(pretrained_autoencoder(theirs[0]/'kl, f = 2'))
    assert fingerprint(pretrained_autoencoder(theirs[0]/'pipeline')) == wanted == fingerprint(pretrained_autoencoder(theirs[0]/'pipeline', 'vae'))


@pytest.mark.parametrize('shape,words', [((2, 1, 32, 32), 'channels=3'), ((2, 3, 30, 32), 'f = 8'), ((3, 32, 32), 'takes')])
def test_images_that_it_cannot_take(theirs, shape, words):
    ae = pretrained_autoencoder(theirs[0]/'kl, f = 8')
    with pytest.raises(InputError, match=words): ae.encode(torch.zeros(shape))


def on(ae, side, n=12, steps=2): # a trained whole
    images = torch.randint(0, 256, (n, 3, side, side), generator=generator('images'), dtype=torch.uint8)
    z = encode_all(ae, images)
    stats = latent_stats(ae, images, z)
    latents, recipe = stats.normalize(z), RECIPES['smoke']
    two = train_denoiser(latents, torch.arange(n) % 3, stats, recipe, 3, num_steps=steps)
    return images, latents, LatentDiffusion(ae, stats, two['model'], two['ema'], image_size=(side, side), classes=['a', 'b', 'c'])


@pytest.mark.parametrize('name,side', [('kl, f = 8', 256), ('tiny, f = 8, 16 channels', 256), ('kl, 16 channels, no quant', 32)])
def test_a_whole_on_it_is_saved_and_loaded_bit_for_bit(theirs, tmp_path, name, side):
    n = 3 if side == 256 else 12
    images, latents, ldm = on(pretrained_autoencoder(theirs[0]/name), side, n)
    assert latents.shape[1:] == ldm._latent_shape
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(latents.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(latents.shape[1]), atol=1e-4, rtol=0)
    again = latent_stats(ldm.autoencoder, images)
    assert (again.encoder, again.data, again.mean) == (ldm.stats.encoder, ldm.stats.data, pytest.approx(ldm.stats.mean, abs=1e-5))
    samples = ldm.sample(2, 'b', steps=2)
    assert samples.shape == (2, 3, side, side)
    ldm.save_pretrained(tmp_path/'m')
    again = LatentDiffusion.from_pretrained(tmp_path/'m')
    assert again.sample(2, 'b', steps=2).equal(samples) and again.reconstruct(images[:2]).equal(ldm.reconstruct(images[:2]))
    assert again.autoencoder.config == ldm.autoencoder.config and fingerprint(again.autoencoder) == ldm.stats.encoder
    assert {p.suffix for p in (tmp_path/'m').iterdir()} == {'.json', '.safetensors'}
    again.save_pretrained(tmp_path/'n')
    for p in (tmp_path/'m').iterdir(): assert p.read_bytes() == (tmp_path/'n'/p.name).read_bytes(), p.name
    other = pretrained_autoencoder(theirs[0]/'kl, f = 2')
    with pytest.raises(InputError, match='another autoencoder'): LatentDiffusion(other, ldm.stats, ldm.denoiser, ldm.ema)


def test_without_diffusers(theirs, tmp_path, monkeypatch):
    *_, ldm = on(pretrained_autoencoder(theirs[0]/'tiny, f = 4'), 32)
    ldm.save_pretrained(tmp_path/'m')
    real = builtins.__import__
    def without(name, *args, **kwargs):
        if name.split('.')[0] == 'diffusers': raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', without)
    for draw in (lambda: pretrained_autoencoder(theirs[0]/'kl, f = 2'), lambda: LatentDiffusion.from_pretrained(tmp_path/'m')):
        with pytest.raises(InputError, match=r"pip install 'ldm_nb\[sd\]'"): draw()
    assert LatentDiffusion.from_pretrained('fashion').sample(1, steps=1).shape == (1, 1, 28, 28)


@pytest.mark.parametrize('name', ['kl, f = 8', 'tiny, f = 4', 'ours'])
def test_a_run_on_an_autoencoder_that_is_there(theirs, tmp_path, name):
    "All of the time goes to stage two; the autoencoder stays as it was, and the run goes on."
    ae = VAE(width=16, image_channels=3) if name == 'ours' else pretrained_autoencoder(theirs[0]/name)
    before, levels = fingerprint(ae), torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=generator('run'))
    data, given = ImageData(levels, torch.arange(12) % 3, 'abc'), dict(size='smoke', init=ae)
    ldm, losses = train_latent_diffusion(data, tmp_path/'r', steps=2, **given)
    assert list(losses) == ['denoiser'] and fingerprint(ldm.autoencoder) == before
    assert ldm.stats.mean == pytest.approx(latent_stats(ae, levels).mean, abs=1e-5) and LatentDiffusion.from_pretrained(tmp_path/'r').sample(2).shape == (2, 3, 32, 32)
    assert len(train_latent_diffusion(data, tmp_path/'r', steps=3, resume=True, **given)[1]['denoiser']) == 3


# ---- ONNX


def small(classes=3, guide=True, schedule='flow', prediction_type='flow_prediction', side=28, channels=1, card=None):
    "A model whose random networks do something."
    torch.manual_seed(0)
    vae = VAE(width=16, encoder_depth=1, decoder_depth=1, image_channels=channels)
    stats = LatentStats([.3, -.2, .1, 0.], [1., .8, 1.2, .9], 10, fingerprint(vae), 'f'*16)
    def net():
        unet = UNet(widths=(16,), emb_dim=32, num_classes=classes)
        for p in unet.parameters(): torch.nn.init.normal_(p, std=.08) if p.ndim > 1 else None
        unet.trained_on = stats.fingerprint
        return unet.requires_grad_(False)
    ema = net()
    return LatentDiffusion(vae.requires_grad_(False), stats, ema, ema, schedule, prediction_type, (side, side), [f'c{i}' for i in range(classes)],
                           card, net() if guide else None)


KINDS = { # what the model is, how it samples, which strengths are inputs of the graph
    'as it is': ({}, {}, ('autoguidance',)),
    'labels': ({}, dict(guidance=3.), ('guidance',)),
    'labels ignored': ({}, dict(guidance=0.), ('guidance',)),
    'both at all times, rescaled': ({}, dict(guidance=2., autoguidance=1.5, rescale=.7, interval=(0., 1.), steps=3), ('guidance', 'autoguidance')),
    'no guide': (dict(guide=False), {}, ('guidance',)),
    'no classes': (dict(classes=0), {}, ('autoguidance',)),
    'a chain of noise': (dict(schedule='cosine', prediction_type='epsilon'), dict(guidance=2., steps=5), ('guidance',)),
    'EDM, data': (dict(schedule='edm', prediction_type='sample'), dict(spacing='karras'), ('autoguidance',)),
    'ddim, colour, odd size': (dict(channels=3, side=27), dict(sampler='ddim', steps=4), ('autoguidance',)),
}


@pytest.mark.parametrize('kind', KINDS)
def test_exported_models_draw_the_same(tmp_path, kind):
    pytest.importorskip('onnxruntime'), pytest.importorskip('onnx')
    made, how, dials = KINDS[kind]
    ldm, n = small(**made), 5
    export_onnx(ldm, tmp_path/'o', **how)
    labels = None if made.get('classes') == 0 else [0, 1, 2, 1, 0]
    noise = torch.randn(n, *ldm._latent_shape, generator=generator(4, 'sample')).numpy()
    ours, theirs = ldm.sample(n, labels, seed=4, **how), sample_onnx(tmp_path/'o', labels=labels, noise=noise)
    assert theirs.dtype == np.float32 and ours.std() > .05
    np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-3)
    assert tuple(json.loads((tmp_path/'o'/'model.json').read_text())['dials']) == dials
    assert {p.name for p in (tmp_path/'o').iterdir()} == {'denoiser.onnx', 'decoder.onnx', 'model.json', 'sample.py'} and len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    pytest.importorskip('onnxruntime'), pytest.importorskip('onnx')
    root = tmp_path_factory.mktemp('exported')
    ldm = small(card=dict(class_counts=[8, 1, 1]))
    for half in (False, True): export_onnx(ldm, root/('half' if half else 'whole'), half, guidance=2., autoguidance=1.5)
    return root, ldm


def test_strengths_and_classes_can_be_changed_after_the_export(exported):
    root, ldm = exported
    noise = torch.randn(4, *ldm._latent_shape, generator=generator(0, 'sample')).numpy()
    for given in (dict(guidance=4., autoguidance=1.), dict(guidance=1., autoguidance=3.), dict(guidance=3., autoguidance=1.5, negative='c2')):
        ours = ldm.sample(4, 'c1', **given)
        np.testing.assert_allclose(sample_onnx(root/'whole', labels='c1', noise=noise, **given), ours.numpy(), atol=1e-3)


def test_half_is_half_the_size_and_nearly_the_same(exported):
    root, ldm = exported
    for name in ('denoiser.onnx', 'decoder.onnx'):
        whole, half = ((root/k/name).stat().st_size for k in ('whole', 'half'))
        assert .45 < half/whole < .85, name # of networks this small, much is names
    a, b = (sample_onnx(root/k, 6, labels='c0') for k in ('whole', 'half'))
    assert 0 < np.abs(a - b).max() < .05


def test_seeds_batches_and_shares(exported, tmp_path):
    root, _ = exported
    a, b, c = (sample_onnx(root/'whole', 7, 'c0', seed=seed) for seed in (1, 1, 2))
    assert (a == b).all() and not (a == c).all() and a.shape == (7, 1, 28, 28)
    about = json.loads((root/'whole'/'model.json').read_text())
    assert about['class_shares'] == [.8, .1, .1] and about['latents'] == [4, 7, 7]
    (tmp_path/'o').mkdir()
    for p in (root/'whole').iterdir(): (tmp_path/'o'/p.name).write_bytes(p.read_bytes())
    (tmp_path/'o'/'model.json').write_text(json.dumps(about | dict(batch=3)))
    np.testing.assert_allclose(sample_onnx(tmp_path/'o', 7, 'c0', seed=1), a, atol=1e-5)


def test_the_folder_needs_no_torch_and_none_of_us(exported, tmp_path):
    root, _ = exported
    code = ("import runpy, sys; sys.argv = ['sample.py', '3', 'c2']; runpy.run_path(sys.argv.pop(3), run_name='__main__');"
            "assert not {'torch', 'ldm_nb', 'diffusers'} & set(sys.modules)")
    code = code.replace("'c2']", f"'c2', {str(root/'whole'/'sample.py')!r}]")
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    from PIL import Image
    picture = np.array(Image.open(tmp_path/'samples.png'))
    levels = np.rint((sample_onnx(root/'whole', 3, 'c2') + 1)*127.5).astype('uint8')
    assert (picture == np.concatenate(levels[:, 0], 1)).all()


def test_consistency_takes_the_same_draws(tmp_path, monkeypatch):
    "The shipped fast model, both denoisers; torch's draws in the place of numpy's."
    pytest.importorskip('onnxruntime'), pytest.importorskip('onnx')
    ldm = LatentDiffusion.from_pretrained('fashion-fast')
    export_onnx(ldm, tmp_path/'o')
    class Draws:
        def __init__(self, seed): self.made = [generator(seed, 'sample'), *[generator(seed, 'fresh', 0)]*9]
        def standard_normal(self, shape): return torch.randn(shape, generator=self.made.pop(0)).numpy()
    monkeypatch.setattr(np.random, 'default_rng', Draws)
    np.testing.assert_allclose(sample_onnx(tmp_path/'o', 4, 'boot'), ldm.sample(4, 'boot').numpy(), atol=1e-3)
    assert (tmp_path/'o'/'late.onnx').is_file()


def test_a_pretrained_decoder_is_exported(theirs, tmp_path):
    pytest.importorskip('onnxruntime'), pytest.importorskip('onnx')
    for i, name in enumerate(('kl, f = 2', 'tiny, f = 4')):
        *_, ldm = on(pretrained_autoencoder(theirs[0]/name), 32)
        export_onnx(ldm, tmp_path/f'{i}', steps=2)
        noise = torch.randn(3, *ldm._latent_shape, generator=generator(0, 'sample')).numpy()
        np.testing.assert_allclose(sample_onnx(tmp_path/f'{i}', labels='a', noise=noise), ldm.sample(3, 'a', steps=2).numpy(), atol=1e-3)


@pytest.mark.parametrize('given,words', [(dict(labels='hat'), 'expected of c0'), (dict(labels=7), 'expected of c0'), (dict(labels=-1), 'expected of c0')])
def test_unknown_classes(exported, given, words):
    with pytest.raises(ValueError, match=words): sample_onnx(exported[0]/'whole', 2, **given)


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime'), pytest.importorskip('onnx')
    ldm = small()
    for words, how in {'dpm, euler, ddim': dict(sampler='heun'), 'eta 0': dict(eta=.5), 'finite number': dict(guidance=float('nan')), 'must be 1': dict(steps=0), '10,000': dict(steps=10**6)}.items():
        with pytest.raises(InputError, match=words): export_onnx(ldm, tmp_path/'o', **how)
    monkeypatch.setattr(own_images, 'write_json', lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): export_onnx(ldm, tmp_path/'o')
    assert not list(tmp_path.iterdir())                                # nothing partial is left
    (tmp_path/'there').mkdir()
    with pytest.raises(InputError, match='exists'): export_onnx(ldm, tmp_path/'there')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(InputError, match=r"ldm_nb\[export\]"): export_onnx(ldm, tmp_path/'o')


def test_a_strength_that_is_not_in_the_graph(tmp_path):
    pytest.importorskip('onnxruntime'), pytest.importorskip('onnx')
    export_onnx(small(), tmp_path/'o', guidance=1., steps=1)
    for given in (dict(guidance=2.), dict(autoguidance=2.), dict(negative='c1')):
        with pytest.raises(ValueError, match='not in the graph'): sample_onnx(tmp_path/'o', 2, **given)


# ---- the card


FIGURES = dict(n=500, features='effnet', reference='flowers test, 300 images', floor_n=150, floor_of='flowers train', notes=['few images'],
               metrics=dict(frechet_distance=dict(value=420.5, error=10., floor=33., floor_error=1.), kid=dict(value=1.25, error=.1, floor=.04),
                            memorisation=dict(value=.01, error=.001, floor=0.), class_accuracy=dict(value=.5, error=None, floor=None)))


def front_matter(path):
    import yaml
    _, top, rest = path.read_text(encoding='utf-8').split('---\n', 2)
    return yaml.safe_load(top), rest


@pytest.mark.parametrize('data,datasets', [('hub:owner/flowers train', ['owner/flowers']), ('flowers train', None)])
def test_a_card_says_what_it_is(tmp_path, data, datasets):
    card = dict(data=data, images=300, steps=dict(autoencoder=1200, denoiser=3400), class_counts=[1, 2, 3], seed=0)
    small(card=card).save_pretrained(tmp_path/'flowers'/'model')
    (tmp_path/'flowers'/'report.json').write_text(json.dumps(FIGURES))
    for given in tmp_path/'flowers', tmp_path/'flowers'/'model':        # a run or its model: the report is found
        path = write_model_card(given)
        top, text = front_matter(path)
        assert path == tmp_path/'flowers'/'model'/'README.md' and (path.parent/'samples.png').is_file()
        assert (top['library_name'], top['license'], top['pipeline_tag']) == ('ldm_nb', 'other', 'unconditional-image-generation')
        assert top.get('datasets') == datasets and 'latent-diffusion' in top['tags']
        metrics = {m['type']: m['value'] for r in top['model-index'][0]['results'] for m in r['metrics']}
        assert metrics == {k: v['value'] for k, v in FIGURES['metrics'].items()}
        for words in ('500 samples against flowers test, 300 images', 'not FID', '| 420.5 | 20 | 33 |', '150 of flowers train', '- few images',
                      "from_pretrained('flowers')", "labels='c0'", 'autoencoder 1,200, denoiser 3,400', '(1, 28, 28)', 'c0, c1, c2'):
            assert words in text, words
    assert LatentDiffusion.from_pretrained(tmp_path/'flowers').sample(1, steps=1).shape == (1, 1, 28, 28)   # the card is in nobody's way
    assert str(tmp_path) not in path.read_text(encoding='utf-8')


def test_a_card_of_somebody_elses_autoencoder_and_without_a_report(theirs, tmp_path):
    *_, ldm = on(pretrained_autoencoder(theirs[0]/'tiny, f = 4'), 32)
    ldm.save_pretrained(tmp_path/'m')
    top, text = front_matter(write_model_card(tmp_path/'m', license='cc-by-4.0'))
    assert 'tiny, f = 4 (AutoencoderTiny)' in text and 'license of its own' in text
    assert top['license'] == 'cc-by-4.0' and 'model-index' not in top and 'Nothing was measured' in text


@pytest.mark.parametrize('given,words', [(dict(), 'name one for its card'), (dict(out='c', license='My Own!'), 'expected a name'),
                                         (dict(out='c', report=dict(a=1)), 'holds no figures'), (dict(out='c', report='nothing.json'), 'nothing.json')])
def test_cards_that_cannot_be_written(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words): write_model_card('fashion', **given)
    assert not list(tmp_path.iterdir())


def test_push_brings_model_and_card(tmp_path, monkeypatch):
    calls = []
    class FakeApi:
        def create_repo(self, repo_id, private, exist_ok): calls.append((repo_id, private, exist_ok))
        def upload_folder(self, repo_id, folder_path):
            calls.append((repo_id, sorted(p.name for p in folder_path.iterdir()), (folder_path/'README.md').read_text(encoding='utf-8')))
            return 'there'
    monkeypatch.setattr(huggingface_hub, 'HfApi', FakeApi)
    assert small(guide=False).push_to_hub('owner/flowers', True, FIGURES, 'mit') == 'there'
    (repo, private, exist_ok), (again, files, card) = calls
    assert (repo, private, exist_ok, again) == ('owner/flowers', True, True, 'owner/flowers')
    assert {'README.md', 'samples.png', 'config.json', 'card.json', 'autoencoder.safetensors', 'ema.safetensors'} == set(files)
    assert "from_pretrained('owner/flowers')" in card and 'license: mit' in card and '# flowers' in card
    class Offline(FakeApi):
        def create_repo(self, *_, **__): raise ConnectionError('no route')
    monkeypatch.setattr(huggingface_hub, 'HfApi', Offline)
    with pytest.raises(InputError, match='cannot be uploaded .*no route.*hf auth login'): small().push_to_hub('owner/flowers')


# ---- the mesh


def noise(shape=(40, 3, 32, 32)):
    return torch.randn(shape, generator=generator('mesh'), dtype=torch.float64)


def waves(h, w, power): # stripes of the highest frequency, and the two below with power 1 in each bin
    x = torch.arange(w, dtype=torch.float64)
    line = power**.5*(torch.pi*x).cos() + sum(2*(2*torch.pi*(w//2 - k)*x/w).cos() for k in (1, 2))
    return line.expand(1, 1, h, w)


@pytest.mark.parametrize('side', [(32, 32), (16, 48), (33, 40), (9, 9)])
def test_white_noise_has_mesh_one(side):
    assert mesh_ratio(noise((3000, 1, *side))) == pytest.approx(1, abs=.05)


@pytest.mark.parametrize('power', [.25, 1., 4.])
def test_the_mesh_of_known_waves(power):
    "A lower frequency has a bin of positive and one of negative sign; one is counted."
    assert mesh_ratio(waves(16, 32, power)) == pytest.approx(power, rel=1e-9)
    assert mesh_ratio(waves(32, 16, power).mT) == pytest.approx(power, rel=1e-9)


@pytest.mark.parametrize('change', [lambda x: 3*x, lambda x: x + .7, lambda x: x.roll((3, 5), (2, 3)), lambda x: x.mT, lambda x: x.flip(0), lambda x: x.float(), lambda x: torch.cat([x, x])])
def test_what_leaves_the_mesh_as_it_is(change):
    assert mesh_ratio(change(noise())) == pytest.approx(mesh_ratio(noise()), rel=1e-5)


def test_a_mesh_is_seen_and_blur_too():
    sign = (-1.)**torch.arange(32)
    blurred = (noise() + noise().roll(1, 3) + noise().roll(1, 2) + noise().roll((1, 1), (2, 3)))/4
    assert mesh_ratio(noise() + sign[:, None]*sign) > 5 > .5 > mesh_ratio(blurred)


@pytest.mark.parametrize('images,words', [(torch.zeros(3, 32, 32), r'expected some of shape \(n, c, h, w\)'), (torch.zeros(0, 3, 32, 32), 'expected some'), (torch.rand(2, 3, 7, 32), '8 or more'), (torch.ones(2, 3, 16, 16), 'flat')])
def test_what_has_no_mesh_ratio(images, words):
    with pytest.raises(InputError, match=words): mesh_ratio(images)


def test_the_card_of_a_run_with_images_held_out():
    "Losses held out are a dict of dicts in a model's card."
    card = dict(seconds=3., steps=dict(autoencoder=1200, denoiser=7), held_out=dict(denoiser=dict(best_step=4, best=.5)))
    rows = {row['training']: row['was'] for row in own_images._training_rows(card)}
    assert rows == {'seconds': 3., 'steps': 'autoencoder 1,200, denoiser 7', 'held out': 'denoiser {"best_step": 4, "best": 0.5}'}
