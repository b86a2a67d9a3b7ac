"""Batch norm in evaluation by running statistics that are blended with each example's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from livella import functional, reference
from livella.checks import Call, check
from livella.moments import accumulation_dtype, across, at_least, only, spread


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
    share: float,
) -> Tensor:
    """Normalize each example by the mixture of the running moments and its own.

    See `BatchNorm2d.example_weight` for the formula and its source, and
    `livella.functional.batch_norm` for the arguments and errors.

    Args:
        x: (N, C, …).
        running_mean: μ.
        running_var: σ².
        weight: γ.
        bias: β.
        eps: ε.
        activation: its name.
        residual: r.
        mask: true where valid.
        share: α.

    """
    check(
        Call(
            x, running_mean, running_var, weight, bias, False, 0.0, eps, activation, residual, mask,
            None,
        )
    )  # fmt: skip
    values = x.to(accumulation_dtype(x.dtype))
    valid = None if mask is None else spread(mask, x.shape)
    mean, variance = _mixture(values, running_mean, running_var, valid, share)
    normalized = (only(valid, values) - mean) * torch.rsqrt(variance + eps)
    y = reference.scale(normalized, weight, bias, residual, mask, activation).to(x.dtype)
    return y.contiguous(memory_format=functional._memory_format(x))


def _mixture(
    x: Tensor, running_mean: Tensor, running_var: Tensor, valid: Tensor | None, share: float
) -> tuple[Tensor, Tensor]:
    """Give the mean and the variance to normalize each example by, (N, C, 1, …)."""
    mean, variance = (across(s.to(x.dtype), x.dim()) for s in (running_mean, running_var))
    if x.numel() == 0:
        return mean, variance
    space = list(range(2, x.dim()))
    count: int | Tensor = math.prod(x.shape[2:])
    own_share: float | Tensor = share
    if valid is not None:
        count = valid.sum(space, keepdim=True) if space else valid
        own_share = torch.where(count > 0, share, 0.0).to(x.dtype)
    n = at_least(1, count)
    own_mean = _sum(only(valid, x), space) / n
    deviation = only(valid, x - own_mean)
    own_variance = _sum(deviation.square(), space) / n
    between = own_mean - mean
    # Said as a mixture: a difference of second moments would drown under a large mean.
    spread_out = own_share * (1 - own_share) * between.square()
    return mean + own_share * between, variance + own_share * (own_variance - variance) + spread_out


def _sum(x: Tensor, space: list[int]) -> Tensor:
    return x.sum(space, keepdim=True) if space else x
