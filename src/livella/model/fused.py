"""A module that runs its forward with batch norms fused, while what was proved of it holds.

The module keeps its children and gets a class derived from its own, so that it goes on being what
it was to everyone. That class's `forward` looks for a plan: a rewritten forward for arguments of
this form, with all that it rests on. If that still holds the plan runs, else the module's own
forward does, and a new plan is made if one can be.
"""

from __future__ import annotations

import functools
import inspect
import math
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from livella.model.plans import Plan, Plans
from livella.model.standins import is_ordinary
from livella.model.trace import TENSOR, Kind


def can_be_fused(owner: nn.Module) -> bool:
    """Whether its class leaves room for a fused forward; whether there is one is seen later."""
    kind = type(owner)
    forward = inspect.getattr_static(kind, "forward", None)
    return (
        is_ordinary(kind)
        and isinstance(forward, FunctionType)
        and _is_written_for_users(forward)
        and not any(name.startswith("_torchdynamo") for name in vars(forward))
        and "forward" not in vars(owner)
        and not isinstance(owner, torch.jit.ScriptModule | fx.GraphModule)
        and not is_parametrized(owner)
    )


def _is_written_for_users(forward: FunctionType) -> bool:
    """Whether it is a network's own forward, or a layer's; torch's wrappers do more than they show.

    `nn.Module.forward` itself says that there is none.
    """
    room = forward.__module__ or ""
    in_torch = room == "torch" or room.startswith("torch.")
    in_layers = room.startswith("torch.nn.modules.") and forward is not nn.Module.forward
    return in_layers or not in_torch


def is_fused(module: nn.Module) -> bool:
    """Whether its class is one of `fused_class`, or derived from one."""
    return hasattr(type(module), "_livella_original")


@functools.cache
def fused_class(original: Any) -> Any:
    """Derive the class that runs plans, with the name and the signature of the original."""

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan, tensors = _plan(self, args, kwargs)
        if plan is None or plan.run is None:
            return original.forward(self, *args, **kwargs)
        return plan.run(self, *tensors)

    members = {
        "_livella_original": original,
        "_livella_plans": None,
        "forward": forward,
        "extra_repr": _describe,
        "__reduce_ex__": _reduce,
        "__setstate__": _restore,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original)(original.__name__, (original,), members)


# The members that all these classes share


def _describe(self: Any) -> str:
    fused = str(_plans(self))
    lines = (self._livella_original.extra_repr(self), fused and f"(fused): {fused}")
    return "\n".join(line for line in lines if line)


def _reduce(self: Any, protocol: Any) -> Any:
    """Reduce it as its original class does, naming that one: the derived class has no address."""
    original = self._livella_original
    make, arguments, *rest = original.__reduce_ex__(self, max(int(protocol), 2))
    if make is type(self):
        return original, arguments, *rest
    if not arguments or arguments[0] is not fused_class(original):
        return make, arguments, *rest
    return _revive, (make, original, *arguments[1:]), *rest


def _revive(make: Any, original: Any, *arguments: Any) -> Any:
    return make(fused_class(original), *arguments)


def _restore(self: Any, state: Any) -> None:
    self._livella_original.__setstate__(self, state)
    _plans(self).make_default()


# The call


def _plans(owner: Any) -> Plans:
    if owner._livella_plans is None:
        object.__setattr__(owner, "_livella_plans", Plans(owner, owner._livella_original))
    plans: Plans = owner._livella_plans
    return plans


def _plan(
    owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Plan | None, list[Tensor]]:
    """Give the plan for a call, if there is one, and the tensors among the call's arguments."""
    tensors: list[Tensor] = []
    positional = tuple([_kind(value, tensors) for value in args])
    named = tuple([(name, _kind(value, tensors)) for name, value in kwargs.items()])
    if None in positional or (named and any(kind is None for _, kind in named)):
        return None, tensors
    plans = _plans(owner)
    # A replica of `DataParallel` has the attributes of its original: what they prove is not its.
    if plans.owner is not owner or torch._C._get_tracing_state() is not None:
        return None, tensors
    return plans.find((positional, named)), tensors


def _kind(value: Any, tensors: list[Tensor]) -> Kind | None:
    """Give the kind of an argument, none if it is no plain value, and note its tensors."""
    if isinstance(value, Tensor):
        tensors.append(value)
        # Of a subclass, only the compiler's own are known to be nothing but tensors.
        return TENSOR if type(value) in _TENSORS or torch.compiler.is_compiling() else None
    if type(value) in (list, tuple):
        plain = [_kind(item, tensors) == TENSOR for item in value]
        return (type(value), len(value)) if all(plain) else None
    if type(value) is float and value == 0.0 and math.copysign(1.0, value) < 0.0:
        return None  # as a key it would be the same as 0.0, and a forward can tell them apart
    return (type(value), value) if value is None or type(value) in _VALUES else None


_TENSORS = (Tensor, nn.Parameter)
_VALUES = (bool, int, float, str)
