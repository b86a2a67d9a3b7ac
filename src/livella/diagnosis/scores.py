"""How the network does by which statistics: the figures of all batches, put together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from livella.diagnosis.records import Gap, Trio
from livella.diagnosis.scoring import Judge
from livella.model import feeding

NORMAL = 1.96
"""Half the width of a 95 % interval, in standard errors."""


class Judged(NamedTuple):
    """The score of each example of a batch, and the loss of the batch; NaN where there is none."""

    merit: Tensor
    loss: float
    samples: int


def judged(judge: Judge, output: Any, batch: Any, beside: Any) -> Judged:
    """Score an output, beside one that is to be trusted."""
    loss = judge.loss_of(output, batch)
    value = math.nan if loss is None else float(loss)
    return Judged(judge.merit(output, batch, beside), value, feeding.samples_in(batch))


class Scores:
    """Scores of the outputs by the running statistics, by the data's, and by each batch's own."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._found: tuple[list[Judged], list[Judged], list[Judged]] = ([], [], [])

    def add(self, batch: Any, outputs: tuple[Any, Any, Any], beside: Any) -> None:
        """Take in a batch with the three outputs for it, and those to be trusted."""
        for output, found in zip(outputs, self._found, strict=True):
            found.append(judged(self._judge, output, batch, beside))

    def gap(self, own: list[Judged] | None = None) -> Gap:
        """Give what they say of the network; `own` are the scores by each batch's own, if known."""
        parts = (*self._found[:2], own or self._found[2])
        running, population, by_batch = (torch.cat([each.merit for each in p]) for p in parts)
        lost = population - running
        if self._judge.loss is not None and any(math.isnan(each.loss) for each in parts[1]):
            raise ValueError(
                "loss: expected a number, got NaN by the statistics of the data, by which the "
                "network is in order; look at the loss, and at the labels that it reads"
            )
        score = Trio(*(float(merit.mean()) for merit in (running, population, by_batch)))
        return Gap(
            score=score,
            lost=float(lost.mean()),
            error=interval(lost),
            beyond=score.batch - score.population,
            examples=len(lost),
            counted=self._judge.counted,
            labels=self._judge.labels,
            loss=_losses(parts),
            unread=self._judge.unread,
        )


def _losses(parts: Iterable[list[Judged]]) -> Trio | None:
    """The mean over the samples; none where no loss is told."""
    means = []
    for part in parts:
        weights = torch.tensor([each.samples for each in part], dtype=torch.float64)
        losses = torch.tensor([each.loss for each in part], dtype=torch.float64)
        means.append(float((weights * losses).sum() / weights.sum()))
    return None if all(map(math.isnan, means)) else Trio(*means)


def interval(values: Tensor) -> float:
    """Half the width of the 95 % interval of the mean of independent values.

    With one more value of the largest size there could be: of ten equal ones the next may differ.
    """
    n = len(values)
    if n < 2:
        return math.inf
    return NORMAL * float(values.std()) / math.sqrt(n) + 1 / n
