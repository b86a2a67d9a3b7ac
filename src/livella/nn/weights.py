"""Weights of linear layers and convolutions, centred or standardized output by output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from livella.moments import accumulation_dtype

Model = TypeVar("Model", bound=nn.Module)


class Centred(nn.Module):
    """W − mean(W), the mean of each output's weights."""

    def forward(self, weight: Tensor) -> Tensor:
        """Centre a weight, whose first dimension counts the outputs; its dtype stays."""
        return _centred(weight).to(weight.dtype)


class Standardized(nn.Module):
    """(W − mean(W))/√(var(W) + ε), the mean and the biased variance of each output's weights."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f"standardize_weights: expected eps above zero, got {eps}")
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        """Standardize a weight, whose first dimension counts the outputs; its dtype stays."""
        centred = _centred(weight)
        variance = centred.square().mean(_within(weight), keepdim=True)
        return (centred * torch.rsqrt(variance + self.eps)).to(weight.dtype)

    def extra_repr(self) -> str:
        """Describe it."""
        return f"eps={self.eps}"


def standardize_weights(
    model: Model, layers: Iterable[str] | None = None, *, eps: float = 1e-5
) -> Model:
    """Standardize weights: those of each output get mean zero and variance one.

    Ŵ = (W − μ)/√(σ² + ε) with the mean μ and the biased variance σ² of the weights of one output,
    that is of a filter over its input channels and positions: Qiao, Wang, Liu, Shen & Yuille 2019,
    "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", section 3
    (earlier "Weight Standardization"). Made for layers that a normalization follows, group norm
    above all: the scale of the weights is then no parameter any more.

    The layers train W and use Ŵ, by `torch.nn.utils.parametrize`: the `state_dict` holds W as
    `parametrizations.weight.original`, copies keep it, and torch pickles such layers as a
    `state_dict` only.

    Args:
        model: any module.
        layers: names of `Linear` or `Conv1d/2d/3d` layers. Default: all of the model's but the last
            one, behind which usually no normalization stands, and but those of one weight an
            output, which would be zero.
        eps: ε, in the squared unit of the weights. Default: 1e-5.

    Returns:
        The model, changed in place; `restore_weights` undoes it.

    Raises:
        ValueError: a name that is no such layer; a layer that has this done to it already, has one
            weight an output, or has no weights yet; no layer at all. The model is then as it was.

    """
    return _parametrize("standardize_weights", model, layers, partial(Standardized, eps))


def centre_weights(model: Model, layers: Iterable[str] | None = None) -> Model:
    """Centre weights: those of each output get mean zero.

    Ŵ = W − μ with the mean μ of the weights of one output. What the inputs of a layer have in
    common no longer shows in its outputs, so that a normalization behind it need not take a mean
    off: Yan et al. 2020, "Towards Stabilizing Batch Statistics in Backward Propagation of Batch
    Normalization", where weights are centralized for moving average batch normalization
    (`MovingAverageBatchNorm2d`). A bias of such a layer stays in its outputs: leave it out.

    Args:
        model: any module.
        layers: as in `standardize_weights`.

    Returns:
        The model, changed in place; `restore_weights` undoes it.

    Raises:
        ValueError: as in `standardize_weights`.

    """
    return _parametrize("centre_weights", model, layers, Centred)


def restore_weights(model: Model) -> Model:
    """Undo `centre_weights` and `standardize_weights`: the layers use the W that they trained.

    Raises:
        ValueError: a weight has another parametrization as well; the model is then as it was.

    """
    changed = {n: m for n, m in model.named_modules() if _ours(m)}
    for name, layer in changed.items():
        if len(layer.parametrizations["weight"]) > 1:
            raise ValueError(
                f"restore_weights: the weight of {name!r} has another parametrization as well; "
                "remove it first, with torch.nn.utils.parametrize.remove_parametrizations"
            )
    for layer in changed.values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        # The weight comes back last; an optimizer's saved state goes by the order.
        layer._parameters["bias"] = layer._parameters.pop("bias", None)
    return model


def _parametrize(
    what: str, model: Model, names: Iterable[str] | None, parametrization: Callable[[], nn.Module]
) -> Model:
    suited = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    if names is None:
        chosen = [n for n in list(suited)[:-1] if _weights_per_output(suited[n]) != 1]
    else:
        chosen = [names] if isinstance(names, str) else list(names)
    if not chosen:
        raise ValueError(
            f"{what}: expected two or more linear layers or convolutions, of which the last stays "
            f"as it is, got {len(suited)} in {type(model).__name__}; name the layers that are meant"
        )
    for name in chosen:
        _check(what, name, suited)
    for name in dict.fromkeys(chosen):
        parametrize.register_parametrization(suited[name], "weight", parametrization())
    return model


def _check(what: str, name: str, suited: Mapping[str, nn.Module]) -> None:
    if name not in suited:
        raise ValueError(
            f"{what}: expected names of Linear or Conv1d/2d/3d layers, got {name!r}; "
            f"there are {', '.join(map(repr, suited)) or 'none'}"
        )
    layer = suited[name]
    if _ours(layer):
        raise ValueError(f"{what}: {name!r} has its weights changed already; restore_weights first")
    per_output = _weights_per_output(layer)
    if per_output is None:
        raise ValueError(f"{what}: {name!r} is lazy and has no weights yet; call the model first")
    if per_output == 1:
        raise ValueError(
            f"{what}: {name!r} has one weight an output, which would become zero; leave it out"
        )


LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _ours(layer: nn.Module) -> bool:
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    found = layer.parametrizations["weight"]  # type: ignore[index]
    return any(isinstance(each, (Centred, Standardized)) for each in found)


def _weights_per_output(layer: nn.Module) -> int | None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return None if is_lazy(weight) else math.prod(weight.shape[1:])


def _centred(weight: Tensor) -> Tensor:
    wide = weight.to(accumulation_dtype(weight.dtype))
    return wide - wide.mean(_within(weight), keepdim=True)


def _within(weight: Tensor) -> list[int]:
    """The dimensions of one output's weights."""
    return list(range(1, weight.dim()))
