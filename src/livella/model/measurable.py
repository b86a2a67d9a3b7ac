"""Which batch norms of a model have statistics to measure, and which not, and why."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from livella.model import sites
from livella.model.freeze import is_frozen


def choose(
    model: nn.Module, include_frozen: bool, caller: str
) -> tuple[dict[str, _NormBase], dict[str, str]]:
    """Give the batch norms to measure, one at least, and the others, with the reason.

    Raises:
        ValueError: there is none, or one is lazy; in the name of `caller`.

    """
    layers, left = sorted_out(model, include_frozen)
    if not layers:
        why = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        raise ValueError(
            f"{caller}: expected a model with batch norms to measure, got "
            f"{type(model).__name__} ({why or 'none in it'})"
        )
    return layers, left


def sorted_out(
    model: nn.Module, include_frozen: bool
) -> tuple[dict[str, _NormBase], dict[str, str]]:
    """Give the batch norms to measure, by name, and the others, with the reason."""
    layers: dict[str, _NormBase] = {}
    left: dict[str, str] = {}
    for name, layer in model.named_modules():
        if sites.averages_otherwise(layer):
            left[name] = f"a {type(layer).__name__}, whose averages stay as training left them"
        if not sites.is_batch_norm(layer):
            continue
        if isinstance(layer, LazyModuleMixin):
            raise ValueError(  # noqa: TRY004  its state is wrong, not its type
                f"layer {name!r} is lazy and has no parameters yet; call the model once first"
            )
        if layer.running_mean is None or layer.running_var is None:
            left[name] = "it keeps no running statistics and normalizes by the batch in use too"
        elif not include_frozen and _frozen(model, layer):
            left[name] = "frozen"
        else:
            layers[name] = layer
    return layers, left


def _frozen(model: nn.Module, layer: nn.Module) -> bool:
    """Whether by `livella.freeze`, a switch, or evaluation mode in a model that trains."""
    by_switch = getattr(layer, "normalize_by", None) == "running"
    return is_frozen(layer) or by_switch or (model.training and not layer.training)
