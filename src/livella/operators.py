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
    """Run a checked call, or one whose fault the kernels will find before they change anything.

    Raises:
        RuntimeError: the kernels refused an argument.

    """
    momentum, residual = call.momentum, call.residual
    # A compiler sees one operator and its gradient; otherwise the dispatcher's round is spared.
    run = torch.ops.livella.batch_norm.default if compiling else BatchNorm.apply
    output: Tensor = run(  # type: ignore[no-untyped-call]
        call.input,
        call.weight,
        call.bias,
        None if residual is None else like(residual, call.input),
        call.running_mean,
        call.running_var,
        call.num_batches_tracked,
        call.training,
        float(momentum) if isinstance(momentum, Tensor) else momentum,
        call.eps,
        call.activation,
    )[0]
    if output.dim() == 3 and not output.is_contiguous():
        return output.contiguous()  # as torch's: of (N, C, L) it knows no other layout
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
        running_mean: Tensor | None,
        running_var: Tensor | None,
        num_batches_tracked: Tensor | None,
        training: bool,
        momentum: float | None,
        eps: float,
        activation: str | None,
    ) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output, statistics = torch.ops.livella.batch_norm.default(
                x,
                weight,
                bias,
                residual,
                running_mean,
                running_var,
                num_batches_tracked,
                training,
                momentum,
                eps,
                activation,
            )
        kept = None
        if residual is not None and activation is not None:
            kept = output if activation in TOLD_BY_OUTPUT else residual
        ctx.save_for_backward(x, weight, bias, statistics, kept)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        ctx.settings = (training, eps, activation, residual is not None)
        return output, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 11
        if torch.is_grad_enabled():
            return (*_differentiable(ctx, dy), *(None,) * 7)
        x, weight, bias, statistics, kept = ctx.saved_tensors
        training, _eps, activation, has_residual = ctx.settings
        wants_x, wants_weight, wants_bias, wants_residual = ctx.needs_input_grad[:4]
        dy = like(dy, x)
        dx, dweight, dbias, dresidual = torch.ops.livella.batch_norm_backward.default(
            dy,
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
        )
        return (
            dx if wants_x else None,
            dweight if wants_weight else None,
            dbias if wants_bias else None,
            (dy if activation is None else dresidual) if has_residual and wants_residual else None,
            *(None,) * 7,
        )


def _differentiable(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """Give the four gradients in operations that can be differentiated once more."""
    x, weight, bias, statistics, kept = ctx.saved_tensors
    training, eps, activation, has_residual = ctx.settings
    if training:  # the moments must depend on x once more
        moments = Moments.of(x)
        mean = moments.mean
        inverse = reference.inverse_deviation(moments.variance(unbiased=False), eps)
    else:
        mean, inverse = (each.to(accumulation_dtype(x.dtype)) for each in statistics)
    residual = None
    if has_residual and activation in TOLD_BY_OUTPUT:
        dy = dy.to(inverse.dtype) * reference.ACTIVATIONS[activation].derivative(kept.detach())
        activation = None
    elif has_residual:
        residual = kept
    gradients = reference.backward(
        dy, x, mean, inverse, weight, bias, residual, None, activation, from_batch=training
    )
    wanted = zip(gradients, ctx.needs_input_grad[:4], strict=True)
    return [gradient if needed else None for gradient, needed in wanted]


def like(t: Tensor, x: Tensor) -> Tensor:
    """Give `t` in the dtype and the layout of `x`; itself where it has them."""
    if t.stride() == x.stride() and t.dtype == x.dtype:
        return t
    return torch.empty_like(x).copy_(t)


def _fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((2, x.shape[1]), dtype=torch.float64)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def parameter(of: Tensor | None) -> Tensor:
        if not parameters_grad:
            return x.new_empty(0)
        dtype = accumulation_dtype(x.dtype) if of is None else of.dtype
        return x.new_empty(x.shape[1], dtype=dtype)

    return (
        torch.empty_like(x) if input_grad else x.new_empty(0),
        parameter(weight),
        parameter(bias),
        torch.empty_like(x) if residual_grad and activation is not None else x.new_empty(0),
    )


if native.loaded:
    _library = torch.library.Library("livella", "IMPL")
    _library.impl("batch_norm", BatchNorm.apply, "Autograd")
    torch.library.register_fake("livella::batch_norm", _fake)
    torch.library.register_fake("livella::batch_norm_backward", _fake_backward)
