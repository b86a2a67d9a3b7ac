"""Loaders as people have them: shuffled, as stored or by class, of any batch, labels or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from evaluation.data import Part

ORDERS = ("shuffled", "stored", "sorted")
BATCHES = (4, 16, 64, 128)
EXAMPLES = {4: 400, 16: 800, 64: 1500, 128: 1500}
"""How many examples at most a loader of such batches goes through."""


@dataclass(frozen=True)
class Kind:
    """What a loader is like; its text is part of the key of a case.

    Attributes:
        order: of the examples; shuffled ones come in another order each time from a DataLoader.
        batch: the number of examples in each but the last.
        labels: whether there are any.
        form: "list", "read" (an object read anew each time) or "DataLoader".

    """

    order: str
    batch: int
    labels: bool
    form: str

    def __str__(self) -> str:
        return f"{self.order}-{self.batch}-{'labels' if self.labels else 'bare'}-{self.form}"

    @classmethod
    def of(cls, text: str) -> Kind:
        """Read the text of one."""
        order, batch, labels, form = text.split("-")
        return cls(order, int(batch), labels == "labels", form)


def draw(random: np.random.Generator) -> list[Kind]:
    """Draw a loader of every order."""
    return [
        Kind(
            order,
            int(random.choice(BATCHES)),
            bool(random.random() < 0.65),
            str(random.choice(["list", "read", "DataLoader"])),
        )
        for order in ORDERS
    ]


class Read:
    """Batches that are made anew each time they are gone through."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield batch.clone() if torch.is_tensor(batch) else tuple(t.clone() for t in batch)


def make(kind: Kind, part: Part, seed: int) -> Any:
    """Give a loader of this kind over a part of the data, drawn by the seed."""
    x, y = (each[_order(kind, part, seed)] for each in part)
    if kind.form == "DataLoader":
        given = TensorDataset(x, y) if kind.labels else _Bare(x)
        return DataLoader(given, kind.batch, shuffle=kind.order == "shuffled")
    pairs = zip(x.split(kind.batch), y.split(kind.batch), strict=True)
    batches = [pair if kind.labels else pair[0] for pair in pairs]
    return batches if kind.form == "list" else Read(batches)


class _Bare(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> torch.Tensor:
        return self.x[k]


def _order(kind: Kind, part: Part, seed: int) -> torch.Tensor:
    """Which examples, in which order; none alone in the last batch, which training cannot take."""
    count = min(len(part[0]), EXAMPLES[kind.batch])
    count -= count % kind.batch == 1
    drawn = torch.randperm(len(part[0]), generator=torch.Generator().manual_seed(seed))[:count]
    if kind.order == "shuffled":
        return drawn
    drawn = drawn.sort().values
    return drawn if kind.order == "stored" else drawn[part[1][drawn].argsort(stable=True)]
