"""What a model's normalizations meet in use, and how the model does by which statistics.

Nothing is judged here, and nothing of the model is changed: passes put other tensors in the
buffers' place and take them away again (`livella.model.measure`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from livella.diagnosis.callers import Callers
from livella.diagnosis.records import Gap
from livella.diagnosis.scoring import Judge, Loss, Score
from livella.model import feeding, sites
from livella.model.estimate import LayerEstimate, estimates_of
from livella.model.feeding import Forward
from livella.model.levels import Site
from livella.model.measure import Pass, Statistics
from livella.model.passes import of_batch
from livella.model.progress import Bar
from livella.moments import Moments

FEW = 8
"""Batches up to which the model is tried on all, and on every other one beyond."""


@dataclass
class Data:
    """The batches to look at, and how the model is called on them."""

    model: nn.Module
    batches: Iterable[Any]
    forward: Forward = feeding.feed
    progress: bool | None = None

    def __iter__(self) -> Iterator[Any]:
        return feeding.on_device(self.model, self.batches)

    def bar(self, total: int | None = None) -> Bar:
        """Give a bar for so many batches, by default all."""
        if total is None and isinstance(self.batches, Sized):
            total = len(self.batches)
        return Bar("inspect", self.progress, total)

    def output(self, reading: Pass, batch: Any) -> Any:
        """Call the model on a batch in a pass."""
        outputs: list[Any] = []
        reading.run(lambda: outputs.append(self.forward(self.model, batch)))
        return outputs[0]


@dataclass
class Met:
    """What one pass over the data found.

    Attributes:
        estimates: by layer, those that keep running statistics and were reached.
        callers: how the layers are called.
        sizes: samples of each batch.
        judge: how outputs are scored; `by_batch` is the score of each batch's own statistics.

    """

    callers: Callers
    judge: Judge
    estimates: dict[str, LayerEstimate]
    sizes: list[int] = field(default_factory=list)
    by_batch: Score = field(default_factory=Score)

    @property
    def usual(self) -> int:
        """Samples of a usual batch."""
        return sorted(self.sizes)[len(self.sizes) // 2]


def by_batch(data: Data, layers: Mapping[str, _NormBase], loss: Loss | None, what: str) -> Met:
    """Read the data once, each layer normalizing by the batch at hand, and measure its inputs."""
    met: Met | None = None
    reading, callers = batch_pass(data.model, layers), Callers(data.model)
    with data.bar() as bar, reading, callers:
        bar.begin(what)
        for batch in data:
            output = data.output(reading, batch)
            callers.seen = True
            met = met or Met(callers, Judge.of(loss, output, batch), {})
            met.sizes.append(feeding.samples_in(batch))
            met.judge.score(output, batch, output, met.by_batch)
            bar.advance()
    if met is None:
        raise ValueError("inspect: got no batches; pass a loader that yields some, or none at all")
    met.estimates = estimates_of(layers, reading.records)
    return met


def batch_pass(
    model: nn.Module, layers: Mapping[str, _NormBase], wanted: Collection[Site] | None = None
) -> Pass:
    """Give a pass in which layers normalize by the batch at hand.

    One value a channel has no variance: it is normalized by the layer's own statistics.
    """

    def statistics(site: Site, values: int) -> Statistics:
        own = reading.originals[site[0]]
        return of_batch(reading.met, own) if values > 1 else own

    reading = Pass(model, layers, statistics, wanted)
    return reading


def gap(data: Data, met: Met) -> Gap | None:
    """Try the model by its running statistics and by those of the data, on every other batch.

    On all where there are few.
    """
    if not met.estimates:
        return None
    population = {name: population_of(each) for name, each in met.estimates.items()}
    running, better = Score(), Score()
    every = 2 if len(met.sizes) > FEW else 1
    with data.bar(-(-len(met.sizes) // every)) as bar:
        bar.begin("by statistics")
        for batch in islice(data, 0, None, every):
            good = output_by(data, batch, population)
            met.judge.score(good, batch, good, better)
            met.judge.score(output_by(data, batch, {}), batch, good, running)
            bar.advance()
    accuracy = (running.accuracy, better.accuracy, met.by_batch.accuracy)
    told = None if any(map(math.isnan, accuracy)) else accuracy
    return Gap(met.judge.unit, running.mean, better.mean, met.by_batch.mean, told)


def output_by(data: Data, batch: Any, statistics: Mapping[str, Statistics]) -> Any:
    """Run the model in inference mode, some layers by other statistics than their own."""
    layers = {n: module for n, module in batch_norms(data.model).items() if n in statistics}
    with Pass(data.model, layers, lambda site, _values: statistics[site[0]], wanted=()) as reading:
        return data.output(reading, batch)


def population_of(estimate: LayerEstimate) -> Statistics:
    """Give mean and unbiased variance of all that a layer met, as its buffers hold them."""
    like = estimate.layer.running_mean
    assert like is not None, "only layers with averages are measured"
    return estimate.mean.to(like.dtype), variance_of(estimate.moments).to(like.dtype)


def variance_of(moments: Moments) -> torch.Tensor:
    """Give the unbiased variance; of one value the biased one, which is zero."""
    return moments.variance(unbiased=int(torch.as_tensor(moments.count).min()) > 1)


def batch_norms(model: nn.Module) -> dict[str, _NormBase]:
    """Give the batch norms that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if sites.is_batch_norm(module) and module.running_mean is not None
    }
