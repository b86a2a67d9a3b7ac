"""What the kernels are meant to reach, and how a record stands to it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from livella.bench.cases import ADD_RELU, PLAIN, RELU, Case, Fusion, Setting
from livella.bench.contenders import COMPILE, EAGER, OURS
from livella.bench.measure import ratio
from livella.bench.memory import FRESH
from livella.bench.rows import Record, Row, Step, StepRow

Figures = Iterator[tuple[str, float]]
"""The name of each case that a target covers, and the ratio there."""


class Verdict(str, Enum):
    """How the ratios stand to the bound, read to two decimals as they are printed."""

    MET = "met"
    """In every case."""
    MEDIAN = "median"
    """In the median of the cases, and not in every one."""
    MISSED = "not met"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Target:
    """A bound on a ratio over the cases it covers."""

    what: str
    rival: str
    """Whom the ratio is to: "eager", "compile", "copy", "stream" or, for eager's, "memory"."""
    bound: float
    at_least: bool
    figures: Callable[[Record, bool], Figures]
    """Of a record, in fresh memory or not."""


@dataclass(frozen=True)
class Assessment:
    target: Target
    verdict: Verdict
    count: int = 0
    median: float | None = None
    worst: float | None = None
    worst_case: str = ""
    fresh: float | None = None
    """The median with results in fresh memory."""


def assess(record: Record, targets: Sequence[Target] | None = None) -> list[Assessment]:
    """Hold the record against each target."""
    return [_assess(record, target) for target in (TARGETS if targets is None else targets)]


def _assess(record: Record, target: Target) -> Assessment:
    figures = list(target.figures(record, False))
    if not figures:
        return Assessment(target, Verdict.UNKNOWN)
    choose = min if target.at_least else max
    worst_case, worst = choose(figures, key=lambda figure: figure[1])
    median = statistics.median(value for _, value in figures)
    fresh = [value for _, value in target.figures(record, True)]
    return Assessment(
        target,
        _verdict(target, median, worst),
        len(figures),
        median,
        worst,
        worst_case,
        statistics.median(fresh) if fresh else None,
    )


def _verdict(target: Target, median: float, worst: float) -> Verdict:
    if _holds(target, worst):
        return Verdict.MET
    return Verdict.MEDIAN if _holds(target, median) else Verdict.MISSED


def _holds(target: Target, value: float) -> bool:
    shown = round(value, 2)
    return shown >= target.bound if target.at_least else shown <= target.bound


# Which cases a target covers.


@dataclass(frozen=True)
class Cover:
    """Cases whose time is that of memory, but for `small`; a field that is none covers all."""

    operation: str | None = None
    fusion: Fusion | None = None
    layout: str | None = None
    dtype: str | None = "float32"
    where: Callable[[Setting], bool] = lambda _: True
    small: bool = False

    def __contains__(self, case: Case) -> bool:
        setting = case.setting
        wanted = (self.operation, self.fusion, self.layout, self.dtype)
        got = (case.operation, setting.fusion, setting.layout, setting.dtype)
        same = all(each in (None, found) for each, found in zip(wanted, got, strict=True))
        return same and (self.small or setting.bound_by_memory) and self.where(setting)


def _is_map(setting: Setting) -> bool:
    return len(setting.shape) == 4


def _large_map(setting: Setting) -> bool:
    return _is_map(setting) and setting.shape[-1] >= 14


def _7x7(setting: Setting) -> bool:
    return setting.shape[2:] == (7, 7)


def _features(setting: Setting) -> bool:
    return len(setting.shape) == 2


# The kinds of target.


def _speed(what: str, cover: Cover, bound: float, rival: str = EAGER) -> Target:
    def figures(record: Record, fresh: bool) -> Figures:
        for row in _rows(record, cover, rival, fresh):
            yield _name(row.case, cover), row.to_ours

    return Target(what, rival, bound, True, figures)


def _distance(what: str, cover: Cover, bound: float) -> Target:
    def figures(record: Record, fresh: bool) -> Figures:
        for row in _rows(record, cover, OURS, fresh):
            yield _name(row.case, cover), row.to_limit

    limit = "stream" if cover.operation == "backward" else "copy"
    return Target(what, limit, bound, False, figures)


def _name(case: Case, cover: Cover) -> str:
    """What the target does not say of the case."""
    return case.setting.short if cover.operation else f"{case.kind} {case.setting.short}"


def _rows(record: Record, cover: Cover, contender: str, fresh: bool) -> Iterator[Row]:
    for row in record.rows:
        if row.contender == contender and (row.memory == FRESH) == fresh and row.case in cover:
            yield row


def _step_speed(network: str, bound: float) -> Target:
    def figures(record: Record, fresh: bool) -> Figures:
        for ours, eager in _steps(record, network, fresh):
            yield f"{ours.layout} against {eager.layout}", ratio(eager.seconds, ours.seconds)

    what = f"training step, {network}"
    return Target(what, EAGER, bound, True, figures)


def _step_memory(network: str) -> Target:
    def figures(record: Record, fresh: bool) -> Figures:
        for ours, eager in _steps(record, network, fresh):
            if ours.peak is not None and eager.peak is not None:
                yield f"{ours.layout} against {eager.layout}", ours.peak / eager.peak

    what = f"training step, {network}, memory"
    return Target(what, "memory", 1.0, False, figures)


def _steps(record: Record, network: str, fresh: bool) -> Iterator[tuple[StepRow, StepRow]]:
    """Ours and eager's row of the full-size step, each in its better layout; never fresh."""
    wanted = Step(network, batch=16, size=224)
    ours, eager = (best_layout(record, wanted, name) for name in (OURS, EAGER))
    if not fresh and ours is not None and eager is not None:
        yield ours, eager


def best_layout(record: Record, step: Step, contender: str) -> StepRow | None:
    """A contender's row in the layout that is faster for it."""
    rows = [row for row in record.steps if (row.step, row.contender) == (step, contender)]
    return min(rows, key=lambda row: statistics.median(row.seconds), default=None)


# The targets, in the order in which they were set.

_NCHW, _LAST = "contiguous", "channels_last"
_SHORT = {_NCHW: "NCHW", _LAST: "channels_last"}


def _forward() -> Iterator[Target]:
    kinds = (
        ("NCHW, maps ≥ 14×14", _NCHW, _large_map, 4.0, 1.5),
        ("NCHW, 7×7", _NCHW, _7x7, 2.5, 2.5),
        ("(N, C)", _NCHW, _features, 1.5, 2.5),
        ("channels_last", _LAST, _is_map, 1.5, 1.8),
    )
    for where, layout, covers, speed, distance in kinds:
        cover = Cover("forward", PLAIN, layout, where=covers)
        yield _speed(f"forward, {where}", cover, speed)
        yield _distance(f"forward, {where}", cover, distance)


def _backward() -> Iterator[Target]:
    for layout, speed, distance in ((_NCHW, 3.0, 1.4), (_LAST, 2.0, 1.8)):
        cover = Cover("backward", PLAIN, layout, where=_is_map)
        yield _speed(f"backward, {_SHORT[layout]}", cover, speed)
        yield _distance(f"backward, {_SHORT[layout]}", cover, distance)


def _fused() -> Iterator[Target]:
    kinds = (("bn+relu", RELU, 4.0, 2.5), ("bn+add+relu", ADD_RELU, 3.0, 2.0))
    for name, fusion, contiguous, last in kinds:
        for layout, bound in ((_NCHW, contiguous), (_LAST, last)):
            for operation in ("forward", "backward"):
                what = f"{name} {operation}, {_SHORT[layout]}"
                cover = Cover(operation, fusion, layout, where=_is_map)
                yield _speed(what, cover, bound)
                yield _speed(what, cover, 5.0, COMPILE)


def _evaluation() -> Iterator[Target]:
    cover = Cover("evaluation", RELU)
    yield _speed("evaluation with relu", cover, 2.0)
    yield _distance("evaluation with relu", cover, 1.2)


def _bfloat16() -> Iterator[Target]:
    for fusion in (PLAIN, RELU, ADD_RELU):
        for operation in ("forward", "backward"):
            cover = Cover(operation, fusion, dtype="bfloat16")
            yield _speed(f"bfloat16, {fusion} {operation}", cover, 2.0)
    cover = Cover("evaluation", RELU, dtype="bfloat16")
    yield _speed("bfloat16, evaluation with relu", cover, 2.0)


TARGETS = (
    *_forward(),
    *_backward(),
    *_fused(),
    *_evaluation(),
    *_bfloat16(),
    _speed("any case of the grid", Cover(dtype=None, small=True), 1.0),
    *(_step_speed(name, bound) for name, bound in (("mobilenet-v2", 1.3), ("densenet-121", 1.2))),
    _step_speed("resnet-50", 1.1),
    *(_step_memory(name) for name in ("mobilenet-v2", "densenet-121", "resnet-50")),
)
