"""Higher learning rates: up to which rate a network still learns, with and without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.claims import speed
from livella.study.results import Axis, Estimate, Figure, Finding, Paper, Series, Table
from livella.study.sweep import Contender, grid
from livella.study.trial import Outcome, Trial
from livella.study.verdict import Bounded, estimate, estimate_bounded, judge_ratio, ratio

MARGIN = 2.0
USABLE = 0.9
"""A rate is usable if the network settles at this share of the best median accuracy, or above."""
LAST = 5


def _contenders(scope: Scope) -> tuple[Contender, ...]:
    return speed.contenders(scope)[:2]


def _plan(scope: Scope, _done: Done) -> Sequence[Trial]:
    return [t for c in _contenders(scope) for t in grid(c.trial, c.rates, c.seeds)]


def settled(outcome: Outcome) -> float:
    """The median test accuracy of the last points: a single one jumps about at high rates.

    What broke off counts with the accuracy it fell to; what failed has no number.
    """
    if outcome.failed:
        return math.nan
    return median(outcome.test[-1:] if outcome.diverged else outcome.test[-LAST:] or (0.0,))


def _settled(contender: Contender, done: Done) -> dict[float, list[float]]:
    """By rate, then by seed."""
    return {rate: [settled(o) for o in contender.at(rate, done)] for rate in contender.rates}


def usable_rates(final: dict[float, list[float]], floor: float) -> list[list[float]]:
    """By seed, the rates at which the network settles at or above the floor (if anything did)."""
    seeds = len(next(iter(final.values())))
    return [
        [rate for rate, values in final.items() if values[k] >= floor > 0] for k in range(seeds)
    ]


def highest(final: dict[float, list[float]], floor: float) -> list[Bounded | None]:
    """By seed, the highest usable rate: a bound at the grid's ends, none where a trial failed."""

    def of_seed(k: int, usable: list[float]) -> Bounded | None:
        if any(math.isnan(values[k]) for values in final.values()):
            return None
        if not usable:
            return Bounded(min(final), at_most=True)
        return Bounded(max(usable), at_least=max(usable) == max(final))

    return [of_seed(k, usable) for k, usable in enumerate(usable_rates(final, floor))]


def _median(values: Sequence[float]) -> float:
    return median([value for value in values if not math.isnan(value)] or [0.0])


def _assess(scope: Scope, done: Done) -> Evidence:
    finals = {c.name: _settled(c, done) for c in _contenders(scope)}
    floor = USABLE * max(_median(values) for final in finals.values() for values in final.values())
    usable = {name: usable_rates(final, floor) for name, final in finals.items()}
    tops = {name: highest(final, floor) for name, final in finals.items()}
    pairs = zip(tops["batch"], tops["none"], strict=True)
    effect = estimate_bounded([ratio(batch, none) for batch, none in pairs])
    finding = Finding(
        question="Does a network with batch norm still learn at rates where it otherwise fails?",
        verdict=judge_ratio(effect, MARGIN),
        effect=effect,
        effect_name="highest usable rate with / without batch norm",
        unit="×",
        rule=f"Confirmed where the whole interval of the ratio is above {MARGIN:g}, contradicted "
        f"below 1/{MARGIN:g}, not seen between the two.",
        summary="Usable rates: "
        + "; ".join(f"{name}: {_range(rates)}" for name, rates in usable.items())
        + ".",
    )
    table = Table(
        ("contender", "usable rates", "highest usable rate", "best rate", "its test error (%)"),
        tuple(
            (
                c.name,
                (
                    _range(usable[c.name]),
                    estimate_bounded(tops[c.name]),
                    f"{c.best_rate(done):g}",
                    c.chosen(done).error,
                ),
            )
            for c in _contenders(scope)
        ),
    )
    return Evidence((finding,), table, (_figure(finals, finding.summary),))


def _range(usable: list[list[float]]) -> str:
    """The rates usable for the median seed: those usable for at least half of the seeds."""
    rates = sorted({rate for of_seed in usable for rate in of_seed})
    often = [r for r in rates if 2 * sum(r in of_seed for of_seed in usable) >= len(usable)]
    return f"{often[0]:g} to {often[-1]:g}" if often else "no rate of the grid"


def _percent(final: dict[float, list[float]]) -> dict[float, Estimate | None]:
    return {
        rate: estimate([None if math.isnan(v) else 100 * v for v in values])
        for rate, values in final.items()
    }


def _figure(finals: dict[str, dict[float, list[float]]], text: str) -> Figure:
    series = [Series.of(name, _percent(final)) for name, final in finals.items()]
    return Figure(
        title="Accuracy by learning rate",
        kind="line",
        x=Axis("learning rate", log=True),
        y=Axis("test accuracy", "%"),
        series=tuple(series),
        text=f"Test accuracy over the last points against the learning rate. {text}",
    )


CLAIM = Claim(
    name="learning_rate",
    title="Higher learning rates",
    question="Does batch norm allow higher learning rates without divergence?",
    papers=(
        Paper(
            "With batch norm the rate can be raised 5 and 30 times (to 0.0075 and 0.045) and "
            "training speeds up; raised 5 times, the original Inception reaches machine infinity.",
            "Ioffe & Szegedy 2015, Batch Normalization, section 4.2.2",
        ),
        Paper(
            "At equally small rates a network with batch norm does about as well as one without; "
            "the gain comes from the larger rates that it bears.",
            "Bjorck et al. 2018, Understanding Batch Normalization",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        speed.describe(scope)
        + "Every rate is tried on every seed. A network settles at its median test accuracy over "
        f"the last {LAST} points of the curve; a rate is usable if it settles at {USABLE:g} times "
        "the best median of all, or above."
    ),
    against="The grid is coarse, two rates a decade, so the ratio is known to a factor of three. "
    "A warm-up or clipped gradients would let the plain network bear more.",
)
