"The five commands as a shell user meets them."
import json, os, re, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_nb.training import LatentDiffusion
from shell import shell


@pytest.mark.parametrize('name,words', [('ldm_demo', ['--minutes', 'wall-clock budget']), ('ldm_train', ['--resume', 'hub:OWNER/NAME', '--init']),
                                        ('ldm_sample', ['--guidance', '--autoguidance', 'shipped name']), ('ldm_eval', ['--features', 'held-out']),
                                        ('ldm_export', ['onnx, card or hub', '--license'])])
def test_help(name, words):
    run = shell(name, '--help')
    assert run.returncode == 0 and all(w in run.stdout for w in words), run


@pytest.mark.parametrize('args,words', [
    (['ldm_sample', 'nowhere'], 'shipped model'), (['ldm_sample', 'fashion', '--label', 'hat'], 'T-shirt'), (['ldm_sample', 'fashion', '--n', '0'], '1 or more'),
    (['ldm_sample', 'fashion', '--label', '12'], 'from 0 to 9'), (['ldm_train', '--data', 'nowhere', '--out', 'x', '--steps', '2'], 'expected fashion'),
    (['ldm_train', '--out', 'x', '--steps', '2', '--init', 'fashion', '--autoencoder', 'kl'], 'one of the two'),
    (['ldm_train', '--out', 'x', '--steps', '2', '--autoencoder', 'pictures'], 'config.json and safetensors'),
    (['ldm_train', '--out', 'x', '--minutes', '1', '--steps', '2'], 'one of the two'), (['ldm_train', '--out', 'x', '--steps', '-3'], 'more than nothing'),
    (['ldm_train', '--out', 'x', '--size', 'huge'], 'smoke, lesson, full'), (['ldm_eval', 'nothing.npy'], 'nothing.npy'), (['ldm_eval', 'fashion', '--features', 'vgg'], 'classifier, pixels'),
    (['ldm_eval', 'text.npy'], 'text.npy'), (['ldm_eval', 'float.npy'], 'expected uint8'), (['ldm_eval', 'nan.npy'], 'NaN'), (['ldm_eval', 'few.npy'], 'need 10 images'),
    (['ldm_eval', 'large.npy'], 'must agree'), (['ldm_eval', 'flat.npy'], 'expected (n, h, w)'), (['ldm_eval', 'pictures'], 'broken.png'), (['ldm_eval', 'taken'], 'holds no images'),
    (['ldm_eval', 'archive.npy'], 'archive of arrays'), (['ldm_eval', 'zip.npy'], 'zip.npy'), (['ldm_eval', 'bits.npy'], 'only 0 and 1'), (['ldm_eval', 'fashion', '--out', '.'], 'name a file'), (['ldm_eval', 'runs/typo'], 'shipped model'),
    (['ldm_demo', '--out', 'taken', '--minutes', '1'], 'not empty'),
    (['ldm_export', 'nowhere', '--out', 'x'], 'shipped model'), (['ldm_export', 'fashion'], '--out'), (['ldm_export', 'fashion', '--to', 'tflite'], 'onnx, card, hub'),
    (['ldm_export', 'fashion', '--out', 'taken'], 'exists'), (['ldm_export', 'fashion', '--out', 'x', '--license', 'mit'], '--license cannot be used with --to onnx'),
    (['ldm_export', 'fashion', '--to', 'card'], 'name one for its card'), (['ldm_export', 'fashion', '--to', 'card', '--out', 'x', '--half'], '--half cannot'),
    (['ldm_export', 'fashion', '--to', 'card', '--out', 'x', '--license', 'My own'], 'apache-2.0'), (['ldm_export', 'fashion', '--to', 'card', '--out', 'x', '--report', 'text.npy'], 'not valid JSON'),
    (['ldm_export', 'fashion', '--to', 'hub', '--repo', 'mine'], 'owner/name'), (['ldm_export', 'fashion', '--to', 'hub', '--repo', 'me/mine'], 'hf auth login'),
    (['ldm_export', 'fashion', '--out', 'x', '--guidance', 'nan'], 'finite number'), (['ldm_export', 'fashion-fast', '--out', 'x', '--guidance', '2'], 'distilled')], ids=lambda v: ' '.join(v) if isinstance(v, list) else None)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, args, words):
    arrays = dict(float=np.zeros((60, 28, 28)), nan=np.full((60, 28, 28), np.nan), few=np.arange(9*784).reshape(9, 28, 28).astype(np.uint8), large=np.arange(60*1024).reshape(60, 32, 32).astype(np.uint8), bits=np.ones((60, 28, 28), np.uint8), flat=np.zeros((60, 784), np.uint8))
    for name, array in arrays.items(): np.save(tmp_path/f'{name}.npy', array)
    np.savez(tmp_path/'archive.npz', a=arrays['few']); (tmp_path/'archive.npz').rename(tmp_path/'archive.npy'); (tmp_path/'zip.npy').write_bytes(b'PK no zip'); (tmp_path/'runs').mkdir(exist_ok=True)
    (tmp_path/'pictures').mkdir(); (tmp_path/'pictures'/'broken.png').write_bytes(b'no picture')
    (tmp_path/'text.npy').write_text('hello'); (tmp_path/'taken').mkdir(); (tmp_path/'taken'/'thesis.txt').write_text('mine')
    run = shell(*args, cwd=tmp_path)
    lines = run.stderr.strip().splitlines()
    assert run.returncode == 2 and len(lines) == 1 and lines[0].startswith(f'{args[0]}: ') and words in lines[0], run
    assert not (tmp_path/'x'/'model').exists() and (tmp_path/'taken'/'thesis.txt').read_text() == 'mine'


def test_an_autoencoder_of_diffusers(tmp_path):
    "Stage two alone, on theirs; the run goes on without it being named again."
    diffusers = pytest.importorskip('diffusers')
    kinds = dict(encoder_block_out_channels=[8]*3, decoder_block_out_channels=[8]*3)
    blocks = dict(num_encoder_blocks=[1]*3, num_decoder_blocks=[1]*3)
    theirs = diffusers.AutoencoderTiny(**kinds, **blocks)
    theirs.save_pretrained(tmp_path/'tiny')
    begin = 'ldm_train', '--data', 'emoji', '--size', 'smoke', '--out', 'r'
    run = shell(*begin, '--steps', 3, '--autoencoder', 'tiny', cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    run = shell('ldm_train', '--resume', '--out', 'r', '--steps', 5, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    ldm = LatentDiffusion.from_pretrained(tmp_path/'r'/'model')
    assert ldm.autoencoder.config['kind'] == 'AutoencoderTiny'
    assert ldm.card['steps'] == dict(autoencoder=0, denoiser=5)
    for name, weights in theirs.state_dict().items():
        assert weights.equal(ldm.autoencoder.net.state_dict()[name]), name


def test_demo_and_then_everything_on_its_result(tmp_path):
    run = shell('ldm_demo', '--out', 'd', '--size', 'smoke', cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    d = tmp_path/'d'
    assert {'model', 'samples.png', 'samples.npy', 'losses.png', 'report.json'} <= {p.name for p in d.iterdir()}
    report = json.loads((d/'report.json').read_text())
    assert {'features', 'n', 'reference', 'floor_of', 'metrics', 'by_class', 'reconstruction', 'card', 'sampling_seed'} <= set(report)
    assert {'frechet_distance', 'kid', 'precision', 'recall', 'density', 'coverage', 'memorisation', 'inception_score', 'class_accuracy'} - {'memorisation'} == set(report['metrics']) - {'memorisation'}
    assert all(set(v) == {'value', 'error', 'floor', 'floor_error'} for v in report['metrics'].values()) and {'psnr', 'ssim', 'reconstruction_distance'} <= set(report['reconstruction'])
    assert {'seconds', 'parameters', 'seed', 'device', 'torch', 'ldm_nb'} <= set(report['card']) and report['n'] == 500
    assert np.load(d/'samples.npy').shape == (500, 28, 28) and Image.open(d/'samples.png').size[0] > 280
    for k in 'ab': assert shell('ldm_sample', 'd', '--n', 6, '--label', 'boot', '--steps', 3, '--seed', 4, '--out', f'{k}.png', '--npy', f'{k}.npy', cwd=tmp_path).returncode == 0
    a, b = (np.load(tmp_path/f'{k}.npy') for k in 'ab')
    assert a.dtype == np.uint8 and a.shape == (6, 28, 28) and (a == b).all()
    run = shell('ldm_eval', 'd/samples.npy', '--out', 'e.json', cwd=tmp_path)
    assert run.returncode == 0 and all(w in run.stdout for w in ('500 images of 28 x 28 x 1 against fashion test, 2000 images', 'classifier (not FID)', 'floor: 500 images of fashion train')), run
    again = json.loads((tmp_path/'e.json').read_text())['metrics']           # an image's features differ in the last digits with its place in a batch
    for k, v in again.items(): assert v['value'] == pytest.approx(report['metrics'][k]['value'], rel=1e-3, abs=1e-5), k
    (tmp_path/'png').mkdir()
    for i, x in enumerate(np.load(d/'samples.npy')): Image.fromarray(x).save(tmp_path/'png'/f'{i:04}.png')
    run = shell('ldm_eval', 'png', '--out', 'p.json', cwd=tmp_path)
    assert run.returncode == 0 and json.loads((tmp_path/'p.json').read_text())['metrics'] == again, run


def test_models_and_folders_of_colour_images(tmp_path):
    "Folders of RGB pictures of one size and of several; a model held against data that it was not made for."
    rng = np.random.default_rng(0)
    for name, count, side in ('own', 130, 48), ('other', 120, 48), ('large', 60, 70):
        (tmp_path/name).mkdir()
        for i in range(count): Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(tmp_path/name/f'{i}.png')
    run = shell('ldm_eval', 'other', '--data', 'own', '--features', 'pixels', '--out', 'o.json', cwd=tmp_path)
    assert run.returncode == 0 and '48 x 48 x 3' in run.stdout and 'warning' not in run.stderr, run         # at their own size
    result = json.loads((tmp_path/'o.json').read_text())
    assert result['size'] == [3, 48, 48] and result['reference'] == f'own test, {130 - result["floor_n"]} images' and result['searched_for_copies'] == 0 and result['what'] == 'other'
    run = shell('ldm_eval', 'large', '--data', 'own', '--features', 'pixels', cwd=tmp_path)
    assert run.returncode == 0 and 'ldm_eval: warning' in run.stderr and 'resized to 70 x 70' in run.stderr, run
    run = shell('ldm_eval', 'fashion', '--data', 'own', cwd=tmp_path)
    assert run.returncode == 2 and len(run.stderr.strip().splitlines()) == 1 and 'own train is in colour, fashion is grey' in run.stderr, run


def test_export_writes_graphs_and_a_card(tmp_path):
    run = shell('ldm_export', 'fashion', '--to', 'card', '--out', 'c', '--license', 'mit', cwd=tmp_path)
    assert run.returncode == 0 and 'README.md' in run.stdout and not run.stderr, run
    assert 'license: mit' in (tmp_path/'c'/'README.md').read_text(encoding='utf-8') and Image.open(tmp_path/'c'/'samples.png').size == (8*30 - 2, 2*30 - 2)
    pytest.importorskip('onnxruntime'), pytest.importorskip('onnx')
    run = shell('ldm_export', 'fashion', '--out', 'o', '--steps', '2', '--half', '--autoguidance', '2', cwd=tmp_path)
    assert run.returncode == 0 and 'decoder.onnx, denoiser.onnx, model.json, sample.py' in run.stdout and not run.stderr, run
    about = json.loads((tmp_path/'o'/'model.json').read_text())
    assert (len(about['steps']), about['guidance'], about['autoguidance'], about['dials']) == (3, 1., 2., ['autoguidance'])


def test_steps_make_a_command_repeatable(tmp_path):
    for k in 'ab': assert shell('ldm_train', '--out', k, '--steps', 4, '--size', 'smoke', '--seed', 7, cwd=tmp_path).returncode == 0
    assert (tmp_path/'a'/'samples.npy').read_bytes() == (tmp_path/'b'/'samples.npy').read_bytes()
    again = shell('ldm_train', '--out', 'a', '--steps', 4, '--size', 'smoke', '--seed', 7, cwd=tmp_path)
    assert again.returncode == 2 and 'resume' in again.stderr


def test_a_folder_of_mixed_images(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(60):
        (tmp_path/'own'/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        shape = (20 + i, 40) if i % 3 else (33, 21 + i, 3)
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(tmp_path/'own'/'ab'[i % 2]/f'{i}.{"png" if i % 2 else "jpg"}')
    run = shell('ldm_train', '--data', 'own', '--out', 'r', '--steps', 2, '--size', 'smoke', cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert np.load(tmp_path/'r'/'samples.npy').shape == (500, 32, 32, 3) and json.loads((tmp_path/'r'/'report.json').read_text())['features'] in ('effnet', 'pixels')


def test_own_images_at_64_pixels(tmp_path):
    "Mixed sizes, grey and RGB, in class subfolders, with one command; it says what it did. Then the README's lines of Python on the same folder."
    rng = np.random.default_rng(0)
    for i in range(60):
        folder = tmp_path/'my_images'/('cats', 'dogs', 'cats/kittens')[i % 3]; folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (50 + i, 90) if i < 20 else (80, 50 + i, 3), np.uint8)).save(folder/f'{i}.png')
    run = shell('ldm_train', '--data', 'my_images', '--pixels', 64, '--out', 'r', '--steps', 2, '--size', 'smoke', cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert 'my_images: 60 files; shorter sides of 50 to 80 pixels (14 enlarged); cut to squares, which keep 80 % of the area; 64 x 64, RGB; 2 classes, one per subfolder: cats: 40, dogs: 20' in run.stdout
    counts = re.search(r'(\d+) training and (\d+) test images of 64 x 64, 3 channel\(s\), 2 classes', run.stdout)
    assert sum(map(int, counts.groups())) == 60 and int(counts[2]) >= 3 and np.load(tmp_path/'r'/'samples.npy').shape == (500, 64, 64, 3)
    readme = (Path(__file__).parent.parent/'README.md').read_text(encoding='utf-8'); code = next(b for b in re.findall(r'```python\n(.*?)```', readme, re.S) if 'my_images' in b)
    assert code.count('minutes=30') == 1 and len(code.splitlines()) <= 10
    test = code.replace('minutes=30', 'steps=2') + 'assert ldm.sample(2).equal(again.sample(2)) and ldm.sample(2).shape == (2, 3, 64, 64) and ldm.classes == ("cats", "dogs") and len(train) + len(test) == 60'
    run = subprocess.run([sys.executable, '-c', test], cwd=tmp_path, capture_output=True, text=True, env=os.environ | dict(MPLBACKEND='agg'))
    assert run.returncode == 0 and '2 classes' in run.stdout, run.stderr
