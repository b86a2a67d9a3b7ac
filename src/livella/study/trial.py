"""One trial: a small network trained once from a seed, and what was seen on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from livella.study import batches, data, models, probes
from livella.study.data import Part
from livella.study.evaluate import EVALUATION_EXAMPLES, accuracy
from livella.study.models import Built, Network


@dataclass(frozen=True)
class Trial:
    """Everything that decides the outcome of one training; equal trials are the same trial.

    Training is stochastic gradient descent with a constant rate on the cross-entropy.
    """

    data: str
    network: Network
    rate: float
    seed: int
    steps: int
    batch: int = 60
    momentum: float = 0.0
    examples: int = 0
    """Training examples used; 0 stands for all."""
    evaluations: int = 20
    """Points of the learning curve, evenly spaced in steps."""
    probe: str = ""
    """What is measured besides: names of `probes`, joined by "+"."""
    version: str = ""
    """A digest of the user's files, so that an edited file makes new trials."""
    classes: int = 0
    """Classes among the examples that a batch norm takes together; 0: drawn without regard."""
    optimizer: str = "sgd"
    """"sgd", or "adam" with the averages of its paper, which takes no momentum."""

    def key(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Trial:
        return cls(**{**values, "network": Network(**values["network"])})


@dataclass(frozen=True)
class Outcome:
    """What a trial showed. Accuracies are shares of 1; a loss that was not finite is None."""

    steps: tuple[int, ...] = ()
    train_loss: tuple[float | None, ...] = ()
    validation: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    diverged: bool = False
    shift: tuple[tuple[float, ...], ...] = ()
    """By point, then layer: how far the layer's input moved since the point before."""
    gradients: tuple[tuple[float, ...], ...] = ()
    """By point, then layer: the norm of the loss gradient at the layer's pre-activation."""
    inference: tuple[tuple[float, ...], ...] = ()
    """By point: the test accuracy by population statistics, and by those of test batches."""
    population: tuple[tuple[float, ...], ...] = ()
    """At the end alone: the validation and the test accuracy by population statistics."""
    variance: tuple[tuple[float, ...], ...] = ()
    """At the end alone, by layer: the variance of the layer's input with dropout over without."""
    corrupted: tuple[tuple[float, ...], ...] = ()
    """At the end alone: what `corruptions.Corrupted.from_tuple` reads."""
    streams: tuple[tuple[float, ...], ...] = ()
    """At the end alone, on the stream sorted by class, then on the shifted one: the test accuracy
    as trained, adapted, and adapted under guard."""
    error: str = ""
    """The exception that ended the trial, if one did; nothing else is then filled."""

    @property
    def failed(self) -> bool:
        """Whether it says nothing: an exception ended it, or it was never run."""
        return bool(self.error) or not (self.test or self.diverged)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        return cls(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def run(trial: Trial) -> Outcome:
    """Train as the trial says and return what was seen.

    The same trial gives the same outcome on the same machine: one thread, seeded throughout,
    and the caller's random state and thread count are given back.
    """
    dataset = data.load(trial.data)
    with _one_seeded_thread(trial.seed):
        built = models.build(trial.network, dataset.shape, dataset.classes)
        return _Training(trial, built, dataset).run()


@contextlib.contextmanager
def _one_seeded_thread(seed: int) -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(1)
            torch.manual_seed(seed)
            yield
        finally:
            torch.set_num_threads(threads)


@dataclass
class _Training:
    trial: Trial
    built: Built
    dataset: data.Dataset
    steps: list[int] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    probed: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)

    def run(self) -> Outcome:
        trial = self.trial
        optimizer = self._optimizer()
        measured = probes.make(trial.probe, self.built, self.dataset, trial.batch)
        self.probed = {name: [] for name in measured}
        drawn = self._batches()
        done = 0
        for point in _points(trial):
            self.built.model.train()
            losses = [self._step(optimizer, *next(drawn)) for _ in range(point - done)]
            done = point
            loss = torch.stack(losses).mean().item() if losses else None
            over = point == trial.steps
            seen = {
                name: probe()
                for name, probe in measured.items()
                if over or name not in probes.AT_THE_END
            }
            # The step after the last finite loss may already have carried the weights away.
            numbers = (loss or 0.0, *itertools.chain(*seen.values()))
            diverged = not all(map(math.isfinite, numbers))
            finite = loss if loss is not None and math.isfinite(loss) else None
            self._record(point, finite, last=diverged or over)
            if diverged:
                break
            for name, values in seen.items():
                self.probed[name].append(values)
        return self._outcome(diverged)

    def _optimizer(self) -> torch.optim.Optimizer:
        parameters, trial = self.built.model.parameters(), self.trial
        if trial.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=trial.rate, foreach=True)
        return torch.optim.SGD(parameters, lr=trial.rate, momentum=trial.momentum, foreach=True)

    def _batches(self) -> Iterator[Part]:
        trial, part, size = self.trial, self._training_part(), self._batch_size()
        if not trial.classes:
            return batches.shuffled(part, size, trial.seed)
        run = trial.network.norm_batch or size
        return batches.of_few_classes(part, size, run, trial.classes, trial.seed)

    def _training_part(self) -> Part:
        """All training examples, or as many as the trial says, drawn by its seed."""
        x, y = self.dataset.train
        if not self.trial.examples:
            return x, y
        drawn = torch.randperm(len(x))[: self.trial.examples]
        return x[drawn], y[drawn]

    def _batch_size(self) -> int:
        """The trial's, or what the data allow, a multiple of what is normalized together."""
        size = min(self.trial.batch, len(self.dataset.train[0]))
        part = self.trial.network.norm_batch
        return size - size % part if 0 < part <= size else size

    def _step(self, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.built.model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def _record(self, step: int, loss: float | None, last: bool) -> None:
        limit = None if last else EVALUATION_EXAMPLES
        self.steps.append(step)
        self.losses.append(loss)
        self.validation.append(accuracy(self.built.model, self.dataset.validation, limit))
        self.test.append(accuracy(self.built.model, self.dataset.test, limit))

    def _outcome(self, diverged: bool) -> Outcome:
        probed: dict[str, Any] = {name: tuple(points) for name, points in self.probed.items()}
        return Outcome(
            steps=tuple(self.steps),
            train_loss=tuple(self.losses),
            validation=tuple(self.validation),
            test=tuple(self.test),
            diverged=diverged,
            **probed,
        )


def _points(trial: Trial) -> list[int]:
    """The steps after which the curve is drawn: the start, the end, and evenly between."""
    ends = (math.ceil(trial.steps * k / trial.evaluations) for k in range(trial.evaluations + 1))
    return sorted(set(ends))
