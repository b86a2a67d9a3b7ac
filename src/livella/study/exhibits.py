"""Tables, figures and findings that several claims share, all about test error."""

from __future__ import annotations

from collections.abc import Sequence

from livella.study.results import Axis, Estimate, Figure, Finding, Series, Table
from livella.study.sweep import Chosen
from livella.study.verdict import estimate, judge, paired


def fewer_errors(question: str, worse: Chosen, better: Chosen, margin: float) -> Finding:
    """Does `better` end with fewer test errors than `worse`, by more than the margin in points?"""
    return in_points(
        question,
        estimate(paired(lambda a, b: a - b, worse.errors, better.errors)),
        f"test error of {worse.name} − of {better.name}",
        margin,
        f"Median test error: {worse.name}: {percent(worse.error)}; "
        f"{better.name}: {percent(better.error)}.",
    )


def in_points(
    question: str, effect: Estimate | None, effect_name: str, margin: float, summary: str
) -> Finding:
    """Is the effect, in percentage points, above the margin?"""
    return Finding(
        question=question,
        verdict=judge(effect, margin),
        effect=effect,
        effect_name=effect_name,
        unit="points",
        rule=f"Confirmed where the whole interval is above {margin:g}, contradicted below "
        f"−{margin:g}, not seen between the two.",
        summary=summary,
    )


def error_table(chosen: Sequence[Chosen], rate: str = "best rate") -> Table:
    return Table(
        ("contender", rate, "test error (%)"),
        tuple((c.name, (f"{c.rate:g}", c.error)) for c in chosen),
    )


def error_bars(title: str, axis: str, chosen: Sequence[Chosen]) -> Figure:
    """One bar a contender: its median test error with the interval."""
    shown = [(c.name, c.error) for c in chosen]
    return Figure(
        title=title,
        kind="bar",
        x=Axis(axis),
        y=Axis("test error", "%"),
        series=tuple(Series.of(name, {name: e}) for name, e in shown if e),
        text="Test error: " + "; ".join(f"{name}: {percent(e)}" for name, e in shown) + ".",
    )


BEST = "each at its own best rate"


def learning_curves(chosen: Sequence[Chosen], said: str = "", rates: str = BEST) -> Figure:
    """Test accuracy over steps; `said` is what they show, by default the errors at the end."""
    errors = "; ".join(f"{c.name}: {percent(c.error)}" for c in chosen)
    return Figure(
        title=f"Learning curves, {rates}",
        kind="line",
        x=Axis("training steps"),
        y=Axis("test accuracy", "%"),
        series=tuple(c.curve() for c in chosen),
        text=f"Test accuracy over training steps. {said or f'Test error at the end: {errors}.'}",
    )


def percent(value: Estimate | None) -> str:
    return "–" if value is None else f"{value.median:.1f} %"
