"""What a user accepts: findings that are shown and count for nothing."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from livella.diagnosis.checks import CHECKS
from livella.diagnosis.records import Finding

TABLE = "[tool.livella]"
"""Of pyproject.toml, where a project writes down what it accepts."""


def sort_out(
    findings: Iterable[Finding], ignore: Sequence[str]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Part findings into those that count and those that are accepted, each in their order.

    Args:
        findings: of all checks.
        ignore: "check" for a check wherever it finds something, "check@layer" for one layer; in the
            layer * stands for anything, ? for one character, [ab] for one of them.

    Returns:
        What is kept, and what is ignored.

    Raises:
        TypeError: `ignore` is a text, where a list of them is expected.
        ValueError: there is no such check.

    Example:
        >>> from livella.diagnosis.records import Level
        >>> found = [Finding("momentum", Level.WARNING, name, "") for name in ("stem", "head.bn")]
        >>> [[each.layer for each in part] for part in sort_out(found, ["momentum@head.*"])]
        [['stem'], ['head.bn']]

    """
    check_names(ignore)
    parts: tuple[list[Finding], list[Finding]] = [], []
    for finding in findings:
        parts[any(_means(pattern, finding) for pattern in ignore)].append(finding)
    return tuple(parts[False]), tuple(parts[True])


def check_names(ignore: Iterable[str]) -> None:
    """Refuse a pattern whose check there is none of.

    Raises:
        TypeError: one text in place of several.
        ValueError: which, and the names nearest to it.

    """
    if isinstance(ignore, str):
        raise TypeError(f"ignore: got the text {ignore!r}, expected a list of such: [{ignore!r}]")
    names = [check.__name__ for check in CHECKS]
    for pattern in ignore:
        name = pattern.partition("@")[0]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
            raise ValueError(
                f"ignore: there is no check {name!r}: expected check or check@layer, such as "
                f"{', '.join(near)}"
            )


def _means(pattern: str, finding: Finding) -> bool:
    check, at, layer = pattern.partition("@")
    return check == finding.check and (not at or fnmatch.fnmatchcase(finding.layer, layer))


def of_project(folder: Path) -> tuple[str, ...]:
    """Read what the project around a folder accepts: the nearest table, from the folder upwards.

    Raises:
        ValueError: the table cannot be read.

    """
    for each in (folder, *folder.parents):
        path = each / "pyproject.toml"
        if path.is_file() and "tool.livella" in (text := path.read_text(encoding="utf-8")):
            return _of_table(path, text)
    return ()


def _of_table(path: Path, text: str) -> tuple[str, ...]:
    try:
        toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path}: {TABLE} cannot be read, as Python 3.10 reads no TOML: pip install tomli"
        ) from error
    try:
        table = toml.loads(text).get("tool", {}).get("livella", {})
        ignore = _list_of(table)
        check_names(ignore)
    except toml.TOMLDecodeError as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return tuple(ignore)


def _list_of(table: object) -> list[str]:
    """Give the list in the table, which may hold nothing else."""
    if not isinstance(table, dict):
        raise TypeError(f"tool.livella is {table!r}: expected a table, {TABLE}")
    unknown = sorted(table.keys() - {"ignore"})
    if unknown:
        raise ValueError(f"{TABLE} has {', '.join(unknown)}: it may have ignore alone")
    ignore = table.get("ignore", [])
    if not isinstance(ignore, list) or not all(isinstance(each, str) for each in ignore):
        raise TypeError(
            f'{TABLE} has ignore = {ignore!r}: expected a list such as ["small_batch", '
            '"momentum@head.*"]'
        )
    return ignore
