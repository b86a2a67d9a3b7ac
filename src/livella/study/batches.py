"""How a trial draws the batches that it learns from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from livella.study.data import Part


def shuffled(part: Part, size: int, seed: int) -> Iterator[Part]:
    """Shuffled batches without end; the ragged rest of an epoch is left to the next shuffle."""
    x, y = part
    size = min(size, len(x))
    order = torch.Generator().manual_seed(seed)
    while True:
        for picked in torch.randperm(len(x), generator=order).split(size):
            if len(picked) == size:
                yield x[picked], y[picked]


def of_few_classes(part: Part, size: int, run: int, classes: int, seed: int) -> Iterator[Part]:
    """Batches in which every `run` examples are of so many classes, in equal numbers, without end.

    The runs take the classes in turn, shuffled, each once before any comes again, so that a batch
    of many runs has them all: it is what is normalized together that has few. A class gives its
    examples likewise. Where `run` is no multiple of the classes, the last has fewer.
    """
    x, y = part
    order = torch.Generator().manual_seed(seed)
    known = y.unique()
    turn = _endless(known, order)
    queues = {int(c): _endless(torch.nonzero(y == c).flatten(), order) for c in known}
    each = -(-run // classes)

    def one_run() -> Tensor:
        drawn = (int(next(turn)) for _ in range(classes))
        return torch.stack([next(queues[c]) for c in drawn for _ in range(each)])[:run]

    while True:
        picked = torch.cat([one_run() for _ in range(0, size, run)])[:size]
        yield x[picked], y[picked]


def _endless(values: Tensor, order: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from values[torch.randperm(len(values), generator=order)]
