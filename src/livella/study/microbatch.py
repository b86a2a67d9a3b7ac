"""Batch norm over part of a batch, so that its batch can be smaller than the optimizer's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella import functional
from livella.nn import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d

_ONE_BY_ONE = (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d)
"""Their averages, as each run leaves them, have a say in the next one's output."""


class MicroBatches(nn.Module):
    """Normalizes each run of `size` examples by its own moments, in training.

    Output, gradient and running averages are those of calling the batch norm on one run after the
    other, as gradient accumulation does. In inference it is the batch norm.

    Args:
        norm: the batch norm, torch's or ours, which keeps the parameters and running averages.
        size: m, examples in a run; the batch must be a multiple of it.

    Raises:
        ValueError: at the call, for a batch that is no multiple of `size`.
    """

    def __init__(self, norm: _NormBase, size: int) -> None:
        super().__init__()
        self.norm = norm
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if not self.training:
            return norm(x)  # type: ignore[no-any-return]
        if len(x) % self.size:
            raise ValueError(f"expected a multiple of {self.size} examples, got {len(x)}")
        if isinstance(norm, _ONE_BY_ONE):
            return torch.cat([norm(run) for run in x.split(self.size)])
        return functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True,
            norm.momentum if norm.track_running_stats else 0.0, norm.eps,
            activation=getattr(norm, "activation", None),
            num_batches_tracked=norm.num_batches_tracked, ghost_size=self.size,
        )  # fmt: skip
