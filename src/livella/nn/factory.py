"""Normalization layers by name, so that a network can take its kind as an argument."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from livella.nn.batch import BatchNorm1d, BatchNorm2d, BatchNorm3d
from livella.nn.dynamic_tanh import DynamicTanh
from livella.nn.filter_response import (
    FilterResponseNorm1d,
    FilterResponseNorm2d,
    FilterResponseNorm3d,
)
from livella.nn.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from livella.nn.moving_average import (
    MovingAverageBatchNorm1d,
    MovingAverageBatchNorm2d,
    MovingAverageBatchNorm3d,
)
from livella.nn.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from livella.nn.rms import RMSNorm
from livella.nn.sync import SyncBatchNorm


def make_norm(kind: str, num_features: int, ndim: int, **options: Any) -> nn.Module:
    """Build the normalization layer of this kind.

    | kind       | moments of                             | layer                                |
    |------------|----------------------------------------|--------------------------------------|
    | "none"     | nothing                                | `torch.nn.Identity`                  |
    | "batch"    | one channel of the batch               | `livella.nn.BatchNorm1d/2d/3d`       |
    | "ghost"    | one channel of a part of the batch     | `livella.nn.GhostBatchNorm1d/2d/3d`  |
    | "renorm"   | one channel of the batch, corrected    | `livella.nn.BatchRenorm1d/2d/3d`     |
    | "sync"     | one channel of all processes' batches  | `livella.nn.SyncBatchNorm`           |
    | "layer"    | one sample, channels and space         | `torch.nn.GroupNorm`, one group      |
    | "instance" | one channel of one sample              | `torch.nn.InstanceNorm1d/2d/3d`      |
    | "group"    | one group of channels of one sample    | `torch.nn.GroupNorm`                 |
    | "rms"      | one sample, its mean square only       | `livella.nn.RMSNorm`                 |
    | "filter_response" | one channel of one sample, mean square | `FilterResponseNorm1d/2d/3d`  |
    | "moving_average" | one channel of the last batches | `MovingAverageBatchNorm1d/2d/3d`     |
    | "dynamic_tanh" | nothing: each value is squashed    | `livella.nn.DynamicTanh`             |

    Args:
        kind: a name of the table.
        num_features: C, the number of channels.
        ndim: 1, 2 or 3, as in `BatchNorm{ndim}d`: 1 serves (N, C) and (N, C, L).
        options: passed to the layer, such as `eps`, `affine`, `device`, `dtype`, `activation`
            ("batch", "ghost", "renorm", "moving_average", "sync"), `ghost_size` ("ghost"), `r_max`
            and its kin ("renorm") and `num_groups` ("group" only; by default the largest divisor of
            C not above 32 nor, from two channels on, above C/2). Every kind is affine by default,
            "instance" too. "none" takes any and uses none.

    Returns:
        A new layer.

    Raises:
        ValueError: an unknown kind, or `ndim` other than 1, 2 or 3.
        TypeError: an option the layer does not have.

    """
    if kind not in _LAYERS:
        raise ValueError(
            f"unknown kind of normalization {kind!r}; expected one of {', '.join(map(repr, KINDS))}"
        )
    if ndim not in (1, 2, 3):
        raise ValueError(f"make_norm: expected ndim of 1, 2 or 3, got {ndim!r}")
    return _LAYERS[kind][ndim - 1](num_features, **options)


class _InstanceNorm1d(nn.InstanceNorm1d):
    """Torch's, refusing (N, C), which torch reads as one sample of N channels."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  torch's name
        if input.dim() != 3:
            raise ValueError(
                f"instance normalization: expected an input of shape (N, C, L), "
                f"got {tuple(input.shape)}; one value a channel has no variance: "
                'take kind "layer", "group" or "batch" for inputs without space'
            )


def _group(num_features: int, *, num_groups: int | None = None, **options: Any) -> nn.GroupNorm:
    groups = _default_groups(num_features) if num_groups is None else num_groups
    return nn.GroupNorm(groups, num_features, **options)


def _default_groups(num_features: int) -> int:
    """Two channels or more a group: a group of one value has no variance on (N, C) inputs."""
    limit = min(32, max(1, num_features // 2))
    return max(groups for groups in range(1, limit + 1) if num_features % groups == 0)


_layer = partial(nn.GroupNorm, 1)

# For ndim 1, 2 and 3.
_LAYERS: dict[str, tuple[Callable[..., nn.Module], ...]] = {
    "none": (nn.Identity, nn.Identity, nn.Identity),
    "batch": (BatchNorm1d, BatchNorm2d, BatchNorm3d),
    "ghost": (GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d),
    "renorm": (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d),
    "sync": (SyncBatchNorm, SyncBatchNorm, SyncBatchNorm),
    "layer": (_layer, _layer, _layer),
    "instance": (
        partial(_InstanceNorm1d, affine=True),
        partial(nn.InstanceNorm2d, affine=True),
        partial(nn.InstanceNorm3d, affine=True),
    ),
    "group": (_group, _group, _group),
    "rms": (RMSNorm, RMSNorm, RMSNorm),
    "filter_response": (FilterResponseNorm1d, FilterResponseNorm2d, FilterResponseNorm3d),
    "moving_average": (
        MovingAverageBatchNorm1d,
        MovingAverageBatchNorm2d,
        MovingAverageBatchNorm3d,
    ),
    "dynamic_tanh": (DynamicTanh, DynamicTanh, DynamicTanh),
}

KINDS = tuple(_LAYERS)
