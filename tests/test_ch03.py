"What chapter 03 says about its schedules and targets, beside what it checks itself."
import pytest
import torch
from fastcore.test import test_close as close
from fastcore.test import test_eq as equal

from ldm_nb.core import InputError
from ldm_nb.forward import Schedule, alpha_bars, edm_sigma, target, to_x0_eps

f64 = torch.float64


def test_schedules():
    close(edm_sigma(torch.tensor([0., 1.])), torch.tensor([.002, 80]), eps=1e-3)
    close(alpha_bars('sigmoid')[500], .5, eps=1e-12)
    with pytest.raises(InputError, match='choose one of'): Schedule('karras')


def test_a_schedule_says_what_it_is():
    equal(repr(Schedule('flow')), "Schedule('flow': alpha = 1 - t, sigma = t; SNR inf to -inf dB)")
    equal(repr(Schedule('scaled_linear')),
          "Schedule('scaled_linear': table of 1,001 entries; SNR inf to -23.3 dB)")


def test_v_is_the_derivative_by_the_angle():
    angle = torch.tensor(.7, requires_grad=True)
    (2*angle.cos() + 3*angle.sin()).backward()
    close(angle.grad, target('v_prediction', 2., 3., angle.cos(), angle.sin()).detach())


def test_v_can_enlarge_an_error_on_the_flow_schedule():
    off = to_x0_eps('v_prediction', torch.ones(1), torch.zeros(1), torch.tensor(.3), torch.tensor(.7))
    close(off[0].abs(), 1.2, eps=.01)


def test_the_flow_never_enlarges_an_error():
    α, σ = torch.rand(2, 1000, dtype=f64, generator=torch.Generator().manual_seed(0))
    for off in to_x0_eps('flow_prediction', torch.ones_like(α), torch.zeros_like(α), α, σ):
        assert off.abs().max() <= 1
