"""How alike two outputs of one batch are, sample by sample, where there are no labels.

Of class scores: the share right that the worse output loses, if the probabilities of the trusted
one are believed, 1 − (p[argmax p] − p[argmax q]). Of everything else: v/(v + d²), with d² the mean
squared distance of a sample and v the variance of the trusted outputs, over the batch, or over all
that were taken in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from livella.diagnosis.labels import are_probabilities, mean_square, variance_of
from livella.diagnosis.targets import is_embedding, predictions
from livella.model import feeding
from livella.moments import Moments

ROWS = 1000
"""Detections of a sample that are compared, the first ones."""
CENTRED = 3.0
"""How many times the variance of logits over the classes the square of their mean may be."""


@dataclass
class Scales:
    """The variance of outputs over batches, tensor by tensor: batches in an order differ less."""

    moments: dict[int, Moments] = field(default_factory=dict)

    def take_in(self, output: Any, samples: int) -> None:
        """Take in the outputs of a further batch, those that have a row a sample."""
        for k, tensor in enumerate(feeding.tensors_in(output)):
            if not tensor.is_floating_point() or tensor.dim() < 1 or len(tensor) != samples:
                continue
            new = Moments.of(tensor.detach().reshape(samples, -1))
            old = self.moments.get(k)
            if bool(new.m2.isfinite().all()):
                same = old is not None and old.mean.shape == new.mean.shape
                self.moments[k] = old.merge(new) if old is not None and same else new

    def variance(self, k: int, trusted: Tensor) -> float:
        """Give the variance of the k-th tensor, the mean over what a sample holds."""
        known = self.moments.get(k)
        if known is not None and known.mean.numel() * len(trusted) == trusted.numel():
            return float(known.variance(unbiased=False).mean()) or variance_of(trusted)
        return variance_of(trusted)


@dataclass(frozen=True)
class Likeness:
    """The likeness of outputs, in the same way for every batch.

    Attributes:
        classes: the dimension of classes, where the outputs are class scores; none where not.
        scales: of everything else.

    """

    classes: int | None
    scales: Scales

    @classmethod
    def of(cls, trusted: Any, scales: Scales) -> Likeness:
        """Decide by trusted outputs."""
        scores = _class_scores(trusted)
        dims = () if scores is None else (1, -1) if scores.dim() == 3 else (1,)
        sure = {dim: _certainty(scores, dim) for dim in dims if scores is not None}
        best = max(sure, key=lambda dim: sure[dim], default=1)
        return cls(best if sure.get(best) else None, scales)

    def merit(self, output: Any, trusted: Any, samples: int) -> Tensor:
        """Give the likeness of each sample in [0, 1], (N,), float64 on the CPU; 0 for NaN."""
        if self.classes is not None:
            pair = _class_scores(output), _class_scores(trusted)
            if pair[0] is not None and pair[1] is not None and pair[0].shape == pair[1].shape:
                return _expected_right(pair[0], pair[1], self.classes)
        if isinstance(trusted, Tensor) and trusted.dim():
            samples = len(trusted)
        return _alike(output, trusted, samples, self.scales)


def _class_scores(output: Any) -> Tensor | None:
    """The tensor of (N, K, ...) in an output, if there is one and no other."""
    found = [tensor for _, tensor in predictions(output)]
    if len(found) != 1 or not found[0].is_floating_point():
        return None
    scores = found[0]
    return scores if scores.dim() >= 2 and scores.numel() else None


def _certainty(scores: Tensor, dim: int) -> float:
    """How sure class scores are, from chance, 0, to certainty, 1; 0 where they are none.

    Probabilities and their logarithms are told by their sum. Training by cross-entropy leaves the
    mean of logits over the classes where it was, near 0, so numbers that lie far on one side are
    none; and it makes them surer than numbers of unit variance are (0.35 for two, 0.2 for ten,
    0.07 for 64 of them).
    """
    scores = scores.detach().float().movedim(dim, 1)
    classes = scores.shape[1]
    if classes < 2:
        return 0.0
    if are_probabilities(scores) or _are_logarithms(scores):
        return 1.0
    if not bool(scores.isfinite().all()) or is_embedding(scores):
        return 0.0
    off_centre = scores.mean(1).square().mean() > CENTRED * scores.var(1, correction=0).mean()
    sure = float(scores.softmax(1).amax(1).mean())
    share = (sure * classes - 1) / (classes - 1)
    enough = max(0.2, min(0.6, 2.5 / classes))
    return share if share > enough and not bool(off_centre) else 0.0


def _are_logarithms(scores: Tensor) -> bool:
    return bool((scores <= 0).all()) and are_probabilities(scores.exp())


def _expected_right(output: Tensor, trusted: Tensor, dim: int) -> Tensor:
    given, believed = (each.detach().float().movedim(dim, 1) for each in (output, trusted))
    known = believed if are_probabilities(believed) else believed.softmax(1)
    at = [known.gather(1, each.argmax(1, keepdim=True)) for each in (believed, given)]
    loss = (at[0] - at[1]).flatten(1).mean(1).cpu().double()
    finite = given.isfinite() | (given == -torch.inf)  # a logarithm of nothing
    merit = (1 - loss) * finite.flatten(1).all(1).cpu()
    return merit.nan_to_num(nan=0.0).clamp(0, 1)


def _alike(output: Any, trusted: Any, samples: int, scales: Scales) -> Tensor:
    """Give the mean over the tensors that both have.

    A tensor with a row a sample is compared by sample, any other as a whole, for all samples. Of a
    list with an entry a sample, as detectors give, each entry is compared as a set: see `_sets`.
    What only one has counts as unlike.
    """
    if _a_sample_each(output, samples) and _a_sample_each(trusted, samples):
        each = [_sets(*pair) for pair in zip(output, trusted, strict=True)]
        return torch.tensor(each, dtype=torch.float64)
    pairs = enumerate(_pairs(output, trusted))
    merits = [_of_pair(*pair, samples, scales, k) for k, pair in pairs]
    return torch.stack(merits).mean(0) if merits else torch.ones(samples, dtype=torch.float64)


def _of_pair(
    given: Tensor | None, trusted: Tensor | None, samples: int, scales: Scales, k: int
) -> Tensor:
    if given is None or trusted is None or given.shape != trusted.shape:
        return torch.zeros(samples, dtype=torch.float64)
    given, trusted = given.detach(), trusted.detach()
    if not trusted.numel():
        return torch.ones(samples, dtype=torch.float64)
    by_sample = trusted.dim() > 0 and len(trusted) == samples
    if not by_sample:
        given, trusted = given[None], trusted[None]
    if trusted.is_floating_point():
        variance = scales.variance(k, trusted) if by_sample else variance_of(trusted.flatten())
        merit = 1 / (1 + mean_square(given - trusted) / variance)
    else:
        merit = (given == trusted).float().reshape(len(given), -1).mean(1).cpu().double()
    return merit.nan_to_num(nan=0.0).expand(samples)


def _pairs(output: Any, trusted: Any) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """Tensors at the same place of both, and what only one has beside nothing."""
    if isinstance(output, Tensor) and isinstance(trusted, Tensor):
        yield output, trusted
        return
    mine, theirs = _items(output), _items(trusted)
    for name in [*theirs, *(name for name in mine if name not in theirs)]:
        if name in mine and name in theirs:
            yield from _pairs(mine[name], theirs[name])
            continue
        for tensor in feeding.tensors_in(theirs.get(name, mine.get(name))):
            yield (None, tensor) if name in theirs else (tensor, None)


def _items(output: Any) -> dict[Any, Any]:
    named = feeding.fields(output)
    if named is not None:
        return dict(named)
    return dict(enumerate(output)) if isinstance(output, tuple | list) else {}


def _a_sample_each(output: Any, samples: int) -> bool:
    """Whether it is a list with a dict or a tensor of its own length for each sample."""
    if not isinstance(output, list) or len(output) != samples:
        return False
    if all(isinstance(each, Mapping) for each in output):
        return True
    lengths = [each.shape for each in output if isinstance(each, Tensor)]
    return len(lengths) == samples and len(set(lengths)) > 1


def _sets(output: Any, trusted: Any) -> float:
    """Compare what was detected in a sample, in whatever order and number.

    A detection is a row of all its entries that have no more than two dimensions. Each is compared
    with the nearest on the other side of the same class (the entries that are whole numbers), by
    1/(1 + d²) with d² in the variances of the trusted detections, and by nothing where there is
    none. The mean counts a detection by its "scores", where it has them.
    """
    mine, theirs = _rows(output), _rows(trusted)
    if theirs is None or mine is None:  # no rows
        whole = [_of_pair(*pair, 1, Scales(), 0) for pair in _pairs(output, trusted)]
        return float(torch.stack(whole).mean()) if whole else 1.0
    if not len(mine[0]) or not len(theirs[0]):
        return 1.0 if len(mine[0]) == len(theirs[0]) else 0.0
    if mine[0].shape[1:] != theirs[0].shape[1:] or mine[1].shape[1:] != theirs[1].shape[1:]:
        return 0.0
    scale = (theirs[0] - theirs[0].mean(0)).square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, theirs[0].abs().amax(0).clamp(min=1e-6))
    wide = max(1, theirs[0].shape[1])
    apart = torch.cdist(mine[0] / scale, theirs[0] / scale).square() / wide
    other = (mine[1][:, None] != theirs[1][None]).any(2)
    near = (1 / (1 + apart)).nan_to_num(nan=0.0).masked_fill(other, 0.0)
    merits = torch.cat([near.amax(1), near.amax(0)])
    weights = torch.cat([mine[2], theirs[2]]).nan_to_num(nan=1.0, posinf=1.0, neginf=0.0)
    weights = weights.clamp(min=0)
    total = weights.sum()
    return float((merits * weights).sum() / total) if total > 0 else float(merits.mean())


def _rows(sample: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """Give a sample's detections: their numbers, their classes, their weights, a row each."""
    named = {"": sample} if isinstance(sample, Tensor) else feeding.fields(sample) or {}
    each = {n: t for n, t in named.items() if isinstance(t, Tensor) and 1 <= t.dim() <= 2}
    lengths = {len(tensor) for tensor in each.values()}
    if len(lengths) != 1:
        return None
    count = min(lengths.pop(), ROWS)
    columns = {n: t[:, None] if t.dim() == 1 else t for n, t in each.items()}
    flat = {n: t.detach()[:count].cpu().double() for n, t in columns.items()}
    numbers = [t for n, t in flat.items() if each[n].is_floating_point()]
    whole = [t for n, t in flat.items() if not each[n].is_floating_point()]
    none = torch.zeros(count, 0, dtype=torch.float64)
    scores = flat.get("scores", none)
    weights = scores[:, 0] if scores.shape[1:] == (1,) else torch.ones(count, dtype=torch.float64)
    return torch.cat([*numbers, none], 1), torch.cat([*whole, none], 1), weights
