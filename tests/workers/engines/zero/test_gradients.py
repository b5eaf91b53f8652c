"""The guard of ZeRO stage 0: clips by the global norm, withholds what is not finite."""

import math

import pytest
import torch

from workers.engines.zero.gradients import GradientGuard


@pytest.fixture
def setting():
    """Two weights of zero, plain gradient descent with a rate of 1, gradients clipped to 1."""
    weights = [torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(weights, lr=1.0, momentum=0.5)
    return weights, optimizer, GradientGuard(optimizer, max_norm=1.0)


def step(weights, optimizer, *gradients):
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = torch.tensor([gradient])
    optimizer.step()


def test_a_long_gradient_is_cut_to_the_norm(setting):
    weights, optimizer, guard = setting
    step(weights, optimizer, 3.0, 4.0)  # norm 5: a fifth of each
    assert [weight.item() for weight in weights] == pytest.approx([-0.6, -0.8])
    assert (guard.norm, guard.applied) == (5.0, True)


def test_a_short_gradient_is_used_as_it_is(setting):
    weights, optimizer, guard = setting
    step(weights, optimizer, 0.3, -0.4)
    assert [weight.item() for weight in weights] == pytest.approx([-0.3, 0.4])
    assert guard.norm == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_momentum(setting, bad):
    weights, optimizer, guard = setting
    step(weights, optimizer, 0.3, 0.4)
    before = [weight.item() for weight in weights]
    momentum = [optimizer.state[weight]["momentum_buffer"].clone() for weight in weights]
    step(weights, optimizer, 0.1, bad)
    assert not guard.applied
    assert not math.isfinite(guard.norm)
    assert [weight.item() for weight in weights] == before
    for weight, kept in zip(weights, momentum, strict=True):
        assert torch.equal(optimizer.state[weight]["momentum_buffer"], kept)
