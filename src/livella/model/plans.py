"""The fused forwards of one module, each with all that it rests on."""

from __future__ import annotations

import inspect
import linecache
import logging
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from livella.model.fusion import Fusion, fuse, settings_of
from livella.model.standins import is_bare, last_layer
from livella.model.trace import TENSOR, Form, Trace, follow

MOST = 16
"""Of one module: a forward that needs more is different at every call."""

log = logging.getLogger("livella")


class Plan(NamedTuple):
    """A fused forward and what it rests on; without one, the module's own forward is to run."""

    run: Callable[..., Any] | None
    fusions: tuple[Fusion, ...]
    names: tuple[tuple[Mapping[str, Any], str, Any], ...]
    """In which namespace, which name, and the very value it must have."""
    attributes: tuple[tuple[Any, str, Any], ...]
    """Whose attribute, its name, and the very value it must have."""
    members: tuple[tuple[nn.Module, str, Any], ...]
    """Which module, the name, and what its class must have for it, and it itself not."""
    tensors: tuple[tuple[nn.Module, str, str], ...]
    """Which module, parameter or buffer, and its name: it must be one."""
    children: tuple[tuple[nn.Module, dict[str, nn.Module | None], list[str]], ...]
    """Whose children, those it must have, and in which order."""
    merged: tuple[tuple[nn.Module, type[nn.Module]], ...]
    """Norms, activations and opened children: they must be of their class and without hooks."""

    def holds(self) -> bool:
        """Whether all that it rests on is still so. This runs at every call: it must be quick."""
        for module, children, order in self.children:
            if module._modules != children or list(module._modules) != order:
                return False
        for owner, name, value in self.attributes:
            if getattr(owner, name, self) is not value:
                return False
        for module, kind in self.merged:
            if type(module) is not kind or not is_bare(module):
                return False
        return self._code_holds()

    def _code_holds(self) -> bool:
        """Whether names still mean what they did, and tensors are there."""
        for namespace, name, value in self.names:
            if namespace.get(name) is not value:
                return False
        for module, name, value in self.members:
            if name in module.__dict__ or getattr(type(module), name, self) is not value:
                return False
        for module, kind, name in self.tensors:
            if getattr(module, kind).get(name) is None:
                return False
        return True


class Plans:
    """The plans of one module, by the form of its arguments."""

    def __init__(self, owner: nn.Module, original: Any) -> None:
        self.owner = owner
        self.original = original
        """The class whose forward is followed."""
        self.by_form: dict[Any, tuple[Plan, ...]] = {}

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copied module starts without plans

    def __str__(self) -> str:
        plans = [plan for group in self.by_form.values() for plan in group]
        return ", ".join(dict.fromkeys(str(fusion) for plan in plans for fusion in plan.fusions))

    def find(self, form: tuple[Any, Any]) -> Plan | None:
        """Give the plan for a call, a new one if need be, or none while there can be none.

        `form` is a plain tuple, which equals the Form of its parts and is made more quickly.
        """
        if _has_any_global_hook():  # it is to see each call of each module
            return None
        for plan in self.by_form.get(form, ()):
            if plan.holds():
                return plan
        if torch.compiler.is_compiling() or sum(map(len, self.by_form.values())) >= MOST:
            return None
        return self.make(Form(*form), self.owner.training)

    def make(self, form: Form, training: bool) -> Plan:
        """Follow the owner's forward for this form in this mode, and keep what comes of it."""
        forward = self.original.forward
        trace = follow(self.owner, forward, form, training)
        fusions = fuse(trace)
        if idle := _opened_for_nothing(trace, fusions):
            trace = follow(self.owner, forward, form, training, closed=idle)
            fusions = fuse(trace)
        run = _compile(trace, self.original.__name__) if fusions else None
        if trace.refusal:
            log.debug("accelerate: %s runs as written: %s", self.original.__name__, trace.refusal)
        plan = Plan(
            run,
            tuple(fusions) if run else (),
            _once(trace.outside.names),
            _once(
                [
                    (self.original, "forward", forward),
                    *trace.attributes,
                    *trace.outside.attributes,
                    *_settings(trace, fusions),
                ]
            ),
            _once(trace.members),
            _once(trace.tensors),
            tuple((module, own, list(own)) for module, own in trace.children.items()),
            _merged(trace, fusions),
        )
        self.by_form[form] = (*self.by_form.get(form, ()), plan)
        return plan

    def make_default(self) -> bool:
        """Plan for both modes, with a tensor for each required argument; say if it fuses any.

        If not, a sole argument may be meant to be a list of them, as in a DenseNet.
        """
        form = _default_form(self.original.forward)
        if form is None:
            return False
        if self._make_for_both_modes(form):
            return True
        return form == Form((TENSOR,)) and self._make_for_both_modes(Form(((list, 2),)))

    def _make_for_both_modes(self, form: Form) -> bool:
        owner = self.owner
        plans = [self.make(form, owner.training)]
        if any(whose is owner and name == "training" for whose, name, _ in plans[0].attributes):
            plans.append(self.make(form, not owner.training))
        return any(plan.run for plan in plans)


def _once(facts: list[tuple[Any, str, Any]]) -> tuple[tuple[Any, str, Any], ...]:
    """Drop what stands there already, by identity: a namespace or a value may have no hash."""
    return tuple({(id(owner), *map(id, rest)): (owner, *rest) for owner, *rest in facts}.values())


def _default_form(forward: Callable[..., Any]) -> Form | None:
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    needed = [p for p in parameters if p.default is p.empty]
    named = tuple((p.name, TENSOR) for p in needed if p.kind is p.KEYWORD_ONLY)
    positional = [p for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not positional and any(p.kind is p.VAR_POSITIONAL for p in needed):
        return Form((TENSOR,), named)
    return Form((TENSOR,) * len(positional), named) if positional or named else None


def _opened_for_nothing(trace: Trace, fusions: list[Fusion]) -> set[nn.Module]:
    """Give the sequences whose last norm does nothing more for having been followed."""
    norms = {trace.modules[fusion.norm] for fusion in fusions}
    sequences = [module for module in trace.opened if isinstance(module, nn.Sequential)]
    return {module for module in sequences if last_layer(module) not in norms}


def _merged(trace: Trace, fusions: list[Fusion]) -> tuple[tuple[nn.Module, type[nn.Module]], ...]:
    named = [(fusion.norm, fusion.bypassed, *fusion.near) for fusion in fusions]
    paths = [path for paths in named for path in paths if path]
    modules = dict.fromkeys([*trace.opened, *(trace.modules[path] for path in paths)])
    return tuple((module, type(module)) for module in modules)


def _settings(trace: Trace, fusions: list[Fusion]) -> tuple[tuple[nn.Module, str, Any], ...]:
    bypassed = dict.fromkeys(trace.modules[f.bypassed] for f in fusions if f.bypassed)
    return tuple(
        (module, name, getattr(module, name)) for module in bypassed for name in settings_of(module)
    )


def _compile(trace: Trace, name: str) -> Callable[..., Any] | None:
    """Make the graph a function of the module and the tensors; errors in it show its lines."""
    try:
        code = trace.graph.python_code("self")
        file = f"<livella {name} {sha256(code.src.encode()).hexdigest()[:12]}>"
        linecache.cache[file] = (len(code.src), None, code.src.splitlines(keepends=True), file)
        namespace = dict(code.globals)
        exec(compile(code.src, file, "exec"), namespace)  # noqa: S102  fx wrote it
    except Exception as reason:  # a call that has no name to be written down by
        trace.refusal = f"{type(reason).__name__}: {reason}"
        return None
    forward: Callable[..., Any] = namespace["forward"]
    return forward
