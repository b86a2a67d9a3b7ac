"""Batch normalization by the moments of all processes, over any backend of torch.distributed."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from livella import functional, reference
from livella.checks import Call, check, single_value
from livella.moments import Moments, accumulation_dtype, at_least
from livella.nn import switched
from livella.nn.batch import (
    OURS,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    _Core,
    _Plain,
    _signature,
)
from livella.nn.moving_average import MovingAverageNorm
from livella.nn.stack import BatchNormRNN

Model = TypeVar("Model", bound=nn.Module)
Group = dist.ProcessGroup | None


class _Synchronized(_Core):
    """What both layers here share: moments over all processes in training."""

    input_dims = (2, 3, 4, 5)
    process_group: Group = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Group = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        bias: bool = True,
        example_weight: float = 0.0,
        single_value: str = "error",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            activation=activation, bias=bias, example_weight=example_weight,
            single_value=single_value,
        )  # fmt: skip
        self.process_group = process_group

    def forward(
        self,
        input: Tensor,  # noqa: A002  torch's name
        *,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """Normalize by the moments of all processes in training, else as any batch norm does.

        See `livella.functional.batch_norm` for shapes, formula and errors. Every process of the
        group must call the layer as many times, with an empty batch where it has none, and take
        part in as many backward passes.
        """
        if not (self._by_batch() and _processes(self.process_group) > 1):
            return super().forward(input, residual=residual, mask=mask, activation=activation)
        if input.dim() not in self.input_dims:
            raise self._wrong_dimensions(input)
        activation = self.activation if activation is None else self._only(activation)
        _check(self, input, residual, mask, activation)
        local = Moments.of(input.detach(), mask=mask)
        moments = _gathered(local, self.process_group)
        if self.single_value == "running" and int(moments.count) == 1:
            return switched.by_running(self, input, residual, mask, activation)
        alone = input.numel() <= input.shape[1]  # else nobody need be asked how many there are
        if mask is None and alone and int(moments.count) == 1:
            raise single_value(f"one over all {_processes(self.process_group)} processes")
        inverse = _inverse(moments, self.eps).to(local.mean.dtype)
        output: Tensor = _Sync.apply(  # type: ignore[no-untyped-call]
            input, moments.mean.to(local.mean.dtype), inverse, moments.count, self.weight,
            self.bias, residual, mask, self.eps, activation, self.process_group,
        )  # fmt: skip
        self._update(moments, local.mean.dtype)
        return output.contiguous(memory_format=functional._memory_format(input))

    def _by_batch(self) -> bool:
        """Whether the batch normalizes, in training; evaluation asks no other process."""
        by = self.normalize_by
        return self.training and by != "running"

    def _update(self, moments: Moments, dtype: torch.dtype) -> None:
        guarded = self.update_policy == "guarded"
        if not (self.training and self.track_running_stats and self.update_running):
            return
        if self.running_mean is None or (guarded and not switched.is_first_pass()):
            return
        mean, var = moments.mean.to(dtype), moments.variance(unbiased=True).to(dtype)
        enough = torch.as_tensor(moments.count >= 2, device=mean.device)
        switched.take_in(self, mean, var, enough, guarded=guarded)

    @classmethod
    def convert(cls, model: Model, process_group: Group = None) -> Model:
        """Synchronize every batch norm of a model, torch's and Livella's, in place.

        Each stays the same object with its parameters, buffers, hooks, mode, activation and the
        inputs that it takes; `revert` undoes it.

        Args:
            model: any module, a batch norm itself too.
            process_group: the processes to normalize over. Default: all.

        Returns:
            The model.

        Warns:
            UserWarning: names layers of other classes that have statistics of batches, such as
                moving averages or a recurrent layer; they stay as they are, and their statistics
                those of each process.

        """
        others = []
        for name, layer in model.named_modules():
            kind = _SYNCHRONIZED.get(type(layer))
            if kind is None:
                if isinstance(layer, _OTHERS) and not isinstance(layer, _Synchronized):
                    others.append(f"{name or 'the model itself'} ({type(layer).__name__})")
                continue
            vars(layer)["_livella_converted_from"] = type(layer)
            vars(layer)["input_dims"] = _DIMS.get(type(layer), cls.input_dims)
            former = vars(layer).get("process_group")
            object.__setattr__(layer, "__class__", kind)
            vars(layer)["process_group"] = process_group if process_group is not None else former
        _name("convert", others, "each process keeps statistics of its own there")
        return model

    @classmethod
    def revert(cls, model: Model) -> Model:
        """Make every synchronized layer what it was before `convert`, in place.

        Layers that were built as `SyncBatchNorm` become torch's. A layer whose switches were moved
        since, by `livella.freeze` for one, becomes the Livella layer of that name, which has them.

        Returns:
            The model.

        Warns:
            UserWarning: names layers that torch has no class for, as they were built with an
                activation or had a switch moved, or were parametrized since; they stay as they are.

        """
        others = []
        for name, layer in model.named_modules():
            if not isinstance(layer, _Synchronized):
                continue
            kind = _reverted(layer)
            if kind is None:
                others.append(f"{name or 'the model itself'} ({type(layer).__name__})")
                continue
            for own in ("_livella_converted_from", "input_dims"):
                vars(layer).pop(own, None)
            if kind is not nn.SyncBatchNorm:
                vars(layer).pop("process_group", None)
            object.__setattr__(layer, "__class__", kind)
        _name("revert", others, "build another layer in their place")
        return model


class SyncBatchNormAct(_Synchronized):
    """`SyncBatchNorm` with an activation fused in; no instance of torch's `_BatchNorm`."""


class SyncBatchNorm(_Plain, _Synchronized, _BatchNorm):
    """Batch normalization of (N, C) or (N, C, …) by the moments of all processes together.

    y = act((x − μ)/√(σ² + ε)·γ + β + residual) with μ and σ² over the batches of all processes,
    merged from their counts, means and squared deviations (Chan, Golub & LeVeque 1983). Batches
    may have different sizes, and be empty. Over any backend, gloo on the CPU included; one
    collective forward and one backward. Output, gradient, second gradient and running statistics
    are those of one process with the joined batch; the gradients of γ and β are each process's
    share, which `DistributedDataParallel` averages.

    Without `torch.distributed`, with one process, and in evaluation it is `BatchNorm`. It is an
    instance of torch's `_BatchNorm` but not of its `SyncBatchNorm`, which
    `DistributedDataParallel` refuses on the CPU.

    Args:
        num_features: C.
        eps: ε, in the squared unit of the input. Default: 1e-5.
        momentum: the share of each batch in the running averages; none averages all batches
            equally. Default: 0.1.
        affine: learn γ (from one) and β (from zero). Default: true.
        track_running_stats: keep running averages. Default: true.
        process_group: the processes to normalize over. Default: all.
        device: where parameters and averages live. Default: torch's.
        dtype: their dtype. Default: torch's.
        activation: as in `BatchNorm2d`; the result is then a `SyncBatchNormAct`. Default: none.
        bias: learn β as well as γ. Default: true.
        example_weight: as in `BatchNorm2d`. Default: 0.
        single_value: as in `BatchNorm2d`, of all processes together. Default: "error".

    Raises:
        RuntimeError: at the call, when another process is gone or does not come in the time the
            group allows.
        ValueError: at the call, one value a channel over all processes.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> model = SyncBatchNorm.convert(model)

    """

    with_activation = SyncBatchNormAct
    __signature__: ClassVar[inspect.Signature] = _signature(_Synchronized)


_SYNCHRONIZED: dict[type[nn.Module], type[nn.Module]] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), SyncBatchNorm),
    **dict.fromkeys((nn.SyncBatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d), SyncBatchNorm),
    **dict.fromkeys((BatchNormAct1d, BatchNormAct2d, BatchNormAct3d), SyncBatchNormAct),
}
_OTHERS = (_BatchNorm, _Core, MovingAverageNorm, BatchNormRNN)
_DIMS = {
    **dict.fromkeys((nn.BatchNorm1d, BatchNorm1d, BatchNormAct1d), BatchNorm1d.input_dims),
    **dict.fromkeys((nn.BatchNorm2d, BatchNorm2d, BatchNormAct2d), BatchNorm2d.input_dims),
    **dict.fromkeys((nn.BatchNorm3d, BatchNorm3d, BatchNormAct3d), BatchNorm3d.input_dims),
}


class _Sync(torch.autograd.Function):
    """Normalization by moments of all processes, with its explicit backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        inverse: Tensor,
        count: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        eps: float,
        activation: str | None,
        group: Group,
    ) -> Tensor:
        kept = (None, None) if activation is None else (bias, residual)
        ctx.save_for_backward(x, mean, inverse, count, weight, *kept, mask)
        ctx.eps, ctx.activation, ctx.group = eps, activation, group
        return reference.forward(x, mean, inverse, weight, bias, residual, mask, activation)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, count, weight, bias, residual, mask = ctx.saved_tensors
        if torch.is_grad_enabled():  # differentiated again: the moments must depend on x once more
            moments = _gathered(Moments.of(x, mask=mask), ctx.group)
            mean = moments.mean.to(inverse.dtype)
            inverse = _inverse(moments, ctx.eps).to(inverse.dtype)
        dx, *gradients = reference.backward(
            dy, x, mean, inverse, weight, bias, residual, mask, ctx.activation,
            from_batch=True,
            in_all=lambda sums: _Sum.apply(sums, ctx.group),  # type: ignore[no-untyped-call]
            count=count.to(inverse.dtype),
        )  # fmt: skip
        dweight, dbias, dresidual = (
            gradient if needed else None
            for gradient, needed in zip(gradients, ctx.needs_input_grad[4:7], strict=True)
        )
        dx = dx.contiguous(memory_format=functional._memory_format(x))
        return dx, None, None, None, dweight, dbias, dresidual, None, None, None, None


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = values.contiguous().clone()
        with _Waiting("backward", group):
            dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total: Tensor = _Sum.apply(gradient, ctx.group)  # type: ignore[no-untyped-call]
        return total, None


class _Gather(torch.autograd.Function):
    """What each process has, stacked by rank; the gradient of each part goes where it came from."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(values) for _ in range(_processes(group))]
        with _Waiting("forward", group):
            dist.all_gather(parts, values.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total: Tensor = _Sum.apply(gradient, ctx.group)  # type: ignore[no-untyped-call]
        return total[dist.get_rank(ctx.group)], None


def _gathered(local: Moments, group: Group) -> Moments:
    """Merge the moments of all processes, in the order of their ranks."""
    parts: Tensor = _Gather.apply(local.packed(), group)  # type: ignore[no-untyped-call]
    whole = Moments.unpacked(parts[0])
    for part in parts[1:]:
        whole = whole.merge(Moments.unpacked(part))
    return Moments(whole.count[0].detach(), whole.mean, whole.m2)  # type: ignore[index]


def _inverse(moments: Moments, eps: float) -> Tensor:
    return torch.rsqrt(moments.m2 / at_least(1, moments.count) + eps)


class _Waiting:
    """Says what a collective waited for, where it fails."""

    def __init__(self, where: str, group: Group) -> None:
        self.where, self.group = where, group

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, _trace: object) -> None:
        if not isinstance(error, RuntimeError):
            return
        raise RuntimeError(
            f"SyncBatchNorm: rank {dist.get_rank(self.group)} of {_processes(self.group)} waited "
            f"for the others in {self.where} and got: {error}. Another process ended, or called "
            "the layer fewer times; look at its output, and give it an empty batch where it has "
            "none"
        ) from error


def _reverted(layer: _Synchronized) -> type[nn.Module] | None:
    """The class that a synchronized layer goes back to, if there is one that does the same."""
    if type(layer) not in (SyncBatchNorm, SyncBatchNormAct):
        return None  # something changed the class since, and relies on it
    built = nn.SyncBatchNorm if type(layer) is SyncBatchNorm else None
    former: type[nn.Module] | None = vars(layer).get("_livella_converted_from", built)
    if layer._switches is None or former is None or issubclass(former, _Core):
        return former
    return OURS.get(former)


def _processes(group: Group) -> int:
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


def _check(
    layer: _Core, x: Tensor, residual: Tensor | None, mask: Tensor | None, activation: str | None
) -> None:
    """Raise what any batch norm does; how many values there are is not known here."""
    stats = layer.running_mean, layer.running_var
    if None in stats:
        zeros = torch.zeros(x.shape[1], dtype=accumulation_dtype(x.dtype), device=x.device)
        stats = zeros, zeros
    check(
        Call(
            x, *stats, layer.weight, layer.bias, False, 0.0, layer.eps, activation, residual, mask,
            None,
        )
    )  # fmt: skip


def _name(what: str, others: list[str], remedy: str) -> None:
    if others:
        warnings.warn(
            f"SyncBatchNorm.{what}: left alone, being of another class: {', '.join(others)}; "
            f"{remedy}",
            stacklevel=3,
        )
