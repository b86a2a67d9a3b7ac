"""Checks of statistics against data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from livella.diagnosis.checks.damage import FAR, MUCH, SHIFT, distance, of_layer, raised
from livella.diagnosis.records import Finding, Level, Seen

SLIGHT = 0.05
"""How far statistics are from the data, in σ, to do harm at all."""
SHOWN = 0.005
"""A share of the gap that is more than nothing."""
SMALL_BATCH = 4
NOISY = 0.25
"""How far the mean of a batch is from that of the data, in σ, to be called noise."""


def stale_statistics(seen: Seen) -> Iterator[Finding]:
    """Running statistics that are not those of the data.

    In evaluation a layer then normalizes by other moments than those it was trained with: good in
    `train()`, bad in `eval()` (pytorch issues 4741, 5406). Too few batches, too small ones, weights
    that moved or were averaged since, and data that were normalized otherwise are the usual causes.
    The level is that of the damage; without labels, which would say what is right, a warning at
    most unless they are more than 1 σ away. Known limit: it compares with the data given; of
    other data they may be right. Remedy: measure them again, safe.
    """
    for layer in sorted(seen.layers, key=lambda each: -(each.share or 0.0)):
        off, level = layer.off, of_layer(seen, layer)
        if off is None or distance(layer) <= (SHIFT if level is Level.NOTE else SLIGHT):
            continue
        costs = "It costs nothing that shows on these data."
        if layer.share is not None and layer.share >= SHOWN:
            costs = f"It answers for {layer.share:.0%} of the gap."
        yield Finding(
            "stale_statistics", level, layer.name,
            f"Its running statistics are not those of the data: means off by {off.offset:.2g} σ, "
            f"variances {off.ratio:.2g} times as large. {costs}",
            "measure_statistics", layer.share,
            {"offset": off.offset, "ratio": off.ratio, "divergence": off.divergence},
        )  # fmt: skip


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
        yield Finding(
            "deployment_shift", Level.ERROR if size > FAR else Level.WARNING, layer.name,
            f"Deployment data are not as in training from here on: means {shift.offset:.2g} σ "
            f"away, variances {shift.ratio:.2g} times as large.",
            "adapt", None,
            {"offset": shift.offset, "ratio": shift.ratio, "divergence": shift.divergence},
        )  # fmt: skip
        return


def ordered_data(seen: Seen) -> Iterator[Finding]:
    """Batches that differ from each other more than chance allows.

    Sorted by class, by length or by source, each batch is a sample of something else: in training
    each is normalized by its own moments, and the running statistics are those of the last ones
    (Ioffe 2017, "Batch Renormalization", section 4, draws images of few classes). Known limit:
    fewer than four batches say nothing. Remedy: shuffle; where that cannot be, batch
    renormalization or group norm.
    """
    worst = max(
        (layer for layer in seen.layers if layer.measured is not None),
        key=lambda layer: layer.measured.excess if layer.measured else 0.0,
        default=None,
    )
    if worst is None or worst.measured is None or worst.measured.excess <= 2:
        return
    yield Finding(
        "ordered_data", raised(Level.WARNING, seen, worst), worst.name,
        f"Batches differ {worst.measured.excess:.3g} times more than chance allows, most at this "
        "layer: the data come in an order, and no batch stands for all of them.",
        "shuffle", worst.share, {"excess": worst.measured.excess},
    )  # fmt: skip


def small_batch(seen: Seen) -> Iterator[Finding]:
    """Batches too small for their statistics, at the layer where they are worth the least.

    The mean of a batch scatters about that of the data by σ/√m with m independent values; the
    positions of a map resemble each other, so m is less than N·H·W. Noise of a quarter of σ and
    more costs accuracy (Wu & He 2018, "Group Normalization", figure 1; Ioffe 2017), and running
    statistics inherit it. Known limit: it judges the batches given. Remedy: larger batches,
    `livella.accumulate`, or kinds that do not depend on the batch.
    """
    met = [layer for layer in seen.layers if layer.measured is not None and not layer.frozen]
    worst = max(met, key=lambda each: each.measured.noise if each.measured else 0.0, default=None)
    if worst is None or worst.measured is None or not seen.batch:
        return
    noise, effective = worst.measured.noise, worst.measured.effective
    if noise <= NOISY and seen.batch > SMALL_BATCH:
        return
    yield Finding(
        "small_batch", raised(Level.WARNING, seen, worst), worst.name,
        f"A batch of {seen.batch} is worth {effective:.3g} independent values here "
        f"(of {worst.measured.values:,.0f}): its means scatter by {noise:.2g} σ.",
        "larger_batch", worst.share,
        {"noise": noise, "effective": effective, "batch": seen.batch},
    )  # fmt: skip


def not_of_the_statistics(seen: Seen) -> Iterator[Finding]:
    """A gap between `train()` and `eval()` that no statistics close.

    With the statistics of the data, the network still does worse than with those of each batch:
    it has learnt to use what else is in the batch, as it does where batches have few classes each,
    or where a batch leaks its labels. Dropout is off in both. Remedy: shuffled batches in training,
    or a kind that does not look at the batch.
    """
    gap = seen.gap
    if gap is None or gap.unit != "loss" or not math.isfinite(gap.beyond):
        return
    lost = 0.0 if gap.accuracy is None else gap.accuracy[2] - gap.accuracy[1]
    if gap.beyond / max(abs(gap.batch), 0.05) > MUCH and (gap.accuracy is None or lost > 0.02):
        yield Finding(
            "not_of_the_statistics", Level.WARNING, "",
            f"By the statistics of the data the loss is {gap.population:.3g}, by those of each "
            f"batch {gap.batch:.3g}: it has learnt from what else is in a batch.",
            "shuffle", None, {"beyond": gap.beyond},
        )  # fmt: skip


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
        yield Finding(
            "gradient_flow", Level.NOTE, name,
            f"The gradient is {far / middle:.2g} times that of the middle layer here, and "
            f"{max(sizes) / min(sizes):.2g} times larger at one layer than at another.",
            "", None, {"ratio": max(sizes) / min(sizes)},
        )  # fmt: skip
