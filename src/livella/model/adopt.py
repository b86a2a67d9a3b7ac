"""Torch's own batch norms as Livella's: the same object, of another class, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches

from torch import nn

from livella.model import sites
from livella.nn.batch import OURS as OURS


def change_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another class; parameters, buffers, hooks and mode stay."""
    object.__setattr__(module, "__class__", kind)


def has_methods_of_its_own(layer: nn.Module) -> bool:
    """Whether a method was replaced on the object itself."""
    own = vars(layer).items()
    return any(callable(value) and hasattr(type(layer), name) for name, value in own)


def can_be_adopted(layer: nn.Module) -> bool:
    """Whether it is exactly one of torch's three classes, so that nothing of a user's is lost."""
    return type(layer) in OURS and not has_methods_of_its_own(layer)


def named_layers(
    model: nn.Module,
    names: Iterable[str] | None,
    suits: Callable[[nn.Module], bool] = sites.keeps_averages,
) -> dict[str, nn.Module]:
    """Give the layers of a model that suit, by name: all, or those at or below the names given.

    Raises:
        ValueError: a name has no batch norm at or below it.

    """
    found = {name: m for name, m in model.named_modules() if suits(m)}
    if names is None:
        return found
    if isinstance(names, str):
        names = (names,)
    chosen: dict[str, nn.Module] = {}
    for name in names:
        below = dict(_below(found, name))
        if not below:
            near = get_close_matches(name, [n for n, _ in model.named_modules()], 3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"{list(found)[:5]}"
            raise ValueError(f"expected names with batch norms at or below, got {name!r}; {hint}")
        chosen |= below
    return chosen


def _below(found: dict[str, nn.Module], name: str) -> Iterator[tuple[str, nn.Module]]:
    for other, layer in found.items():
        if other == name or name == "" or other.startswith(f"{name}."):
            yield other, layer
