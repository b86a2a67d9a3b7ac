"""The study as a whole: from what the user asked to verdicts with their evidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import joblib
import torch

from livella import provenance
from livella.study import data as datasets
from livella.study import models, request, runner, sources, store
from livella.study.claim import Scope
from livella.study.claims import CLAIMS
from livella.study.errors import StudyError
from livella.study.results import LeftOut, StudyResult
from livella.study.store import Row
from livella.study.trial import Trial
from livella.study.verdict import FEWEST_SEEDS, RELIABLE_SEEDS


def study(
    claims: Sequence[str] = (),
    *,
    data: str = "digits",
    model: str | None = None,
    seeds: int = 5,
    jobs: int | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    progress: bool = True,
) -> StudyResult:
    """Try claims of the literature on data and a network, and say what was found.

    Args:
        claims: names out of `livella.study.CLAIMS`; empty for all.
        data: `digits`, `fashion-mnist`, `japanese-vowels`, `idx:DIR`, or `module:function` or
            `file.py:function` returning (train, test) or (train, validation, test) loaders.
        model: `module:function` or `file.py:function` returning a network with batch, instance
            or group norm, in which the kind under test is swapped; None for small own networks.
        seeds: independent repetitions of every training; below three no verdict is given.
        jobs: processes to train in; None for the processors there are. Inside
            `joblib.parallel_config` another backend (Dask, Ray) takes the trials.
        out: the folder where finished trials are kept; a trial found there is not run again.
            None keeps nothing.
        steps: training steps of a trial, in place of each claim's own budget.
        progress: whether to show a progress bar on a terminal.

    Returns:
        The verdicts with their evidence; `livella.report.write` makes the page of it.

    Raises:
        StudyError: something asked for is not there or not usable; nothing was written.
    """
    request.check(claims, seeds=seeds, jobs=jobs, steps=steps)
    asked = [claim for claim in CLAIMS if not claims or claim.name in claims]
    scope = _scope(data, model, seeds, steps)
    left_out = [LeftOut(c.name, reason) for c in asked if (reason := c.reason_against(scope))]
    tried = [claim for claim in asked if not claim.reason_against(scope)]
    if not tried:
        raise StudyError("; ".join(f"{c.name} cannot be tried: {c.reason}" for c in left_out))
    with _rows(out) as (rows, save, notes):
        start = time.perf_counter()
        ran = runner.run(tried, scope, rows, save, jobs or joblib.cpu_count(), progress)
        seconds = time.perf_counter() - start
    outcomes = runner.outcomes(rows)
    wanted = runner.wanted(tried, scope, outcomes)
    _check_some_worked(wanted, rows)
    took = {trial: row.seconds for trial, row in rows.items()}
    return StudyResult(
        data=datasets.load(data).describe(),
        model=model or "small networks of the study's own",
        seeds=seeds,
        claims=tuple(claim.result(scope, outcomes, took) for claim in tried),
        left_out=tuple(left_out),
        notes=(*notes, *_caveats(seeds, wanted, rows)),
        trials_run=ran,
        trials_reused=len(wanted) - ran,
        seconds=seconds if ran else 0.0,
        computed=sum(took[trial] for trial in wanted),
        provenance=provenance.of_run(threads=1),
    )


def _scope(data: str, model: str | None, seeds: int, steps: int | None) -> Scope:
    """Load the data and build the user's network once, so that what is wrong shows at once."""
    dataset = datasets.load(data)
    dims = [len(dataset.shape) + 1]
    if model is not None:
        with torch.random.fork_rng(devices=[]):
            _, sites = models.users_model(model, dataset.shape, dataset.classes)
        dims = [site.input_dim for site in sites]
    return Scope(
        data=data,
        shape=dataset.shape,
        model=model,
        instance_possible=min(dims) > 2,
        seeds=tuple(range(seeds)),
        steps=steps,
        version=sources.version(data, model),
        sequences=dataset.sequences,
    )


@contextmanager
def _rows(
    out: str | Path | None,
) -> Iterator[tuple[dict[Trial, Row], Callable[[Row], None], list[str]]]:
    """The finished trials, how to save one more, and what was odd about those on disk."""
    if out is None:
        yield {}, lambda _row: None, []
        return
    with store.opened(Path(out)) as kept:
        yield kept.rows, kept.append, kept.notes


def _check_some_worked(wanted: Sequence[Trial], rows: dict[Trial, Row]) -> None:
    errors = [rows[trial].outcome.error for trial in wanted]
    if all(errors):
        raise StudyError(f"all {len(errors)} trials failed, the first with {errors[0]}")


def _caveats(seeds: int, wanted: Sequence[Trial], rows: dict[Trial, Row]) -> Iterator[str]:
    if seeds < FEWEST_SEEDS:
        yield f"{seeds} seed(s) are too few for a verdict; use at least 3, better 5"
    elif seeds < RELIABLE_SEEDS:
        yield (
            f"with {seeds} seeds an interval covers the true median in at most "
            f"{100 * (1 - 2 * 0.5**seeds):.0f} % of studies; with 5 it is 94 %"
        )
    errors = [rows[trial].outcome.error for trial in wanted if rows[trial].outcome.error]
    if errors:
        yield f"{len(errors)} of {len(wanted)} trials failed, the first with {errors[0]}"
