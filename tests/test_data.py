"Data: the embedded file, every mode of image, the full set, downloads."
import functools, gzip, http.server, os, subprocess, sys, threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm_nb.data as data
from ldm_nb.core import InputError, to_uint8
from ldm_nb.data import fashion_mnist, image_folder, load_data

ROOT = Path(__file__).parent.parent
DEBIAN = Path('/usr/share/datasets/fashion-mnist')
needs_debian = pytest.mark.skipif(not DEBIAN.is_dir(), reason='needs the original files: apt-get install dataset-fashion-mnist')


@needs_debian
def test_embedded_file_is_made_again_byte_for_byte():
    run = subprocess.run([sys.executable, ROOT/'tools'/'embed_fashion_mnist.py', '--check'], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'the same' in run.stdout


@needs_debian
@pytest.mark.parametrize('split,n', [('train', 60_000), ('test', 10_000)])
def test_full_set_holds_the_embedded_part(split, n):
    full, part = fashion_mnist(split, full=True), fashion_mnist(split)
    assert full.images.shape == (n, 1, 28, 28) and full.labels.bincount().tolist() == [n//10]*10
    first = torch.cat([full.images[full.labels == k][:len(part)//10] for k in range(10)])
    assert torch.cat([part.images[part.labels == k] for k in range(10)]).equal(first)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I;16', 'HSV'])
def test_every_mode_of_image(tmp_path, mode):
    base = Image.linear_gradient('L').resize((50, 70))
    image = Image.fromarray((np.asarray(base).astype(np.uint16)*257)) if mode == 'I;16' else base.convert('RGB').convert(mode)
    image.save(tmp_path/f'x.{"jpg" if mode in ("CMYK", "YCbCr") else "tif" if mode in ("HSV",) else "png"}') if mode != 'HSV' else image.convert('RGB').save(tmp_path/'x.png')
    images = image_folder(tmp_path, 32).images
    assert images.shape[2:] == (32, 32) and images.dtype == torch.float32 and -1 <= images.min() and images.max() <= 1
    assert images.mean(dim=(0, 1, 3)).diff().gt(-.35).all() and images[..., -1, :].mean() > images[..., 0, :].mean() + 1  # still a gradient, top dark


def test_orientation_is_applied(tmp_path):
    im = Image.new('L', (40, 20)); im.paste(255, (0, 0, 20, 20))          # left half white
    exif = im.getexif(); exif[0x0112] = 6                                 # to be turned by 90 degrees
    im.save(tmp_path/'x.jpg', exif=exif)
    x = image_folder(tmp_path, 16).images[0, 0]
    assert x[:4].mean() > .9 and x[-4:].mean() < -.9


@pytest.mark.parametrize('content', [b'', b'not an image', b'\x89PNG\r\n\x1a\n' + b'\0'*50])
def test_unreadable_file_is_named(tmp_path, content):
    Image.new('L', (8, 8)).save(tmp_path/'a.png'); (tmp_path/'broken.png').write_bytes(content)
    with pytest.raises(InputError, match='broken.png'): image_folder(tmp_path)


def test_truncated_file_is_named(tmp_path):
    Image.effect_noise((64, 64), 90).save(tmp_path/'whole.png')
    (tmp_path/'cut.png').write_bytes((tmp_path/'whole.png').read_bytes()[:1500])
    with pytest.raises(InputError, match='cut.png'): image_folder(tmp_path)


def test_own_folder_is_split_and_labelled(tmp_path):
    for k in range(30): (tmp_path/'ab'[k % 2]).mkdir(exist_ok=True); Image.new('RGB', (10, 12), (8*k, 0, 0)).save(tmp_path/'ab'[k % 2]/f'{k}.png')
    train, test = load_data(str(tmp_path))
    assert (len(train), len(test)) == (28, 2) and train.classes == ('a', 'b')
    keys = lambda d: {x.tobytes() for x in to_uint8(d.images)}
    assert not keys(train) & keys(test) and len(keys(train) | keys(test)) == 30
    assert load_data(str(tmp_path))[1].images.equal(test.images)


@pytest.fixture
def served(tmp_path, monkeypatch):
    "An empty cache, no files on the machine, and a server on this machine that gives tmp_path/served."
    (tmp_path/'served').mkdir(); monkeypatch.setattr(data, '_fashion_folders', lambda: [tmp_path/'cache'])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path/'served')); handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler); threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(data, 'FASHION_URL', f'http://127.0.0.1:{server.server_address[1]}/')
    yield tmp_path
    server.shutdown()


@needs_debian
def test_download_then_cache(served):
    name = 't10k-labels-idx1-ubyte.gz'
    (served/'served'/name).write_bytes((DEBIAN/name).read_bytes())
    labels = data._idx(name)
    assert labels.shape == (10_000,) and [p.name for p in (served/'cache').iterdir()] == [name]
    (served/'served'/name).unlink()
    assert (data._idx(name) == labels).all()                               # now from the cache


def test_wrong_download_is_noticed(served):
    name = 't10k-labels-idx1-ubyte.gz'
    (served/'served'/name).write_bytes(gzip.compress(b'\0\0\x08\x01' + (10_000).to_bytes(4, 'big') + bytes(10_000)))
    with pytest.raises(InputError, match='checksum'): data._idx(name)


def test_no_network_says_how_to_get_the_files(served):
    with pytest.raises(InputError, match='dataset-fashion-mnist.*LDM_DATA'): data._idx('t10k-images-idx3-ubyte.gz')
    assert not (served/'cache').exists() or not list((served/'cache').iterdir())
