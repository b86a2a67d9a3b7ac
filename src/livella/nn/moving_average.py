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
from livella.nn.precision import keep_precision
from livella.nn.switched import refuse_repetition


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
        _check_options(type(self).__name__, eps, momentum, window, r_max)
        _check_counts(type(self).__name__, window=window, warm_up=warm_up, r_warm_up=r_warm_up)
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
        if not self.training:
            mean = torch.zeros_like(self.running_square)
            return functional.batch_norm(
                x, mean, self.running_square, self.weight, self.bias, eps=self.eps,
                activation=self.activation, residual=residual, mask=mask,
            )  # fmt: skip
        refuse_repetition(self)
        dtype = accumulation_dtype(x.dtype)
        valid = None if mask is None else spread(mask, x.shape)
        if residual is not None:  # or what the mask hides would make gradients of NaN
            residual = only(valid, residual).to(dtype)
        y = only(valid, self._by_batches(only(valid, x).to(dtype), residual, valid))
        return y.to(x.dtype).contiguous(memory_format=functional._memory_format(x))

    def _by_batches(self, x: Tensor, residual: Tensor | None, valid: Tensor | None) -> Tensor:
        batches = _Batches.of(x, self.ghost_size)
        apart, count = batches.apart(x), batches.sizes(x, valid)
        inverse, r = _take_in(
            _mean_square(apart.detach(), count), count, self.square_history, self.running_square,
            self.num_batches_tracked, self.eps, self.momentum, self.warm_up, self.r_max,
            self.r_warm_up,
        )  # fmt: skip
        scale = r * inverse if self.weight is None else self.weight.to(x.dtype) * r * inverse
        y: Tensor = _Scaled.apply(  # type: ignore[no-untyped-call]
            apart,
            scale.flatten(),
            None if self.bias is None else self.bias.to(x.dtype).repeat(batches.number),
            None if residual is None else batches.apart(residual),
            self.activation, inverse, count,
            self.gradient_history, self.num_gradients_tracked, self.warm_up,
        )  # fmt: skip
        return batches.together(y, x.shape[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovingAverageNorm:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._keep_precision(before)
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._keep_precision({})  # assigned, tensors bring their dtype along

    def _keep_precision(self, before: dict[str, Tensor | None]) -> None:
        keep_precision(self._buffers, before, list(self._buffers))

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
        if ghost_size is None or x.shape[0] <= ghost_size:
            return cls(x.shape[0], 1)
        return cls(ghost_size, -(-x.shape[0] // ghost_size))

    def sizes(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """How many values a channel each has, (batches, 1)."""
        if valid is not None:
            apart = self.apart(valid.long())
            return apart.sum(_over(apart)).unsqueeze(1)
        left = x.shape[0] - self.size * (self.number - 1)
        samples = [self.size] * (self.number - 1) + [left]
        each = torch.tensor(samples, device=x.device).unsqueeze(1)
        return each * math.prod(x.shape[2:])

    def apart(self, x: Tensor) -> Tensor:
        """(N, C, …) as (size, batches·C, …): each has channels of its own; zeros fill the last."""
        if self.number == 1:
            return x
        missing = self.number * self.size - x.shape[0]
        whole: Tensor = nn.functional.pad(x, [0, 0] * (x.dim() - 1) + [0, missing])
        parts: Tensor = whole.unflatten(0, (self.number, self.size))
        return parts.transpose(0, 1).flatten(1, 2)

    def together(self, apart: Tensor, samples: int) -> Tensor:
        """What `apart` has taken apart, (N, C, …) again."""
        if self.number == 1:
            return apart
        whole: Tensor = apart.unflatten(1, (self.number, -1)).transpose(0, 1).flatten(0, 1)
        return whole[:samples]


def _mean_square(x: Tensor, count: Tensor) -> Tensor:
    """χ²_B of each batch, (batches, C), of (size, batches·C, …)."""
    squares: Tensor = torch.linalg.vector_norm(x, dim=_over(x)).square()
    return squares.view(len(count), -1) / at_least(1, count)


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


class _Scaled(torch.autograd.Function):
    """act(x·scale + shift + residual), with the paper's gradient, whose average is taken in.

    With scale = γ·r/χ̄ and Σ dz·x, which is the gradient of the scale, Ψ_B = scale·Σ dz·x/m, and
    the moments add −x·Ψ̄/χ̄² to the gradient of x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        residual: Tensor | None,
        activation: str | None,
        inverse: Tensor,
        count: Tensor,
        history: Tensor,
        counter: Tensor,
        warm_up: int,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, shift, residual, inverse, count)
        # Not saved as tensors of the graph: other backward passes may change them before.
        ctx.history, ctx.counter, ctx.warm_up = history, counter, warm_up
        ctx.activation = activation
        return functional.scale_channels(x, scale, shift, activation, residual)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, residual, inverse, count = ctx.saved_tensors
        dx, dscale, dshift, dresidual = _plain(dy, x, scale, shift, residual, ctx.activation)
        with torch.no_grad():  # a second derivative holds the average constant
            own = (scale * dscale).view_as(inverse) / at_least(1, count)
            history, average = _averaged(ctx.history, ctx.counter, own, ctx.warm_up)
            taken = own.isfinite().all() & (count > 0).all()
            ctx.history.copy_(torch.where(taken, history, ctx.history))
            ctx.counter.add_(taken * len(own))
            term = across((average * inverse.square()).flatten(), x.dim())
        dx = torch.addcmul(dx, x, term, value=-1)
        return dx, dscale, dshift, dresidual, *[None] * 6


def _plain(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> tuple[Any, ...]:
    """Give the gradients where the scale is a constant: of x, scale, shift and residual."""
    tensors = (x, scale, shift, residual)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():  # they are differentiated again
        found = reference.backward(
            dy, x, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, residual, None,
            activation, from_batch=False,
        )  # fmt: skip
        return tuple(g if t is not None else None for g, t in zip(found, tensors, strict=True))
    with torch.enable_grad():  # on the kernels, which know what they need; the output is made anew
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_() for t in tensors]
        y = functional.scale_channels(leaves[0], leaves[1], leaves[2], activation, leaves[3])
        made = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], dy))
    return tuple(None if t is None else next(made) for t in leaves)


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


def _check_counts(kind: str, **counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"{kind}: expected {name} as a number of batches, got {count!r}")


def _check_options(kind: str, eps: float, momentum: float, window: int, r_max: float) -> None:
    if momentum is None or not 0 <= momentum <= 1:
        raise ValueError(
            f"{kind}: expected momentum from 0 to 1, got {momentum}; the usual value is 0.02"
        )
    if not eps > 0:
        raise ValueError(f"{kind}: expected eps above zero, got {eps}; the usual value is 1e-5")
    if window < 1:
        raise ValueError(f"{kind}: expected a window of one batch or more, got {window}")
    if not r_max >= 1:
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

    Every forward pass in training is a batch; activation checkpoints, which repeat one, are
    refused. Ψ_B has the unit of the loss, so a loss scale that changes is felt for a window. No
    instance of torch's batch norms: `running_square` is no variance, and what treats batch norms
    specially (`estimate_population`, torch's converters) passes the layer over; `freeze` knows it.

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
        RuntimeError: at the call, repeated by an activation checkpoint.
        ValueError: `eps` not above zero, `momentum` not from 0 to 1, a count below zero, `window`,
            `r_max` or `ghost_size` below one, an unknown activation.

    """

    input_dims = (4,)


class MovingAverageBatchNorm3d(MovingAverageNorm):
    """Moving average batch norm of (N, C, D, H, W). See `MovingAverageBatchNorm2d`."""

    input_dims = (5,)
