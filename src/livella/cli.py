"""The command line: each command calls one public function and shows what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import torch
import typer
from rich.console import Console

import livella
from livella import bench as benchmark
from livella import native, report
from livella.report import text

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Batch normalization for PyTorch, done completely.",
)

INTERRUPTED = 130
"""The exit code of a program ended by Ctrl-C, by the convention of shells."""


def _show_version(wanted: bool) -> None:
    if wanted:
        versions = f"livella {metadata.version('livella')}, torch {torch.__version__}"
        print(f"{versions}, kernels: {native.path()}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Versions and the path in use."
        ),
    ] = False,
) -> None:
    """Batch normalization for PyTorch, done completely."""


@app.command()
def study(
    claims: Annotated[
        Optional[list[str]],  # noqa: UP045 - Typer reads it at run time
        typer.Argument(metavar="[CLAIM …]", help="Claims to try; all where none is named."),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="digits, fashion-mnist, japanese-vowels, idx:DIR, or module:function or "
            "file.py:function returning (train, test) or (train, validation, test) loaders."
        ),
    ] = "digits",
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="module:function or file.py:function returning a network with normalization "
            "layers; without it, small networks of the study's own."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions of every training.")] = 5,
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Processes to train in; by default the processors there are."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder for the trials, report.json and report.html.")
    ] = Path("livella-study"),
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Training steps of a trial, in place of each claim's own budget."),
    ] = None,
) -> None:
    """Measure what normalization buys a network, claim by claim of the literature.

    Finished trials are kept in the folder: the same command goes on where it was stopped, and
    draws the report again at once where nothing is missing.
    """
    with _told_in_one_line():
        result = livella.study(
            claims or (), data=data, model=model, seeds=seeds, jobs=jobs, out=out, steps=steps
        )
        text.show(result, Console())
        page = report.write(result, out)
    print(f"\nThe page: {page}")


@app.command()
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="A minute's worth, without torch.compile.")
    ] = False,
    models: Annotated[
        bool,
        typer.Option(
            "--models", help="Whole training steps as well; with --only step nothing else."
        ),
    ] = False,
    only: Annotated[
        str,
        typer.Option(
            help='Words that the name of a case must hold: "backward relu 56x56 bfloat16".'
        ),
    ] = "",
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Threads to measure with; by default those that torch has."),
    ] = None,
    runs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Rounds of every case, in place of as many as steady figures take."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure torch.compile in some cases.")
    ] = True,
    compiled_models: Annotated[
        bool, typer.Option("--compile-models", help="And in training steps: minutes to build.")
    ] = False,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="The folder for rows and page; by default benchmarks/results in a checkout of "
            "Livella, else livella-bench."
        ),
    ] = None,
    render: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Measure nothing; show the rows of this file again."),
    ] = None,
) -> None:
    """Measure batch normalization on this machine: ours, torch's, and what memory allows.

    All contenders are called in turn in one process. Ctrl-C ends it and keeps what was measured.
    """
    with _told_in_one_line():
        if render is not None:
            _show_bench(benchmark.read(render), render)
            return
        asked = benchmark.plan(
            quick=quick,
            models=models,
            only=only,
            threads=threads,
            runs=runs,
            compiled=compiled,
            compiled_steps=compiled_models,
        )
        print(asked.describe(), file=sys.stderr)
        result = benchmark.bench(asked, out)
        if result.record.measured:
            _show_bench(result.record, result.path)
    for note in result.notes:
        print("note:", note)
    if result.interrupted:
        kept = f"the rows so far are in {result.path}" if result.record.measured else "no row yet"
        _end(f"interrupted; {kept}", INTERRUPTED)


def _show_bench(record: benchmark.Record, path: Path) -> None:
    benchmark.show(record, Console())
    page = benchmark.write_page(record, path.with_suffix(".html"))
    print(f"\nThe rows: {path}\nThe page: {page}")


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """What the user can mend becomes one line on stderr and exit code 2, without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _end("interrupted; finished trials are kept, and the same command goes on", INTERRUPTED)
    except (livella.StudyError, benchmark.BenchError, OSError) as error:
        _end(str(error), 2)


def _end(message: str, code: int) -> NoReturn:
    print("livella:", " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line."""
    app()
