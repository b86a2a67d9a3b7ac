"""Follow one module's forward without running it: a graph of its calls, and all that it depends on.

The forward is called with stand-ins for its tensors and for the module. So nothing is computed,
the module itself is never touched, nothing of torch is patched, and other threads may go on using
the model. Unlike `torch.fx.symbolic_trace` this refuses what a graph would not show or would
freeze: see `straight`, and the questions that `standins` do not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from livella.model.standins import Tracer, shadow_of
from livella.model.straight import Outside, Refused, watch

TENSOR = "tensor"
Kind = Any
"""What is known of an argument: TENSOR; (list or tuple, n) for n tensors; (type, value) else."""


class Form(NamedTuple):
    """How a forward is called: what is known of each argument."""

    positional: tuple[Kind, ...]
    named: tuple[tuple[str, Kind], ...] = ()


@dataclass
class Trace:
    """What a forward does with arguments of one form, as long as what it read stays as it is."""

    root: nn.Module
    training: bool
    """The mode the root is taken to be in."""
    graph: fx.Graph = field(default_factory=fx.Graph)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """The children that were met, by their paths."""
    attributes: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    """Plain attributes read: whose, which, and the value."""
    members: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    """Methods and properties read: whose, which, and what its class has for it."""
    tensors: list[tuple[nn.Module, str, str]] = field(default_factory=list)
    """Parameters and buffers read: whose, which of the two, and its name."""
    outside: Outside = field(default_factory=Outside)
    children: dict[nn.Module, dict[str, nn.Module | None]] = field(default_factory=dict)
    """All children of each module of which a child was read."""
    opened: dict[nn.Module, None] = field(default_factory=dict)
    """Children that were followed too, instead of being one call."""
    closed: Collection[nn.Module] = ()
    """Children that must not be."""
    refusal: str = ""
    """Why it could not be followed to its end."""


def follow(
    root: nn.Module,
    forward: Callable[..., Any],
    form: Form,
    training: bool,
    closed: Collection[nn.Module] = (),
) -> Trace:
    """Follow `forward(root, …)` for arguments of this form, with the root in the given mode."""
    trace = Trace(root, training, closed=closed)
    tracer = Tracer(trace.graph)
    try:
        positional, named = _build(form, tracer)
        given = _lists(positional, named)
        with _NoComputation():  # type: ignore[no-untyped-call]
            shadow = shadow_of(root, "", trace, tracer)
            result = watch(trace.outside, forward, shadow, *positional, **named)
        if given != _lists(positional, named):
            raise Refused("changes a list it was given")
        trace.graph.output(tracer.create_arg(result))
    except Exception as reason:  # whatever it is, the module then runs as written
        trace.refusal = f"{type(reason).__name__}: {reason}"
    return trace


# The arguments, and what must not happen


def _build(form: Form, tracer: Tracer) -> tuple[list[Any], dict[str, Any]]:
    tensors = _placeholders(tracer)

    def build(kind: Kind) -> Any:
        if kind == TENSOR:
            return next(tensors)
        made, value = kind
        return made(next(tensors) for _ in range(value)) if made in (list, tuple) else value

    return [build(kind) for kind in form.positional], {
        name: build(kind) for name, kind in form.named
    }


def _placeholders(tracer: Tracer) -> Iterator[fx.Proxy]:
    count = 0
    while True:
        yield tracer.tensor("placeholder", f"argument{count}")
        count += 1


def _lists(positional: list[Any], named: dict[str, Any]) -> list[list[int]]:
    """Give the identities of what stands in each list."""
    values = [*positional, *named.values()]
    return [[id(item) for item in value] for value in values if type(value) is list]


class _NoComputation(TorchDispatchMode):
    """Refuses every operation on a real tensor, drawing random ones included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Refused(f"computes {func} on tensors that are not its arguments")
