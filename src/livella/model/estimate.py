"""What `estimate_population` finds: the statistics of every layer, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from livella.model import domains
from livella.model.kept import Kept
from livella.model.measure import Record
from livella.model.scatter import Interval, intervals
from livella.moments import Moments

AVERAGES = ("running_mean", "running_var")
DIFFER = 0.1
"""Calls of one layer differ where their means lie this many σ apart, or their σ by this share."""


@dataclass(frozen=True, eq=False)
class LayerEstimate:
    """The statistics of one layer's input over the data.

    Attributes:
        name: the layer's name in the model.
        layer: the layer itself.
        calls: the moments of each of its calls in a pass of the model, in order.
        records: the same with how the samples scatter.

    """

    name: str
    layer: _NormBase
    records: tuple[Record, ...]

    @property
    def calls(self) -> tuple[Moments, ...]:
        return tuple(record.moments for record in self.records)

    @cached_property
    def pooled(self) -> Record:
        whole = self.records[0]
        for record in self.records[1:]:
            whole = whole.merge(record)
        return whole

    @property
    def moments(self) -> Moments:
        """Those of all calls together: count, mean and M₂ in float64."""
        return self.pooled.moments

    @property
    def mean(self) -> Tensor:
        """μ, shape (C,), float64."""
        return self.moments.mean

    @property
    def variance(self) -> Tensor:
        """The unbiased variance, what `running_var` holds, shape (C,), float64."""
        return self.moments.variance(unbiased=True)

    def distance(self, mean: Tensor, variance: Tensor) -> float:
        """How far a mean or σ is from these, the larger, in σ; infinite where it is no number.

        Root mean square over the channels, with ε added to variances, as normalization sees them.
        """
        sigma = (self.moments.variance(unbiased=False) + self.layer.eps).sqrt()
        moved = (mean.double() - self.mean) / sigma
        scaled = (variance.double() + self.layer.eps).sqrt() / sigma - 1
        both = [float(each.square().mean().sqrt()) for each in (moved, scaled)]
        return math.inf if any(map(math.isnan, both)) else max(both)

    @property
    def samples(self) -> int:
        """How many samples stand behind it; one that meets several calls counts in each."""
        return 0 if self.pooled.scatter is None else self.pooled.scatter.samples

    @property
    def mean_interval(self) -> Interval:
        """The lower and upper bound of the mean of the population, at 95 %."""
        return self._intervals[0]

    @property
    def variance_interval(self) -> Interval:
        """The lower and upper bound of the variance of the population, at 95 %."""
        return self._intervals[1]

    @cached_property
    def error(self) -> float:
        """Half the width of the intervals, in σ: the larger of that of μ and that of σ.

        Root mean square over the channels, with σ² + ε for the variance, as normalization sees it.
        """
        if self.pooled.scatter is None:
            return float("inf")
        of_mean, of_variance = self._errors
        seen = self.moments.variance(unbiased=False) + self.layer.eps
        of_sigma = of_variance / (2 * seen)
        squares = (of_mean.square() / seen, of_sigma.square())
        return max(float(each.mean().sqrt()) for each in squares)

    @property
    def ordered(self) -> bool:
        """Whether the batches differ more than chance allows, so that the data have an order."""
        return self.excess > 1

    @property
    def calls_differ(self) -> bool:
        """Whether one set of statistics fits all calls badly."""
        return self.apart > DIFFER

    @cached_property
    def apart(self) -> float:
        """How far the calls are from all of them together, at most, in σ."""
        if len(self.calls) < 2:
            return 0.0
        return max(self.distance(c.mean, c.variance(unbiased=False)) for c in self.calls)

    @cached_property
    def excess(self) -> float:
        """How much more batches differ than chance allows, in the call where they do most.

        Call by call: that calls differ from each other says nothing about an order.
        """
        return max(
            (r.scatter.excess(r.moments) for r in self.records if r.scatter is not None),
            default=1.0,
        )

    @cached_property
    def _errors(self) -> tuple[Tensor, Tensor]:
        """The half-widths of the intervals of mean and variance.

        The calls of one pass see the same samples: at worst they all err alike.
        """
        if self.pooled.scatter is None:
            raise ValueError(f"layer {self.name!r} met no samples: there is no interval")
        widening = len(self.records) ** 0.5
        mean, variance = self.pooled.scatter.errors(self.moments, self.excess)
        return widening * mean, widening * variance

    @cached_property
    def _intervals(self) -> tuple[Interval, Interval]:
        return intervals(self.moments, self._errors)


def estimates_of(
    layers: Mapping[str, _NormBase], records: Mapping[tuple[str, int], Record]
) -> dict[str, LayerEstimate]:
    """Put together what the calls of each layer were given, for those that were called."""
    found = {}
    for name, layer in layers.items():
        calls = sorted(site for site in records if site[0] == name)
        if calls:
            found[name] = LayerEstimate(name, layer, tuple(records[site] for site in calls))
    return found


@dataclass(eq=False)
class PopulationEstimate:
    """The statistics of the training set for every batch norm measured; the model is as before.

    Attributes:
        layers: by name, in the order in which the model holds them.
        left: the batch norms that were not measured, and why.
        method: "sequential" or "single_pass".
        passes: how often the data were read.

    """

    layers: Mapping[str, LayerEstimate]
    left: Mapping[str, str]
    method: str
    passes: int
    _before: Kept | None = None

    def apply(self) -> PopulationEstimate:
        """Write mean and unbiased variance into the running averages, in place: all or none.

        Counters and momentum stay. Applied again it does nothing.

        Raises:
            ValueError: an estimate cannot be stored, or another domain is in use than when it was
                measured; the model is then as before.

        """
        if self._before is None:
            domains.check_still_used(self._modules, self._domains, "apply")
            layers = self._modules.values()
            before = Kept.of(buffers=[(layer, name) for layer in layers for name in AVERAGES])
            try:
                for estimate in self.layers.values():
                    estimate.moments.store_in(estimate.layer)
            except BaseException:
                before.put_back()
                raise
            self._before = before
        return self

    def __post_init__(self) -> None:
        self._modules = {name: estimate.layer for name, estimate in self.layers.items()}
        self._domains = domains.used_by(self._modules)

    def revert(self) -> PopulationEstimate:
        """Put back what was there before `apply`, bit for bit; without one it does nothing."""
        if self._before is not None:
            self._before.put_back()
            self._before = None
        return self

    def __str__(self) -> str:
        """Say, layer by layer, how far the running averages are off and how sure that is."""
        rows = [("layer", "samples", "mean off by", "variance ×", "known to")]
        rows += [(e.name, f"{e.samples:,}", *_told(e), f"{e.error:.2g} σ") for e in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
                 for row in rows]  # fmt: skip
        lines += [f"not measured: {name} ({why})" for name, why in self.left.items()]
        passes = f"{self.passes} pass{'' if self.passes == 1 else 'es'} over the data"
        return "\n".join([f"Population statistics, {self.method}, {passes}", *lines])

    def __iter__(self) -> Iterator[LayerEstimate]:
        return iter(self.layers.values())


def _told(estimate: LayerEstimate) -> tuple[str, str]:
    """How far the running averages are from the estimate, in the median channel."""
    mean, var = _averages(estimate)
    seen = estimate.variance + estimate.layer.eps
    off = ((mean.to(seen.dtype) - estimate.mean).abs() / seen.sqrt()).median()
    ratio = ((var.to(seen.dtype) + estimate.layer.eps) / seen).median()
    return f"{float(off):.2g} σ", f"{float(ratio):.3g}"


def _averages(estimate: LayerEstimate) -> tuple[Tensor, Tensor]:
    mean, var = estimate.layer.running_mean, estimate.layer.running_var
    assert mean is not None, "only layers with averages are measured"
    assert var is not None
    return mean, var
