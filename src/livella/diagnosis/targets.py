"""What a batch holds besides what the model is given: where the labels are, and what they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from livella.diagnosis.label_kinds import KINDS, Kind
from livella.model import feeding


class _Auto:
    """Stands for `target` where it is not given."""

    def __repr__(self) -> str:
        return "found"


AUTO: Final = _Auto()
Target = str | int | Callable[[Any], Any] | None | _Auto
"""Where the labels of a batch are: a key, an index, a function of the batch; none for no labels."""
NAMED = (*feeding.LABELS, "mask", "masks", "segmentation")
SHOWN = 5
"""Tensors that were not understood are named up to so many."""
Step = str | int


@dataclass(frozen=True)
class Place:
    """Where in a batch something is: the keys, indices and attributes on the way."""

    steps: tuple[Step, ...]
    text: str

    @property
    def name(self) -> str:
        """The last name on the way; empty where there is none."""
        return next((step for step in reversed(self.steps) if isinstance(step, str)), "")

    def read(self, batch: Any) -> Tensor:
        """Give what is there in a batch.

        Raises:
            ValueError: there is no tensor in this one.

        """
        value = batch
        for step in self.steps:
            items = _items(value)
            if step not in items:
                value = None
                break
            value = items[step]
        if not isinstance(value, Tensor):
            raise ValueError(  # noqa: TRY004 - it is the batch that is wrong
                f"inspect: expected labels at {self.text} in every batch, as in the first one; one "
                "has none there; leave that batch out, or say target="
            )
        return value


@dataclass(frozen=True)
class Labels:
    """Labels of one kind, and how they are read of a batch."""

    kind: Kind
    text: str
    read: Callable[[Any], Tensor]


def labels_of(
    scores: Tensor | None, batch: Any, target: Target, model: nn.Module | None
) -> Labels | None:
    """Find the labels of a batch: where `target` says, or by names, shapes and values.

    Raises:
        ValueError: `target` says where, and nothing that fits is there.

    """
    if target is None:
        return None
    if not isinstance(target, _Auto):
        return _said(scores, batch, target)
    if scores is None:
        return None
    for place, value in _candidates(batch, model):
        surely = place.name in NAMED or place.steps[:1] == (_last(batch),)
        for kind in KINDS:
            if kind.fits(scores, value) and (surely or kind.whole):
                return Labels(kind, place.text, place.read)
    return None


def unread(batch: Any, labels: Labels | None, model: nn.Module | None) -> tuple[str, ...]:
    """Name the tensors that are neither given to the model nor used as labels."""
    if model is None:
        return ()
    left = [
        f"{place.text} of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
        for place, value in _candidates(batch, model)
        if labels is None or place.text != labels.text
    ]
    more = len(left) - SHOWN
    return (*left[:SHOWN], f"{more} more") if more > 0 else tuple(left)


def _said(scores: Tensor | None, batch: Any, target: str | int | Callable[[Any], Any]) -> Labels:
    read = _reader(target)
    try:
        value = read(batch)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        there = ", ".join(place.text for place, _ in walk(batch)) or "no tensor"
        raise ValueError(
            f"inspect: target={target!r} is not in the batch ({type(error).__name__}: {error}), "
            f"which holds {there}; name one of them, or a function of the batch"
        ) from error
    text = f"target={target!r}" if not callable(target) else "target="
    for kind in KINDS:
        if scores is not None and kind.fits(scores, value):
            return Labels(kind, text, read)
    of_scores = "none of floating point" if scores is None else str(tuple(scores.shape))
    raise ValueError(
        f"inspect: expected labels for an output of shape {of_scores}, got {text} of shape "
        f"{tuple(value.shape)}, {value.dtype}, with values from {_extreme(value)}; known are class "
        "numbers, one-hot, soft and multi-label rows, pixels, and numbers of the output's shape; "
        "for others pass loss=lambda output, batch: … and target=None"
    )


def _extreme(value: Tensor) -> str:
    if not value.numel():
        return "nothing"
    return f"{value.min().item():g} to {value.max().item():g}"


def _reader(target: str | int | Callable[[Any], Any]) -> Callable[[Any], Tensor]:
    def read(batch: Any) -> Tensor:
        if callable(target):
            return torch.as_tensor(target(batch))
        items = _items(batch)
        if target in items:
            return torch.as_tensor(items[target])
        if isinstance(target, int) and isinstance(batch, tuple | list):
            return torch.as_tensor(batch[target])
        return torch.as_tensor(getattr(batch, str(target)))

    return read


def _candidates(batch: Any, model: nn.Module | None) -> list[tuple[Place, Tensor]]:
    """Give what may be labels, the likeliest first: by name, then from behind."""
    given = feeding.given_to(model, batch) if model is not None else set()
    found = list(walk(batch))
    first = found[0][1] if found else None
    left = [
        (place, value)
        for place, value in found
        if place.name in NAMED or (value is not first and id(value) not in given)
    ]
    left.reverse()
    return sorted(left, key=lambda each: each[0].name not in NAMED)


def _last(batch: Any) -> Step | None:
    return len(batch) - 1 if isinstance(batch, tuple | list) and len(batch) > 1 else None


def walk(
    batch: Any, steps: tuple[Step, ...] = (), text: str = "batch"
) -> Iterator[tuple[Place, Tensor]]:
    """Give every tensor of a batch with its place."""
    if isinstance(batch, Tensor):
        yield Place(steps, text), batch
        return
    for step, value in _items(batch).items():
        if isinstance(batch, Mapping | list | tuple) and not hasattr(batch, "_fields"):
            way = f"{text}[{step!r}]"
        else:
            way = f"{text}.{step}"
        yield from walk(value, (*steps, step), way)


def _items(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "_fields"):
        return {name: getattr(value, name) for name in value._fields}
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}
