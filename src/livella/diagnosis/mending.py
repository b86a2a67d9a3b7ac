"""What mending some of the layers is worth, example by example."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, combinations, cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from livella.diagnosis import mixture
from livella.diagnosis.measure import Data, Met, output_by
from livella.model import feeding

Layers = tuple[str, ...]
"""One layer, or neighbours that are mended together."""
Orders = Callable[[], Iterator[tuple[Layers, Sequence[Layers]]]]
"""Draws orders of players without end, each with what is mended before."""
PASSES = 2
"""What attribution may cost in a deep network, in evaluation passes over the data."""
SHALLOW, WORK = 16, 200
"""Layers up to which a network is none, and a pass costs little: there it may cost as many passes
as make so many of one layer, over twice the pool where examples are fewer."""
POOL = 512
"""Examples that are drawn from, at most."""
EXAMPLES = (32, 512)
"""On how many examples a subset is tried, at least and at most."""
WALKED = (8, 24)
"""Examples on which an order is tried, at least and at most; each pair of orders takes others."""


class Part(NamedTuple):
    """Some examples, and what each counts: 1 in all, where each stands for as many in the pool."""

    batch: Any
    weights: Tensor

    def counting(self, merit: Tensor) -> Tensor:
        """What each score counts: alike, where there is not one for each example."""
        if len(merit) == len(self.weights):
            return self.weights
        return torch.full_like(merit, 1 / max(1, len(merit)))


class Game:
    """The layers, of which some may be mended, and the examples on which that is tried.

    Where statistics cost little, most examples are right by either of them and tell nothing. So
    half of those that are tried are such that mending all layers changes, and count for less
    (stratified sampling; Cochran 1977, "Sampling Techniques", section 5).
    """

    def __init__(self, data: Data, met: Met, names: Sequence[str]) -> None:
        self._data, self._judge, self._population = data, met.judge, met.population
        self._names, self._whole = tuple(names), met.whole
        layers, examples = max(1, len(met.estimates)), sum(met.sizes)
        shallow = layers <= SHALLOW
        self._most = min(POOL, examples if shallow else -(-examples // 4))
        self._walked = WALKED[1] if shallow else min(WALKED[1], max(WALKED[0], examples // 64))
        passes = WORK / layers if shallow else PASSES
        passes -= 0 if met.judge.counted else 0.75  # the gap takes more without labels
        self.budget = int(passes * max(examples, 2 * POOL if shallow else 0)) - 3 * self._most
        """Examples that may be tried, each time that one is; those of the pool were, thrice."""
        self.spent = 0
        self._pool = list(self._strata(met.mixed))

    def cost(self, players: int) -> int:
        """What trying an order of so many players and its opposite takes."""
        return self._walked * (2 * players + 3)

    def worth(self, batch: Any, good: Any, mended: Iterable[str]) -> Tensor:
        """The merit of each example with some layers mended, (N,)."""
        statistics = {name: self._population[name] for name in mended}
        return self._judge.merit(output_by(self._data, batch, statistics), batch, good)

    def exact(self, players: Sequence[Layers]) -> dict[Layers, Tensor]:
        """Shapley values from all subsets, by example: Σ |S|!(k−|S|−1)!/k! (v(S ∪ i) − v(S))."""
        k = len(players)
        wanted = min(EXAMPLES[1], max(EXAMPLES[0], self.budget // 2**k))
        part = next(self._drawn(wanted))
        worth = self._all_subsets(part.batch, players)
        each = part.counting(worth[frozenset()])
        each = each * len(each)
        weights = [1 / (k * math.comb(k - 1, size)) for size in range(k)]
        return {
            player: sum(
                (
                    weights[len(s)] * each * (worth[s | {player}] - worth[s])
                    for s in worth
                    if player not in s
                ),
                torch.zeros(()),
            )
            for player in players
        }

    def _all_subsets(
        self, batch: Any, players: Sequence[Layers]
    ) -> dict[frozenset[Layers], Tensor]:
        good = output_by(self._data, batch, self._population)
        return {
            frozenset(chosen): self.worth(batch, good, (n for each in chosen for n in each))
            for size in range(len(players) + 1)
            for chosen in combinations(players, size)
        }

    def sampled(
        self, orders: Orders, budget: int, enough: Callable[[dict[Layers, Tensor]], bool]
    ) -> dict[Layers, Tensor]:
        """What each player brings, by pair of opposite orders, (pairs,)."""
        found: dict[Layers, list[float]] = {}
        spent = 0
        for part, (before, order) in zip(self._drawn(self._walked), orders(), strict=False):
            for player, value in self._pair(part, before, order).items():
                found.setdefault(player, []).append(value)
            cost = len(part.weights) * (2 * len(order) + 3)
            spent += cost
            self.spent += cost
            values = {k: torch.tensor(v, dtype=torch.float64) for k, v in found.items()}
            if spent + cost > budget or enough(values):
                return values
        raise AssertionError("examples and orders are drawn without end")

    def _pair(self, part: Part, before: Layers, order: Sequence[Layers]) -> dict[Layers, float]:
        """Walk an order and its opposite, which begins behind all that came after."""
        batch = part.batch
        good = output_by(self._data, batch, self._population)
        brought = dict.fromkeys(order, 0.0)
        done = {*before, *chain.from_iterable(order)}
        opposite = tuple(name for name in self._names if name not in done)
        for start, walked in ((before, order), (opposite, order[::-1])):
            mended = list(start)
            last = self.worth(batch, good, mended)
            for player in walked:
                mended += player
                now = self.worth(batch, good, mended)
                brought[player] += 0.5 * float((part.counting(now) * (now - last)).sum())
                last = now
        return brought

    # Which examples

    def _strata(self, batches: Sequence[Any]) -> Iterator[tuple[float, list[Any]]]:
        """Part the pool into examples that mending all changes, and others, with their shares.

        One part of all where examples cannot be told apart, or most are changed.
        """
        if self._whole:
            yield 1.0, list(batches)
            return
        changed: list[Any] = []
        others: list[Any] = []
        alike = [each for each in batches if mixture.are_alike(each, batches[0])]
        for batch in self._some(alike, self._most):
            examples = mixture.cut(batch, 1)
            good = output_by(self._data, batch, self._population)
            lost = self.worth(batch, good, self._population) - self.worth(batch, good, ())
            if len(lost) != len(examples):  # some have no label, and which is not known
                lost = torch.ones(len(examples))
            for example, value in zip(examples, lost.tolist(), strict=True):
                (changed if value else others).append(example)
        count = len(changed) + len(others)
        if not changed or len(changed) >= len(others):
            yield 1.0, changed + others
            return
        yield len(changed) / count, changed
        yield len(others) / count, others

    def _some(self, batches: Sequence[Any], wanted: int) -> Iterator[Any]:
        """Give so many examples in as few batches as they are in."""
        left = wanted
        for batch in batches:
            if left <= 0:
                return
            part = mixture.cut(batch, left)[0]
            left -= feeding.samples_in(part)
            yield part

    def _drawn(self, size: int) -> Iterator[Part]:
        """Give parts of so many examples, evenly from the strata, all before any comes again."""
        each = size // len(self._pool)
        drawn = [
            cycle(examples if self._whole else _parts(examples, each)) for _, examples in self._pool
        ]
        shares = [share for share, _ in self._pool]
        while True:
            parts = [next(stratum) for stratum in drawn]
            counts = [feeding.samples_in(part) for part in parts]
            weights = [
                torch.full((n,), share / n, dtype=torch.float64)
                for share, n in zip(shares, counts, strict=True)
            ]
            yield Part(mixture.joined(parts), torch.cat(weights))


def _parts(examples: list[Any], size: int) -> list[Any]:
    """Put examples together, so many at a time."""
    count = max(1, len(examples) // size)
    return [mixture.joined(examples[k::count]) for k in range(count)]
