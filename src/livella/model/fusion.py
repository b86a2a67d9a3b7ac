"""Find batch norms whose activation and residual add may be done in the same call, and do so.

Three patterns: bn → act, bn → add, bn → add → act, where nothing else reads the value between.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, fx, nn

from livella import reference
from livella.model.standins import is_bare
from livella.model.trace import Trace
from livella.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d

PLAIN = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
"""Layers whose call takes an activation and a residual."""

MODULES = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardtanh: "hardtanh",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.hardtanh: "hardtanh",
    F.hardtanh_: "hardtanh",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    F.silu: "silu",
    F.hardswish: "hardswish",
}
METHODS = {"relu": "relu", "relu_": "relu"}
SETTINGS = {"hardtanh": ("min_val", "max_val"), "leaky_relu": ("negative_slope",)}
"""What else decides on an activation's values, in the order of its arguments."""
DEFAULTS = {"hardtanh": (-1.0, 1.0), "leaky_relu": (0.01,)}

ADDS = (operator.add, operator.iadd, torch.add)
ADD_METHODS = ("add", "add_")


class Fusion(NamedTuple):
    """One batch norm and what its call takes over."""

    norm: str
    residual: bool
    activation: str | None
    bypassed: str | None
    """The activation's module, if it is one."""
    near: tuple[str, ...] = ()
    """Modules that must go on being what they are: the one before, and those moved across."""

    def __str__(self) -> str:
        parts = [self.norm, "residual" if self.residual else None, self.activation]
        return " + ".join(part for part in parts if part)


def fuse(trace: Trace) -> list[Fusion]:
    """Rewrite the graph of a trace so that batch norms do what follows them; say which do."""
    if trace.refusal:
        return []
    # From the end: of two norms that are added to each other, the later one does the addition.
    fusions = [
        _rewrite(trace, *found)
        for norm in reversed(list(trace.graph.nodes))
        if _is_fusable_norm(trace, norm) and (found := _pattern(trace, norm))
    ]
    return fusions[::-1]


def add_in_call(
    norm: nn.Module,
    x: Tensor,
    residual: Tensor,
    activation: str | None,
    order: str,
) -> Tensor:
    """Call norm(x), add the residual, apply the activation: in one call where that is the same.

    It is where the residual has the shape, dtype, device and strides of x; else, and if it is no
    tensor at all, in the three steps that were written. So it is if the residual is x itself, which
    `torch.compile` does not take twice.
    """
    if (
        isinstance(residual, Tensor)
        and residual is not x
        and residual.shape == x.shape
        and residual.dtype == x.dtype
        and residual.device == x.device
        and residual.stride() == x.stride()
    ):
        fused: Tensor = norm(x, residual=residual, activation=activation)
        return fused
    y: Tensor = norm(x)
    y = ORDERS[order](y, residual)
    return y if activation is None else reference.ACTIVATIONS[activation].forward(y)


# The patterns


class _Found(NamedTuple):
    norm: fx.Node
    add: fx.Node | None
    activation: fx.Node | None


def _pattern(trace: Trace, norm: fx.Node) -> _Found | None:
    follower = _only_reader(norm)
    if follower is None:
        return None
    if _activation(trace, follower):
        return _Found(norm, None, follower)
    if _residual(follower, norm) is None or not _may_move(trace, norm, follower):
        return None
    last = _only_reader(follower)
    return _Found(norm, follower, last if last and _keeps_its_result(trace, last) else None)


def _keeps_its_result(trace: Trace, node: fx.Node) -> bool:
    """Whether it is an activation of which torch too keeps the result for the gradient.

    As a sum's activation has it. Of the others torch keeps the sum, which nobody else has; ours
    would keep the result or the residual, and changing those in place, later on, would be an error.
    """
    name = _activation(trace, node)
    return name == "relu" or (name in ("relu6", "leaky_relu") and _is_in_place(trace, node))


def _is_in_place(trace: Trace, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(getattr(m, "inplace", False) for m in trace.modules[str(node.target)].modules())
    name = getattr(node.target, "__name__", str(node.target))
    if name.endswith("_") or (name.startswith("i") and name[1:] in dir(operator)):
        return True
    if "out" in node.kwargs or node.kwargs.get("inplace", False):
        return True
    if not callable(node.target):
        return False  # a method's name
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # written in C: those have no such argument
        return False
    return bool(given.get("inplace", False))


def _rewrite(
    trace: Trace, norm: fx.Node, add: fx.Node | None, activation: fx.Node | None
) -> Fusion:
    graph, name = trace.graph, _activation(trace, activation) if activation else None
    near = tuple(_near(norm, add)) if add else ()
    if add is None:
        assert activation is not None, "a pattern is more than its batch norm"
        norm.kwargs = {**norm.kwargs, "activation": name}
        activation.replace_all_uses_with(norm)
    else:
        with graph.inserting_before(add):
            layer = graph.get_attr(str(norm.target))
            fused = graph.call_function(
                add_in_call, (layer, _input(norm), _residual(add, norm), name, _order(add, norm))
            )
        (activation or add).replace_all_uses_with(fused)
    if activation is not None:
        graph.erase_node(activation)
    if add is not None:
        graph.erase_node(add)
        graph.erase_node(norm)
    bypassed = activation is not None and activation.op == "call_module" and activation.target
    target = str(bypassed) if bypassed else None
    return Fusion(str(norm.target), add is not None, name, target, near)


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_fusable_norm(trace: Trace, node: fx.Node) -> bool:
    if node.op != "call_module" or _input(node) is None:
        return False
    module = trace.modules[str(node.target)]
    return type(module) in PLAIN and is_bare(module)


def _input(norm: fx.Node) -> fx.Node | None:
    """Give x of a call norm(x), none for a call with more."""
    given = (*norm.args, *norm.kwargs.values())
    if len(given) == 1 and set(norm.kwargs) <= {"input"} and isinstance(given[0], fx.Node):
        return given[0]
    return None


def _activation(trace: Trace, node: fx.Node) -> str | None:
    """Name the activation that this node applies to its only tensor, if it is one known here."""
    if node.op == "call_module":
        return _module_activation(trace.modules[str(node.target)], node)
    known: Any = METHODS if node.op == "call_method" else FUNCTIONS
    name = known.get(node.target) if node.op in ("call_function", "call_method") else None
    if name is None or len(node.all_input_nodes) != 1 or "input" in node.kwargs:
        return None
    names, (_, *given) = SETTINGS.get(name, ()), node.args
    settings: dict[str, Any] = dict(zip(names, DEFAULTS.get(name, ()), strict=True))
    settings.update(zip(names, given, strict=False))
    settings.update((key, value) for key, value in node.kwargs.items() if key in names)
    return _with_settings(name, tuple(settings.values()))


def _module_activation(module: nn.Module, node: fx.Node) -> str | None:
    name = MODULES.get(type(module))
    if name is None or not is_bare(module) or len(node.args) != 1 or node.kwargs:
        return None
    return _with_settings(name, tuple(getattr(module, key) for key in settings_of(module)))


def settings_of(module: nn.Module) -> tuple[str, ...]:
    """Name the attributes that decide on the values of an activation module."""
    settings = SETTINGS["hardtanh"] if isinstance(module, nn.Hardtanh) else ()
    return SETTINGS["leaky_relu"] if isinstance(module, nn.LeakyReLU) else settings


def _with_settings(name: str, settings: tuple[Any, ...]) -> str | None:
    """Give the activation's name here, if there is one with these settings."""
    if name == "leaky_relu":
        return name if settings == (reference.LEAKY_SLOPE,) else None
    if name == "hardtanh" or settings:
        return "relu6" if settings == (0, 6) else None
    return name


def _residual(add: fx.Node, norm: fx.Node) -> fx.Node | None:
    """Give what is added to the norm's result, none if the node does not do just that."""
    is_add = add.target in (ADD_METHODS if add.op == "call_method" else ADDS)
    if not is_add or add.kwargs or len(add.args) != 2:
        return None
    first, second = add.args
    if second is norm and add.target not in (operator.iadd, "add_"):
        first, second = second, first
    # In place, the sum must go into the norm's own result: nobody else holds that.
    return second if first is norm and second is not norm and isinstance(second, fx.Node) else None


ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "in place": operator.iadd,
    "norm first": operator.add,
    "norm last": lambda y, residual: residual + y,
}
"""How norm and residual are added: the sum lies in memory as the first one does."""


def _order(add: fx.Node, norm: fx.Node) -> str:
    if add.target in (operator.iadd, "add_"):
        return "in place"
    return "norm first" if add.args[0] is norm else "norm last"


# A norm that is to add moves down to the addition


FRESH = ("torch.nn.modules.conv", "torch.nn.modules.batchnorm", "livella.nn.batch")


def _may_move(trace: Trace, norm: fx.Node, add: fx.Node) -> bool:
    """Whether calling the norm only at the addition gives the same.

    Its input must not be changed between, nor its tensors be used, there or by what was read of
    them before. Only layers of torch and ours are known not to do so.
    """
    between = list(_between(norm, add))
    layer = trace.modules[str(norm.target)]
    if any(node.op == "get_attr" and _reads(trace, node, layer) for node in trace.graph.nodes):
        return False
    called = [trace.modules[str(node.target)] for node in between if node.op == "call_module"]
    if not all(_is_known(module) and not _share(module, layer) for module in called):
        return False
    return _is_private(trace, norm) or all(_is_pure(trace, node) for node in between)


def _near(norm: fx.Node, add: fx.Node) -> Iterator[str]:
    for node in (_input(norm), *_between(norm, add)):
        if node is not None and node.op == "call_module":
            yield str(node.target)


def _between(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    node = first.next
    while node is not last:
        yield node
        node = node.next


def _reads(trace: Trace, node: fx.Node, layer: nn.Module) -> bool:
    """Whether a node reads a tensor of this layer, under whatever name."""
    owner, _, name = str(node.target).rpartition(".")
    tensor = getattr(trace.modules[owner], name) if owner in trace.modules else None
    return any(tensor is each for each in _tensors(layer))


def _share(module: nn.Module, layer: nn.Module) -> bool:
    """Whether a module calls this layer, or another with tensors of it."""
    own = _tensors(layer)
    shared = (any(tensor is each for each in own) for tensor in _tensors(module))
    return layer in module.modules() or any(shared)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _is_known(module: nn.Module) -> bool:
    return all(
        type(part).__module__.startswith(("torch.nn.modules.", "livella.nn.")) and is_bare(part)
        for part in module.modules()
    )


def _is_private(trace: Trace, norm: fx.Node) -> bool:
    """Whether the norm's input is new memory that only the norm can see."""
    x = _input(norm)
    if x is None or len(x.users) != 1 or x.op != "call_module":
        return False
    producer = trace.modules[str(x.target)]
    is_fresh = type(producer).__module__ in FRESH or type(producer) is nn.Linear
    return is_fresh and is_bare(producer)


def _is_pure(trace: Trace, node: fx.Node) -> bool:
    """Whether a node surely changes no tensor that it is given."""
    if type(node.target).__module__ == "torch._ops":
        return False  # an operator by its own name may change anything
    return not _is_in_place(trace, node)
