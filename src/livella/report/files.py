"""A study's report on disk: the page, and the record as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from livella.report.html import render
from livella.study.results import StudyResult


def write(result: StudyResult, directory: Path) -> Path:
    """Write `report.json` and `report.html` into the directory, and return the page's path.

    Each file is there whole or not at all, also where another reader looks on; an earlier one
    stays as it was until then. In JSON, which knows no NaN or infinity, these are null.

    Raises:
        OSError: If the directory or a file cannot be written.
    """
    page = render(result)
    directory.mkdir(parents=True, exist_ok=True)
    replace(directory / "report.json", record(result.to_dict()))
    replace(directory / "report.html", page)
    return directory / "report.html"


def record(values: dict[str, Any]) -> str:
    """Give plain values as JSON, in which NaN and infinity are null."""
    text = json.dumps(_strict(values), allow_nan=False, ensure_ascii=False, indent=2)
    return text + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _strict(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(each) for each in value]
    return value


def replace(path: Path, text: str) -> None:
    """Put a text into a file, whole or not at all."""
    # Half of a surrogate pair, as in a file's undecodable name, has no UTF-8.
    with (
        beside(path) as place,
        place.open("w", encoding="utf-8", errors="replace", newline="\n") as file,
    ):
        file.write(text)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a place to write to, make what is there last, and only then put it in the path's place.

    After an exception the path is as it was, and nothing else is left.
    """
    place = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield place
        with place.open("rb") as file:
            os.fsync(file.fileno())
        place.replace(path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
