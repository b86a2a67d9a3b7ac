"""The kernels as operators of torch: their shapes for the compiler, and their gradients.

`torch.ops.livella.batch_norm` and `batch_norm_backward` are defined in `csrc/bindings.cpp`. They
take dense tensors on the CPU, channels first or last; `functional` sees to that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from livella import native, reference
from livella.checks import Call
from livella.moments import Moments, accumulation_dtype

TOLD_BY_OUTPUT = ("relu", "relu6", "leaky_relu")
"""Activations whose derivative can be told from y: after a residual, y is kept and not r."""


def batch_norm(call: Call, compiling: bool) -> Tensor:
    """Run a checked call, or one whose fault the kernels find before they change anything.

    Raises:
        RuntimeError: the kernels refused an argument.

    """
    residual = call.residual
    if residual is not None and residual.stride() != call.input.stride():
        call = call._replace(residual=like(residual, call.input))
    if isinstance(call.momentum, Tensor):
        call = call._replace(momentum=float(call.momentum))
    output: Tensor
    if compiling:  # the compiler sees one operator, and knows its gradient
        output = torch.ops.livella.batch_norm.default(*_arguments(call))[0]
    elif torch.is_grad_enabled():
        output = BatchNorm.apply(call.input, call.weight, call.bias, call.residual, call)  # type: ignore[no-untyped-call]
    elif call.training:
        output = _run(call)[0]
    else:
        output = _evaluate(call)
    if output.dim() == 3 and not output.is_contiguous():
        return output.contiguous()  # as torch's: of (N, C, L) it knows no other layout
    return output


def _arguments(call: Call) -> tuple[Any, ...]:
    return (
        call.input,
        call.weight,
        call.bias,
        call.residual,
        call.running_mean,
        call.running_var,
        call.num_batches_tracked,
        call.training,
        call.momentum,
        call.eps,
        call.activation,
        call.ghost_size,
        call.limits,
    )


def _run(call: Call) -> tuple[Tensor, Tensor]:
    """Give y, and μ and σ⁻¹ as a tensor of shape (2, C).

    With ghost batches those of each follow one another, (2·parts, C); with limits r and d follow,
    (4, C).
    """
    with torch._C._AutoDispatchBelowAutograd():
        both: tuple[Tensor, Tensor] = torch.ops.livella.batch_norm.default(*_arguments(call))
    return both


def _evaluate(call: Call) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        output: Tensor = torch.ops.livella.batch_norm_inference.default(
            call.input,
            call.running_mean,
            call.running_var,
            call.weight,
            call.bias,
            call.residual,
            call.eps,
            call.activation,
        )
    return output


class BatchNorm(torch.autograd.Function):
    """The operators with their gradients; keeps what the graph holds anyway, and 2·C numbers."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: Call,
    ) -> Tensor:
        output, statistics = _run(call)
        kept = None
        if residual is not None and call.activation is not None:
            kept = output if call.activation in TOLD_BY_OUTPUT else residual
        ctx.save_for_backward(x, weight, bias, statistics, kept)
        ctx.settings = (call.training, call.eps, call.activation, residual is not None)
        ctx.ghost_size, ctx.corrected = call.ghost_size, call.limits is not None
        return output

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return (*_differentiable(ctx, dy), None)
        x, weight, bias, statistics, kept = ctx.saved_tensors
        training, _eps, activation, has_residual = ctx.settings
        wants_x, wants_weight, wants_bias, wants_residual, _ = ctx.needs_input_grad
        dx, dweight, dbias, dresidual = torch.ops.livella.batch_norm_backward.default(
            like(dy, x),
            x,
            statistics,
            weight,
            bias,
            kept,
            activation,
            training,
            wants_x,
            wants_weight or wants_bias,
            wants_residual,
            ctx.ghost_size,
        )
        if has_residual and activation is None:
            dresidual = dy
        return (
            dx if wants_x else None,
            dweight if wants_weight else None,
            dbias if wants_bias else None,
            dresidual if wants_residual else None,
            None,
        )


class Statistics(torch.autograd.Function):
    """`BatchNorm` for the dispatcher: gives μ and σ⁻¹ as well, without a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        output = BatchNorm.forward(ctx, x, weight, bias, residual, call)
        statistics = ctx.to_save[3]
        ctx.mark_non_differentiable(statistics)
        return output, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return BatchNorm.backward(ctx, dy)


def _differentiable(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """Give the four gradients in operations that can be differentiated once more."""
    x, weight, bias, statistics, kept = ctx.saved_tensors
    runs = reference.ghost_batches(x.shape, ctx.ghost_size)
    if len(runs) == 1:
        gradients = _of_part(ctx, dy, x, weight, bias, statistics, kept)
    else:
        parts = zip(*(
            _of_part(ctx, dy[run], x[run], weight, bias, None, None if kept is None else kept[run])
            for run in runs
        ), strict=True)  # fmt: skip
        dx, dweight, dbias, dresidual = parts
        gradients = torch.cat(dx), sum(dweight), sum(dbias), torch.cat(dresidual)
    wanted = zip(gradients, ctx.needs_input_grad[:4], strict=True)
    return [gradient if needed else None for gradient, needed in wanted]


def _of_part(
    ctx: Any,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor | None,
    kept: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    training, eps, activation, has_residual = ctx.settings
    dtype = accumulation_dtype(x.dtype)
    if training:  # the moments must depend on x once more
        moments = Moments.of(x)
        mean = moments.mean
        inverse = reference.inverse_deviation(moments.variance(unbiased=False), eps)
    else:
        assert statistics is not None, "evaluation knows no parts"
        mean, inverse = (each.to(dtype) for each in statistics)
    residual = None
    if has_residual and activation in TOLD_BY_OUTPUT:
        assert kept is not None, "what is told by the output keeps it"
        dy = dy.to(inverse.dtype) * reference.ACTIVATIONS[activation].derivative(kept.detach())
        activation = None
    elif has_residual:
        residual = kept
    if ctx.corrected:
        assert statistics is not None, "a corrected batch is one part"
        r, d = statistics[2:].to(dtype)
        weight, bias = reference.corrected(weight, bias, r, d)
    dx, dweight, dbias, dresidual = reference.backward(
        dy, x, mean, inverse, weight, bias, residual, None, activation, from_batch=training
    )
    if ctx.corrected:
        dweight = r * dweight + d * dbias
    return dx, dweight, dbias, dresidual


def correction(
    moments: Moments, running_mean: Tensor, running_var: Tensor, limits: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`reference.correction`, which a compiler must not make again in the backward pass.

    By then the averages have moved on.
    """
    count = torch.as_tensor(moments.count, device=moments.mean.device)
    given = (moments.mean, moments.m2, count, running_mean, running_var, limits)
    r, d = _correction(*(each.detach() for each in given), eps)
    return r, d


@torch.library.custom_op("livella::renorm_correction", mutates_args=())
def _correction(
    mean: Tensor,
    m2: Tensor,
    count: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    limits: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    moments = Moments(count, mean, m2)
    return reference.correction(moments, running_mean, running_var, limits, eps)


@_correction.register_fake
def _(mean: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(mean)


def like(t: Tensor, x: Tensor) -> Tensor:
    """Give `t` in the dtype and the layout of `x`; itself where it has them."""
    if t.stride() == x.stride() and t.dtype == x.dtype:
        return t
    return torch.empty_like(x).copy_(t)


def _check_devices(x: Tensor, others: tuple[Any, ...]) -> None:
    """Refuse a mixture: torch asks the fake kernels when one tensor of several is on "meta"."""
    for other in others:
        if isinstance(other, Tensor) and other.device != x.device:
            raise RuntimeError(
                f"livella: expected all tensors on {x.device}, got one on {other.device}"
            )


def _fake(
    x: Tensor,
    *others: Any,
    ghost_size: int | None = None,
    limits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    ghost_size, limits = (*others[10:], ghost_size, limits)[:2]
    _check_devices(x, (*others, limits))
    rows = 2 * reference.count_ghost_batches(x.shape, ghost_size) if limits is None else 4
    return torch.empty_like(x), x.new_empty((rows, x.shape[1]), dtype=torch.float64)


def _fake_backward(
    _grad: Tensor,
    x: Tensor,
    _statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    _saved: Tensor | None,
    activation: str | None,
    _training: bool,
    input_grad: bool,
    parameters_grad: bool,
    residual_grad: bool,
    _ghost_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def parameter(of: Tensor | None) -> Tensor:
        if not parameters_grad:
            return x.new_empty(0)
        dtype = accumulation_dtype(x.dtype) if of is None else of.dtype
        return x.new_empty(x.shape[1], dtype=dtype)

    keeps_dz = residual_grad and activation is not None
    return (
        torch.empty_like(x) if input_grad or keeps_dz else x.new_empty(0),
        parameter(weight),
        parameter(bias),
        torch.empty_like(x) if keeps_dz else x.new_empty(0),
    )


def _differentiated(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: str | None,
    ghost_size: int | None = None,
    limits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    call = Call(
        x,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        activation,
        residual,
        None,
        num_batches_tracked,
        ghost_size,
        limits,
    )
    both: tuple[Tensor, Tensor] = Statistics.apply(x, weight, bias, residual, call)  # type: ignore[no-untyped-call]
    return both


def _evaluated(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str | None,
) -> Tensor:
    of = (x, weight, bias, residual, mean, var)
    return _differentiated(*of, None, False, None, eps, activation)[0]


def _fake_inference(x: Tensor, *others: Any) -> Tensor:
    _check_devices(x, others)
    return torch.empty_like(x)


if native.loaded:
    _library = torch.library.Library("livella", "IMPL")
    _library.impl("batch_norm", _differentiated, "Autograd")
    _library.impl("batch_norm_inference", _evaluated, "Autograd")
    # It has no gradient: what is differentiated twice is written in torch's operations.
    _library.impl("batch_norm_backward", torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake("livella::batch_norm", _fake)
    torch.library.register_fake("livella::batch_norm_inference", _fake_inference)
    torch.library.register_fake("livella::batch_norm_backward", _fake_backward)
