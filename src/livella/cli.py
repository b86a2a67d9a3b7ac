"""The command line: each command calls one public function and shows what came of it.

It imports what it runs when it runs: help, versions and errors in arguments do without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer

import livella
from livella.diagnosis.asked import Asked
from livella.diagnosis.records import Level
from livella.study import request
from livella.study.errors import StudyError

if TYPE_CHECKING:
    from torch import nn

    from livella.bench import Record


class Format(str, Enum):
    """How an inspection is told."""

    TEXT = "text"
    HTML = "html"
    JSON = "json"
    SARIF = "sarif"


class FailOn(str, Enum):
    """From which level on findings make the command fail."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"
    NEVER = "never"


app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Batch normalization for PyTorch, done completely.",
)

TRIALS_KEPT = "finished trials are kept, and the same command goes on"
NOTHING_CHANGED = "nothing was changed"
NOTHING_MEASURED = "nothing was measured"
INTERRUPTED = 130
"""The exit code of a program ended by Ctrl-C, by the convention of shells."""


def _show_version(wanted: bool) -> None:
    if wanted:
        versions = f"livella {metadata.version('livella')}, torch {_version_of_torch()}"
        built = Path(__file__).with_name("_kernels.so").exists()
        print(f"{versions}, kernels: {'built' if built else 'not built'}")
        raise typer.Exit


def _version_of_torch() -> str:
    """As its installation says, which a build from source may not."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "of unknown version"


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Versions, and whether kernels were built.",
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
        from rich.console import Console

        from livella import report
        from livella.report import text

        request.check(claims or (), seeds=seeds, jobs=jobs, steps=steps)  # torch is not loaded yet
        if model is not None:
            request.place_of(model, "a torch.nn.Module")
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
    with _told_in_one_line(interrupted=NOTHING_MEASURED):
        request.check((), threads=threads, runs=runs)  # torch is not loaded yet
        from livella import bench as benchmark

        with _told_in_one_line(benchmark.BenchError, interrupted=NOTHING_MEASURED):
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


def _show_bench(record: Record, path: Path) -> None:
    from rich.console import Console

    from livella import bench as benchmark

    benchmark.show(record, Console())
    page = benchmark.write_page(record, path.with_suffix(".html"))
    print(f"\nThe rows: {path}\nThe page: {page}")


_MODEL = typer.Argument(
    metavar="MODEL", help="module:function or file.py:function returning a torch.nn.Module."
)
_WEIGHTS = typer.Option(help="safetensors, or a checkpoint of tensors; no code in it is run.")
_DATA = typer.Option(
    help="module:function or file.py:function returning a loader of training batches; without "
    "it, what is stored is read."
)
_DEPLOY = typer.Option(help="Likewise, of the data met in use, to compare with.")
_LOSS = typer.Option(
    metavar="SPEC", help="module:function or file.py:function, the loss of an output and a batch."
)
_TARGET = typer.Option(
    metavar="KEY|INDEX|none|SPEC",
    help="The labels in a batch: key, index, none for no labels, or a function that gives them.",
)
_FORWARD = typer.Option(
    metavar="SPEC", help="Likewise a function, called with model and batch in place of the model."
)
_IGNORE = typer.Option(
    metavar="CHECK[@LAYER]",
    help="Findings to show and not to count; again for more. * in LAYER stands for anything. Also "
    "in pyproject.toml: [tool.livella] ignore = [...].",
)


@app.command()
def inspect(
    model: Annotated[str, _MODEL],
    weights: Annotated[Optional[Path], _WEIGHTS] = None,  # noqa: UP045 - Typer reads it
    data: Annotated[Optional[str], _DATA] = None,  # noqa: UP045
    deploy_data: Annotated[Optional[str], _DEPLOY] = None,  # noqa: UP045
    loss: Annotated[Optional[str], _LOSS] = None,  # noqa: UP045
    target: Annotated[Optional[str], _TARGET] = None,  # noqa: UP045
    forward: Annotated[Optional[str], _FORWARD] = None,  # noqa: UP045
    ignore: Annotated[Optional[list[str]], _IGNORE] = None,  # noqa: UP045
    form: Annotated[
        Format, typer.Option("--format", help="How to say it.", case_sensitive=False)
    ] = Format.TEXT,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file to write to; by default the terminal."),
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option(help="Exit with 1 at a finding of this level or above.")
    ] = FailOn.ERROR,
) -> None:
    """Name the normalization layers that are wrong, why, what they cost, and what to do."""
    asked = Asked(model, weights, data, deploy_data, loss, target, forward, tuple(ignore or ()))
    with _told_in_one_line(interrupted=NOTHING_CHANGED):
        asked.check(out)  # torch is not loaded yet
        from livella.diagnosis import loading

        with _told_in_one_line(loading.LoadError, interrupted=NOTHING_CHANGED):
            loaded, batches, options = _loaded(asked)
            with loading.failures_told(f"{model} could not be inspected"):
                found = livella.inspect(loaded, batches, **options)
            _put(found, form, out, asked)
    if fail_on is not FailOn.NEVER and found.worst is not None:
        raise typer.Exit(int(found.worst.rank >= Level(fail_on.value).rank))


@app.command()
def repair(
    model: Annotated[str, _MODEL],
    data: Annotated[
        str, typer.Option(help="Likewise a function returning a loader of training batches.")
    ],
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    weights: Annotated[Optional[Path], _WEIGHTS] = None,  # noqa: UP045
    deploy_data: Annotated[Optional[str], _DEPLOY] = None,  # noqa: UP045
    loss: Annotated[Optional[str], _LOSS] = None,  # noqa: UP045
    target: Annotated[Optional[str], _TARGET] = None,  # noqa: UP045
    forward: Annotated[Optional[str], _FORWARD] = None,  # noqa: UP045
    ignore: Annotated[Optional[list[str]], _IGNORE] = None,  # noqa: UP045
    changing: Annotated[
        bool, typer.Option("--changing", help="Also what changes the function, by intent.")
    ] = False,
    page: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A page to write, with what was seen before and after."),
    ] = None,
) -> None:
    """Mend what can be mended without training, prove it, and write the weights.

    Exits with 1 where a gap stays, and where the network got worse: then no weights are written.
    """
    asked = Asked(model, weights, data, deploy_data, loss, target, forward, tuple(ignore or ()))
    with _told_in_one_line(interrupted=NOTHING_CHANGED):
        asked.check(out, page)  # torch is not loaded yet
        from rich.console import Console

        from livella.diagnosis import loading
        from livella.report import files, inspection_text

        with _told_in_one_line(loading.LoadError, interrupted=NOTHING_CHANGED):
            loaded, batches, options = _loaded(asked)
            assert batches is not None, "data is no option"
            with loading.failures_told(f"{model} could not be repaired"):
                done = livella.repair(loaded, batches, changing=changing, **options)
            after = done.after if done.applied else None
            inspection_text.show_scores(done.before, after, Console())
            print(done.done)
            if page is not None:
                files.replace(page, done.to_html())
            if done.worse:
                _end(f"refused to write what got worse: {done.worse}", 1)
            path = done.write(out)
    print(f"\nThe weights: {path}")
    if done.left:
        _end(f"a gap stays: {done.left}", 1)


def _loaded(asked: Asked) -> tuple[nn.Module, Iterable[Any] | None, dict[str, Any]]:
    from livella.diagnosis import loading

    model, batches, options = asked.load()
    if asked.weights is not None:
        account = loading.load_weights(model, asked.weights)
        print(f"{asked.weights}: {account}", file=sys.stderr)
    model.eval()
    return model, batches, options


def _put(found: livella.Inspection, form: Format, out: Path | None, asked: Asked) -> None:
    from livella.report import files, inspection_html, inspection_text

    if form is Format.TEXT and out is None:
        from rich.console import Console

        inspection_text.show(found, Console(), asked.repair())
        return
    if form is Format.SARIF:
        place = asked.model.rpartition(":")[0]
        written = found.to_sarif(place if place.endswith(".py") else "")
    elif form is Format.TEXT:
        written = f"{inspection_text.plain(found, asked.repair())}\n"
    elif form is Format.HTML:
        written = inspection_html.render(found, command=asked.repair())
    else:
        written = found.to_json()
    if out is None:
        print(written, end="")
    else:
        files.replace(out, written)
        print(f"written to {out}", file=sys.stderr)


@contextmanager
def _told_in_one_line(*mendable: type[Exception], interrupted: str = TRIALS_KEPT) -> Iterator[None]:
    """What the user can mend becomes one line on stderr and exit code 2, without a traceback."""
    expected: tuple[type[Exception], ...] = (StudyError, OSError, *mendable)
    try:
        yield
    except KeyboardInterrupt:
        _end(f"interrupted; {interrupted}", INTERRUPTED)
    except expected as error:
        _end(str(error), 2)


def _end(message: str, code: int) -> NoReturn:
    print("livella:", " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line."""
    app()
