"What a reader of chapter 02 need not see: statistics survive being saved, and are guarded."
import json
from dataclasses import asdict, replace

import pytest
import torch

from ldm_nb.core import InputError
from ldm_nb.vae import VAE, LatentStats, VectorQuantizer, latent_stats, nearest_code


@pytest.fixture
def stats():
    return LatentStats([.12345, -2.], [1., 1.5], 12_000, '0123456789abcdef', 'fedcba9876543210')


def test_statistics_say_what_they_are(stats):
    assert repr(stats) == ('LatentStats of 12,000 images: mean [0.123, -2], std [1, 1.5],\n'
                           'encoder 012345..., data fedcba...')


def test_statistics_survive_being_saved(stats):
    saved = json.dumps(asdict(stats))
    assert LatentStats(**json.loads(saved)).fingerprint == stats.fingerprint


@pytest.mark.parametrize('change', [dict(encoder='0'*16), dict(data='0'*16), dict(mean=[.1, -2.]),
                                    dict(std=[1., 2.])])
def test_another_origin_has_another_fingerprint(stats, change):
    assert replace(stats, **change).fingerprint != stats.fingerprint


def test_a_constant_channel_is_an_error():
    with pytest.raises(InputError, match='constant'):
        latent_stats(VAE(width=8), torch.zeros(10, 1, 32, 32), torch.zeros(10, 4, 8, 8))


def test_codes_that_are_idle_start_anew():
    torch.manual_seed(0)
    vq, z = VectorQuantizer(8, 3, restart_after=2), torch.randn(4, 3, 2, 2)
    vq.codebook.data[1:] = 100.
    for _ in range(4): vq(z)
    assert vq.codebook.abs().max() < 10 and vq.nearest(z).unique().numel() > 1
    assert vq.nearest(z).equal(nearest_code(z, vq.codebook))
