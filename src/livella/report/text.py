"""A study on the terminal: the verdicts at a glance, then each claim's numbers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from itertools import chain

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table as Grid
from rich.text import Text

from livella.report import wording
from livella.study.results import ClaimResult, Estimate, Finding, StudyResult, Table, Verdict

_COLOURS = {
    Verdict.CONFIRMED: "green",
    Verdict.NOT_SEEN: "yellow",
    Verdict.CONTRADICTED: "red",
    Verdict.INCONCLUSIVE: "cyan",
}
_WIDEST = 110  # past this a line is hard to follow
_VERDICT_WIDTH = 2 + max(len(verdict.value) for verdict in Verdict)


def show(result: StudyResult, console: Console) -> None:
    """Print the study on a console."""
    console.print(render(result))


def render(result: StudyResult) -> RenderableType:
    """The whole study as one Rich renderable, whose verdicts read without colour."""
    parts = chain(_asked(result), _glance(result), _claims(result), _rest(result))
    return Constrain(Group(*parts), _WIDEST)


def _asked(result: StudyResult) -> Iterator[RenderableType]:
    yield facts(
        ("data", safe(result.data)),
        ("model", safe(result.model)),
        ("seeds", safe(str(result.seeds))),
    )


def _glance(result: StudyResult) -> Iterator[RenderableType]:
    yield heading("The verdicts at a glance")
    if not result.claims:
        yield safe("No claim was run.")
    for claim in result.claims:
        grid = Grid.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(width=_VERDICT_WIDTH)
        grid.add_column(ratio=1)
        for finding in claim.findings:
            grid.add_row(_verdict(finding.verdict), _at_a_glance(finding))
        yield Padding(Group(safe(claim.title, "bold"), grid), (1, 0, 0, 0))


def _at_a_glance(finding: Finding) -> RenderableType:
    line = Grid.grid(padding=(0, 2, 0, 0), expand=True)
    line.add_column(ratio=1)
    line.add_column(justify="right", no_wrap=True)
    line.add_row(safe(finding.question), _effect(finding))
    return Group(line, safe(finding.summary, "dim"))


def _claims(result: StudyResult) -> Iterator[RenderableType]:
    for claim in result.claims:
        yield heading(claim.title)
        yield safe(claim.question, "italic")
        yield Padding(_table(claim.table), (1, 0))
        yield _beside_the_papers(claim)


def _beside_the_papers(claim: ClaimResult) -> RenderableType:
    ours = (
        ("here", Text.assemble(_effect(finding), "  ", safe(finding.effect_name)))
        for finding in claim.findings
    )
    papers = (
        ("paper", Text.assemble(safe(paper.finding), " ", safe(f"({paper.source})", "dim")))
        for paper in claim.papers
    )
    return facts(*ours, *papers)


def _table(table: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(table.columns):
        grid.add_column(safe(column), justify="right" if index else "left", overflow="fold")
    for name, cells in table.rows:
        grid.add_row(safe(name), *(_cell(cell) for cell in cells))
    return grid


def _cell(cell: Estimate | str | None) -> Text:
    if cell is None:
        return safe(wording.MISSING, "dim")
    if isinstance(cell, str):
        return safe(cell)
    median, interval = wording.estimate(cell)
    return Text.assemble(median, " " if interval else "", (interval, "dim"))


def _rest(result: StudyResult) -> Iterator[RenderableType]:
    if result.left_out:
        yield heading("Left out")
        yield facts(*((claim.name, safe(claim.reason)) for claim in result.left_out))
    if result.notes:
        yield heading("Notes")
        yield facts(*(("•", safe(note)) for note in result.notes))
    computing = wording.duration(result.computed)
    yield heading("The run")
    yield facts(
        ("trials", safe(f"{result.trials_run:,} run, {result.trials_reused:,} reused")),
        (
            "time",
            safe(f"{wording.duration(result.seconds)} here, {computing} of computing in all"),
        ),
        *((name, safe(value)) for name, value in result.provenance.items()),
    )


def heading(title: str) -> RenderableType:
    """Draw a title with a rule."""
    return Padding(Rule(safe(title, "bold"), align="left", style="dim"), (1, 0, 0, 0))


def facts(*named: tuple[str, Text]) -> Grid:
    """Draw names with what is to be said of them."""
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(ratio=1)
    for name, value in named:
        grid.add_row(safe(name, "dim"), value)
    return grid


def _verdict(verdict: Verdict) -> Text:
    return Text(f"{wording.SYMBOLS[verdict]} {verdict.value}", style=f"bold {_COLOURS[verdict]}")


def _effect(finding: Finding) -> Text:
    if finding.effect is None or math.isnan(finding.effect.median):
        return safe("no number", "dim")
    return safe(str(wording.estimate(finding.effect, finding.unit)), "bold")


def safe(text: str, style: str = "") -> Text:
    """The text as it stands: no markup is read in it, and no escape sequence survives."""
    return Text("".join("�" if _controls(character) else character for character in text), style)


def _controls(character: str) -> bool:
    return character != "\n" and unicodedata.category(character) in {"Cc", "Cf", "Cs"}
