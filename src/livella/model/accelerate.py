"""Make an existing model train and run faster, and change nothing else about it."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from torch import nn

from livella.model import adopt, fused, given, sites, stale
from livella.model.freeze import keep_class
from livella.model.fusion import PLAIN
from livella.model.plans import Plans
from livella.nn.batch import _Core

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Run a model's batch norms by Livella, each in one call with what follows it.

    Two things change, both in place. Every `torch.nn.BatchNorm1d/2d/3d` becomes the Livella layer
    of the same name: the same object with the same parameters, buffers, hooks and mode, so
    optimizers and checkpoints made before or after stay good. And a module whose forward calls a
    batch norm and then an activation, an addition, or both, makes one call of them, wherever
    following that forward proves that nothing else reads the value between. `print(model)` shows
    them as "(fused)"; what stands in the way elsewhere is logged to "livella" at debug level.

    Results stay the same up to rounding, also after the model is changed: hooks, another layer,
    another setting or a function defined again make a module run as it is written, until it is
    proved anew. A forward is proved for each form of its arguments (which are tensors,
    lists of them, plain values) and each mode, when it is first met. Code of torch itself is taken
    to stay as it is.

    Under `torch.compile` and `torch.export` modules run fused in the forms met before, under
    `torch.jit.trace` as written; `torch.jit.script` and `torch.fx.symbolic_trace` refuse the
    layers. `isinstance` answers as before; `type(layer) is torch.nn.BatchNorm2d` does not.

    Args:
        model: any module; a batch norm itself too. Not a scripted one.

    Returns:
        The model.

    Raises:
        TypeError: the model is no module, or a scripted one. The model is then as it was, as after
            any other exception.

    Warns:
        UserWarning: names batch norms that are left alone: other classes than torch's three, and
            layers with a forward, or another method, of their own; and those whose running
            statistics hold NaN, infinity or a negative variance.

    Example:
        >>> model = accelerate(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
        >>> print(model)
        Sequential(
          (fused): 1 + relu
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): BatchNorm2d(8, ...)
          (2): ReLU()
        )

    """
    given.check_model(model, "accelerate")
    before: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for layer in model.modules():
            if adopt.can_be_adopted(layer):
                _become(layer, adopt.OURS[type(layer)], before)
        for owner in reversed(list(model.modules())):  # children first, as their classes change
            _fuse(owner, before)
        _name_others(model)
        _name_broken(model)
    except BaseException:
        for module, kind in reversed(before):
            adopt.change_class(module, kind)
            vars(module).pop("_livella_plans", None)
        raise
    for layer in model.modules():
        keep_class(layer)
    return model


def _become(
    module: nn.Module, kind: type[nn.Module], before: list[tuple[nn.Module, type[nn.Module]]]
) -> None:
    """Give a module another class, and note the one it had."""
    before.append((module, type(module)))
    adopt.change_class(module, kind)


def _fuse(owner: nn.Module, before: list[tuple[nn.Module, type[nn.Module]]]) -> None:
    kind: Any = type(owner)
    parts = (type(part) in PLAIN for part in owner.modules() if part is not owner)
    if fused.is_fused(owner) or not any(parts) or not fused.can_be_fused(owner):
        return
    plans = Plans(owner, kind)
    if plans.make_default():
        _become(owner, fused.fused_class(kind), before)
        vars(owner)["_livella_plans"] = plans


def _name_others(model: nn.Module) -> None:
    others = [
        f"{path or 'the model itself'} ({type(layer).__name__})"
        for path, layer in model.named_modules()
        if sites.is_batch_norm(layer) and not isinstance(layer, _Core)
    ]
    if others:
        warnings.warn(
            f"accelerate: left alone, having a class or a method of their own: "
            f"{', '.join(others)}; they run as before",
            stacklevel=3,
        )


def _name_broken(model: nn.Module) -> None:
    broken = tuple(stale.not_numbers(model))
    if broken:
        warnings.warn(
            f"accelerate: the running statistics of {stale.in_short(broken)} hold NaN, infinity or "
            "a negative variance, and stay as they are; measure them: "
            "livella.estimate_population(model, batches).apply()",
            stacklevel=3,
        )
