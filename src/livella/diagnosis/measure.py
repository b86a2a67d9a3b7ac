"""What a model's normalizations meet in use, and how the model does by which statistics.

Nothing is judged here, and nothing of the model is changed: passes put other tensors in the
buffers' place and take them away again (`livella.model.measure`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella.diagnosis.callers import Callers
from livella.diagnosis.mixture import (
    Mixture,
    UnmixableError,
    cut,
    halves,
    joined,
    reversed_batch,
    turned,
)
from livella.diagnosis.scores import Judged, Mean, judged
from livella.diagnosis.scoring import Judge
from livella.model import feeding, sites
from livella.model.estimate import LayerEstimate, estimates_of
from livella.model.feeding import Forward
from livella.model.levels import Site
from livella.model.measure import Pass, Record, Statistics
from livella.model.passes import of_batch
from livella.model.progress import Bar, length_of
from livella.moments import Moments

FEW = 8
"""Batches that stand for data which cannot be mixed."""
REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What models raise at a batch that they cannot take."""
SAMPLE = 128
"""Examples of a part that stands for all."""
LABELLED = 16
"""Examples from which on it can be told whether labels mean anything."""
GONE = (
    "inspect: the batches gave nothing when they were read again; pass a loader or a list, which "
    "can be read several times"
)
ROUNDS = 3
"""Readings of batches that cannot be mixed."""
ALIKE = 1e-2
"""How far outputs may be from each other, of their largest value, to be the same but for
rounding."""


Means = dict[str, Statistics]
"""Mean and variance to normalize by, by layer."""


@dataclass
class Data:
    """The batches to look at, and how the model is called on them."""

    model: nn.Module
    batches: Iterable[Any]
    forward: Forward = feeding.feed
    progress: bool | None = None

    def __iter__(self) -> Iterator[Any]:
        batches = feeding.on_device(self.model, self.batches)
        return (batch for batch in batches if feeding.samples_in(batch))

    def bar(self, total: int | None = None) -> Bar:
        """Give a bar for so many batches, by default all."""
        known = length_of(self.batches) if total is None else total
        return Bar("inspect", self.progress, known)

    def output(self, reading: Pass, batch: Any) -> Any:
        """Call the model on a batch in a pass, wherever the batch was kept."""
        batch = feeding.to_device(batch, feeding.device_of(self.model))
        outputs: list[Any] = []
        reading.run(lambda: outputs.append(self.forward(self.model, batch)))
        return outputs[0]


@dataclass
class Met:
    """What was found of the data.

    Attributes:
        callers: how the layers are called.
        judge: how outputs are scored.
        sizes: samples of each batch.
        as_given: what each call met in the batches as they come, each normalized by itself.
        estimates: by layer, the population as inference would meet it.
        own: the scores of each batch by itself, where labels tell them at once.
        whole: whether batches cannot be taken apart.
        halves: mean and variance by layer, of two halves of the data.
        mixed: batches that stand for all of the data; those given where they cannot be mixed.

    """

    callers: Callers
    judge: Judge
    sizes: list[int] = field(default_factory=list)
    as_given: dict[str, LayerEstimate] = field(default_factory=dict)
    estimates: dict[str, LayerEstimate] = field(default_factory=dict)
    own: list[Judged] = field(default_factory=list)
    halves: list[Means] = field(default_factory=list)
    mixed: list[Any] = field(default_factory=list)
    whole: bool = False

    @property
    def usual(self) -> int:
        """Samples of a usual batch."""
        return sorted(self.sizes)[len(self.sizes) // 2]

    @property
    def sample(self) -> Any:
        """A part of them that stands for all."""
        return self.mixed[0] if self.whole else cut(self.mixed[0], SAMPLE)[0]

    @property
    def population(self) -> Means:
        """Mean and variance of the population, by layer."""
        return means_of(self.estimates)


JudgeOf = Callable[[Any, Any], Judge]
"""Makes the judge of the first output and its batch."""


def meet(data: Data, layers: Mapping[str, _NormBase], judge_of: JudgeOf, what: str) -> Met:
    """Read the data, and measure what the layers meet: in the batches, and in the population."""
    met, mixture = _as_given(data, layers, judge_of, what)
    met.mixed = mixture.batches() if can_be_mixed(data, layers) else []
    if met.mixed:
        met.estimates, met.halves = of_mixture(data, layers, met.mixed)
    if not met.as_given.keys() <= met.estimates.keys():  # or a mixture goes another way
        _keep_whole(data, layers, met)
    trusted = output_by(data, met.sample, met.population)
    if met.judge.guessed and not met.whole and not _mean_something(data, met, trusted):
        met.judge = met.judge.without_labels("tells right from wrong outputs no better than chance")
        met.own = []
    if not met.judge.counted:
        met.judge.see(trusted, met.sample)
    met.judge.merit(trusted, met.sample, trusted)  # what is decided by the first is decided now
    return met


def _keep_whole(data: Data, layers: Mapping[str, _NormBase], met: Met) -> None:
    """Measure the population on the batches as they come, some of which stand for all."""
    met.whole, met.estimates = True, of_rounds(data, layers)
    met.mixed = list(islice(data, 0, None, -(-len(met.sizes) // FEW)))
    if not met.mixed:
        raise ValueError(GONE)
    parts = (met.mixed[::2], met.mixed[1::2] or met.mixed)
    records = [_by_the_batch(data, layers, part) for part in parts]
    met.halves = [means_of(estimates_of(layers, each)) for each in records]


def _mean_something(data: Data, met: Met, trusted: Any) -> bool:
    """Whether outputs are better by the labels that were found than those of other examples are.

    By the statistics of the data, or by the running ones; and by the former not worse. Class
    numbers that come with an autoencoder's images are no labels of its outputs.
    """
    batch = met.sample
    samples = feeding.samples_in(batch)
    if samples < LABELLED:
        return True
    better = []
    for output in (trusted, output_by(data, batch, {})):
        try:
            pair = (output, turned(output, samples))
        except UnmixableError:
            return True
        own, others = (met.judge.merit(each, batch, trusted) for each in pair)
        better.append(Mean())
        better[-1].add(own - others)
    worse = better[0].mean < -better[0].interval
    return not worse and any(each.mean > each.interval for each in better)


def _as_given(
    data: Data, layers: Mapping[str, _NormBase], judge_of: JudgeOf, what: str
) -> tuple[Met, Mixture]:
    """Read the data once as they come, each layer normalizing by the batch at hand."""
    met: Met | None = None
    mixture = Mixture()
    reading, callers = batch_pass(data.model, layers), Callers(data.model)
    with data.bar() as bar, reading, callers:
        bar.begin(what)
        for batch in data:
            output = data.output(reading, batch)
            callers.seen = True
            met = met or Met(callers, judge_of(output, batch))
            met.sizes.append(feeding.samples_in(batch))
            if met.judge.counted and met.judge.has_scale:
                met.judge.see(output, batch)
            elif met.judge.counted:
                met.own.append(judged(met.judge, output, batch, output))
            mixture.show(batch)
            bar.advance()
    if met is None:
        raise ValueError("inspect: got no batches; pass a loader that yields some, or none at all")
    met.as_given = estimates_of(layers, reading.records)
    return met, mixture


def can_be_mixed(data: Data, layers: Mapping[str, _NormBase]) -> bool:
    """Whether each example keeps its outputs where its neighbours are others: try it once.

    On a batch and its reverse, which have the same moments and are normalized by them; of batches
    of one the first two make one.
    """
    first = list(islice(data, 2))
    try:
        alone = [each for each in first if feeding.samples_in(each) == 1]
        batch = joined(first) if len(alone) == 2 else first[0]
        if feeding.samples_in(batch) < 2:
            return False
        outputs = [by_itself(data, layers, each) for each in (batch, reversed_batch(batch))]
    except (UnmixableError, *REFUSALS):
        return False
    samples = feeding.samples_in(batch)
    one, other = (list(feeding.tensors_in(each)) for each in outputs)
    if [t.shape for t in one] != [t.shape for t in other]:
        return False
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.dim() and len(a) == samples]
    return bool(pairs) and all(_alike(a, b.flip(0)) for a, b in pairs)


def _alike(a: Tensor, b: Tensor) -> bool:
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    largest = float(a.abs().max()) if a.numel() else 0.0
    return bool(((a - b).abs() <= ALIKE * max(largest, 1e-30)).all())


def of_mixture(
    data: Data, layers: Mapping[str, _NormBase], mixed: list[Any]
) -> tuple[dict[str, LayerEstimate], list[Means]]:
    """Measure the population on mixed batches, each a fair sample; and what its two halves give.

    First each layer normalizes by the batch, so that every layer has those before it normalized as
    they should be; then by what that found, which is inference but for what is second to it. One
    batch alone is the whole of the data: normalizing by it is exact.
    """
    with data.bar(2 * len(mixed)) as bar:
        bar.begin("the population")
        firsts = [_by_the_batch(data, layers, half) for half in halves(mixed)]
        of_halves = [means_of(estimates_of(layers, first)) for first in firsts]
        if len(mixed) == 1:
            return estimates_of(layers, _by_the_batch(data, layers, mixed)), of_halves
        merged = dict(firsts[0])
        for site, record in firsts[1].items():
            merged[site] = merged[site].merge(record) if site in merged else record
        with _by(data.model, layers, estimates_of(layers, merged)) as second:
            for batch in mixed:
                data.output(second, batch)
                bar.advance()
    return estimates_of(layers, second.records), of_halves


def _by_the_batch(
    data: Data, layers: Mapping[str, _NormBase], batches: Iterable[Any]
) -> dict[Site, Record]:
    with batch_pass(data.model, layers) as reading:
        for batch in batches:
            data.output(reading, batch)
    return reading.records


def of_rounds(data: Data, layers: Mapping[str, _NormBase]) -> dict[str, LayerEstimate]:
    """Measure the population on batches as they come, which cannot be mixed.

    In the first round a layer normalizes by all that it met so far, then by what the round before
    found: the first layer is exact in the first round, and what later ones are off shrinks from
    round to round.
    """
    found: dict[str, LayerEstimate] = {}
    for number in range(ROUNDS):
        reading = _by(data.model, layers, found) if found else so_far_pass(data.model, layers)
        with data.bar() as bar, reading:
            bar.begin(f"the population, {number + 1} of {ROUNDS}")
            for batch in data:
                data.output(reading, batch)
                bar.advance()
        found = estimates_of(layers, reading.records)
    return found


def _by(
    model: nn.Module, layers: Mapping[str, _NormBase], found: Mapping[str, LayerEstimate]
) -> Pass:
    """Give a pass that measures while layers normalize by what was found before."""
    statistics = means_of(found)

    def known(site: Site, _values: int) -> Statistics:
        return statistics.get(site[0]) or reading.originals[site[0]]

    reading = Pass(model, layers, known)
    return reading


def so_far_pass(model: nn.Module, layers: Mapping[str, _NormBase]) -> Pass:
    """Give a pass in which a layer normalizes by all that this call of it met so far."""

    def statistics(site: Site, _values: int) -> Statistics:
        own = reading.originals[site[0]]
        record = reading.records.get(site)
        if record is None or not bool((torch.as_tensor(record.settle().moments.count) > 1).all()):
            return own
        return _as_buffers(layers[site[0]], record.moments.mean, variance_of(record.moments))

    reading = Pass(model, layers, statistics)
    return reading


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


def by_itself(data: Data, layers: Mapping[str, _NormBase], batch: Any) -> Any:
    """Run the model with each layer normalizing by the batch at hand."""
    with batch_pass(data.model, layers) as reading:
        return data.output(reading, batch)


def output_by(data: Data, batch: Any, statistics: Mapping[str, Statistics]) -> Any:
    """Run the model in inference mode, some layers by other statistics than their own."""
    layers = {n: module for n, module in batch_norms(data.model).items() if n in statistics}
    with Pass(data.model, layers, lambda site, _values: statistics[site[0]], wanted=()) as reading:
        return data.output(reading, batch)


def means_of(estimates: Mapping[str, LayerEstimate]) -> Means:
    """Give mean and unbiased variance of each layer."""
    return {name: population_of(each) for name, each in estimates.items()}


def population_of(estimate: LayerEstimate) -> Statistics:
    """Give mean and unbiased variance of all that a layer met, as its buffers hold them."""
    return _as_buffers(estimate.layer, estimate.mean, variance_of(estimate.moments))


def _as_buffers(layer: _NormBase, mean: Tensor, variance: Tensor) -> Statistics:
    like = layer.running_mean
    assert like is not None, "only layers with averages are measured"
    return mean.to(like), variance.to(like)


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
