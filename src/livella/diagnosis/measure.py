"""What a model's normalizations meet in use, and how the model does by which statistics.

Nothing is judged here, and nothing of the model is changed: passes put other tensors in the
buffers' place and take them away again (`livella.model.measure`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella.diagnosis import facts
from livella.diagnosis.records import Distance, Gap, Layer, Measured
from livella.model import feeding, sites
from livella.model.estimate import LayerEstimate
from livella.model.feeding import Forward
from livella.model.measure import Pass, Record, Statistics
from livella.model.passes import of_batch
from livella.model.progress import Bar
from livella.moments import Moments

Loss = Callable[[Any, Any], Tensor]
"""loss(output, batch): a scalar, the mean over the samples of the batch."""

FEW = 8
"""Batches up to which the model is tried on all, and on every other one beyond."""
Pair = tuple[Tensor, Tensor]
"""Mean and variance, (C,) each."""

LOOKS = 1
"""Batches on which the effect of dropout is looked at."""


@dataclass
class Score:
    """The mean of what is counted over batches, weighted by their samples."""

    total: float = 0.0
    right: float = 0.0
    samples: int = 0

    def add(self, value: float, right: float | None, samples: int) -> None:
        """Take in a batch."""
        self.total += value * samples
        self.right += math.nan if right is None else right
        self.samples += samples

    @property
    def mean(self) -> float:
        """The loss, or the distance."""
        return self.total / self.samples if self.samples else math.nan

    @property
    def accuracy(self) -> float:
        """The share classified right; NaN without labels."""
        return self.right / self.samples if self.samples else math.nan


@dataclass
class Judge:
    """Says how good outputs are: by a loss, the labels, or the distance to other outputs."""

    loss: Loss | None
    labels: bool = False

    @classmethod
    def of(cls, loss: Loss | None, output: Any, batch: Any) -> Judge:
        """Choose by the first batch: its labels serve where no loss was given."""
        return cls(loss, loss is None and _labels(output, batch) is not None)

    @property
    def unit(self) -> str:
        """What is counted."""
        has_loss = self.loss is not None or self.labels
        return "loss" if has_loss else "share of the outputs' variance"

    def loss_of(self, output: Any, batch: Any) -> Tensor | None:
        """Give the loss of a batch; none where it cannot be told."""
        if self.loss is not None:
            return self.loss(output, batch)
        labels = _labels(output, batch) if self.labels else None
        if labels is None:
            return None
        return nn.functional.cross_entropy(feeding.logits_in(output).float(), labels)

    def score(self, output: Any, batch: Any, beside: Any, into: Score) -> None:
        """Count a batch: its loss, or the distance of its outputs from those beside."""
        samples = feeding.samples_in(batch)
        loss = self.loss_of(output, batch)
        value = float(loss) if loss is not None else distance(output, beside)
        labels = _labels(output, batch)
        right = None
        if labels is not None:
            right = float((feeding.logits_in(output).argmax(1) == labels).sum())
        into.add(value, right, samples)


def distance(output: Any, other: Any) -> float:
    """Give the squared distance of all outputs over the variance of the other ones."""
    pairs = [
        (a.double(), b.double())
        for a, b in zip(feeding.tensors_in(output), feeding.tensors_in(other), strict=True)
        if a.is_floating_point()
    ]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    spread = sum(float((b - b.mean()).square().sum()) for _, b in pairs)
    return apart / spread if spread else (0.0 if apart == 0 else math.inf)


@dataclass
class Data:
    """The batches to look at, and how the model is called on them."""

    model: nn.Module
    batches: Iterable[Any]
    forward: Forward = feeding.feed
    progress: bool | None = None
    read: int = 0

    def __iter__(self) -> Iterator[Any]:
        device = feeding.device_of(self.model)
        for batch in self.batches:
            yield feeding.to_device(batch, device)

    def bar(self) -> Bar:
        """Give a bar for all batches."""
        total = len(self.batches) if isinstance(self.batches, Sized) else None
        return Bar("inspect", self.progress, total)


@dataclass
class Met:
    """What one pass over the data found.

    Attributes:
        estimates: by layer, those that keep running statistics and were reached.
        calls: how often each normalization is called in a pass, in the order of first calls.
        positions: values a channel and sample at the first call, by layer.
        sources: the module whose output a layer is given in its first call, by layer.
        sizes: samples of each batch.

    """

    estimates: dict[str, LayerEstimate] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    judge: Judge | None = None
    by_batch: Score = field(default_factory=Score)

    @property
    def usual(self) -> int:
        """Samples of a usual batch."""
        return sorted(self.sizes)[len(self.sizes) // 2] if self.sizes else 0


def by_batch(data: Data, layers: Mapping[str, _NormBase], loss: Loss | None, what: str) -> Met:
    """Read the data once, each layer normalizing by the batch at hand, and measure its inputs."""
    met = Met()
    reading = Pass(data.model, layers, lambda _site, values: _batch_or_own(reading, values))
    with data.bar() as bar, reading, Callers(data.model, met):
        bar.begin(what)
        for batch in data:
            outputs: list[Any] = []
            reading.run(lambda batch=batch, o=outputs: o.append(data.forward(data.model, batch)))  # type: ignore[misc]
            met.sizes.append(feeding.samples_in(batch))
            if met.judge is None:
                met.judge = Judge.of(loss, outputs[0], batch)
            met.judge.score(outputs[0], batch, outputs[0], met.by_batch)
            bar.advance()
    if not met.sizes:
        raise ValueError("inspect: got no batches; pass a loader that yields some, or none at all")
    for name, layer in layers.items():
        sites_ = sorted(site for site in reading.records if site[0] == name)
        if sites_:
            met.estimates[name] = LayerEstimate(
                name, layer, tuple(reading.records[site] for site in sites_)
            )
    return met


def _batch_or_own(reading: Pass, values: int) -> Statistics:
    """Normalize by the batch; one value a channel has no variance, so its own then."""
    own = reading.originals[reading.calls[-1][0]]
    return of_batch(reading.met, own) if values > 1 else own


@dataclass
class Callers:
    """A context that notes, in the first pass, who is called and whose output each is given."""

    model: nn.Module
    met: Met
    made: dict[int, tuple[str, Tensor]] = field(default_factory=dict)

    def __enter__(self) -> Callers:
        names = {module: name for name, module in facts.modules_of(self.model).items()}
        self.handles = [
            module.register_forward_pre_hook(self._before(name), with_kwargs=True)
            for module, name in names.items()
        ]
        self.handles += [
            module.register_forward_hook(self._after(name))
            for name, module in self.model.named_modules()
            if not module._modules and name
        ]
        return self

    def __exit__(self, *reason: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.made.clear()

    def _before(self, name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self.met.sizes:
                return
            self.met.calls[name] = self.met.calls.get(name, 0) + 1
            x = args[0] if args else named.get("input")
            if isinstance(x, Tensor) and name not in self.met.positions:
                self.met.positions[name] = math.prod(x.shape[2:])
                if id(x) in self.made:
                    self.met.sources[name] = self.made[id(x)][0]

        return note

    def _after(self, name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            if self.met.sizes:
                self.made.clear()
            elif isinstance(output, Tensor):
                self.made[id(output)] = (name, output)  # kept, so that no other takes its id

        return note


def gap(data: Data, met: Met) -> Gap | None:
    """Try the model by its running statistics and by those of the data, on every other batch.

    On all where there are few.
    """
    if met.judge is None or not met.estimates:
        return None
    population = {name: population_of(each) for name, each in met.estimates.items()}
    running, better = Score(), Score()
    with data.bar() as bar:
        bar.begin("by statistics")
        for batch in islice(data, 0, None, 2 if len(met.sizes) > FEW else 1):
            good = output_by(data, batch, population)
            met.judge.score(good, batch, good, better)
            met.judge.score(output_by(data, batch, {}), batch, good, running)
            bar.advance()
    accuracy = (running.accuracy, better.accuracy, met.by_batch.accuracy)
    told = None if any(map(math.isnan, accuracy)) else accuracy
    return Gap(met.judge.unit, running.mean, better.mean, met.by_batch.mean, told)


def output_by(data: Data, batch: Any, statistics: Mapping[str, Statistics]) -> Any:
    """Run the model in inference mode, some layers by other statistics than their own."""
    layers = {
        name: module for name, module in batch_norms(data.model).items() if name in statistics
    }
    outputs: list[Any] = []
    with Pass(data.model, layers, lambda site, _values: statistics[site[0]], wanted=()) as reading:
        reading.run(lambda: outputs.append(data.forward(data.model, batch)))
    return outputs[0]


def population_of(estimate: LayerEstimate) -> Statistics:
    """Give mean and unbiased variance of all that a layer met, as its buffers hold them."""
    layer = estimate.layer
    assert layer.running_mean is not None
    dtype = layer.running_mean.dtype
    variance = estimate.moments.variance(
        unbiased=int(torch.as_tensor(estimate.moments.count).min()) > 1
    )
    return estimate.mean.to(dtype), variance.to(dtype)


def batch_norms(model: nn.Module) -> dict[str, _NormBase]:
    return {
        name: module
        for name, module in model.named_modules()
        if sites.is_batch_norm(module) and module.running_mean is not None
    }


def measured(estimate: LayerEstimate, met: Met) -> Measured:
    """Put what one layer met into plain numbers."""
    moments, first = estimate.moments, estimate.records[0]
    sigma = (moments.variance(unbiased=False) + estimate.layer.eps).sqrt()
    noise, effective = _noise(first, met.usual, estimate.layer.eps)
    calls = estimate.calls
    apart = max((_apart(call, estimate, sigma) for call in calls), default=0.0)
    return Measured(
        calls=met.calls.get(estimate.name, len(calls)),
        samples=0 if first.scatter is None else first.scatter.samples,
        batches=0 if first.scatter is None else first.scatter.batches,
        values=float(met.usual * met.positions.get(estimate.name, 1)),
        mean=tuple(moments.mean.tolist()),
        variance=tuple(moments.variance(unbiased=_several(moments)).tolist()),
        error=estimate.error,
        noise=noise,
        effective=effective,
        excess=max(r.scatter.excess(r.moments) if r.scatter else 1.0 for r in estimate.records),
        apart=0.0 if len(calls) < 2 else apart,
    )


def _apart(call: Moments, estimate: LayerEstimate, sigma: Tensor) -> float:
    """How far a call is from all together, in σ: in mean or in σ, the larger."""
    moved = (call.mean - estimate.mean) / sigma
    scaled = (call.variance(unbiased=False) + estimate.layer.eps).sqrt() / sigma - 1
    return max(float(each.square().mean().sqrt()) for each in (moved, scaled))


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


def _several(moments: Moments) -> bool:
    return int(torch.as_tensor(moments.count).min()) > 1


def distances(eps: float, of_data: Pair, assumed: Pair) -> Distance:
    """How far a mean and variance are from those of the data."""
    seen, own = (variance.double() + eps for _, variance in (of_data, assumed))
    offset = (assumed[0].double() - of_data[0].double()).square() / seen
    ratio = own / seen
    divergence = 0.5 * (ratio.log() + (1 + offset) / ratio - 1)
    return Distance(float(offset.mean().sqrt()), float(ratio.nanmedian()), float(divergence.mean()))


def between(training: Measured, deployed: Moments, eps: float) -> Distance:
    """How far deployment data are from those of training: in σ of training, their variance over it.

    The divergence is that of what training leads to expect.
    """
    before = (torch.tensor(training.mean), torch.tensor(training.variance))
    variance = deployed.variance(unbiased=_several(deployed))
    now = (deployed.mean.cpu(), variance.cpu())
    there, back = distances(eps, before, now), distances(eps, now, before)
    return Distance(there.offset, there.ratio, back.divergence)


@contextmanager
def _dropping(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    modules = [model.get_submodule(name) for name in names]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in modules:
            module.training = True
        try:
            yield
        finally:
            for module in modules:
                module.training = False


def dropout_ratios(
    data: Data, layers: Mapping[str, _NormBase], names: Iterable[str]
) -> dict[str, float]:
    """The variance of each layer's input with dropout over that without, on a few batches.

    Each layer normalizes by its batch both times, so that one shows the shift of the dropout before
    it and not that of the layers before (Li et al. 2019, "Understanding the Disharmony between
    Dropout and Batch Normalization by Variance Shift", section 3).
    """
    with_it, without = (_variances(data, layers, dropped) for dropped in (names, ()))
    return {n: _median_ratio(with_it[n], without[n]) for n in without if n in with_it}


def _variances(
    data: Data, layers: Mapping[str, _NormBase], dropped: Iterable[str]
) -> dict[str, Tensor]:
    reading = Pass(data.model, layers, lambda _site, values: _batch_or_own(reading, values))
    with reading, _dropping(data.model, dropped):
        for batch in islice(data, LOOKS):
            reading.run(lambda batch=batch: data.forward(data.model, batch))  # type: ignore[misc]
    records = {site[0]: record for site, record in reading.records.items()}
    return {name: record.moments.variance(unbiased=False) for name, record in records.items()}


def _median_ratio(above: Tensor, below: Tensor) -> float:
    varies = below > 0
    return float((above[varies] / below[varies]).median()) if bool(varies.any()) else 1.0


def gradients(data: Data, met: Met, layers: Mapping[str, _NormBase]) -> dict[str, float]:
    """Give the norm of the loss gradient at each layer's output, over the root of its size."""
    norms: dict[str, float] = {}
    judge = met.judge
    if judge is None or judge.unit != "loss" or not all(each.eps > 0 for each in layers.values()):
        return norms

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda g: norms.__setitem__(name, _size(g)))

        return hook

    reading = Pass(
        data.model, layers, lambda _site, values: _batch_or_own(reading, values), wanted=()
    )
    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        with reading, torch.enable_grad():
            for batch in islice(data, 1):
                _backward(data, batch, judge)
    finally:
        for handle in handles:
            handle.remove()
    return norms


def _backward(data: Data, batch: Any, judge: Judge) -> None:
    loss = judge.loss_of(data.forward(data.model, batch), batch)
    trained = [p for p in data.model.parameters() if p.requires_grad]
    if loss is not None and loss.requires_grad and trained:
        torch.autograd.grad(loss, trained, allow_unused=True)


def _size(gradient: Tensor) -> float:
    norm = torch.linalg.vector_norm(gradient.double())
    return float(norm) / math.sqrt(max(1, gradient.numel()))


def _labels(output: Any, batch: Any) -> Tensor | None:
    """Find class numbers in a batch that fit the output: one a sample."""
    try:
        scores = feeding.logits_in(output)
    except TypeError:
        return None
    for labels in feeding.tensors_in(batch):
        if _fit(labels, scores):
            return labels.long()
    return None


def _fit(labels: Tensor, scores: Tensor) -> bool:
    if labels.is_floating_point() or labels.dtype == torch.bool or not len(scores):
        return False
    if scores.dim() != 2 or labels.shape != scores.shape[:1]:
        return False
    return 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]


def told(layer: Layer, met: Met, model: nn.Module) -> Layer:
    """Add to a layer's facts what the pass found of it."""
    estimate = met.estimates.get(layer.name)
    source = met.sources.get(layer.name, "")
    module = model.get_submodule(source) if source else None
    own = model.get_submodule(layer.name) if layer.name else model
    off = None
    if estimate is not None:
        assert isinstance(own, nn.modules.batchnorm._NormBase)
        assert isinstance(own.running_mean, Tensor)
        assert isinstance(own.running_var, Tensor)
        of_data = (estimate.mean, estimate.moments.variance(unbiased=_several(estimate.moments)))
        off = distances(own.eps, of_data, (own.running_mean, own.running_var))
    return dataclasses.replace(
        layer,
        positions=met.positions.get(layer.name),
        source=source,
        source_kind="" if module is None else type(module).__name__,
        source_bias=module is not None and facts.adds_bias(module),
        measured=None if estimate is None else measured(estimate, met),
        off=off,
    )
