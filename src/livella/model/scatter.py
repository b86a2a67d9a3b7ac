"""How surely moments are known: intervals from how the samples of the data scatter.

The values of one sample, the positions of a map, resemble each other, so the sample is the unit
and not the value. A sample contributes its count k, and from a centre r near the mean the sums
Σ(x − r) and Σ(x − r)²; mean and variance of all values are ratios of sums of these, and the
linearized ratio gives their errors (Cochran 1977, "Sampling Techniques", section 6: the ratio
estimator).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from livella.moments import Moments

CONFIDENCE = 0.95
PRODUCTS = [[6, 7, 8], [7, 9, 10], [8, 10, 11]]
"""Where contributions hold the products of k, s and q with each other."""
Interval = tuple[Tensor, Tensor]


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
    def of(cls, parts: Tensor, samples: Sequence[int], centre: Tensor) -> Scatter:
        """Merge what batches of so many samples contributed, (B, 12, C).

        As `livella.functional.contributions` gives it for this centre.
        """
        share = parts.new_tensor(samples)[:, None, None] / sum(samples)
        means = parts[:, 3:6]
        mean = (share * means).sum(0)
        off = means - mean
        between = torch.einsum("bic,bjc->cij", share * off, off) * sum(samples)
        within = parts[:, PRODUCTS].sum(0).movedim(2, 0)
        return cls(sum(samples), len(samples), centre, mean.T, within + between, within)

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

    def errors(self, moments: Moments, excess: float = 1.0) -> tuple[Tensor, Tensor]:
        """Give the half-widths of the 95 % intervals of mean and variance, (C,) each.

        Infinite below two samples. Where batches differ by more than chance allows (data in an
        order), samples are not independent: the widths grow by that excess, which is known from as
        many values as there are batches.
        """
        if self.samples < 2:
            unknown = torch.full_like(moments.mean, torch.inf)
            return unknown, unknown
        from scipy.special import stdtrit  # here: it takes as long to load as all of livella

        directions = self._directions(moments)
        values = self.samples if excess == 1 else self.batches
        t = float(stdtrit(values - 1, (1 + CONFIDENCE) / 2)) * excess**0.5
        scale = t / self.mean[:, 0] / (self.samples * (self.samples - 1)) ** 0.5
        of_mean, of_variance = (scale * _along(self.spread, d) for d in directions)
        return of_mean, of_variance

    def _directions(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """How a sample's contributions make the errors of mean and variance, linearized."""
        shift = moments.mean - self.centre
        variance = moments.variance(unbiased=False)
        one, none = torch.ones_like(shift), torch.zeros_like(shift)
        of_mean = torch.stack([-shift, one, none], dim=1)
        of_variance = torch.stack([shift.square() - variance, -2 * shift, one], dim=1)
        return of_mean, of_variance

    def variance_of_mean(self, moments: Moments) -> Tensor:
        """Give the variance of the mean of one sample, (C,); that of n samples has it over n.

        It is σ² over the independent values that a sample is worth.
        """
        along = _along(self.spread, self._directions(moments)[0])
        return along.square() / max(1, self.samples - 1) / self.mean[:, 0].square()

    def excess(self, moments: Moments) -> float:
        """How much more the batches differ than independent samples let them; one where not.

        The ratio of the mean squares between batches and overall, mean over the channels, counted
        from four of its standard deviations above one.
        """
        if self.batches < 4:
            return 1.0
        between = (self.spread - self.within) / (self.batches - 1)
        overall = self.spread / (self.samples - 1)
        found = 1.0
        for direction in self._directions(moments):
            top, bottom = (_along(p, direction).square() for p in (between, overall))
            varies = bottom > 0
            if varies.any():
                found = max(found, float((top[varies] / bottom[varies]).mean()))
        return found if found > 1 + 4 * (2 / (self.batches - 1)) ** 0.5 else 1.0


def _along(products: Tensor, direction: Tensor) -> Tensor:
    """Give √(dᵀ P d) for each channel."""
    return torch.einsum("ca,cab,cb->c", direction, products, direction).clamp(min=0).sqrt()


def intervals(moments: Moments, errors: tuple[Tensor, Tensor]) -> tuple[Interval, Interval]:
    """Give the 95 % intervals of mean and (unbiased) variance, the latter even in logarithms."""
    mean_error, variance_error = errors
    variance = moments.variance(unbiased=True)
    factor = (variance_error / variance.clamp(min=torch.finfo(variance.dtype).tiny)).exp()
    mean = (moments.mean - mean_error, moments.mean + mean_error)
    return mean, (variance / factor, torch.where(variance > 0, variance * factor, variance))
