"""What layers met, in plain numbers."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from livella.diagnosis import facts
from livella.diagnosis.measure import Met, variance_of
from livella.diagnosis.records import Distance, Layer, Measured
from livella.model.blending import Pair, averages
from livella.model.estimate import LayerEstimate
from livella.model.measure import Record
from livella.moments import Moments


def told(layer: Layer, met: Met, model: nn.Module) -> Layer:
    """Add to a layer's facts what the pass found of it."""
    estimate = met.estimates.get(layer.name)
    source = met.callers.sources.get(layer.name, "")
    module = model.get_submodule(source) if source else None
    return dataclasses.replace(
        layer,
        positions=met.callers.positions.get(layer.name),
        source=source,
        source_kind="" if module is None else type(module).__name__,
        source_bias=module is not None and facts.adds_bias(module),
        measured=None if estimate is None else measured(estimate, met),
        off=None if estimate is None else _off(estimate),
    )


def measured(estimate: LayerEstimate, met: Met) -> Measured:
    """Put what one layer met into plain numbers.

    The moments are those of the population; what batches are worth, and how they differ, is of the
    batches as they came.
    """
    as_given = met.as_given.get(estimate.name, estimate)
    moments, first = estimate.moments, as_given.records[0]
    noise, effective = _noise(estimate.records[0], met.usual, estimate.layer.eps)
    return Measured(
        calls=met.callers.calls.get(estimate.name, len(estimate.records)),
        samples=0 if first.scatter is None else first.scatter.samples,
        batches=0 if first.scatter is None else first.scatter.batches,
        values=float(met.usual * met.callers.positions.get(estimate.name, 1)),
        mean=tuple(moments.mean.tolist()),
        variance=tuple(variance_of(moments).tolist()),
        error=estimate.error,
        noise=noise,
        effective=effective,
        excess=as_given.excess,
        apart=estimate.apart,
    )


def _noise(record: Record, batch: int, eps: float) -> tuple[float, float]:
    """The standard deviation of the mean of a batch, in σ, and the independent values it is worth.

    From how samples scatter; in channels that vary, the median.
    """
    if record.scatter is None or record.scatter.samples < 2 or not batch:
        return math.inf, 0.0
    each = record.scatter.variance_of_mean(record.moments) / batch
    variance = record.moments.variance(unbiased=False)
    varies = variance > eps * 1e-6
    if not bool(varies.any()):
        return 0.0, math.inf
    effective = float((variance[varies] / each[varies].clamp(min=1e-300)).median())
    noise = float((each[varies] / (variance[varies] + eps)).median().sqrt())
    return noise, effective


def _off(estimate: LayerEstimate) -> Distance:
    """How far a layer's running statistics are from what it met."""
    of_data = (estimate.mean, variance_of(estimate.moments))
    return distances(estimate.layer.eps, of_data, averages(estimate.layer))


def distances(eps: float, of_data: Pair, assumed: Pair) -> Distance:
    """How far a mean and variance are from those of the data."""
    seen, own = (variance.double() + eps for _, variance in (of_data, assumed))
    offset = (assumed[0].double() - of_data[0].double()).square() / seen
    ratio = own / seen
    divergence = 0.5 * (ratio.log() + (1 + offset) / ratio - 1)
    amplified = (-0.5 * ratio.clamp(min=1e-300).log()).clamp(min=0).square().mean().sqrt()
    return Distance(
        float(offset.mean().sqrt()), float(ratio.nanmedian()), float(divergence.mean()),
        float(amplified),
    )  # fmt: skip


def between(training: Measured, deployed: Moments, eps: float) -> Distance:
    """How far deployment data are from those of training: in σ of training, their variance over it.

    The divergence is that of what training leads to expect.
    """
    before = (torch.tensor(training.mean), torch.tensor(training.variance))
    now = (deployed.mean.cpu(), variance_of(deployed).cpu())
    there, back = distances(eps, before, now), distances(eps, now, before)
    return Distance(there.offset, there.ratio, back.divergence, back.amplified)
