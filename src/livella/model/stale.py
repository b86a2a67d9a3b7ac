"""Running statistics that cannot be right: no numbers, or far from those of the data at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella.model import measurable
from livella.model.estimate import AVERAGES, LayerEstimate
from livella.model.feeding import Forward
from livella.model.passes import Estimator

FAR = 1.0
"""How far from those of the data, in σ, statistics are told of: further than training leaves them,
or a part of the data that stands for the whole."""
AT_MOST = 4.0
"""What one channel counts at most, so that a dead one does not speak for its layer."""
NAMED = 5


def not_numbers(model: nn.Module) -> Iterator[str]:
    """Name the layers whose running statistics hold NaN, infinity or a negative variance."""
    for name, layer in model.named_modules():
        if not isinstance(layer, _NormBase):
            continue
        mean, variance = (layer._buffers.get(key) for key in AVERAGES)
        told = [each.isfinite().all() for each in (mean, variance) if _is_real(each)]
        if _is_real(variance):
            told.append((variance >= 0).all())
        if not all(told):
            yield name


def far_off(
    model: nn.Module, batches: Iterable[Any], forward: Forward, progress: bool | None
) -> tuple[str, ...]:
    """Name the layers whose running statistics are more than one σ from those of the data.

    One pass, each layer normalizing by the mini-batch, tells whether any may be. If so they are
    measured as `estimate_population` does, which small batches and an order cannot mislead. Where
    that cannot be done there is none: what is wrong with the data is told by those who need them.
    """
    try:
        layers, _ = measurable.sorted_out(model, include_frozen=False)
        used = {n: m for n, m in layers.items() if getattr(m, "normalize_by", None) != "batch"}
        if not used:
            return ()
        estimator = Estimator(
            model, layers, batches, forward, None, None, None, progress, _settled, "convert",
            alone=True,
        )  # fmt: skip
        if not _far(used, estimator.single_pass()):
            return ()
        return _far(used, replace(estimator, passes=0, patterns={}).sequential())
    except ValueError:
        return ()


def in_short(names: Iterable[str]) -> str:
    """Name the first layers, and say how many more there are."""
    these = [name or "the model itself" for name in names]
    more = f" and {len(these) - NAMED} more" if len(these) > NAMED else ""
    return ", ".join(these[:NAMED]) + more


def _far(layers: Mapping[str, _NormBase], found: Mapping[str, LayerEstimate]) -> tuple[str, ...]:
    return tuple(n for n, m in layers.items() if n in found and not _distance(m, found[n]) <= FAR)


def _distance(layer: _NormBase, estimate: LayerEstimate) -> float:
    """How far mean or σ are off, in σ of the smaller, on average over the channels."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None, "only layers with averages are measured"
    assert variance is not None
    there = (estimate.moments.variance(unbiased=False) + layer.eps).sqrt()
    here = (variance.to(there) + layer.eps).sqrt()
    moved = (mean.to(there) - estimate.mean).abs() / there
    scaled = torch.maximum(here / there, there / here) - 1
    return float(torch.maximum(moved, scaled).clamp(max=AT_MOST).mean())


def _settled(estimate: LayerEstimate) -> tuple[Tensor, Tensor]:
    variance = estimate.moments.variance(unbiased=False)
    return estimate.mean, variance


def _is_real(tensor: Tensor | None) -> TypeGuard[Tensor]:
    """Whether it holds values to look at: not on the meta device, of a lazy layer, or pretended."""
    return type(tensor) is Tensor and not tensor.is_meta
