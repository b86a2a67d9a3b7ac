"""Contenders over a grid of learning rates: each is judged at its own best."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median

from livella.study.claim import Done
from livella.study.results import Estimate, Series
from livella.study.trial import Outcome, Trial
from livella.study.verdict import estimate

TUNING_SEEDS = 2
"""Seeds on which the rate is chosen; the others are spent at the chosen rate only."""


def grid(trial: Trial, rates: Sequence[float], seeds: Sequence[int]) -> list[Trial]:
    return [dataclasses.replace(trial, rate=rate, seed=seed) for rate in rates for seed in seeds]


@dataclass(frozen=True)
class Contender:
    """One way to set up the network, tried at every rate of the grid."""

    name: str
    trial: Trial
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    for_speed: bool = False
    """Choose the rate that learns fastest (mean validation accuracy over the budget) instead of
    the one that ends best."""
    then_probe: str = ""
    """What is measured once the rate is chosen, where that takes long."""

    def tuned(self, done: Done) -> list[Trial]:
        """The whole grid on the tuning seeds, then the best rate on all."""
        wanted = grid(self.trial, self.rates, self.seeds[:TUNING_SEEDS])
        if all(trial in done for trial in wanted):
            wanted += grid(self._final, (self.best_rate(done),), self.seeds)
        return wanted

    def at(self, rate: float, done: Done) -> list[Outcome]:
        """The outcomes at a rate, in the order of the seeds; a failed trial is an empty one."""
        return [done.get(trial, Outcome()) for trial in grid(self._final, (rate,), self.seeds)]

    @property
    def _final(self) -> Trial:
        return dataclasses.replace(self.trial, probe=self.then_probe or self.trial.probe)

    def best_rate(self, done: Done) -> float:
        """The rate that did best on validation over the tuning seeds; the test part has no say.

        Best is the median accuracy at the end of the budget and, among equals, over all of it;
        the other way round `for_speed`.
        """

        def score(rate: float) -> tuple[float, ...]:
            tried = [done[trial] for trial in grid(self.trial, (rate,), self.seeds[:TUNING_SEEDS])]
            curves = [outcome.validation for outcome in tried if outcome.validation]
            if not curves:
                return (0.0, 0.0)
            end = median(curve[-1] for curve in curves)
            # A curve that broke off early would otherwise be judged on its good start alone.
            over_all = median(0.0 if o.diverged else fmean(o.validation) for o in tried if o.steps)
            return (over_all, end) if self.for_speed else (end, over_all)

        return max(self.rates, key=score)

    def chosen(self, done: Done) -> Chosen:
        rate = self.best_rate(done)
        return Chosen(self.name, rate, self.trial.steps, self.at(rate, done))


@dataclass(frozen=True)
class Chosen:
    """A contender at its best rate: one outcome a seed."""

    name: str
    rate: float
    budget: int
    outcomes: list[Outcome]

    @cached_property
    def errors(self) -> list[float | None]:
        """Test error at the end of the budget, in percent."""
        return [100 * (1 - o.test[-1]) if o.test else None for o in self.outcomes]

    @property
    def error(self) -> Estimate | None:
        return estimate(self.errors)

    def by_population(self) -> Chosen:
        """The same trainings, judged by population statistics, which their probe has taken."""
        return dataclasses.replace(
            self,
            name=f"{self.name}, population",
            outcomes=[_by_population(outcome) for outcome in self.outcomes],
        )

    def curve(self) -> Series:
        """Test accuracy in percent over steps: the median seed, with the range of all."""
        return curve(self.name, self.outcomes)


def _by_population(outcome: Outcome) -> Outcome:
    if not outcome.population:
        return Outcome()
    validation, test = outcome.population[-1]
    return Outcome(outcome.steps[-1:], outcome.train_loss[-1:], (validation,), (test,))


def curve(name: str, outcomes: Sequence[Outcome]) -> Series:
    """Test accuracy in percent over steps: the median seed, with the range of all.

    A seed that diverged keeps the accuracy it fell to.
    """
    steps = max((o.steps for o in outcomes), key=len, default=())
    padded = [o.test + o.test[-1:] * (len(steps) - len(o.test)) for o in outcomes if o.test]
    points = [[100 * value for value in point] for point in zip(*padded, strict=True)]
    return Series(
        name,
        x=tuple(float(step) for step in steps),
        y=tuple(median(point) for point in points),
        low=tuple(min(point) for point in points),
        high=tuple(max(point) for point in points),
    )


def by_validation(contenders: Sequence[Chosen]) -> Chosen:
    """The contender that did best on validation."""
    return max(
        contenders,
        key=lambda c: median([o.validation[-1] for o in c.outcomes if o.validation] or [0.0]),
    )


def steps_to(target: float, outcome: Outcome) -> float | None:
    """Training steps until the test accuracy first reaches the target; None if it never does."""
    points = zip(outcome.steps, outcome.test, strict=True)
    return next((max(1.0, float(step)) for step, value in points if value >= target), None)
