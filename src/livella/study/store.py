"""Finished trials on disk: one JSON line each, appended as they finish, never lost, never twice."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from livella.study.errors import StudyError
from livella.study.trial import Outcome, Trial

FORMAT = 2
"""Raised when lines are written otherwise, or when the same trial would come out otherwise: older
lines are then set aside and their trials run again."""

TRIALS = "trials.jsonl"
ASIDE = "trials.set-aside.jsonl"

_NO_ROW = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
"""What a line raises that is no row."""


@dataclass(frozen=True)
class Row:
    """A finished trial: what was asked, what was seen, and where it comes from."""

    trial: Trial
    outcome: Outcome
    seconds: float
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_line(self) -> bytes:
        values = {"format": FORMAT, "key": self.trial.key(), **dataclasses.asdict(self)}
        return json.dumps(values, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Row:
        """Read a line back; raises one of `_NO_ROW` where it is no such row."""
        values = json.loads(line, parse_constant=_refuse)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError("not a trial of this format")
        row = cls(
            Trial.from_dict(values["trial"]),
            Outcome.from_dict(values["outcome"]),
            float(values["seconds"]),
            dict(values["provenance"]),
        )
        _check(row.outcome)
        if row.trial.key() != values["key"]:
            raise ValueError("its key is not that of its trial")
        return row


def _check(outcome: Outcome) -> None:
    """Refuse an outcome that no trial gives; a failed one is never kept."""
    accuracies = (*outcome.validation, *outcome.test)
    if not all(type(value) in (int, float) for value in (*outcome.steps, *accuracies)):
        raise ValueError("its outcome holds something else than numbers")
    lengths = {len(outcome.steps), len(outcome.validation), len(outcome.test)}
    if outcome.failed or len(lengths) > 1:
        raise ValueError("its outcome is not that of a whole trial")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class TrialStore:
    """The trials in a folder. Only one process at a time writes to it.

    A row is on disk before `append` returns. Lines that are torn, foreign or repeated are moved
    to `trials.set-aside.jsonl` when the store is opened, and told in `notes`.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / TRIALS
        self._aside = directory / ASIDE
        self.rows: dict[Trial, Row] = {}
        self.notes: list[str] = []
        self._read()

    def append(self, row: Row) -> None:
        with _writing(self._path.parent), self._path.open("ab") as file:
            file.write(row.to_line())
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else [b""]
        torn = lines.pop()
        aside = [f"the last line was cut off after {len(torn)} bytes"] if torn else []
        bad = [torn] if torn else []
        good = []
        for number, line in enumerate(lines, start=1):
            try:
                row = Row.from_line(line)
                if row.trial in self.rows:
                    raise ValueError("the same trial stands above")
                self.rows[row.trial] = row
                good.append(line)
            except _NO_ROW as error:
                bad.append(line)
                aside.append(f"line {number} is no trial ({type(error).__name__}: {error})")
        if bad:
            self._set_aside(bad, good, aside)

    def _set_aside(self, bad: list[bytes], good: list[bytes], why: list[str]) -> None:
        """Copy the bad lines away, then put a file of the good ones in place of the old one."""
        with self._aside.open("ab") as file:
            file.writelines(line + b"\n" for line in bad)
            file.flush()
            os.fsync(file.fileno())
        beside = self._path.with_suffix(".jsonl.new")
        with beside.open("wb") as file:
            file.writelines(line + b"\n" for line in good)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        shown = "; ".join(why[:3]) + ("; …" if len(why) > 3 else "")
        self.notes.append(
            f"{len(bad)} line(s) of {self._path.name} set aside in {self._aside.name}: {shown}"
        )


@contextmanager
def opened(directory: Path) -> Iterator[TrialStore]:
    """Open the store of a folder, which is made where it is missing, for this process alone.

    Raises:
        StudyError: the folder cannot be written, or another study is writing to it.
    """
    lock = filelock.FileLock(directory / ".lock", timeout=0)
    try:
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            store = TrialStore(directory)
        yield store
    except filelock.Timeout:
        raise StudyError(
            f"another study is writing to {str(directory)!r}: wait for it, or choose another folder"
        ) from None
    finally:
        lock.release()


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, filelock.Timeout):
            raise
        reason = error.strerror or error
        raise StudyError(f"cannot write to {str(directory)!r}: {reason}") from error
