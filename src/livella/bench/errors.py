"""The one exception a measurement raises for what its user can mend."""

from __future__ import annotations


class BenchError(ValueError):
    """It cannot be measured as asked; the message says what was got, expected, and what to do."""
