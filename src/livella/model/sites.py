"""Every normalization of a model: where it stands, and what it meets there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from livella.model.modes import modes_kept
from livella.nn.moving_average import MovingAverageNorm
from livella.nn.stack import BatchNormRNN

Hook = TypeVar("Hook", bound=Callable[..., None])

NORMALIZATIONS = (_NormBase, nn.GroupNorm)
"""What counts as a normalization over channels: batch and instance norms (torch's and ours, as
both derive from `_NormBase`) and group norm. LayerNorm works on the last dimensions instead."""


def is_batch_norm(module: nn.Module) -> TypeGuard[_NormBase]:
    """Whether it is a batch norm, torch's or ours, with an activation fused in or not.

    What `averages_otherwise` is none.
    """
    return isinstance(module, _NormBase) and not isinstance(module, _InstanceNorm)


def averages_otherwise(module: nn.Module) -> bool:
    """Whether it averages over batches without being a batch norm.

    Moving average batch norm keeps mean squares, and no means or variances; a recurrent layer keeps
    statistics of several products, by time step.
    """
    return isinstance(module, MovingAverageNorm | BatchNormRNN)


def keeps_averages(module: nn.Module) -> bool:
    """Whether it averages over batches, as a batch norm or otherwise."""
    return is_batch_norm(module) or averages_otherwise(module)


def in_words(layers: Mapping[str, nn.Module]) -> str:
    """Name layers with their classes."""
    return ", ".join(f"{n or 'the model itself'} ({type(m).__name__})" for n, m in layers.items())


@dataclass(frozen=True)
class Site:
    name: str
    module: nn.Module
    num_features: int
    input_dim: int
    """Dimensions of its input, 2 for (N, C) to 5 for NCDHW."""


def find(model: nn.Module, sample: Tensor) -> tuple[Site, ...]:
    """The normalizations that `model(sample)` calls, in the order of their first call.

    The model is left as it was: evaluation mode for the one call without gradients, then its
    own modes again.
    """
    names = {module: name for name, module in model.named_modules()}
    met: dict[nn.Module, Site] = {}

    def record(module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        if module not in met:
            x = args[0] if args else named["input"]
            met[module] = Site(names[module], module, features(module), x.dim())

    handles = [
        module.register_forward_pre_hook(record, with_kwargs=True)
        for module in names
        if isinstance(module, NORMALIZATIONS)
    ]
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()(sample)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(met.values())


def channels(layer: nn.Module) -> int | None:
    """Count the channels of a layer by what it keeps: pruned ones may say otherwise."""
    averages = layer._buffers.get("running_mean")
    return None if averages is None else len(averages)


def check_channels(name: str, layer: nn.Module, x: Tensor, features: int | None) -> None:
    """Refuse an input of another number of channels, in the name of the layer.

    Raises:
        ValueError: it has.

    """
    if features is not None and (x.dim() < 2 or x.shape[1] != features):
        raise ValueError(
            f"layer {name!r} ({type(layer).__name__}): expected an input of shape "
            f"(N, {features}, ...), got {tuple(x.shape)}; look at the batch"
        )


def looks_on(hook: Hook) -> Hook:
    """Mark a hook that needs nothing but the input of a call, so that its layer may stay fused."""
    hook.looks_on = True  # type: ignore[attr-defined]
    return hook


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands in the model, in every parent that holds it."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def features(module: nn.Module) -> int:
    """Count the channels of a normalization by how it was built."""
    found = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    assert isinstance(found, int)
    return found
