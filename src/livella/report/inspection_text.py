"""An inspection on the terminal: what matters most first, then every layer."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from os.path import commonprefix

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from livella.diagnosis.records import Level, Record
from livella.report import cards, inspection_words
from livella.report.cards import Card, Way
from livella.report.text import facts, heading, safe

FIRST = 3
"""Cards told in full."""
MARKS = {Level.ERROR: "✗", Level.WARNING: "!", Level.NOTE: "○"}
_COLOURS = {Level.ERROR: "red", Level.WARNING: "yellow", Level.NOTE: "cyan"}
_OF_BARS = {"running": "red", "after": "green", "population": "green", "batch": "cyan"}
_WIDEST = 110
_BAR = 24
_NAME = 24
"""The characters of a layer's name that fit the table in 80 columns."""
_BESIDE = 11
"""The room of the level, and what follows it."""
_COMMAND = 66
"""The width of a command: what fits beside the level in 80 columns."""


def show(record: Record, console: Console, command: str = "") -> None:
    """Print an inspection on a console; `command` is the one that repairs, if there is one."""
    console.print(render(record, command))


def show_scores(before: Record, after: Record | None, console: Console) -> None:
    """Print how a model does, before and after a repair if there was one."""
    console.print(Constrain(Group(*_scores(before, after)), _WIDEST))


def plain(record: Record, command: str = "") -> str:
    """Give it as text without colour."""
    console = Console(file=io.StringIO(), width=_WIDEST, color_system=None)
    console.print(render(record, command))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def render(record: Record, command: str = "") -> RenderableType:
    """The whole inspection as one Rich renderable that reads without colour."""
    found = cards.of(record)
    ways = list(cards.ways(found, record, command))
    parts = [
        safe(inspection_words.headline(record), "bold"),
        *_scores(record),
        facts(*((name, safe(said)) for name, said in inspection_words.summary(record, command))),
        *_first(inspection_words.first_title(record), found[:FIRST], ways),
        *_others("Also", found[FIRST:]),
        *_others("Ignored", cards.accepted(record)),
        *_layers(record),
    ]
    return Constrain(Group(*parts), _WIDEST)


def _scores(record: Record, after: Record | None = None) -> Iterator[RenderableType]:
    gap = record.seen.gap
    if gap is None:
        yield Text()
        return
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for bar in inspection_words.bars(gap, None if after is None else after.seen.gap):
        full = int(_BAR * bar.value)  # what is not all of it never looks like it
        drawn = Text("█" * full, _OF_BARS[bar.kind]) + Text("░" * (_BAR - full), "dim")
        grid.add_row(safe(bar.name), drawn, safe(bar.said, "bold"), safe(bar.loss, "dim"))
    yield Padding(Group(safe(inspection_words.caption(gap), "dim"), grid), (1, 0))


def _first(title: str, found: Iterable[Card], ways: list[Way]) -> Iterator[RenderableType]:
    for place, (card, way) in enumerate(zip(found, ways, strict=False)):
        if not place:
            yield heading(title)
        else:
            yield Text()
        yield from _card(card, way)


def _card(card: Card, way: Way) -> Iterator[RenderableType]:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=9)
    grid.add_column(ratio=1, overflow="fold")
    grid.add_row(_mark(card.level), safe(card.title, "bold"))
    for said in filter(None, _said(card)):
        grid.add_row("", safe(said))
    for each in card.comes:
        line = Text.assemble("so: ", _mark(each.level, short=True), safe(f" {each.first.check}: "))
        grid.add_row("", line + safe(each.line))
    if way.text:
        grid.add_row("", safe(f"→ {way.text}"))
    yield grid
    if (
        way.command
    ):  # no spaces behind its line breaks, which a grid would draw, or no shell reads it
        lines = cards.folded(way.command, _COMMAND).splitlines()
        told = "\n".join(
            f"{'' if k else '→ ':>{_BESIDE + 2}}{line}" for k, line in enumerate(lines)
        )
        yield safe(told, "bold")


def _said(card: Card) -> tuple[str, ...]:
    return card.total, card.message, card.likewise, card.lesser, card.accepted


def _mark(level: Level, short: bool = False) -> Text:
    said = MARKS[level] if short else f"{MARKS[level]} {level.value}"
    return Text(said, f"bold {_COLOURS[level]}")


def _others(title: str, rest: Iterable[Card]) -> Iterator[RenderableType]:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=9)
    grid.add_column(ratio=1, overflow="fold")
    for card in rest:
        grid.add_row(_mark(card.level), safe(f"{card.first.check}: {card.line}"))
        for each in card.comes:
            grid.add_row("", safe(f"so: {MARKS[each.level]} {each.first.check}: {each.line}"))
    if grid.row_count:
        yield heading(title)
        yield grid


def _layers(record: Record) -> Iterator[RenderableType]:
    kinds = {layer.kind for layer in record.seen.layers}
    alike = len(kinds) == 1  # then the column would only take the room that names need
    columns, rows = inspection_words.table(record)
    inside = _inside([row[0] for row in rows])
    where = f"Layers in {inside.removesuffix('.')}" if inside else "Layers"
    yield heading(f"{where}, each a {kinds.pop()}" if alike else where)
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("layer", overflow="fold")
    if not alike:
        grid.add_column("kind", no_wrap=True, overflow="fold")
    for column in columns[2:]:
        grid.add_column(column.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for row in rows:
        cells = (row[0].removeprefix(inside), *(row[2:] if alike else row[1:]))
        grid.add_row(*map(safe, cells))
    yield grid


def _inside(names: list[str]) -> str:
    """Give the module that all are in, with its dot, where names are long; else nothing."""
    if max(map(len, names)) <= _NAME or len(names) == 1:
        return ""
    # by characters, of which what follows the last dot is dropped
    module, dot, _ = commonprefix(names).rpartition(".")  # noqa: RUF071
    return module + dot
