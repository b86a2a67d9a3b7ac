"""The moments of data, channel by channel: the one record every normalization rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.modules.batchnorm import _NormBase


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

    @classmethod
    def empty(cls, num_features: int, device: torch.device | str | None = None) -> Moments:
        """Give the moments of nothing yet, for C channels: what `merge` starts from."""
        zeros = torch.zeros(num_features, dtype=torch.float32, device=device)
        return cls(0, zeros, zeros)._wide()

    def merge(self, other: Moments) -> Moments:
        """Give the moments of both parts taken together; an empty part changes nothing.

        With δ = μ_b − μ_a and n = n_a + n_b: μ = μ_a + δ·n_b/n and
        M₂ = M₂_a + M₂_b + δ²·n_a·n_b/n (Chan, Golub & LeVeque 1983, the pairwise algorithm), in
        float64 (float32 on devices without it), so that neither order nor grouping matters.

        Raises:
            ValueError: the two have different numbers of channels.

        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"Moments.merge: expected moments of {tuple(self.mean.shape)} channels, "
                f"got {tuple(other.mean.shape)}; merge parts of the same layer's data"
            )
        a, b = self._wide(), other._wide()
        count = a.count + b.count
        delta = b.mean - a.mean
        if isinstance(b.count, Tensor):  # an empty part has no mean, and infinity would meet zero
            delta = torch.where(b.count > 0, delta, 0)
        elif b.count == 0:
            return a
        shift = delta * b.count / at_least(1, count)
        return Moments(count, a.mean + shift, a.m2 + b.m2 + delta * shift * a.count)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Moments:
        """Merge the moments of all processes of the group, in the order of their ranks.

        Counts may differ, and be zero: a process without data gives `Moments.empty`. One
        collective; every process gets the same numbers, bit for bit. Without
        `torch.distributed`, or in a group of one, these moments themselves.

        Args:
            group: the processes. Default: all.

        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
            return self
        packed = self.packed()
        parts = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, packed, group=group)
        whole = Moments.empty(len(self.mean), self.mean.device)
        for part in parts:
            whole = whole.merge(Moments.unpacked(part))
        return whole

    def packed(self) -> Tensor:
        """Give count, mean and M₂ as one tensor of shape (3, C), to send it."""
        wide = self._wide()
        return torch.stack([torch.zeros_like(wide.mean) + wide.count, wide.mean, wide.m2])

    @classmethod
    def unpacked(cls, packed: Tensor) -> Moments:
        """Give the moments that `packed` holds."""
        return cls(packed[0], packed[1], packed[2])

    def blend(self, other: Moments, share: float) -> Moments:
        """Give moments between these and others: mean and biased variance are interpolated.

        μ = (1 − share)·μ_a + share·μ_b and σ² likewise; the mean's own change makes no variance,
        unlike in `merge`. So are the statistics of the training data drawn towards those of the
        data met in use (Schneider et al. 2020, "Improving robustness against common corruptions by
        covariate shift adaptation", section 2). The count is that of both.

        Args:
            other: the moments to move towards; not empty, nor are these.
            share: from 0, these, to 1, the others.

        Raises:
            ValueError: the share is not between 0 and 1.

        """
        if not 0 <= share <= 1:
            raise ValueError(f"Moments.blend: expected a share between 0 and 1, got {share}")
        a, b = self._wide(), other._wide()
        count = a.count + b.count
        variance = a.variance(unbiased=False).lerp(b.variance(unbiased=False), share)
        return Moments(count, a.mean.lerp(b.mean, share), variance * count)

    @classmethod
    def of_layer(cls, layer: _NormBase, count: int) -> Moments:
        """Give the running averages of a batch norm as the moments of `count` values.

        Its `running_var` is read as the unbiased variance M₂/(count − 1), as PyTorch stores it.

        Raises:
            ValueError: the layer keeps no running averages, or the count is below two.

        """
        mean, var = _averages(layer)
        if count < 2:
            raise ValueError(
                f"Moments.of_layer: expected a count of two or more, got {count}; "
                "say how many values stand behind the averages"
            )
        found = cls(count, mean.detach().clone(), var.detach().clone())._wide()
        return cls(count, found.mean, found.m2 * (count - 1))

    @torch.no_grad()
    def store_in(self, layer: _NormBase) -> None:
        """Write mean and unbiased variance into the running averages of a batch norm, in place.

        Raises:
            ValueError: the layer keeps no running averages, has another number of channels, or
                the variance is undefined or not finite in the layer's dtype; the layer is then as
                it was.

        """
        mean, var = _averages(layer)
        variance = self.variance(unbiased=True)
        if self.mean.shape != mean.shape:
            raise ValueError(
                f"Moments.store_in: expected a layer of {tuple(self.mean.shape)} channels, "
                f"got {tuple(mean.shape)}"
            )
        new = self.mean.to(mean.dtype), variance.to(var.dtype)
        if not all(value.isfinite().all() for value in new):
            raise ValueError(
                "Moments.store_in: expected finite moments of two values or more a channel; "
                f"that {var.dtype} can hold; look for NaN or infinity in the data, measure more of "
                "them, or keep the layer in float32"
            )
        mean.copy_(new[0])
        var.copy_(new[1])

    def _wide(self) -> Moments:
        """In float64, where the device has it."""
        dtype = torch.float32 if self.mean.device.type == "mps" else torch.float64
        return Moments(self.count, self.mean.to(dtype), self.m2.to(dtype))

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


def _averages(layer: Any) -> tuple[Tensor, Tensor]:
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError(
            f"expected a layer with running averages, got {layer}; "
            "build it with track_running_stats=True"
        )
    return layer.running_mean, layer.running_var


def _without(shape: torch.Size, channel_dim: int) -> list[int]:
    return [size for d, size in enumerate(shape) if d != channel_dim % len(shape)]
