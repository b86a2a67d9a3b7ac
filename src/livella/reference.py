"""Batch normalization as its paper defines it, forward and backward, in plain torch.

Ioffe & Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift", Algorithm 1 (forward) and section 3 (backward). With m values a channel
(m = N·H·W for images, section 3.2):

    x̂ = (x − μ)·σ⁻¹        σ⁻¹ = 1/√(σ² + ε)
    z = γ·x̂ + β + r        r: a residual, if any
    y = act(z)

This is the definition, the oracle of faster implementations, and what runs where there is none.
Letters follow the paper; `d` before a letter is the gradient of the loss with respect to it.
Shapes: x, r, z, y (N, C, …); γ, β, μ, σ² (C,); mask (N, …) or broadcastable to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor

from livella.moments import (
    Moments,
    accumulation_dtype,
    across,
    at_least,
    count_elements,
    only,
    spread,
)


class Activation(NamedTuple):
    """A function of one number, and its derivative, itself made of differentiable operations.

    At a kink the derivative is the one PyTorch takes. At NaN that of relu6 is one, as is that of
    relu: PyTorch takes zero for relu6 and so hides it.
    """

    forward: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


LEAKY_SLOPE = 0.01


def _leaky_relu_derivative(z: Tensor) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), LEAKY_SLOPE)


def _silu_derivative(z: Tensor) -> Tensor:
    sigmoid = z.sigmoid()
    return sigmoid * (1 + z * (1 - sigmoid))


def _hardswish_derivative(z: Tensor) -> Tensor:
    above = torch.where(z >= 3, 1, z / 3 + 0.5)
    return torch.where(z <= -3, 0, above)


ACTIVATIONS = {
    "relu": Activation(F.relu, lambda z: (~(z <= 0)).to(z.dtype)),
    "relu6": Activation(F.relu6, lambda z: (~((z <= 0) | (z >= 6))).to(z.dtype)),
    "leaky_relu": Activation(lambda z: F.leaky_relu(z, LEAKY_SLOPE), _leaky_relu_derivative),
    "silu": Activation(F.silu, _silu_derivative),
    "hardswish": Activation(F.hardswish, _hardswish_derivative),
}


def forward(
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Normalize `x` by the given moments: Algorithm 1, its last two lines.

    Args:
        x: (N, C, …), any floating dtype; computed in that of `inverse`.
        mean: μ, (C,).
        inverse: σ⁻¹, (C,), as `inverse_deviation` gives it.
        weight: γ, (C,); none means one.
        bias: β, (C,); none means zero.
        residual: r, the shape of x; none means zero.
        mask: true where valid; elsewhere y is zero, whatever x and r hold.
        activation: a key of `ACTIVATIONS`, or none.

    Returns:
        y, in the dtype of x.

    """
    normalized = _normalize(x, mean, inverse)
    return scale(normalized, weight, bias, residual, mask, activation).to(x.dtype)


def scale(
    normalized: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Give y = act(γ·x̂ + β + r) of x̂, however it was normalized; the other letters as above."""
    valid = None if mask is None else spread(mask, normalized.shape)
    if residual is not None:  # or what it hides would make gradients of NaN
        residual = only(valid, residual)
    z = _affine(normalized, weight, bias, residual)
    y = z if activation is None else ACTIVATIONS[activation].forward(z)
    return only(valid, y)


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    activation: str | None,
    *,
    from_batch: bool,
    in_all: Callable[[Tensor], Tensor] | None = None,
    count: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the gradient back through `forward`: the chain rule of section 3, summed up.

        dz = dy·act′(z)     dr = dz     dβ = Σ dz     dγ = Σ dz·x̂
        dx = γσ⁻¹·(dz − dβ/m − x̂·dγ/m)     if μ and σ² are those of the batch
        dx = γσ⁻¹·dz                        if they are given numbers

    It is made of differentiable operations. To differentiate it again, pass moments that are
    themselves functions of x.

    Args:
        dy: the gradient of the loss with respect to y.
        x: as in `forward`, as are all that follow up to `activation`.
        mean: μ.
        inverse: σ⁻¹.
        weight: γ.
        bias: β; only an activation needs it.
        residual: r; only an activation needs it.
        mask: true where valid; elsewhere all gradients are zero.
        activation: a key of `ACTIVATIONS`, or none.
        from_batch: whether μ and σ² are the moments of this x.
        in_all: where x is part of the batch that μ and σ² are of, what makes the sums over this
            part those over the whole, given and returned with shape (2, C): dγ, dβ.
        count: m, where x is part of that batch.

    Returns:
        dx, dγ, dβ and dr, dx in the dtype of x and the others in that of the computation.

    """
    dtype, dims = x.dtype, [d for d in range(x.dim()) if d != 1]
    valid = None if mask is None else spread(mask, x.shape)
    if residual is not None:
        residual = only(valid, residual)
    normalized = _normalize(only(valid, x), mean, inverse)

    dz = only(valid, dy).to(inverse.dtype)
    if activation is not None:
        z = _affine(normalized, weight, bias, residual)
        dz = dz * ACTIVATIONS[activation].derivative(z)
    dbias = dz.sum(dims)
    dweight = (dz * normalized).sum(dims)

    dx = dz
    if from_batch:
        m = at_least(1, count_elements(x.shape, mask=mask) if count is None else count)
        totals = torch.stack([dweight, dbias])
        if in_all is not None:
            totals = in_all(totals)
        dx = dz - across(totals[1] / m, x.dim())
        dx = torch.addcmul(dx, normalized, across(totals[0] / m, x.dim()), value=-1)
    scale = inverse if weight is None else inverse * weight.to(inverse.dtype)
    return only(valid, dx * across(scale, x.dim())).to(dtype), dweight, dbias, dz


def inverse_deviation(variance: Tensor, eps: float) -> Tensor:
    """Give σ⁻¹ = 1/√(σ² + ε), in float32 or float64."""
    return torch.rsqrt(variance.to(accumulation_dtype(variance.dtype)) + eps)


def ghost_batches(shape: torch.Size, size: int | None) -> list[slice]:
    """Cut a batch into runs of `size` samples, the last one ragged; none leaves it whole.

    Hoffer, Hubara & Soudry 2017, Algorithm 1. One value has no variance: a last run that holds one
    a channel joins the run before.
    """
    runs = count_ghost_batches(shape, size)
    if size is None or runs == 1:
        return [slice(0, shape[0])]
    ends = [*range(size, runs * size, size), shape[0]]
    return [slice(k * size, end) for k, end in enumerate(ends)]


def count_ghost_batches(shape: torch.Size, size: int | None) -> int:
    """Say how many `ghost_batches` there are."""
    samples = shape[0]
    if size is None or samples <= size:
        return 1
    left = samples % size * math.prod(shape[2:])
    return int(samples // size + (1 if left > 1 else 0))


def correction(
    moments: Moments, running_mean: Tensor, running_var: Tensor, limits: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Give r and d of batch renormalization, x̂ = (x − μ_B)/σ_B·r + d: Ioffe 2017, Algorithm 1.

        r = clip(σ_B/σ, 1/r_max, r_max)     d = clip((μ_B − μ)/σ, −d_max, d_max)

    with σ_B = √(σ_B² + ε) of the batch and σ = √(σ² + ε) of the running averages. Within the limits
    x̂ = (x − μ)/σ. No gradient flows through r and d.

    Args:
        moments: of the batch.
        running_mean: μ, (C,), as before this batch.
        running_var: σ², (C,), likewise.
        limits: r_max and d_max, (2,).
        eps: ε.

    """
    with torch.no_grad():
        dtype = moments.mean.dtype
        r_max, d_max = limits.to(dtype).unbind()
        deviation = (moments.m2 / at_least(1, moments.count) + eps).sqrt()
        running = (running_var.to(dtype) + eps).sqrt()
        r = (deviation / running).clamp(1 / r_max, r_max)
        d = ((moments.mean - running_mean.to(dtype)) / running).clamp(-d_max, d_max)
    return r, d


def corrected(
    weight: Tensor | None, bias: Tensor | None, r: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    """Give the γ and β by which batch norm does the same: γ·r and β + γ·d."""
    shift = d if weight is None else weight * d
    return r if weight is None else weight * r, shift if bias is None else bias + shift


def _normalize(x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """Give x̂ = (x − μ)·σ⁻¹.

    The mean is taken off first: folded into the bias, a large one would drown the deviations.
    """
    centred = x.to(inverse.dtype) - across(mean.to(inverse.dtype), x.dim())
    return centred * across(inverse, x.dim())


def _affine(
    normalized: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    """Give z = γ·x̂ + β + r."""
    z, ndim, dtype = normalized, normalized.dim(), normalized.dtype
    if weight is not None and bias is not None:  # the usual case, in one operation
        z = torch.addcmul(across(bias.to(dtype), ndim), z, across(weight.to(dtype), ndim))
    elif weight is not None:
        z = z * across(weight.to(dtype), ndim)
    elif bias is not None:
        z = z + across(bias.to(dtype), ndim)
    return z if residual is None else z + residual.to(dtype)


def contributions(x: Tensor, centre: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give what `livella.functional.contributions` documents."""
    n, channels = x.shape[:2]
    dtype = centre.dtype
    values = x.to(dtype).reshape(n, channels, -1)
    valid = None if mask is None else spread(mask, x.shape).reshape(n, 1, -1)
    k = torch.full_like(values[:, :1, 0], values.shape[2])
    if valid is not None:
        k = valid.sum(2, dtype=dtype)
    mean = only(valid, values).sum(2) / k.clamp(min=1)
    m2 = only(valid, values - mean[:, :, None]).square().sum(2)
    shift = mean - centre
    shares = torch.stack([k.expand_as(mean), k * shift, m2 + k * shift.square()])
    centred = shares - shares.mean(1, keepdim=True)
    products = [(centred[i] * centred[j]).sum(0) for i in range(3) for j in range(i, 3)]
    total = k.sum()
    whole = (k * mean).sum(0) / total.clamp(min=1)
    between = (k * (mean - whole).square()).sum(0)
    ends = [total.expand_as(whole), whole, m2.sum(0) + between]
    return torch.stack([*ends, *shares.mean(1), *products])
