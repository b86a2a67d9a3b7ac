"""The command line: each command calls one public function and shows what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer
from rich.console import Console

import livella
from livella import report
from livella.report import text

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Batch normalization for PyTorch, done completely.",
)

INTERRUPTED = 130
"""The exit code of a program ended by Ctrl-C, by the convention of shells."""


@app.callback()
def _root() -> None:
    """Keeps `study` a command of its own while it is the only one."""


@app.command()
def study(
    claims: Annotated[
        Optional[list[str]],  # noqa: UP045 - Typer reads it at run time
        typer.Argument(metavar="[CLAIM …]", help="Claims to try; all where none is named."),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="digits, fashion-mnist, idx:DIR, or module:function or file.py:function "
            "returning (train, test) or (train, validation, test) loaders."
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


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """What the user can mend becomes one line on stderr and exit code 2, without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _end("interrupted; finished trials are kept, and the same command goes on", INTERRUPTED)
    except (livella.StudyError, OSError) as error:
        _end(str(error), 2)


def _end(message: str, code: int) -> NoReturn:
    print("livella:", " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line."""
    app()
