"""The statistics of batch norms between those of training and those of the data met in use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from livella.model.estimate import LayerEstimate
from livella.model.levels import Site
from livella.model.measure import Pass, Record
from livella.moments import Moments

Pair = tuple[Tensor, Tensor]
"""Mean and variance, as a layer keeps them."""


@dataclass(frozen=True)
class Change:
    """How far a layer's statistics are from those of training.

    Attributes:
        offset: the root of the mean over the channels of (μ − μₛ)²/(σₛ² + ε): in σ of training.
        ratio: the median over the channels of (σ² + ε)/(σₛ² + ε).

    """

    offset: float
    ratio: float


@dataclass(frozen=True, eq=False)
class Met:
    """What a layer met in use: moments, which may have faded, of so many samples."""

    moments: Moments
    samples: float

    def fading(self, decay: float) -> Met:
        """Let it count less."""
        count, mean, m2 = self.moments.count, self.moments.mean, self.moments.m2
        return Met(Moments(torch.as_tensor(count) * decay, mean, m2 * decay), self.samples * decay)

    def merge(self, moments: Iterable[Moments], samples: float) -> Met:
        """Take in what the calls for so many samples more were given."""
        whole = self.moments
        for each in moments:
            whole = whole.merge(each)
        return Met(whole, self.samples + samples)


@dataclass(eq=False)
class Blend:
    """Batch norms, what they were trained on, and what they met since.

    Attributes:
        layers: by name.
        prior: N, how many samples the statistics of training count as.
        source: the statistics of training.
        met: those of the stream so far, of layers that it reached.

    """

    layers: Mapping[str, _NormBase]
    prior: float
    source: dict[str, Pair] = field(init=False)
    met: dict[str, Met] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.source = {name: _copied(averages(layer)) for name, layer in self.layers.items()}

    def of(self, name: str, met: Met) -> Pair:
        """μ = (1 − s)·μₛ + s·μₜ, and σ² likewise, with s = n/(N + n) for n samples met."""
        mean, variance = self.source[name]
        if not bool((torch.as_tensor(met.moments.count) > 0).all()):
            return mean, variance
        share = met.samples / (self.prior + met.samples)
        # As the moments of one value, these have just the biased variance the layer normalizes by.
        blended = Moments(1, mean, variance).blend(met.moments, share)
        return blended.mean.to(mean), blended.variance(unbiased=False).to(variance)

    def settle(self, estimate: LayerEstimate) -> Pair:
        """Blend what a layer was given in all its calls over a whole set."""
        samples = max(0 if r.scatter is None else r.scatter.samples for r in estimate.records)
        return self.of(estimate.name, Met(estimate.moments, samples))

    def with_call(self, faded: Mapping[str, Met], reading: Pass, site: Site, samples: int) -> Pair:
        """Blend what a layer met so far, this call with it."""
        name = site[0]
        calls = [_settled(r) for other, r in reading.records.items() if other[0] == name]
        return self.of(name, self._before(faded, name).merge(calls, samples))

    def after(
        self, faded: Mapping[str, Met], records: Mapping[Site, Record], samples: int
    ) -> dict[str, Pair]:
        """Take in a whole pass; give the statistics that follow, of every layer it reached."""
        met = dict(faded)
        for name in {site[0] for site in records}:
            calls = [_settled(record) for site, record in records.items() if site[0] == name]
            met[name] = self._before(faded, name).merge(calls, samples)
        self.met = met
        return {name: self.of(name, each) for name, each in met.items()}

    @torch.no_grad()
    def store(self, statistics: Mapping[str, Pair]) -> None:
        """Write statistics into the layers, all or none."""
        for name, pair in statistics.items():
            if not all(bool(value.isfinite().all()) for value in pair):
                raise ValueError(
                    f"layer {name!r}: statistics of these data are more than {pair[0].dtype} can "
                    "hold; look at the data, or keep the layer in float32"
                )
        for name, pair in statistics.items():
            for buffer, value in zip(averages(self.layers[name]), pair, strict=True):
                buffer.copy_(value)

    def changes(self) -> dict[str, Change]:
        """Give how far each layer is from its source now."""
        return {name: self._change(name) for name in self.layers}

    def _before(self, faded: Mapping[str, Met], name: str) -> Met:
        mean = self.source[name][0]
        return faded.get(name) or Met(Moments.empty(len(mean), mean.device), 0)

    def _change(self, name: str) -> Change:
        (mean, variance), now = self.source[name], averages(self.layers[name])
        seen = variance.double() + self.layers[name].eps
        offset = ((now[0].double() - mean.double()).square() / seen).mean().sqrt()
        return Change(
            float(offset), float(((now[1].double() + self.layers[name].eps) / seen).median())
        )


def averages(layer: _NormBase) -> Pair:
    """Give the running averages of a layer that keeps some."""
    assert layer.running_mean is not None, "only layers with averages are adapted"
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def _copied(pair: Pair) -> Pair:
    return pair[0].detach().clone(), pair[1].detach().clone()


def _settled(record: Record) -> Moments:
    return record.settle().moments
