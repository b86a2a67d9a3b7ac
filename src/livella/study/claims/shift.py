"""Shift: data that are not as in training, and statistics taken from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.corruptions import (
    BATCHES,
    COMMON,
    CORRUPTIONS,
    KINDS,
    METHODS,
    SIZES,
    Corrupted,
    Corruption,
)
from livella.study.models import Network
from livella.study.results import Axis, Estimate, Figure, Finding, Paper, Series, Table
from livella.study.sweep import Contender
from livella.study.trial import Outcome, Trial
from livella.study.verdict import estimate

RATES = (0.03, 0.1)
STEPS = 400
BATCH = 64
MOMENTUM = 0.9
MARGIN = 1.0
Measure = Callable[[Corrupted], float]


def contender(scope: Scope, probe: str) -> Contender:
    """Train a network with batch norm as usual, and look at it with a probe."""
    own: dict[str, Any] = {"kind": "cnn", "width": 8} if scope.is_image else {}
    network = Network(norm="batch", **own)
    trial = scope.trial(network, STEPS, batch=BATCH, evaluations=4, momentum=MOMENTUM)
    return Contender("batch", trial, scope.rates(RATES), scope.seeds, then_probe=probe)


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    return contender(scope, "corrupted").tuned(done)


def seen(outcome: Outcome) -> Corrupted | None:
    """Give what a trial measured; none where it broke off."""
    if outcome.failed or outcome.diverged or not outcome.corrupted:
        return None
    return Corrupted.from_tuple(outcome.corrupted[-1])


def as_trained(found: Corrupted, kinds: Sequence[str] = COMMON) -> float:
    """The accuracy of the network as it was trained, mean over these corruptions."""
    return fmean(found.source[c] for c in CORRUPTIONS if c.kind in kinds)


def by_method(method: str, size: int, kinds: Sequence[str] = COMMON) -> Measure:
    """The accuracy adapted to batches of this size, mean over these corruptions."""
    return lambda found: fmean(
        found.adapted[c, method, size] for c in CORRUPTIONS if c.kind in kinds
    )


WAYS: dict[str, Measure] = {
    "uncorrupted": lambda found: found.clean,
    "as trained": as_trained,
    **{f"{method} to {n}": by_method(method, n) for method in METHODS for n in SIZES},
}
QUESTIONS = (
    ("Do corrupted data cost a trained network accuracy?", "as trained", "uncorrupted"),
    ("Do statistics of 64 corrupted examples win some of it back?", "as trained", "adapted to 64"),
    *(
        (
            f"For {many}, is a blend with the statistics of training better than their own alone?",
            f"adapted to {n}",
            f"blended to {n}",
        )
        for n, many in ((1, "one example"), (4, "4 examples"))
    ),
    ("Does tuning γ and β by the entropy add to it?", "adapted to 64", "tuned to 64"),
)
"""Each with the way that it asks to be worse, and the better one."""


def _assess(scope: Scope, done: Done) -> Evidence:
    chosen = contender(scope, "corrupted").chosen(done)
    seeds = [found for outcome in chosen.outcomes if (found := seen(outcome))]
    findings = tuple(_ahead(seeds, *asked) for asked in QUESTIONS)
    return Evidence(findings, _table(seeds), (_by_size(seeds), _by_corruption(seeds)))


def _ahead(seeds: Sequence[Corrupted], question: str, below: str, above: str) -> Finding:
    first, second = WAYS[below], WAYS[above]
    said = (f"{name}: {exhibits.percent(_percent(seeds, WAYS[name]))}" for name in (below, above))
    return exhibits.in_points(
        question,
        estimate([100 * (second(found) - first(found)) for found in seeds]),
        f"accuracy, {above} − {below}",
        MARGIN,
        f"Median accuracy over {', '.join(COMMON)}: {'; '.join(said)}.",
    )


def _percent(seeds: Sequence[Corrupted], measure: Measure) -> Estimate | None:
    return estimate([100 * measure(found) for found in seeds])


def _table(seeds: Sequence[Corrupted]) -> Table:
    rows = []
    for kind in KINDS:
        source = estimate([100 * as_trained(found, (kind,)) for found in seeds])
        for method in METHODS:
            cells = [_percent(seeds, by_method(method, size, (kind,))) for size in SIZES]
            rows.append((f"{kind}, {method}", (source, *cells)))
    sizes = (f"n = {size} (%)" for size in SIZES)
    return Table(("corruption, method", "as trained (%)", *sizes), tuple(rows))


def _by_size(seeds: Sequence[Corrupted]) -> Figure:
    lines = {"as trained": dict.fromkeys(SIZES, _percent(seeds, as_trained))}
    for method in METHODS:
        lines[method] = {size: _percent(seeds, by_method(method, size)) for size in SIZES}
    said = "; ".join(
        f"{name} " + ", ".join(f"{n}: {exhibits.percent(e)}" for n, e in line.items())
        for name, line in lines.items()
    )
    return Figure(
        title="Accuracy on corrupted data by the batch that is adapted to",
        kind="line",
        x=Axis("examples a batch", log=True),
        y=Axis("test accuracy", "%"),
        series=tuple(Series.of(name, line) for name, line in lines.items()),
        text=f"Mean over {', '.join(COMMON)} by batch size, {said}.",
    )


def _at_most_examples(method: str, found: Corrupted, corruption: Corruption) -> float:
    return found.adapted[corruption, method, SIZES[-1]]


def _by_corruption(seeds: Sequence[Corrupted]) -> Figure:
    def bars(accuracy: Callable[[Corrupted, Corruption], float]) -> dict[str, Estimate | None]:
        return {str(c): estimate([100 * accuracy(f, c) for f in seeds]) for c in CORRUPTIONS}

    series = {"as trained": bars(lambda found, c: found.source[c])}
    for method in METHODS:
        series[method] = bars(partial(_at_most_examples, method))
    said = "; ".join(
        f"{c}: " + ", ".join(exhibits.percent(each[str(c)]) for each in series.values())
        for c in CORRUPTIONS
    )
    return Figure(
        title=f"Accuracy by corruption and severity, at {SIZES[-1]} examples a batch",
        kind="bar",
        x=Axis("corruption and severity"),
        y=Axis("test accuracy", "%"),
        series=tuple(Series.of(name, each) for name, each in series.items()),
        text=f"Test accuracy {', '.join(series)}. {said}.",
    )


CLAIM = Claim(
    name="shift",
    title="Data that are not as in training",
    question="Do statistics of the data met in use help a network whose world has changed?",
    papers=(
        Paper(
            "ResNet-50 on ImageNet-C, mean corruption error: 76.7 % as trained, 65.0 % with "
            "statistics blended with those of training, 62.2 % with those of the whole "
            "corrupted set.",
            "Schneider et al. 2020, Improving robustness against common corruptions by covariate "
            "shift adaptation",
        ),
        Paper(
            "CIFAR-10-C, error: 43.5 % as trained, 20.4 % with batch statistics, 18.6 % with γ "
            "and β tuned by the entropy besides.",
            "Wang et al. 2021, Tent: Fully Test-Time Adaptation by Entropy Minimization",
        ),
    ),
    left_out=lambda scope: "" if len(scope.shape) == 3 else "its corruptions are of images",
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        scope.network_in_words(
            "A CNN of 3 convolutions with batch norm (8, 16, 16 channels), SGD with momentum "
            f"{MOMENTUM}"
        )
        + f", {scope.steps or STEPS} steps of {BATCH} examples, the rate the best out of "
        f"{scope.rates_in_words(RATES)} (validation, two seeds). The test part is then corrupted "
        f"({', '.join(KINDS)}, three severities each, within the range of the data) and comes in "
        "batches of n, each adapted to by itself (livella.adapt, no guard): blended, N = 16; "
        "adapted, N = 0; tuned, N = 0 with γ and β tuned from batch to batch (Adam, 0.001). "
        + "Tried are "
        + ", ".join(f"{n * count} examples at n = {n}" for n, count in BATCHES.items())
        + f". Findings are over {', '.join(COMMON)}; inverted examples stand by themselves."
    ),
    against="Corruptions here change the whole world at once, and batches are mixed fairly: on a "
    "stream of one class after the other the same statistics do harm (adaptation_harm). Where what "
    "an example shows has changed, as in inversion, no statistics help. Tuning has few steps here; "
    "its paper's sets are a hundred times as long.",
)
