"""Who is measured: each contender's call, made as a user makes it, and the limit beside them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor

from livella import functional, native
from livella.bench.cases import Case, Fusion, Setting
from livella.bench.measure import Call

OURS, EAGER, COMPILE, LIMIT = "livella", "eager", "compile", "limit"
MOMENTUM, EPS = 0.1, 1e-5

_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functools.partial(F.relu, inplace=True),
    "relu6": functools.partial(F.relu6, inplace=True),
    "leaky_relu": functools.partial(F.leaky_relu, inplace=True),
    "silu": functools.partial(F.silu, inplace=True),
    "hardswish": functools.partial(F.hardswish, inplace=True),
}


@dataclass(frozen=True)
class Tensors:
    """What a batch norm takes. γ, β and the averages are in float32 at least, as in autocast."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    @classmethod
    def of(cls, setting: Setting) -> Tensors:
        """Random ones, the same for each setting."""
        generator = torch.Generator().manual_seed(0)

        def normal() -> Tensor:
            x = torch.randn(setting.shape, generator=generator)
            return laid_out(x.to(getattr(torch, setting.dtype)), setting.layout)

        channels = setting.shape[1]
        wide = torch.float64 if setting.dtype == "float64" else torch.float32
        return cls(
            x=normal().requires_grad_(),
            dy=normal(),
            residual=normal().requires_grad_() if setting.fusion.residual else None,
            weight=torch.ones(channels, dtype=wide, requires_grad=True),
            bias=torch.zeros(channels, dtype=wide, requires_grad=True),
            running_mean=torch.zeros(channels, dtype=wide),
            running_var=torch.ones(channels, dtype=wide),
        )

    @property
    def differentiable(self) -> list[Tensor]:
        """What backward gives gradients to."""
        residual = () if self.residual is None else (self.residual,)
        return [self.x, self.weight, self.bias, *residual]


Norm = Callable[[Tensors, bool], Tensor]
"""Tensors and whether in training → y."""


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values, with channels fastest in memory for "channels_last"."""
    if layout == "contiguous":
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def norms(setting: Setting) -> dict[str, Norm]:
    """The contenders that need no building."""
    return {OURS: _ours(setting.fusion), EAGER: _eager(setting.fusion)}


def compiled(setting: Setting, tensors: Tensors) -> Norm:
    """torch.compile of what eager runs, forward and backward compiled for these tensors.

    Raises:
        torch._dynamo.exc.TorchDynamoException: it cannot be built here, as without a compiler.
    """
    torch._dynamo.reset()  # or the settings would count as recompilations of one function
    norm: Norm = torch.compile(_eager(setting.fusion), dynamic=False)
    # A kept graph is run more than once: it must not give its saved tensors away.
    with torch._functorch.config.patch(donated_buffer=False):
        _backward(norm, tensors)()
    return norm


def calls(case: Case, tensors: Tensors, functions: Mapping[str, Norm]) -> dict[str, Call]:
    """What to time for a case: each contender's call, and the limit."""
    bound = _BINDINGS[case.operation]
    made = {name: bound(norm, tensors) for name, norm in functions.items()}
    return made | {LIMIT: _limit(case, tensors)}


def _ours(fusion: Fusion) -> Norm:
    def norm(given: Tensors, training: bool) -> Tensor:
        return functional.batch_norm(
            given.x,
            given.running_mean,
            given.running_var,
            given.weight,
            given.bias,
            training,
            MOMENTUM,
            EPS,
            activation=fusion.activation,
            residual=given.residual,
        )

    return norm


def _eager(fusion: Fusion) -> Norm:
    """As torch is fastest: what follows the normalization works in place."""
    activation = None if fusion.activation is None else _IN_PLACE[fusion.activation]

    def norm(given: Tensors, training: bool) -> Tensor:
        averages = (given.running_mean, given.running_var)
        y = F.batch_norm(given.x, *averages, given.weight, given.bias, training, MOMENTUM, EPS)
        if given.residual is not None:
            y += given.residual
        return y if activation is None else activation(y)

    return norm


def _forward(norm: Norm, tensors: Tensors) -> Call:
    return lambda: norm(tensors, True)


def _backward(norm: Norm, tensors: Tensors) -> Call:
    # Averages of its own: a compiled graph keeps them, and no other call may change them then.
    mean, var = tensors.running_mean.clone(), tensors.running_var.clone()
    y = norm(dataclasses.replace(tensors, running_mean=mean, running_var=var), True)
    leaves = tensors.differentiable
    return lambda: torch.autograd.grad(y, leaves, tensors.dy, retain_graph=True)


def _evaluation(norm: Norm, tensors: Tensors) -> Call:
    def call() -> None:
        with torch.no_grad():
            norm(tensors, False)

    return call


_BINDINGS: dict[str, Callable[[Norm, Tensors], Call]] = {
    "forward": _forward,
    "backward": _backward,
    "evaluation": _evaluation,
}


def _limit(case: Case, tensors: Tensors) -> Call:
    """The bytes that the case must read and write, and nothing else.

    Forward and evaluation read x and write y; a residual is one more to read. Backward reads x and
    dy and writes dx; with a residual it reads a third (y or r, for the activation) and writes dr.
    """
    x, dy = _as_floats(tensors.x), _as_floats(tensors.dy)
    y = torch.empty_like(x)
    residual = None if tensors.residual is None else _as_floats(tensors.residual)
    if case.operation != "backward":
        return _copy(x, y) if residual is None else _two_to_one(x, residual, y)
    dx = _two_to_one(x, dy, y)
    if residual is None:
        return dx
    dresidual = _copy(residual, torch.empty_like(x))
    return lambda: (dx(), dresidual())


def _copy(source: Tensor, target: Tensor) -> Call:
    if native.loaded:
        return functools.partial(torch.ops.livella.stream_copy, source, target)
    return functools.partial(target.copy_, source)


def _two_to_one(a: Tensor, b: Tensor, target: Tensor) -> Call:
    if native.loaded:
        return functools.partial(torch.ops.livella.stream_two_to_one, a, b, target)
    return functools.partial(torch.add, a, b, out=target)


def _as_floats(x: Tensor) -> Tensor:
    """The memory of a dense tensor as float32, the only type of the streams, whatever it holds."""
    return x.detach().as_strided((x.numel(),), (1,)).view(torch.float32)
