"""How the network does by which statistics: the figures of all batches, put together."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from livella.diagnosis.records import Gap, Trio
from livella.diagnosis.scoring import Judge
from livella.model import feeding

NORMAL = 1.96
"""Half the width of a 95 % interval, in standard errors."""


class Scores:
    """Scores of the outputs by the running statistics, by the data's, and by each batch's own."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._merits: list[Tensor] = []
        self._losses: list[list[float]] = []
        self._samples: list[int] = []

    def add(self, batch: Any, outputs: tuple[Any, Any, Any], beside: Any) -> None:
        """Take in a batch with the three outputs for it, and those to be trusted."""
        merits = [self._judge.merit(each, batch, beside) for each in outputs]
        self._merits.append(torch.stack(merits))
        losses = [self._judge.loss_of(each, batch) for each in outputs]
        self._losses.append([math.nan if loss is None else float(loss) for loss in losses])
        self._samples.append(feeding.samples_in(batch))

    def gap(self) -> Gap:
        """Give what they say of the network."""
        merits = torch.cat(self._merits, dim=1)
        lost = merits[1] - merits[0]
        return Gap(
            score=Trio(*merits.mean(1).tolist()),
            lost=float(lost.mean()),
            error=interval(lost),
            beyond=float((merits[2] - merits[1]).mean()),
            examples=merits.shape[1],
            counted=self._judge.counted,
            labels=self._judge.labels,
            loss=self._loss(),
            unread=self._judge.unread,
        )

    def _loss(self) -> Trio | None:
        """The mean over the samples; none where no loss is told."""
        weights = torch.tensor(self._samples, dtype=torch.float64)
        losses = torch.tensor(self._losses, dtype=torch.float64)
        if bool(losses.isnan().all()):
            return None
        return Trio(*((weights[:, None] * losses).sum(0) / weights.sum()).tolist())


def interval(values: Tensor) -> float:
    """Half the width of the 95 % interval of the mean of independent values.

    With one more value of the largest size there could be: of ten equal ones the next may differ.
    """
    n = len(values)
    if n < 2:
        return math.inf
    return NORMAL * float(values.std()) / math.sqrt(n) + 1 / n
