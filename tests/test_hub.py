"Data sets of the Hub, by parquet files on this machine: the same library, no network."
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm_nb.folder as folder
from ldm_nb.core import InputError
from ldm_nb.data import built_in, load_data
from ldm_nb.hub import choose_column, choose_parts, read_hub

ROOT = Path(__file__).parent.parent
datasets = pytest.importorskip('datasets', reason="needs pip install 'ldm_nb[hub]'")
datasets.disable_progress_bars()
CLASSES = 'cat', 'dog', 'newt'


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)


def noise(n, seed=0, shape=(20, 30, 3)):
    return [Image.fromarray(a) for a in np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)]


def parquet(path, part, n, seed=0, shape=(20, 30, 3), **columns):
    "A file of n pictures of noise, with their class and number."
    features = dict(picture=datasets.Image(), kind=datasets.ClassLabel(names=list(CLASSES)), number=datasets.Value('int64'))
    values = dict(picture=noise(n, seed, shape), kind=[i % 3 for i in range(n)], number=list(range(n)))
    for name, (feature, given) in columns.items():
        features[name], values[name] = feature, given
    path.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(values, features=datasets.Features(features)).to_parquet(path/f'{part}-00000-of-00001.parquet')
    return path


def expected(images, size=(16, 16), fit='crop'):
    return torch.stack([torch.from_numpy(np.array(folder.fit_image(im, size, fit))).movedim(-1, 0) for im in images])


def rows(levels):
    return [x.numpy().tobytes() for x in levels]


@pytest.mark.parametrize('held', ['validation', 'test'])
def test_a_part_that_is_there_is_held_out(tmp_path, held):
    parquet(tmp_path/'set', 'train', 30)
    parquet(tmp_path/'set', held, 12, seed=1)
    train, test = load_data(f'hub:{tmp_path/"set"}', 16)
    assert train.levels.equal(expected(noise(30))) and test.levels.equal(expected(noise(12, 1)))
    assert train.labels.tolist() == [i % 3 for i in range(30)] and train.classes == CLASSES == test.classes
    assert f'train, held out {held}' in train.note and '16 x 16, RGB' in train.note and 'cat: 14' in train.note
    assert train.name == 'set train' and built_in(f'hub:{tmp_path/"set"}') == f'hub:{tmp_path/"set"}'


@pytest.mark.parametrize('n,share', [(25, .1), (200, .1), (200, .5)])
@pytest.mark.parametrize('on_disk', [False, True])
def test_without_a_part_the_pictures_decide(tmp_path, n, share, on_disk):
    parquet(tmp_path/'set', 'train', n)
    cache = tmp_path/'cache' if on_disk else None
    train, test = load_data(f'hub:{tmp_path/"set"}', 16, share, cache=cache)
    all_of_them = rows(expected(noise(n)))
    assert sorted(rows(train.levels) + rows(test.levels)) == sorted(all_of_them)
    assert n*share/2 <= len(test) <= 2*n*share
    for part in train, test:                                      # labels go with their pictures
        assert [all_of_them.index(row) % 3 for row in rows(part.levels)] == part.labels.tolist()
    # the same pictures as files of a folder: the same are held out
    for i, im in enumerate(datasets.load_dataset(str(tmp_path/'set'), split='train', streaming=True).cast_column('picture', datasets.Image(decode=False))):
        (tmp_path/'files').mkdir(exist_ok=True)
        (tmp_path/'files'/f'{i}.png').write_bytes(im['picture']['bytes'])
    assert load_data(tmp_path/'files', 16, share)[1].levels.equal(test.levels)


def test_limit_and_nothing_held_out(tmp_path):
    parquet(tmp_path/'set', 'train', 30)
    parquet(tmp_path/'set', 'test', 30, seed=1)
    found = read_hub(str(tmp_path/'set'), size=16, limit=7)
    assert found.levels.equal(expected(noise(30, 1)[:7] + noise(30)[:7])) and found.held_out == 7
    found = read_hub(str(tmp_path/'set'), size=16, held_out=None)
    assert found.levels.equal(expected(noise(30))) and found.held_out == 0 and found.twins is None


@pytest.mark.parametrize('fit,box', [('crop', None), ('stretch', None), ('pad', [2, 0, 11, 16])])
def test_sizes_and_fits(tmp_path, fit, box):
    parquet(tmp_path/'set', 'train', 30)
    train, test = load_data(f'hub:{tmp_path/"set"}', 16, fit=fit, channels=3)
    assert sorted(rows(train.levels) + rows(test.levels)) == sorted(rows(expected(noise(30), fit=fit)))
    assert train.content is None if box is None else train.content.tolist() == [box]*len(train)
    train, _ = load_data(f'hub:{tmp_path/"set"}', (16, 24), fit=fit)
    assert train.levels.shape[1:] == (3, 16, 24)


WORDS = ['dog', 'cat', None, '10', '9']
# more columns, what is asked for -> classes, the first labels; or words of the error
COLUMNS = {
    'named': ({}, dict(image='picture', label='kind'), CLASSES, [0, 1, 2]),
    'numbers as classes': ({}, dict(label='number'), tuple(map(str, range(25))), [0, 1, 2]),
    'words as classes': (dict(word=('string', WORDS*5)), dict(label='word'), ('9', '10', 'cat', 'dog'), None), # one without: no labels
    'two of each, named': (dict(other=('image', noise(25, 5)), fine=('class', [1]*25)), dict(image='other', label='fine'), ('a', 'b'), [1, 1, 1]),
    'two images': (dict(other=('image', noise(25, 5))), {}, 'image=', None),
    'two classes': (dict(fine=('class', [1]*25)), {}, 'label=', None),
    'no such column': ({}, dict(image='photo'), r'columns picture \(Image\), kind \(ClassLabel\), number \(Value\)', None),
    'not an image': ({}, dict(image='number'), 'broke off after 0 pictures', None),
    'no such part': ({}, dict(split='val'), 'choose one of the parts train', None),
}


@pytest.mark.parametrize('name', COLUMNS)
def test_columns(tmp_path, name):
    more, asked, classes, labels = COLUMNS[name]
    kinds = dict(image=datasets.Image(), string=datasets.Value('string'), **{'class': datasets.ClassLabel(names=['a', 'b'])})
    parquet(tmp_path/'set', 'train', 25, **{k: (kinds[kind], values) for k, (kind, values) in more.items()})
    if isinstance(classes, str):
        with pytest.raises(InputError, match=classes):
            load_data(f'hub:{tmp_path/"set"}', 16, **asked)
        return
    found = read_hub(str(tmp_path/'set'), size=16, held_out=None, **asked)
    assert found.classes == classes
    assert found.levels.equal(expected(noise(25, 5 if asked.get('image') == 'other' else 0)))
    if labels:
        assert found.labels[:3] == labels
    else:
        assert found.labels == [3, 2, -1, 1, 0]*5 and load_data(f'hub:{tmp_path/"set"}', 16, **asked)[0].labels is None


def test_choices_without_data():
    assert choose_parts(dict(test=0), None) == ('test', None)
    assert choose_parts(dict(test=0, train=0, dev=0), None) == ('train', 'dev')
    assert choose_parts(dict(test=0, train=0), 'test') == ('test', None)
    for parts in dict(a=0, b=0), dict(validation=0, test=0):
        with pytest.raises(InputError, match='choose one of the parts'):
            choose_parts(parts, None)
    with pytest.raises(InputError, match='0 columns are of the type Image'):
        choose_column(dict(a=1), None, 'Image', 'image')


def test_broken_and_missing_pictures_are_named(tmp_path):
    n = 30
    column = [None if i == 3 else im for i, im in enumerate(noise(n))]
    column[5] = dict(bytes=b'not a picture', path=None)
    parquet(tmp_path/'set', 'train', n, picture=(datasets.Image(), column))
    with pytest.raises(InputError, match='2 of 30 files cannot be read as images: train 3 .*train 5 '):
        load_data(f'hub:{tmp_path/"set"}', 16)
    with pytest.warns(UserWarning, match='2 of 30'):
        train, test = load_data(f'hub:{tmp_path/"set"}', 16, skip_unreadable=True)
    left = [im for i, im in enumerate(noise(n)) if i not in (3, 5)]
    assert sorted(rows(train.levels) + rows(test.levels)) == sorted(rows(expected(left)))


def test_grey_and_deep_pictures(tmp_path):
    parquet(tmp_path/'grey', 'train', 25, shape=(20, 30))
    assert load_data(f'hub:{tmp_path/"grey"}', 16)[0].levels.shape[1] == 1
    deep = [Image.fromarray(np.full((20, 30), 160*i, np.uint16)) for i in range(25)]
    parquet(tmp_path/'deep', 'train', 25, picture=(datasets.Image(), deep))
    train, test = load_data(f'hub:{tmp_path/"deep"}', 16)
    assert train.value_range == (0, 160*24) == test.value_range
    values = torch.cat([train.levels, test.levels])[:, 0, 0, 0].sort().values
    assert values.tolist() == [round(255*i/24) for i in range(25)]


def test_a_cache_needs_the_set_no_more_and_notices_a_change(tmp_path, monkeypatch):
    path = parquet(tmp_path/'set', 'train', 40)
    first = load_data(f'hub:{path}', 16, cache=tmp_path/'cache')
    with monkeypatch.context() as m:
        m.setattr('ldm_nb.hub.open_hub', None)                    # it would fail
        again = load_data(f'hub:{path}', 16, cache=tmp_path/'cache')
    for a, b in zip(first, again):
        assert a.levels.equal(b.levels) and a.labels.equal(b.labels) and (a.note, a.classes) == (b.note, b.classes)
    assert len(list((tmp_path/'cache').iterdir())) == 2            # nothing is left beside them
    time.sleep(.01)
    parquet(path, 'train', 30, seed=7)
    changed = load_data(f'hub:{path}', 16, cache=tmp_path/'cache')
    assert sum(map(len, changed)) == 30 and len(list((tmp_path/'cache').iterdir())) == 2


@pytest.mark.parametrize('name,words', [('hub:no/such', 'hub:no/such cannot be opened'), ('hub:no/such:german', 'cannot be opened'),
                                        ('hub:', 'cannot be opened'), ('hub:/nowhere/at/all', 'cannot be opened')])
def test_what_cannot_be_opened(name, words):
    with pytest.raises(InputError, match=words):
        load_data(name)


def test_pictures_in_files_beside_the_table(tmp_path):
    for i, im in enumerate(noise(24)):
        (tmp_path/'set'/CLASSES[i % 2]).mkdir(parents=True, exist_ok=True)
        im.save(tmp_path/'set'/CLASSES[i % 2]/f'{i:02}.png')
    found = read_hub(str(tmp_path/'set'), size=16, held_out=None)  # the library's own reader of folders
    assert sorted(rows(found.levels)) == sorted(rows(expected(noise(24)))) and found.classes == CLASSES[:2]


def test_too_small(tmp_path):
    parquet(tmp_path/'set', 'train', 12)
    with pytest.raises(InputError, match='holds 12 images'):
        load_data(f'hub:{tmp_path/"set"}', 16)


def test_without_the_library_the_error_says_what_to_install():
    code = "import sys; sys.modules['datasets'] = None\nfrom ldm_nb.data import load_data\ntry: load_data('hub:owner/name')\nexcept ValueError as e: print(e)"
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert "pip install 'ldm_nb[hub]'" in run.stdout, run.stderr
