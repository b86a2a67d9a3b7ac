"""How much a layer's statistics cost, which is how much a finding about them matters."""

from __future__ import annotations

import math

from livella.diagnosis.records import Gap, Layer, Level, Seen

SOME, MUCH = 0.02, 0.1
"""Of the loss by the data's own statistics, or of the outputs' variance."""
POINTS = (0.01, 0.03)
"""Of accuracy."""
SHIFT, FAR = 0.3, 1.0
"""How far statistics are apart, in σ, to be worth telling, and to be wrong."""
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
    # Where accuracy is known it says what matters; a loss that doubles matters too.
    much = MUCH if gap.accuracy is None else 1.0
    if relative > much or lost > POINTS[1]:
        return Level.ERROR
    return Level.WARNING if relative > SOME or lost > POINTS[0] else Level.NOTE


def of_layer(seen: Seen, layer: Layer) -> Level:
    """Say how much it matters what this layer's running statistics are."""
    if layer.share is None or layer.share < PART:
        return Level.NOTE
    level = of_gap(seen.gap)
    labelled = seen.gap is not None and seen.gap.unit == "loss"
    if labelled or distance(layer) > FAR:
        return level
    # Without labels nobody knows which outputs are right; and data may not be those of training.
    if distance(layer) <= SHIFT:
        return Level.NOTE
    return min(level, Level.WARNING, key=lambda each: each.rank)


def distance(layer: Layer) -> float:
    """How far its running statistics are from the data, in σ or as |ln σ ratio|, the larger."""
    off = layer.off
    if off is None or not off.ratio > 0:
        return math.inf
    return max(off.offset, abs(0.5 * math.log(off.ratio)))


def raised(least: Level, seen: Seen, layer: Layer) -> Level:
    """Give the level of a cause: at least this, and that of the damage that comes of it."""
    return max(least, of_layer(seen, layer), key=lambda level: level.rank)
