"""Statistics of each time step: of the batch at hand, and running ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from livella import functional
from livella.checks import Call
from livella.moments import accumulation_dtype


class BatchSteps:
    """Normalization of each step by the rows of that step; keeps their moments.

    A step with one row left has no variance. It is normalized by the moments of the last step that
    had two, which count as given numbers in the gradient.

    Attributes:
        sizes: the rows of each step, never more than at the step before, and two or more at first.
        known: how many steps have moments of their own.
        means: μ, (T, C), float32 or float64, of the steps done so far.
        variances: σ², *unbiased*, as `means`.

    """

    def __init__(self, sizes: Sequence[int], channels: int, like: Tensor, eps: float) -> None:
        self.sizes, self.eps = sizes, eps
        self.known = sum(size > 1 for size in sizes)
        dtype = accumulation_dtype(like.dtype)
        self.means, self.variances = like.new_zeros((2, self.known, channels), dtype=dtype)
        self._means, self._variances = self.means.unbind(0), self.variances.unbind(0)
        self._held: tuple[Tensor, Tensor] | None = None

    def again(self) -> BatchSteps:
        """Give the same for another pass over the same steps."""
        return BatchSteps(self.sizes, self.means.shape[1], self.means, self.eps)

    def call(
        self,
        rows: Tensor,
        step: int,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Call:
        """Give the call of batch norm for the rows of a step; it fills in the step's moments."""
        training = step < self.known
        if training:
            mean, variance = self._means[step], self._variances[step]
        else:
            mean, variance = self._last()
        return Call(
            rows, mean, variance, weight, bias, training, 1.0, self.eps, None, residual, None, None
        )

    def _last(self) -> tuple[Tensor, Tensor]:
        """Give mean and *biased* variance of the last step that has them."""
        if self._held is None:
            count = self.sizes[self.known - 1]
            self._held = self.means[-1].clone(), self.variances[-1] * ((count - 1) / count)
        return self._held


class RunningSteps(NamedTuple):
    """Normalization by running statistics: row t at step t, the last row beyond.

    Attributes:
        means: (S, C).
        variances: (S, C).
        eps: ε.

    """

    means: Tensor
    variances: Tensor
    eps: float

    def call(
        self,
        rows: Tensor,
        step: int,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Call:
        """Give the call of batch norm for the rows of a step."""
        row = min(step, len(self.means) - 1)
        return Call(
            rows, self.means[row], self.variances[row], weight, bias, False, 0.0, self.eps, None,
            residual, None, None,
        )  # fmt: skip


Steps = BatchSteps | RunningSteps


def normalize(call: Call) -> Tensor:
    """Run a call, differentiably."""
    return functional.batch_norm(*call[:8], residual=call.residual)


def normalize_steps(
    parts: Iterable[Tensor], steps: Steps, weight: Tensor, bias: Tensor | None
) -> Iterator[Tensor]:
    """Normalize the rows of each step by its statistics, when its turn comes."""
    for step, part in enumerate(parts):
        yield normalize(steps.call(part, step, weight, bias))


@torch.no_grad()
def take_in(mean: Tensor, var: Tensor, batch: BatchSteps, share: float | Tensor) -> None:
    """Move running statistics, (S, C), by this share towards those of a batch.

    Steps beyond the last row are taken into it together, as the one set of values they are.
    """
    sizes = torch.tensor(batch.sizes[: batch.known], device=mean.device)
    new = _within(len(mean), sizes, batch.means, batch.variances)
    for running, values in zip((mean, var), new, strict=True):
        rows = running[: len(values)]
        rows.copy_(torch.lerp(rows.to(values.dtype), values, share))


def _within(rows: int, sizes: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Give the moments of at most so many steps, merging those from the last on.

    With parts of n values: μ = Σnμₙ/Σn and M₂ = Σ(M₂ₙ + n(μₙ − μ)²) (Chan, Golub & LeVeque 1983).
    """
    if len(means) <= rows:
        return means, variances
    last = rows - 1
    n = sizes[last:, None].to(means.dtype)
    centre = means[last : last + 1]  # deviations from it are small, whatever the offset
    shifts = means[last:] - centre
    shift = (n * shifts).sum(0, keepdim=True) / n.sum()
    m2 = (variances[last:] * (n - 1) + n * (shifts - shift).square()).sum(0, keepdim=True)
    merged = m2 / (n.sum() - 1)
    return torch.cat([means[:last], centre + shift]), torch.cat([variances[:last], merged])
