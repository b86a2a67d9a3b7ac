"""How the network does by which statistics: the figures of all batches, put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from livella.diagnosis.records import Gap, Trio
from livella.diagnosis.scoring import Judge
from livella.model import feeding

NORMAL = 1.96
"""Half the width of a 95 % interval, in standard errors."""


class Judged(NamedTuple):
    """What is kept of a batch: the sum of its scores, how many, and the loss; NaN without one."""

    merit: float
    scored: int
    loss: float
    samples: int


def judged(judge: Judge, output: Any, batch: Any, beside: Any) -> Judged:
    """Score an output, beside one that is to be trusted."""
    return _kept(judge, output, batch, judge.merit(output, batch, beside))


def _kept(judge: Judge, output: Any, batch: Any, merit: Tensor) -> Judged:
    loss = judge.loss_of(output, batch)
    value = math.nan if loss is None else float(loss)
    return Judged(float(merit.sum()), len(merit), value, feeding.samples_in(batch))


@dataclass
class Mean:
    """The mean of values that are seen a part at a time, and how sure it is."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def add(self, values: Tensor) -> None:
        """Take in a part: moments merge (Chan et al.)."""
        if not len(values):
            return
        count, mean = self.count + len(values), float(values.mean())
        delta = mean - self.mean
        self.m2 += float((values - mean).square().sum())
        self.m2 += delta**2 * self.count * len(values) / count
        self.mean += delta * len(values) / count
        self.count = count

    @property
    def interval(self) -> float:
        """Half the width of the 95 % interval of the mean, the values being independent.

        With one more value of the largest size there could be: of ten equal ones the next may
        differ.
        """
        if self.count < 2:
            return math.inf
        return NORMAL * math.sqrt(self.m2 / (self.count - 1) / self.count) + 1 / self.count


class Scores:
    """Scores of the outputs by the running statistics, and by those of the data."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._running: list[Judged] = []
        self._population: list[Judged] = []
        self._lost = Mean()

    def add(self, batch: Any, running: Any, population: Any, beside: Any) -> None:
        """Take in a batch with both outputs for it, and those to be trusted."""
        merits = [self._judge.merit(each, batch, beside) for each in (running, population)]
        self._running.append(_kept(self._judge, running, batch, merits[0]))
        self._population.append(_kept(self._judge, population, batch, merits[1]))
        self._lost.add(merits[1] - merits[0])

    def gap(self, own: Sequence[Judged] = ()) -> Gap:
        """Give what they say of the network; `own` are the scores by each batch's own.

        Raises:
            ValueError: a loss of the user's that is NaN where the network is in order.

        """
        if self._judge.loss is not None and any(math.isnan(e.loss) for e in self._population):
            raise ValueError(
                "loss: expected a number, got NaN by the statistics of the data, by which the "
                "network is in order; look at the loss, and at the labels that it reads"
            )
        parts = (self._running, self._population, own or self._population)
        score = Trio(*map(_score, parts))
        return Gap(
            score=score,
            lost=self._lost.mean,
            error=self._lost.interval,
            beyond=score.batch - score.population,
            beyond_error=_apart(self._population, own),
            examples=self._lost.count,
            counted=self._judge.counted,
            labels=self._judge.labels,
            loss=_losses(parts),
            unread=self._judge.unread,
        )


def _score(part: Sequence[Judged]) -> float:
    return sum(each.merit for each in part) / max(1, sum(each.scored for each in part))


def _apart(one: Sequence[Judged], other: Sequence[Judged]) -> float:
    """Half the width of the 95 % interval of the difference of two scores, batch by batch.

    Batches differ, as where they are sorted, and are what scatters. One alone says nothing of that.
    """
    differences = Mean()
    for a, b in zip(one, other, strict=False):
        if a.scored and b.scored:
            differences.add(torch.tensor([b.merit / b.scored - a.merit / a.scored]))
    if differences.count < 2:
        return 0.0
    return differences.interval - 1 / differences.count


def _losses(parts: Sequence[Sequence[Judged]]) -> Trio | None:
    """The mean over the samples; none where no loss is told."""
    means = [
        sum(each.samples * each.loss for each in part) / sum(each.samples for each in part)
        for part in parts
    ]
    return None if all(map(math.isnan, means)) else Trio(*means)
