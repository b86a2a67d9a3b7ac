"""How surely moments are known: intervals from how the samples of the data scatter.

The values of one sample, the positions of a map, resemble each other, so the sample is the unit
and not the value. A sample contributes its count k, and from a centre r near the mean the sums
Σ(x − r) and Σ(x − r)²; mean and variance of all values are ratios of sums of these, and the
linearized ratio gives their errors (Cochran 1977, "Sampling Techniques", section 6: the ratio
estimator).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from livella.functional import row_moments
from livella.moments import Moments

CONFIDENCE = 0.95
Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Samples:
    """What each sample of one batch contributes to the moments of a layer's input.

    All float64: `count` (N, 1), the values behind each channel; `mean` and `m2` (N, C).
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    def moments(self) -> Moments:
        """Merge them: M₂ = Σ M₂ᵢ + Σ kᵢ(mᵢ − μ)²."""
        total = self.count.sum()
        mean = (self.count * self.mean).sum(0) / total.clamp(min=1)
        between = (self.count * (self.mean - mean).square()).sum(0)
        return Moments(total, mean, self.m2.sum(0) + between)


@dataclass(frozen=True, eq=False)
class Scatter:
    """First and second moments of the contributions (k, Σ(x − r), Σ(x − r)²) of all samples.

    Attributes:
        samples: how many contributed.
        batches: in how many batches.
        centre: r, (C,).
        mean: their mean, (C, 3).
        spread: the sum of products of their deviations from it, (C, 3, 3).
        within: the same from the mean of each batch.

    """

    samples: int
    batches: int
    centre: Tensor
    mean: Tensor
    spread: Tensor
    within: Tensor

    @classmethod
    def of(cls, samples: Samples, centre: Tensor) -> Scatter:
        k, shift = samples.count, samples.mean - centre
        contributions = torch.stack(
            [k.expand_as(shift), k * shift, samples.m2 + k * shift.square()], dim=2
        )
        mean = contributions.mean(0)
        deviations = (contributions - mean).movedim(0, 2)
        spread = deviations @ deviations.mT
        return cls(len(shift), 1, centre, mean, spread, spread)

    def cpu(self) -> Scatter:
        """Give the same on the CPU."""
        tensors = (self.centre, self.mean, self.spread, self.within)
        return Scatter(self.samples, self.batches, *(tensor.cpu() for tensor in tensors))

    def merge(self, other: Scatter) -> Scatter:
        """Give the scatter of both, about this centre: Chan's formula for three numbers."""
        other = other._about(self.centre)
        samples = self.samples + other.samples
        delta = other.mean - self.mean
        between = delta[:, :, None] * delta[:, None, :] * (self.samples * other.samples / samples)
        return Scatter(
            samples,
            self.batches + other.batches,
            self.centre,
            self.mean + delta * (other.samples / samples),
            self.spread + other.spread + between,
            self.within + other.within,
        )

    def _about(self, centre: Tensor) -> Scatter:
        """Give the same from another centre, on which the contributions depend linearly."""
        if centre is self.centre:
            return self
        d = self.centre - centre
        change = torch.eye(3, dtype=d.dtype, device=d.device).repeat(len(d), 1, 1)
        change[:, 1, 0], change[:, 2, 0], change[:, 2, 1] = d, d.square(), 2 * d

        def changed(products: Tensor) -> Tensor:
            return change @ products @ change.mT

        mean = (change @ self.mean[:, :, None])[:, :, 0]
        spread, within = changed(self.spread), changed(self.within)
        return Scatter(self.samples, self.batches, centre, mean, spread, within)

    def errors(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Give the half-widths of the 95 % intervals of mean and variance, (C,) each.

        Infinite below two samples. Where batches differ by more than chance allows (data in an
        order), samples are not independent, and the widths grow by that excess.
        """
        if self.samples < 2:
            unknown = torch.full_like(moments.mean, torch.inf)
            return unknown, unknown
        directions = self._directions(moments)
        t = _quantile(self.samples - 1) * self._excess(directions) ** 0.5
        scale = t / self.mean[:, 0] / (self.samples * (self.samples - 1)) ** 0.5
        of_mean, of_variance = (scale * _along(self.spread, d) for d in directions)
        return of_mean, of_variance

    def is_ordered(self, moments: Moments) -> bool:
        """Whether the batches differ more than chance allows."""
        return self._excess(self._directions(moments)) > 1

    def _directions(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """How a sample's contributions make the errors of mean and variance, linearized."""
        shift = moments.mean - self.centre
        variance = moments.variance(unbiased=False)
        one, none = torch.ones_like(shift), torch.zeros_like(shift)
        of_mean = torch.stack([-shift, one, none], dim=1)
        of_variance = torch.stack([shift.square() - variance, -2 * shift, one], dim=1)
        return of_mean, of_variance

    def _excess(self, directions: tuple[Tensor, Tensor]) -> float:
        """How much more the batches differ than independent samples let them; one where not.

        The ratio of the mean squares between batches and overall, mean over the channels, counted
        from four of its standard deviations above one.
        """
        if self.batches < 4:
            return 1.0
        between = (self.spread - self.within) / (self.batches - 1)
        overall = self.spread / (self.samples - 1)
        found = 1.0
        for direction in directions:
            top, bottom = (_along(p, direction).square() for p in (between, overall))
            varies = bottom > 0
            if varies.any():
                found = max(found, float((top[varies] / bottom[varies]).mean()))
        return found if found > 1 + 4 * (2 / (self.batches - 1)) ** 0.5 else 1.0


def _along(products: Tensor, direction: Tensor) -> Tensor:
    """Give √(dᵀ P d) for each channel."""
    return torch.einsum("ca,cab,cb->c", direction, products, direction).clamp(min=0).sqrt()


def _quantile(freedom: int) -> float:
    """Student's t for the confidence, by its expansion about the normal quantile."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def intervals(
    moments: Moments, scatter: Scatter, widening: float = 1.0
) -> tuple[Interval, Interval]:
    """Give the 95 % intervals of mean and (unbiased) variance, the latter even in logarithms."""
    mean_error, variance_error = (widening * error for error in scatter.errors(moments))
    variance = moments.variance(unbiased=True)
    factor = (variance_error / variance.clamp(min=torch.finfo(variance.dtype).tiny)).exp()
    mean = (moments.mean - mean_error, moments.mean + mean_error)
    return mean, (variance / factor, torch.where(variance > 0, variance * factor, variance))


def measure(x: Tensor, mask: Tensor | None = None) -> Samples:
    """Take the moments of each sample of x, (N, C, …), in float64.

    Args:
        x: what a batch norm is given.
        mask: true where an element is valid, as in `livella.functional.batch_norm`.

    """
    if mask is not None:
        return _measure_masked(x, mask)
    n, channels = x.shape[:2]
    dtype = Moments.empty(0, x.device).mean.dtype
    positions = x[0, 0].numel() if n else 0
    count = torch.full((n, 1), positions, dtype=dtype, device=x.device)
    if x.dim() == 2 or not x.numel():
        mean = x.flatten(2).sum(2, dtype=dtype) if x.dim() > 2 else x.to(dtype)
        return Samples(count, mean, torch.zeros_like(mean))
    mean, m2 = row_moments(x.reshape(n * channels, positions))
    return Samples(count, mean.view(n, channels).to(dtype), m2.view(n, channels).to(dtype))


def _measure_masked(x: Tensor, mask: Tensor) -> Samples:
    n, channels = x.shape[:2]
    whole = mask.expand(n, *x.shape[2:]).unsqueeze(1)
    dtype = Moments.empty(0, x.device).mean.dtype
    values = torch.where(whole, x, 0).to(dtype).reshape(n, channels, -1)
    valid = whole.to(dtype).reshape(n, 1, -1)
    count = valid.sum(2)
    mean = values.sum(2) / count.clamp(min=1)
    deviations = (values - mean[:, :, None]) * valid
    return Samples(count, mean, deviations.square().sum(2))
