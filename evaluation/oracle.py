"""The truth about a network, by plain torch: it shares no code with what it judges."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evaluation.data import Part
from evaluation.networks import norms_of
from evaluation.recipe import Moments, put_statistics

EXACT = 8
"""Up to how many layers a Shapley value is taken over all their coalitions."""
ORDERS = 60
"""Beyond, over so many orders, and each backwards."""
EXAMPLES, FEW = 300, 64
"""On how many examples of each half of the data coalitions are tried, and those of one order."""
MOVED = 0.02
"""A layer nearer to the data than this, in σ, has no part in a loss."""


@dataclass(frozen=True)
class Truth:
    """What is the case.

    Attributes:
        running: accuracy by the running statistics, on the examples given and on those held out.
        population: by those of the data.
        differ: the share of examples held out whose class the statistics decide.
        deployed: accuracy by the running statistics on the data in use, where they are others.
        distances: by layer, how far its statistics are from those of the data, in σ.
        shares: by layer, its share of what is lost; empty where that is too little to share.
        unsure: how much of the shares goes to other layers by one half of the data than by the
            other: what can be known of them at all.

    """

    running: tuple[float, float]
    population: tuple[float, float]
    differ: float
    deployed: float | None
    distances: dict[str, float]
    shares: dict[str, float]
    unsure: float

    @property
    def least(self) -> float:
        """What statistics bring back, on the part where it is less."""
        return min(b - a for a, b in zip(self.running, self.population, strict=True))


def population(model: nn.Module, x: Tensor) -> dict[str, Moments]:
    """The moments of each norm over all examples, as the norms before it normalize by theirs.

    All of them in one batch, without dropout: then the moments of the batch are those of the data.
    """
    model = copy.deepcopy(model).float().eval()
    norms = norms_of(model)
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(x.float())
    return {name: (norm.running_mean, norm.running_var) for name, norm in norms.items()}


def accuracy(model: nn.Module, part: Part) -> float:
    """The share classified right in use; what is not finite is wrong."""
    return float(_right(model, part).float().mean())


@torch.no_grad()
def _right(model: nn.Module, part: Part) -> Tensor:
    return classes(model, part[0]) == part[1]


@torch.no_grad()
def classes(model: nn.Module, x: Tensor) -> Tensor:
    """The class of each example in use, −1 where the scores are not finite."""
    training = [each.training for each in model.modules()]
    scores = model.eval()(x)
    for each, mode in zip(model.modules(), training, strict=True):
        each.training = mode
    return torch.where(scores.isfinite().all(1), scores.argmax(1), -1)


def distance(model: nn.Module, name: str, data: Moments) -> float:
    """How far the running statistics of a norm are from the data's.

    The larger of the means' distance in σ (root mean square over the channels) and of the middle
    channel's |ln| of the ratio of both σ.
    """
    norm = norms_of(model)[name]
    mean, variance = (each.double() for each in data)
    sigma = (variance + norm.eps).sqrt()
    offset = ((norm.running_mean.double() - mean) / sigma).square().mean().sqrt()
    ratio = ((norm.running_var.double() + norm.eps).sqrt() / sigma).log().abs().median()
    far = max(float(offset), float(ratio))
    return far if math.isfinite(float(offset + ratio)) else math.inf


def with_statistics(model: nn.Module, statistics: Mapping[str, Moments]) -> nn.Module:
    """A copy in evaluation mode with these running statistics."""
    model = copy.deepcopy(model).eval()
    put_statistics(model, dict(statistics))
    return model


Worth = Callable[[frozenset[str], int], float]
"""What a coalition is worth; the second tells apart the samples on which it is tried."""


def shapley(players: Sequence[str], worth: Worth) -> dict[str, float]:
    """What each player adds, the mean over the orders in which they come (Shapley 1953).

    Over all of them for few players, all on sample 0; else over drawn ones, on a sample each.
    """
    if len(players) <= EXACT:
        known = functools.lru_cache(maxsize=None)(lambda of: worth(of, 0))
        return {name: _exact(name, players, known) for name in players}
    added = dict.fromkeys(players, 0.0)
    random = torch.Generator().manual_seed(0)
    for sample in range(1, ORDERS + 1):
        order = [players[k] for k in torch.randperm(len(players), generator=random)]
        for way in (order, order[::-1]):
            values = [worth(frozenset(way[:k]), sample) for k in range(len(way) + 1)]
            for k, name in enumerate(way):
                added[name] += (values[k + 1] - values[k]) / (2 * ORDERS)
    return added


def _exact(name: str, players: Sequence[str], worth: Callable[[frozenset[str]], float]) -> float:
    others = [each for each in players if each != name]
    total = 0.0
    for size in range(len(others) + 1):
        weight = 1 / (len(players) * math.comb(len(others), size))
        for chosen in itertools.combinations(others, size):
            of = frozenset(chosen)
            total += weight * (worth(of | {name}) - worth(of))
    return total


def shares(
    model: nn.Module, data: Mapping[str, Moments], part: Part
) -> tuple[dict[str, float], float]:
    """Each layer's share of the examples that its statistics get wrong, and how unsure that is.

    None is below 0, and they are 1 in all. One half of the data is asked, then the other.
    """
    drawn = torch.randperm(len(part[0]), generator=torch.Generator().manual_seed(0))
    players = [name for name in data if not distance(model, name, data[name]) <= MOVED]
    halves = [
        shapley(players, _worth(model, players, data, (part[0][half], part[1][half])))
        for half in drawn.chunk(2)
    ]
    mean = {name: sum(half[name] for half in halves) / 2 for name in players}
    one, other = (_in_all(half) for half in halves)
    unsure = 0.5 * sum(abs(one[name] - other[name]) for name in players)
    return _in_all(mean), unsure


def _worth(
    model: nn.Module, players: Sequence[str], data: Mapping[str, Moments], part: Part
) -> Worth:
    """The accuracy where these layers go by the statistics of the data, and others by their own."""
    used, norms = with_statistics(model, {}), norms_of(model)
    own = {n: (norms[n].running_mean.clone(), norms[n].running_var.clone()) for n in players}
    random = torch.Generator().manual_seed(1)
    samples = [torch.randperm(len(part[0]), generator=random) for _ in range(ORDERS + 1)]

    def worth(mended: frozenset[str], sample: int) -> float:
        put_statistics(used, {n: data[n] if n in mended else own[n] for n in players})
        drawn = samples[sample][: FEW if sample else EXAMPLES]
        return accuracy(used, (part[0][drawn], part[1][drawn]))

    return worth


def _in_all(brought: Mapping[str, float]) -> dict[str, float]:
    """What each brought as a share of all that was."""
    total = sum(max(0.0, each) for each in brought.values()) or 1.0
    return {name: max(0.0, each) / total for name, each in brought.items()}


def truth(
    model: nn.Module, train: Part, held_out: Part, deploy: Part | None, enough: float
) -> Truth:
    """Find out what is the case; shares where at least `enough` of the examples are lost."""
    data = population(model, train[0])
    mended = with_statistics(model, data)
    found = Truth(
        running=(accuracy(model, train), accuracy(model, held_out)),
        population=(accuracy(mended, train), accuracy(mended, held_out)),
        differ=float((classes(model, held_out[0]) != classes(mended, held_out[0])).float().mean()),
        deployed=None if deploy is None else accuracy(model, deploy),
        distances={name: distance(model, name, data[name]) for name in data},
        shares={},
        unsure=0.0,
    )
    if found.least <= enough:
        return found
    shared, unsure = shares(model, data, train)
    return dataclasses.replace(found, shares=shared, unsure=unsure)
