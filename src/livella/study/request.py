"""What can be said of a request before anything heavy is loaded: its names, counts and places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from livella.study.errors import StudyError

NAMES = (
    "convergence",
    "learning_rate",
    "covariate_shift",
    "gradient_flow",
    "regularization",
    "dropout",
    "batch_size",
    "non_iid",
    "inference",
    "shift",
    "adaptation_harm",
    "recurrent",
    "alternatives",
)
"""The names of `livella.study.CLAIMS`, in its order."""


def check(claims: Sequence[str], **counts: int | None) -> None:
    """Refuse an unknown claim, and a count below one.

    Raises:
        StudyError: which, and what was expected.

    """
    for name in claims:
        if name not in NAMES:
            raise StudyError(f"unknown claim {name!r}: the claims are {', '.join(NAMES)}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise StudyError(f"{name} is {count}: expected a whole number from 1")


def place_of(spec: str, expected: str) -> tuple[str, str]:
    """Split `module:function` or `file.py:function`; `expected` says what that is to return.

    Raises:
        StudyError: it is neither, or there is no such file.

    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise StudyError(
            f"{spec!r} names no function: expected module:function or file.py:function "
            f"returning {expected}"
        )
    if place.endswith(".py") and not Path(place).is_file():
        raise StudyError(f"no file {place!r} (looked in {Path.cwd()})")
    return place, name
