"Chapter 09: what a learner would not want to read."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastcore.test import test_close as close_to, test_fail as fails

from ldm_nb.autoencoder import Classifier, clipped_mse
from ldm_nb.core import fingerprint
from ldm_nb.data import ImageData, fashion_mnist, pad_images
from ldm_nb.denoiser import UNet, diffusion_loss
from ldm_nb.forward import Schedule
from ldm_nb.joint import METHODS, CutFeatures, Joint, aligned_loss, finetune, outputs_of
from ldm_nb.training import LatentDiffusion
from ldm_nb.vae import VAE, vae_loss

TRAIN = fashion_mnist()[:16]


@pytest.fixture(scope='module')
def shipped(): return LatentDiffusion.from_pretrained('fashion')


@pytest.fixture(scope='module')
def untrained():
    torch.manual_seed(0)
    return CutFeatures(Classifier())


def encoder_gradient(stats, loss_of, **kwargs):
    torch.manual_seed(0)
    vae, unet = VAE(width=16, encoder_depth=1, decoder_depth=1), UNet(widths=(16, 32), emb_dim=32)
    with torch.no_grad():
        for p in unet.parameters():
            p.add_(.05*torch.randn_like(p))
    model, x = Joint(vae, unet, stats), pad_images(TRAIN.images[:4])
    torch.manual_seed(1)
    loss = loss_of(model, x, None, Schedule('flow'), 'flow_prediction', **kwargs)[0]
    return torch.autograd.grad(loss, vae.encoder.parameters(), allow_unused=True)[0]


def test_the_bridge_adds_the_gradient_of_the_alignment_and_nothing_else(shipped, untrained):
    def only_autoencoder(model, x, *_):
        return vae_loss(model.vae, x, 3e-3, reconstruction=clipped_mse)
    def through_the_graph(model, x, y, schedule, prediction_type):
        z = model.norm(model.vae.moments(x)[0])
        torch.randn(z.shape) # as many draws as reparameterize makes
        with outputs_of(model.denoiser.mid[2]) as middle:
            diffusion_loss(model.denoiser, z, y, schedule, prediction_type)
        predicted = model.project(middle[0])
        wanted = F.adaptive_avg_pool2d(untrained(x), predicted.shape[-2:])
        return 1.5*(1 - F.cosine_similarity(predicted, wanted, dim=1).mean()),
    gradient = partial(encoder_gradient, shipped.stats)
    own, wanted = gradient(only_autoencoder), gradient(through_the_graph)
    aligned = partial(gradient, aligned_loss, features=untrained, align=0.)
    off, on = aligned(align_vae=0.), aligned(align_vae=1.5)
    assert wanted.norm() > 0
    close_to((off - own).norm()/own.norm(), 0, eps=1e-3)
    close_to((on - off - wanted).norm()/wanted.norm(), 0, eps=1e-3)


def test_wrong_requests_get_an_answer(shipped):
    other_size = ImageData(torch.zeros(4, 1, 32, 32))
    fails(lambda: finetune(shipped, other_size, 'naive'), contains='they must agree')
    fails(lambda: finetune(shipped, TRAIN, 'magic'), contains='choose one of')
    for method in ('aligned', 'decoder'):
        fails(lambda: finetune(shipped, TRAIN, method), contains='needs a frozen network')


@pytest.mark.parametrize('method', METHODS)
def test_what_learns_changes_and_nothing_else(shipped, untrained, method):
    features = Classifier() if method == 'decoder' else untrained
    tuned, run = finetune(shipped, TRAIN, method, features, batch_size=8, num_steps=2)
    def changed(part): return fingerprint(part(tuned)) != fingerprint(part(shipped))
    learns = METHODS[method].learns
    assert changed(lambda m: m.autoencoder.encoder) == ('vae' in learns)
    assert changed(lambda m: m.autoencoder.decoder) == bool({'vae', 'vae.decoder'} & {*learns})
    assert changed(lambda m: m.denoiser) == changed(lambda m: m.ema) == ('denoiser' in learns)
    assert (tuned.guide is not None) == ('vae' not in learns)
    same_scale = tuned.stats.mean == shipped.stats.mean
    assert same_scale == (not METHODS[method].rescale)
    assert tuned.sample(2, steps=2, guidance=1.).shape == (2, 1, 28, 28)


def test_an_interrupted_run_goes_on_to_the_same_model(shipped, untrained, tmp_path):
    def train(**kwargs):
        return finetune(shipped, TRAIN, 'aligned', untrained, batch_size=8, num_steps=4, **kwargs)
    whole, _ = train()
    def stop(step, model, ema):
        if step == 2: raise KeyboardInterrupt
    try:
        train(checkpoint=tmp_path, save_every=0., callback=stop)
    except KeyboardInterrupt:
        pass
    again, run = train(checkpoint=tmp_path)
    assert len(run['losses']) == 4
    assert fingerprint(again.autoencoder) == fingerprint(whole.autoencoder)
    assert fingerprint(again.ema) == fingerprint(whole.ema)
