"""The records of a finished study: plain numbers and texts, with no torch behind them.

A claim turns its trials into a `ClaimResult`; the report draws `StudyResult`s and computes
nothing itself, so it is tested with plain numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal


class Verdict(str, Enum):
    """What the measured effect says of a claim; `livella.study.verdict.judge` is the rule."""

    CONFIRMED = "confirmed"
    NOT_SEEN = "not seen"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Estimate:
    """A median over seeds with its 95 % bootstrap interval.

    `censored` says that the budget ended before the thing measured came to pass, so that the
    median is a lower bound; `capped`, for a ratio whose divisor is such a bound, that it is an
    upper one.
    """

    median: float
    low: float
    high: float
    count: int
    censored: bool = False
    capped: bool = False


@dataclass(frozen=True)
class Finding:
    """One question of a claim, the effect measured, and what the rule says of it."""

    question: str
    verdict: Verdict
    effect: Estimate | None
    """None where no seed gave a number (the verdict is then inconclusive)."""
    effect_name: str
    """What the effect is, with its direction: "steps without / steps with normalization"."""
    unit: str
    """"×", "points", …; empty for a pure number."""
    rule: str
    """The rule in one sentence, with its margin."""
    summary: str
    """What was seen, in one sentence with its numbers."""


@dataclass(frozen=True)
class Table:
    """Figures side by side; a cell is an estimate, a text, or None where there is no value."""

    columns: tuple[str, ...]
    """The heading of the first column, then one for each cell of a row (with its unit)."""
    rows: tuple[tuple[str, tuple[Estimate | str | None, ...]], ...]


@dataclass(frozen=True)
class Axis:
    title: str
    unit: str = ""
    log: bool = False


@dataclass(frozen=True)
class Series:
    """A named line or set of bars: y over x, with a band from low to high where known."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()

    @classmethod
    def of(cls, name: str, estimates: Mapping[Any, Estimate | None]) -> Series:
        """Medians with their intervals over x; a gap where there is none."""
        found = estimates.values()
        return cls(
            name,
            x=tuple(estimates),
            y=tuple(e.median if e else None for e in found),
            low=tuple(e.low if e else None for e in found),
            high=tuple(e.high if e else None for e in found),
        )


@dataclass(frozen=True)
class Figure:
    """A plot as data: what to draw, never how."""

    title: str
    kind: Literal["line", "bar"]
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    text: str
    """The text alternative: what a reader who cannot see the plot should know."""


@dataclass(frozen=True)
class Paper:
    """What the literature found, and where it says so."""

    finding: str
    source: str


@dataclass(frozen=True)
class ClaimResult:
    name: str
    title: str
    question: str
    findings: tuple[Finding, ...]
    table: Table
    figures: tuple[Figure, ...]
    papers: tuple[Paper, ...]
    method: str
    """How it was measured: network, data, budget, grid, selection."""
    against: str
    """What would speak against the verdict, and where it may not carry over."""
    trials: int
    seconds: float
    """Computing time of the trials behind it, summed over processes."""


@dataclass(frozen=True)
class LeftOut:
    """A claim that the study did not run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class StudyResult:
    data: str
    """The data in words: name, examples, classes, shape."""
    model: str
    seeds: int
    claims: tuple[ClaimResult, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    """What the user should know of the run: lines set aside, trials that failed."""
    trials_run: int = 0
    trials_reused: int = 0
    seconds: float = 0.0
    """Wall-clock time of the trials run this time."""
    computed: float = 0.0
    """Computing time of all trials behind the study, each once, summed over processes."""
    provenance: dict[str, str] = field(default_factory=dict)
    """Versions, commit, processor, threads, date."""

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values; verdicts are their texts."""
        return dataclasses.asdict(self)
