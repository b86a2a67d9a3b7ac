"""How much a layer's statistics cost, which is how much a finding about them matters."""

from __future__ import annotations

import math

from livella.diagnosis.records import MATTERS, Gap, Layer, Level, Seen

POINTS = (MATTERS, 0.03)
"""Of the score, lost to statistics: what is worth a warning, and what is an error."""
UNSURE = 0.1
"""What of a score of numbers, which are never just right or wrong, has to be lost to be told of."""
SURELY = 0.005
"""What has to be lost beyond what the interval leaves to chance."""
MUCH = 0.2
"""Without labels, which would say what is right: what is an error where layers are far off."""
SHIFT, FAR = 0.3, 1.0
"""How far statistics are apart, in σ, to be worth telling, and to be wrong."""
BLAMED = 0.9
"""The layers with the largest shares are to blame, as many as it takes for so much of the gap."""


def of_gap(gap: Gap | None) -> Level:
    """Say how much it matters that the running statistics are not those of the data."""
    if gap is None or gap.lost - gap.error <= SURELY:
        return Level.NOTE
    some, much = POINTS if gap.counted else (POINTS[1], MUCH)
    if gap.lost >= much:
        return Level.ERROR
    return Level.WARNING if gap.lost >= some else Level.NOTE


def of_model(seen: Seen) -> Level:
    """Say how much the gap matters.

    Without labels nobody knows which outputs are right, and the data may not be those of training:
    an error is only what a layer is far off for while two of three fit the data.
    """
    level = of_gap(seen.gap)
    if seen.gap is None or seen.gap.counted or level is not Level.ERROR:
        return level
    blame = blamed(seen)
    far = any(layer.name in blame and distance(layer) > FAR for layer in seen.layers)
    compared = [layer for layer in seen.layers if layer.off is not None]
    fitting = [layer for layer in compared if distance(layer) <= SHIFT]
    return Level.ERROR if far and 3 * len(fitting) >= 2 * len(compared) else Level.WARNING


def of_beyond(gap: Gap | None) -> Level:
    """Say how much it matters that no statistics do as well as each batch's own."""
    least = POINTS[0] if gap is not None and not gap.is_of_numbers else UNSURE
    if gap is None or gap.beyond < least or gap.beyond <= gap.beyond_error:
        return Level.NOTE
    return Level.WARNING


def blamed(seen: Seen) -> frozenset[str]:
    """Name the layers that answer for nearly all of the gap."""
    found: list[str] = []
    covered = 0.0
    for layer in sorted(seen.layers, key=lambda each: -(each.share or 0.0)):
        if covered >= BLAMED or not layer.share:
            break
        found.append(layer.name)
        covered += layer.share
    return frozenset(found)


def of_layer(seen: Seen, layer: Layer) -> Level:
    """Say how much it matters what this layer's running statistics are."""
    if layer.name not in blamed(seen):
        return Level.NOTE
    labelled = seen.gap is not None and seen.gap.counted
    if not labelled and distance(layer) <= SHIFT:  # data may not be those of training
        named = blamed(seen)
        others = (each for each in seen.layers if each.name in named)
        surely = (layer.share or 0.0) > (layer.share_error or 0.0)
        if not surely or any(distance(each) > SHIFT for each in others):
            return Level.NOTE
    return of_model(seen)


def distance(layer: Layer) -> float:
    """How far its running statistics are from the data: in σ, or as |ln σ ratio|, the larger.

    The ratio is that of the median channel; that of each, where outputs become far too large.
    """
    off = layer.off
    if off is None:
        return 0.0
    if not off.ratio > 0:
        return math.inf
    by_median = max(off.offset, abs(0.5 * math.log(off.ratio)))
    return max(by_median, off.amplified) if off.amplified > FAR else by_median


def of_cause(seen: Seen, layer: Layer) -> Level:
    """Give the level of what spoils a layer's statistics: a warning, or that of the damage."""
    return worse(Level.WARNING, of_layer(seen, layer))


def is_measured(seen: Seen, layer: Layer) -> bool:
    """Whether it is known what a layer's running statistics cost."""
    return seen.gap is not None and layer.measured is not None


def worse(one: Level, other: Level) -> Level:
    """Give the higher of two levels."""
    return max(one, other, key=lambda level: level.rank)
