"""Whose statistics are to blame: the gap shared out among the layers that show a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice

from livella.diagnosis.measure import Data, Met, output_by, population_of
from livella.diagnosis.scoring import Score
from livella.model.blending import averages
from livella.model.estimate import LayerEstimate

BATCHES = 8
"""On how many batches layers are tried; more would say the same more surely."""
NOTICEABLE = 0.05
"""What a layer's statistics have to be off by, in σ or in shares of σ, and beyond what is left to
chance (at 95 %), to be tried."""


def suspects(met: Met) -> list[LayerEstimate]:
    """Give the layers whose running statistics differ from the data, in the order of calls."""
    order = list(met.callers.calls)
    off = [each for each in met.estimates.values() if _is_off(each)]
    return sorted(off, key=lambda each: order.index(each.name))


def _is_off(estimate: LayerEstimate) -> bool:
    off = estimate.distance(*averages(estimate.layer))
    return off > max(NOTICEABLE, min(estimate.error, 1.0))


def shares(data: Data, met: Met, tried: Sequence[LayerEstimate]) -> dict[str, float]:
    """Give each layer's share of what better statistics bring, 1 in all.

    Statistics of the data are put into one layer after the other, in the order of the calls, so
    that each is tried with those before it mended; its share is what that step brings. By itself
    each is tried as well, and the mean of both is taken: the one says what is left for it once
    others are mended, the other what mending it alone would bring (the two ends of the orders that
    a Shapley value averages over; Shapley 1953).
    """
    if not tried:
        return {}
    population = {each.name: population_of(each) for each in tried}
    names = list(population)
    ways: dict[str, dict[str, Score]] = {
        "one": {name: Score() for name in names},
        "up to": {name: Score() for name in names},
    }
    before = Score()
    with data.bar(min(BATCHES, len(met.sizes))) as bar:
        bar.begin(f"{len(names)} layers")
        for batch in islice(data, BATCHES):
            good = output_by(data, batch, population)
            met.judge.score(output_by(data, batch, {}), batch, good, before)
            for k, name in enumerate(names):
                one = {name: population[name]}
                up_to = {other: population[other] for other in names[: k + 1]}
                met.judge.score(output_by(data, batch, one), batch, good, ways["one"][name])
                met.judge.score(output_by(data, batch, up_to), batch, good, ways["up to"][name])
            bar.advance()
    return _shared({way: _means(scores) for way, scores in ways.items()}, before.mean, names)


def _means(scores: Mapping[str, Score]) -> dict[str, float]:
    return {name: score.mean for name, score in scores.items()}


def _shared(
    ways: Mapping[str, Mapping[str, float]], before: float, names: Sequence[str]
) -> dict[str, float]:
    steps, last = {}, before
    for name in names:
        steps[name], last = last - ways["up to"][name], ways["up to"][name]
    whole = before - last
    if not math.isfinite(before):  # nothing can be told apart where NaN covers all
        return {}
    if not whole > 0:
        return dict.fromkeys(names, 0.0)
    alone = {name: before - ways["one"][name] for name in names}
    mean = {name: max(0.0, 0.5 * (steps[name] + alone[name])) for name in names}
    total = sum(mean.values())
    return {name: value / total if total else 0.0 for name, value in mean.items()}
