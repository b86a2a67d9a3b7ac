"""Who calls what: the order of normalizations, and whose output each is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from livella.diagnosis import facts


@dataclass
class Callers:
    """A context that notes, until `seen` is set, who is called and whose output each is given.

    Attributes:
        calls: how often each normalization is called in a pass, in the order of first calls.
        positions: values a channel and sample at the first call, by layer.
        sources: the module whose output a layer is given in its first call, by layer.

    """

    model: nn.Module
    seen: bool = False
    calls: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    made: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    """Outputs by their id, kept so that no other takes it."""

    def __enter__(self) -> Callers:
        names = {module: name for name, module in facts.modules_of(self.model).items()}
        self.handles = [
            module.register_forward_pre_hook(self._before(name), with_kwargs=True)
            for module, name in names.items()
        ]
        self.handles += [
            module.register_forward_hook(self._after(name))
            for name, module in self.model.named_modules()
            if not module._modules and name
        ]
        return self

    def __exit__(self, *reason: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.made.clear()

    def _before(self, name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self.seen:
                return
            self.calls[name] = self.calls.get(name, 0) + 1
            x = args[0] if args else named.get("input")
            if isinstance(x, Tensor) and name not in self.positions:
                self.positions[name] = math.prod(x.shape[2:])
                if id(x) in self.made:
                    self.sources[name] = self.made[id(x)][0]

        return note

    def _after(self, name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            if self.seen:
                self.made.clear()
            elif isinstance(output, Tensor):
                self.made[id(output)] = (name, output)

        return note
