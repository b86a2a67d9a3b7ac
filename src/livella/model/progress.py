"""How far the reading of the data has come, on the terminal."""

from __future__ import annotations

import sys
from typing import Any


def length_of(batches: Any) -> int | None:
    """Count batches without reading them; none where they cannot be, as of an `IterableDataset`."""
    try:
        return len(batches)
    except TypeError:
        return None


class Bar:
    """A progress bar with one line a pass, or nothing."""

    def __init__(self, what: str, shown: bool | None, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._what = what
        shown = sys.stderr.isatty() if shown is None else shown
        self._progress = Progress(console=Console(stderr=True), disable=not shown, transient=True)
        self._total = total
        self._task: Any = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._progress.stop()

    def begin(self, what: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(f"{self._what}, {what}", total=self._total)

    def advance(self) -> None:
        self._progress.advance(self._task)
