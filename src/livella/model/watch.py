"""Whether a stream of data may be adapted to: what would make it harm, and how that shows.

Adaptation takes the data met in use for a fair sample of what a layer will see. Where they are
not, sorted by class or correlated in time, it removes what tells the classes apart (Gong et al.
2022, "NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation", section 2). No
labels are at hand, but three things show without them, in the source model's own pass: batches that
differ more than independent samples could; predictions of few classes while every layer meets
what it knows; and, in the adapted one, predictions that collapse.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from livella.model.levels import Site
from livella.model.measure import Record
from livella.moments import Moments

ENOUGH = 32
"""Samples before which nothing is judged."""
WINDOW = 256
"""Samples to judge by, the last ones."""
LOOKS = 8
"""Batches to judge by at least: of fewer it cannot be told whether they differ by chance."""
FEW = 0.45
"""Unevenness of predictions from which they are of few classes: that of 3 or 4 classes in 10."""
KNOWN = 0.115
"""Divergence from training, in nats, median over the layers, that a class may make by itself; that
of more classes in proportion to their unevenness. On Fashion-MNIST, five networks, classes made at
most 0.099 a unit of unevenness, and corruptions that left few classes at least 0.134."""
COLLAPSE = 0.5
"""How much more uneven than the source model's predictions the adapted ones may become."""


@dataclass(frozen=True, eq=False)
class Look:
    """What one batch showed.

    Attributes:
        samples: how many it has.
        votes: how often the source model predicts each class, (K,).
        adapted: the same for the adapted model; none while it is not adapted.
        records: what each call of a layer was given, with the source model's statistics.

    """

    samples: int
    votes: Tensor
    adapted: Tensor | None
    records: Mapping[Site, Record]

    def merge(self, other: Look) -> Look:
        """Give what both showed together."""
        records = dict(self.records)
        for site, record in other.records.items():
            records[site] = records[site].merge(record) if site in records else record
        parts = [each.adapted for each in (self, other) if each.adapted is not None]
        adapted = torch.stack(parts).sum(0) if parts else None
        return Look(self.samples + other.samples, self.votes + other.votes, adapted, records)


@dataclass
class Watch:
    """The last looks at a stream, and what follows from them.

    Attributes:
        source: mean, variance and ε per layer, as the source model has them.
        looks: those in the window, the last one last.
        window: samples to judge by; all of them where it is None.

    """

    source: Mapping[str, tuple[Tensor, Tensor, float]]
    looks: deque[Look] = field(default_factory=deque)
    window: int | None = WINDOW

    @classmethod
    def of(cls, layers: Mapping[str, _NormBase]) -> Watch:
        """Remember what the layers normalize by now."""
        return cls({name: _averages(layer) for name, layer in layers.items()})

    def see(self, look: Look) -> None:
        """Take in one more, and forget what is older than the window; without one, merge them."""
        if self.window is None and self.looks:
            look = self.looks.pop().merge(look)
        self.looks.append(look)
        while self._is_over():
            self.looks.popleft()

    def see_adapted(self, votes: Tensor) -> None:
        """Add the adapted model's votes on the last batch."""
        last = self.looks[-1]
        self.looks[-1] = replace(
            last, adapted=votes if last.adapted is None else last.adapted + votes
        )

    def kept(self) -> deque[Look]:
        """Give the looks as they are now."""
        return deque(self.looks)

    def _is_over(self) -> bool:
        if self.window is None or len(self.looks) <= LOOKS:
            return False
        return self.samples - self.looks[0].samples >= self.window

    @property
    def samples(self) -> int:
        return sum(look.samples for look in self.looks)

    @property
    def may_judge(self) -> bool:
        return self.samples >= ENOUGH

    def objection(self, *, in_order: bool) -> str | None:
        """Say why these data are not to be adapted to; none where nothing speaks against it.

        Args:
            in_order: whether the order of the batches matters, as where moments fade.

        """
        return (self.correlated() if in_order else None) or self.few_classes() or self.collapse()

    def correlated(self) -> str | None:
        """Whether the batches differ more than independent samples let them."""
        for site, record in self._records().items():
            if record.scatter is None:
                continue
            excess = record.scatter.excess(record.moments)
            if excess > 1:
                return (
                    f"correlated: batches differ {excess:.2g} times more than chance allows (first "
                    f"in layer {site[0]!r}), in time or by class; shuffle them, or adapt to a set"
                )
        return None

    def few_classes(self) -> str | None:
        """Whether predictions are of few classes though every layer meets what it knows."""
        votes = torch.stack([look.votes for look in self.looks]).sum(0)
        uneven = unevenness(votes)
        if uneven <= FEW:
            return None
        if self.divergence() > KNOWN * uneven:
            return None
        share, top = float(votes.max() / votes.sum()), int(votes.argmax())
        return (
            f"few classes: {share:.0%} of the predictions are class {top}, though what the layers "
            f"meet differs little from training ({self.divergence():.2g} nats); these data seem a "
            "part of what the model knows, not a shift"
        )

    def collapse(self) -> str | None:
        """Whether the adapted model predicts few classes where the source model does not."""
        both = [(look.votes, look.adapted) for look in self.looks if look.adapted is not None]
        if not both:
            return None
        source, adapted = (torch.stack(votes).sum(0) for votes in zip(*both, strict=True))
        if int(adapted.sum()) < ENOUGH or unevenness(adapted) - unevenness(source) <= COLLAPSE:
            return None
        share = float(adapted.max() / adapted.sum())
        top = int(adapted.argmax())
        return f"collapse: {share:.0%} of the predictions are class {top} once adapted"

    def _records(self) -> dict[Site, Record]:
        """What each call met in the whole window."""
        whole = functools.reduce(Look.merge, self.looks)
        return dict(whole.records)

    def divergence(self) -> float:
        """How far what the layers meet is from training: the median over their calls, in nats.

        Of each call the median over the channels of ½(r − 1 − ln r + δ²), the divergence between
        normal distributions, with r = (σ² + ε)/(σₛ² + ε) and δ² = (μ − μₛ)²/(σₛ² + ε).
        """
        each = [self._divergence(site, r.moments) for site, r in self._records().items()]
        return statistics.median(each)

    def _divergence(self, site: Site, moments: Moments) -> float:
        mean, variance, eps = self.source[site[0]]
        seen = variance + eps
        ratio = (moments.variance(unbiased=False) + eps) / seen
        delta = (moments.mean - mean).square() / seen
        return float((ratio - 1 - ratio.log() + delta).median()) / 2


def votes_of(scores: Tensor) -> Tensor:
    """Count how often each of the K classes of scores (N, K, …) is the likeliest."""
    return scores.argmax(1).flatten().bincount(minlength=scores.shape[1]).cpu()


def unevenness(votes: Tensor) -> float:
    """1 − H(votes)/log min(K, n), from 0, as even as n votes for K classes can be, to 1, all alike.

    H is the entropy of their shares.
    """
    n = int(votes.sum())
    most = min(len(votes), n)
    if most < 2:
        return 0.0
    shares = votes[votes > 0].double() / n
    return 1 - float(-(shares * shares.log()).sum()) / math.log(most)


def _averages(layer: _NormBase) -> tuple[Tensor, Tensor, float]:
    assert layer.running_mean is not None, "only layers with averages are adapted"
    assert layer.running_var is not None
    return layer.running_mean.double().clone(), layer.running_var.double().clone(), layer.eps
