"""What was measured, as records and as JSON lines; the table and the plot know nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from livella.bench.cases import Case, Fusion, Setting
from livella.bench.errors import BenchError

FORMAT = "livella-bench-1"
"""Stands in a file's first line; to be changed with the meaning of the rows."""


@dataclass(frozen=True)
class Row:
    """A contender's time for one case."""

    case: Case
    contender: str
    memory: str
    """Where its results lay: a kind of `livella.bench.memory`."""
    seconds: float
    """Of a call, the median over rounds."""
    p20: float
    p80: float
    rounds: int
    faults: float
    """Page faults a call."""
    to_limit: float
    """Its time to the limit's in the same round, the median over rounds."""
    to_ours: float
    """Its time to ours, likewise."""


@dataclass(frozen=True)
class Step:
    """One training step: forward, cross-entropy, backward and SGD with momentum."""

    network: str
    batch: int
    size: int
    """Pixels along each side of an image."""

    def __str__(self) -> str:
        return f"step {self.network} {self.batch}x3x{self.size}x{self.size}"


@dataclass(frozen=True)
class StepRow:
    """A contender's time and memory for a training step."""

    step: Step
    contender: str
    layout: str
    seconds: tuple[float, ...]
    """Of each round; rounds of the same step were interleaved."""
    peak: float | None
    """The most memory that a process of its own took for two steps, in MB."""


@dataclass
class Record:
    """All rows of a run, and where they come from."""

    provenance: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """Whether there is any row."""
        return bool(self.rows or self.steps)

    def add(self, row: Row | StepRow) -> None:
        if isinstance(row, Row):
            self.rows.append(row)
        else:
            self.steps.append(row)


@contextmanager
def writing(path: Path, provenance: dict[str, str]) -> Iterator[Callable[[Row | StepRow], None]]:
    """Give a function that writes a row; the file takes its name when all are in.

    Rows go to disk one by one beside it, and are kept if the run is broken off. A file without
    rows does not stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    written = 0
    with beside.open("w", encoding="utf-8", newline="\n") as file:

        def write(values: Mapping[str, Any]) -> None:
            file.write(json.dumps(values, allow_nan=False) + "\n")
            file.flush()

        def write_row(row: Row | StepRow) -> None:
            nonlocal written
            write(to_dict(row))
            written += 1

        try:
            write({"format": FORMAT, "provenance": provenance})
            yield write_row
        finally:
            if written:
                beside.replace(path)
            else:
                beside.unlink()


def free_path(directory: Path, provenance: Mapping[str, str]) -> Path:
    """A file's name from date and machine; a second one on that day is numbered."""
    machine = re.sub(r"[^a-z0-9]+", "-", provenance["processor"].lower()).strip("-")
    name = f"{provenance['date'][:10]}-{machine}-{provenance['threads']}-threads"
    path, number = directory / f"{name}.jsonl", 1
    while path.exists():
        number += 1
        path = directory / f"{name}-{number}.jsonl"
    return path


def read(path: Path) -> Record:
    """The record of a file.

    Raises:
        BenchError: it is no such file.
        OSError: it cannot be read.
    """
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        first = json.loads(head)
        if first["format"] != FORMAT:
            raise ValueError(f"its format is {first['format']!r}, expected {FORMAT!r}")
        record = Record(dict(first["provenance"]))
        for line in lines:
            record.add(from_dict(json.loads(line)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{str(path)!r} is no file of livella bench ({type(error).__name__}: {error}); "
            "name a .jsonl file that it wrote"
        ) from error
    return record


def to_dict(row: Row | StepRow) -> dict[str, Any]:
    """A row as JSON-ready values, the case's beside the others."""
    values = asdict(row)
    if isinstance(row, StepRow):
        return {"kind": "step", **values.pop("step"), **values}
    case = values.pop("case")
    setting = case.pop("setting")
    return {"kind": "kernel", **case, **setting.pop("fusion"), **setting, **values}


def from_dict(values: dict[str, Any]) -> Row | StepRow:
    """The row again; raises KeyError or TypeError for what is none."""
    values = dict(values)
    kind = values.pop("kind")

    def take(*names: str) -> dict[str, Any]:
        return {name: values.pop(name) for name in names}

    if kind == "step":
        step = Step(**take("network", "batch", "size"))
        return StepRow(step, seconds=tuple(values.pop("seconds")), **values)
    if kind != "kernel":
        raise ValueError(f"a row of kind {kind!r}, expected 'kernel' or 'step'")
    fusion = Fusion(**take("activation", "residual"))
    shape = tuple(values.pop("shape"))
    setting = Setting(shape, fusion=fusion, **take("layout", "dtype"))
    return Row(Case(values.pop("operation"), setting), **values)
