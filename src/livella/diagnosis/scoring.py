"""How good outputs are: by a loss, by labels, or by their distance from other outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from livella.model import feeding

Loss = Callable[[Any, Any], Tensor]
"""loss(output, batch): a scalar, the mean over the samples of the batch."""


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
