"""A finding as a check makes it: the name of the check is added by who runs it."""

from __future__ import annotations

from collections.abc import Mapping

from livella.diagnosis.records import Finding, Layer, Level


def measuring(layer: Layer) -> str:
    """Name the remedy for statistics that are wrong, which frozen layers keep."""
    return "unfreeze" if layer.frozen else "measure_statistics"


def finding(
    level: Level,
    layer: str,
    message: str,
    remedy: str = "",
    *,
    share: float | None = None,
    numbers: Mapping[str, float] | None = None,
) -> Finding:
    """Make a finding of the check at hand."""
    return Finding("", level, layer, message, remedy, share, numbers or {})
