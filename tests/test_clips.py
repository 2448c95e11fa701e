"Films on disk: what people have in folders, and what cannot be written."
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_nb.clips import MOVING, Clips, check_film, clip_values, ease, face_clips, play, read_clips, write_film
from ldm_nb.core import InputError, as_floats
from ldm_nb.world import EXPRESSIONS, FACE_NAMES, FACTORS, is_held_out


def film(n=6, size=12):
    levels = torch.randint(0, 255, (n, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
    return as_floats(levels)


def test_ends_are_faces_of_the_world():
    values = clip_values(40, 8, seed=1)
    assert not is_held_out(values[:, 0]).any() and not is_held_out(values[:, -1]).any()
    for frame in 0, -1: # the factors of an expression are in its ranges
        for row in values[:, frame]:
            ranges = list(EXPRESSIONS.values())[int(row[0])]
            for (low, high), name in zip(ranges, FACTORS):
                assert low - 1e-6 <= row[FACE_NAMES.index(name)] <= high + 1e-6
    assert is_held_out(clip_values(5, 4, which='held out')[:, -1]).all()


def test_paths_are_eased_and_whole():
    values = clip_values(4, 9)
    for name in MOVING:
        x = values[:, :, FACE_NAMES.index(name)]
        way = (x - x[:, :1])/(x[:, -1:] - x[:, :1])
        assert way.allclose(ease(torch.linspace(0, 1, 9)).expand(4, -1), atol=1e-3)
    assert (values[:, :4, 0] == values[:, :1, 0]).all() and (values[:, 5:, 0] == values[:, -1:, 0]).all()
    with pytest.raises(InputError):
        clip_values(2, 1)


def test_clips_check_themselves():
    clips = face_clips(2, 3, 16)
    assert clips.levels.dtype == torch.uint8 and clips.values.shape == (2, 3, 22) and len(clips) == 2
    for levels in torch.zeros(2, 3, 8, 8), None, torch.zeros(2, 3, 2, 8, 8):
        with pytest.raises(InputError):
            Clips(levels)
    with pytest.raises(InputError):
        Clips(clips.levels, clips.attributes, clips.values[:, :2])
    assert '<img alt="Film of 3 frames' in play(clips).data


@pytest.mark.parametrize('ending', ['.gif', '.webp', '.png', '.mp4', '.GIF'])
def test_written_films_play(tmp_path, ending):
    path = tmp_path/f'film{ending}'
    if ending == '.mp4' and not shutil.which('ffmpeg'):
        with pytest.raises(InputError, match='ffmpeg'): write_film(path, film())
        assert not list(tmp_path.iterdir())
        return
    write_film(path, torch.stack([film(), film()]), fps=5, cols=2, scale=1)
    assert path.stat().st_size > 100 and list(tmp_path.iterdir()) == [path]
    if ending != '.mp4':
        with Image.open(path) as im:
            assert im.n_frames == 6 and im.width > im.height and im.info.get('loop', 0) == 0


@pytest.mark.parametrize('name', ['film', 'film.avi', 'film.jpg', 'film.safetensors'])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(InputError, match='out.gif'): check_film(tmp_path/name)


def test_a_failed_film_leaves_the_old_one(tmp_path):
    path = tmp_path/'film.gif'
    write_film(path, film())
    before = path.read_bytes()
    with pytest.raises(InputError): write_film(path, film(), scale=0)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_lossless_ones_come_back(tmp_path):
    write_film(tmp_path/'ä ö.webp', film(4), scale=1)
    write_film(tmp_path/'b.png', film(4), scale=1)
    read = read_clips(tmp_path, 12, frames=4)
    assert read.levels.shape == (2, 4, 3, 12, 12) and all(as_floats(clip).allclose(film(4), atol=1/255) for clip in read.levels)
    one = read_clips(tmp_path, 12, frames=2).levels
    assert one[:, 0].equal(read.levels[:, 0]) and one[:, 1].equal(read.levels[:, -1])


def test_folders_of_frames(tmp_path):
    for name, frames in (('long', 11), ('short', 2)):
        (tmp_path/name).mkdir()
        for k in range(frames): # 2.png comes before 10.png
            Image.new('RGB', (20, 16), (20*k, 0, 0)).save(tmp_path/name/f'{k}.png')
    with pytest.warns(UserWarning, match='fewer than 3'):
        read = read_clips(tmp_path, 16, frames=3)
    assert read.levels[0, :, 0, 0, 0].tolist() == [0, 100, 200] and 'shorter' in read.note


def test_see_through_and_grey_frames(tmp_path):
    frames = [Image.fromarray(np.full((16, 16, 4), (0, 0, 0, a), np.uint8)) for a in (0, 255)]
    frames[0].save(tmp_path/'a.png', save_all=True, append_images=frames[1:])
    (tmp_path/'grey').mkdir()
    for k in range(2): Image.new('L', (16, 16), 80).save(tmp_path/'grey'/f'{k}.png')
    read = read_clips(tmp_path, 16, frames=2)
    assert read.levels[0, 0].min() == 255 and (read.levels[1] == 80).all()


def test_what_is_no_film(tmp_path):
    with pytest.raises(InputError, match='no folder'): read_clips(tmp_path/'none')
    with pytest.raises(InputError, match='no images'): read_clips(tmp_path)
    (tmp_path/'broken.gif').write_bytes(b'GIF89a' + b'\0'*20)
    with pytest.raises(InputError, match='broken.gif'): read_clips(tmp_path)
    (tmp_path/'broken.gif').unlink()
    write_film(tmp_path/'cut.gif', film())
    data = (tmp_path/'cut.gif').read_bytes()
    (tmp_path/'cut.gif').write_bytes(data[:len(data)//2])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(InputError): read_clips(tmp_path, 12, frames=6)
