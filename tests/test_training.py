"Trained models that people can rely on: repeatability, files that cannot be wrong unnoticed, nothing overwritten."
import shutil, time

import pytest
import torch

from ldm_nb.core import InputError, fingerprint, load_tensors, read_json, write_json
from ldm_nb.data import fashion_mnist
from ldm_nb.runs import train_latent_diffusion
from ldm_nb.training import FORMAT, LatentDiffusion, _config_checksum

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')/'a'
    return train_latent_diffusion(fashion_mnist()[:300], folder, steps=5, size='smoke')[0], folder


def test_same_command_and_seed_twice(trained, tmp_path):
    ldm, _ = trained
    again, _ = train_latent_diffusion(fashion_mnist()[:300], tmp_path/'b', steps=5, size='smoke')
    other, _ = train_latent_diffusion(fashion_mnist()[:300], tmp_path/'c', steps=5, size='smoke', seed=1)
    assert ldm.sample(6, steps=4).equal(again.sample(6, steps=4)) and not ldm.sample(6, steps=4).equal(other.sample(6, steps=4))


def test_round_trip(trained, tmp_path):
    ldm, folder = trained
    loaded = LatentDiffusion.from_pretrained(folder/'model')
    assert loaded.sample(4, steps=3).equal(ldm.sample(4, steps=3)) and loaded.card == ldm.card and loaded.stats == ldm.stats and loaded.classes == ldm.classes
    assert fingerprint(loaded.guide) == fingerprint(ldm.guide) != fingerprint(ldm.ema) and not loaded.sample(4, steps=3).equal(loaded.sample(4, steps=3, guidance=1.))
    loaded.save_pretrained(tmp_path/'copy', ema_only=True)
    assert not (tmp_path/'copy'/'denoiser.safetensors').exists()
    assert LatentDiffusion.from_pretrained(tmp_path/'copy').sample(4, steps=3).equal(ldm.sample(4, steps=3))


def spoil_truncate(f): (f/'ema.safetensors').write_bytes((f/'ema.safetensors').read_bytes()[:-100])
def spoil_flip(f): data = bytearray((f/'autoencoder.safetensors').read_bytes()); data[-5] ^= 4; (f/'autoencoder.safetensors').write_bytes(data)
def spoil_missing(f): (f/'ema.safetensors').unlink()
def spoil_guide(f): (f/'guide.safetensors').unlink()
def spoil_card(f): write_json(f/'card.json', read_json(f/'card.json') | dict(seed=99))
def spoil_config(f): write_json(f/'config.json', read_json(f/'config.json') | dict(prediction_type='epsilon'))
def spoil_json(f): (f/'config.json').write_text((f/'config.json').read_text()[:-30])
def spoil_version(f):
    c = read_json(f/'config.json') | dict(format=FORMAT + 1); write_json(f/'config.json', c | dict(checksum=_config_checksum(c)))
def spoil_stats(f):
    c = read_json(f/'config.json'); c['stats']['mean'][0] += 1; write_json(f/'config.json', c | dict(checksum=_config_checksum(c)))
def spoil_swap(f):
    "Another encoder's weights, with all checksums made right."
    import hashlib
    from ldm_nb.core import save_tensors
    tensors, metadata = load_tensors(f/'autoencoder.safetensors'); save_tensors(f/'autoencoder.safetensors', {k: v + .01 for k, v in tensors.items()}, metadata)
    c = read_json(f/'config.json'); c['files']['autoencoder.safetensors'] = hashlib.sha256((f/'autoencoder.safetensors').read_bytes()).hexdigest()
    write_json(f/'config.json', c | dict(checksum=_config_checksum(c)))


@pytest.mark.parametrize('spoil,message', [(spoil_truncate, 'ema.safetensors is truncated'), (spoil_flip, 'autoencoder.safetensors is truncated or was changed'), (spoil_missing, 'ema.safetensors is missing'), (spoil_guide, 'guide.safetensors is missing'),
    (spoil_card, 'card.json is truncated or was changed'), (spoil_config, 'config.json was changed'), (spoil_json, 'not valid JSON'), (spoil_version, 'format 2'),
    (spoil_stats, 'trained on latents with statistics'), (spoil_swap, 'another autoencoder')], ids=lambda v: getattr(v, '__name__', None))
def test_wrong_model_is_refused(trained, tmp_path, spoil, message):
    shutil.copytree(trained[1]/'model', tmp_path/'m'); spoil(tmp_path/'m')
    with pytest.raises(InputError, match=message): LatentDiffusion.from_pretrained(tmp_path/'m')


def test_a_run_too_short_for_a_guide_samples_without_one(tmp_path):
    ldm, _ = train_latent_diffusion(fashion_mnist()[:100], tmp_path/'r', steps=1, size='smoke')
    assert ldm.guide is None and ldm.guidances() == (2., 1.) and LatentDiffusion.from_pretrained(tmp_path/'r').sample(2, steps=2).equal(ldm.sample(2, steps=2, guidance=2.))
    with pytest.raises(InputError, match='no guide'): ldm.sample(2, autoguidance=3.)


def test_nothing_is_overwritten(trained, tmp_path):
    ldm, folder = trained
    before = (folder/'model'/'config.json').read_bytes()
    with pytest.raises(InputError, match='exists'): ldm.save_pretrained(folder/'model')
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(InputError, match='is no model, so it is not overwritten'): ldm.save_pretrained(tmp_path, overwrite=True)
    with pytest.raises(InputError, match='not empty'): train_latent_diffusion(fashion_mnist()[:100], tmp_path, steps=2, size='smoke')
    assert (folder/'model'/'config.json').read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['notes.txt']


def test_failed_save_leaves_the_old_model(trained, tmp_path, monkeypatch):
    ldm, _ = trained
    ldm.save_pretrained(tmp_path/'m'); before = (tmp_path/'m'/'config.json').read_bytes()
    import ldm_nb.training as t
    monkeypatch.setattr(t, 'write_json', lambda *_: (_ for _ in ()).throw(OSError('No space left on device')))
    with pytest.raises(OSError): ldm.save_pretrained(tmp_path/'m', overwrite=True)
    assert (tmp_path/'m'/'config.json').read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['m']


def test_unlabelled_colour_images_of_odd_size(tmp_path):
    from ldm_nb.data import ImageData
    data = ImageData(torch.rand(40, 3, 30, 30)*2 - 1, name='colour')
    ldm, _ = train_latent_diffusion(data, tmp_path/'r', steps=3, size='smoke')
    assert ldm.sample(3, steps=2).shape == (3, 3, 30, 30)
    with pytest.raises(InputError, match='without labels'): ldm.sample(3, labels=1)


def test_minutes_are_a_budget(tmp_path):
    start = time.perf_counter(); ldm, _ = train_latent_diffusion(fashion_mnist()[:100], tmp_path/'r', minutes=.05, size='smoke')
    assert 3 <= sum(ldm.card['seconds'].values()) and time.perf_counter() - start < 30
