"""Who is measured: each contender's call, made as a user makes it, and the limit beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn

import livella.nn
from livella import native
from livella.bench.cases import Case, Fusion, Setting
from livella.bench.measure import Call

OURS, EAGER, COMPILE, LIMIT = "livella", "eager", "compile", "limit"
MOMENTUM, EPS = 0.1, 1e-5

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functools.partial(F.relu, inplace=True),
    "relu6": F.relu6,
    "leaky_relu": functools.partial(F.leaky_relu, inplace=True),
    "silu": F.silu,
    "hardswish": F.hardswish,
}
"""As torch is fastest: in place where its gradient then keeps no copy of what was there."""


@dataclass(frozen=True)
class Tensors:
    """What a batch norm takes. γ and β are in float32 at least, as in autocast."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    weight: nn.Parameter
    bias: nn.Parameter

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
            weight=nn.Parameter(torch.ones(channels, dtype=wide)),
            bias=nn.Parameter(torch.zeros(channels, dtype=wide)),
        )

    @property
    def differentiable(self) -> list[Tensor]:
        """What backward gives gradients to."""
        residual = () if self.residual is None else (self.residual,)
        return [self.x, self.weight, self.bias, *residual]


Forward = Callable[[], Tensor]
Norm = Callable[[Tensors, bool], Forward]
"""Tensors and whether in training → the call that gives y."""


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
    function = torch.compile(_function(setting.fusion), dynamic=False)

    def norm(given: Tensors, training: bool) -> Forward:
        mean, var = (torch.full_like(given.weight, value).detach() for value in (0.0, 1.0))
        return lambda: function(given, mean, var, training)

    # A kept graph is run more than once: it must not give its saved tensors away.
    with torch._functorch.config.patch(donated_buffer=False):
        _backward(norm, tensors)()
    return norm


def calls(case: Case, tensors: Tensors, functions: Mapping[str, Norm]) -> dict[str, Call]:
    """What to time for a case: each contender's call, and the limit."""
    bound = _BINDINGS[case.operation]
    made = {name: bound(norm, tensors) for name, norm in functions.items()}
    return made | {LIMIT: _limit(case, tensors)}


def _layer(library: ModuleType, given: Tensors, training: bool, **options: str) -> nn.Module:
    """The batch norm of torch.nn or livella.nn for these tensors, with averages of its own.

    Of its own, as a graph keeps them and no other call may change them until backward.
    """
    kind = getattr(library, f"BatchNorm{max(1, given.x.dim() - 2)}d")
    layer: nn.Module = kind(given.x.shape[1], EPS, MOMENTUM, dtype=given.weight.dtype, **options)
    layer.weight, layer.bias = given.weight, given.bias
    return layer.train(training)


def _ours(fusion: Fusion) -> Norm:
    options = {} if fusion.activation is None else {"activation": fusion.activation}

    def norm(given: Tensors, training: bool) -> Forward:
        layer = _layer(livella.nn, given, training, **options)
        if given.residual is None:
            return lambda: layer(given.x)
        return lambda: layer(given.x, residual=given.residual)

    return norm


def _eager(fusion: Fusion) -> Norm:
    activation = None if fusion.activation is None else _ACTIVATIONS[fusion.activation]

    def norm(given: Tensors, training: bool) -> Forward:
        layer = _layer(nn, given, training)

        def call() -> Tensor:
            y: Tensor = layer(given.x)
            if given.residual is not None:
                y += given.residual
            return y if activation is None else activation(y)

        return call

    return norm


def _function(fusion: Fusion) -> Callable[..., Tensor]:
    """What eager runs, without the cost of a module: compiled once, it serves any tensors."""
    activation = None if fusion.activation is None else _ACTIVATIONS[fusion.activation]

    def function(given: Tensors, mean: Tensor, var: Tensor, training: bool) -> Tensor:
        y = F.batch_norm(given.x, mean, var, given.weight, given.bias, training, MOMENTUM, EPS)
        if given.residual is not None:
            y += given.residual
        return y if activation is None else activation(y)

    return function


def _forward(norm: Norm, tensors: Tensors) -> Forward:
    return norm(tensors, True)


def _backward(norm: Norm, tensors: Tensors) -> Call:
    y = norm(tensors, True)()
    leaves = tensors.differentiable
    return lambda: torch.autograd.grad(y, leaves, tensors.dy, retain_graph=True)


def _evaluation(norm: Norm, tensors: Tensors) -> Call:
    evaluate = norm(tensors, False)

    def call() -> Tensor:
        with torch.no_grad():
            return evaluate()

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
