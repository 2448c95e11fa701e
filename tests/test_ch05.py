"Chapter 05: what a learner would not want to read."
import pytest
import torch

from ldm_nb.core import InputError
from ldm_nb.data import pad_images
from ldm_nb.training import RECIPES, LatentDiffusion, Recipe, paired, verdict
from ldm_nb.vae import VAE


@pytest.fixture(scope='module')
def shipped():
    return LatentDiffusion.from_pretrained('fashion')


def without_guide(ldm):
    return LatentDiffusion(ldm.autoencoder, ldm.stats, ldm.denoiser, ldm.ema, classes=ldm.classes)


def test_a_recipe_shows_itself_as_python():
    for each in RECIPES.values():
        assert eval(repr(each), dict(Recipe=Recipe)) == each
    assert all(f' {name}=' in repr(Recipe()) for name in vars(Recipe()))


def test_dials_left_alone(shipped):
    alone = without_guide(shipped)
    assert (shipped.guidances(), alone.guidances()) == ((1., 3.), (2., 1.))
    assert (shipped.guidances(2.), shipped.guidances(autoguidance=2.)) == ((2., 1.), (1., 2.))
    assert alone.sample(4, steps=3).equal(shipped.sample(4, guidance=2., steps=3))
    assert shipped.sample(4, steps=3).equal(shipped.sample(4, guidance=1., steps=3, autoguidance=3.))
    with pytest.raises(InputError, match='no guide'): alone.sample(4, autoguidance=2.)


def test_representation(shipped):
    assert 'latents     4 x 8 x 8\n' in repr(shipped) and 'Conv2d' not in repr(shipped)
    alone = repr(without_guide(shipped))
    assert 'guide       none' in alone and 'data        unknown' in alone


def test_wrong_requests_are_refused(shipped):
    for wrong in (lambda: shipped.sample(2, labels=11), lambda: shipped.sample(0)):
        with pytest.raises(InputError): wrong()
    with pytest.raises(InputError, match='trained on 28 x 28'): shipped.encode(torch.zeros(1, 1, 30, 30))


def test_paired_is_scipys_interval():
    stats = pytest.importorskip('scipy.stats')
    for n in range(2, 9):
        a, b = (dict(enumerate(torch.randn(n, generator=torch.Generator().manual_seed(k)).tolist())) for k in (n, 99))
        mean, half = paired(a, b | {n: 5.}) # a seed that only one has does not count
        d = [a[k] - b[k] for k in a]
        low, high = stats.t.interval(.95, n - 1, sum(d)/n, stats.sem(d))
        assert abs(mean - sum(d)/n) < 1e-9 and abs(2*half - (high - low)) < 1e-3*(high - low)
    with pytest.raises(InputError, match='2 to 8'): paired({1: 1.}, {1: 2.})
    assert [verdict(*v) for v in ((-2, 1), (2, 1), (1, 2))] == ['lower', 'higher', 'not told apart']


@pytest.mark.parametrize('shape, n, f, latents, flip', [
    ((1, 28, 28), 10_000, 4, 4, False), ((3, 32, 32), 3_420, 4, 4, False), ((3, 64, 64), 6_800, 8, 8, False),
    ((3, 64, 64), 300, 8, 8, True), ((3, 96, 64), 200, 8, 8, True), ((3, 128, 128), 200_000, 8, 8, False),
    ((1, 64, 64), 5_000, 8, 8, False)])
def test_the_recipe_follows_the_data(shape, n, f, latents, flip):
    "What it chooses makes a network that takes such images."
    recipe, why = Recipe.for_data(shape, n, minutes=8, device='cpu', reasons=True)
    assert (recipe.f, recipe.latent_channels, recipe.flip) == (f, latents, flip)
    assert recipe.resize == (shape != (1, 28, 28)) and all(isinstance(text, str) for text in why)
    assert recipe.sampling == ({} if shape == (1, 28, 28) else dict(steps=20, autoguidance=4.))
    vae = VAE(recipe.f, recipe.latent_channels, recipe.ae_width, image_channels=shape[0], resize=recipe.resize)
    x = pad_images(torch.zeros(1, *shape), 2*recipe.f)
    assert vae(x).shape == x.shape


@pytest.mark.parametrize('shape', [(64, 64), (4, 64, 64), (3, 0, 64)])
def test_a_shape_that_is_none(shape):
    with pytest.raises(InputError, match='expected \\(c, h, w\\)'):
        Recipe.for_data(shape, 100)
