"""Batch normalization as a function: check the arguments, choose the path, keep the averages.

This is the only place where it is decided which implementation runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from livella import reference
from livella.moments import Moments, accumulation_dtype, at_least, count_elements


def batch_norm(
    input: Tensor,  # noqa: A002  torch's name
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """Normalize each channel: y = act((x − μ)/√(σ² + ε)·γ + β + residual).

    Ioffe & Szegedy 2015, Algorithm 1. `torch.nn.functional.batch_norm` with four more keywords.
    In training μ and σ² are the mean and the *biased* variance of this batch, and the running
    averages take in its mean and its *unbiased* variance. In evaluation μ and σ² are the running
    averages. Twice differentiable with respect to input, weight, bias and residual.

    Args:
        input: x, (N, C) or (N, C, …), of a floating dtype. Moments and sums are taken in float32,
            or in float64 for float64.
        running_mean: (C,), updated in place in training; may be none in training.
        running_var: (C,), as `running_mean`; both are given or neither.
        weight: γ, (C,). Default: ones.
        bias: β, (C,). Default: zeros.
        training: normalize by this batch and update the averages. Default: false.
        momentum: the share of this batch in the running averages: new = (1 − momentum)·old +
            momentum·batch. May be a tensor without dimensions. Default: 0.1.
        eps: ε, in the squared unit of x. Default: 1e-5.
        activation: "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or "hardswish".
            Default: none.
        residual: added before the activation, of the shape of the input. Default: none.
        mask: boolean, true where an element is valid, of shape (N, …), the input's without the
            channels, or broadcastable to it from the right. Only valid elements make the moments.
            All others come out as exactly zero and get no gradient, nor does the residual there,
            whatever they hold. With fewer than two valid elements the unbiased variance is
            undefined: the running averages stay as they are. Default: all are valid.
        num_batches_tracked: a counter, raised by one in training unless a mask leaves the running
            averages as they are. Default: none.

    Returns:
        y, of the shape, dtype and memory format of the input.

    Raises:
        ValueError: one value a channel in training without a mask, `eps` out of range, one running
            average without the other, an unknown activation, a residual or mask of a wrong shape.
        RuntimeError: an input without channels, no running averages in evaluation, a parameter or
            average of a wrong size or dtype.
        NotImplementedError: the input is not of a floating dtype.
        TypeError: the mask is not boolean.

    """
    _check_input(input)
    _check_training(input, running_mean, running_var, training, eps, mask)
    _check_per_channel(input, running_mean, running_var, weight, bias)
    _check_extras(input, activation, residual, mask)

    if training:
        moments = Moments.of(input.detach(), mask=mask)
        mean, inverse = moments.mean, _inverse_deviation(moments, eps)
        if running_mean is not None and running_var is not None:
            _update(running_mean, running_var, moments, momentum)
        if num_batches_tracked is not None:
            # Here, beside the averages: activation checkpointing may end the call further down.
            masked = isinstance(moments.count, Tensor)
            num_batches_tracked.add_(moments.count >= 2 if masked else 1)
    else:
        assert running_mean is not None, "checked above; said here to the type checker"
        assert running_var is not None
        # Kept for backward: a copy, as a step in training before then changes the averages.
        mean, inverse = running_mean.clone(), reference.inverse_deviation(running_var, eps)

    output: Tensor = _Reference.apply(  # type: ignore[no-untyped-call]
        input, mean, inverse, weight, bias, residual, mask, eps, activation, training
    )
    return output.contiguous(memory_format=_memory_format(input))


class _Reference(torch.autograd.Function):
    """The reference path with its explicit backward; without activation, x is all it keeps."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        inverse: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        eps: float,
        activation: str | None,
        from_batch: bool,
    ) -> Tensor:
        kept = (None, None) if activation is None else (bias, residual)
        ctx.save_for_backward(x, mean, inverse, weight, *kept, mask)
        ctx.eps, ctx.activation, ctx.from_batch = eps, activation, from_batch
        return reference.forward(x, mean, inverse, weight, bias, residual, mask, activation)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, weight, bias, residual, mask = ctx.saved_tensors
        if ctx.from_batch and torch.is_grad_enabled():
            # The gradient will be differentiated again: the moments must depend on x once more.
            moments = Moments.of(x, mask=mask)
            mean, inverse = moments.mean, _inverse_deviation(moments, ctx.eps)
        dx, *gradients = reference.backward(
            dy,
            x,
            mean,
            inverse,
            weight,
            bias,
            residual,
            mask,
            ctx.activation,
            from_batch=ctx.from_batch,
        )
        dweight, dbias, dresidual = (
            gradient if needed else None
            for gradient, needed in zip(gradients, ctx.needs_input_grad[3:6], strict=True)
        )
        dx = dx.contiguous(memory_format=_memory_format(x))
        return dx, None, None, dweight, dbias, dresidual, None, None, None, None


def _inverse_deviation(moments: Moments, eps: float) -> Tensor:
    """Give σ⁻¹ of the biased variance, taken as zero where a mask leaves nothing: y is finite."""
    return reference.inverse_deviation(moments.m2 / at_least(1, moments.count), eps)


def _update(
    running_mean: Tensor, running_var: Tensor, moments: Moments, momentum: float | Tensor
) -> None:
    """Take a batch of two values or more into the running averages, in the dtype of the moments."""
    count = moments.count
    if not isinstance(count, Tensor) and count < 2:
        return
    batch = (moments.mean, moments.variance(unbiased=True))
    for running, new in zip((running_mean, running_var), batch, strict=True):
        average = torch.lerp(running.to(new.dtype), new, momentum)
        if isinstance(count, Tensor):
            average = torch.where(count >= 2, average, running)
        running.copy_(average)


def _memory_format(x: Tensor) -> torch.memory_format:
    """Give the format torch's own batch norm would answer in."""
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def _check_input(x: Tensor) -> None:
    if x.dim() < 2:
        raise RuntimeError(
            f"batch_norm: expected an input of shape (N, C) or (N, C, ...), got {tuple(x.shape)}; "
            "add the missing dimension with unsqueeze"
        )
    if not x.is_floating_point():
        raise NotImplementedError(
            f"batch_norm: expected an input of a floating dtype, got {x.dtype}; "
            "convert it, for example with input.float()"
        )


def _check_training(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    mask: Tensor | None,
) -> None:
    if training and mask is None and count_elements(x.shape) == 1:
        raise ValueError(
            "batch_norm: expected more than one value per channel in training, got an input of "
            f"shape {tuple(x.shape)}, whose variance is zero by construction; use a larger batch, "
            "drop a last batch of one (drop_last=True), or put the layer in evaluation mode"
        )
    if eps < 0 or (training and eps == 0):
        raise ValueError(
            f"batch_norm: expected eps above zero (zero is allowed in evaluation), got {eps}; "
            "the usual value is 1e-5"
        )
    if training and (running_mean is None) != (running_var is None):
        raise ValueError(
            "batch_norm: got one of running_mean and running_var and not the other; "
            "pass both, or None for both"
        )
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError(
            "batch_norm: expected running_mean and running_var in evaluation, got None; "
            "pass both, or training=True to normalize by the batch"
        )


def _check_per_channel(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    channels, accepted = x.shape[1], (x.dtype, accumulation_dtype(x.dtype))
    named = (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    )
    for name, tensor in named:
        if tensor is None:
            continue
        if tensor.dim() != 1 or tensor.shape[0] != channels:
            raise RuntimeError(
                f"batch_norm: expected {name} of shape ({channels},) for an input of shape "
                f"{tuple(x.shape)}, whose dimension 1 holds the channels, "
                f"got {tuple(tensor.shape)}; build the layer for this number of channels"
            )
        if tensor.dtype not in accepted:
            raise RuntimeError(
                f"batch_norm: expected {name} in {' or '.join(map(str, dict.fromkeys(accepted)))} "
                f"for an input in {x.dtype}, got {tensor.dtype}; convert one of them"
            )


def _check_extras(
    x: Tensor, activation: str | None, residual: Tensor | None, mask: Tensor | None
) -> None:
    check_activation(activation)
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"batch_norm: expected a residual of the input's shape {tuple(x.shape)}, "
            f"got {tuple(residual.shape)}; broadcast it first, with expand_as"
        )
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(
            f"batch_norm: expected a boolean mask, true where valid, got {mask.dtype}; "
            "compare first, for example mask != 0"
        )
    wanted = (x.shape[0], *x.shape[2:])
    sizes = zip(reversed(mask.shape), reversed(wanted), strict=False)
    if mask.dim() > len(wanted) or any(got not in (1, size) for got, size in sizes):
        raise ValueError(
            f"batch_norm: expected a mask of shape {wanted} (the input's without its channels) or "
            f"broadcastable to it, got {tuple(mask.shape)}; a mask of whole samples of shape (N,) "
            "needs its missing dimensions, for example mask[:, None]"
        )


def check_activation(activation: str | None) -> None:
    """Raise ValueError for a name that is not an activation known here."""
    if activation is not None and activation not in reference.ACTIVATIONS:
        raise ValueError(
            f"unknown activation {activation!r}; "
            f"expected None or one of {', '.join(map(repr, reference.ACTIVATIONS))}"
        )
