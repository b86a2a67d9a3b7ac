"""The statistics of a stream of which few classes have come: what these classes cannot explain.

The class is the unit of sampling, not the sample: the mean of data of few classes is off by what
lies between classes, however many samples there are. So the mean of a layer moves by what exceeds
that, as the positive-part estimate of James and Stein (1961, "Estimation with Quadratic Loss")
does it for all channels together; and its variance is the second moment about the mean that was
adopted, in which a class counts alike near the mean or far from it, as in that of training. Gong et
al. (2022, "NOTE") correct by what lies outside of an interval too, there sample by sample.

Only the first half of the layers is corrected: what is left of a shift behind them is little, and
in the last layers classes are most of what varies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from livella.model.blending import Pair
from livella.model.estimate import LayerEstimate
from livella.model.levels import Site
from livella.model.measure import Pass, Record
from livella.moments import Moments

MEMORY = 512
"""Samples that are remembered: in an order long enough that classes come again."""
DOUBT = 2.0
"""How far classes that did not come may lie from those that did, in variances of what was seen."""
SPREAD = 0.3
"""How far the log of a second moment differs between classes: the half of `watch.SPREAD`."""


@dataclass(frozen=True, eq=False)
class Past:
    """What a layer met, which may have faded.

    Attributes:
        moments: of all values.
        batches: of the means of batches, each as often as it has samples.
        within: Σ(m − m̄)² of the means of samples about that of their batch, (C,).

    """

    moments: Moments
    batches: Moments
    within: Tensor

    @classmethod
    def of(cls, record: Record) -> Past:
        """Take what calls of a layer were given."""
        moments, scatter = record.settle().moments, record.scatter
        assert scatter is not None, "a record of a call has samples"
        shift = moments.mean - scatter.centre
        of_mean = torch.stack([-shift, torch.ones_like(shift), torch.zeros_like(shift)], 1)
        within, spread = (
            torch.einsum("ca,cab,cb->c", of_mean, each, of_mean) / scatter.mean[:, 0].square()
            for each in (scatter.within, scatter.spread)
        )
        between = (spread - within).clamp(min=0)
        return cls(moments, Moments(scatter.samples, moments.mean, between), within)

    @property
    def samples(self) -> Tensor:
        return torch.as_tensor(self.batches.count)

    def fading(self, kept: float) -> Past:
        """Let it count less."""
        return Past(_fading(self.moments, kept), _fading(self.batches, kept), self.within * kept)

    def merge(self, other: Past) -> Past:
        """Give what was met in both."""
        moments, batches = self.moments.merge(other.moments), self.batches.merge(other.batches)
        return Past(moments, batches, self.within + other.within)


@dataclass(eq=False)
class Caution:
    """Batch norms, what they were trained on, and what they met in a stream in any order.

    Attributes:
        layers: by name.
        source: the statistics of training.
        prior: N, how many samples they count as.
        past: what layers met, by name.
        concentration: how few classes came, from 0, all alike, to 1, a single one.
        first: the layers that are corrected.

    """

    layers: Mapping[str, _NormBase]
    source: Mapping[str, Pair]
    prior: float
    past: dict[str, Past] = field(default_factory=dict)
    concentration: float = 1.0
    first: frozenset[str] = frozenset()

    def begin(self, names: Iterable[str], concentration: float) -> None:
        """Correct the first half of the layers of these names, in the order of their calls."""
        order = list(dict.fromkeys(names))
        self.first = frozenset(order[: (len(order) + 1) // 2])
        self.concentration = concentration

    def of(self, name: str, past: Past | None) -> Pair:
        """Give the statistics of a layer that met this."""
        if past is None or name not in self.first or not bool(past.samples > 0):
            return self.source[name]
        mean, variance = (each.double() for each in self.source[name])
        eps, samples = self.layers[name].eps, float(past.samples)
        seen, moved = variance + eps, past.moments.mean - mean
        varies = past.batches.m2 / samples + past.within / samples
        doubt = float((varies / seen).mean()) * (DOUBT * self.concentration + 1 / samples)
        moved = moved * _beyond(float((moved.square() / seen).mean()), doubt)
        about = past.moments.mean - mean - moved
        ratio = (past.moments.variance(unbiased=False) + about.square() + eps) / seen
        logarithm = ratio.clamp(min=torch.finfo(ratio.dtype).tiny).log()
        doubt = SPREAD**2 * self.concentration + 2 / samples
        logarithm = logarithm * _beyond(float(logarithm.square().mean()), doubt)
        share = samples / (samples + self.prior)
        found = (1 - share) * variance + share * (seen * logarithm.exp() - eps).clamp(min=0)
        return (mean + share * moved).to(self.source[name][0]), found.to(self.source[name][1])

    def settle(self, estimate: LayerEstimate) -> Pair:
        """Give the statistics of a layer that met a whole set."""
        return self.of(estimate.name, _with(None, estimate.records))

    def with_call(self, faded: Mapping[str, Past], reading: Pass, site: Site) -> Pair:
        """Give the statistics of a layer that met this call after the rest."""
        name = site[0]
        calls = (r for other, r in reading.records.items() if other[0] == name)
        return self.of(name, _with(faded.get(name), calls))

    def faded(self, samples: int) -> dict[str, Past]:
        """What is remembered once so many more have come."""
        kept = max(0.0, 1 - samples / MEMORY)
        return {name: past.fading(kept) for name, past in self.past.items()}

    def after(self, faded: Mapping[str, Past], records: Mapping[Site, Record]) -> dict[str, Pair]:
        """Take in a whole pass; give the statistics that follow, of every layer it reached."""
        past = dict(faded)
        for name in {site[0] for site in records}:
            found = _with(past.get(name), (r for site, r in records.items() if site[0] == name))
            assert found is not None, "the layer was called"
            past[name] = found
        self.past = past
        return {name: self.of(name, past[name]) for name in past}


def _with(past: Past | None, calls: Iterable[Record]) -> Past | None:
    for record in calls:
        met = Past.of(record)
        past = met if past is None else past.merge(met)
    return past


def _beyond(square: float, doubt: float) -> float:
    """The share of a deviation that is beyond doubt: 1 − doubt/square, not below zero."""
    return max(0.0, 1 - doubt / square) if square > 0 else 0.0


def _fading(moments: Moments, kept: float) -> Moments:
    return Moments(torch.as_tensor(moments.count) * kept, moments.mean, moments.m2 * kept)
