"""How much a layer's statistics cost, which is how much a finding about them matters."""

from __future__ import annotations

import math

from livella.diagnosis.records import Gap, Layer, Level, Seen

SOME, MUCH = 0.01, 0.1
"""Of the loss by the data's own statistics, or of the outputs' variance."""
POINTS = (0.01, 0.03)
"""Of accuracy."""
PART = 0.05
"""A layer with less than this share of the gap is not to blame for it."""


def of_gap(gap: Gap | None) -> Level:
    """Say how much it matters that the running statistics are not those of the data."""
    if gap is None:
        return Level.NOTE
    if not math.isfinite(gap.running):
        return Level.ERROR
    if gap.unit == "loss":
        relative = gap.recoverable / max(abs(gap.population), 1e-12)
        # A loss of next to nothing may grow tenfold and still be nothing.
        relative = min(relative, gap.recoverable / 0.05)
    else:
        relative = gap.running
    lost = 0.0 if gap.accuracy is None else gap.accuracy[1] - gap.accuracy[0]
    if relative > MUCH or lost > POINTS[1]:
        return Level.ERROR
    return Level.WARNING if relative > 2 * SOME or lost > POINTS[0] else Level.NOTE


def of_layer(seen: Seen, layer: Layer) -> Level:
    """Say how much it matters what this layer's running statistics are."""
    if layer.share is None or layer.share < PART:
        return Level.NOTE
    return of_gap(seen.gap)


def raised(least: Level, seen: Seen, layer: Layer) -> Level:
    """Give the level of a cause: at least this, and that of the damage that comes of it."""
    return max(least, of_layer(seen, layer), key=lambda level: level.rank)
