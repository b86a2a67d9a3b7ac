"""The setting that three claims share: how fast a sigmoid network learns, with and without.

Three hidden layers of 100 sigmoid units, normally distributed initial weights and batches of 60
are the network of Ioffe & Szegedy 2015, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from livella.study.claim import Scope
from livella.study.models import Network
from livella.study.results import Estimate
from livella.study.sweep import Chosen, Contender, steps_to
from livella.study.verdict import Bounded, estimate_bounded, ratio

RATES = (0.3, 1.0, 3.0, 10.0, 30.0)
STEPS = 800
NEAR = 0.9
"""The target accuracy as a share of what the best contender reaches."""


def contenders(scope: Scope) -> tuple[Contender, Contender, Contender]:
    """Without normalization, with batch norm, and with noise after batch norm."""
    return (
        _contender(scope, "none", Network(norm="none")),
        _contender(scope, "batch", Network(norm="batch")),
        _contender(scope, "batch + noise", Network(norm="batch", noise=True)),
    )


def _contender(scope: Scope, name: str, kind: Network) -> Contender:
    network = Network(
        norm=kind.norm, noise=kind.noise, depth=3, activation="sigmoid", init="normal:0.1"
    )
    trial = scope.trial(network, STEPS, evaluations=80, probe="shift")
    return Contender(name, trial, scope.rates(RATES), scope.seeds, for_speed=True)


def describe(scope: Scope) -> str:
    network = scope.network_in_words(
        "A network of 3 × 100 sigmoid units, initial weights of standard deviation 0.1, plain SGD"
    )

    return (
        f"{network}, batches of 60, {scope.steps or STEPS} steps at a constant learning rate out "
        f"of {scope.rates_in_words(RATES)}. "
    )


@dataclass(frozen=True)
class Race:
    """Steps that each contender takes, seed by seed, to one accuracy.

    None where it never got there, NaN where the trial failed and says nothing.
    """

    target: float
    budget: int
    steps: dict[str, list[float | None]]

    def estimate(self, name: str) -> Estimate | None:
        """Median steps; a seed that never got there counts as the budget, a lower bound."""
        return estimate_bounded(self._bounded(name))

    def ratio(self, slow: str, fast: str) -> Estimate | None:
        """How many times the steps of `fast` does `slow` take."""
        pairs = zip(self._bounded(slow), self._bounded(fast), strict=True)
        return estimate_bounded([ratio(a, b) for a, b in pairs])

    def _bounded(self, name: str) -> list[Bounded | None]:
        return [
            Bounded(self.budget, at_least=True)
            if steps is None
            else None
            if math.isnan(steps)
            else Bounded(steps)
            for steps in self.steps[name]
        ]


def in_words(race: Race, chosen: Sequence[Chosen]) -> str:
    """The median steps of each contender, as a reader would say them."""
    parts = []
    for c in chosen:
        steps = race.estimate(c.name)
        if steps is None:
            parts.append(f"{c.name}: every trial failed")
        else:
            more = "at least " if steps.median >= race.budget else ""
            parts.append(f"{c.name}: {more}{steps.median:.0f} steps")
    return "; ".join(parts)


def race(chosen: Sequence[Chosen]) -> Race:
    """Let the contenders, each at its best rate, run to nearly the accuracy of the best.

    The target is 0.9 times the highest, over the contenders, of the median best test accuracy.
    """
    tops = [median([max(o.test) for o in c.outcomes if o.test] or [0.0]) for c in chosen]
    target = NEAR * max(tops)
    steps = {
        c.name: [math.nan if o.failed else steps_to(target, o) for o in c.outcomes] for c in chosen
    }
    return Race(target, chosen[0].budget, steps)
