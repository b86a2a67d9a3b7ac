"""An inspection as one page that needs nothing else: no script, no network, no other file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from livella.diagnosis.records import Finding, Layer, Level, Record
from livella.report import cards, inspection_text, inspection_words, wording
from livella.report.cards import Card, Way

SIDE = 200
"""Of a plot, in pixels."""
MOST = 400
"""Channels drawn in one plot; of more, evenly spaced ones by their mean."""
_COMMAND = 90
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Dot:
    """A channel in a plot: its place, and whether it is that of the repaired model."""

    x: float
    y: float
    after: bool = False


@dataclass(frozen=True)
class Plot:
    """Running against population values by channel."""

    title: str
    low: str
    high: str
    dots: tuple[Dot, ...]
    left_out: int


@dataclass(frozen=True)
class Block:
    """A layer on the page: its place in the map, and what was found of it."""

    layer: Layer
    share: float
    said: str
    findings: tuple[Finding, ...]
    plots: tuple[Plot, ...]

    @property
    def worst(self) -> str:
        """The level of its worst finding; empty without one above a note."""
        levels = [f.level for f in self.findings if f.level is not Level.NOTE]
        return max(levels, key=lambda level: level.rank).value if levels else ""


def render(record: Record, after: Record | None = None, command: str = "") -> str:
    """Give the page.

    Args:
        record: the inspection.
        after: what was found once more after a repair, to be drawn beside.
        command: that repairs, if there is one; else remedies are told as Python.

    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    gap = record.seen.gap
    gap_after = None if after is None else after.seen.gap
    found = cards.of(record)
    columns, rows = inspection_words.table(record)
    return environment.get_template("inspection.html").render(
        record=record,
        after=after,
        headline=inspection_words.headline(record),
        headline_after="" if after is None else inspection_words.headline(after),
        caption="" if gap is None else inspection_words.caption(gap),
        bars=() if gap is None else tuple(inspection_words.bars(gap, gap_after)),
        summary=tuple(inspection_words.summary(record, command)),
        first_title=inspection_words.first_title(record),
        cards=tuple(zip(found, _ways(found, record, command), strict=True)),
        stays=() if after is None else tuple(c for c in cards.of(after) if c.worst.rank),
        accepted=cards.accepted(record),
        blocks=tuple(_blocks(record, after)),
        shared=any(layer.share is not None for layer in record.seen.layers),
        columns=columns,
        rows=rows,
        marks={level.value: mark for level, mark in inspection_text.MARKS.items()},
        side=SIDE,
        first=inspection_text.FIRST,
        named=cards.NAMED,
    )


def _ways(found: Sequence[Card], record: Record, command: str) -> Iterator[Way]:
    for way in cards.ways(found, record, command):
        yield Way(way.text, cards.folded(way.command, _COMMAND) if way.command else "")


def _blocks(record: Record, after: Record | None) -> Iterator[Block]:
    mended = {} if after is None else {layer.name: layer for layer in after.seen.layers}
    for layer in record.seen.layers:
        findings = tuple(f for f in record.findings if f.layer == layer.name)
        plots = tuple(_plots(layer, mended.get(layer.name)))
        share = max(0.0, min(1.0, layer.share or 0.0))
        said = "" if layer.share is None else wording.share(layer.share, layer.share_error)
        yield Block(layer, share, said, findings, plots)


def _plots(layer: Layer, mended: Layer | None) -> Iterator[Plot]:
    met = layer.measured
    if met is None or layer.running_mean is None or layer.running_var is None:
        return
    now = (mended.running_mean, mended.running_var) if mended is not None else (None, None)
    yield _plot("mean", met.mean, layer.running_mean, now[0])
    roots = [_root(values) for values in (met.variance, layer.running_var, now[1])]
    yield _plot("standard deviation", roots[0] or (), roots[1] or (), roots[2])


def _root(values: Sequence[float] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    return tuple(math.sqrt(v) if v >= 0 else math.nan for v in values)


def _plot(
    title: str,
    population: Sequence[float],
    running: Sequence[float],
    after: Sequence[float] | None,
) -> Plot:
    kept = _some(population)
    shown = [v for values in (population, running, after or ()) for v in values if math.isfinite(v)]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    span = (high - low) or 1.0

    def place(channel: int, values: Sequence[float], mended: bool) -> Iterator[Dot]:
        x, y = population[channel], values[channel]
        if math.isfinite(x) and math.isfinite(y):
            yield Dot(
                round(SIDE * (x - low) / span, 1), round(SIDE * (1 - (y - low) / span), 1), mended
            )

    dots = [dot for channel in kept for dot in place(channel, running, False)]
    if after is not None:
        dots += [dot for channel in kept for dot in place(channel, after, True)]
    left_out = sum(not math.isfinite(v) for v in running)
    return Plot(title, wording.number(low), wording.number(high), tuple(dots), left_out)


def _some(values: Sequence[float]) -> list[int]:
    order = sorted(range(len(values)), key=lambda k: values[k])
    step = max(1.0, len(order) / MOST)
    return [order[int(k * step)] for k in range(int(len(order) / step))]
