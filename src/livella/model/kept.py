"""What tensors held, to be put back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from livella.model import domains

Place = tuple[nn.Module, str]
"""A layer, and the name of one of its buffers."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Tensors and buffers, each with a copy of what it held.

    Buffers are found by their name, as a change of dtype or device puts others in their place, and
    by the domain that they belong to.
    """

    tensors: tuple[tuple[Tensor, Tensor], ...]
    buffers: tuple[tuple[Place, str | None, Tensor], ...]

    @classmethod
    def of(cls, tensors: Iterable[Tensor] = (), buffers: Iterable[Place] = ()) -> Kept:
        """Copy what these hold now."""
        places = [((layer, name), domains.in_use(layer)) for layer, name in buffers]
        return cls(
            tuple((tensor, tensor.detach().clone()) for tensor in tensors),
            tuple(
                (place, domain, domains.buffer_of(place[0], domain, place[1]).detach().clone())
                for place, domain in places
            ),
        )

    @torch.no_grad()
    def put_back(self) -> None:
        """Let them hold it again, in place."""
        for tensor, value in self.tensors:
            tensor.copy_(value)
        for (layer, name), domain, value in self.buffers:
            domains.buffer_of(layer, domain, name).copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let them hold it for a while, and then again what they hold now."""
        now = Kept.of((t for t, _ in self.tensors), (place for place, _, _ in self.buffers))
        try:
            self.put_back()
            yield
        finally:
            now.put_back()
