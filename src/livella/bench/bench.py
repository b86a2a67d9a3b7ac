"""A run of measurements: what is asked → rows on disk, one by one."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from livella import native, provenance
from livella.bench import contenders, measure, memory, rows, training
from livella.bench.cases import Case, Setting
from livella.bench.measure import Timing
from livella.bench.plan import BUILDING, Plan, memory_kinds
from livella.bench.rows import Record, Row, StepRow
from livella.bench.table import MISSING

Write = Callable[[Row | StepRow], None]

_QUIET = 0.5
"""A load from which other programs take a share that shows."""


@dataclass(frozen=True)
class Result:
    """What a run measured, and where its rows are."""

    record: Record
    path: Path
    notes: tuple[str, ...] = ()
    interrupted: bool = False


def bench(asked: Plan, out: Path | None = None, *, progress: bool = True) -> Result:
    """Measure what is planned on this machine, all contenders in this process.

    Rows are on disk as they come in; an interrupt ends the run and keeps them.

    Args:
        asked: what to measure.
        out: the folder for the file of rows. Default: `benchmarks/results` inside a checkout of
            Livella, `livella-bench` elsewhere.
        progress: whether to show a progress bar on a terminal.

    Raises:
        OSError: the folder cannot be written.

    """
    with _threads(asked.threads), _bar(progress) as bar:
        record = Record(_provenance())
        path = rows.free_path(out or default_directory(), record.provenance)
        run = _Run(asked, record, bar, bar.add_task("", total=asked.seconds()))
        try:
            with rows.writing(path, record.provenance) as write:
                run.all(write)
        except KeyboardInterrupt:
            return Result(record, path, tuple(run.notes), interrupted=True)
    return Result(record, path, tuple(run.notes))


def default_directory() -> Path:
    """Where rows go: among those of the project inside a checkout of it, else a folder here."""
    checkout = provenance.checkout()
    if checkout is not None and Path.cwd().is_relative_to(checkout):
        return checkout / "benchmarks" / "results"
    return Path("livella-bench")


class _Run:
    """One run, as far as it has come."""

    def __init__(self, asked: Plan, record: Record, bar: Progress, task: TaskID) -> None:
        self.asked, self.record, self.notes = asked, record, list(_caveats())
        self._bar, self._task = bar, task

    def all(self, write: Write) -> None:
        # Steps first, while memory is still allocated as in a user's training.
        measured: Iterator[Row | StepRow] = itertools.chain(self._steps(), self._cases())
        for row in measured:
            self.record.add(row)
            write(row)

    def _steps(self) -> Iterator[StepRow]:
        who = training.contenders(compiled=self.asked.compiled_steps)
        for step in self.asked.steps:
            self._now(str(step))
            for row in training.measure(step, who, self.asked.runs):
                if row.peak is None:
                    self.notes.append(f"{step}: no peak memory of {row.contender} {row.layout}")
                yield row
            self._done(self.asked.step_seconds(step))

    def _cases(self) -> Iterator[Row]:
        for setting, group in itertools.groupby(self.asked.cases, lambda case: case.setting):
            tensors = contenders.Tensors.of(setting)
            functions = contenders.norms(setting) | self._compiled(setting, tensors)
            for case in group:
                self._now(str(case))
                for kind in memory_kinds(setting):
                    calls = contenders.calls(case, tensors, functions)
                    with memory.of_kind(kind) as renew:
                        timings = measure.interleaved(calls, self.asked.runs, renew=renew)
                    yield from _rows(case, kind, timings)
                self._done(self.asked.case_seconds(case))

    def _compiled(
        self, setting: Setting, tensors: contenders.Tensors
    ) -> dict[str, contenders.Norm]:
        if not (self.asked.compiled and setting.compiled):
            return {}
        self._now(f"compiling {setting.fusion} {setting}")
        try:
            return {contenders.COMPILE: contenders.compiled(setting, tensors)}
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).partition("\n")[0]
            self.notes.append(f"torch.compile cannot build {setting.fusion} {setting}: {reason}")
            return {}
        finally:
            self._done(BUILDING)

    def _now(self, what: str) -> None:
        self._bar.update(self._task, description=what, refresh=True)

    def _done(self, seconds: float) -> None:
        self._bar.advance(self._task, seconds)


def _rows(case: Case, kind: str, timings: dict[str, Timing]) -> Iterable[Row]:
    ours, limit = timings[contenders.OURS].seconds, timings[contenders.LIMIT].seconds
    for name, timing in timings.items():
        yield Row(
            case=case,
            contender=name,
            memory=kind,
            seconds=_digits(measure.percentile(timing.seconds, 50)),
            p20=_digits(measure.percentile(timing.seconds, 20)),
            p80=_digits(measure.percentile(timing.seconds, 80)),
            rounds=len(timing.seconds),
            faults=_digits(timing.faults),
            to_limit=_digits(measure.ratio(timing.seconds, limit)),
            to_ours=_digits(measure.ratio(timing.seconds, ours)),
        )


def _digits(value: float) -> float:
    """As many as mean something."""
    return float(f"{value:.4g}")


def _provenance() -> dict[str, str]:
    limit = "non-temporal stores" if native.loaded else "torch's copy_ and add"
    return {
        **provenance.of_run(torch.get_num_threads()),
        "platform": platform.platform(),
        "kernels": native.path(),
        "limit": limit,
        "huge pages": _huge_pages(),
        "load before": MISSING if (load := _load()) is None else f"{load:.2f}",
    }


def _caveats() -> Iterator[str]:
    load = _load()
    if load is not None and load > _QUIET:
        yield f"the load here was {load:.2f} before the run: other work shows in the figures"


def _load() -> float | None:
    """How many programs ran in the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _huge_pages() -> str:
    """Linux's setting, which decides what a fresh page costs; the word in brackets is chosen."""
    try:
        words = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return MISSING
    return words.partition("[")[2].partition("]")[0]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _bar(shown: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        BarColumn(20),
        TextColumn("{task.percentage:>3.0f} %  left:"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        disable=not (shown and console.is_interactive),
        transient=True,
        auto_refresh=False,  # no other thread may run while something is measured
    )
