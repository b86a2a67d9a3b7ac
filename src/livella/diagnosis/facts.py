"""What can be told of a model's normalizations without any data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from livella.diagnosis.records import Layer
from livella.model import sites
from livella.model.freeze import is_frozen, scale_and_shift

Norm = _NormBase | nn.GroupNorm


def modules_of(model: nn.Module) -> dict[str, Norm]:
    """Give every normalization over channels, by its first name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, sites.NORMALIZATIONS) and not isinstance(module, LazyModuleMixin)
    }


def layers_of(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> tuple[Layer, ...]:
    """Describe every normalization over channels, in the order of the model."""
    decays = _decays(optimizer)
    return tuple(_layer(model, name, module, decays) for name, module in modules_of(model).items())


def _layer(model: nn.Module, name: str, module: Norm, decays: dict[int, float]) -> Layer:
    own = dict(module._buffers)
    running = own.get("running_mean")
    parameters = [p for _, p in scale_and_shift(module)]
    switched = getattr(module, "normalize_by", None) == "running"
    return Layer(
        name=name,
        kind=type(module).__name__,
        family=_family(module),
        features=sites.features(module),
        eps=module.eps,
        momentum=getattr(module, "momentum", None),
        mode="train" if module.training else "eval",
        frozen=is_frozen(module) or switched,
        trains=any(p.requires_grad for p in parameters),
        tracks=running is not None and bool(getattr(module, "track_running_stats", False)),
        statistics_dtype="" if running is None else str(running.dtype).removeprefix("torch."),
        counter=_counter(own.get("num_batches_tracked")),
        running_mean=_plain(running),
        running_var=_plain(own.get("running_var")),
        weight=_plain(getattr(module, "weight", None)),
        bias=_plain(getattr(module, "bias", None)),
        also=tuple(_names(model, module, name)),
        decay=max((decays[id(p)] for p in parameters if id(p) in decays), default=None),
    )


def unequal(model: nn.Module) -> tuple[str, ...]:
    """Name the layers whose running statistics differ among the processes of the default group.

    Every process has to call it.
    """
    if processes() == 1:
        return ()
    own = {
        name: [_plain(m._buffers.get(key)) for key in ("running_mean", "running_var")]
        for name, m in modules_of(model).items()
    }
    everyones: list[dict[str, object]] = [{}] * processes()
    dist.all_gather_object(everyones, own)
    return tuple(name for name in own if any(each.get(name) != own[name] for each in everyones))


def processes() -> int:
    """Count the processes of the default group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def active_dropout(model: nn.Module) -> tuple[str, ...]:
    """Name the dropout modules that drop something in training."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    return tuple(n for n, m in model.named_modules() if isinstance(m, kinds) and m.p > 0)


def adds_bias(module: nn.Module) -> bool:
    """Whether what it gives out has a bias by channel, which a normalization takes away again."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return isinstance(module, kinds) and getattr(module, "bias", None) is not None


def _family(module: nn.Module) -> str:
    if isinstance(module, nn.GroupNorm):
        return "group"
    return "instance" if isinstance(module, _InstanceNorm) else "batch"


def _names(model: nn.Module, module: nn.Module, first: str) -> Iterator[str]:
    for name, other in model.named_modules(remove_duplicate=False):
        if other is module and name != first:
            yield name


def _decays(optimizer: torch.optim.Optimizer | None) -> dict[int, float]:
    groups = [] if optimizer is None else optimizer.param_groups
    return {id(p): float(group.get("weight_decay", 0)) for group in groups for p in group["params"]}


def _counter(counter: Tensor | None) -> int | None:
    return None if counter is None else int(counter)


def _plain(values: object) -> tuple[float, ...] | None:
    if not isinstance(values, Tensor):
        return None
    return tuple(values.detach().double().flatten().tolist())
