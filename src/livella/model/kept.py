"""What tensors held, to be put back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Kept:
    """Tensors, each with a copy of what it held."""

    values: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Kept:
        """Copy what these hold now."""
        return cls(tuple((tensor, tensor.detach().clone()) for tensor in tensors))

    @torch.no_grad()
    def put_back(self) -> None:
        """Let them hold it again, in place."""
        for tensor, value in self.values:
            tensor.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let them hold it for a while, and then again what they hold now."""
        now = Kept.of(tensor for tensor, _ in self.values)
        try:
            self.put_back()
            yield
        finally:
            now.put_back()
