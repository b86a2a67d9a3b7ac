"""Checks of what is stored in a layer: no data needed."""

from __future__ import annotations

import math
from collections.abc import Iterator

from livella.diagnosis.checks.damage import is_measured, of_cause, of_layer
from livella.diagnosis.checks.finding import finding, measuring
from livella.diagnosis.records import Finding, Layer, Level, Seen

TINY = 1e-12
"""A variance below this is that of a channel whose input never changed."""


def not_finite(seen: Seen) -> Iterator[Finding]:
    """Running statistics, γ or β with NaN or infinity.

    One NaN in a batch of training poisons the running averages for good, as NaN times anything is
    NaN (pytorch issue 90342); training goes on unharmed, as it does not use them, and evaluation
    gives NaN. Remedy: measure the statistics again, safe; NaN in γ or β can only be trained again.
    """
    for layer in seen.layers:
        broken = [name for name, values in _stored(layer) if not all(map(math.isfinite, values))]
        if broken:
            counts = {n: sum(not math.isfinite(v) for v in dict(_stored(layer))[n]) for n in broken}
            told = ", ".join(f"{name} in {count} of {layer.features} channels"
                             for name, count in counts.items())  # fmt: skip
            statistics = all(name.startswith("running") for name in broken)
            yield finding(
                Level.ERROR, layer.name,
                f"NaN or infinity in {told}: every output of the network in eval() that depends "
                "on them is lost.",
                measuring(layer) if statistics else "train_again",
                share=layer.share, numbers={name: float(count) for name, count in counts.items()},
            )  # fmt: skip


def negative_variance(seen: Seen) -> Iterator[Finding]:
    """A running variance below zero.

    It comes of averaging checkpoints with extrapolation, of quantization, or of a bad import;
    √(σ² + ε) is then NaN or that of another channel. Remedy: measure again, safe.
    """
    for layer in seen.layers:
        bad = [v for v in layer.running_var or () if v < 0]
        if bad:
            yield finding(
                Level.ERROR, layer.name,
                f"{len(bad)} of {layer.features} running variances are negative, down to "
                f"{min(bad):.3g}: no square root of them is right.",
                measuring(layer), share=layer.share,
                numbers={"channels": len(bad), "least": min(bad)},
            )  # fmt: skip


def never_updated(seen: Seen) -> Iterator[Finding]:
    """Running statistics as they were made: mean 0 and variance 1 in every channel.

    No batch of training was ever taken in: the layer was in eval(), frozen or new, or only its
    weights were loaded. In evaluation it normalizes by nothing. The level is that of the damage
    where it was measured. Known limit: a layer whose input truly has mean 0 and variance 1 in every
    channel to the last bit. Remedy: measure them, safe.
    """
    for layer in seen.layers:
        mean, var = layer.running_mean, layer.running_var
        if mean is None or var is None or layer.frozen:
            continue
        if not any(mean) and all(value == 1 for value in var):
            counted = "" if layer.counter is None else f" after {layer.counter:,} counted batches"
            cost = of_layer if is_measured(seen, layer) else of_cause
            yield finding(
                cost(seen, layer), layer.name,
                f"The running statistics are still those it was made with, mean 0 and variance "
                f"1{counted}: in eval() it normalizes by nothing.",
                "measure_statistics", share=layer.share,
                numbers={"counter": float(layer.counter or 0)},
            )  # fmt: skip


def constant_channels(seen: Seen) -> Iterator[Finding]:
    """Running variances of next to nothing: channels whose input never changes.

    Such a channel gives out β whatever it is given, as ε is all that its variance has; it costs
    time and does nothing. Pruning and ReLUs that died before it make them. Where the data in use
    differ, anything there is blown up by 1/√ε. Known limit: a variance that is small but useful,
    with a small ε. Remedy: none is needed; the channels can be pruned.
    """
    for layer in seen.layers:
        var = layer.running_var or ()
        dead = sum(0 <= value < TINY for value in var)
        if dead:
            yield finding(
                Level.NOTE, layer.name,
                f"{dead} of {layer.features} channels never vary (variance below {TINY:g}): they "
                "give out β whatever comes in, and could be pruned.",
                "prune", numbers={"channels": dead, "share": dead / layer.features},
            )  # fmt: skip


def large_eps(seen: Seen) -> Iterator[Finding]:
    """An ε above the variance of many channels, or none at all.

    What is normalized by √(σ² + ε) with σ² < ε does not have variance one: the channel is damped,
    and how much depends on ε, so that an ε of another framework (1e-3 there, 1e-5 here) changes
    the function. With ε = 0 a constant channel gives NaN. Remedy: advice only; ε belongs to the
    trained function.
    """
    for layer in seen.layers:
        var = [value for value in layer.running_var or () if value >= TINY]
        below = sum(value < layer.eps for value in var)
        if layer.eps == 0:
            yield finding(
                Level.WARNING, layer.name,
                "ε is 0: a channel that is constant in a batch becomes NaN.", "eps",
                numbers={"eps": 0.0},
            )  # fmt: skip
        elif var and 10 * below > len(var):
            yield finding(
                Level.NOTE, layer.name,
                f"ε = {layer.eps:g} is above the variance of {below} of {len(var)} channels, which "
                "are damped by it rather than normalized.",
                "eps", numbers={"eps": layer.eps, "channels": below},
            )  # fmt: skip


def silent_channels(seen: Seen) -> Iterator[Finding]:
    """Channels that γ switches off, or that β keeps below zero.

    With γ = 0 a channel gives out β whatever comes in. With β below −4·|γ| nothing but outliers
    gets over zero, so that a ReLU behind it is dead. A zero γ in the last layer of each residual
    block is a usual initialization, and untrained networks have it by intent. Known limit: what
    follows is not looked at; behind other activations a low β is alive. Remedy: prune, or nothing.
    """
    for layer in seen.layers:
        weight, bias = layer.weight, layer.bias
        if weight is None:
            continue
        off = sum(value == 0 for value in weight)
        low = 0
        if bias is not None:
            pairs = zip(weight, bias, strict=True)
            low = sum(w != 0 and b < -4 * abs(w) for w, b in pairs)
        if off or low:
            yield finding(
                Level.NOTE, layer.name,
                f"{off} of {layer.features} channels have γ = 0, {low} more have β below −4·|γ|: "
                "a ReLU behind them lets nothing through but outliers.",
                "prune", numbers={"off": off, "low": low},
            )  # fmt: skip


def _stored(layer: Layer) -> list[tuple[str, tuple[float, ...]]]:
    named = (
        ("running_mean", layer.running_mean),
        ("running_var", layer.running_var),
        ("weight", layer.weight),
        ("bias", layer.bias),
    )
    return [(name, values) for name, values in named if values is not None]
