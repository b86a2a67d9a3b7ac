"""Freezing batch norms so that they stay frozen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from torch import nn

from livella.model import adopt, given
from livella.nn.batch import _Core
from livella.nn.stack import BatchNormRNN
from livella.nn.switched import Switches

Model = TypeVar("Model", bound=nn.Module)


class Frozen(NamedTuple):
    """What a layer was before it was frozen, what it became, and what of it is frozen."""

    kind: type[nn.Module]
    became: type[nn.Module]
    switches: Switches | None
    requires_grad: dict[str, bool]
    statistics: bool


def freeze(
    model: Model,
    layers: Iterable[str] | None = None,
    *,
    statistics: bool = True,
    affine: bool = True,
) -> Model:
    """Freeze batch norms: they normalize by their running statistics, which stay as they are.

    It holds through `model.train()`, `load_state_dict`, `deepcopy`, pickling and
    `DistributedDataParallel` (freeze before wrapping), where setting layers to evaluation mode does
    not: the next `model.train()` undoes that. Mode, momentum and counters are not touched.
    Gradients flow through a frozen layer as in evaluation.

    Torch's own `BatchNorm1d/2d/3d` become the Livella layers of the same name, in place, which
    have the switches for it; other batch norms, and recurrent layers with batch norm inside, are
    put into evaluation for each call.

    Args:
        model: any module, a batch norm itself too.
        layers: names of batch norms, or of modules all batch norms in which are meant.
            Default: all of the model.
        statistics: freeze what normalizes. Default: true.
        affine: γ and β no longer ask for a gradient. Default: true.

    Returns:
        The model. Freezing more adds up; `unfreeze` gives back what was before the first time.

    Raises:
        ValueError: a name without batch norms, or a layer without running statistics whose
            statistics are to be frozen; the model is then as it was.
        TypeError: no module, or a scripted one.

    Example:
        >>> model = freeze(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
        >>> _ = model.train()(torch.randn(6, 4))  # no statistics change
        >>> _ = unfreeze(model)

    """
    given.check_model(model, "freeze")
    chosen = adopt.named_layers(model, layers)
    without = [name for name, layer in chosen.items() if getattr(layer, "running_var", 0) is None]
    if statistics and without:
        raise ValueError(
            f"freeze: expected layers with running statistics, got {', '.join(map(repr, without))} "
            "without; build them with track_running_stats=True, name other layers, or pass "
            "statistics=False"
        )
    for layer in chosen.values():
        _freeze(layer, statistics, affine)
    return model


def unfreeze(model: Model, layers: Iterable[str] | None = None) -> Model:
    """Undo `freeze`: class, switches and what asked for a gradient are as before; others stay.

    What was done with a layer since stays too: its update policy, its class where something else
    changed it or relies on it (`accelerate`, `SyncBatchNorm.convert`, a parametrization).

    Args:
        model: any module.
        layers: as in `freeze`. Default: all that are frozen.

    Returns:
        The model.

    """
    given.check_model(model, "unfreeze")
    for layer in adopt.named_layers(model, layers).values():
        before = _before(layer)
        if before is None:
            continue
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(before.requires_grad.get(name, parameter.requires_grad))
        if before.statistics and isinstance(layer, _Core):
            then = before.switches or Switches()
            layer.normalize_by, layer.update_running = then.normalize_by, then.update_running
            if layer._switches is None:  # as before there were any
                vars(layer).pop("_switches")
        _unhook(layer)
        if type(layer) is before.became:
            adopt.change_class(layer, before.kind)
        del vars(layer)["_livella_frozen"]
    return model


def keep_class(layer: nn.Module) -> None:
    """Let a frozen layer stay of Livella's class when it is unfrozen, as something relies on it."""
    before = _before(layer)
    if before is not None:
        vars(layer)["_livella_frozen"] = before._replace(kind=type(layer))


def is_frozen(layer: nn.Module) -> bool:
    """Whether `freeze` froze the statistics of this layer."""
    given.check_model(layer, "is_frozen")
    before = _before(layer)
    return before is not None and before.statistics


def _before(layer: nn.Module) -> Frozen | None:
    found = vars(layer).get("_livella_frozen")
    return found if isinstance(found, Frozen) else None


def _freeze(layer: nn.Module, statistics: bool, affine: bool) -> None:
    before = _before(layer)
    if before is None:
        flags = {n: p.requires_grad for n, p in layer.named_parameters()}
        kind = type(layer)
        before = Frozen(kind, kind, vars(layer).get("_switches"), flags, statistics=False)
    vars(layer)["_livella_frozen"] = before._replace(statistics=before.statistics or statistics)
    if affine:
        for _, parameter in scale_and_shift(layer):
            parameter.requires_grad_(False)
    if not statistics or before.statistics:
        return
    if adopt.can_be_adopted(layer):
        adopt.change_class(layer, adopt.OURS[type(layer)])
        now: Frozen = vars(layer)["_livella_frozen"]
        vars(layer)["_livella_frozen"] = now._replace(became=type(layer))
    if isinstance(layer, _Core):
        layer.normalize_by, layer.update_running = "running", False
    else:
        layer.register_forward_pre_hook(_into_evaluation)
        layer.register_forward_hook(_out_of_evaluation, always_call=True)


def scale_and_shift(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Give γ and β, with their names in the layer, a parametrization's own among them.

    They are all parameters of a normalization, and those of these names in a recurrent layer.
    """
    for name, parameter in layer.named_parameters(remove_duplicate=False):
        if not isinstance(layer, BatchNormRNN) or name.startswith(("gamma", "beta")):
            yield name, parameter


def free_parameters(layer: nn.Module) -> Iterator[nn.Parameter]:
    """γ and β that `freeze` did not freeze, whether they ask for a gradient or not."""
    before = _before(layer)
    for name, parameter in scale_and_shift(layer):
        asked = None if before is None else before.requires_grad.get(name)
        if not asked or parameter.requires_grad:
            yield parameter


# A layer of another class: in evaluation for the call alone. Functions of this module, so that
# they are copied and pickled with the layer.


def _into_evaluation(layer: nn.Module, _args: Any) -> None:
    vars(layer)["_livella_mode"] = layer.training
    layer.training = False


def _out_of_evaluation(layer: nn.Module, _args: Any, _output: Any) -> None:
    layer.training = vars(layer).pop("_livella_mode", layer.training)


def _unhook(layer: nn.Module) -> None:
    for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
        for key, hook in list(hooks.items()):
            if hook in (_into_evaluation, _out_of_evaluation):
                del hooks[key]
                layer._forward_hooks_always_called.pop(key, None)
