"""Runs the trials that are still missing, in parallel, and saves each as it finishes."""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import joblib

from livella import provenance
from livella.study import sources, trial
from livella.study.claim import Claim, Done, Scope
from livella.study.errors import StudyError
from livella.study.store import Row
from livella.study.trial import Outcome, Trial

if TYPE_CHECKING:
    from rich.progress import Progress

Save = Callable[[Row], None]


class _AnyOutcome(dict[Trial, Outcome]):
    """As if every trial were finished: asks a plan how many there will be, whatever comes out."""

    def __missing__(self, key: Trial) -> Outcome:
        return Outcome()

    def __contains__(self, key: object) -> bool:
        return True


def wanted(claims: Sequence[Claim], scope: Scope, done: Done) -> list[Trial]:
    """The trials that the claims ask for, each once."""
    return list(dict.fromkeys(t for claim in claims for t in claim.plan(scope, done)))


def run(
    claims: Sequence[Claim],
    scope: Scope,
    rows: dict[Trial, Row],
    save: Save,
    jobs: int,
    progress: bool,
) -> int:
    """Run what is missing until the claims want nothing more; returns how many trials ran.

    Each row is added to `rows` as it comes in and, unless its trial failed, saved: a failed
    trial is not finished, and the next run tries it again. On an interrupt the workers are
    stopped, and what has finished is already saved.
    """
    ran = 0
    expected = sum(map(_cost, wanted(claims, scope, _AnyOutcome())))
    with _bar(progress) as bar:
        task = bar.add_task("training", total=expected, trials=0)
        while missing := _missing(claims, scope, rows, lambda n: bar.update(task, completed=n)):
            with contextlib.closing(_in_parallel(missing, jobs)) as finished:
                for row in finished:
                    rows[row.trial] = row
                    if not row.outcome.error:
                        save(row)
                    ran += 1
                    bar.update(task, advance=_cost(row.trial), trials=ran)
        bar.update(task, completed=expected)
    return ran


def _missing(
    claims: Sequence[Claim], scope: Scope, rows: dict[Trial, Row], tell: Callable[[float], None]
) -> list[Trial]:
    """The trials to run now, the longest first so that the processes end together."""
    now = wanted(claims, scope, outcomes(rows))
    tell(sum(_cost(one) for one in now if one in rows))
    return sorted((one for one in now if one not in rows), key=_cost, reverse=True)


def outcomes(rows: dict[Trial, Row]) -> dict[Trial, Outcome]:
    return {key: row.outcome for key, row in rows.items()}


def _cost(one: Trial) -> float:
    """A guess at the time of a trial in arbitrary units, to tell the time left."""
    return (one.steps + 10) * (1 + one.network.depth)


def _bar(shown: bool) -> Progress:
    # Imported here, for the processes that train show nothing.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[trials]} trials, left:"),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_interactive),  # elsewhere it would print an empty line
        transient=True,
    )


def _in_parallel(trials: Sequence[Trial], jobs: int) -> Generator[Row, None, None]:
    """Rows in the order in which they finish."""
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
    with _quiet_workers():
        rows = parallel(joblib.delayed(run_trial)(t) for t in trials)
    try:
        for row in rows:  # noqa: UP028 - `yield from` would close joblib's with its warnings
            yield row
    except joblib.externals.loky.process_executor.TerminatedWorkerError as error:
        raise StudyError(
            "a worker process was killed, perhaps for want of memory: run again with fewer --jobs; "
            "finished trials are kept"
        ) from error
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib tells of trials not waited for
            rows.close()


@contextlib.contextmanager
def _quiet_workers() -> Iterator[None]:
    """Let workers that start meanwhile ignore Ctrl-C, which the terminal sends to them as well.

    The parent then stops them itself. Signals can be set in the main thread alone. The process in
    which joblib counts semaphores clears up after an interrupt: it need not complain of that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    filters = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [filters, "ignore:resource_tracker"]))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if filters is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = filters


def _check_version(one: Trial) -> None:
    """Refuse to run what the user changed meanwhile: it would be kept as what it was."""
    kind = one.network.kind
    now = sources.version(one.data, kind if sources.is_function(kind) else None)
    if now != one.version:
        raise StudyError("a file of the study was changed while it ran; start the study again")


def run_trial(one: Trial) -> Row:
    """Run a trial; what it raises becomes part of its outcome, so that the others go on."""
    start = time.perf_counter()
    try:
        _check_version(one)
        outcome = trial.run(one)
    except Exception as error:
        outcome = Outcome(error=sources.in_words(error))
    _spare_the_collector()
    return Row(one, outcome, round(time.perf_counter() - start, 3), provenance.of_run(threads=1))


@functools.cache
def _spare_the_collector() -> None:
    """Take what a worker has loaded by now out of garbage collection, once.

    Joblib's workers collect after every trial, and looking through all of torch takes longer than a
    short trial does.
    """
    if multiprocessing.parent_process() is not None:
        gc.freeze()
