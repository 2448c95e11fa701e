"What people type, and what their folders hold: one clear line, nothing lost, no traceback."
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shell import shell
from test_folders import filled, noise


def line(run, command, code=2):
    "The only line on standard error."
    assert run.returncode == code, run
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f'{command}: '), run
    return lines[0]


def train(*args, cwd, **env):
    return shell('ldm_train', '--steps', 1, '--size', 'smoke', *args, cwd=cwd, env=env)


# The device

@pytest.mark.parametrize('name', ['cuda', 'gpu', 'cuda:99', 'meta', 'cpu:x', 'mps'])
def test_a_device_that_is_not_there(tmp_path, name):
    import torch
    if name in ('cuda', 'mps') and getattr(torch, name).is_available():
        pytest.skip(f'{name} is there')
    run = train('--out', 'r', cwd=tmp_path, LDM_DEVICE=name)
    assert 'cannot be used here' in line(run, 'ldm_train') and not (tmp_path/'r').exists()
    run = train('--out', 'r', cwd=tmp_path, LDM_DEVICE='cpu')
    assert run.returncode == 0 and (tmp_path/'r'/'report.json').exists(), run


# Data, and where the results go

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "200 pictures in two unequal classes, and a model that was trained on them for a step."
    root = tmp_path_factory.mktemp('pictures')
    filled(root, 'data/cat', count=150)
    filled(root, 'data/dog', count=50)
    run = train('--data', 'data', '--pixels', 16, '--out', 'run', cwd=root)
    assert run.returncode == 0, run
    return root, run


def test_too_few_images_are_said_before_and_what_can_be_is_measured(pictures):
    root, run = pictures
    before, _, after = run.stdout.partition('500 images of 16 x 16')
    assert 'note: ' in before and 'Fréchet distance' in before.split('note: ')[1], run.stdout
    metrics = json.loads((root/'run'/'report.json').read_text())['metrics']
    assert 'kid' in metrics and np.isfinite(metrics['kid']['value']) and 'frechet_distance' not in metrics


@pytest.mark.parametrize('out', ['data/results', 'data', 'data/cat/x', 'link/results'])
def test_results_are_never_data(pictures, out):
    root, _ = pictures
    if not (root/'link').exists():
        (root/'link').symlink_to(root/'data')
    before = sorted(root.rglob('*'))
    assert 'in the folder of the data' in line(train('--data', 'data', '--out', out, cwd=root), 'ldm_train')
    assert sorted(root.rglob('*')) == before


def test_unreadable_files_are_skipped_if_asked(pictures, tmp_path):
    filled(tmp_path, 'data', count=30)
    for i in range(3):
        (tmp_path/'data'/f'broken-{i}.png').write_bytes(b'no picture')
    said = line(train('--data', 'data', '--out', 'r', cwd=tmp_path), 'ldm_train')
    assert '3 of 33 files' in said and all(f'broken-{i}.png' in said for i in range(3))
    run = train('--data', 'data', '--out', 'r', '--skip-unreadable', cwd=tmp_path)
    assert run.returncode == 0 and 'are skipped' in run.stderr, run
    for what in 'r', 'data':
        args = 'ldm_eval', what, '--data', 'data', '--features', 'pixels'
        assert '--skip-unreadable' in line(shell(*args, cwd=tmp_path), 'ldm_eval')
        run = shell(*args, '--skip-unreadable', cwd=tmp_path)
        assert run.returncode == 0 or 'metrics are left out' in run.stderr, run


def test_a_folder_named_like_the_data(tmp_path):
    filled(tmp_path, 'fashion', count=30)
    assert 'write ./fashion for the folder' in line(train('--out', 'r', cwd=tmp_path), 'ldm_train')
    assert 'write ./fashion' in line(shell('ldm_eval', 'fashion', cwd=tmp_path), 'ldm_eval')
    run = train('--out', 'r', '--data', './fashion', cwd=tmp_path)
    assert run.returncode == 0 and '30 files' in run.stdout, run
    assert shell('ldm_demo', '--out', 'd', '--steps', 1, '--size', 'smoke', cwd=tmp_path).returncode == 0


# Sampling

OUTS = {'x': 'ends in', 'x.xyz': 'ends in', 'taken/': 'not empty', 'taken': 'not empty',
        'file.txt/x.png': 'no folder', '/proc/x.png': 'cannot', '.png': 'ends in'}


@pytest.mark.parametrize('out', OUTS)
def test_where_samples_go_is_checked_before_they_are_drawn(tmp_path, out):
    (tmp_path/'taken').mkdir()
    (tmp_path/'taken'/'mine.txt').write_text('mine')
    (tmp_path/'file.txt').write_text('mine')
    run = shell('ldm_sample', 'fashion', '--out', out, '--n', 10**6, cwd=tmp_path)  # it would take hours
    assert OUTS[out] in line(run, 'ldm_sample')
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['file.txt', 'mine.txt', 'taken']


def test_an_array_needs_its_ending(tmp_path):
    run = shell('ldm_sample', 'fashion', '--npy', 'x.png', '--n', 10**6, cwd=tmp_path)
    assert 'must end in .npy' in line(run, 'ldm_sample')
    run = shell('ldm_eval', 'fashion', '--out', 'fashion.npy', cwd=tmp_path)
    assert 'must end in .json' in line(run, 'ldm_eval')


@pytest.mark.parametrize('name,kind', [('x.jpg', 'JPEG'), ('x.webp', 'WEBP'), ('a/b/x.PNG', 'PNG')])
def test_the_format_follows_the_ending(tmp_path, name, kind):
    run = shell('ldm_sample', 'fashion', '--n', 2, '--steps', 1, '--out', name, cwd=tmp_path)
    assert run.returncode == 0, run
    with Image.open(tmp_path/name) as im:
        assert im.format == kind


def test_a_folder_gets_a_file_for_each_sample(tmp_path):
    (tmp_path/'empty').mkdir()
    for out in 'new/', 'empty', 'deep/er/':
        run = shell('ldm_sample', 'fashion', '--n', 3, '--steps', 1, '--out', out, '--npy', 'x.npy', cwd=tmp_path)
        assert run.returncode == 0, run
        names = sorted(p.name for p in (tmp_path/out).iterdir())
        assert names == ['00000.png', '00001.png', '00002.png']
        read = np.stack([np.asarray(Image.open(tmp_path/out/name)) for name in names])
        assert (read == np.load(tmp_path/'x.npy')).all()
    assert not [p for p in tmp_path.rglob('.*')]


def test_classes_by_name_and_number_have_one_meaning(tmp_path):
    filled(tmp_path, *(f'data/{i}' for i in range(1, 12)), count=6)
    assert train('--data', 'data', '--pixels', 16, '--out', 'r', cwd=tmp_path).returncode == 0
    for label in '2', '11':
        run = shell('ldm_sample', 'r', '--n', 2, '--steps', 1, '--label', label, '--npy', f'{label}.npy', cwd=tmp_path)
        assert run.returncode == 0, run
    code = '''
from ldm_nb.core import InputError, to_uint8
from ldm_nb.training import LatentDiffusion
import numpy as np, torch
ldm = LatentDiffusion.from_pretrained('r')
assert ldm.classes == tuple(str(i) for i in range(1, 12))
for name, place in ('2', 1), ('11', 10):
    for labels in name, [name]*2, torch.tensor(place):
        drawn = to_uint8(ldm.sample(2, labels=labels, steps=1))
        assert (drawn == np.load(f'{name}.npy')).all(), (name, labels)
try: ldm.sample(2, labels=2)
except InputError as e: print(e)
'''
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith('label'), run
    assert 'label' in line(shell('ldm_sample', 'r', '--label', '12', cwd=tmp_path), 'ldm_sample')


def test_two_hundred_classes_do_not_fill_the_screen(tmp_path):
    filled(tmp_path, *(f'data/a rather long name of class {i}' for i in range(200)), count=1)
    run = train('--data', 'data', '--pixels', 8, '--out', 'r', cwd=tmp_path)
    assert run.returncode == 0 and len(run.stdout) < 6000 and run.stdout.count('a rather long name') < 40, run
    said = line(shell('ldm_sample', 'r', '--label', 'dog', cwd=tmp_path), 'ldm_sample')
    assert len(said) < 700 and '(200 in all)' in said


# Runs that end early, and go on

def test_an_unfinished_run_says_so(pictures, tmp_path):
    root, _ = pictures
    (tmp_path/'data').symlink_to(root/'data')
    args = ['--data', 'data', '--pixels', 16, '--out', 'r', '--size', 'smoke', '--minutes', .4]
    process = subprocess.Popen([Path(sys.executable).parent/'ldm_train', *map(str, args)], cwd=tmp_path,
                               env=os.environ | dict(OMP_NUM_THREADS='1'),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (tmp_path/'r'/'checkpoints'/'about.safetensors').exists() and time.monotonic() < end:
        time.sleep(.1)
    time.sleep(2)                                               # somewhere in stage two
    process.send_signal(signal.SIGTERM)                         # as a queue or a container ends it
    assert process.wait() == 130
    said = line(shell('ldm_sample', 'r', cwd=tmp_path), 'ldm_sample')
    assert 'not finished' in said and '--resume' in said and '--unfinished' in said
    run = shell('ldm_sample', 'r', '--unfinished', '--n', 2, '--steps', 1, '--npy', 'x.npy', cwd=tmp_path)
    assert run.returncode == 0 and np.load(tmp_path/'x.npy').shape == (2, 16, 16, 3), run
    said = line(train('--out', 'r', '--data', 'data', cwd=tmp_path), 'ldm_train')
    assert 'already holds a run' in said
    run = shell('ldm_train', '--resume', '--out', 'r', '--steps', 1, cwd=tmp_path)  # all else as it was
    assert run.returncode == 0 and '200 files' in run.stdout and (tmp_path/'r'/'report.json').exists(), run
    assert shell('ldm_sample', 'r', '--n', 2, '--steps', 1, cwd=tmp_path).returncode == 0


def test_a_finished_run_goes_on_for_longer(tmp_path):
    assert train('--out', 'r', cwd=tmp_path).returncode == 0
    steps = lambda: json.loads((tmp_path/'r'/'model'/'card.json').read_text())['steps']
    assert steps() == dict(autoencoder=1, denoiser=1)
    run = shell('ldm_train', '--resume', '--out', 'r', '--steps', 4, '--lr', '0.0001', cwd=tmp_path)
    assert run.returncode == 0 and steps() == dict(autoencoder=1, denoiser=4), run
    run = shell('ldm_train', '--resume', '--out', 'r', '--steps', 5, cwd=tmp_path) # the rate stays
    card = json.loads((tmp_path/'r'/'model'/'card.json').read_text())
    assert run.returncode == 0 and card['recipe']['lr'] == .0001, run
    said = line(shell('ldm_train', '--resume', '--out', 'r', '--steps', 6, '--seed', 1, cwd=tmp_path), 'ldm_train')
    assert 'seed' in said and len(said) < 300
    filled(tmp_path, 'other', count=30)
    said = line(shell('ldm_train', '--resume', '--out', 'r', '--data', 'other', cwd=tmp_path), 'ldm_train')
    assert '10,000' in said and len(said) < 400


def test_there_must_be_a_run_to_go_on_with(pictures, tmp_path):
    said = line(shell('ldm_train', '--resume', '--out', 'typo', cwd=tmp_path), 'ldm_train')
    assert 'typo holds no run to go on with' in said and not list(tmp_path.iterdir())
    root, _ = pictures
    (tmp_path/'data').symlink_to(root/'data')
    (tmp_path/'copy').mkdir()
    plan = json.loads((root/'run'/'run.json').read_text())
    plan['source']['data'] = str(tmp_path/'gone')
    (tmp_path/'copy'/'run.json').write_text(json.dumps(plan))
    assert 'which is gone: give its new place' in line(shell('ldm_train', '--resume', '--out', 'copy', cwd=tmp_path), 'ldm_train')


def test_two_runs_do_not_share_a_folder(pictures, tmp_path):
    import fcntl
    root, _ = pictures
    with open(tmp_path/'.r.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert 'another process is training in r' in line(train('--out', 'r', cwd=tmp_path), 'ldm_train')
    assert not (tmp_path/'r').exists()
    assert train('--out', 'r', cwd=tmp_path).returncode == 0 and not (tmp_path/'.r.lock').exists()


def test_a_model_keeps_the_range_of_deep_images(tmp_path):
    for i in range(80):
        values = np.random.default_rng(i).integers(0, 4096, (20, 20)).astype(np.uint16)
        (tmp_path/'scans').mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path/'scans'/f'{i}.png')
    assert train('--data', 'scans', '--pixels', 16, '--out', 'r', cwd=tmp_path).returncode == 0
    Image.fromarray(np.full((20, 20), 65535, np.uint16)).save(tmp_path/'scans'/'odd.png')
    run = shell('ldm_eval', 'r', '--data', 'scans', '--features', 'pixels', '--n', 20, '--steps', 1, cwd=tmp_path)
    assert run.returncode == 0 and 'level for level' not in run.stdout, run   # it knows them again


# Evaluating files

def test_files_are_measured_at_the_size_that_most_have(tmp_path):
    filled(tmp_path, 'data', 'made', count=60)
    noise(tmp_path/'made'/'0 first.png', (200, 200))
    run = shell('ldm_eval', 'made', '--data', 'data', '--features', 'pixels', cwd=tmp_path)
    assert run.returncode == 0 and '61 images of 20 x 20 x 3' in run.stdout, run
    assert '1 of 61 pictures in made are cut and resized to 20 x 20 (0 first.png has 200 x 200)' in run.stderr


def test_grey_against_colour_is_not_compared_in_silence(tmp_path):
    filled(tmp_path, 'colour', count=60)
    for i in range(60):
        noise(tmp_path/'grey'/f'{i}.png', mode='L')
    run = shell('ldm_eval', 'grey', '--data', 'colour', '--features', 'pixels', cwd=tmp_path)
    assert run.returncode == 0 and 'grey is grey, colour is in colour' in run.stderr, run
    run = shell('ldm_eval', 'colour', '--data', 'grey', '--features', 'pixels', cwd=tmp_path)
    assert 'compare like with like' in line(run, 'ldm_eval')


def test_exact_copies_of_a_folder_are_found_and_nothing_is_claimed(pictures):
    root, _ = pictures
    run = shell('ldm_eval', 'data', '--data', 'data', '--features', 'pixels', '--out', 'e.json', cwd=root)
    assert run.returncode == 0, run
    result = json.loads((root/'e.json').read_text())
    assert 'memorisation' not in result['metrics'] and sum(result['exact_copies'].values()) == 200
    assert 'not known' in run.stdout


def test_a_model_knows_what_it_was_trained_on(pictures, tmp_path):
    root, _ = pictures
    filled(tmp_path, 'other', count=30)
    for i in range(20):
        noise(tmp_path/'other'/f'new-{i}.png', seed=70_000 + i)
    run = shell('ldm_eval', root/'run', '--data', 'other', '--features', 'pixels', '--n', 50, '--steps', 1,
                '--out', 'e.json', cwd=tmp_path)
    assert run.returncode == 0, run
    assert 'memorisation' not in json.loads((tmp_path/'e.json').read_text())['metrics'], run
    for path in list((root/'data'/'cat').iterdir())[:12]:       # held out for nobody: all in val/
        target = tmp_path/'mixed'/'val'/path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path/'mixed'/'train').symlink_to(tmp_path/'other')
    run = shell('ldm_eval', root/'run', '--data', 'mixed', '--features', 'pixels', '--n', 50, '--steps', 1, cwd=tmp_path)
    assert run.returncode == 0 and 'held-out images were trained on' in run.stdout, run


# A log

def test_a_log_stays_short_and_its_columns_apart(tmp_path):
    run = shell('ldm_train', '--size', 'smoke', '--minutes', '.1', '--out', 'r', cwd=tmp_path, env=dict(TQDM_DISABLE=''))
    assert run.returncode == 0 and '\r' not in run.stderr and len(run.stderr.splitlines()) < 12, run
    table = run.stdout[run.stdout.index('± 95 %'):].splitlines()
    for row in table[1:6]:
        cells = [c for c in row[40:].split('  ') if c.strip()]
        assert 3 <= len(cells) <= 4, row


# The package, seen from a folder of its name

def test_a_folder_of_our_name_does_not_hide_us(tmp_path):
    (tmp_path/'ldm_nb'/'nbs').mkdir(parents=True)
    code = 'import ldm_nb, ldm_nb.commands; print(ldm_nb.__version__, ldm_nb.__file__)'
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and '__init__.py' in run.stdout, run


# Anything that can be typed, anything that can lie in a folder

HOSTILE = ['', ' ', '-1', '0', 'nan', 'inf', '1e400', '2.5', '99999999999999999999', 'ä/..', '../..', '/',
           '.', '..', '~', '*', 'a\nb', "'; rm x", '%s%n', '\\', '-', '--', 'None', 'fashion', '/dev/null', 'x'*5000]
ENDLESS = {('ldm_train', '--data'): ['/', '..', '../..'], ('ldm_eval', '--data'): ['/', '..', '../..'], # all pictures there
           ('ldm_eval', 'what'): ['/', '..', '../..'],
           ('ldm_train', '--steps'): ['99999999999999999999'], ('ldm_demo', '--steps'): ['99999999999999999999']}
OPTIONS = {
    'ldm_sample': (['fashion', '--n', '1', '--steps', '1'],
                   ['model', '--n', '--label', '--guidance', '--steps', '--seed', '--out', '--npy', '--autoguidance', '--sampler', '--spacing', '--negative']),
    'ldm_train': (['--steps', '1', '--size', 'smoke', '--out', 'r', '--data', 'data'],
                  ['--data', '--out', '--minutes', '--steps', '--size', '--pixels', '--seed', '--lr',
                   '--held-out', '--init', '--track', '--previews']),
    'ldm_eval': (['few.npy', '--features', 'pixels'],
                 ['what', '--data', '--features', '--n', '--guidance', '--steps', '--seed', '--out', '--reference']),
    'ldm_export': (['fashion', '--to', 'onnx', '--out', 'data'], ['model', '--to', '--guidance', '--steps']),
    'ldm_demo': (['--steps', '1', '--size', 'none'], ['--out', '--minutes', '--size', '--seed', '--steps']),
}


@pytest.mark.parametrize('command,option', [(c, o) for c, (_, options) in OPTIONS.items() for o in options])
def test_whatever_is_typed_there_is_no_traceback(tmp_path, command, option):
    args, _ = OPTIONS[command]
    np.save(tmp_path/'few.npy', np.zeros((9, 28, 28), np.uint8))
    filled(tmp_path, 'data', count=25)
    for value in HOSTILE:
        if value in ENDLESS.get((command, option), []):
            continue
        if option.startswith('--'):
            given = [*args, f'{option}={value}']
        else:
            given = [value, *args[1:]]
        run = shell(command, *given, cwd=tmp_path)
        text = run.stdout + run.stderr
        assert 'Traceback' not in text and 'a fault of ldm_nb' not in text, (given, run)
        assert run.returncode in (0, 2), (given, run)


def hostile_folder(root):
    "Forty good pictures, and files as they are found in the wild."
    filled(root, 'a', 'b', count=20)
    good = (root/'a'/'a-0.png').read_bytes()
    files = {
        'cut.png': good[:300], 'empty.jpg': b'', 'text.png': b'hello', 'zip.webp': b'PK\3\4' + bytes(40),
        'zeros.gif': bytes(2000), 'header only.png': good[:33], 'two in one.png': good + good,
        'flipped.png': good[:60] + bytes([good[60] ^ 255]) + good[61:], 'svg.tif': b'<svg xmlns="x"/>',
        'huge.png': good[:16] + (10**6).to_bytes(4, 'big')*2 + good[24:], 'nul.bmp': b'BM' + bytes(100),
        'line\nbreak.png': good, 'quote".png': good, "it's.png": good, 'ünïcode ☃.png': good, '-n.png': good,
        'percent%s.png': good, 'x'*200 + '.png': good, 'odd.TIFF': b'II*\0' + b'\xff'*50,
    }
    for name, content in files.items():
        (root/'a'/name).write_bytes(content)
    with open(os.path.join(os.fsencode(root/'a'), b'\xff\xfe.png'), 'wb') as f:
        f.write(good)
    exif = Image.Exif()
    exif[0x0112] = 99                                           # no such orientation
    Image.new('RGB', (30, 20)).save(root/'a'/'exif.jpg', exif=exif)
    Image.new('RGB', (30, 20)).save(root/'a'/'profile.png', icc_profile=b'nonsense')
    Image.new('RGB', (1, 1)).save(root/'a'/'one pixel.png')
    Image.new('P', (9, 9)).save(root/'a'/'palette.png', transparency=0)
    Image.new('RGB', (3000, 2)).save(root/'a'/'thread.png')
    (root/'a'/'folder.png').mkdir()
    (root/'a'/'loop.png').symlink_to(root/'a'/'loop.png')
    (root/'a'/'nowhere.png').symlink_to('/nowhere')
    (root/'a'/'device.png').symlink_to('/dev/zero')
    os.mkfifo(root/'a'/'pipe.png')
    with socket.socket(socket.AF_UNIX) as s:
        here = Path.cwd()
        os.chdir(root/'a')                                      # its address may not be long
        s.bind('socket.png')
        os.chdir(here)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes and links')
def test_whatever_a_folder_holds_there_is_no_traceback(tmp_path):
    hostile_folder(tmp_path/'data')
    for command in (['ldm_train', '--data', 'data', '--steps', '1', '--size', 'smoke', '--out', 'r'],
                    ['ldm_eval', 'data', '--data', 'fashion'], ['ldm_eval', 'fashion', '--data', 'data']):
        run = shell(*command, cwd=tmp_path)
        assert run.returncode == 2 and 'Traceback' not in run.stderr and 'a fault of' not in run.stderr, run
        assert 'files cannot be read as images' in run.stderr or 'images of' in run.stderr, run
    run = shell('ldm_train', '--data', 'data', '--steps', '1', '--size', 'smoke', '--out', 'r', '--skip-unreadable',
                cwd=tmp_path)
    assert run.returncode == 0 and (tmp_path/'r'/'report.json').exists(), run


def test_what_belongs_to_models_is_refused_for_files(tmp_path):
    np.save(tmp_path/'few.npy', np.arange(20*784, dtype=np.uint8).reshape(20, 28, 28))
    said = line(shell('ldm_eval', 'few.npy', '--n', 10, '--guidance', 3, cwd=tmp_path), 'ldm_eval')
    assert 'n, guidance are for a model' in said


def test_an_unfinished_run_is_no_folder_of_pictures(tmp_path):
    (tmp_path/'r').mkdir()
    (tmp_path/'r'/'run.json').write_text('{}')
    assert 'r is not a model' in line(shell('ldm_eval', 'r', cwd=tmp_path), 'ldm_eval')


def test_more_samples_than_memory(tmp_path):
    for command in ('ldm_sample', 'fashion', '--n', 10**9), ('ldm_eval', 'fashion', '--n', 10**9):
        assert 'draw fewer at a time' in line(shell(*command, cwd=tmp_path), command[0])


def test_guidance_beyond_all_use(tmp_path):
    run = shell('ldm_sample', 'fashion', '--guidance', '1e30', '--n', 2, '--steps', 2, cwd=tmp_path)
    assert 'NaN or Inf' in line(run, 'ldm_sample') and not list(tmp_path.iterdir())
