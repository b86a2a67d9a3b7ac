"""Moving average batch normalization, for batches of a few examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from livella import functional, reference
from livella.checks import Call, check
from livella.moments import accumulation_dtype, across, at_least, only, spread


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
        ghost_size: int | None = None,
    ) -> None:
        functional.check_activation(activation)
        if ghost_size is not None:
            functional.check_ghost_size(ghost_size)
        _check_options(type(self).__name__, eps, window, r_max)
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.window, self.warm_up = affine, window, warm_up
        self.r_max, self.r_warm_up = r_max, r_warm_up
        self.activation, self.ghost_size = activation, ghost_size
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
        call in which a batch has no valid element, or NaN or infinity, is neither taken in nor
        counted.

        Raises:
            ValueError: the input has other dimensions, or another number of channels; and what
                `livella.functional.batch_norm` raises.

        """
        self._check(x, residual, mask)
        dtype = accumulation_dtype(x.dtype)
        valid = None if mask is None else spread(mask, x.shape)
        if self.training:
            batches = _Batches.of(x, self.ghost_size)
            count = batches.sizes(x, valid)
            inverse, r = self._take_in(x.detach().to(dtype), valid, batches, count)
            backward = (self.gradient_history, self.num_gradients_tracked, self.warm_up)
            normalized: Tensor = _Normalize.apply(x, inverse, r, batches, count, valid, *backward)  # type: ignore[no-untyped-call]
        else:
            inverse = reference.inverse_deviation(self.running_square, self.eps).to(dtype)
            normalized = only(valid, x.to(dtype)) * across(inverse, x.dim())
        y = reference.scale(normalized, self.weight, self.bias, residual, mask, self.activation)
        return y.to(x.dtype).contiguous(memory_format=functional._memory_format(x))

    def _take_in(
        self, x: Tensor, valid: Tensor | None, batches: _Batches, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take the batches into the averages; give 1/χ̄ and r of each."""
        own = batches.sums(only(valid, x).square()) / at_least(1, count)
        inverse, r = _take_in(
            own, count, self.square_history, self.running_square,
            self.num_batches_tracked, self.eps, self.momentum, self.warm_up, self.r_max,
            self.r_warm_up,
        )  # fmt: skip
        return inverse, r

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
        for name in ("activation", "ghost_size"):
            if (value := getattr(self, name)) is not None:
                described += f", {name}={value}"
        return f"{self.num_features}, {described}"


class _Batches(NamedTuple):
    """The batches in one call: so many, of `size` samples each, the last one ragged."""

    size: int
    number: int

    @classmethod
    def of(cls, x: Tensor, ghost_size: int | None) -> _Batches:
        if ghost_size is None or len(x) <= ghost_size:
            return cls(len(x), 1)
        return cls(ghost_size, -(-len(x) // ghost_size))

    def sizes(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """How many values a channel each has, (batches, 1)."""
        if valid is not None:
            return self.sums(valid)
        left = len(x) - self.size * (self.number - 1)
        samples = [self.size] * (self.number - 1) + [left]
        each = torch.tensor(samples, device=x.device).unsqueeze(1)
        return each * math.prod(x.shape[2:])

    def sums(self, values: Tensor) -> Tensor:
        """The sum over each, (batches, C), of (N, C, …)."""
        if self.number == 1:
            return values.sum(_over(values)).unsqueeze(0)
        of_samples = values.flatten(2).sum(2) if values.dim() > 2 else values
        missing = self.number * self.size - len(values)
        whole: Tensor = nn.functional.pad(of_samples, (0, 0, 0, missing))
        return whole.reshape(self.number, self.size, -1).sum(1)

    def across(self, each: Tensor, x: Tensor) -> Tensor:
        """What each has, (batches, C), at the elements of x."""
        if self.number == 1:
            return across(each[0], x.dim())
        of_samples: Tensor = each.repeat_interleave(self.size, 0)[: len(x)]
        return of_samples.reshape(*of_samples.shape, *[1] * (x.dim() - 2))


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
    """Take χ²_B of batches into the averages, one after the other; give 1/χ̄ and r of each."""
    joined, squares = _averaged(history, counter, own, warm_up)
    averages = [running.to(own.dtype)]
    for square in squares:
        averages.append(averages[-1].lerp(square, momentum))
    r = ((squares + eps) / (torch.stack(averages[:-1]) + eps)).sqrt().clamp(1 / r_max, r_max)
    r = torch.where(_numbers(counter, len(own)) < r_warm_up, 1.0, r)
    taken = own.isfinite().all() & (count > 0).all()
    history.copy_(torch.where(taken, joined, history))
    running.copy_(torch.where(taken, averages[-1], running))
    counter.add_(taken * len(own))
    return torch.rsqrt(squares + eps), r


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
        batches: _Batches,
        count: Tensor,
        valid: Tensor | None,
        history: Tensor,
        counter: Tensor,
        warm_up: int,
    ) -> Tensor:
        ctx.save_for_backward(x, inverse, r, count, valid)
        # Not saved as tensors of the graph: other backward passes may change them before.
        ctx.batches, ctx.history, ctx.counter, ctx.warm_up = batches, history, counter, warm_up
        return only(valid, x.to(inverse.dtype)) * batches.across(inverse * r, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, r, count, valid = ctx.saved_tensors
        batches, dtype = ctx.batches, inverse.dtype
        z = only(valid, x.to(dtype)) * batches.across(inverse, x)
        g = only(valid, gradient) * batches.across(r, x)
        with torch.no_grad():  # a second derivative holds the average constant
            own = batches.sums(g * z) / at_least(1, count)
            history, average = _averaged(ctx.history, ctx.counter, own, ctx.warm_up)
            taken = own.isfinite().all() & (count > 0).all()
            ctx.history.copy_(torch.where(taken, history, ctx.history))
            ctx.counter.add_(taken * len(own))
        dx = (g - z * batches.across(average, x)) * batches.across(inverse, x)
        return dx.to(x.dtype), None, None, None, None, None, None, None, None


def _averaged(
    history: Tensor, counter: Tensor, newest: Tensor, warm_up: int
) -> tuple[Tensor, Tensor]:
    """Put the newest rows behind the history; give its end, and the average at each of them.

    That is over the window which ends there, or the row itself as long as the warm-up lasts.
    """
    window = len(history)
    joined = torch.cat([history.to(newest.dtype), newest])
    numbers = _numbers(counter, len(newest))
    sums = joined.unfold(0, window, 1)[1:].sum(-1)
    averages = sums / (numbers + 1).clamp(max=window)
    return joined[-window:], torch.where(numbers < warm_up, newest, averages)


def _numbers(counter: Tensor, count: int) -> Tensor:
    """The numbers, from zero, of the next batches, (batches, 1)."""
    return (counter + torch.arange(count, device=counter.device)).unsqueeze(1)


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
        ghost_size: samples that are a batch of their own; a call is then of several batches, taken
            in one after the other, as if each had its own forward and backward pass. Default: all.

    Raises:
        TypeError: a `ghost_size` that is no whole number.
        ValueError: `eps` not above zero, `window`, `r_max` or `ghost_size` below one, an
            unknown activation.

    """

    input_dims = (4,)


class MovingAverageBatchNorm3d(MovingAverageNorm):
    """Moving average batch norm of (N, C, D, H, W). See `MovingAverageBatchNorm2d`."""

    input_dims = (5,)
