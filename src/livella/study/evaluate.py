"""How well a network does on a part of the data, and by which statistics."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from livella.model import sites
from livella.model.measure import Pass
from livella.model.population import estimate_population
from livella.study.data import Part

POPULATION_EXAMPLES = 5000
EVALUATION_EXAMPLES = 2000
"""The points of a learning curve use at most so many examples; the last point uses all."""


@torch.no_grad()
def accuracy(model: nn.Module, part: Part, limit: int | None = None, size: int = 1000) -> float:
    """The share of examples classified right, in inference mode, `size` at a time."""
    model.eval()
    x, y = part[0][:limit], part[1][:limit]
    right = sum(
        torch.count_nonzero(model(xs).argmax(dim=1) == ys).item()
        for xs, ys in zip(x.split(size), y.split(size), strict=True)
    )
    return right / len(x)


def by_population(model: nn.Module, train: Part, *parts: Part) -> tuple[float, ...]:
    """Accuracy on parts by the statistics of the training part, which are then put away again."""
    examples = train[0][:POPULATION_EXAMPLES]
    with warnings.catch_warnings():  # a layer called twice is the user's concern, not the study's
        warnings.simplefilter("ignore", UserWarning)
        estimate = estimate_population(model.eval(), examples.split(500), progress=False)
    estimate.apply()
    try:
        return tuple(accuracy(model, part, EVALUATION_EXAMPLES) for part in parts)
    finally:
        estimate.revert()


def by_mini_batch(model: nn.Module, test: Part, size: int) -> float:
    """Accuracy where each layer normalizes by the test batch at hand; a last single one is left."""
    layers = {name: m for name, m in model.named_modules() if sites.is_batch_norm(m)}
    x, y = (tensor[:EVALUATION_EXAMPLES] for tensor in test)
    whole = len(x) - len(x) % size or len(x)
    with Pass(model, layers, lambda _site, _values: (None, None), wanted=()):
        return accuracy(model, (x[:whole], y[:whole]), size=size)
