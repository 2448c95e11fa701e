"Real folders: what people have in them, and what must become of it. One table of cases."
import json
import os
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_nb.core import InputError
from ldm_nb.data import ImageData, built_in, content_mask, image_folder, load_data, pad_content, pad_images, parse_size, proportional_labels
from ldm_nb.folder import Rows, list_images, natural, open_levels

ROOT = Path(__file__).parent.parent


def noise(path, size=(20, 20), seed=None, mode='RGB', **options):
    "A picture of noise, another one for each path."
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(path.name.encode()) if seed is None else seed
    channels = {'L': (), 'RGB': (3,)}[mode]
    shape = (*size[::-1], *channels)
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(array).save(path, **options)
    return path


def filled(root, *folders, count=5):
    for folder in folders:
        for i in range(count):
            noise(root/folder/f'{folder.replace("/", "-")}-{i}.png')


def read(root, **options):
    "The data, and the warnings that were given."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        data = image_folder(root, 8, **options)
    return data, [str(w.message) for w in caught]


# What the folders mean: folders of five pictures each -> classes, pictures, words of the only warning
MEANINGS = {
    'two classes': (['cat', 'dog'], ('cat', 'dog'), 10, None),
    'a hidden folder': (['cat', 'dog', '.ipynb_checkpoints'], ('cat', 'dog'), 10, None),
    'a hidden folder in a class': (['cat', 'dog', 'cat/.ipynb_checkpoints'], ('cat', 'dog'), 10, None),
    'hidden deep below': (['cat/a/.git/b', 'cat', 'dog'], ('cat', 'dog'), 10, None),
    'folders of programs': (['cat', 'dog', '__MACOSX/cat', 'dog/@eaDir'], ('cat', 'dog'), 10, None),
    'a split': (['train/cat', 'train/dog', 'val/cat', 'val/dog'], ('cat', 'dog'), 20, None),
    'a split, other names': (['Training/cat', 'Training/dog', 'Valid/cat', 'TEST/dog'], ('cat', 'dog'), 20, None),
    'a split inside the classes': (['cat/train', 'cat/test', 'dog/train', 'dog/test'], ('cat', 'dog'), 20, None),
    'a split without classes': (['train', 'test'], (), 10, None),
    'a split and another folder': (['train', 'val', 'extra'], ('extra', 'train', 'val'), 15, 'extra beside them'),
    'masks': (['images', 'masks'], (), 5, 'masks/ (5 files) look like annotations'),
    'masks below a split': (['train/images', 'train/labels', 'val/images', 'val/labels'], (), 10, 'annotations'),
    'COCO': (['train2017', 'val2017'], (), 10, None),
    'Kaggle': (['seg_train/a', 'seg_train/b', 'seg_test/a', 'seg_test/b'], ('a', 'b'), 20, None),
    'sets': (['training_set/a', 'training_set/b', 'test_set/a', 'test_set/b'], ('a', 'b'), 20, None),
    'VOC': (['JPEGImages', 'SegmentationObject', 'Annotations'], (), 5, 'Annotations/, SegmentationObject/ (10 files)'),
    'Carvana': (['train', 'train_masks', 'test'], (), 10, 'train_masks/ (5 files)'),
    'CycleGAN': (['trainA', 'trainB', 'testA', 'testB'], ('testA', 'testB', 'trainA', 'trainB'), 20, 'all are taken for classes'),
    'people with a mask': (['mask', 'no_mask'], ('mask', 'no_mask'), 10, None),
    'packed in one folder': (['data/all/cat', 'data/all/dog'], ('cat', 'dog'), 10, None),
    'one class': (['cat'], (), 5, None),
    'one class in two ways': (['Cat', 'cat'], ('Cat', 'cat'), 10, 'Cat and cat differ only in how they are written'),
    'one number in two ways': (['1', '01'], ('01', '1'), 10, '01 and 1 differ only'),
    'numbers': ([str(i) for i in range(1, 12)], tuple(map(str, range(1, 12))), 55, None),
    'numbers within names': (['img10', 'img9', 'Img1'], ('Img1', 'img9', 'img10'), 15, None),
}


@pytest.mark.parametrize('name', MEANINGS)
def test_what_folders_mean(tmp_path, name):
    folders, classes, count, words = MEANINGS[name]
    filled(tmp_path, *folders)
    data, said = read(tmp_path)
    assert data.classes == classes and len(data) == count
    assert [words in text for text in said] == ([True] if words else []), said
    if classes:
        assert data.counts == [count//len(classes)]*len(classes)


def test_a_stray_picture_is_warned_of(tmp_path):
    filled(tmp_path, 'cat', 'dog')
    noise(tmp_path/'preview.png')
    data, said = read(tmp_path)
    assert data.classes == () and '1 files lie beside the folders cat, dog' in said[0]


def test_a_stray_picture_beside_a_split_does_not_undo_it(tmp_path):
    filled(tmp_path, 'train/cat', 'train/dog', 'test/cat', 'test/dog', count=12)
    noise(tmp_path/'sample.png')
    with pytest.warns(UserWarning, match='1 files beside the parts test, train are left out'):
        train, test = load_data(tmp_path, 8)
    assert (len(train), len(test)) == (24, 24) and train.counts == test.counts == [12, 12]


def test_masks_beside_their_pictures_are_left_out(tmp_path):
    filled(tmp_path, 'cat', 'dog')
    for path in list(tmp_path.rglob('*.png')):
        noise(path.with_name(f'{path.stem}_mask.png'))
    noise(tmp_path/'cat'/'the_mask.png')                         # a picture without another
    data, said = read(tmp_path)
    assert data.counts == [6, 5] and '10 files look like annotations' in said[0] and '_mask.png' in said[0]


HELD_OUT = { # val/: folders -> classes of the test images, words
    'flat': ([''], (), 'no subfolder, which is no class'),
    'in one folder, as tiny-imagenet': (['images'], (), 'images, which is no class'),
    'with a class more': (['cat', 'bird'], (), 'bird, which is no class'),
    'with a class less': (['cat'], ('cat', 'dog'), None),
}


@pytest.mark.parametrize('name', HELD_OUT)
def test_classes_are_those_of_the_training_part(tmp_path, name):
    folders, classes, words = HELD_OUT[name]
    filled(tmp_path, 'train/cat', 'train/dog', *(f'val/{f}' for f in folders), count=12)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        train, test = load_data(tmp_path, 8)
    assert train.classes == ('cat', 'dog') and train.counts == [12, 12] and test.classes == classes
    assert [words in str(w.message) for w in caught] == ([True] if words else [])


def test_many_classes_of_few_pictures_are_warned_of(tmp_path):
    filled(tmp_path, *(f'person {i}' for i in range(30)), count=2)
    data, said = read(tmp_path)
    assert len(data.classes) == 30 and '30 classes of 2.0 pictures on average' in said[0]
    assert '(30 in all)' in data.note and 'person 25' not in data.note


@pytest.mark.parametrize('parts,held', [(['train', 'val'], 'val'), (['train', 'val', 'test'], 'val'), (['train', 'test'], 'test')])
def test_a_given_split_is_kept(tmp_path, parts, held):
    for part in parts:
        filled(tmp_path, f'{part}/cat', f'{part}/dog', count=12)
    train, test = load_data(tmp_path, 8)
    both, _ = read(tmp_path)
    assert (len(train), len(test)) == (24, 24) and train.classes == test.classes == ('cat', 'dog')
    with_size = [Image.open(p).resize((8, 8), Image.Resampling.LANCZOS) for p in (tmp_path/held).rglob('*.png')]
    theirs = ImageData(torch.stack([torch.from_numpy(np.asarray(im)).permute(2, 0, 1) for im in with_size]))
    assert set(test.hashes().tolist()) == set(theirs.hashes().tolist())
    assert f'the part {held} is held out, as given' in test.note
    assert ('24 files of other parts are left aside' in test.note) == (len(parts) == 3)


def test_links_to_class_folders_are_followed(tmp_path):
    filled(tmp_path/'elsewhere', 'a', 'b')
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'cat').symlink_to(tmp_path/'elsewhere'/'a')
    (tmp_path/'data'/'dog').symlink_to(tmp_path/'elsewhere'/'b')
    data, said = read(tmp_path/'data')
    assert data.classes == ('cat', 'dog') and data.counts == [5, 5] and not said


def test_a_loop_of_links_ends(tmp_path):
    filled(tmp_path, 'cat', 'dog')
    (tmp_path/'cat'/'up').symlink_to(tmp_path)
    (tmp_path/'dog'/'twin').symlink_to(tmp_path/'cat')
    data, said = read(tmp_path)
    assert len(data) == 10 and len(said) == 2 and all('it is read once' in text for text in said)


def test_a_link_to_nothing_is_named(tmp_path):
    filled(tmp_path, 'cat')
    (tmp_path/'cat'/'gone.png').symlink_to(tmp_path/'nowhere.png')
    with pytest.raises(InputError, match='1 of 6 files cannot be read.*gone.png'):
        image_folder(tmp_path, 8)


def test_all_that_pillow_reads_is_read_and_the_rest_is_counted(tmp_path):
    for i, ending in enumerate(['JPG', 'jfif', 'avif', 'webp', 'jp2', 'tga', 'ppm', 'ico', 'qoi', 'jpe', 'dib']):
        noise(tmp_path/f'{i}.{ending}', (32, 32))
    for name in 'a.heic', 'b.HEIC', 'c.txt', 'd.svg', 'README', 'e.mp4':
        (tmp_path/name).write_bytes(b'?')
    data, said = read(tmp_path)
    assert len(data) == 11 and not said
    assert 'ignored: .heic: 2, ' in data.note and 'without ending: 1' in data.note and '.mp4: 1' in data.note


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_a_pipe_does_not_block(tmp_path):
    noise(tmp_path/'a.png')
    os.mkfifo(tmp_path/'b.png')
    assert 'ignored: pipe or device: 1' in read(tmp_path)[0].note


def test_a_wrong_ending_does_not_matter(tmp_path):
    noise(tmp_path/'x.png', format='JPEG')
    assert len(read(tmp_path)[0]) == 1


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path/'a.heic').write_bytes(b'?')
    with pytest.raises(InputError, match='holds no images that can be read here; what it holds: .heic: 1'):
        list_images(tmp_path)


def test_natural_order():
    names = ['11', '2', '1', 'b', 'A', 'a10', 'a9', '02']
    assert sorted(names, key=natural) == ['1', '02', '2', '11', 'A', 'a9', 'a10', 'b']


# Deep images: an array and its ending -> the levels of its least and greatest value
DEEP = {
    '12 bits in 16': (np.linspace(0, 4095, 64*64).astype(np.uint16), 'png'),
    'all 16 bits': (np.linspace(0, 65535, 64*64).astype(np.uint16), 'png'),
    'signed, as Hounsfield units': (np.linspace(-1024, 2000, 64*64).astype(np.int32), 'tif'),
    'floats': (np.linspace(0, 1, 64*64).astype(np.float32), 'tif'),
    'floats that are small': (np.linspace(-1e-6, 1e-6, 64*64).astype(np.float32), 'tif'),
    '16 bits as PGM': (np.linspace(0, 1000, 64*64).astype(np.uint16), 'pgm'),
}


@pytest.mark.parametrize('name', DEEP)
def test_deep_images_are_scaled_by_the_range_of_their_folder(tmp_path, name):
    values, ending = DEEP[name]
    for i, part in enumerate((values, values[::-1], values//2 if values.dtype.kind != 'f' else values/2)):
        Image.fromarray(part.reshape(64, 64)).save(tmp_path/f'{i}.{ending}')
    data, said = read(tmp_path, channels=None)
    data = image_folder(tmp_path, 64)
    low, high = values.min(), values.max()
    assert data.levels[:2].aminmax() == (0, 255) and not said
    assert data.levels[0].float().diff(dim=2).ge(-1).all() and data.levels[0].unique().numel() > 200
    half = round(255*float(values.max()/2 - low)/float(high - low))
    assert abs(int(data.levels[2].max()) - half) <= 1        # one range for all of them
    assert f'3 of more than 8 bits, scaled from their common range of {low:.6g} to {high:.6g}' in data.note


def test_a_deep_image_unlike_the_others_is_warned_of(tmp_path):
    for i in range(20):
        values = np.random.default_rng(i).integers(0, 4096, (20, 20)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path/f'{i}.png')
    before, said = read(tmp_path)
    assert not said and before.value_range == (before.value_range[0], before.value_range[1])
    Image.fromarray(np.full((20, 20), 65535, np.uint16)).save(tmp_path/'odd.png')
    after, said = read(tmp_path)
    assert after.levels.float().mean() < before.levels.float().mean()/5
    # a model keeps the range of its data, and what is held against it is scaled alike
    same, _ = read(tmp_path, value_range=before.value_range)
    assert torch.isin(before.hashes(), same.hashes()).all()


def test_nearly_black_pictures_are_warned_of(tmp_path):
    for i in range(20):
        noise(tmp_path/'bits'/f'{i}.png', mode='L')
        with Image.open(tmp_path/'bits'/f'{i}.png') as im:
            im.point(lambda v: v > 127).save(tmp_path/'bits'/f'{i}.png')
    data, said = read(tmp_path/'bits')
    assert 'no picture is brighter than level 1 of 255' in said[0]


def deep_colour_png(path, values): # (h, w, 3), uint16; Pillow cannot write one
    def chunk(kind, data):
        return len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')
    h, w, _ = values.shape
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    header = w.to_bytes(4, 'big') + h.to_bytes(4, 'big') + bytes([16, 2, 0, 0, 0])
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


def test_sixteen_bits_a_colour_are_warned_of(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (20, 20, 3)).astype(np.uint16)
    deep_colour_png(tmp_path/'a.png', values)
    _, said = read(tmp_path)
    assert '1 files have 16 bits a colour' in said[0] and 'no picture is brighter than level 1' in said[1]


def test_deep_and_plain_images_together_are_warned_of(tmp_path):
    noise(tmp_path/'plain.png')
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(tmp_path/'deep.png')
    data, said = read(tmp_path)
    assert len(data) == 2 and '1 files have more than 8 bits' in said[0]
    deep = data.levels[0]                                        # in all channels
    assert deep.shape[0] == 3 and deep[0].equal(deep[2]) and deep.float().diff(dim=2).gt(0).all()


def test_floats_that_are_not_numbers_are_named(tmp_path):
    values = np.ones((20, 20), np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path/'hole.tif')
    with pytest.raises(InputError, match='hole.tif.*NaN'):
        image_folder(tmp_path, 8)


def grey_as_rgb(path, tinge=0, **options):
    grey = np.random.default_rng(len(path.name)).integers(0, 250, (20, 20, 1), np.uint8)
    Image.fromarray(grey + np.array([tinge, 0, 0], np.uint8)).save(path, **options)


@pytest.mark.parametrize('name,channels', [('a.png', 1), ('a.jpg', 1), ('a.gif', 1), ('a.webp', 1)])
def test_grey_stored_as_rgb_is_grey(tmp_path, name, channels):
    options = dict(lossless=True) if name.endswith('webp') else {}
    grey_as_rgb(tmp_path/name, **options)
    assert read(tmp_path)[0].levels.shape[1] == channels
    assert read(tmp_path, channels=3)[0].levels.shape[1] == 3


def test_one_picture_in_colour_makes_all_rgb(tmp_path):
    for i in range(4):
        grey_as_rgb(tmp_path/f'{i}.png')
    grey_as_rgb(tmp_path/'9.png', tinge=5)
    data, _ = read(tmp_path)
    assert data.levels.shape[1] == 3 and 'RGB' in data.note
    assert data.levels[0][0].equal(data.levels[0][1]) and not data.levels[4][0].equal(data.levels[4][1])


def test_pages_and_frames_are_said(tmp_path):
    frames = [Image.fromarray(np.full((20, 20), 40*i, np.uint8)) for i in range(5)]
    for name in 'film.gif', 'book.tiff', 'film.webp', 'film.png':
        frames[0].save(tmp_path/name, save_all=True, append_images=frames[1:])
    noise(tmp_path/'one.gif')
    data, said = read(tmp_path)
    assert len(data) == 5 and '4 files have several pages or frames' in said[0] and 'only the first' in said[0]


def test_what_a_square_loses_is_said(tmp_path):
    noise(tmp_path/'wide.png', (400, 10))
    noise(tmp_path/'square.png', (30, 30))
    data, said = read(tmp_path)
    assert 'cut to squares, which keep 51 % of the area' in data.note
    assert '1 pictures keep less than a quarter of their area as squares, wide.png 2 %' in said[0]


def test_pictures_of_one_name_in_two_folders_count_twice(tmp_path):
    noise(tmp_path/'a'/'1.png', (400, 10))
    noise(tmp_path/'b'/'1.png', (30, 30))
    data, said = read(tmp_path)
    assert 'which keep 51 % of the area' in data.note
    assert any('1 pictures keep less than a quarter' in text for text in said)


def test_a_part_without_labels_is_put_aside_and_the_rest_is_split(tmp_path):
    filled(tmp_path, 'train/cat', 'train/dog', count=40)
    filled(tmp_path, 'unlabeled', count=30)
    train, test = load_data(tmp_path, 8)
    assert len(train) + len(test) == 80 and len(test) >= 4 and train.classes == ('cat', 'dog')
    assert '30 files of other parts are left aside' in test.note


def test_all_unreadable_files_are_named_at_once(tmp_path):
    filled(tmp_path, 'cat', 'dog', count=20)
    for i in (3, 7):
        path = tmp_path/'cat'/f'cat-{i}.png'
        path.write_bytes(path.read_bytes()[:200])                # fails when it is decoded
    (tmp_path/'dog'/'dog-0.png').write_bytes(b'')               # fails when it is opened
    with pytest.raises(InputError) as error:
        load_data(tmp_path, 8)
    text = str(error.value)
    assert '3 of 40 files' in text and '--skip-unreadable' in text
    assert all(name in text for name in ('cat-3.png', 'cat-7.png', 'dog-0.png'))
    with pytest.warns(UserWarning, match='3 of 40 files cannot be read as images and are skipped'):
        train, test = load_data(tmp_path, 8, skip_unreadable=True)
    assert len(train) + len(test) == 37
    assert sorted(Counter(torch.cat([train.labels, test.labels]).tolist()).values()) == [18, 19]


def test_two_hundred_unreadable_files_do_not_fill_the_screen(tmp_path):
    filled(tmp_path, 'cat', count=20)
    for i in range(200):
        (tmp_path/f'{i}.png').write_bytes(b'no picture')
    with pytest.raises(InputError) as error:
        image_folder(tmp_path, 8)
    assert '200 of 220 files' in str(error.value) and len(str(error.value)) < 1000


def test_one_more_picture_does_not_move_the_others(tmp_path):
    filled(tmp_path, 'cat', 'dog', count=300)
    before = [set(part.hashes().tolist()) for part in load_data(tmp_path, 8)]
    assert 30 <= len(before[1]) <= 90 and not before[0] & before[1]
    for i in range(25):
        noise(tmp_path/'cat'/f'new-{i}.png', seed=10_000 + i)
    os.rename(tmp_path/'cat'/'cat-0.png', tmp_path/'dog'/'aaa.png')
    train, test = (set(part.hashes().tolist()) for part in load_data(tmp_path, 8))
    assert not test & before[0] and not train & before[1]        # nothing changed sides
    assert before[0] | before[1] < train | test and len(train | test) == 625


def test_copies_of_a_picture_stay_together(tmp_path):
    filled(tmp_path, 'cat', count=150)
    for path in list((tmp_path/'cat').iterdir()):
        (tmp_path/'cat'/f'copy of {path.name}').write_bytes(path.read_bytes())
    for held_out in .1, .5:
        train, test = load_data(tmp_path, 8, held_out=held_out)
        assert not set(train.hashes().tolist()) & set(test.hashes().tolist())
    assert '150 are copies of others, byte for byte' in train.note
    assert '150 of 300 pictures are copies of others' in read(tmp_path)[1][0]


def test_one_picture_in_two_files_is_not_on_both_sides(tmp_path):
    filled(tmp_path, 'cat', count=200)
    for path in list((tmp_path/'cat').iterdir()):
        with Image.open(path) as im:
            im.save(tmp_path/'cat'/f'again {path.name}', compress_level=0)
    with pytest.warns(UserWarning, match='held-out pictures are also among those to train on'):
        train, test = load_data(tmp_path, 8)
    assert not set(train.hashes().tolist()) & set(test.hashes().tolist()) and 0 < len(test) < 20


def test_a_split_with_the_same_pictures_in_both_parts(tmp_path):
    filled(tmp_path, 'train/cat', count=20)
    for path in list((tmp_path/'train'/'cat').iterdir()):
        noise(tmp_path/'val'/'cat'/path.name)
    with pytest.warns(UserWarning, match='20 of 20'), pytest.raises(InputError, match='all held-out pictures'):
        load_data(tmp_path, 8)


@pytest.mark.parametrize('held_out', [10, 1., 0, 0., -.1, 1.5, float('nan'), '0.1', None, True])
def test_a_part_is_a_part(tmp_path, held_out):
    filled(tmp_path, 'cat', count=20)
    with pytest.raises(InputError, match='expected a part of the images'):
        load_data(tmp_path, 8, held_out=held_out)


def test_a_folder_named_like_built_in_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert built_in('fashion') == 'fashion'
    filled(tmp_path, 'fashion', 'fashion-full', count=20)
    for name in 'fashion', 'fashion-full':
        with pytest.raises(InputError, match=f'write ./{name} for the folder, builtin:{name} for the data'):
            load_data(name)
        assert len(load_data(f'./{name}', 8)[0]) < 20
    assert len(load_data('builtin:fashion')[0]) == 10_000
    assert len(load_data(tmp_path/'fashion', 8)[0]) < 20        # a Path is a folder


def test_data_in_proportion():
    labels = proportional_labels([1000, 60], 1060)
    assert labels.bincount().tolist() == [1000, 60]
    assert proportional_labels([1000, 60], 100).bincount().tolist() == [94, 6]
    for n in range(1, 40):                                       # every beginning is in proportion
        assert abs((labels[:n] == 1).sum() - n*60/1060) <= 1
    assert proportional_labels([7]*200, 50).tolist() == list(range(50))
    with pytest.raises(InputError, match='counts'):
        proportional_labels([0, 0], 3)
    few = torch.stack([proportional_labels([890, 55], 8, seed) for seed in range(400)])
    assert abs((few == 1).float().mean() - 55/945) < .012        # small draws, too
    assert proportional_labels([5, 5, 5], 4, 7).tolist() == [0, 1, 2, 0]


WRONG_SETS = {
    'one image without a batch': (lambda x, y: ImageData(x[0], y), r'\(n, c, h, w\)'),
    'two channels': (lambda x, y: ImageData(x[:, :1].expand(-1, 2, -1, -1), y), 'c = 1 or 3'),
    'channels last': (lambda x, y: ImageData(x.permute(0, 2, 3, 1), y), 'c = 1 or 3'),
    'in 0 to 255, as floats': (lambda x, y: ImageData((x + 1)*127.5, y), r'expected \[-1, 1\]'),
    'whole numbers, not bytes': (lambda x, y: ImageData(x.long(), y), 'expected uint8'),
    'an array': (lambda x, y: ImageData(x.numpy(), y), 'from_uint8'),
    'NaN': (lambda x, y: ImageData(x*float('nan'), y), 'NaN'),
    'labels as floats': (lambda x, y: ImageData(x, y.float()), 'whole numbers'),
    'a label too few': (lambda x, y: ImageData(x, y[1:]), '4 whole numbers'),
    'a label that is no class': (lambda x, y: ImageData(x, y + 1, ('a', 'b')), '0 to 1'),
    'a negative label': (lambda x, y: ImageData(x, y - 1, ('a', 'b')), '0 to 1'),
}


@pytest.mark.parametrize('name', WRONG_SETS)
def test_a_set_checks_itself(name):
    make, words = WRONG_SETS[name]
    x, y = torch.linspace(-1, 1, 4*3*5*5).view(4, 3, 5, 5), torch.tensor([0, 1, 0, 1])
    with pytest.raises(InputError, match=words):
        make(x, y)


def test_levels_are_what_was_given():
    x = torch.rand(4, 3, 5, 5)*2 - 1
    data = ImageData(x, [0, 1, 1, 0], ['a', 'b'])
    assert (data.images - x).abs().max() <= 1/255 + 1e-6 and data.levels.dtype == torch.uint8
    assert data[1].levels.equal(data.levels[1:2]) and data[data.labels == 1].counts == [0, 2]
    assert data.hashes()[2:].equal(data[2:].hashes()) and data.hashes().unique().numel() == 4


# Pictures of a red half and a blue half, left and right: (w, h) of the file, size asked for, fit ->
# box of the content (top, left, height, width), and words of the note
FITTED = [
    ((64, 64), (32, 32), 'crop', (0, 0, 32, 32), 'cut to squares, which keep 100 %'),
    ((64, 64), (32, 32), 'stretch', (0, 0, 32, 32), 'by up to 1.0 times more'),
    ((64, 64), (32, 32), 'pad', (0, 0, 32, 32), 'padded to squares, of which they fill 100 %'),
    ((64, 64), (48, 32), 'crop', (0, 0, 48, 32), 'cut to rectangles, which keep 67 %'),
    ((64, 64), (48, 32), 'stretch', (0, 0, 48, 32), 'by up to 1.5 times more'),
    ((64, 64), (48, 32), 'pad', (8, 0, 32, 32), 'padded to rectangles, of which they fill 67 %'),
    ((128, 64), (32, 32), 'crop', (0, 0, 32, 32), 'keep 50 %'),
    ((128, 64), (32, 32), 'stretch', (0, 0, 32, 32), 'by up to 2.0 times more'),
    ((128, 64), (32, 32), 'pad', (8, 0, 16, 32), 'fill 50 %'),
    ((128, 64), (48, 32), 'crop', (0, 0, 48, 32), 'keep 33 %'),
    ((128, 64), (48, 32), 'stretch', (0, 0, 48, 32), 'by up to 3.0 times more'),
    ((128, 64), (48, 32), 'pad', (16, 0, 16, 32), 'fill 33 %'),
    ((64, 128), (32, 32), 'crop', (0, 0, 32, 32), 'keep 50 %'),
    ((64, 128), (32, 32), 'stretch', (0, 0, 32, 32), 'by up to 2.0 times more'),
    ((64, 128), (32, 32), 'pad', (0, 8, 32, 16), 'fill 50 %'),
    ((64, 128), (48, 32), 'crop', (0, 0, 48, 32), 'keep 75 %'),
    ((64, 128), (48, 32), 'stretch', (0, 0, 48, 32), 'by up to 1.3 times more'),
    ((64, 128), (48, 32), 'pad', (0, 4, 48, 24), 'fill 75 %'),
    ((90, 60), (32, 32), 'crop', (0, 0, 32, 32), 'keep 67 %'),
    ((90, 60), (32, 32), 'stretch', (0, 0, 32, 32), 'by up to 1.5 times more'),
    ((90, 60), (32, 32), 'pad', (5, 0, 21, 32), 'fill 67 %'),
    ((90, 60), (48, 32), 'crop', (0, 0, 48, 32), 'keep 44 %'),
    ((90, 60), (48, 32), 'stretch', (0, 0, 48, 32), 'by up to 2.2 times more'),
    ((90, 60), (48, 32), 'pad', (13, 0, 21, 32), 'fill 44 %'),
    ((20, 30), (32, 32), 'crop', (0, 0, 32, 32), '(1 enlarged); cut to squares, which keep 67 %'),
    ((20, 30), (32, 32), 'stretch', (0, 0, 32, 32), '(1 enlarged); stretched to squares'),
    ((20, 30), (32, 32), 'pad', (0, 5, 32, 21), '(1 enlarged); padded to squares'),
    ((20, 30), (48, 32), 'crop', (0, 0, 48, 32), 'keep 100 %'),
    ((20, 30), (48, 32), 'stretch', (0, 0, 48, 32), 'by up to 1.0 times more'),
    ((20, 30), (48, 32), 'pad', (0, 0, 48, 32), 'fill 100 %'),
]


@pytest.mark.parametrize('size,frame,fit,box,words', FITTED)
def test_fits(tmp_path, size, frame, fit, box, words):
    im = Image.new('RGB', size, 'red')
    im.paste('blue', (size[0]//2, 0, *size))
    im.save(tmp_path/'a.png')
    data = image_folder(tmp_path, frame, fit=fit)
    x, (top, left, h, w) = data.levels[0], box
    assert x.shape == (3, *frame) and f'{frame[0]} x {frame[1]}, RGB' in data.note and words in data.note
    if box == (0, 0, *frame):
        assert data.content is None
        inside = torch.ones(frame, dtype=torch.bool)
    else:
        assert data.content.tolist() == [list(box)] and data.content.dtype == torch.int32
        inside = content_mask(data.content, frame)[0, 0].bool()
        edge = x[:, ~inside]                                      # one colour, half red and half blue
        assert edge.unique(dim=1).shape[1] == 1 and (edge[:, 0] - torch.tensor([127.5, 0, 127.5])).abs().max() < 20
    assert inside.sum() == h*w and inside[top:top+h, left:left+w].all()
    row = x[:, top + h//2, left:left+w].float()
    assert (row[0, :w//2 - 3] > 240).all() and (row[2, w//2 + 3:] > 240).all()   # the middle stays in the middle
    f = 4
    cells = torch.zeros(frame[0]//f, frame[1]//f)
    for i in range(top, top + h):
        cells[i//f, left//f:-(-(left + w)//f)] = 1
    assert torch.equal(content_mask(torch.tensor([box]), frame, f)[0, 0], cells)


@pytest.mark.filterwarnings('ignore:no picture is brighter')
@pytest.mark.parametrize('mode,value', [('L', 40), ('RGB', (40, 80, 120)), ('F', 40.5), ('RGBA', (0, 0, 0, 0))])
def test_padding_of_every_kind(tmp_path, mode, value):
    for k in range(2):
        im = Image.new(mode, (40, 20 + 20*k), 200. if k and mode == 'F' else value)
        if mode != 'F':
            im.putpixel((20, 9), 200 if mode == 'L' else (200, 0, 0, 255)[:len(mode)])
        im.save(tmp_path/f'{k}.{"tif" if mode == "F" else "png"}')
    data = image_folder(tmp_path, 16, fit='pad')
    assert data.content.tolist() == [[4, 0, 8, 16], [0, 0, 16, 16]]
    expected = {'F': 0, 'RGBA': 255}.get(mode, value)            # the darkest of all is 0, nothing on white is white
    assert (data.levels[0, :, 0, 0].int() - torch.tensor(expected)).abs().max() < 3
    assert data.levels[0, :, :4].flatten(1).unique(dim=1).shape[1] == 1


def test_boxes_follow_their_images():
    boxes = torch.tensor([[0, 0, 5, 7], [1, 2, 3, 4], [2, 0, 1, 7]])
    data = ImageData(torch.zeros(3, 1, 5, 7), torch.tensor([0, 1, 1]), content=boxes)
    assert data[1].content.tolist() == [[1, 2, 3, 4]] and data[data.labels == 1].content.tolist() == boxes[1:].tolist()
    other = ImageData(data.levels, data.labels)
    assert data.fingerprint() != other.fingerprint() and data.hashes().equal(other.hashes())
    x = torch.zeros(3, 1, 5, 7)
    for k, (t, l, h, w) in enumerate(boxes):
        x[k, :, t:t+h, l:l+w] = 1
    assert torch.equal(content_mask(boxes, (5, 7)), x)
    padded = pad_images(x*2 - 1, 8)                                # black outside
    assert torch.equal(content_mask(pad_content(boxes, (5, 7), 8), (8, 8)), (padded + 1)/2)
    wrong = {'floats': boxes.float(), 'too few': boxes[1:], 'outside': boxes + 1, 'empty': boxes*torch.tensor([1, 1, 0, 1])}
    for given in wrong.values():
        with pytest.raises(InputError, match='content'):
            ImageData(torch.zeros(3, 1, 5, 7), content=given)


@pytest.mark.parametrize('text,size', [('64', (64, 64)), (96, (96, 96)), ('96x64', (96, 64)), ('96X64', (96, 64)), ('96 × 64', (96, 64)),
                                       ('96x', None), ('x', None), ('-64', None), ('64.0', None), ('64x4', None), ('', None), ('1x2x3', None)])
def test_sizes_as_they_are_typed(text, size):
    if size:
        assert parse_size(text) == size
    else:
        with pytest.raises(InputError, match='HEIGHTxWIDTH|8 or more'):
            parse_size(text)


@pytest.mark.parametrize('options,words', [(dict(size=(32, 4)), '8 or more'), (dict(size=(32,)), 'height, width'), (dict(size=(32.5, 8)), 'whole number'),
                                           (dict(fit='zoom'), 'choose crop, stretch, pad'), (dict(channels=2), 'expected 1, 3'), (dict(split='a'), 'belong to hub:')])
def test_wrong_sizes_and_fits(tmp_path, options, words):
    filled(tmp_path, 'cat', count=20)
    with pytest.raises(InputError, match=words):
        load_data(tmp_path, **options)


def test_very_narrow_pictures_are_warned_of_whatever_the_fit(tmp_path):
    noise(tmp_path/'wide.png', (400, 10))
    for fit, words in dict(crop='keep less than a quarter', pad='fill less than a quarter', stretch='more than four times').items():
        _, said = read(tmp_path, fit=fit)
        assert words in said[0] and 'wide.png' in said[0]


# The cache: what is done to a folder or to its cache -> is it read anew?
def change(path):
    time.sleep(.01)
    noise(path/'photos'/'cat'/'cat-0.png', seed=99)


CHANGES = {
    'nothing': (lambda path: None, False),
    'a picture changed': (change, True),
    'a picture more': (lambda path: noise(path/'photos'/'cat'/'z.png'), True),
    'a picture less': (lambda path: (path/'photos'/'cat'/'cat-0.png').unlink(), True),
    'a folder renamed': (lambda path: (path/'photos'/'dog').rename(path/'photos'/'wolf'), True),
    'the pictures cut short': (lambda path: [os.truncate(f, 1000) for f in (path/'cache').glob('*.npy')], True),
    'no bytes left': (lambda path: [os.truncate(f, 0) for f in (path/'cache').glob('*.npy')], True),
    'the pictures gone': (lambda path: [f.unlink() for f in (path/'cache').glob('*.npy')], True),
    'something else': (lambda path: [f.write_bytes(b'x'*9000) for f in (path/'cache').glob('*.npy')], True),
    'the card gone': (lambda path: [f.unlink() for f in (path/'cache').glob('*.safetensors')], True),
    'the card cut short': (lambda path: [os.truncate(f, 60) for f in (path/'cache').glob('*.safetensors')], True),
    'remains of a killed run': (lambda path: (path/'cache'/'.photos.npy.1.part').write_bytes(b'x'), False),
}


@pytest.mark.parametrize('name', CHANGES)
def test_a_cache_is_never_a_wrong_one(tmp_path, name):
    act, anew = CHANGES[name]
    filled(tmp_path/'photos', 'cat', 'dog', count=15)
    for path in list((tmp_path/'photos'/'cat').iterdir())[:3]:    # copies in other files, on both sides perhaps
        Image.open(path).save(tmp_path/'photos'/'dog'/f'{path.stem}.bmp')
    def both(**options):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            parts = load_data(tmp_path/'photos', (24, 16), .3, fit='pad', **options)
        return parts, sorted(str(w.message) for w in caught)
    both(cache=tmp_path/'cache')
    act(tmp_path)
    stamp = {f.name: f.stat().st_mtime_ns for f in (tmp_path/'cache').glob('[!.]*')}
    (expected, said), (found, said_again) = both(), both(cache=tmp_path/'cache')
    for a, b in zip(expected, found):
        assert a.levels.equal(b.levels) and a.content.equal(b.content) and a.labels.equal(b.labels)
        assert (a.classes, a.note, a.name, a.value_range) == (b.classes, b.note, b.name, b.value_range)
        assert a.fingerprint() == b.fingerprint() and a.hashes().equal(b.hashes())
        assert a[[2, 0, 1]].images.equal(b[[2, 0, 1]].images)
    assert said == said_again                                     # a warning is not forgotten
    files = {f.name: f.stat().st_mtime_ns for f in (tmp_path/'cache').glob('[!.]*')}
    assert len(files) == 2 and (files != stamp) == anew


def test_each_question_has_its_own_cache(tmp_path):
    filled(tmp_path/'photos', 'cat', 'dog', count=15)
    asked = [dict(), dict(size=16), dict(fit='stretch'), dict(held_out=.5), dict(channels=1), dict(size=(16, 32))]
    for options in asked*2:
        with_cache = load_data(tmp_path/'photos', cache=tmp_path/'cache', **options)
        for a, b in zip(load_data(tmp_path/'photos', **options), with_cache):
            assert a.levels.equal(b.levels)
    assert len(list((tmp_path/'cache').glob('*.npy'))) == len(asked)
    whole = image_folder(tmp_path/'photos', 16, cache=tmp_path/'cache')
    assert whole.levels.equal(image_folder(tmp_path/'photos', 16).levels)


def test_an_error_leaves_no_cache(tmp_path):
    filled(tmp_path/'photos', 'cat', count=25)
    (tmp_path/'photos'/'cat'/'broken.png').write_bytes(b'not a picture')
    with pytest.raises(InputError, match='broken.png'):
        load_data(tmp_path/'photos', 16, cache=tmp_path/'cache')
    assert not list((tmp_path/'cache').iterdir())
    with pytest.warns(UserWarning, match='1 of 26'):
        data = load_data(tmp_path/'photos', 16, skip_unreadable=True, cache=tmp_path/'cache')
    assert sum(map(len, data)) == 25


@pytest.mark.parametrize('name', ['12 bits in 16', 'floats'])
def test_deep_and_grey_pictures_in_a_cache(tmp_path, name):
    values, ending = DEEP[name]
    for i in range(3):
        (tmp_path/'photos').mkdir(exist_ok=True)
        Image.fromarray((values//(i + 1) if values.dtype.kind != 'f' else values/(i + 1)).reshape(64, 64)).save(tmp_path/'photos'/f'{i}.{ending}')
    plain = image_folder(tmp_path/'photos', 32)
    for _ in range(2):
        mapped = image_folder(tmp_path/'photos', 32, cache=tmp_path/'cache')
        assert mapped.levels.equal(plain.levels) and mapped.value_range == plain.value_range and mapped.levels.shape[1] == 1


def test_to_open_a_cache_costs_no_memory(tmp_path):
    "A set of 65 MB is opened and asked for an image: far less of it is in memory."
    code = """
import json, resource, sys, warnings
warnings.simplefilter('error')
from ldm_nb.data import load_data
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
few = load_data(sys.argv[1], 16, cache=sys.argv[2])[0][[0, 1]].images.sum()
before = peak()
train, test = load_data(sys.argv[1], 900, cache=sys.argv[2])
batch = train[5].images
print(json.dumps(dict(bytes=train.levels.nbytes, used=peak() - before, mean=float(batch.mean()))))"""
    filled(tmp_path/'photos', 'cat', count=30)
    train, _ = load_data(tmp_path/'photos', 900, cache=tmp_path/'cache')
    load_data(tmp_path/'photos', 16, cache=tmp_path/'cache')
    run = subprocess.run([sys.executable, '-c', code, tmp_path/'photos', tmp_path/'cache'], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    image_bytes = 3*900**2*(1 + 4 + 4 + 4)                       # as floats, and while they are scaled
    assert found['bytes'] > 60e6 and found['used'] < image_bytes + 15e6
    assert abs(found['mean'] - float(train[5].images.mean())) < 1e-6


@pytest.mark.parametrize('on_disk', [False, True])
def test_rows_grow_from_grey_to_colour(tmp_path, on_disk):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (9, 11, 3) if k in (4, 6) else (9, 11), np.uint8) for k in range(8)]
    for channels in None, 1, 3:
        rows = Rows((9, 11), channels, tmp_path/'rows.npy' if on_disk else None)
        for pixels in pictures[:4]:
            rows.add(pixels)
        assert rows.channels == (channels or 1)
        for pixels in pictures[4:]:
            rows.add(pixels)
        rows.close()
        levels = open_levels(tmp_path/'rows.npy') if on_disk else rows.levels()
        as_mode = 'L' if channels == 1 else 'RGB'
        expected = np.stack([np.asarray(Image.fromarray(p).convert(as_mode)) for p in pictures])
        expected = expected[:, None] if channels == 1 else np.moveaxis(expected, -1, 1)
        assert np.array_equal(levels.numpy(), expected) and rows.brightest == max(p.max() for p in pictures)
