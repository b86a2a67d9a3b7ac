"""What stands for tensors, for a module and for its children while its forward is followed.

Values record what is done with them. Shadows record what is read of a module, and a call of a child
becomes one node. Both refuse what they cannot answer as the real ones would.
"""

from __future__ import annotations

import inspect
import operator
from abc import ABCMeta
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, GraphAppendingTracer
from torch.overrides import is_tensor_method_or_property
from torch.utils._pytree import tree_leaves

from livella.model.lasting import CONSTANTS, is_fixed
from livella.model.sites import is_batch_norm
from livella.model.straight import Refused

if TYPE_CHECKING:
    from livella.model.trace import Trace


# Values


class _Value(fx.Proxy):
    """Stands for what exists only at run time; asked what it is, it says so or refuses."""

    is_tensor = False

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        if self.is_tensor:
            return Tensor
        raise Refused("asks for the type of a computed value")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not (
            name in _PROPERTIES or callable(getattr(Tensor, name, None))
        ):
            raise Refused(f"reads .{name} of a value")
        return _Property(self, name)

    @classmethod
    def __torch_function__(
        cls, orig_method: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> fx.Proxy:
        # Unlike fx's own this asks no value for its type.
        leaves = tree_leaves((args, kwargs))
        tracer = next(leaf.tracer for leaf in leaves if isinstance(leaf, fx.Proxy))
        if is_tensor_method_or_property(orig_method):
            return tracer.create_proxy("call_method", orig_method.__name__, args, kwargs or {})
        return tracer.create_proxy("call_function", orig_method, args, kwargs or {})


class _Property(Attribute, _Value):
    """An attribute of a value, or its method, which is only known when it is called."""


def _refuse_to_tell(*_: Any) -> Any:
    raise Refused("asks for more of a computed value than a trace can tell")


_TELLING = ("hash", "str", "repr", "format", "reduce", "reduce_ex", "getstate", "sizeof", "dir")
for _name in (*_TELLING, "copy", "deepcopy"):
    # What `object` and fx answer is not what the value would: no key of it is found anywhere.
    setattr(_Value, f"__{_name}__", _refuse_to_tell)


_PROPERTIES = ("shape", "dtype", "device", "layout", "ndim", "T", "mT", "H", "mH", "real", "imag")
"""Those that every tensor has; `grad` and its like may be None."""

_IN_PLACE = [name for name in fx.graph.inplace_methods if name != "setitem"]


def _in_place(name: str) -> Callable[[_Value, Any], fx.Proxy]:
    def record(self: _Value, other: Any) -> fx.Proxy:
        target = getattr(operator, name)
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return record


for _name in _IN_PLACE:
    # Without these, `x += y` would be recorded as `x = x + y`, and who else holds x would not see.
    setattr(_Value, f"__{_name}__", _in_place(_name))


class Tracer(GraphAppendingTracer):
    """Writes a graph of what is done with its values."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def tensor(self, kind: str, target: str) -> Any:
        value: Any = self.create_proxy(kind, target, (), {})
        value.is_tensor = True
        return value

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if a is None or a is ... or type(a) in (*CONSTANTS, tuple, list, dict, slice, range):
            return super().create_arg(a)
        raise Refused(f"computes with a {type(a).__name__} that a graph cannot hold")


# The module and its children


_MISSING = object()


@dataclass(frozen=True)
class _Seen:
    """What a shadow stands for, and where its readings are noted."""

    module: nn.Module
    path: str
    trace: Trace
    tracer: Tracer

    def read(self, shadow: nn.Module, name: str) -> Any:
        if name == "__class__":
            return type(self.module)
        if not is_ordinary(type(self.module)):
            raise Refused(f"reads {name} of the unusual class {type(self.module).__name__}")
        own = vars(self.module)
        if name == "_modules":
            return {child: self._child(child) for child in self._children()}
        if name == "training" and not self.path:
            return self._note(name, self.trace.training)
        found = inspect.getattr_static(type(self.module), name, _MISSING)
        if name in own and not isinstance(found, property):
            return self._note(name, own[name])
        # What a class has goes before children and tensors: modules find those last of all.
        return self._held(name) if found is _MISSING else self._of_class(shadow, name, found)

    def call(self, shadow: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.path:
            raise Refused("calls itself")
        is_open = _is_transparent(self.module) and self.module not in self.trace.closed
        if is_open and len(args) == 1 and not kwargs:
            self.trace.opened[self.module] = None
            return original_class(self.module).forward(shadow, *args)
        return self.tracer.create_proxy("call_module", self.path, args, kwargs)

    def _held(self, name: str) -> Any:
        own = vars(self.module)
        if name in own["_modules"]:
            return self._child(name)
        for kind in ("_parameters", "_buffers"):
            if name in own[kind]:
                return self._tensor(kind, name)
        # Not an AttributeError: `getattr` would give its default, also when there is one later.
        raise Refused(f"reads {name}, which it does not have")

    def _tensor(self, kind: str, name: str) -> Any:
        if vars(self.module)[kind][name] is None:
            return self._note(name, None)
        self.trace.tensors.append((self.module, kind, name))
        return self.tracer.tensor("get_attr", self._path(name))

    def _children(self) -> dict[str, nn.Module | None]:
        """Give all children, and note that there are these and no others."""
        return self.trace.children.setdefault(self.module, dict(self.module._modules))

    def _child(self, name: str) -> nn.Module | None:
        child = self._children()[name]
        if child is None:
            return None
        return shadow_of(child, self._path(name), self.trace, self.tracer)

    def _of_class(self, shadow: nn.Module, name: str, found: Any) -> Any:
        if isinstance(found, FunctionType | property | classmethod | staticmethod):
            self.trace.members.append((self.module, name, getattr(type(self.module), name)))
            self.trace.outside.meet(found)
            return object.__getattribute__(shadow, name)
        return self._note(name, object.__getattribute__(shadow, name))

    def _note(self, name: str, value: Any) -> Any:
        if not is_fixed(value):
            raise Refused(f"reads {name}, a {type(value).__name__}, which may change unnoticed")
        self.trace.outside.meet(value)
        self.trace.attributes.append((self.module, name, value))
        return value

    def _path(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def _is_transparent(module: nn.Module) -> bool:
    """Whether it is better followed too: no layer, or a sequence whose last one is a norm.

    Such a norm may do an addition that comes next.
    """
    forward = original_class(module).forward
    if type(module).__call__ is not nn.Module.__call__ or not is_bare(module):
        return False
    if isinstance(module, nn.Sequential):
        return forward is nn.Sequential.forward and is_batch_norm(last_layer(module))
    return forward is nn.Identity.forward


def shadow_of(module: nn.Module, path: str, trace: Trace, tracer: Tracer) -> nn.Module:
    """Make what stands for a module in a trace: of its class if possible, but never run."""
    kind: Any = type(module)
    shadow: nn.Module = object.__new__(_shadow_class(kind if is_ordinary(kind) else nn.Module))
    object.__getattribute__(shadow, "__dict__")["seen"] = _Seen(module, path, trace, tracer)
    trace.modules[path] = module
    return shadow


@lru_cache(maxsize=256)
def _shadow_class(kind: Any) -> Any:
    return type(kind)(
        kind.__name__,
        (kind,),
        {
            "__getattribute__": lambda self, name: _seen(self).read(self, name),
            "__setattr__": _refuse_to_store,
            "__delattr__": _refuse_to_store,
            "__eq__": _refuse_to_compare,
            "__hash__": _refuse_to_compare,
            "__call__": lambda self, *args, **kwargs: _seen(self).call(self, args, kwargs),
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
        },
    )


def _seen(shadow: nn.Module) -> _Seen:
    seen: _Seen = object.__getattribute__(shadow, "__dict__")["seen"]
    return seen


def _refuse_to_store(_: nn.Module, name: str, *__: Any) -> None:
    raise Refused(f"changes its attribute {name}")


def _refuse_to_compare(*_: Any) -> Any:
    raise Refused("compares a module, or looks it up")  # each reading makes another shadow


# What is asked of modules


def is_bare(module: nn.Module) -> bool:
    """Whether a call of it is a call of its class's forward, and at most looked on."""
    own = module.__dict__
    return not (
        (own["_forward_hooks"] and not _look_on(own["_forward_hooks"]))
        or (own["_forward_pre_hooks"] and not _look_on(own["_forward_pre_hooks"]))
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "_compiled_call_impl" in own
        or "forward" in own
    )


def _look_on(hooks: Mapping[int, Any]) -> bool:
    return all(hasattr(hook, "looks_on") for hook in hooks.values())


def original_class(module: nn.Module) -> Any:
    """Give the class that a module had before it was fused, or has if it is not."""
    return getattr(type(module), "_livella_original", type(module))


def last_layer(module: nn.Module) -> nn.Module:
    """Give what a sequence ends in, or the module itself if it is none."""
    while isinstance(module, nn.Sequential) and len(module) > 0:
        module = module[-1]
    return module


def is_ordinary(kind: type) -> bool:
    """Whether a class can be derived from unnoticed, and reads its attributes as modules do."""
    special = ("__init_subclass__", "__getattribute__", "__getattr__")
    own = [c for c in kind.__mro__ if c not in (object, nn.Module)]
    return type(kind) in (type, ABCMeta) and not any(
        name in vars(base) for base in own for name in special
    )
