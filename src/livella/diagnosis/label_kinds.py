"""The kinds of labels: which outputs each is for, what is right by it, and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""The class number that torch's losses leave out."""
VOID = 255
"""And the one that segmentation data do."""
MOST_BAD = 0.5
"""Numbers of which more than this share are no classes are something else."""


@dataclass(frozen=True)
class Kind:
    """One kind of labels.

    Attributes:
        counted: what the score is of.
        whole: whether its labels can be told from other numbers wherever they stand in a batch.

    """

    counted: ClassVar[str]
    whole: ClassVar[bool] = False

    def fits(self, scores: Tensor, labels: Tensor) -> bool:
        """Whether numbers are labels of this kind for such an output, but for single bad ones."""
        raise NotImplementedError

    def merit(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Give the score of each example that has labels, in [0, 1]."""
        raise NotImplementedError

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Give the mean loss."""
        raise NotImplementedError


class ClassNumbers(Kind):
    """One number an example, or a position: (N, K) and (N,), (N, K, …) and (N, …)."""

    counted = "class numbers"
    whole = True

    def fits(self, scores: Tensor, labels: Tensor) -> bool:
        first = _classes_first(scores, labels)
        if first is None or not _is_whole(labels):
            return False
        classes, flat = first.shape[1], labels.flatten().long()
        bad = (flat < 0) | (flat >= classes)
        kept = ~_ignored(flat, classes, scores)
        return bool(kept.any()) and float(bad[kept].double().mean()) <= MOST_BAD

    def merit(self, scores: Tensor, labels: Tensor) -> Tensor:
        scores, labels = self._checked(scores, labels)
        kept = ~_ignored(labels, scores.shape[1], scores)
        right = (scores.argmax(1) == labels) & kept
        right, kept = (each.reshape(len(scores), -1).double().sum(1) for each in (right, kept))
        return right[kept > 0] / kept[kept > 0]

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        scores, labels = self._checked(scores, labels)
        labels = labels.masked_fill(_ignored(labels, scores.shape[1], scores), IGNORED)
        return functional.nll_loss(_logarithms(scores), labels, ignore_index=IGNORED)

    def _checked(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        first = _classes_first(scores, labels)
        if first is None:
            raise _other_shape(scores, labels)
        scores, labels = first, labels.reshape(first.shape[:1] + first.shape[2:]).long()
        classes = scores.shape[1]
        bad = ((labels < 0) | (labels >= classes)) & ~_ignored(labels, classes, scores)
        if bool(bad.any()):
            place = tuple(int(k) for k in bad.nonzero()[0])
            raise ValueError(
                f"inspect: expected class numbers from 0 to {classes - 1}, got "
                f"{int(labels[place])} at {list(place)} of a batch of {len(labels)}; mend or leave "
                f"out that example, or mark it {IGNORED}"
            )
        return scores, labels


class OneHot(Kind):
    """One 1 a row, or shares that add up to 1: (N, K) and (N, K)."""

    counted = "one-hot labels"

    def fits(self, scores: Tensor, labels: Tensor) -> bool:
        if not _are_rows(scores, labels) or not bool((labels >= 0).all()):
            return False
        return bool(((labels.double().sum(1) - 1).abs() < 1e-3).all())

    def merit(self, scores: Tensor, labels: Tensor) -> Tensor:
        labels = _finite(labels).double()
        chosen = labels.gather(1, scores.argmax(1, keepdim=True))[:, 0]
        return (chosen / labels.max(1).values).clamp(0, 1)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        return -(_finite(labels).to(scores) * _logarithms(scores)).sum(1).mean()


class MultiLabel(Kind):
    """Any number of 1s a row; the share of them told right: (N, K) and (N, K)."""

    counted = "multi-label"

    def fits(self, scores: Tensor, labels: Tensor) -> bool:
        return _are_rows(scores, labels) and _is_binary(labels)

    def merit(self, scores: Tensor, labels: Tensor) -> Tensor:
        labels = _finite(labels)
        return ((scores > _middle(scores)) == (labels > 0.5)).double().mean(1)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        return _binary_loss(scores, _finite(labels))


class Binary(Kind):
    """One score an example, (N,) or (N, 1), and 0 or 1."""

    counted = "class numbers"

    def fits(self, scores: Tensor, labels: Tensor) -> bool:
        single = scores.numel() == len(scores) == labels.numel()
        return single and labels.dim() > 0 and _is_binary(labels)

    def merit(self, scores: Tensor, labels: Tensor) -> Tensor:
        scores, labels = self._flat(scores, labels)
        return ((scores > _middle(scores)) == (labels > 0.5)).double()

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        return _binary_loss(*self._flat(scores, labels))

    def _flat(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.numel() != scores.numel():
            raise _other_shape(scores, labels)
        scores = scores.reshape(-1)
        labels = _finite(labels.reshape(-1))
        if not _is_binary(labels):
            raise ValueError(
                f"inspect: expected labels of 0 and 1, got values from {labels.min().item():g} to "
                f"{labels.max().item():g}; say target= or pass loss="
            )
        return scores, labels


class Numbers(Kind):
    """Numbers to be met: v/(v + error²) an example, with v the variance of the targets."""

    counted = "numbers"

    def fits(self, scores: Tensor, labels: Tensor) -> bool:
        alike = labels.shape == scores.shape or labels.numel() == scores.numel() == len(scores)
        return labels.is_floating_point() and alike and labels.dim() > 0 and len(labels) > 0

    def merit(self, scores: Tensor, labels: Tensor) -> Tensor:
        scores, labels = self._flat(scores, labels)
        variance = labels.var(0, unbiased=False).mean()
        # One example has none: then by the size of the numbers.
        variance = variance if float(variance) > 0 else labels.square().mean().clamp(min=1e-12)
        error = (scores - labels).square().mean(1)
        return variance / (variance + error)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        return functional.mse_loss(scores, _finite(labels).to(scores).reshape(scores.shape))

    def _flat(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.numel() != scores.numel():
            raise _other_shape(scores, labels)
        labels = _finite(labels)
        return scores.double().reshape(len(scores), -1), labels.double().reshape(len(scores), -1)


KINDS: tuple[Kind, ...] = (ClassNumbers(), OneHot(), Binary(), MultiLabel(), Numbers())
"""Those known, the first that fits is it."""


def _classes_first(scores: Tensor, labels: Tensor) -> Tensor | None:
    """Give scores with the classes in dimension 1, where the labels say which it is."""
    if scores.dim() < 2 or not len(labels):
        return None
    shapes = [labels.shape]
    if labels.dim() > 1 and labels.shape[1] == 1:
        shapes.append(labels.shape[:1] + labels.shape[2:])
    for shape in shapes:
        if scores.shape[1] > 1 and shape == scores.shape[:1] + scores.shape[2:]:
            return scores
        if scores.dim() > 2 and scores.shape[-1] > 1 and shape == scores.shape[:-1]:
            return scores.movedim(-1, 1)
    return None


def _are_rows(scores: Tensor, labels: Tensor) -> bool:
    return scores.dim() == 2 and scores.shape[1] > 1 and labels.shape == scores.shape


def _ignored(labels: Tensor, classes: int, scores: Tensor) -> Tensor:
    ignored = labels == IGNORED
    if scores.dim() > 2 and classes <= VOID:
        ignored = ignored | (labels == VOID)
    return ignored


def _is_whole(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def _is_binary(labels: Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1)).all())


def _finite(labels: Tensor) -> Tensor:
    if labels.is_floating_point() and not bool(labels.isfinite().all()):
        place = [int(k) for k in (~labels.isfinite()).nonzero()[0]]
        raise ValueError(
            f"inspect: expected labels that are numbers, got NaN or infinity at {place} of a batch "
            f"of {len(labels)}; mend or leave out that example"
        )
    return labels


def _middle(scores: Tensor) -> float:
    """Where a score stands for 1: one half of probabilities, zero of others."""
    return 0.5 if bool(((scores >= 0) & (scores <= 1)).all()) else 0.0


def _binary_loss(scores: Tensor, labels: Tensor) -> Tensor:
    if _middle(scores) > 0:
        return functional.binary_cross_entropy(scores, labels.to(scores))
    return functional.binary_cross_entropy_with_logits(scores, labels.to(scores))


def probabilities(scores: Tensor) -> Tensor:
    """Give the probabilities that scores (N, K, …) stand for: they may be such, or logarithms."""
    if bool((scores >= 0).all()) and _add_up(scores):
        return scores
    return scores.softmax(1)  # of logarithms of probabilities it is these


def _add_up(scores: Tensor) -> bool:
    return bool(((scores.sum(1) - 1).abs() < 1e-3).all())


def _logarithms(scores: Tensor) -> Tensor:
    if bool((scores >= 0).all()) and _add_up(scores):
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
    return scores.log_softmax(1)


def _other_shape(scores: Tensor, labels: Tensor) -> ValueError:
    return ValueError(
        f"inspect: expected labels as in the first batch, got shape {tuple(labels.shape)} beside "
        f"an output of shape {tuple(scores.shape)}; leave that batch out, or say target="
    )
