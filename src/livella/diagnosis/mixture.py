"""A part of the data that stands for all of it, whatever their order and the size of the batches.

Batches sorted by class, or of four examples, are no fair sample of the data each. Examples drawn
evenly from all of them, and put together anew, are.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from livella.model import feeding

MOST, LEAST = 2048, 32
"""Examples kept at most, and at least, however large they are."""
BYTES = 192 * 2**20
"""Memory for them."""
TOGETHER, VALUES = 256, 2**22
"""Examples in a batch at most, and values; a batch as large as those given is made in any case."""
GROUPS = 4
"""Different shapes of examples from which on they can be mixed no more."""


class UnmixableError(Exception):
    """Batches that cannot be taken apart into examples and put together otherwise."""


class Mixture:
    """Examples drawn evenly from all batches that were shown: a reservoir of fixed size.

    Each example so far is in it with the same chance (Vitter 1985, "Random Sampling with a
    Reservoir", algorithm R). Torch's random state is not touched.
    """

    def __init__(self) -> None:
        self._random = torch.Generator().manual_seed(0)
        self._kept: list[Any] = []
        self._room = MOST
        self._shown = self._largest = 0
        self._mixes = True

    def show(self, batch: Any) -> None:
        """Take some examples of a batch in."""
        if not self._mixes:
            return
        self._largest = max(self._largest, feeding.samples_in(batch))
        try:
            for example in _examples(batch):
                self._take(example)
        except UnmixableError:
            self._mixes, self._kept = False, []

    def _take(self, example: Any) -> None:
        self._shown += 1
        room = max(LEAST, min(MOST, BYTES // max(1, _size(example)[1])))
        if room < self._room:  # larger than those before: of these as many fit
            self._room = room
            self._kept = self._kept[:room]
        if len(self._kept) < self._room:
            self._kept.append(_mapped(_own, example))
            return
        place = int(torch.randint(self._shown, (), generator=self._random))
        if place < self._room:
            self._kept[place] = _mapped(_own, example)

    def batches(self) -> list[Any]:
        """Give what was kept in mixed batches of even size; empty where batches do not mix."""
        if not self._kept:
            return []
        order = torch.randperm(len(self._kept), generator=self._random).tolist()
        groups: dict[Any, list[Any]] = {}
        for example in (self._kept[k] for k in order):
            groups.setdefault(_shape(example), []).append(example)
        if len(groups) > GROUPS:
            return []
        try:
            return [_together(part) for group in groups.values() for part in self._parts(group)]
        except UnmixableError:
            return []

    def _parts(self, examples: list[Any]) -> Iterator[list[Any]]:
        size = max(self._largest, min(TOGETHER, VALUES // max(1, _size(examples[0])[0])))
        count = math.ceil(len(examples) / size)
        for k in range(count):
            yield examples[k::count]


def cut(batch: Any, size: int) -> list[Any]:
    """Cut a batch into parts of so many examples, the last of fewer; whole where it cannot be."""
    samples = feeding.samples_in(batch)
    if samples <= size:
        return [batch]
    try:
        examples = _examples(batch)
        return [_together(examples[k : k + size]) for k in range(0, samples, size)]
    except UnmixableError:
        return [batch]


def joined(batches: list[Any]) -> Any:
    """Put batches together into one."""
    if len(batches) == 1:
        return batches[0]
    return _together([each for batch in batches for each in _examples(batch)])


def turned(output: Any, samples: int) -> Any:
    """Give each example the output of the one before."""

    def turn(tensor: Tensor) -> Tensor:
        return tensor.roll(1, 0) if tensor.dim() and len(tensor) == samples else tensor

    return _mapped(turn, output)


def halves(batches: list[Any]) -> tuple[list[Any], list[Any]]:
    """Give two halves of the examples of all batches; of batches that stay whole, every other."""
    parts = [cut(batch, -(-feeding.samples_in(batch) // 2)) for batch in batches]
    if all(len(each) == 2 for each in parts):
        return [each[0] for each in parts], [each[1] for each in parts]
    return batches[::2], batches[1::2] or batches


def reversed_batch(batch: Any) -> Any:
    """Give a batch with its examples in the opposite order.

    Raises:
        UnmixableError: it cannot be taken apart.

    """
    return _together(_examples(batch)[::-1])


@dataclasses.dataclass(frozen=True)
class _Item:
    """One entry of a list that has one for each example."""

    value: Any


def _examples(batch: Any) -> list[Any]:
    """Give the examples of a batch, which is itself no list of them."""
    samples = feeding.samples_in(batch)
    if feeding.a_sample_each(batch):
        items = ([_Item(item) for item in part] for part in batch)
        return [_like(batch, row) for row in zip(*items, strict=True)]
    if isinstance(batch, tuple | list):
        return [_like(batch, row) for row in _rows(list(batch), samples)]
    return _apart(batch, samples)


def _apart(value: Any, samples: int) -> list[Any]:
    """Give what belongs to each example, in the same form."""
    if isinstance(value, Tensor):
        if not value.dim() or len(value) != samples:
            raise UnmixableError
        return list(value.unbind(0))
    if isinstance(value, tuple | list):
        if len(value) == samples and not any(_goes_along(item, samples) for item in value):
            return [_Item(item) for item in value]
        return [_like(value, row) for row in _rows(list(value), samples)]
    named = _named(value)
    if named is not None:
        rows = _rows(list(named.values()), samples)
        return [_like(value, row) for row in rows]
    if value is None or isinstance(value, str | int | float):
        return [value] * samples
    raise UnmixableError


def _rows(items: list[Any], samples: int) -> list[tuple[Any, ...]]:
    columns = [_apart(item, samples) for item in items]
    return list(zip(*columns, strict=True)) if columns else [()] * samples


def _goes_along(item: Any, samples: int) -> bool:
    """Whether it has something for each example itself."""
    return isinstance(item, Tensor) and item.dim() > 0 and len(item) == samples


def _together(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.stack(parts)
    if isinstance(first, _Item):
        return [part.value for part in parts]
    if isinstance(first, tuple | list):
        return _like(first, [_together(list(column)) for column in zip(*parts, strict=True)])
    named = _named(first)
    if named is not None:
        columns = [[(_named(part) or {})[name] for part in parts] for name in named]
        return _like(first, [_together(column) for column in columns])
    if any(part != first for part in parts):
        raise UnmixableError
    return first


def _named(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type | _Item):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _like(value: Any, items: Sequence[Any]) -> Any:
    """Give the same form with other contents."""
    if isinstance(value, tuple | list):
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    filled = dict(zip(_named(value) or {}, items, strict=True))
    if type(value) is dict:
        return filled
    if isinstance(value, dict | UserDict):  # whose copies share nothing but their values
        made = copy.copy(value)
        made.update(filled)
        return made
    if isinstance(value, Mapping):
        raise UnmixableError
    try:
        return dataclasses.replace(value, **filled)
    except (TypeError, ValueError) as error:  # fields that are not given, or are checked
        raise UnmixableError from error


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return _like(value, [_mapped(change, item) for item in value])
    named = _named(value)
    if named is None:
        return value
    return _like(value, [_mapped(change, item) for item in named.values()])


def are_alike(batch: Any, other: Any) -> bool:
    """Whether their examples can be put together."""
    return [(t.shape[1:], t.dtype) for t in feeding.tensors_in(batch)] == [
        (t.shape[1:], t.dtype) for t in feeding.tensors_in(other)
    ]


def _own(tensor: Tensor) -> Tensor:
    """Copy what is kept, out of its batch and off the accelerator."""
    return tensor.detach().to("cpu", copy=True)


def _shape(example: Any) -> Any:
    return tuple((tuple(t.shape), t.dtype) for t in feeding.tensors_in(example))


def _size(example: Any) -> tuple[int, int]:
    """Count the values of an example, and its bytes."""
    tensors = list(feeding.tensors_in(example))
    return sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)
