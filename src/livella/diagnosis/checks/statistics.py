"""Checks of statistics against data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from livella.diagnosis.checks.damage import (
    FAR,
    POINTS,
    SHIFT,
    blamed,
    distance,
    of_beyond,
    of_layer,
    of_model,
    worse,
)
from livella.diagnosis.checks.finding import finding, measuring
from livella.diagnosis.records import Distance, Finding, Gap, Layer, Level, Seen

SLIGHT = 0.05
"""How far statistics are from the data, in σ, to do harm at all."""
SHOWN = 0.005
"""A share of the gap that is more than nothing."""
SMALL_BATCH = 4
NOISY = 0.25
"""How far the mean of a batch is from that of the data, in σ, to be called noise."""
LIKELY = 3.0
"""How many standard deviations averages of such batches may be off by the chance of the batches."""


def statistics_gap(seen: Seen) -> Iterator[Finding]:
    """A network that does worse by its running statistics than by those of the data.

    The verdict of the inspection: measured on the data, with the statistics of every layer, and
    independent of which layers and causes are found. By labels, what is lost of the score; without,
    how far the outputs are from those by the statistics of the data, a warning at most unless a
    layer is more than 1 σ away while two of three are right: nobody knows which outputs are. Known
    limit: it compares with the data given. Remedy: measure the statistics again, safe.
    """
    level = of_model(seen)
    if seen.gap is None or level is Level.NOTE:
        return
    score, lost = seen.gap.score, seen.gap.lost
    if seen.gap.is_share:
        said = (
            f"{100 * score.running:.1f} % right by its running statistics, "
            f"{100 * score.population:.1f} %"
        )
    elif seen.gap.counted:
        said = f"A score of {score.running:.3g} by its running statistics, {score.population:.3g}"
    else:
        said = f"Its outputs are {100 * lost:.1f} % away from those"
    yield finding(
        level, "", f"{said} by the statistics of the data.", "measure_statistics",
        numbers={"running": score.running, "population": score.population, "lost": lost},
    )  # fmt: skip


def stale_statistics(seen: Seen) -> Iterator[Finding]:
    """Running statistics that are not those of the data.

    In evaluation a layer then normalizes by other moments than those it was trained with: good in
    `train()`, bad in `eval()` (pytorch issues 4741, 5406). Too few batches, too small ones, weights
    that moved or were averaged since, and data that were normalized otherwise are the usual causes.
    The level is that of the damage where the layer answers for a part of it. Known limit: it
    compares with the data given; of other data they may be right. Remedy: measure them again, safe.
    """
    matters = of_model(seen) is not Level.NOTE
    for layer in sorted(seen.layers, key=lambda each: -(each.share or 0.0)):
        off, level = layer.off, of_layer(seen, layer)
        if off is None or distance(layer) <= (SHIFT if level is Level.NOTE else SLIGHT):
            continue
        costs = _costs(seen, layer)
        yield finding(
            level, layer.name,
            f"Its running statistics are not those of the data: {_far(off)}. {costs}",
            measuring(layer) if matters or _is_open(seen, layer) else "",
            share=layer.share,
            numbers={"offset": off.offset, "ratio": off.ratio, "divergence": off.divergence},
        )  # fmt: skip


def _far(off: Distance) -> str:
    if math.isnan(off.offset) or math.isnan(off.ratio):
        return "they are no numbers"
    return f"means off by {off.offset:.2g} σ, variances {off.ratio:.2g} times as large"


def _is_open(seen: Seen, layer: Layer) -> bool:
    """Whether something may be lost by it that the data are too few to tell."""
    return seen.gap is not None and seen.gap.lost >= POINTS[0] and layer.share is None


def _costs(seen: Seen, layer: Layer) -> str:
    if layer.share is not None and layer.share >= SHOWN:
        error = f" ± {100 * layer.share_error:.0f}" if layer.share_error else ""
        return f"It answers for {100 * layer.share:.0f}{error} % of the gap."
    if _is_open(seen, layer):
        return "What it costs cannot be told from so few data."
    return "It costs nothing that shows on these data."


def deployment_shift(seen: Seen) -> Iterator[Finding]:
    """Deployment data with other moments than those of training, at the first layer that shows it.

    Evaluation normalizes by those of training; other light, another camera or another scaling of
    the input shows first in the first layers (Schneider et al. 2020). Each layer before normalizes
    by the batch, so that a layer shows what is new to it. Known limit: data whose moments agree
    may differ all the same. Remedy: `livella.adapt`, which changes the function, or the input's
    scaling.
    """
    for layer in seen.layers:
        shift = layer.shifted
        if shift is None:
            continue
        size = max(shift.offset, abs(0.5 * math.log(max(shift.ratio, 1e-12))))
        if size <= SHIFT:
            continue
        yield finding(
                Level.ERROR if size > FAR else Level.WARNING, layer.name,
            f"Deployment data are not as in training from here on: means {shift.offset:.2g} σ "
            f"away, variances {shift.ratio:.2g} times as large.",
            "adapt",
            numbers={"offset": shift.offset, "ratio": shift.ratio, "divergence": shift.divergence},
        )  # fmt: skip
        return


def ordered_data(seen: Seen) -> Iterator[Finding]:
    """Batches that differ from each other more than chance allows.

    Sorted by class, by length or by source, each batch is a sample of something else: in training
    each is normalized by its own moments, and the running statistics are those of the last ones
    (Ioffe 2017, "Batch Renormalization", section 4, draws images of few classes). It judges the
    batches given: data for evaluation may come in any order. Its level is that of the gap where the
    running statistics are as far off as those of such batches are. Known limit: fewer than four
    batches say nothing. Remedy: shuffle; where that cannot be, batch renormalization or group norm.
    """
    worst = max(
        (layer for layer in seen.layers if layer.measured is not None),
        key=lambda layer: layer.measured.excess if layer.measured else 0.0,
        default=None,
    )
    if worst is None or worst.measured is None or worst.measured.excess <= 2:
        return
    level = of_model(seen) if by_chance(seen, excess=True) else Level.NOTE
    yield finding(
        worse(Level.WARNING, level), worst.name,
        f"Batches differ {worst.measured.excess:.3g} times more than chance allows, most at this "
        "layer: the data come in an order, which matters where they train: none stands for all.",
        "shuffle", share=worst.share, numbers={"excess": worst.measured.excess},
    )  # fmt: skip


def small_batch(seen: Seen) -> Iterator[Finding]:
    """Batches too small for their statistics, at the layer where they are worth the least.

    The mean of a batch scatters about that of the data by σ/√m with m independent values; the
    positions of a map resemble each other, so m is less than N·H·W. Noise of a quarter of σ and
    more costs accuracy (Wu & He 2018, "Group Normalization", figure 1; Ioffe 2017), and running
    statistics inherit it: the level is that of the gap where these are as far off as averages of
    such batches are by chance. Known limit: it judges the batches given. Remedy: larger batches,
    `livella.accumulate`, or kinds that do not depend on the batch.
    """
    met = [layer for layer in seen.layers if layer.measured is not None and not layer.frozen]
    worst = max(met, key=lambda each: each.measured.noise if each.measured else 0.0, default=None)
    if worst is None or worst.measured is None or not seen.batch:
        return
    noise, effective = worst.measured.noise, worst.measured.effective
    if noise <= NOISY and seen.batch > SMALL_BATCH:
        return
    level = of_model(seen) if by_chance(seen, excess=False) else Level.NOTE
    yield finding(
        worse(Level.WARNING, level), worst.name,
        f"A batch of {seen.batch} is worth {effective:.3g} independent values here "
        f"(of {worst.measured.values:,.0f}): its means scatter by {noise:.2g} σ.",
        "larger_batch", share=worst.share,
        numbers={"noise": noise, "effective": effective, "batch": seen.batch},
    )  # fmt: skip


def by_chance(seen: Seen, *, excess: bool) -> bool:
    """Whether the layers to blame are as far off as averages of such batches are by chance."""
    layers = [layer for layer in seen.layers if layer.name in blamed(seen)]
    return bool(layers) and all(_is_likely(layer, excess) for layer in layers)


def _is_likely(layer: Layer, excess: bool) -> bool:
    """A moving average scatters by √(m/(2 − m)) of what a batch does; in an order, by all of it."""
    met, off = layer.measured, layer.off
    if met is None or off is None or layer.momentum is None:
        return False
    chance = met.noise * math.sqrt(layer.momentum / (2 - layer.momentum))
    if excess:
        chance = met.noise * math.sqrt(met.excess)
    return off.offset <= LIKELY * chance


def not_of_the_statistics(seen: Seen) -> Iterator[Finding]:
    """A gap between `train()` and `eval()` that no statistics close.

    With the statistics of the data, the network still does worse than with those of each batch:
    it has learnt to use what else is in the batch, as it does where batches have few classes each,
    or where a batch leaks its labels; or one layer serves data that differ. Dropout is off in both.
    Remedy: shuffled batches in training, or a kind that does not look at the batch.
    """
    gap = seen.gap
    if gap is None or of_beyond(gap) is Level.NOTE:
        return
    told = f"{_told(gap, gap.score.population)} by the statistics of the data"
    yield finding(
        Level.WARNING, "",
        f"{told[0].upper()}{told[1:]}, {_told(gap, gap.score.batch)} by those of each batch: it "
        "has learnt from what else is in a batch.",
        "shuffle", numbers={"beyond": gap.beyond},
    )  # fmt: skip


def _told(gap: Gap, score: float) -> str:
    return f"{100 * score:.1f} % right" if gap.is_share else f"a score of {score:.3g}"


def gradient_flow(seen: Seen) -> Iterator[Finding]:
    """Gradients that grow or shrink a thousandfold from one end of the network to the other.

    Batch norm keeps them even over depth at best; in a deep plain network at initialization it
    makes them grow (Yang et al. 2019, "A Mean Field Theory of Batch Normalization"). Of one batch;
    layers of other widths and residual paths differ by themselves. Remedy: advice only.
    """
    norms = [
        (layer.name, layer.measured.gradient)
        for layer in seen.layers
        if layer.measured is not None and layer.measured.gradient
    ]
    if len(norms) < 3:
        return
    sizes = [size for _, size in norms if size]
    middle = median(sizes)
    name, far = max(norms, key=lambda each: abs(math.log((each[1] or middle) / middle)))
    if far and max(sizes) / min(sizes) > 1000:
        yield finding(
                Level.NOTE, name,
            f"The gradient is {far / middle:.2g} times that of the middle layer here, and "
            f"{max(sizes) / min(sizes):.2g} times larger at one layer than at another.",
            "", numbers={"ratio": max(sizes) / min(sizes)},
        )  # fmt: skip
