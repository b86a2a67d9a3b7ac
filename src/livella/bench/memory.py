"""Whether a large result lies in memory used before or in fresh pages: glibc is told which.

By default glibc decides by size and history. A fresh page costs a page fault, which for a large
result takes longer than the arithmetic: so both are measured, the same for every contender.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REUSED, FRESH, UNTOLD = "reused", "fresh", "as it comes"

# From malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_OPTIONS = {
    # All blocks come from the heap, which keeps what is freed.
    REUSED: _DEFAULTS | {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0},
    # A block of 128 KiB or more is mapped anew, and unmapped when freed.
    FRESH: _DEFAULTS,
}


def kinds() -> tuple[str, ...]:
    """What can be measured here: without glibc, memory only as the allocator happens to give it."""
    return (UNTOLD,) if _glibc() is None else (REUSED, FRESH)


@contextmanager
def of_kind(kind: str) -> Iterator[Callable[[], None] | None]:
    """Let results be allocated so from here on, and by glibc's initial thresholds afterwards.

    Gives what is to be called before each measured call so that it gets fresh memory, or none. The
    thresholds cannot be read back, and once set they no longer adapt to what is freed.
    """
    libc = _glibc()
    if libc is None or kind == UNTOLD:
        yield None
        return
    try:
        _set(libc, _OPTIONS[kind])
        # A block may still come from a hole in the heap; trimmed, that holds no pages either.
        yield functools.partial(_trim, libc) if kind == FRESH else None
    finally:
        _set(libc, _DEFAULTS)


def _set(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)
    _trim(libc)


def _trim(libc: ctypes.CDLL) -> None:
    """Give all free pages back to the system."""
    libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)
