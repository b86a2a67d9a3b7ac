"""Checks of where layers stand and how they are called: one batch shows it."""

from __future__ import annotations

from collections.abc import Iterator

from livella.diagnosis.checks.damage import of_beyond, of_cause, of_layer, worse
from livella.diagnosis.checks.finding import finding
from livella.diagnosis.records import Finding, Level, Measured, Seen

APART, SOMEWHAT = 0.3, 0.1
"""How far calls are from each other, in σ, before one set of statistics fits them badly; and before
it may, where something is lost that no statistics bring back."""
MANY_CALLS = 4
SHIFTED, LARGE = 0.1, 0.5
"""How far dropout moves the variance, of itself, to be told; and to be a warning by itself."""


def shared_layer(seen: Seen) -> Iterator[Finding]:
    """One layer that meets several distributions: two domains, real and fake, time steps.

    Its running statistics are a mixture that fits none of them, while in training each call
    normalizes by its own: good in `train()`, bad in `eval()`. A GAN's discriminator shows the
    same when real and fake examples come in batches of their own. Known limit: distributions that
    come in different batches show as batches that differ (`ordered_data`). Remedy: a layer, or a
    domain (`livella.add_domains`), for each; in a recurrent loop `livella.nn.BatchNormLSTM`.
    """
    costs = of_beyond(seen.gap)
    for layer in seen.layers:
        met = layer.measured
        if met is None or not _is_shared(met, costs):
            continue
        looped = met.calls >= MANY_CALLS
        yield finding(
                worse(costs, of_cause(seen, layer)), layer.name,
            f"A pass calls it {met.calls} times, on data up to {met.apart:.2g} σ apart: one set of "
            "running statistics fits none of them."
            + (" It looks like a step of a recurrent loop." if looped else ""),
            "recurrent" if looped else "domains",
            share=layer.share, numbers={"calls": met.calls, "apart": met.apart},
        )  # fmt: skip


def _is_shared(met: Measured, costs: Level) -> bool:
    """Whether the calls of a layer differ by too much."""
    most = APART if costs is Level.NOTE else SOMEWHAT
    return met.calls > 1 and met.apart > most


def reused_layer(seen: Seen) -> Iterator[Finding]:
    """One layer that is called several times in a pass, on data that are alike.

    It works, but each call updates the running statistics, so that they move faster than the
    momentum says, and the counter counts calls. Remedy: none is needed; a layer for each call where
    they may come to differ.
    """
    costs = of_beyond(seen.gap)
    for layer in seen.layers:
        met = layer.measured
        if met is not None and met.calls > 1 and not _is_shared(met, costs):
            yield finding(
                Level.NOTE, layer.name,
                f"A pass calls it {met.calls} times, on data that are alike ({met.apart:.2g} σ "
                "apart): its running statistics move that much faster than its momentum says.",
                "", numbers={"calls": met.calls, "apart": met.apart},
            )  # fmt: skip


def redundant_bias(seen: Seen) -> Iterator[Finding]:
    """A convolution or linear layer with a bias right before a batch norm.

    The norm takes the mean away, so the bias does nothing but take memory and time (Ioffe & Szegedy
    2015, section 3.2). Known limit: in evaluation it shifts what the running mean takes away, so it
    cannot be dropped alone. Remedy: advice only; build the layer without it for the next training.
    """
    for layer in seen.layers:
        if layer.source_bias and layer.family == "batch":
            yield finding(
                Level.NOTE, layer.name,
                f"{layer.source} ({layer.source_kind}) before it adds a bias, which it takes away "
                "again.",
                "no_bias",
            )  # fmt: skip


def dropout_before(seen: Seen) -> Iterator[Finding]:
    """Dropout in front of a batch norm, so that training and evaluation differ in variance.

    Dropout raises the variance of what is summed behind it, and is off in evaluation: running
    variances are of data that evaluation does not see (Li et al. 2019, "Understanding the
    Disharmony between Dropout and Batch Normalization by Variance Shift", section 3). Measured by
    switching dropout on and off. Remedy: dropout behind the last batch norm, which changes
    training; or statistics measured with dropout off, safe.
    """
    for place, layer in enumerate(seen.layers):
        met = layer.measured
        if met is None or met.dropout is None or abs(met.dropout - 1) <= SHIFTED:
            continue
        share = sum(each.share or 0.0 for each in seen.layers[place:])
        yield finding(
                _of_all(seen, place), layer.name,
            f"Dropout before it ({', '.join(seen.dropout[:3])}) makes the variance "
            f"{met.dropout:.3g} times that of evaluation, which its running variance is not for.",
            "measure_statistics", share=share or None, numbers={"ratio": met.dropout},
        )  # fmt: skip
        return  # the layers behind it see the same shift again; their shares are counted in


def _of_all(seen: Seen, place: int) -> Level:
    """The level of the damage from a place on; at least a warning where the shift is large."""
    met = seen.layers[place].measured
    large = met is not None and met.dropout is not None and abs(met.dropout - 1) > LARGE
    level = Level.WARNING if large else Level.NOTE
    for layer in seen.layers[place:]:
        level = worse(level, of_layer(seen, layer))
    return level


def one_value(seen: Seen) -> Iterator[Finding]:
    """One value a channel: a batch of one, on maps of 1×1.

    One value has no variance; torch raises an error in training (pytorch issue 4534). A ragged last
    batch of one is the usual reason. Remedy: drop_last=True, or `single_value="running"`.
    """
    for layer in seen.layers:
        met = layer.measured
        if layer.family == "batch" and met is not None and met.values == 1:
            yield finding(
                Level.WARNING, layer.name,
                "A batch has one value a channel here, which has no variance: training raises an "
                "error.",
                "more_values",
            )  # fmt: skip


def instance_of_one(seen: Seen) -> Iterator[Finding]:
    """Instance norm on maps of 1×1.

    Each value is its own mean, so that all that comes out is β: what the network learnt before is
    gone (torch raises an error where a map's own moments normalize, and says nothing where running
    ones do). Remedy: another kind there.
    """
    for layer in seen.layers:
        if layer.family == "instance" and layer.positions == 1:
            yield finding(
                Level.ERROR, layer.name,
                "Its maps are 1×1: each value is its own mean, and only β comes out.",
                "another_kind",
            )  # fmt: skip


def unreached(seen: Seen) -> Iterator[Finding]:
    """Batch norms that no batch reached.

    Nothing can be said of them, and training on such data would leave them as they are. Auxiliary
    heads that work in training alone are the usual case. Remedy: none.
    """
    for name in seen.unreached:
        yield finding(
                Level.NOTE, name,
            "No batch reached it: its statistics could not be compared with anything.",
        )  # fmt: skip
