"""Whose statistics are to blame: the gap shared out among the layers that show a difference.

A layer's share is its Shapley value: what mending it brings, averaged over all orders in which the
layers could be mended (Shapley 1953, "A Value for n-Person Games"). So shares add up to the whole
gap however layers interact, and a layer whose statistics are right gets nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from livella.diagnosis.measure import Data, Met
from livella.diagnosis.mending import Game, Layers, Orders
from livella.diagnosis.scores import NORMAL
from livella.model.blending import averages
from livella.model.estimate import LayerEstimate

NOTICEABLE = 0.05
"""What a layer's statistics have to be off by, in σ or in shares of σ, and beyond what is left to
chance (at 95 %), to be tried."""
EXACT = 6
"""Layers up to which all their subsets are tried."""
LEAST = 8
"""Pairs of orders before which no interval is believed."""
SINGLY, GROUPS = 16, 8
"""Layers up to which orders are of single ones, and groups that more are put into."""
SURE = 0.03
"""Half the width of the 95 % intervals of all shares at which no more orders are tried."""
PART = 0.05
"""A group of layers with less than this share is not looked into."""


class Share(NamedTuple):
    """The share of the gap, and half the width of its 95 % interval."""

    of_gap: float
    error: float


def suspects(met: Met) -> list[LayerEstimate]:
    """Give the layers whose running statistics differ from the data, in the order of calls."""
    order = {name: place for place, name in enumerate(met.callers.calls)}
    off = [each for each in met.estimates.values() if _is_off(each)]
    return sorted(off, key=lambda each: order.get(each.name, len(order)))


def _is_off(estimate: LayerEstimate) -> bool:
    off = estimate.distance(*averages(estimate.layer))
    return off > max(NOTICEABLE, min(estimate.error, 1.0))


def shares(data: Data, met: Met, tried: Sequence[LayerEstimate]) -> dict[str, Share]:
    """Give each layer's share of what better statistics bring, 1 in all; none where they do not.

    Exact for up to six layers. Of more, orders are drawn in pairs, each with its opposite, each
    pair on examples of its own, until the intervals are narrow or the time is used up. Of many,
    neighbours are taken together at first, and only groups that matter are looked into (Owen
    1977, "Values of Games with a Priori Unions").
    """
    names = tuple(each.name for each in tried)
    if not names:
        return {}
    game = Game(data, met, names)
    with data.bar() as bar:
        bar.begin(f"{len(names)} layers")
        if len(names) <= EXACT:
            found = as_shares(game.exact([(name,) for name in names]))
        else:
            found = _of_many(game, names)
    return {name: share for (name,), share in found.items()}


def _of_many(game: Game, names: Layers) -> dict[Layers, Share]:
    """Sample orders of layers, or of groups of neighbours and then of the layers in them."""
    if len(names) <= SINGLY:
        return as_shares(game.sampled(_orders([(name,) for name in names]), game.budget, _are_sure))
    size = math.ceil(len(names) / GROUPS)
    groups = [names[k : k + size] for k in range(0, len(names), size)]
    of_groups = as_shares(game.sampled(_orders(groups), game.budget // 3, _are_sure))
    order = sorted(of_groups, key=lambda group: -of_groups[group].of_gap)
    matter = sum(share.of_gap > PART for share in of_groups.values())
    found: dict[Layers, Share] = {}
    for place, group in enumerate(order):  # the largest first, as long as the budget lasts
        left, inside = game.budget - game.spent, {}
        if place < matter and len(group) > 1 and game.cost(len(group)) <= left:
            orders = _orders_within(groups, group)
            inside = as_shares(game.sampled(orders, left // (matter - place), _are_sure))
        found |= _within(group, of_groups[group], inside)
    return found


def _within(group: Layers, share: Share, inside: Mapping[Layers, Share]) -> dict[Layers, Share]:
    """Share out what a group answers for: evenly, where it was not looked into."""
    even = Share(1 / len(group), 0.0 if len(group) == 1 else 1.0)
    found: dict[Layers, Share] = {}
    for name in group:
        part = inside.get((name,), even)
        error = min(1.0, math.hypot(share.error * part.of_gap, part.error * share.of_gap))
        found[(name,)] = Share(share.of_gap * part.of_gap, error)
    return found


def as_shares(values: Mapping[Layers, Tensor]) -> dict[Layers, Share]:
    """Divide what each brought by what all did; none is negative, and they are 1 in all.

    Args:
        values: by player, what it brought in each of several independent trials.

    """
    each = torch.stack(list(values.values()))
    means = each.mean(1).clamp(min=0)
    whole = float(means.sum())
    if not whole > 0:
        return {}
    parts = (means / whole).tolist()
    return {
        player: Share(part, _error(value, each.sum(0), part))
        for (player, value), part in zip(values.items(), parts, strict=True)
    }


def _error(part: Tensor, whole: Tensor, ratio: float) -> float:
    """Half the width of the 95 % interval of a ratio of means, linearized."""
    if len(part) < 2 or not float(whole.mean()) > 0:
        return 1.0
    error = float((part - ratio * whole).std()) / math.sqrt(len(part))
    return min(1.0, NORMAL * error / float(whole.mean()))


def _orders(players: Sequence[Layers]) -> Orders:
    """Draw orders of all players."""

    def draw() -> Iterator[tuple[Layers, Sequence[Layers]]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            yield (), [players[k] for k in _drawn(len(players), generator)]

    return draw


def _orders_within(groups: Sequence[Layers], group: Layers) -> Orders:
    """Draw orders of the layers of a group, behind the groups that happen to come before it."""

    def draw() -> Iterator[tuple[Layers, Sequence[Layers]]]:
        generator = torch.Generator().manual_seed(1)
        others = [each for each in groups if each != group]
        while True:
            first = int(torch.randint(len(groups), (), generator=generator))
            before = [others[k] for k in _drawn(len(others), generator)[:first]]
            inside = [(group[k],) for k in _drawn(len(group), generator)]
            yield tuple(name for each in before for name in each), inside

    return draw


def _drawn(count: int, generator: torch.Generator) -> list[int]:
    return [int(k) for k in torch.randperm(count, generator=generator)]


def _are_sure(values: Mapping[Layers, Tensor]) -> bool:
    if min(map(len, values.values())) < LEAST:
        return False
    found = as_shares(values)
    return bool(found) and all(share.error <= SURE for share in found.values())
