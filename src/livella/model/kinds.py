"""The kinds of normalization that a network is converted between, and what each one keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from livella import nn as ours
from livella.model import adopt
from livella.model.domains import CHILD, has_domains
from livella.model.freeze import is_frozen
from livella.model.sites import NORMALIZATIONS, averages_otherwise
from livella.moments import Moments
from livella.nn.batch import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
from livella.nn.factory import KINDS as MADE
from livella.nn.factory import make_norm
from livella.nn.sync import SyncBatchNormAct

AVERAGED = ("torch", "torch_sync", "batch", "ghost", "renorm", "sync")
"""Those that keep a running mean and variance, and normalize by them in evaluation."""
ACTIVATED = ("batch", "ghost", "renorm", "sync", "moving_average")
"""Those that have a place for an activation."""
KINDS = ("torch", "torch_sync", *MADE)

_BY_DIMENSION: dict[str, tuple[tuple[type[nn.Module], ...], ...]] = {
    "torch": ((nn.BatchNorm1d,), (nn.BatchNorm2d,), (nn.BatchNorm3d,)),
    "batch": (
        (ours.BatchNorm1d, BatchNormAct1d),
        (ours.BatchNorm2d, BatchNormAct2d),
        (ours.BatchNorm3d, BatchNormAct3d),
    ),
    **{
        kind: tuple((type(make_norm(kind, 1, ndim, device="meta")),) for ndim in (1, 2, 3))
        for kind in ("ghost", "renorm", "moving_average", "filter_response")
    },
    "instance": (
        (nn.InstanceNorm1d, type(make_norm("instance", 1, 1, device="meta"))),
        (nn.InstanceNorm2d,),
        (nn.InstanceNorm3d,),
    ),
}
_OF_ANY_DIMENSION: dict[type[nn.Module], str] = {
    ours.SyncBatchNorm: "sync",
    SyncBatchNormAct: "sync",
    nn.SyncBatchNorm: "torch_sync",
    nn.GroupNorm: "group",
    ours.RMSNorm: "rms",
    ours.DynamicTanh: "dynamic_tanh",
    nn.Identity: "none",
}
_CLASSES: dict[type[nn.Module], tuple[str, int | None]] = {
    **{
        each: (kind, ndim)
        for kind, by_dimension in _BY_DIMENSION.items()
        for ndim, classes in enumerate(by_dimension, 1)
        for each in classes
    },
    **{each: (kind, None) for each, kind in _OF_ANY_DIMENSION.items()},
}
_OVER_OTHER_DIMENSIONS = (nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_TORCHS: dict[str, tuple[Callable[..., nn.Module], ...]] = {
    "torch": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "torch_sync": (nn.SyncBatchNorm,) * 3,
}


@dataclass(frozen=True)
class Norm:
    """What a layer is, whatever its kind.

    Attributes:
        kind: a name of `KINDS`.
        ndim: 1, 2 or 3, where its class says.
        num_features: C.
        settings: those that mean the same in other kinds.

    """

    kind: str
    ndim: int | None
    num_features: int
    settings: dict[str, Any]


def read(kind_of: type[nn.Module], own: Mapping[str, Any]) -> Norm:
    """Tell what a layer is, from its class, which `why_not` lets pass, and its attributes."""
    kind, ndim = _CLASSES[kind_of]
    features = own["num_channels"] if kind == "group" else own["num_features"]
    if kind == "group" and own["num_groups"] == 1:
        kind = "layer"
    settings = {name: own[name] for name in _CARRIED[kind] if name in own}
    return Norm(kind, ndim, int(features), settings)


_ARGUMENTS: dict[type[nn.Module], tuple[int, ...]] = {nn.GroupNorm: (1, 1), nn.Identity: ()}
"""What to build a layer of a class with, where not with one channel."""


def settings_of(kind: type[nn.Module]) -> dict[str, Any]:
    """Give what a layer of this class has beyond what any module has, with the defaults."""
    own = vars(kind(*_ARGUMENTS.get(kind, (1,))))
    return {name: value for name, value in own.items() if name not in vars(nn.Module())}


_CARRIED = {
    **dict.fromkeys(AVERAGED, ("eps", "momentum", "affine", "track_running_stats", "activation")),
    "moving_average": ("eps", "affine", "activation"),
    **dict.fromkeys(("layer", "group", "instance", "rms", "filter_response"), ("eps", "affine")),
    "dynamic_tanh": ("affine",),
    "none": (),
}
"""Which settings mean the same in any kind that has them. The momentum of moving averages, of means
over a window, does not."""


def successor(
    norm: Norm, to: str, ndim: int | None, like: Tensor, options: dict[str, Any]
) -> nn.Module:
    """Build the layer of another kind with the settings that both have.

    Args:
        norm: what the former layer is.
        to: the kind.
        ndim: 1, 2 or 3; only kinds that have a class for each ask for it.
        like: has the device and dtype.
        options: what else the layer is built with; these win.

    Raises:
        ValueError: no `ndim` where it matters; or options that the layer does not take.

    """
    if ndim is None and to in _BY_DIMENSION:
        raise ValueError(
            f"a {to} layer has a class for each number of dimensions, which this layer does not "
            "tell: say ndim=1, 2 or 3, as in BatchNorm2d, or calibrate=batches, which shows it"
        )
    settings = {name: norm.settings[name] for name in _CARRIED[to] if name in norm.settings}
    if to not in ACTIVATED:
        settings.pop("activation", None)
    if to == "filter_response":  # the network's own activation stays
        settings["thresholded"] = False
    settings |= {"device": like.device, "dtype": like.dtype} | options
    if to in _TORCHS:
        return _TORCHS[to][(ndim or 1) - 1](norm.num_features, **settings)
    return make_norm(to, norm.num_features, ndim or 1, **settings)


MEMORY = "_livella_formerly"
"""Where a layer remembers, by kind, what has no place in the kind that it is now."""


def is_normalization(layer: nn.Module) -> bool:
    """Whether it normalizes, or did before it was converted to nothing."""
    known = type(layer) in _CLASSES and not isinstance(layer, nn.Identity)
    if isinstance(layer, nn.Identity):
        return MEMORY in vars(layer)
    kinds = (*NORMALIZATIONS, *_OVER_OTHER_DIMENSIONS)
    return known or isinstance(layer, kinds) or averages_otherwise(layer)


def why_not(layer: nn.Module, to: str) -> str | None:
    """Say why a normalization cannot become another kind without loss; none where it can."""
    if isinstance(layer, LazyModuleMixin):
        return "it is lazy and has no parameters yet; call the model once first"
    if type(layer) not in _CLASSES:
        if isinstance(layer, _OVER_OTHER_DIMENSIONS):
            return f"a {type(layer).__name__} normalizes over other dimensions than the channels'"
        return f"a {type(layer).__name__}, whose own code would be lost"
    if adopt.has_methods_of_its_own(layer):
        return "it has methods of its own, which would be lost"
    if strange := _has(layer) - _could_have(type(layer)):
        return f"it has {', '.join(sorted(strange))} of its own, which would be lost"
    if is_frozen(layer):
        return "frozen; livella.unfreeze it first"
    if has_domains(layer):
        return "it has statistics of several domains; livella.remove_domains them first"
    activation = getattr(layer, "activation", None)
    if activation is not None and to not in ACTIVATED:
        return f"its activation {activation!r} has no place in kind {to!r}"
    return None


def _has(layer: nn.Module) -> set[str]:
    return {*layer._parameters, *layer._buffers, *layer._modules} - {CHILD}


def _could_have(kind: type[nn.Module]) -> set[str]:
    """Every parameter and buffer that a layer of this class can have."""
    made = kind(*_ARGUMENTS.get(kind, (1,)))
    return {*made._parameters, *made._buffers, "skipped_batches"}


def ndim_of(kind: type[nn.Module]) -> int | None:
    """Give 1, 2 or 3, where a class says."""
    return _CLASSES[kind][1]


def is_averaged(kind: type[nn.Module]) -> bool:
    """Whether layers of this class keep a running mean and variance to normalize by."""
    return _CLASSES[kind][0] in AVERAGED


def is_of(kind: type[nn.Module], own: Mapping[str, Any], to: str) -> bool:
    """Whether a layer with these attributes is of the kind `to`."""
    return to == "none" if kind is nn.Identity else read(kind, own).kind == to


def mean_square(moments: Moments) -> Tensor:
    """σ² + μ², what moving averages keep."""
    return moments.variance(unbiased=False) + moments.mean.square()


def take_statistics(layer: nn.Module, moments: Moments) -> None:
    """Give a layer that keeps statistics those of its input."""
    if isinstance(layer, _NormBase):
        moments.store_in(layer)
        return
    assert isinstance(layer.running_square, Tensor)
    with torch.no_grad():
        layer.running_square.copy_(mean_square(moments))
