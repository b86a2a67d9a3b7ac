"""The one exception a study raises for what its user can mend."""

from __future__ import annotations


class StudyError(ValueError):
    """A study cannot run as asked; the message says what was got, expected, and what to do."""
