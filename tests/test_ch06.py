"What chapter 06 need not show: the root that loses digits, errors for people, old reports."
import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from ldm_nb.core import InputError, generator
from ldm_nb.data import fashion_mnist
from ldm_nb.evaluation import (METRICS, evaluate, frechet_distance, inception_score, kid_subsets, kth_distance, mean_cov,
                               memorisation, metric_name, precision_recall, print_report, report, sqrt_psd, kid)
from ldm_nb.features import FEATURES, extract
from ldm_nb.training import LatentDiffusion


def square(*key):
    B = torch.randn(5, 5, dtype=torch.float64, generator=generator(*key))
    return B @ B.T


def test_square_root_with_and_without_eigh():
    A = square('A')
    assert (sqrt_psd(A) @ sqrt_psd(A)).allclose(A, atol=1e-9)
    with patch('torch.linalg.eigh', side_effect=torch.linalg.LinAlgError('no convergence')):
        assert (sqrt_psd(A) @ sqrt_psd(A)).allclose(A, atol=1e-9)


def test_distances_that_are_known():
    one, eye = torch.ones(1), torch.eye(3)
    assert frechet_distance(0*one, one[None], 1.5*one, 4*one[None]) == pytest.approx(1.5**2 + 1, abs=1e-9)
    assert frechet_distance(torch.zeros(3), eye, torch.ones(3), 9*eye) == pytest.approx(3 + 3*4, abs=1e-9)
    assert frechet_distance(torch.zeros(5), square('A'), torch.zeros(5), square('A')) == pytest.approx(0, abs=1e-6)


def test_the_root_of_the_product_loses_digits():
    "100 images with 512 features, against the same with all variances 10 % larger."
    def naive(A, B): return ((A + B).trace() - 2*torch.linalg.eigvals(A @ B).sqrt().real.sum()).item()
    few = torch.randn(100, 512, dtype=torch.float64, generator=generator(0, 'few'))
    C, zero = torch.cov(few.T), torch.zeros(512)
    truth = (1.1**.5 - 1)**2*C.trace().item()
    ours = abs(frechet_distance(zero, C, zero, 1.1*C) - truth)
    assert abs(naive(C.float(), 1.1*C.float()) - truth) > .1*truth
    assert abs(naive(C, 1.1*C) - truth) > 1e4*ours


def test_class_scores_that_are_known():
    sure = 50*torch.eye(10)[torch.arange(100) % 10]
    def score(logits): return inception_score(logits, 1).item()
    assert score(sure) == pytest.approx(10) and score(sure[:1].repeat(50, 1)) == pytest.approx(1)
    assert score(torch.zeros(50, 10)) == pytest.approx(1) and score(sure[torch.arange(100) % 5]) == pytest.approx(5)


def test_a_ring_has_the_moments_of_a_bell():
    "Neither the Fréchet distance nor KID sees it; recall does."
    φ = torch.rand(5000, generator=generator('φ'))*2*torch.pi
    ring = 2**.5*torch.stack([φ.cos(), φ.sin()], 1)
    normal = torch.randn(5000, 2, generator=generator('normal'))
    assert frechet_distance(*mean_cov(ring), torch.zeros(2), torch.eye(2)) < .01 and abs(kid(ring, normal)) < .05
    assert precision_recall(normal[:2000], ring[:2000])[1].mean() < .5


def test_a_perfect_model_has_known_density_and_coverage():
    import math
    from ldm_nb.evaluation import density_coverage
    def draw(i):
        real, fake = (torch.randn(100, 16, generator=generator('dc', which, i)) for which in ('real', 'fake'))
        return torch.stack([v.mean() for v in density_coverage(real, fake)])
    density, coverage = torch.stack([draw(i) for i in range(100)]).T
    expected = 1 - math.prod((100 - i)/(200 - i) for i in range(1, 6))
    for v, truth in (density, 1), (coverage, expected): assert abs(v.mean() - truth) < 4*v.std()/10


def test_copies_are_found_and_errors_say_what_to_do():
    train, test = fashion_mnist(), fashion_mnist('test')[:500]
    a, b = extract(train.images[:2000], 'pixels'), extract(test.images, 'pixels')
    assert memorisation(a[:50], a, b)[0] == pytest.approx(1)
    with pytest.raises(InputError, match='smaller one'): kid_subsets(a[:10], b[:10])
    with pytest.raises(InputError, match='more than 3'): kth_distance(a[:3], 3)
    with pytest.raises(InputError, match='n is 9: it must be 10 or more'):
        report(LatentDiffusion.from_pretrained('fashion'), train, test, n=9)
    assert metric_name('frechet_distance', 'inception') == 'FID (lower), inception'
    assert not any('FID' in metric_name(m, f) for m in METRICS for f in FEATURES if f != 'inception')


def test_the_floor_has_the_error_that_real_images_claim_as_samples():
    train, test = fashion_mnist()[:400], fashion_mnist('test')[:400]
    order = torch.randperm(400, generator=generator(0, 'real'))[:100]
    result = evaluate(train.images[order], test, train, train.labels[order], resamples=5)
    for name, e in result['metrics'].items():
        if name in ('memorisation', 'class_accuracy'): continue
        assert e['floor_error'] == pytest.approx(e['error'], rel=1e-3), name
    assert result['metrics']['memorisation']['floor_error'] == 0
    assert all({'kid_floor', 'kid_floor_error'} <= set(r) for r in result['by_class'])


def test_reports_of_earlier_versions_are_printed(capsys):
    "They hold no errors of the floor. A share of copies is printed as one."
    old = json.loads((Path(__file__).parent.parent/'bench'/'shipped.json').read_text())
    print_report(old)
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith('copies'))
    assert '0 to 25 %' in line
    same = dict(value=1., error=2.236, floor=0., floor_error=0.)
    print_report(old | dict(metrics=dict(memorisation=same)))
    assert '100 %  0 to 100 %' in capsys.readouterr().out
