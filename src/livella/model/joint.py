"""Pairs of values, channel by channel: what is needed to fit a line through them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Joint:
    """The moments of n pairs (x, y) of each channel, in float64.

    Attributes:
        count: n.
        means: those of x and y, (2, C).
        products: Σ(x − x̄)², Σ(x − x̄)(y − ȳ) and Σ(y − ȳ)², (3, C).

    """

    count: int
    means: Tensor
    products: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Joint:
        """Measure pairs, both (N, C, …), over all dimensions but the channels'."""
        pairs = torch.stack([v.detach().double().transpose(0, 1).flatten(1) for v in (x, y)])
        if not pairs.shape[2]:
            return cls(0, pairs.new_zeros(2, pairs.shape[1]), pairs.new_zeros(3, pairs.shape[1]))
        means = pairs.mean(2)
        dx, dy = pairs - means[:, :, None]
        products = torch.stack([(dx * dx).sum(1), (dx * dy).sum(1), (dy * dy).sum(1)])
        return cls(pairs.shape[2], means, products)

    def merge(self, other: Joint) -> Joint:
        """Give those of both together: Chan's pairwise formula, for products too."""
        count = self.count + other.count
        if not count:
            return self
        dx, dy = other.means - self.means
        between = torch.stack([dx * dx, dx * dy, dy * dy]) * (self.count * other.count / count)
        means = self.means + (other.means - self.means) * (other.count / count)
        return Joint(count, means, self.products + other.products + between)

    def line(self) -> tuple[Tensor, Tensor]:
        """Fit y = γx + β by least squares: γ = Σ(x − x̄)(y − ȳ)/Σ(x − x̄)² and β = ȳ − γx̄.

        Where x does not vary γ is zero.
        """
        xx, xy, _ = self.products
        slope = torch.where(xx > 0, xy / xx, 0)
        return slope, self.means[1] - slope * self.means[0]

    def ray(self) -> Tensor:
        """Fit y = γx by least squares: γ = Σxy/Σx²; zero where x is."""
        x, y = self.means
        xx, xy = self.products[0] + self.count * x * x, self.products[1] + self.count * x * y
        return torch.where(xx > 0, xy / xx, 0)

    def unexplained(self, slope: Tensor, intercept: Tensor) -> float:
        """Give Σ(y − γx − β)²/Σ(y − ȳ)² over all channels; zero where y does not vary."""
        xx, xy, yy = self.products
        off = self.means[1] - slope * self.means[0] - intercept
        left = yy - 2 * slope * xy + slope.square() * xx + self.count * off.square()
        return float(left.sum() / yy.sum()) if float(yy.sum()) > 0 else 0.0
