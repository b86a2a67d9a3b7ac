"""Data that are not as in training, and how a network does on them, adapted in one way or another.

Both probes here are for the end of a training, and leave the network as they found it.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from livella.model.adapt import adapt
from livella.model.modes import modes_kept
from livella.study.data import Dataset, Part
from livella.study.evaluate import accuracy

COMMON = ("contrast", "brightness", "noise", "blur")
"""Corruptions that keep what an image shows."""
KINDS = (*COMMON, "invert")
SEVERITIES = (1, 2, 3)
_STRENGTHS = {
    "contrast": (0.6, 0.4, 0.25),
    "brightness": (0.2, 0.4, 0.6),
    "noise": (0.15, 0.25, 0.35),
    "blur": (0.5, 1.0, 1.5),
    "invert": (0.8, 0.9, 1.0),
}

METHODS = ("blended", "adapted", "tuned")
SIZES = (1, 4, 16, 64)
BATCHES = {1: 16, 4: 8, 16: 4, 64: 2}
"""How many batches are tried of each size; small ones show fewer examples in all."""
ENTROPY_RATE = 1e-3
STREAM = 32
"""Examples a batch of the stream that is sorted by class."""
DECAY = 0.9


class Corruption(NamedTuple):
    """What is done to the data."""

    kind: str
    severity: int

    def __str__(self) -> str:
        return f"{self.kind} {self.severity}"


CORRUPTIONS = tuple(Corruption(*each) for each in itertools.product(KINDS, SEVERITIES))


@dataclass(frozen=True)
class Span:
    """The range that the values of the training data have."""

    low: float
    high: float

    @classmethod
    def of(cls, x: Tensor) -> Span:
        """Read it off."""
        return cls(float(x.min()), float(x.max()))

    def corrupt(self, x: Tensor, corruption: Corruption) -> Tensor:
        """Change examples with values u in this range, taken as 0 to 1; the result stays in it.

        Contrast c: c·u + (1 − c)/2. Brightness b: u + b. Noise s: u + s·ε, ε ~ N(0, 1), the same
        each time. Blur s: a Gaussian over s pixels, the edge carried on; of examples without
        space, nothing. Invert c: c·(1 − u) + (1 − c)/2.
        """
        strength = _STRENGTHS[corruption.kind][corruption.severity - 1]
        u = (x - self.low) / ((self.high - self.low) or 1.0)
        changed = _CHANGES[corruption.kind](u, strength).clamp(0, 1)
        return self.low + (self.high - self.low) * changed


def _contrast(u: Tensor, strength: float) -> Tensor:
    return strength * u + (1 - strength) / 2


def _noise(u: Tensor, strength: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return u + strength * torch.randn(u.shape, generator=generator)


def _blur(u: Tensor, strength: float) -> Tensor:
    if u.dim() != 4:
        return u
    reach = min(int(3 * strength + 0.5), *(size - 1 for size in u.shape[2:]))
    steps = torch.arange(-reach, reach + 1, dtype=u.dtype)
    weights = torch.exp(-steps.square() / (2 * strength * strength))
    kernel = (weights / weights.sum()).repeat(u.shape[1], 1, 1, 1)
    edged = nn.functional.pad(u, (reach,) * 4, mode="replicate")
    across = nn.functional.conv2d(edged, kernel, groups=u.shape[1])
    return nn.functional.conv2d(across, kernel.transpose(2, 3), groups=u.shape[1])


_CHANGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "contrast": _contrast,
    "brightness": lambda u, strength: u + strength,
    "noise": _noise,
    "blur": _blur,
    "invert": lambda u, strength: _contrast(1 - u, strength),
}


@dataclass(frozen=True)
class Corrupted:
    """Accuracies on corrupted test examples, as shares of 1, adapted to each batch and not.

    Attributes:
        clean: as it was trained, on the examples as they are.
        source: as it was trained, by corruption.
        adapted: by corruption, method and batch size. "blended" are the moments of each batch
            with a prior of 16 samples, "adapted" those of each batch alone, and "tuned" are γ
            and β besides, by the entropy, from batch to batch.

    """

    clean: float
    source: dict[Corruption, float]
    adapted: dict[tuple[Corruption, str, int], float]

    @classmethod
    def measure(cls, model: nn.Module, dataset: Dataset) -> Corrupted:
        examples = _drawn(dataset.test, max(n * count for n, count in BATCHES.items()))
        span = Span.of(dataset.train[0])
        shifted = {c: (span.corrupt(examples[0], c), examples[1]) for c in CORRUPTIONS}
        tried = itertools.product(CORRUPTIONS, METHODS, SIZES)
        return cls(
            _as_trained(model, examples),
            {c: _as_trained(model, part) for c, part in shifted.items()},
            {(c, m, n): _by_batch(model, shifted[c], m, n) for c, m, n in tried},
        )

    def to_tuple(self) -> tuple[float, ...]:
        """All of it as the plain numbers that an outcome keeps."""
        return (self.clean, *self.source.values(), *self.adapted.values())

    @classmethod
    def from_tuple(cls, values: Iterable[float]) -> Corrupted:
        numbers = iter(values)
        return cls(
            next(numbers),
            dict(zip(CORRUPTIONS, numbers, strict=False)),
            dict(zip(itertools.product(CORRUPTIONS, METHODS, SIZES), numbers, strict=True)),
        )


class Streamed(NamedTuple):
    """Accuracies over a stream of batches, as shares of 1: as trained, adapted, with the guard."""

    source: float
    unguarded: float
    guarded: float

    @classmethod
    def measure(cls, model: nn.Module, part: Part) -> Streamed:
        x, y = part
        stream = x.split(STREAM)

        def followed(guard: bool) -> float:
            return _share(_follow(model, stream, decay=DECAY, guard=guard), y)

        return cls(_as_trained(model, part), followed(guard=False), followed(guard=True))


def sorted_and_shifted(model: nn.Module, dataset: Dataset) -> tuple[Streamed, Streamed]:
    """Try the test part as it is but sorted by class, and in any order but at lower contrast."""
    x, y = _drawn(dataset.test, 2000)
    order = y.argsort(stable=True)
    shifted = Span.of(dataset.train[0]).corrupt(x, Corruption("contrast", 3))
    return Streamed.measure(model, (x[order], y[order])), Streamed.measure(model, (shifted, y))


def _drawn(part: Part, count: int) -> Part:
    chosen = torch.randperm(len(part[1]), generator=torch.Generator().manual_seed(0))[:count]
    return part[0][chosen], part[1][chosen]


def _as_trained(model: nn.Module, part: Part) -> float:
    with modes_kept(model):
        return accuracy(model, part)


def _by_batch(model: nn.Module, part: Part, method: str, size: int) -> float:
    count = size * BATCHES[size]
    return _share(
        _follow(
            model,
            part[0][:count].split(size),
            prior=16 if method == "blended" else 0,
            decay=0,
            entropy_rate=ENTROPY_RATE if method == "tuned" else None,
            guard=False,
        ),
        part[1][:count],
    )


def _follow(model: nn.Module, stream: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """Give the outputs for each batch of a stream, adapted on the way; the model is put back."""
    with warnings.catch_warnings():  # what the guard declined is what the study looks at
        warnings.simplefilter("ignore", UserWarning)
        adaptation = adapt(model, stream[:1], progress=False, **options).revert()
    try:
        return [adaptation.update(x) for x in stream]
    finally:
        adaptation.revert()


def _share(outputs: list[Tensor], y: Tensor) -> float:
    return float((torch.cat(outputs).argmax(1) == y).float().mean())
