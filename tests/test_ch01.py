"What chapter 01 says and a learner need not read: a linear autoencoder trains to PCA, and the judges in cases that are known."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm_nb.autoencoder import (AutoEncoder, Decoder, clipped_mse, load_classifier, perceptual_distance,
                                ssim)
from ldm_nb.core import InputError, PACKAGE, generator, read_json
from ldm_nb.data import fashion_mnist, pad_images


def projection(columns):
    "Onto the space of the columns, whatever they are."
    q = torch.linalg.qr(columns)[0]
    return q @ q.T


def test_a_linear_autoencoder_trains_to_pca():
    "Baldi and Hornik (1989): from a random start, L-BFGS ends at PCA's error and space."
    thumbs = F.avg_pool2d(pad_images(fashion_mnist().images), 4).flatten(1).double()
    C = torch.cov(thumbs.T, correction=0)
    ν, directions = torch.linalg.eigh(C)
    encoder, decoder = (
        (.1*torch.randn(shape, dtype=torch.float64, generator=generator('linear', *shape))).requires_grad_()
        for shape in ((8, 64), (64, 8)))
    def error(): # expected squared error: the trace of the error's covariance
        R = torch.eye(64, dtype=torch.float64) - decoder @ encoder
        return (R @ C @ R.T).trace()
    opt = torch.optim.LBFGS([encoder, decoder], max_iter=2000, history_size=50, tolerance_grad=1e-10,
                            tolerance_change=1e-14, line_search_fn='strong_wolfe')
    def closure():
        opt.zero_grad()
        loss = error()
        loss.backward()
        return loss
    opt.step(closure)
    assert abs(error().item()/ν[:-8].sum().item() - 1) < 1e-6
    D = decoder.detach()
    assert (projection(D) - projection(directions[:, -8:])).abs().max() < 1e-3
    assert (D.T @ D - torch.eye(8)).abs().max() > .01, 'the space is that of PCA, the columns are not'


def test_ssim_of_flat_images_is_its_first_factor():
    a, b = torch.full((1, 1, 16, 16), .5), torch.full((1, 1, 16, 16), -.2)
    assert abs(ssim(a, b).item() - (2*1.5*.8 + .02**2)/(1.5**2 + .8**2 + .02**2)) < 1e-4
    with pytest.raises(InputError, match='11 or more'):
        ssim(a[..., :8, :], b[..., :8, :])


def test_perceptual_distance_of_one_layer():
    net = nn.ModuleDict(dict(body=nn.Sequential(nn.Sequential(nn.Identity()))))
    a, b = torch.tensor([[[[3.]], [[4.]]]]), torch.tensor([[[[4.]], [[3.]]]])
    assert abs(perceptual_distance(net, a, b).item() - 2*.2**2) < 1e-5
    assert not [p for p in load_classifier().parameters() if p.requires_grad]


def test_beyond_the_wrong_end_an_error_is_an_error():
    guess = torch.tensor([-3., -1.5, -.5, 1.])
    assert torch.allclose(clipped_mse(guess, torch.ones(4)), F.mse_loss(guess, torch.ones(4)))


@pytest.mark.parametrize('make,message', [
    (lambda: AutoEncoder(width=20), 'multiple of 8'),
    (lambda: AutoEncoder(image_size=(32, 32))(torch.zeros(1, 1, 64, 64)), 'made for 32 x 32')])
def test_autoencoder_says_what_to_do(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_latent_moves_with_the_image():
    "Untrained or not: four pixels are one position, away from border and normalisation."
    torch.manual_seed(0)
    model = AutoEncoder(encoder_depth=0)
    model.encoder[2] = nn.Identity() # GroupNorm sees the whole image
    x = pad_images(fashion_mnist('test').images[:8])
    with torch.no_grad():
        before, after = (model.encode(images) for images in (x, torch.roll(x, 4, dims=3)))
    assert (before[..., 2:5] - after[..., 3:6]).abs().max() < 1e-5


def test_the_stored_sweep_is_whole():
    rows = read_json(PACKAGE/'results'/'sweep.json')['rows']
    assert {r['numbers'] for r in rows} == {64, 256, 1024} and len(rows) == 9
    assert {(r['steps'], r['seed'], r['width']//r['f']) for r in rows} == {(2500, 0, 16)}


@pytest.mark.parametrize('f', [2, 4, 8])
def test_a_flat_latent_becomes_a_flat_picture(f):
    "With resize-convolutions whatever the weights; a pixel shuffle makes tiles."
    spread = {}
    for resize in True, False:
        torch.manual_seed(0)
        decoder = Decoder(f, 4, 32, 1, 3, resize=resize)
        image = decoder(torch.randn(1, 4, 1, 1).expand(1, 4, 12, 12)).detach()
        assert image.shape == (1, 3, 12*f, 12*f)
        inside = image[..., 5*f:-5*f, 5*f:-5*f]
        spread[resize] = inside.std((2, 3)).max().item()
    assert spread[True] < 1e-5 < 1e-2 < spread[False]


def test_weighed_edges_add_the_error_of_differences():
    x, y = torch.rand(2, 2, 3, 8, 8)*1.8 - .9
    e = (x - y).double()
    down, across = (e[:, :, 1:] - e[:, :, :-1]).square().mean(), (e[..., 1:] - e[..., :-1]).square().mean()
    assert clipped_mse(x, y, .5).item() == pytest.approx((e.square().mean() + .5*(down + across)).item(), rel=1e-5)
    assert clipped_mse(x, y) == torch.nn.functional.mse_loss(x, y)


@pytest.mark.parametrize('f', [1, 3, 6])
def test_resize_doubles(f):
    with pytest.raises(InputError, match='choose 2, 4, 8 or 16'):
        AutoEncoder(f, resize=True)
