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

    The classes of a run are drawn anew each time; a class gives its examples shuffled, each once
    before any comes again. Where `run` is no multiple of the classes, the last has fewer.
    """
    x, y = part
    order = torch.Generator().manual_seed(seed)
    known = y.unique()
    classes = min(classes, len(known))
    queues = {int(c): _endless(torch.nonzero(y == c).flatten(), order) for c in known}
    each = -(-run // classes)

    def one_run() -> Tensor:
        drawn = known[torch.randperm(len(known), generator=order)[:classes]]
        return torch.stack([next(queues[int(c)]) for c in drawn for _ in range(each)])[:run]

    while True:
        picked = torch.cat([one_run() for _ in range(0, size, run)])[:size]
        yield x[picked], y[picked]


def _endless(indices: Tensor, order: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from indices[torch.randperm(len(indices), generator=order)]
