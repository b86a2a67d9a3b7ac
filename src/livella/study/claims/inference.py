"""Inference: test errors by running averages, by population statistics, by the mini-batch's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from statistics import fmean

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.models import Network
from livella.study.results import Axis, Estimate, Figure, Finding, Paper, Series, Table
from livella.study.sweep import grid
from livella.study.trial import Outcome, Trial
from livella.study.verdict import estimate, paired

STEPS = 150
EVALUATIONS = 10
MARGIN = 0.3
STATISTICS = ("running average", "population", "mini-batch")
# Name, momentum, rate, batch size: one thing changed at a time.
SETUPS = (
    ("as usual", 0.1, 1.0, 32),
    ("momentum 0.01", 0.01, 1.0, 32),
    ("rate 0.1", 0.1, 0.1, 32),
    ("batch of 4", 0.1, 0.1, 4),
    ("batch of 128", 0.1, 1.0, 128),
)
USUAL, SLOW, SMALL = SETUPS[0][0], SETUPS[1][0], SETUPS[3][0]
Errors = list[tuple[float, ...] | None]
"""By seed: the errors by each of the statistics, mean over the points of the curve, in percent."""


def _trial(scope: Scope, momentum: float, batch: int) -> Trial:
    network = Network(norm="batch", norm_momentum=momentum)
    trial = scope.trial(network, STEPS, batch=batch, evaluations=EVALUATIONS, probe="inference")
    return dataclasses.replace(trial, network=dataclasses.replace(
        trial.network, norm_momentum=momentum))  # fmt: skip


def _trials(scope: Scope) -> dict[str, list[Trial]]:
    """By set-up, one for each seed."""
    return {
        name: grid(_trial(scope, momentum, batch), (_rate(scope, rate),), scope.seeds)
        for name, momentum, rate, batch in SETUPS
    }


def _rate(scope: Scope, own: float) -> float:
    """A user's network takes the highest rate of its grid for 1, a tenth of that for 0.1."""
    return own if scope.model is None else own * max(scope.rates(()))


def _plan(scope: Scope, _done: Done) -> Sequence[Trial]:
    return [trial for trials in _trials(scope).values() for trial in trials]


def errors(outcome: Outcome) -> tuple[float, ...] | None:
    """By running average, population and mini-batch; none where the training broke off."""
    if outcome.failed or outcome.diverged or not outcome.inference:
        return None
    points = zip(outcome.test[1:], outcome.inference[1:], strict=True)
    rows = [(running, *others) for running, others in points]
    return tuple(100 * (1 - fmean(column)) for column in zip(*rows, strict=True))


def _assess(scope: Scope, done: Done) -> Evidence:
    found = {
        name: [errors(done.get(trial, Outcome())) for trial in trials]
        for name, trials in _trials(scope).items()
    }
    findings = (
        _fewer("Do running averages lag the population at momentum 0.01?", found, SLOW, 0, 1),
        _fewer("Do they at momentum 0.1?", found, USUAL, 0, 1),
        _fewer(
            "With batches of 4, is the population better than the mini-batch's own statistics?",
            found, SMALL, 2, 1,
        ),
    )  # fmt: skip
    rows = tuple(
        (name, (*(_estimate(seeds, k) for k in range(3)), _gap(seeds, 0), _gap(seeds, 2)))
        for name, seeds in found.items()
    )
    headings = tuple(f"error by {name} (%)" for name in STATISTICS)
    gaps = ("running − population (points)", "mini-batch − population (points)")
    return Evidence(findings, Table(("set-up", *headings, *gaps), rows), (_figure(found),))


def _fewer(question: str, found: dict[str, Errors], setup: str, worse: int, better: int) -> Finding:
    effect = _difference(found[setup], worse, better)
    said = "; ".join(f"{name}: {_median(found[setup], k)}" for k, name in enumerate(STATISTICS))
    return exhibits.in_points(
        question,
        effect,
        f"test error by {STATISTICS[worse]} − by {STATISTICS[better]}",
        MARGIN,
        f"Median test error during training ({setup}): {said}.",
    )


def _column(seeds: Errors, k: int) -> list[float | None]:
    return [None if seed is None else seed[k] for seed in seeds]


def _estimate(seeds: Errors, k: int) -> Estimate | None:
    return estimate(_column(seeds, k))


def _difference(seeds: Errors, first: int, second: int) -> Estimate | None:
    return estimate(paired(lambda a, b: a - b, _column(seeds, first), _column(seeds, second)))


def _gap(seeds: Errors, k: int) -> Estimate | None:
    return _difference(seeds, k, 1)


def _median(seeds: Errors, k: int) -> str:
    found = _estimate(seeds, k)
    return "–" if found is None else f"{found.median:.1f} %"


def _figure(found: dict[str, Errors]) -> Figure:
    series = [
        Series.of(name, {setup: _estimate(seeds, k) for setup, seeds in found.items()})
        for k, name in enumerate(STATISTICS)
    ]
    return Figure(
        title="Test error during training, by the statistics used in inference",
        kind="bar",
        x=Axis("set-up"),
        y=Axis("test error", "%"),
        series=tuple(series),
        text="Test error by running average, population and mini-batch statistics. "
        + "; ".join(
            f"{name}: " + ", ".join(_median(seeds, k) for k in range(3))
            for name, seeds in found.items()
        )
        + ".",
    )


CLAIM = Claim(
    name="inference",
    title="Statistics at inference",
    question="What do running averages cost at inference, beside statistics of the training set?",
    papers=(
        Paper(
            "Population statistics with the weights held, from 1,000 to 10,000 samples, serve "
            "inference better than moving averages, which are erratic at large batches.",
            "Wu & Johnson 2021, Rethinking 'Batch' in BatchNorm, section 3",
        ),
        Paper(
            "At inference the statistics are those of the training set: the mean of the batch "
            "means and m/(m − 1) times the mean of the batch variances.",
            "Ioffe & Szegedy 2015, Batch Normalization, section 3.1, Algorithm 2",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        scope.network_in_words("A network of 3 × 100 ReLU units with He initialization, plain SGD")
        + f", {scope.steps or STEPS} steps. At {EVALUATIONS} points of the training the same "
        "weights are tried three times on the test part: with the running averages, with the "
        "statistics of the training part (livella.estimate_population, up to 5,000 examples), and "
        "with those of test batches of the training's size. The error is the mean over the points. "
        "Set-ups (momentum, rate, batch): "
        + "; ".join(f"{name}: {m:g}, {_rate(scope, r):g}, {b}" for name, m, r, b in SETUPS)
        + "."
    ),
    against="Points in the middle of training at a high, constant rate are the hardest for an "
    "average that trails the weights; at the end of a decaying rate it catches up. Test batches "
    "here are mixed: of one class, or of one example, their own statistics would fail.",
)
