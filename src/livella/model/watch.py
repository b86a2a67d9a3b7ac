"""Whether a stream may be adapted to, and how far: what its classes explain, and what they do not.

Adaptation takes the data met in use for a fair sample of what a layer will see. Where they are not,
sorted by class or correlated in time, it removes what tells the classes apart (Gong et al. 2022,
"NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation", section 2). Three things
show without labels in the pass of the model as it was trained: whether its predictions are of few
classes; whether batches differ more than independent samples could; and whether the input of the
first layer is one that a part of the classes explains.

For the last, let Q be the second moment about the mean of training, over its variance: the mean
over all classes is 1, of whichever class one looks at, since the variance of training holds what
lies between the classes too: a class whose mean lies far off varies less about it. So Q tells a
change of the world from a choice of classes, where neither mean nor variance does.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from livella.model.entropy import mean_entropy
from livella.model.levels import Site
from livella.model.measure import Record

ENOUGH = 32
"""Samples before which nothing is judged."""
WINDOW = 512
"""Samples by which an order is judged, the last ones."""
PATIENCE = 256
"""Samples without a sign of an order, after which there is taken to be none."""
FEW, STILL_FEW = 0.1, 0.15
"""Concentration from which predictions are of few classes: of 10 classes about 5 in use, or about
4 after that patience; of two one that has two thirds."""
SPREAD = 0.6
"""How far log Q of a single class may be from 0; of more, by the root of their concentration. On 18
networks it was within 0.5."""
ONE = 0.5
"""Concentration from which there is hardly more than one class, whatever was corrected."""
FALLEN = 0.05
"""How much more concentrated predictions are where a shift made them fall on few classes."""
COLLAPSE = 0.5
"""How much more concentrated than the source model's predictions the adapted ones may become."""


class Way(enum.Enum):
    """How far to go along."""

    SOURCE = "stay as it was trained"
    FIRST = "correct the first layers by what no choice of classes explains"
    WHOLE = "adapt every layer"


@dataclass(frozen=True)
class Verdict:
    """How far to go along with the data, and why no further."""

    way: Way
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Votes:
    """What a model predicts for some samples, which may have faded.

    Attributes:
        counts: how often each class, (K,).
        entropy: of the predictions, in nats, summed over the samples.

    """

    counts: Tensor
    entropy: float = 0.0

    def plus(self, other: Votes | None, kept: float = 1.0) -> Votes:
        """Give these with others, which count less."""
        if other is None:
            return self
        return Votes(self.counts + kept * other.counts, self.entropy + kept * other.entropy)

    @property
    def total(self) -> float:
        return float(self.counts.sum())

    @property
    def concentration(self) -> float:
        return concentration(self.counts)

    def __str__(self) -> str:
        """Name the class that comes most."""
        share = float(self.counts.max()) / self.total
        return f"{share:.0%} of the predictions are class {int(self.counts.argmax())}"


@dataclass(frozen=True, eq=False)
class Look:
    """What some batches showed.

    Attributes:
        samples: how many they have.
        votes: what the source model predicts; none where it gives no scores.
        records: what each call of a layer was given, with the source model's statistics.

    """

    samples: int
    votes: Votes | None
    records: Mapping[Site, Record]

    def merge(self, other: Look) -> Look:
        """Give what both showed together."""
        records = dict(self.records)
        for site, record in other.records.items():
            records[site] = records[site].merge(record) if site in records else record
        votes = None if self.votes is None else self.votes.plus(other.votes)
        return Look(self.samples + other.samples, votes, records)


@dataclass(frozen=True, eq=False)
class Watch:
    """The last looks at a stream, and what follows from them.

    Attributes:
        source: mean, variance and ε of the layers as they were trained.
        window: how many samples it looks back; none for all there are.
        looks: of so many samples together as keep their number small; a whole set is one.
        samples: how many were seen since the beginning.
        first: what the model predicts with its first layers corrected, which fades.
        whole: the same with all layers adapted.

    """

    source: Mapping[str, tuple[Tensor, Tensor, float]]
    window: int | None
    looks: tuple[Look, ...] = ()
    samples: int = 0
    first: Votes | None = None
    whole: Votes | None = None

    @classmethod
    def of(cls, layers: Mapping[str, _NormBase], window: int | None = WINDOW) -> Watch:
        """Watch these layers, as they are now."""
        return cls({name: _averages(layer) for name, layer in layers.items()}, window)

    # What it sees

    def with_look(self, look: Look) -> Watch:
        """Give the watch that has seen this too."""
        looks, seen = (*self.looks, look), self.samples + look.samples
        if len(looks) > 1 and (self.window is None or looks[-2].samples < self.window // 16):
            looks = (*looks[:-2], looks[-2].merge(look))
        while self.window is not None and len(looks) > 2 and _samples(looks[1:]) >= self.window:
            looks = looks[1:]
        return replace(self, looks=looks, samples=seen)

    def with_adapted(self, votes: Votes | None, way: Way, samples: int) -> Watch:
        """Give the watch that has seen what the model predicts once adapted in one of two ways."""
        if votes is None:
            return self
        before = self.whole if way is Way.WHOLE else self.first
        kept = 1.0 if self.window is None else max(0.0, 1 - samples / self.window)
        votes = votes.plus(before, kept)
        return replace(self, whole=votes) if way is Way.WHOLE else replace(self, first=votes)

    # What follows

    def verdict(self, *, in_order: bool) -> Verdict:
        """Say how far to go along.

        Args:
            in_order: whether the order of the batches matters, as where moments fade.

        """
        if self.samples < ENOUGH:
            reason = f"{self.samples} samples are too few to judge by, of {ENOUGH}"
            return Verdict(Way.SOURCE, reason)
        order = self._order()
        if not self._is_of_few() and not (order and in_order):
            return Verdict(Way.WHOLE)
        reason = order or self._few()
        if self._is_explained():
            told = f"{reason}, and what comes in is as in training, so that nothing calls for it"
            return Verdict(Way.SOURCE, told)
        return self._where_shifted(reason, order is not None, in_order)

    def _where_shifted(self, reason: str, ordered: bool, in_order: bool) -> Verdict:
        """Say how far to go along with data that no choice of classes explains."""
        known = self.first is not None
        of_one = self.first is not None and self.first.concentration > ONE
        if of_one and not in_order:
            return Verdict(Way.SOURCE, f"{reason}, corrected or not: it cannot be told whether the "
                           "data are of one class or of another world")  # fmt: skip
        if self.samples >= PATIENCE and not (ordered or of_one) and (known or in_order):
            return Verdict(Way.WHOLE)
        if self._is_surer_as_it_was():
            return Verdict(Way.SOURCE, f"{reason}, and its predictions are surer as it was trained")
        return Verdict(Way.FIRST, reason)

    def _is_surer_as_it_was(self) -> bool:
        """Whether a correction costs certainty, and predictions had not fallen on few classes."""
        votes, first = self._seen.votes, self.first
        if votes is None or first is None or first.total < ENOUGH:
            return False
        surer = votes.entropy / votes.total < first.entropy / first.total
        return surer and votes.concentration < first.concentration + FALLEN

    def collapse(self) -> str | None:
        """Whether the adapted model predicts few classes where the source model does not."""
        votes = self._seen.votes
        if votes is None or self.whole is None or self.whole.total < ENOUGH:
            return None
        if self.whole.concentration - votes.concentration <= COLLAPSE:
            return None
        return f"collapse: {self.whole} once adapted"

    @property
    def calls(self) -> tuple[Site, ...]:
        """The calls of layers that were seen, in order."""
        return tuple(self._seen.records)

    @property
    def concentration(self) -> float:
        """How few classes the data have, at most: as it was trained or with layers corrected."""
        votes = (self._seen.votes, self.first)
        return min((each.concentration for each in votes if each is not None), default=1.0)

    def _is_of_few(self) -> bool:
        return self.concentration >= (FEW if self.samples < PATIENCE else STILL_FEW)

    def _few(self) -> str:
        votes = self._seen.votes
        if votes is None:
            return "unknown classes: no class scores were found"
        return f"few classes: {votes}"

    def _order(self) -> str | None:
        """Whether the batches differ more than independent samples let them."""
        for site, record in self._seen.records.items():
            times = excess(record)
            if times > 1:
                return (
                    f"ordered: batches differ {times:.2g} times more than chance allows (first in "
                    f"layer {site[0]!r}), in time or by class"
                )
        return None

    def _is_explained(self) -> bool:
        """Whether a choice of classes explains what the first layer is given: log Q is near 0."""
        votes = self._seen.votes
        few = 1.0 if votes is None else votes.concentration
        logarithm, error = self.second_moment()
        return abs(logarithm) <= SPREAD * math.sqrt(few) + 2 * error

    def second_moment(self) -> tuple[float, float]:
        """Give log Q of the first layer, mean over its channels, and its standard error at most.

        Q = ((μ − μₛ)² + σ² + ε)/(σₛ² + ε).
        """
        site, record = next(iter(self._seen.records.items()))
        mean, variance, eps = self.source[site[0]]
        seen, moments = variance + eps, record.moments
        apart = (moments.mean - mean).square() + moments.variance(unbiased=False) + eps
        q = float((apart / seen).mean())
        scatter = record.scatter
        if scatter is None or scatter.samples < 2:
            return math.log(q), math.inf
        of_samples = (scatter.spread[:, 2, 2] / (scatter.samples - 1)).sqrt() / scatter.mean[:, 0]
        error = float((of_samples / seen).mean()) / math.sqrt(scatter.samples)
        return math.log(q), error / q

    @functools.cached_property
    def _seen(self) -> Look:
        return functools.reduce(Look.merge, self.looks)


def excess(record: Record) -> float:
    """How many times more the means of batches differ than independent samples let them.

    The ratio of the mean squares between batches and within, mean over the channels; one where it
    is not above what chance makes of so many batches.
    """
    scatter = record.scatter
    if scatter is None or scatter.batches < 2 or scatter.samples <= scatter.batches:
        return 1.0
    shift = record.moments.mean - scatter.centre
    of_mean = torch.stack([-shift, torch.ones_like(shift), torch.zeros_like(shift)], 1)
    within, spread = (
        torch.einsum("ca,cab,cb->c", of_mean, each, of_mean)
        for each in (scatter.within, scatter.spread)
    )
    between = (spread - within) / (scatter.batches - 1)
    chance = within / (scatter.samples - scatter.batches)
    varies = chance > 1e-8 * (1 + spread)
    if not varies.any():
        return 1.0
    found = float((between[varies] / chance[varies]).mean())
    free = scatter.batches - 1
    return found if found > 1 + 4 * (2 / free) ** 0.5 + 4 / free else 1.0


def votes_of(scores: Tensor) -> Votes:
    """Take what scores of K classes, (N, K, …), predict for each sample.

    The likeliest; where a sample has scores at many positions, the one at most of them.
    """
    best = scores.argmax(1).flatten(1) if scores.dim() > 2 else scores.argmax(1)[:, None]
    counts = best.mode(1).values.bincount(minlength=scores.shape[1])
    return Votes(counts.cpu().double(), float(mean_entropy(scores)) * len(scores))


def concentration(votes: Tensor) -> float:
    """(Σp² − 1/K)/(1 − 1/K), from 0, all K classes alike, to 1, a single one.

    Σp², the chance that two samples agree, is estimated without bias from what may have faded;
    below two votes it is 1.
    """
    n, classes = float(votes.sum()), len(votes)
    if n < 2:
        return 1.0
    agree = float((votes * (votes - 1).clamp(min=0)).sum()) / (n * (n - 1))
    return min(1.0, max(0.0, (agree - 1 / classes) / (1 - 1 / classes)))


def _samples(looks: tuple[Look, ...]) -> int:
    return sum(look.samples for look in looks)


def _averages(layer: _NormBase) -> tuple[Tensor, Tensor, float]:
    assert layer.running_mean is not None, "only layers with averages are adapted"
    assert layer.running_var is not None
    return layer.running_mean.double().clone(), layer.running_var.double().clone(), layer.eps
