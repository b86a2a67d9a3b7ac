"""Batch normalization as a function: check the arguments, choose the path, keep the averages.

This is the only place where it is decided which implementation runs: the kernels, PyTorch's own
(other devices than the CPU; graphs that leave Livella), or the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from livella import native, operators, reference
from livella.checks import Call, check
from livella.checks import check_activation as check_activation
from livella.checks import check_ghost_size as check_ghost_size
from livella.checks import check_limits as check_limits
from livella.moments import Moments, accumulation_dtype, at_least


def batch_norm(
    input: Tensor,  # noqa: A002  torch's name
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    ghost_size: int | None = None,
    limits: tuple[float, float] | Tensor | None = None,
) -> Tensor:
    """Normalize each channel: y = act((x − μ)/√(σ² + ε)·γ + β + residual).

    Ioffe & Szegedy 2015, Algorithm 1. `torch.nn.functional.batch_norm` with six more keywords.
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
            momentum·batch. May be a tensor without dimensions. None gives all batches the same
            share, as `num_batches_tracked` counts them. Default: 0.1.
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
        ghost_size: in training normalize each run of so many samples by its own moments, and let
            the running averages take in one run after the other, see `livella.nn.GhostBatchNorm2d`;
            `num_batches_tracked` counts the runs. Default: the batch is one.
        limits: r_max and d_max of batch renormalization, in training, see
            `livella.nn.BatchRenorm2d`; (1, 0) is batch norm. Default: none.

    Returns:
        y, of the shape, dtype and memory format of the input.

    Raises:
        ValueError: one value a channel in training without a mask, `eps` out of range, one running
            average without the other, an unknown activation, a residual or mask of a wrong shape,
            a `ghost_size` below one, one value a channel in ghost batches, `limits` out of range,
            without running averages, or together with a `ghost_size`.
        RuntimeError: an input without channels, no running averages in evaluation, a parameter or
            average of a wrong size, dtype or device, averages that share memory.
        NotImplementedError: the input is not of a floating dtype.
        TypeError: the mask is not boolean, or `ghost_size` no whole number.

    """
    call = Call(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        activation,
        residual,
        mask,
        num_batches_tracked,
        *_of_training(input, training, ghost_size, limits),
    )
    compiling = torch.compiler.is_compiling()
    if not compiling and _is_followed(input) and _torch_can(call):
        if torch._C._get_tracing_state() is None:  # a trace would warn of each question
            check(call)
        return _as_batch_norms(call, _torch)
    if _fits_kernels(call, compiling):
        if compiling:
            check(call)
        try:
            return operators.batch_norm(call, compiling)
        except RuntimeError:
            check(call)  # says what was wrong with an argument, if it was one
            raise
    check(call)
    return _as_batch_norms(call, _torch if _left_to_torch(call, compiling) else _reference)


def scale_channels(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Give act(x·scale + shift + residual), on the kernels of batch norm where they apply.

    Args:
        x: (N, C, …).
        scale: (C,); a gradient flows through it, as through all the others.
        shift: (C,).
        activation: its name.
        residual: of the shape of x.

    """
    ones = torch.ones_like(scale, requires_grad=False)
    return batch_norm(
        x, torch.zeros_like(ones), ones, scale, shift, eps=0.0,
        activation=activation, residual=residual,
    )  # fmt: skip


def _of_training(
    x: Tensor, training: bool, ghost_size: int | None, limits: Any
) -> tuple[int | None, Tensor | None]:
    """Give what only training asks for."""
    if not training:
        return None, None
    if limits is not None:
        limits = torch.as_tensor(limits, dtype=torch.float64, device=x.device)
    return ghost_size, limits


def _as_batch_norms(call: Call, run: Callable[[Call], Tensor]) -> Tensor:
    """Run what knows neither parts nor limits, so that it does what they ask for."""
    if call.limits is not None:
        return run(_corrected(call))
    parts = [
        call._replace(input=x, residual=residual, mask=mask)
        for x, residual, mask in ghost_batches(
            call.input, call.residual, call.mask, call.ghost_size
        )
    ]
    if len(parts) == 1:
        return run(call)
    return torch.cat([run(part) for part in parts]).contiguous(
        memory_format=_memory_format(call.input)
    )


def _corrected(call: Call) -> Call:
    assert call.running_mean is not None, "checked with the limits"
    assert call.running_var is not None
    assert call.limits is not None
    moments = Moments.of(call.input.detach(), mask=call.mask)
    averages = (call.running_mean, call.running_var)
    correction = operators.correction if torch.compiler.is_compiling() else reference.correction
    r, d = correction(moments, *averages, call.limits, call.eps)
    weight, bias = reference.corrected(call.weight, call.bias, r, d)
    return call._replace(weight=weight, bias=bias, limits=None)


def ghost_batches(
    x: Tensor, residual: Tensor | None, mask: Tensor | None, size: int | None
) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Cut a batch, and what goes with it, into ghost batches."""
    if mask is not None:
        mask = mask.expand(x.shape[0], *x.shape[2:])
    for run in reference.ghost_batches(x.shape, size):
        yield tuple(None if t is None else t[run] for t in (x, residual, mask))  # type: ignore[misc]


def contributions(x: Tensor, centre: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give what the samples of a batch contribute to the moments of each channel, in float64.

    A sample has k values of a channel, and s = Σ(x − r) and q = Σ(x − r)² from a centre r. Not
    differentiable.

    Args:
        x: (N, C, …), not empty.
        centre: r, (C,), near the mean.
        mask: true where an element is valid, as in `batch_norm`.

    Returns:
        Shape (12, C): Σk, mean and M₂ of all values; the means of k, s and q over the samples; the
        sums over the samples of the products of their deviations: kk, ks, kq, ss, sq, qq.

    """
    x = x.detach()
    apart = mask is not None or type(x) not in _STRIDED or torch.compiler.is_compiling()
    if apart or not _kernels_take(x):
        return reference.contributions(x, centre, mask)
    x = x if x.is_contiguous() or _is_last(x) else x.contiguous()
    found: Tensor = torch.ops.livella.contributions.default(x, centre)
    return found


KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _kernels_take(x: Tensor) -> bool:
    """Whether there are kernels, and for such a tensor. Asked last: a yes means that they run."""
    return native.loaded and x.is_cpu and x.dtype in KERNEL_DTYPES and x.numel() > 0


def _fits_kernels(call: Call, compiling: bool) -> bool:
    """Whether the kernels take it: dense, on the CPU, channels first or last, not empty.

    A compiler fuses evaluation with its neighbours, and an exported graph should run without
    Livella: both are better served by PyTorch's own operators.
    """
    x, residual = call.input, call.residual
    if call.mask is not None or x.dim() < 2:
        return False
    if compiling and (not call.training or _exporting() or isinstance(call.momentum, Tensor)):
        return False
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        return False
    return (x.is_contiguous() or _is_last(x)) and _kernels_take(x)


def _is_last(x: Tensor) -> bool:
    """Whether the channels lie innermost, and nothing lies between."""
    return x.stride(1) == 1 and x.movedim(1, -1).is_contiguous()


def _exporting() -> bool:
    return torch.compiler.is_exporting() if hasattr(torch.compiler, "is_exporting") else False


def _is_followed(x: Tensor) -> bool:
    """Whether something looks on that knows torch's own operators only.

    That is `torch.jit.trace`, a transformation of `torch.func`, forward-mode differentiation, a
    tensor of the user's own class, or memory that is not strided.
    """
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or type(x) not in _STRIDED
        or x.layout is not torch.strided
    )


_STRIDED = (Tensor, torch.nn.Parameter, FakeTensor)


def _torch_can(call: Call) -> bool:
    """Whether PyTorch's operator, and what may follow it, does all that is asked for."""
    return call.mask is None and not isinstance(call.momentum, Tensor)


def _left_to_torch(call: Call, compiling: bool) -> bool:
    """Whether PyTorch's own operator serves it best: another device's kernels, or a graph."""
    if not _torch_can(call) or call.input.numel() == 0:
        return False
    if compiling and call.training and call.momentum is None:
        return False
    return call.input.is_cuda or (compiling and (not call.training or _exporting()))


def _torch(call: Call) -> Tensor:
    """Leave normalization to PyTorch; the residual and the activation follow."""
    counter, momentum = call.num_batches_tracked, cast("float | None", call.momentum)
    if momentum is None:
        momentum = 1 / (int(counter) + 1) if call.training and counter is not None else 0.0
    z = F.batch_norm(
        call.input,
        call.running_mean,
        call.running_var,
        call.weight,
        call.bias,
        call.training,
        momentum,
        call.eps,
    )
    if call.training and counter is not None:
        counter.add_(1)
    if call.residual is not None:
        z = z + call.residual.to(z.dtype)
    return z if call.activation is None else reference.ACTIVATIONS[call.activation].forward(z)


def forward_with_statistics(call: Call) -> tuple[Tensor, Tensor]:
    """Normalize without recording a gradient, for layers that write their backward pass out.

    The running averages take the batch in as in `batch_norm`; arguments are not checked.

    Returns:
        y, and μ and σ⁻¹ as one tensor of shape (2, C), which `backward_from_statistics` wants.

    """
    if _fits_kernels(call, compiling=False):
        return operators._run(call)
    mean, inverse = _statistics(call)
    y = reference.forward(
        call.input, mean, inverse, call.weight, call.bias, call.residual, call.mask, call.activation
    )
    return y, torch.stack([mean.to(inverse.dtype), inverse])


def backward_from_statistics(dy: Tensor, call: Call, statistics: Tensor) -> tuple[Tensor, ...]:
    """Take the gradient back through `forward_with_statistics` of a call without activation.

    Returns:
        dx, dγ and dβ; that of a residual is dy.

    """
    if _fits_kernels(call, compiling=False):
        dx, dweight, dbias, _ = torch.ops.livella.batch_norm_backward.default(
            operators.like(dy, call.input), call.input, statistics, call.weight, call.bias,
            None, None, call.training, True, True, False,
        )  # fmt: skip
        return dx, dweight, dbias
    mean, inverse = statistics
    return reference.backward(
        dy, call.input, mean, inverse, call.weight, call.bias, None, call.mask, None,
        from_batch=call.training,
    )[:3]  # fmt: skip


def _statistics(call: Call) -> tuple[Tensor, Tensor]:
    """Give μ and σ⁻¹ of this batch or of the averages, which take the batch in."""
    if call.training:
        moments = Moments.of(call.input.detach(), mask=call.mask)
        _update(call, moments)
        return moments.mean, _inverse_deviation(moments, call.eps)
    assert call.running_mean is not None, "checked above; said here to the type checker"
    assert call.running_var is not None
    # Kept for backward: a copy, as a step in training before then changes the averages.
    inverse = reference.inverse_deviation(call.running_var, call.eps)
    return call.running_mean.clone(), inverse


def _reference(call: Call) -> Tensor:
    x = call.input
    mean, inverse = _statistics(call)
    output: Tensor = _Reference.apply(  # type: ignore[no-untyped-call]
        x,
        mean,
        inverse,
        call.weight,
        call.bias,
        call.residual,
        call.mask,
        call.eps,
        call.activation,
        call.training,
    )
    return output.contiguous(memory_format=_memory_format(x))


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


def _update(call: Call, moments: Moments) -> None:
    """Take a batch of two values or more into the running averages, in the dtype of the moments."""
    count, counter = moments.count, call.num_batches_tracked
    if (
        call.running_mean is not None
        and call.running_var is not None
        and (isinstance(count, Tensor) or count >= 2)
    ):
        share = _share(call)
        batch = (moments.mean, moments.variance(unbiased=True))
        for running, new in zip((call.running_mean, call.running_var), batch, strict=True):
            average = torch.lerp(running.to(new.dtype), new, share)
            running.copy_(
                torch.where(count >= 2, average, running) if isinstance(count, Tensor) else average
            )
    if counter is not None:
        # Here, beside the averages: activation checkpointing may end the call further down.
        counter.add_(count >= 2 if isinstance(count, Tensor) else 1)


def _share(call: Call) -> float | Tensor:
    """Give the share of this batch; where all batches have the same, that of one in all so far."""
    if call.momentum is not None:
        return call.momentum
    assert call.num_batches_tracked is not None, "checked"
    dtype = accumulation_dtype(call.input.dtype)
    return (call.num_batches_tracked + 1).to(dtype).reciprocal()


def _memory_format(x: Tensor) -> torch.memory_format:
    """Give the format torch's own batch norm would answer in."""
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format
