"""Batch norm over part of a batch, so that its batch can be smaller than the optimizer's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella import functional


class MicroBatches(nn.Module):
    """Normalizes each run of `size` examples by its own moments, in training.

    Output, gradient and running averages are those of calling the batch norm on one run after the
    other, as gradient accumulation does; here the runs are normalized in one call, each with
    channels of its own. In inference it is the batch norm.

    Args:
        norm: the batch norm, which keeps the parameters and running averages.
        size: m, examples in a run; the batch must be a multiple of it.

    Raises:
        ValueError: at the call, for a batch that is no multiple of `size`.
    """

    def __init__(self, norm: _NormBase, size: int) -> None:
        super().__init__()
        self.norm = norm
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm(x)  # type: ignore[no-any-return]
        if len(x) % self.size:
            raise ValueError(f"expected a multiple of {self.size} examples, got {len(x)}")
        runs, channels = len(x) // self.size, x.shape[1]
        # (runs·m, C, …) → (m, runs·C, …): what is a channel there is a channel of one run here.
        apart = x.unflatten(0, (runs, self.size)).transpose(0, 1).flatten(1, 2)
        mean, variance = x.new_zeros(runs * channels), x.new_ones(runs * channels)
        weight, bias = (
            None if p is None else p.repeat(runs) for p in (self.norm.weight, self.norm.bias)
        )
        # At momentum 1 the running averages become the moments of the batch.
        y = functional.batch_norm(
            apart, mean, variance, weight, bias, True, 1.0, self.norm.eps,
            activation=getattr(self.norm, "activation", None),
        )  # fmt: skip
        self._update(mean.view(runs, channels), variance.view(runs, channels))
        together: Tensor = y.unflatten(1, (runs, channels)).transpose(0, 1).flatten(0, 1)
        return together

    @torch.no_grad()
    def _update(self, means: Tensor, variances: Tensor) -> None:
        """Take the runs into the running averages, as if one after the other."""
        norm, count = self.norm, self.norm.num_batches_tracked
        if norm.running_mean is None or norm.running_var is None or count is None:
            return
        before, runs = int(count), len(means)
        count.add_(runs)
        kept, shares = _averaging(norm.momentum, before, runs)
        weights = means.new_tensor(shares)
        norm.running_mean.mul_(kept).addmv_(means.t(), weights)
        norm.running_var.mul_(kept).addmv_(variances.t(), weights)


def _averaging(momentum: float | None, before: int, runs: int) -> tuple[float, list[float]]:
    """What is left of a running average after so many runs, and the share of each run in it."""
    kept, shares = 1.0, []
    for after in range(before + runs, before, -1):  # the last run first: nothing dilutes it
        share = 1 / after if momentum is None else momentum
        shares.append(kept * share)
        kept *= 1 - share
    return kept, shares[::-1]
