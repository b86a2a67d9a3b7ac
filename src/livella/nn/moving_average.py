"""Moving average batch normalization, for batches of a few examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from livella import functional, reference
from livella.checks import Call, check
from livella.moments import accumulation_dtype, across, at_least, count_elements, only, spread


class MovingAverageNorm(nn.Module):
    """What the layers for one to three dimensions share; see `MovingAverageBatchNorm2d`."""

    input_dims: ClassVar[tuple[int, ...]]
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_square: Tensor
    square_history: Tensor
    gradient_history: Tensor
    num_batches_tracked: Tensor
    num_gradients_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.02,
        affine: bool = True,
        window: int = 16,
        warm_up: int = 100,
        r_max: float = 5.0,
        r_warm_up: int = 1000,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        functional.check_activation(activation)
        _check_options(type(self).__name__, eps, window, r_max)
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.window, self.warm_up = affine, window, warm_up
        self.r_max, self.r_warm_up, self.activation = r_max, r_warm_up, activation
        for name in ("weight", "bias"):
            vector = torch.empty(num_features, device=device, dtype=dtype) if affine else None
            self.register_parameter(name, None if vector is None else nn.Parameter(vector))
        exact = accumulation_dtype(dtype or torch.get_default_dtype())
        history = (window, num_features)
        for name, shape in (
            ("running_square", history[1:]),
            ("square_history", history),
            ("gradient_history", history),
        ):
            self.register_buffer(name, torch.empty(shape, device=device, dtype=exact))
        for name in ("num_batches_tracked", "num_gradients_tracked"):
            self.register_buffer(name, torch.empty((), device=device, dtype=torch.long))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forget every batch: averages, histories and counters."""
        for buffer in self.buffers():
            buffer.zero_()
        self.running_square.fill_(1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set γ to one and β to zero, and forget every batch."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            self.weight.fill_(1)
            self.bias.fill_(0)

    def forward(
        self, x: Tensor, *, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalize `x`, add `residual`, apply the activation, all where `mask` is true.

        See `livella.functional.batch_norm` for residual and mask. One value a channel will do. A
        batch without a valid element, or with NaN or infinity, is neither taken in nor counted.

        Raises:
            ValueError: the input has other dimensions, or another number of channels; and what
                `livella.functional.batch_norm` raises.

        """
        self._check(x, residual, mask)
        dtype = accumulation_dtype(x.dtype)
        valid = None if mask is None else spread(mask, x.shape)
        if self.training:
            inverse, r, count = self._take_in(x.detach().to(dtype), valid)
            backward = (self.gradient_history, self.num_gradients_tracked, self.warm_up)
            normalized: Tensor = _Normalize.apply(x, inverse, r, count, valid, *backward)  # type: ignore[no-untyped-call]
        else:
            inverse = reference.inverse_deviation(self.running_square, self.eps).to(dtype)
            normalized = only(valid, x.to(dtype)) * across(inverse, x.dim())
        y = reference.scale(normalized, self.weight, self.bias, residual, mask, self.activation)
        return y.to(x.dtype).contiguous(memory_format=functional._memory_format(x))

    def _take_in(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, int | Tensor]:
        """Take a batch into the averages; give 1/χ̄, r and how many values a channel it has."""
        count = count_elements(x.shape) if valid is None else valid.sum()
        own = only(valid, x).square().sum(_over(x)) / at_least(1, count)
        inverse, r = _take_in(
            own, torch.as_tensor(count, device=x.device), self.square_history, self.running_square,
            self.num_batches_tracked, self.eps, self.momentum, self.warm_up, self.r_max,
            self.r_warm_up,
        )  # fmt: skip
        return inverse, r, count

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovingAverageNorm:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, now in self._buffers.items():
            if now is not None and now.is_floating_point() and now.dtype.itemsize < 4:
                # In fewer bits small steps round to none.
                exact = before[name]
                source = now if exact is None or exact.is_meta else exact
                self._buffers[name] = source.to(now.device, torch.float32)
        return self

    def _check(self, x: Tensor, residual: Tensor | None, mask: Tensor | None) -> None:
        if x.dim() not in self.input_dims or x.shape[1] != self.num_features:
            dims = " or ".join(f"{dims}D" for dims in self.input_dims)
            raise ValueError(
                f"{type(self).__name__}: expected {dims} input of {self.num_features} channels in "
                f"dimension 1, got {tuple(x.shape)}; build the layer for this number of channels, "
                "or use the class for that number of dimensions"
            )
        check(
            Call(
                x, self.running_square, self.running_square, self.weight, self.bias, False, 0.0,
                self.eps, self.activation, residual, mask, None,
            )
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Describe the layer."""
        shown = ("eps", "momentum", "affine", "window", "warm_up", "r_max", "r_warm_up")
        described = ", ".join(f"{name}={getattr(self, name)}" for name in shown)
        end = "" if self.activation is None else f", activation={self.activation}"
        return f"{self.num_features}, {described}{end}"


# An operator of its own: a compiler that computed r again in the backward pass would do so from an
# average that has moved on.
@torch.library.custom_op(
    "livella::take_in_mean_square", mutates_args=("history", "running", "counter")
)
def _take_in(
    own: Tensor,
    count: Tensor,
    history: Tensor,
    running: Tensor,
    counter: Tensor,
    eps: float,
    momentum: float,
    warm_up: int,
    r_max: float,
    r_warm_up: int,
) -> tuple[Tensor, Tensor]:
    """Take χ²_B of a batch into the averages; give 1/χ̄ and r."""
    joined, mean = _joined(history, counter, own)
    square, before = torch.where(counter < warm_up, own, mean), running.to(own.dtype)
    r = ((square + eps) / (before + eps)).sqrt().clamp(1 / r_max, r_max)
    r = torch.where(counter < r_warm_up, 1.0, r)
    taken = own.isfinite().all() & (count > 0)
    history.copy_(torch.where(taken, joined, history))
    running.copy_(torch.where(taken, before.lerp(square, momentum), before))
    counter.add_(taken)
    return torch.rsqrt(square + eps), r


@_take_in.register_fake
def _(own: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(own), torch.empty_like(own)


class _Normalize(torch.autograd.Function):
    """x̂ = r·x/χ̄, and the paper's gradient of it, whose own average is taken in on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inverse: Tensor,
        r: Tensor,
        count: int | Tensor,
        valid: Tensor | None,
        history: Tensor,
        counter: Tensor,
        warm_up: int,
    ) -> Tensor:
        ctx.save_for_backward(x, inverse, r, valid)
        # Not saved as tensors of the graph: other backward passes may change them before.
        ctx.count, ctx.history, ctx.counter, ctx.warm_up = count, history, counter, warm_up
        return only(valid, x.to(inverse.dtype)) * across(inverse * r, x.dim())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, r, valid = ctx.saved_tensors
        ndim, dtype = x.dim(), inverse.dtype
        z = only(valid, x.to(dtype)) * across(inverse, ndim)
        g = only(valid, gradient) * across(r, ndim)
        with torch.no_grad():  # a second derivative holds the average constant
            own = (g * z).sum(_over(x)) / at_least(1, ctx.count)
            history, mean = _joined(ctx.history, ctx.counter, own)
            average = torch.where(ctx.counter < ctx.warm_up, own, mean)
            taken = own.isfinite().all() & (torch.as_tensor(ctx.count, device=x.device) > 0)
            ctx.history.copy_(torch.where(taken, history, ctx.history))
            ctx.counter.add_(taken)
        dx = (g - z * across(average, ndim)) * across(inverse, ndim)
        return dx.to(x.dtype), None, None, None, None, None, None, None


def _joined(history: Tensor, counter: Tensor, newest: Tensor) -> tuple[Tensor, Tensor]:
    """Put the newest values in the place of the oldest; give the history and its mean."""
    oldest = torch.arange(len(history), device=history.device) == counter % len(history)
    joined = torch.where(oldest[:, None], newest, history.to(newest.dtype))
    return joined, joined.sum(0) / (counter + 1).clamp(max=len(history))


def _over(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _check_options(kind: str, eps: float, window: int, r_max: float) -> None:
    if eps <= 0:
        raise ValueError(f"{kind}: expected eps above zero, got {eps}; the usual value is 1e-5")
    if window < 1:
        raise ValueError(f"{kind}: expected a window of one batch or more, got {window}")
    if r_max < 1:
        raise ValueError(
            f"{kind}: expected r_max of one or more, got {r_max}; at one there is no correction"
        )


class MovingAverageBatchNorm1d(MovingAverageNorm):
    """Moving average batch norm of (N, C) or (N, C, L). See `MovingAverageBatchNorm2d`."""

    input_dims = (2, 3)


class MovingAverageBatchNorm2d(MovingAverageNorm):
    """Batch norm of (N, C, H, W) by averages over the last batches, forward and backward.

    Yan, Wan, Zhang, Zhang, Wei & Sun 2020, "Towards Stabilizing Batch Statistics in Backward
    Propagation of Batch Normalization" (MABN). y = act(γ·r·x/χ̄ + β + residual): no mean is taken
    off, so the weights before the layer are to be centred, by `livella.nn.centre_weights`, and
    without a bias.

    With χ²_B = mean(x²) of one batch, χ̄² is ε plus the mean of χ²_B over the last `window` batches,
    this one included, and r = clip(χ̄/χ̂, 1/r_max, r_max) with the exponential average
    χ̂² ← (1 − momentum)·χ̂² + momentum·χ̄² as it stood before. Evaluation is y = γ·x/χ̂ + β. The
    gradient is *defined*, not derived: with g = r·∂L/∂x̂, z = x/χ̄ and Ψ_B = mean(g·z),
    ∂L/∂x = (g − z·Ψ̄)/χ̄, where Ψ̄ is the mean of Ψ_B over the last `window` backward passes. A
    second derivative differentiates this with r, χ̄ and Ψ̄ held constant.

    Warm-up: the first `warm_up` batches take their own χ²_B and Ψ_B (which is batch norm without a
    mean, with its exact gradient), the first `r_warm_up` r = 1, as in the authors' implementation,
    whose defaults these are. Averages of a window that is not full are of what there is. All that
    is averaged is in the `state_dict`: training goes on as if it had not been interrupted.

    Every forward pass in training is a batch, one that activation checkpointing repeats too; Ψ_B
    has the unit of the loss, so a loss scale that changes is felt for a window. No instance of
    torch's batch norms: `running_square` is no variance, and what treats batch norms specially
    (`estimate_population`, `freeze`, torch's converters) passes the layer over.

    Args:
        num_features: C.
        eps: ε, in the squared unit of the input. Default: 1e-5.
        momentum: the share of each batch in χ̂². Default: 0.02.
        affine: learn γ (from one) and β (from zero). Default: true.
        window: how many batches are averaged; the paper's batches of 2 simulate 32 with 16.
            Default: 16.
        warm_up: batches that are normalized by themselves first. Default: 100.
        r_max: the limit of the correction r; one makes none. Default: 5.
        r_warm_up: batches without correction first. Default: 1000.
        device: where parameters and averages live. Default: torch's.
        dtype: the dtype of γ and β; averages are in float32 or better. Default: torch's.
        activation: "relu", "relu6", "leaky_relu", "silu" or "hardswish". Default: none.

    Raises:
        ValueError: `eps` not above zero, `window` or `r_max` below one, an unknown activation.

    """

    input_dims = (4,)


class MovingAverageBatchNorm3d(MovingAverageNorm):
    """Moving average batch norm of (N, C, D, H, W). See `MovingAverageBatchNorm2d`."""

    input_dims = (5,)
