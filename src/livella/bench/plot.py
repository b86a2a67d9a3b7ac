"""The distance to the limit as a page of dots, which needs no script and no other file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from livella.bench import table
from livella.bench.cases import Case
from livella.bench.contenders import COMPILE, EAGER, LIMIT, OURS
from livella.bench.rows import Record
from livella.bench.table import Measured, by_case, by_kind
from livella.bench.targets import Assessment, assess
from livella.report.colours import DARK, LIGHT

_LOOKS = {COMPILE: "compile", EAGER: "eager", OURS: "ours"}
"""In the order in which they are drawn: ours on top."""


@dataclass(frozen=True)
class Scale:
    """A logarithmic scale: where along it, in percent, a multiple of the limit lies."""

    low: float
    high: float

    @classmethod
    def over(cls, ratios: Sequence[float]) -> Scale:
        """One that holds the limit and all ratios, with a little room on both sides."""
        return cls(min([1.0, *ratios]) / 1.15, max([2.0, *ratios]) * 1.15)

    def at(self, ratio: float) -> float:
        return round(100 * math.log(ratio / self.low) / math.log(self.high / self.low), 2)

    def ticks(self) -> Iterator[dict[str, Any]]:
        """At 1, 2 and 5 of each power of ten, or at the powers alone where these are many."""
        digits = (1, 2, 5) if self.high / self.low < 200 else (1,)
        for power in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))):
            for value in (float(f"{digit}e{power}") for digit in digits):
                if self.low < value < self.high:
                    yield {"at": self.at(value), "text": f"{value:,g}"}


def write_page(record: Record, path: Path) -> Path:
    """Write the page, whole or not at all, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(render(record), encoding="utf-8", newline="\n")
    return beside.replace(path)


def render(record: Record) -> str:
    """The record as one HTML page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    scale = Scale.over([row.to_limit for row in record.rows])
    measured = by_case(record)
    panels = [_panel(kind, cases, measured, scale) for kind, cases in by_kind(measured)]
    assessments = assess(record)
    steps = [table.step_cells(record, row) for row in record.steps]
    return environment.get_template("page.html").render(
        provenance=record.provenance,
        total=table.total(assessments),
        legend=table.TARGETS_LEGEND,
        figures=table.FIGURES,
        targets=[_target(each) for each in assessments],
        steps=steps,
        panels=panels,
        ticks=list(scale.ticks()),
        light=LIGHT,
        dark=DARK,
    )


def _target(each: Assessment) -> dict[str, Any]:
    return {
        "verdict": each.verdict.value,
        "symbol": table.SYMBOLS[each.verdict],
        "what": each.target.what,
        "notes": table.target_notes(each),
        "cells": list(zip(table.FIGURES, table.target_cells(each), strict=True)),
    }


def _panel(
    kind: str, cases: list[Case], measured: dict[Case, Measured], scale: Scale
) -> dict[str, Any]:
    return {"kind": kind, "rows": [_row(case, measured[case], scale) for case in cases]}


def _row(case: Case, rows: Measured, scale: Scale) -> dict[str, Any]:
    return {
        "name": case.setting.short,
        "lines": list(_lines(rows, scale)),
        "dots": list(_dots(rows, scale)),
        "ours": table.DISTANCE.cell(rows),
        "eager": table.SPEED.cell(rows),
    }


def _lines(rows: Measured, scale: Scale) -> Iterator[dict[str, Any]]:
    """From the fastest to the slowest in the same memory."""
    for fresh in (False, True):
        found = [
            row.to_limit for (name, kind), row in rows.items() if name != LIMIT and kind == fresh
        ]
        if found:
            yield {"fresh": fresh, "at": scale.at(min(found)), "to": scale.at(max(found))}


def _dots(rows: Measured, scale: Scale) -> Iterator[dict[str, Any]]:
    for name, look in _LOOKS.items():
        for fresh in (False, True):
            row = rows.get((name, fresh))
            if row is not None:
                yield {
                    "look": f"{look} fresh" if fresh else look,
                    "at": scale.at(row.to_limit),
                    "title": f"{name}, {row.memory}: {table.duration(row.seconds)}, "
                    f"{table.times(row.to_limit)} the limit",
                }
