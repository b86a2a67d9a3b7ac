"""Adaptation's harm: a stream sorted by class, with the guard and without."""

from __future__ import annotations

from collections.abc import Sequence

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.claims.shift import BATCH, MOMENTUM, RATES, STEPS, contender
from livella.study.corruptions import DECAY, STREAM, Streamed
from livella.study.results import Axis, Estimate, Figure, Finding, Paper, Series, Table
from livella.study.trial import Outcome, Trial
from livella.study.verdict import estimate

MARGIN = 2.0
WAYS = {"source": "as trained", "unguarded": "adapted", "guarded": "adapted under guard"}
STREAMS = ("sorted by class", "contrast 3")
Found = tuple[Streamed, Streamed]
"""On the stream sorted by class, and on the shifted one."""


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    return contender(scope, "streams").tuned(done)


def seen(outcome: Outcome) -> Found | None:
    """Give what a trial measured; none where it broke off."""
    if outcome.failed or outcome.diverged or not outcome.streams:
        return None
    values = outcome.streams[-1]
    half = len(Streamed._fields)
    return Streamed(*values[:half]), Streamed(*values[half:])


def _assess(scope: Scope, done: Done) -> Evidence:
    outcomes = contender(scope, "streams").chosen(done).outcomes
    seeds = [found for outcome in outcomes if (found := seen(outcome))]
    findings = (
        _ahead("Does adaptation harm on a stream that is sorted by class?", seeds, 0,
               "unguarded", "source"),
        _ahead("Does the guard spare it that?", seeds, 0, "unguarded", "guarded"),
        _ahead("Does it let adaptation help where the data did change?", seeds, 1,
               "source", "guarded"),
    )  # fmt: skip
    rows = tuple(
        (name, tuple(_percent(seeds, k, way) for way in WAYS)) for k, name in enumerate(STREAMS)
    )
    headings = (f"{said} (%)" for said in WAYS.values())
    return Evidence(findings, Table(("stream", *headings), rows), (_figure(seeds),))


def _ahead(question: str, seeds: Sequence[Found], stream: int, below: str, above: str) -> Finding:
    values = [(getattr(f[stream], below), getattr(f[stream], above)) for f in seeds]
    said = (f"{WAYS[w]}: {exhibits.percent(_percent(seeds, stream, w))}" for w in WAYS)
    return exhibits.in_points(
        question,
        estimate([100 * (second - first) for first, second in values]),
        f"accuracy, {WAYS[above]} − {WAYS[below]}",
        MARGIN,
        f"Median accuracy, {STREAMS[stream]}: {'; '.join(said)}.",
    )


def _percent(seeds: Sequence[Found], stream: int, way: str) -> Estimate | None:
    return estimate([100 * getattr(found[stream], way) for found in seeds])


def _figure(seeds: Sequence[Found]) -> Figure:
    bars = {
        said: {name: _percent(seeds, k, way) for k, name in enumerate(STREAMS)}
        for way, said in WAYS.items()
    }
    return Figure(
        title="Accuracy over a stream, adapted to on the way",
        kind="bar",
        x=Axis("stream"),
        y=Axis("test accuracy", "%"),
        series=tuple(Series.of(said, each) for said, each in bars.items()),
        text="Test accuracy over a stream. "
        + "; ".join(
            f"{name}: "
            + ", ".join(f"{said} {exhibits.percent(each[name])}" for said, each in bars.items())
            for name in STREAMS
        )
        + ".",
    )


CLAIM = Claim(
    name="adaptation_harm",
    title="Adaptation on a stream that is no fair sample",
    question="What does adaptation cost where the classes come one after the other?",
    papers=(
        Paper(
            "CIFAR-10-C as a temporally correlated stream, error: 42.3 % as trained, 73.4 % with "
            "batch statistics, 76.4 % with γ and β tuned besides.",
            "Gong et al. 2022, NOTE: Robust Continual Test-time Adaptation Against Temporal "
            "Correlation",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        scope.network_in_words(
            f"The network of the claim shift, SGD with momentum {MOMENTUM}",
        )
        + f", {scope.steps or STEPS} steps of {BATCH} examples, the rate the best out of "
        f"{scope.rates_in_words(RATES)} (validation, two seeds). Up to 2,000 test examples then "
        f"come in batches of {STREAM}, once as they are but sorted by class, once in any order "
        "but at a quarter of the contrast. The network follows by livella.adapt with prior 16 and "
        f"decay {DECAY}, without the guard and with it; each batch is classified after it was "
        "taken in."
    ),
    against="Sorting is the extreme of a correlated stream; one that drifts slowly through the "
    "classes is harder to tell from a change of the world. The guard takes training for balanced "
    "over the classes, and a network that knows a shift badly gives it little to judge by.",
)
