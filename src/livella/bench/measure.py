"""Times calls against each other: interleaved, in one process, medians."""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Call = Callable[[], object]
T = TypeVar("T")

FEWEST_ROUNDS, MOST_ROUNDS = 15, 301
WARM_UPS = 3
_SECONDS_EACH = 0.3
_A_SAMPLE = 2e-4
"""Seconds. Shorter calls are timed several at once, so that the clock and the loop do not show."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a call in each round, and page faults a call."""

    seconds: tuple[float, ...]
    faults: float


def interleaved(
    calls: Mapping[str, Call], rounds: int | None = None, *, renew: Call | None = None
) -> dict[str, Timing]:
    """Time each call once a round, in an order that rotates; warmed up before.

    Args:
        calls: what to time, by name.
        rounds: how many; by default enough for 0.3 s each, from 15 to 301.
        renew: called before each sample, which then is of one call, however short.

    """
    with _without_collecting():
        took = _warm_up(calls)
        loops = {name: 1 if renew else max(1, round(_A_SAMPLE / took[name])) for name in calls}
        if rounds is None:
            rounds = rounds_for(max(took[name] * loops[name] for name in calls))
        samples: dict[str, list[tuple[float, int]]] = {name: [] for name in calls}
        for name in rotating(tuple(calls), rounds):
            if renew:
                renew()
            samples[name].append(sample(calls[name], loops[name]))
    return {name: _timing(samples[name], loops[name]) for name in calls}


def rounds_for(longest: float) -> int:
    """How many rounds to take where the longest sample takes so many seconds."""
    return min(max(math.ceil(_SECONDS_EACH / longest), FEWEST_ROUNDS), MOST_ROUNDS)


def rotating(names: Sequence[T], rounds: int) -> Iterator[T]:
    """Every name once a round, each round from another start: none always follows the same."""
    for start in range(rounds):
        shift = start % len(names)
        yield from (*names[shift:], *names[:shift])


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over rounds of theirs to ours: what slows a whole round down cancels out."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def percentile(values: Sequence[float], percent: int) -> float:
    """The percentile, linear between values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below, share = math.floor(place), place % 1
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + share * (ordered[above] - ordered[below])


def page_faults() -> int:
    """Pages this process has been given without reading a disk; zero where nobody counts them."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _warm_up(calls: Mapping[str, Call]) -> dict[str, float]:
    """Seconds of the fastest of some first calls."""
    took = dict.fromkeys(calls, math.inf)
    for name in rotating(tuple(calls), WARM_UPS):
        took[name] = min(took[name], sample(calls[name], 1)[0])
    return took


def sample(call: Call, loops: int) -> tuple[float, int]:
    """Seconds and page faults of so many calls."""
    faults = page_faults()
    start = time.perf_counter()
    for _ in range(loops):
        call()
    seconds = time.perf_counter() - start
    return seconds, page_faults() - faults


def _timing(samples: Sequence[tuple[float, int]], loops: int) -> Timing:
    faults = sum(count for _, count in samples) / (loops * len(samples))
    return Timing(tuple(seconds / loops for seconds, _ in samples), faults)


@contextmanager
def _without_collecting() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
