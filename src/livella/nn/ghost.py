"""Ghost batch normalization: a large batch, normalized in small parts."""

from __future__ import annotations

from typing import Any

import torch

from livella import functional
from livella.nn.batch import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d, _Core


class _Ghost(_Core):
    """What the layers here share."""

    def __init__(
        self,
        num_features: int,
        ghost_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        bias: bool = True,
        example_weight: float = 0.0,
        single_value: str = "error",
    ) -> None:
        functional.check_ghost_size(ghost_size)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            activation=activation, bias=bias, example_weight=example_weight,
            single_value=single_value,
        )  # fmt: skip
        self.ghost_size = ghost_size

    def _beyond(self) -> dict[str, Any]:
        return {"ghost_size": self.ghost_size}

    def extra_repr(self) -> str:
        """Describe the layer as batch norm is, then the ghost batches."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


class GhostBatchNorm1d(_Ghost):
    """Ghost batch normalization of (N, C) or (N, C, L). See `GhostBatchNorm2d`."""

    input_dims = BatchNormAct1d.input_dims


class GhostBatchNorm2d(_Ghost):
    """Ghost batch normalization of (N, C, H, W): in training each part of a batch by itself.

    y = act((x − μ)/√(σ² + ε)·γ + β + residual) with μ and σ² of the `ghost_size` neighbouring
    samples that x belongs to: Hoffer, Hubara & Soudry 2017, "Train longer, generalize better:
    closing the generalization gap in large batch training of neural networks", Algorithm 1. So a
    large batch keeps the noise of a small one, which regularizes.

    The last part is ragged: it takes what samples are left. If that is a single value a channel,
    which has no variance, it joins the part before. A batch of up to `ghost_size` samples is one
    part, and the layer is then `BatchNorm2d`, bit for bit. So it is in evaluation, by the running
    averages, which take in one part after the other, as in gradient accumulation over the parts.
    `num_batches_tracked` counts parts. Without running averages evaluation normalizes by the batch
    as a whole.

    No instance of torch's `_BatchNorm`, whose converters would put a plain layer in its place:
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` leaves it as it is and
    `torch.optim.swa_utils.update_bn` does not refresh its averages; `livella.estimate_population`
    does.

    Args:
        num_features: C.
        ghost_size: samples in a part. Default: 32.
        eps: ε, in the squared unit of the input. Default: 1e-5.
        momentum: the share of each part in the running averages; none averages all parts equally,
            a ragged one too. Default: 0.1.
        affine: learn γ (from one) and β (from zero). Default: true.
        track_running_stats: keep running averages. Default: true.
        device: where parameters and averages live. Default: torch's.
        dtype: their dtype, float32 or that of the input. Default: torch's.
        activation: "relu", "relu6", "leaky_relu", "silu" or "hardswish". Default: none.
        bias: learn β as well as γ. Default: true.
        example_weight: as of `BatchNorm2d`. Default: 0.
        single_value: as of `BatchNorm2d`. Default: "error".

    Raises:
        TypeError: a `ghost_size` that is no whole number.
        ValueError: a `ghost_size` below one; an unknown activation. At the call: one value a
            channel, in the batch or in each of its parts.

    Example:
        >>> norm = GhostBatchNorm2d(64, ghost_size=16)
        >>> norm(torch.randn(128, 64, 7, 7)).shape, norm.num_batches_tracked
        (torch.Size([128, 64, 7, 7]), tensor(8))

    """

    input_dims = BatchNormAct2d.input_dims


class GhostBatchNorm3d(_Ghost):
    """Ghost batch normalization of (N, C, D, H, W). See `GhostBatchNorm2d`."""

    input_dims = BatchNormAct3d.input_dims
