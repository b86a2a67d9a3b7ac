"""A record on the terminal: every case, the training steps, and how they stand to the targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from livella.bench.cases import Case
from livella.bench.contenders import COMPILE, EAGER, OURS
from livella.bench.measure import ratio
from livella.bench.memory import FRESH
from livella.bench.rows import Record, Row, Step, StepRow
from livella.bench.targets import Assessment, Verdict, assess, best_layout

MISSING = "–"
SYMBOLS = {Verdict.MET: "✓", Verdict.MEDIAN: "◐", Verdict.MISSED: "✗", Verdict.UNKNOWN: "?"}
_VERDICT_WIDTH = 2 + max(len(verdict.value) for verdict in Verdict)
_WIDEST = 110  # past this a line is hard to follow
_COLOURS = {
    Verdict.MET: "green",
    Verdict.MEDIAN: "yellow",
    Verdict.MISSED: "red",
    Verdict.UNKNOWN: "dim",
}

Measured = dict[tuple[str, bool], Row]
"""The rows of a case by contender, and whether its results lay in fresh memory."""


@dataclass(frozen=True)
class Column:
    """A figure of each case."""

    heading: str
    contender: str
    fresh: bool
    figure: Callable[[Row], str]

    def cell(self, rows: Measured) -> str:
        row = rows.get((self.contender, self.fresh))
        return MISSING if row is None else self.figure(row)


DISTANCE = Column("limit", OURS, False, lambda row: times(row.to_limit))
SPEED = Column("eager", EAGER, False, lambda row: times(row.to_ours))
COLUMNS = (
    Column("ours", OURS, False, lambda row: duration(row.seconds)),
    DISTANCE,
    SPEED,
    Column("compile", COMPILE, False, lambda row: times(row.to_ours)),
    Column("fresh: ours", OURS, True, lambda row: duration(row.seconds)),
    Column("eager", EAGER, True, lambda row: times(row.to_ours)),
)
FIGURES = ("bound", "median", "worst", "fresh")
"""What `target_cells` gives."""
TARGETS_LEGEND = (
    "The median and the worst ratio over the cases that a target covers. eager, compile: how many "
    "times our time they take. copy, stream (the limit) and memory: how many times theirs we take. "
    "fresh: the median with results in memory not used before."
)
LEGEND = (
    "ours: the time of a call. limit: how many times the limit that is. eager, compile: how many "
    "times ours they take. fresh: with results in memory not used before."
)


def show(record: Record, console: Console) -> None:
    """Print the record: what is judged comes last, where a reader of a terminal looks."""
    console.print(render(record))


def render(record: Record) -> RenderableType:
    """The whole record as one Rich renderable, whose verdicts read without colour."""
    parts = [*_cases(record), *_steps(record), *_targets(assess(record)), *_provenance(record)]
    return Constrain(Group(*parts), _WIDEST)


def by_case(record: Record) -> dict[Case, Measured]:
    """The rows that belong together, in the order of the run."""
    found: dict[Case, Measured] = {}
    for row in record.rows:
        found.setdefault(row.case, {})[row.contender, row.memory == FRESH] = row
    return found


def by_kind(measured: dict[Case, Measured]) -> Iterator[tuple[str, list[Case]]]:
    """The cases under their operation and fusion: "forward bn+relu"."""
    for kind in dict.fromkeys(case.kind for case in measured):
        yield kind, [case for case in measured if case.kind == kind]


def _cases(record: Record) -> Iterator[RenderableType]:
    measured = by_case(record)
    if measured:
        yield Padding(Text(LEGEND, style="dim"), (1, 0, 0, 0))
    for name, cases in by_kind(measured):
        compiled = any((COMPILE, False) in measured[case] for case in cases)
        wanted = [column for column in COLUMNS if compiled or column.contender != COMPILE]
        table = _table(["shape"], [column.heading for column in wanted])
        for case in cases:
            cells = (column.cell(measured[case]) for column in wanted)
            table.add_row(case.setting.short, *cells)
        yield _heading(name)
        yield Padding(table, (1, 0, 0, 0))


def _steps(record: Record) -> Iterator[RenderableType]:
    if not record.steps:
        return
    table = _table(["training step", "contender", "layout"], ["a step", "speed", "peak memory"])
    for step in dict.fromkeys(row.step for row in record.steps):
        for row in record.steps:
            if row.step == step:
                table.add_row(*step_cells(record, row))
    yield _heading("Training steps: speed against torch eager in its better layout")
    yield Padding(table, (1, 0, 0, 0))


def step_cells(record: Record, row: StepRow) -> tuple[str, ...]:
    """A step's row in words."""
    eager = best_layout(record, row.step, EAGER)
    speed = None if eager is None else ratio(eager.seconds, row.seconds)
    peak = MISSING if row.peak is None else f"{row.peak:,.0f} MB"
    took = duration(statistics.median(row.seconds))
    return step_name(row.step), row.contender, row.layout, took, times(speed), peak


def step_name(step: Step) -> str:
    """A step in words: "resnet-50, 16 × 224²"."""
    return f"{step.network}, {step.batch} × {step.size}²"


def _targets(assessments: Sequence[Assessment]) -> Iterator[RenderableType]:
    yield _heading("The targets")
    yield Padding(Text(TARGETS_LEGEND, style="dim"), (1, 0))
    yield _line(Text("verdict"), "target", *FIGURES)
    for each in assessments:
        if each.verdict is not Verdict.UNKNOWN:
            yield _line(_verdict(each.verdict), each.target.what, *target_cells(each))
            yield Padding(Text(target_notes(each), style="dim"), (0, 0, 0, _VERDICT_WIDTH + 1))
    yield Padding(Text(total(assessments), style="bold"), (1, 0, 0, 0))
    unknown = [each.target for each in assessments if each.verdict is Verdict.UNKNOWN]
    if unknown:
        rivals = {target.what: list[str]() for target in unknown}
        for target in unknown:
            rivals[target.what].append(target.rival)
        names = "; ".join(f"{what} ({', '.join(each)})" for what, each in rivals.items())
        yield Text(f"{SYMBOLS[Verdict.UNKNOWN]} {Verdict.UNKNOWN.value}: {names}", style="dim")


def total(assessments: Sequence[Assessment]) -> str:
    """How many targets are met, in words."""
    met, unknown = (
        sum(each.verdict is verdict for each in assessments)
        for verdict in (Verdict.MET, Verdict.UNKNOWN)
    )
    left = f"; {unknown} more not measured" if unknown else ""
    return f"{met} of {len(assessments) - unknown} met in every case{left}"


def _line(verdict: Text, what: str, *cells: str) -> Table:
    line = Table.grid(padding=(0, 1, 0, 0), expand=True)
    line.add_column(width=_VERDICT_WIDTH)
    line.add_column(ratio=1)
    for width in (13, 7, 7, 7):
        line.add_column(width=width, justify="right")
    line.add_row(verdict, Text(what), *cells)
    return line


def target_cells(each: Assessment) -> tuple[str, ...]:
    """A target's bound and how it stands to it, in words."""
    target = each.target
    bound = f"{target.rival} {'≥' if target.at_least else '≤'} {target.bound:g}×"
    return bound, *(times(value) for value in (each.median, each.worst, each.fresh))


def target_notes(each: Assessment) -> str:
    """How many cases there were, and which was the worst."""
    if each.count < 2:
        return each.worst_case or "no case"
    return f"{each.count} cases, worst at {each.worst_case}"


def _verdict(verdict: Verdict) -> Text:
    return Text(f"{SYMBOLS[verdict]} {verdict.value}", style=_COLOURS[verdict])


def _provenance(record: Record) -> Iterator[RenderableType]:
    yield _heading("The run")
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in record.provenance.items():
        grid.add_row(Text(name, style="dim"), Text(value))
    yield grid


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for name in left:
        table.add_column(Text(name), overflow="fold")
    for name in right:
        table.add_column(Text(name), justify="right", overflow="fold")
    return table


def _heading(title: str) -> RenderableType:
    return Padding(Rule(Text(title, style="bold"), align="left", style="dim"), (1, 0, 0, 0))


def times(value: float | None) -> str:
    """A ratio: 3.14×."""
    return MISSING if value is None else f"{value:,.2f}×"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: 412 µs, 7.31 ms, 2.15 s."""
    for unit, scale in (("µs", 1e6), ("ms", 1e3)):
        if round(seconds * scale, 1) < 1000:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"
