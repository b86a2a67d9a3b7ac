"""An inspection on the terminal: what matters most first, then every layer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from livella.diagnosis.records import Finding, Gap, Layer, Level, Record
from livella.report import wording
from livella.report.text import facts, heading, safe

FIRST = 3
"""Findings told in full."""
NAMED = 4
"""Further layers named where the same was found in several."""
MARKS = {Level.ERROR: "✗", Level.WARNING: "!", Level.NOTE: "○"}
_COLOURS = {Level.ERROR: "red", Level.WARNING: "yellow", Level.NOTE: "cyan"}
_WIDEST = 110


def show(record: Record, console: Console) -> None:
    """Print an inspection on a console."""
    console.print(render(record))


def plain(record: Record) -> str:
    """Give it as text without colour."""
    console = Console(file=io.StringIO(), width=_WIDEST, color_system=None)
    console.print(render(record))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def render(record: Record) -> RenderableType:
    """The whole inspection as one Rich renderable that reads without colour."""
    parts = [*_head(record), *_first(record), *_others(record), *_layers(record)]
    return Constrain(Group(*parts), _WIDEST)


def _head(record: Record) -> Iterator[RenderableType]:
    yield Text(verdict(record), style="bold")
    yield facts(*((name, safe(value)) for name, value in summary(record)))


def verdict(record: Record) -> str:
    """Say in one line how the model is."""
    counts = [
        wording.counted(n, level.value)
        for level in reversed(Level)
        if (n := sum(finding.level is level for finding in record.findings))
    ]
    worst = record.worst
    if worst is None:
        return "Healthy: nothing was found."
    said = {
        Level.ERROR: "Wrong in use",
        Level.WARNING: "In use, with reservations",
        Level.NOTE: "Healthy",
    }[worst]
    return f"{said}: {', '.join(counts)}."


def summary(record: Record) -> Iterator[tuple[str, str]]:
    """Give what was looked at, and how the model does by which statistics."""
    seen = record.seen
    yield "model", f"{seen.model}, {wording.counted(len(seen.layers), 'normalization')}"
    if seen.samples:
        deployed = f", {seen.deployed:,} of deployment" if seen.deployed else ""
        yield "data", f"{seen.samples:,} samples in batches of {seen.batch}{deployed}"
    else:
        yield "data", "none: what is stored was read, nothing was measured"
    if seen.gap is not None:
        yield from gap_in_words(seen.gap)


def gap_in_words(gap: Gap) -> Iterator[tuple[str, str]]:
    """Say how the model does by the running statistics, the data's, and each batch's."""
    names = ("by its running statistics, as in eval()", "by those of the data",
             "by those of each batch, as in train()")  # fmt: skip
    values = (gap.running, gap.population, gap.batch)
    if gap.unit != "loss":
        yield (
            "eval()",
            f"its outputs are {wording.number(gap.running)} of their variance away from those by "
            "the statistics of the data (no labels)",
        )
        return
    accuracies = gap.accuracy or (None, None, None)
    for name, value, accuracy in zip(names, values, accuracies, strict=True):
        told = "" if accuracy is None else f", {100 * accuracy:.1f} % right"
        yield "loss", f"{wording.number(value)}{told}, {name}"


def _first(record: Record) -> Iterator[RenderableType]:
    if record.findings:
        yield heading("What matters most")
    for finding in record.findings[:FIRST]:
        yield Padding(_finding(record, finding), (0, 0, 1, 0))


def _finding(record: Record, finding: Finding) -> RenderableType:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=9)
    grid.add_column(ratio=1)
    mark = Text(f"{MARKS[finding.level]} {finding.level.value}", f"bold {_COLOURS[finding.level]}")
    grid.add_row(mark, safe(f"{finding.layer or 'the model'}: {finding.check}", "bold"))
    grid.add_row("", safe(finding.message))
    advice = record.remedies.get(finding.remedy)
    if advice is not None:
        grid.add_row("", safe(f"→ {advice.text}"))
    return grid


def _others(record: Record) -> Iterator[RenderableType]:
    rest = record.findings[FIRST:]
    if not rest:
        return
    yield heading("Also")
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for level, check in dict.fromkeys((finding.level, finding.check) for finding in rest):
        alike = [f for f in rest if (f.level, f.check) == (level, check)]
        mark = Text(f"{MARKS[level]} {level.value}", _COLOURS[level])
        grid.add_row(mark, safe(f"{check}: {_where(alike)}"))
    yield grid


def _where(alike: list[Finding]) -> str:
    """Say where something was found: in full for one layer, by example for many."""
    first = alike[0]
    said = f"{first.layer or 'the model'}: {first.message}"
    if len(alike) == 1:
        return said
    others = [finding.layer for finding in alike[1:]]
    named = ", ".join(others[:NAMED]) + (" …" if len(others) > NAMED else "")
    return f"in {len(alike)} layers. {said} Likewise {named}."


def _layers(record: Record) -> Iterator[RenderableType]:
    yield heading("Layers")
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(COLUMNS):
        widest = max(map(len, column.split()))
        justify: Literal["left", "right"] = "left" if index < 2 else "right"
        grid.add_column(column, justify=justify, no_wrap=index < 2, min_width=widest)
    for layer in record.seen.layers:
        grid.add_row(*(safe(cell) for cell in row(layer)))
    yield grid


COLUMNS = ("layer", "kind", "channels", "mean off by", "variance ×", "share", "batch worth",
           "noise")  # fmt: skip


def row(layer: Layer) -> tuple[str, ...]:
    """Give a layer's figures as the table has them."""
    off, met = layer.off, layer.measured
    missing = wording.MISSING
    return (
        layer.name or "(the model)",
        layer.kind,
        f"{layer.features:,}",
        missing if off is None else f"{wording.number(off.offset, 2)} σ",
        missing if off is None else wording.number(off.ratio, 3),
        missing if layer.share is None else f"{layer.share:.0%}",
        missing if met is None else wording.number(met.effective, 2),
        missing if met is None else f"{wording.number(met.noise, 2)} σ",
    )
