"""The reference against the paper written out with loops over plain Python numbers."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from livella import reference
from livella.moments import Moments

EPS = 1e-3

BY_HAND = {
    None: lambda z: z,
    "relu": lambda z: max(z, 0.0),
    "relu6": lambda z: min(max(z, 0.0), 6.0),
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "silu": lambda z: z / (1 + math.exp(-z)),
    "hardswish": lambda z: z * min(max(z + 3, 0.0), 6.0) / 6,
}
IN_TORCH = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def by_hand(x, gamma, beta, r, valid, activation, moments=None):
    """Algorithm 1 over nested lists of shape (N, C, L), one number at a time."""
    samples, channels, length = len(x), len(x[0]), len(x[0][0])
    y = [[[0.0] * length for _ in range(channels)] for _ in range(samples)]
    places = [(n, i) for n in range(samples) for i in range(length) if valid[n][i]]
    for c in range(channels):
        values = [x[n][c][i] for n, i in places]
        if moments is None:
            mu = math.fsum(values) / len(values)
            variance = math.fsum((v - mu) ** 2 for v in values) / len(values)
        else:
            mu, variance = moments[0][c], moments[1][c]
        for n, i in places:
            x_hat = (x[n][c][i] - mu) / math.sqrt(variance + EPS)
            y[n][c][i] = BY_HAND[activation](gamma[c] * x_hat + beta[c] + r[n][c][i])
    return y


def arguments(seed, masked):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, r, dy = 2 * normal(4, 3, 5) + 1, normal(4, 3, 5), normal(4, 3, 5)
    valid = normal(4, 5) > -0.5 if masked else torch.ones(4, 5, dtype=torch.bool)
    return x, r, dy, valid, 1 + 0.5 * normal(3), normal(3)


def moments_by_hand(x, valid, from_batch):
    if not from_batch:
        return torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([1.0, 3.0, 0.2]).double()
    gathered = x.movedim(1, -1)[valid]
    return gathered.mean(0), gathered.var(0, unbiased=False)


@pytest.mark.parametrize("activation", BY_HAND)
@given(st.integers(0, 1000), st.booleans(), st.booleans())
def test_forward_is_the_algorithm_of_the_paper(activation, seed, masked, from_batch):
    x, r, _, valid, gamma, beta = arguments(seed, masked)
    mean, variance = moments_by_hand(x, valid, from_batch)
    given_moments = None if from_batch else (mean.tolist(), variance.tolist())
    expected = by_hand(
        x.tolist(), gamma.tolist(), beta.tolist(), r.tolist(), valid.tolist(), activation,
        given_moments,
    )  # fmt: skip
    y = reference.forward(
        x, mean, reference.inverse_deviation(variance, EPS), gamma, beta, r,
        valid if masked else None, activation,
    )  # fmt: skip
    assert_close(y, torch.tensor(expected, dtype=torch.float64))


def central_differences(loss, point, step=1e-6):
    flat = point.flatten()
    slopes = []
    for i in range(len(flat)):
        bump = torch.zeros_like(flat)
        bump[i] = step
        bump = bump.view_as(point)
        slopes.append((loss(point + bump) - loss(point - bump)) / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64).view_as(point)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("from_batch", [False, True])
@pytest.mark.parametrize("activation", BY_HAND)
def test_backward_is_the_slope_of_the_paper(activation, from_batch, masked):
    x, r, dy, valid, gamma, beta = arguments(3, masked)
    mean, variance = moments_by_hand(x, valid, from_batch)
    given_moments = None if from_batch else (mean.tolist(), variance.tolist())

    def loss(**changed):
        a = {"x": x, "gamma": gamma, "beta": beta, "r": r} | changed
        y = by_hand(
            a["x"].tolist(), a["gamma"].tolist(), a["beta"].tolist(), a["r"].tolist(),
            valid.tolist(), activation, given_moments,
        )  # fmt: skip
        return float((torch.tensor(y, dtype=torch.float64) * dy).sum())

    dx, dgamma, dbeta, dr = reference.backward(
        dy, x, mean, reference.inverse_deviation(variance, EPS), gamma, beta, r,
        valid if masked else None, activation, from_batch=from_batch,
    )  # fmt: skip
    near = {"rtol": 1e-6, "atol": 1e-7}
    assert_close(dx, central_differences(lambda v: loss(x=v), x), **near)
    assert_close(dgamma, central_differences(lambda v: loss(gamma=v), gamma), **near)
    assert_close(dbeta, central_differences(lambda v: loss(beta=v), beta), **near)
    assert_close(dr, central_differences(lambda v: loss(r=v), r), **near)


@pytest.mark.parametrize("name", IN_TORCH)
def test_activations_have_the_values_and_derivatives_torch_has_even_at_kinks(name):
    z = torch.cat([torch.linspace(-8, 8, 161), torch.tensor([-3.0, 0.0, 3.0, 6.0])]).double()
    z.requires_grad_()
    activation = reference.ACTIVATIONS[name]
    expected = IN_TORCH[name](z)
    (slope,) = torch.autograd.grad(expected.sum(), z)
    assert_close(activation.forward(z), expected, rtol=1e-14, atol=1e-14)
    assert_close(activation.derivative(z), slope, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", IN_TORCH)
def test_derivatives_can_be_differentiated_again(name):
    z = torch.linspace(-7.95, 7.95, 54, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(reference.ACTIVATIONS[name].derivative, z)


def test_every_activation_is_tested():
    assert set(reference.ACTIVATIONS) == set(IN_TORCH) == set(BY_HAND) - {None}


def test_the_correction_of_nothing_is_a_number():
    limits = torch.tensor([3.0, 5.0])
    for nothing in (Moments.empty(2), Moments(torch.tensor(0), torch.zeros(2), torch.zeros(2))):
        r, d = reference.correction(nothing, torch.ones(2), torch.ones(2), limits, EPS)
        assert_close(r, torch.full_like(r, 1 / 3))
        assert_close(d, torch.full_like(d, -1 / math.sqrt(1 + EPS)))
