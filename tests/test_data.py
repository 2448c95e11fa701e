"Data: the embedded files, every mode of image, the full set, emoji, downloads."
import functools, gzip, http.server, io, os, subprocess, sys, tarfile, threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm_nb.data as data
from ldm_nb.core import InputError, to_uint8
from ldm_nb.data import emoji, emoji_table, fashion_mnist, image_folder, load_data

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


# What a picture of the table shows: id -> name, skin, gender, role
SHOWN = {
    '1F9D1-200D-1F692': ('firefighter', '', 'person', 'firefighter'),
    '1F469-1F3FE-200D-1F692': ('woman firefighter', 'medium-dark', 'woman', 'firefighter'),
    '1F46E-1F3FB': ('police officer', 'light', 'person', 'police officer'),
    '1F478': ('princess', '', 'woman', 'with crown'),
    '1F385-1F3FF': ('father christmas', 'dark', 'man', 'santa claus'),
    '1F467': ('girl', '', 'woman', ''),
    '1F469-1F3FB-200D-2764-FE0F-200D-1F468-1F3FF': ('couple with heart: woman, man', 'light, dark', 'woman, man', ''),
    '1F468-1F3FC-200D-1F91D-200D-1F468-1F3FB': ('two men holding hands', 'medium-light, light', 'man', ''),
    '1F1F3-1F1F4': ('norway flag', '', '', ''), # not that of Bouvet Island, which has the same picture
    '1F436': ('dog face', '', '', ''),
}


@pytest.mark.parametrize('id', SHOWN)
def test_what_an_emoji_shows(id):
    row, = [row for row in emoji_table('all') if row['id'] == id]
    assert tuple(row[k] for k in ('name', 'skin', 'gender', 'role')) == SHOWN[id]


def test_emoji_are_split_by_designs():
    sets, tables = [emoji(s) for s in ('train', 'test', 'all')], [emoji_table(s) for s in ('train', 'test', 'all')]
    for images, table in zip(sets, tables):
        assert [images.classes[k] for k in images.labels] == [row['category'] for row in table]
        assert len(images.classes) == 10 and images.levels.shape == (len(table), 3, 32, 32)
    assert sets[2].hashes().unique().numel() == len(sets[2]) == len(sets[0]) + len(sets[1])
    assert .08 < len(sets[1])/len(sets[2]) < .12 and min(sets[1].counts) > 0
    roles = [{row['role'] for row in table} - {''} for table in tables]
    assert not roles[0] & roles[1] # a trade has its tones and genders on one side
    persons = [row for row in tables[2] if row['role'] == 'scientist']
    assert len({(row['skin'], row['gender']) for row in persons}) == len(persons) == 18


@pytest.mark.parametrize('ask,words', [
    (lambda: emoji('val'), 'choose train, test or all'), (lambda: emoji(style='apple'), 'choose google, twitter or both'),
    (lambda: emoji(size=4), '8 or more'), (lambda: load_data('emoji', channels=1), 'emoji have colours'),
    (lambda: emoji(size=64), 'npm pack emoji-datasource-google@16.0.0'), (lambda: emoji_table(style='both'), 'npm pack emoji-datasource-twitter')])
def test_emoji_that_are_not_there(ask, words, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path)); monkeypatch.delenv('LDM_EMOJI', raising=False)
    with pytest.raises(InputError, match=words): ask()


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    "A package of another style as npm packs it: plain colours, two of them equal. The same unpacked beside it."
    home = tmp_path_factory.mktemp('packed'); rows = emoji_table('all')
    with tarfile.open(home/'emoji-datasource-twitter-16.0.0.tgz', 'w:gz', compresslevel=1) as tar:
        for k, row in enumerate(rows):
            k, png = min(k, len(rows) - 2), io.BytesIO()
            Image.new('RGBA', (64, 64), (k % 256, k//256, 0, 255)).save(png, 'PNG', compress_level=1)
            member = tarfile.TarInfo(f'package/img/twitter/64/{row["id"].lower()}.png'); member.size = png.tell(); png.seek(0)
            tar.addfile(member, png)
    return home


@pytest.mark.parametrize('how', ['packed', 'unpacked', 'cache'])
def test_emoji_of_another_style(packed, tmp_path, monkeypatch, how):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path)); monkeypatch.delenv('LDM_EMOJI', raising=False)
    file = packed/'emoji-datasource-twitter-16.0.0.tgz'
    if how == 'packed': monkeypatch.setenv('LDM_EMOJI', str(file))
    if how == 'unpacked':
        with tarfile.open(file) as tar: tar.extractall(tmp_path/'own', filter='data')
        monkeypatch.setenv('LDM_EMOJI', str(tmp_path/'own'/'package'))
    if how == 'cache': (tmp_path/'ldm_nb').mkdir(); (tmp_path/'ldm_nb'/'emoji').symlink_to(packed)
    table = emoji_table('all', 'twitter')
    assert len(table) == 3766 and table[0]['style'] == 'twitter'  # of two that are equal one
    if how != 'packed': return
    images = emoji('all', 16, 'twitter')
    assert images.levels.shape == (3766, 3, 16, 16)
    assert images.levels[300, :, 0, 0].tolist() == [300 - 256, 1, 0]
    cut = tmp_path/file.name; cut.write_bytes(file.read_bytes()[:5000])
    monkeypatch.setenv('LDM_EMOJI', str(cut))
    with pytest.raises(InputError, match='cannot be unpacked'): emoji(style='twitter')


def _unpacked_emoji():
    own = Path(os.environ.get('LDM_EMOJI') or data.cache_folder()/'emoji')
    return next((p.parent for p in sorted(own.glob('**/emoji.json')) if (p.parent/'img'/'google'/'64').is_dir()), None)


@pytest.mark.skipif(not _unpacked_emoji(), reason='needs the unpacked npm package emoji-datasource-google in LDM_EMOJI')
def test_embedded_emoji_are_made_again_byte_for_byte():
    run = subprocess.run([sys.executable, ROOT/'tools'/'embed_emoji.py', _unpacked_emoji(), '--check'], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    small, large = emoji('test'), emoji('test', 64)
    assert large.labels.equal(small.labels)
    assert (torch.nn.functional.avg_pool2d(large.images, 2) - small.images).abs().mean() < .03
