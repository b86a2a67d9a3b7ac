"""What labels mean beside outputs: class numbers, shares of classes, zeros and ones, or numbers.

Each reading says what it counts, what labels it `expected` and which are `wrong` (a mask of their
shape; RuntimeError where they are of another shape than they should be), the share `right` of each
sample, (N,), float64 on the CPU, and the `loss` that such a network is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

from livella.moments import accumulation_dtype

IGNORED = -100
"""The class number that torch's losses leave out."""
VOID = 255
"""What segmentation masks leave out, where there are no such many classes."""
FEW = 8
"""Scores of a sign each that may all lie between 0 and 1 without being probabilities."""
CLOSE = 1e-3
"""How far from 1 probabilities may sum up, as they are stored in low precision too."""


@dataclass(frozen=True)
class ClassNumbers:
    """One class a sample or position, cross-entropy; some may be ignored.

    Scores are (N, K) beside (N,) or (N, 1); (N, K, ...) beside (N, ...) or (N, 1, ...); with
    `last`, (N, ..., K) beside (N, ...).
    """

    counted: str
    last: bool = False

    def expected(self, scores: Tensor) -> str:
        """Say what labels have to be."""
        classes = self._classes(scores).shape[1]
        return f"class numbers from 0 to {classes - 1}, or {IGNORED} where there is none"

    def wrong(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Tell which labels are no class."""
        numbers = self._numbers(scores, labels)
        outside = (numbers < 0) | (numbers >= self._classes(scores).shape[1])
        return (outside & (numbers != IGNORED)).reshape(labels.shape)

    def right(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Give the share of each sample's positions that are right, of those not ignored."""
        numbers = self._numbers(scores, labels)
        hit = self._classes(scores).argmax(1) == numbers
        return _share(hit, numbers != IGNORED)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Give the cross-entropy."""
        numbers, classes = self._numbers(scores, labels), log_probabilities(self._classes(scores))
        if not bool((numbers != IGNORED).any()):
            return classes.sum() * 0.0
        return F.nll_loss(classes, numbers, ignore_index=IGNORED)

    def _classes(self, scores: Tensor) -> Tensor:
        return scores.movedim(-1, 1) if self.last else scores

    def _numbers(self, scores: Tensor, labels: Tensor) -> Tensor:
        shape = self._classes(scores).shape
        numbers = labels.long().reshape(shape[:1] + shape[2:])
        if len(shape) > 3 and shape[1] <= VOID:
            numbers = numbers.masked_fill(numbers == VOID, IGNORED)
        return numbers


@dataclass(frozen=True)
class ClassShares:
    """What share of a sample or position is of each class, (N, K, ...): cross-entropy."""

    counted: str

    def expected(self, scores: Tensor) -> str:
        """Say what labels have to be."""
        return f"shares of {scores.shape[1]} classes, 0 or above and 1 in all"

    def wrong(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Tell where they are below zero or do not sum up to 1."""
        values = labels.reshape(scores.shape).float()
        off = ~((values.sum(1, keepdim=True) - 1).abs() <= CLOSE)  # NaN too
        return (values < -CLOSE) | off

    def right(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Give the share of positions whose likeliest class has the largest share."""
        hit = scores.argmax(1) == labels.float().argmax(1)
        return _share(hit, torch.ones_like(hit))

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Give the cross-entropy."""
        each = -(labels.to(scores.dtype) * log_probabilities(scores)).sum(1)
        return each.mean()


@dataclass(frozen=True)
class Binary:
    """Zeros and ones, each by itself: binary cross-entropy.

    `probabilities` says that the scores are such, and no logits. With `void` 255 is left out.
    """

    counted: str
    probabilities: bool = False
    void: bool = False

    def expected(self, scores: Tensor) -> str:  # noqa: ARG002
        """Say what labels have to be."""
        return "0 or 1" + (f", or {VOID} where there is none" if self.void else "")

    def wrong(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Tell which labels are neither."""
        known = labels.reshape(scores.shape)
        left_out = (known == VOID) if self.void else torch.zeros_like(known, dtype=torch.bool)
        return ~((known == 0) | (known == 1) | left_out).reshape(labels.shape)

    def right(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Give the share of labels on whose side the score is."""
        known = labels.reshape(scores.shape)
        hit = (scores > (0.5 if self.probabilities else 0.0)) == (known == 1)
        return _share(hit, known != VOID if self.void else torch.ones_like(hit))

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Give the binary cross-entropy."""
        known = labels.reshape(scores.shape)
        weight = (known != VOID).to(scores.dtype) if self.void else torch.ones_like(scores)
        wanted = (known == 1).to(scores.dtype)
        if self.probabilities:
            each = F.binary_cross_entropy(scores.clamp(0, 1), wanted, reduction="none")
        else:
            each = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        return (each * weight).sum() / weight.sum().clamp(min=1)


@dataclass(frozen=True)
class Numbers:
    """Numbers of the outputs' shape: mean squared error, against their variance v.

    The share right of a sample is v/(v + e²), with e² its mean squared error.
    """

    counted: str
    variance: float

    def expected(self, scores: Tensor) -> str:  # noqa: ARG002
        """Say what labels have to be."""
        return "finite numbers"

    def wrong(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Tell which labels are NaN or infinite."""
        return ~labels.reshape(scores.shape).isfinite().reshape(labels.shape)

    def right(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Give v/(v + e²) of each sample."""
        apart = mean_square(scores - labels.reshape(scores.shape))
        return 1 / (1 + apart / self.variance)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Give the mean squared error."""
        return F.mse_loss(scores, labels.reshape(scores.shape).to(scores.dtype))


Reading = ClassNumbers | ClassShares | Binary | Numbers


def readings(scores: Tensor, labels: Tensor) -> Iterator[Reading]:
    """Give the ways to read labels beside scores, by shape, dtype and values; the usual first."""
    if not scores.is_floating_point() or not scores.numel() or scores.dim() < 1:
        return
    shape, own = tuple(scores.shape), tuple(labels.shape)
    whole = not labels.is_floating_point() and not labels.is_complex()
    if own[:1] == shape[:1] and _without_ones(own) == _without_ones(shape):
        yield from _elementwise(scores, labels)
    if not whole or len(shape) < 2 or not labels.numel() or own[:1] != shape[:1]:
        return
    where = "class numbers" if len(shape) == 2 else "positions" if len(shape) == 3 else "pixels"
    places = shape[:1] + shape[2:]
    if shape[1] > 1 and own in (places, (*shape[:1], 1, *shape[2:])):
        yield ClassNumbers(where)
    if len(shape) == 3 and shape[-1] > 1 and own == shape[:-1]:
        yield ClassNumbers(where, last=True)


def _elementwise(scores: Tensor, labels: Tensor) -> Iterator[Reading]:
    """Give the ways to read labels that stand one beside each score."""
    values = labels.reshape(scores.shape).float()
    classes = scores.dim() > 1 and scores.shape[1] > 1
    shares = ClassShares("soft labels")
    if classes and labels.shape == scores.shape and not bool(shares.wrong(scores, labels).any()):
        hot = bool(((values == 0) | (values == 1)).all())
        yield ClassShares("one-hot labels") if hot else shares
        return
    void = scores.dim() > 2 and not labels.is_floating_point()
    said = "pixels" if scores.dim() > 3 and not classes else "multi-label"
    said = said if classes or scores.dim() > 2 else "binary labels"
    if not bool(Binary(said, void=void).wrong(scores, labels).any()):
        yield from _binary(scores, said, void)
    elif labels.is_floating_point() or scores.dim() <= 2:
        yield Numbers("numbers", variance_of(values))


def _binary(scores: Tensor, said: str, void: bool) -> Iterator[Reading]:
    """Give both ways where few scores lie between 0 and 1: logits may do so by chance."""
    low, high = float(scores.min()), float(scores.max())
    between = low >= 0 and high <= 1
    if between:
        yield Binary(said, probabilities=True, void=void)
    if not between or low > 0.5 or scores.numel() < FEW:
        yield Binary(said, void=void)


def log_probabilities(scores: Tensor) -> Tensor:
    """Give log-probabilities of classes, (N, K, ...), from logits or from probabilities."""
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    if are_probabilities(scores):
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
    return scores.log_softmax(1)


def are_probabilities(scores: Tensor) -> bool:
    """Whether (N, K, ...) are probabilities of classes."""
    sums = scores.detach().float().sum(1)
    return bool((scores >= 0).all()) and bool(((sums - 1).abs() <= CLOSE).all())


def variance_of(values: Tensor) -> float:
    """Give the variance over a batch, the mean over what a sample holds; never zero.

    Of one sample, or of samples all alike, the mean square, and 1 where that is zero too.
    """
    values = values.detach().reshape(len(values), -1)
    values = values.to(accumulation_dtype(values.dtype))
    known = values[values.isfinite().all(1)]
    spread = float(known.var(0, correction=0).mean()) if len(known) else 0.0
    return spread or (float(known.square().mean()) if len(known) else 0.0) or 1.0


def mean_square(values: Tensor) -> Tensor:
    """Give the mean square of each sample, (N,), float64 on the CPU, as some devices have none."""
    each = values.to(accumulation_dtype(values.dtype)).reshape(len(values), -1)
    return each.square().mean(1).cpu().double()


def _share(hit: Tensor, counts: Tensor) -> Tensor:
    """Give the share of hits among what counts, by sample.

    A sample of which nothing counts gets the mean of the others, so that it changes none.
    """
    hit, counts = hit.reshape(len(hit), -1), counts.reshape(len(counts), -1)
    hits, of = (hit & counts).sum(1).cpu(), counts.sum(1).cpu()
    known = of > 0
    share = hits.double() / of.clamp(min=1)
    rest = share[known].mean() if bool(known.any()) else share.new_ones(())
    return torch.where(known, share, rest)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape[1:] if size != 1)
