"""The moments of data, channel by channel: the one record every normalization rests on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """How many values were seen, their mean, and the sum of their squared deviations from it.

    Moments of disjoint parts `merge` into those of the whole exactly, which variances do not.

    Attributes:
        count: number of values behind each channel: one number for all channels (an int, or a
            tensor without dimensions where a mask decides), or a tensor of shape (C,).
        mean: μ = Σx / count, shape (C,), float32 or float64, in the unit of the data.
        m2: Σ(x − μ)², shape and dtype of `mean`, in the squared unit of the data.

    """

    count: int | Tensor
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, x: Tensor, channel_dim: int = 1, mask: Tensor | None = None) -> Moments:
        """Measure `x` over every dimension but `channel_dim`.

        Computed in two passes, in float32 (float64 for float64 data): the mean, then the
        deviations from it, corrected for the mean's own rounding (the corrected two-pass algorithm
        of Chan, Golub & LeVeque 1983, "Algorithms for Computing the Sample Variance: Analysis and
        Recommendations"). It keeps its accuracy where the mean is large against the deviation, and
        is a differentiable function of `x`.

        Args:
            x: data of any shape with a channel dimension.
            channel_dim: the dimension kept.
            mask: boolean, true where an element counts; its shape is broadcastable to that of `x`
                without `channel_dim`. What is masked out has no influence, NaN and infinity
                included. Default: every element counts.

        Returns:
            The moments; those of no element at all are zeros.

        """
        x = x.to(accumulation_dtype(x.dtype))
        count = count_elements(x.shape, channel_dim, mask)
        n = at_least(1, count)
        dims = [d for d in range(x.dim()) if d != channel_dim % x.dim()]
        valid = None if mask is None else spread(mask, x.shape, channel_dim)

        mean = only(valid, x).sum(dims) / n
        deviation = only(valid, x - across(mean, x.dim(), channel_dim))
        slip = deviation.sum(dims)
        correction = slip / n
        m2 = torch.addcmul(deviation.square().sum(dims), slip, correction, value=-1)
        # An infinite value makes the mean infinite and its slip NaN: the mean stays infinite.
        return cls(count, mean + correction.nan_to_num(nan=0.0), m2.clamp(min=0))

    def merge(self, other: Moments) -> Moments:
        """Give the moments of both parts taken together; an empty part changes nothing.

        With δ = μ_b − μ_a and n = n_a + n_b: μ = μ_a + δ·n_b/n and
        M₂ = M₂_a + M₂_b + δ²·n_a·n_b/n (Chan, Golub & LeVeque 1983, the pairwise algorithm).
        """
        count = self.count + other.count
        delta = other.mean - self.mean
        shift = delta * other.count / at_least(1, count)
        return Moments(count, self.mean + shift, self.m2 + other.m2 + delta * shift * self.count)

    def variance(self, *, unbiased: bool) -> Tensor:
        """Give the variance per channel, in the squared unit of the data.

        Args:
            unbiased: true for M₂/(n − 1), the estimate for the population behind the values (what
                PyTorch's batch norm stores); false for M₂/n, the variance of the values themselves
                (what it normalizes with). There is no default: the two are too easily confused.

        Returns:
            Shape (C,); NaN where it is undefined, that is for n < 2, or n < 1 if biased.

        """
        freedom = self.count - 1 if unbiased else self.count
        return self.m2 / at_least(0, freedom)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Give the dtype to compute in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def count_elements(
    shape: torch.Size, channel_dim: int = 1, mask: Tensor | None = None
) -> int | Tensor:
    """Count the elements behind each channel of data of this shape: all, or those in the mask."""
    if mask is not None:
        return spread(mask, shape, channel_dim).sum()
    count = 1
    for size in _without(shape, channel_dim):
        count *= size
    return count


def spread(mask: Tensor, shape: torch.Size, channel_dim: int = 1) -> Tensor:
    """Broadcast a mask that has no channels to data of this shape, over a channel of size one."""
    return mask.expand(_without(shape, channel_dim)).unsqueeze(channel_dim % len(shape))


def across(per_channel: Tensor, ndim: int, channel_dim: int = 1) -> Tensor:
    """Shape (C,) to broadcast over data of `ndim` dimensions."""
    trailing = ndim - 1 - channel_dim % ndim
    return per_channel.view(-1, *[1] * trailing) if trailing else per_channel


def only(valid: Tensor | None, x: Tensor) -> Tensor:
    """Keep what is valid and set the rest to zero; a product with the mask would keep NaN."""
    return x if valid is None else torch.where(valid, x, 0)


def at_least(least: int, count: int | Tensor) -> int | Tensor:
    """Bound a count from below; by one, to divide by: nothing divided by one is still nothing."""
    return count.clamp(min=least) if isinstance(count, Tensor) else max(count, least)


def _without(shape: torch.Size, channel_dim: int) -> list[int]:
    return [size for d, size in enumerate(shape) if d != channel_dim % len(shape)]
