"""Whether what a user gave can be used: the model, its optimizer, a loss. Each error is one line.

`caller` is the function in whose name it is said.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from livella.model import feeding


def check_model(model: Any, caller: str, *, runs: bool = False) -> None:
    """Check that it is a module that can be looked into, and with `runs` called on data.

    Raises:
        TypeError: it is no module, or a scripted one.
        ValueError: it is to run, and has weights on the meta device.

    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: expected a torch.nn.Module, got {_what(model)}")
    if isinstance(feeding.unwrap(model), torch.jit.ScriptModule):
        raise TypeError(
            f"{caller}: expected a torch.nn.Module of Python, got a scripted or traced one, which "
            "cannot be looked into; pass the original, from before torch.jit"
        )
    if runs:
        check_weights(model, caller)


def check_weights(model: nn.Module, caller: str) -> None:
    """Check that the model has weights.

    Raises:
        ValueError: it has some on the meta device.

    """
    states = (*model.named_parameters(), *model.named_buffers())
    name = next((name for name, value in states if value.device.type == "meta"), None)
    if name is not None:
        raise ValueError(
            f"{caller}: expected a model with weights, got {name!r} on the meta device, which has "
            "none; load its weights first, for example "
            "model.load_state_dict(torch.load(file), assign=True)"
        )


def check_optimizer(model: nn.Module, optimizer: Any, caller: str) -> None:
    """Check that an optimizer, where one is given, trains parameters of the model.

    Raises:
        TypeError: it is no optimizer.
        ValueError: it holds none of the model's parameters.

    """
    if optimizer is None:
        return
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        raise TypeError(
            f"{caller}: expected a torch.optim.Optimizer as optimizer, got {_what(optimizer)}"
        )
    held = {id(parameter) for group in groups for parameter in group["params"]}
    own = {id(parameter) for parameter in model.parameters()}
    if own and not own & held:
        raise ValueError(
            f"{caller}: expected an optimizer of the model's parameters, got one of {len(held)} "
            "others; pass the one that trains this model (a copy, or a model loaded or converted "
            "anew, needs one of its own)"
        )


def check_loss(loss: Any, caller: str, labels: str = "batch[1]") -> None:
    """Check that a loss is called as loss(output, batch); `labels` says where those are.

    Raises:
        TypeError: it is none, or is called on labels, or on a model.

    """
    of_torch = getattr(loss, "__module__", "") in ("torch.nn.functional", "torch._C._nn")
    if isinstance(loss, nn.Module) or of_torch:
        name = type(loss).__name__ if isinstance(loss, nn.Module) else loss.__name__
        call = f"{name}()" if isinstance(loss, nn.Module) else name
        raise TypeError(
            f"{caller}: expected a function loss(output, batch), got {name}, which is called on "
            f"labels; pass loss=lambda output, batch: {call}(output, {labels})"
        )
    if not callable(loss):
        raise TypeError(
            f"{caller}: expected a function loss(output, batch), got {_what(loss)}; pass "
            f"loss=lambda output, batch: …"
        )
    if _takes_model(loss):
        raise former_loss(caller)


def former_loss(caller: str) -> TypeError:
    """Say how a loss is called that was written as loss(model, batch)."""
    return TypeError(
        f"{caller}: expected loss(output, batch), got loss(model, batch); pass "
        "loss=lambda output, batch: … of what the model gave, and forward= where model(x) is not "
        "how it is called"
    )


def number(value: Any, caller: str, advice: str) -> Tensor:
    """Give what a loss of the user's returned, a tensor of no dimensions. It may be NaN.

    Raises:
        ValueError: it is something else.

    """
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        return value.reshape(())
    got = _what(value)
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        got = f"a tensor of shape {tuple(value.shape)}, {dtype}"
    raise ValueError(
        f"{caller}: expected loss(output, batch) to give a tensor with one number, got {got}; "
        f"{advice}"
    )


def _takes_model(loss: Any) -> bool:
    """Whether its first argument is called or annotated a model."""
    try:
        first = next(iter(inspect.signature(loss).parameters.values()), None)
    except (TypeError, ValueError):  # written in C
        return False
    if first is None:
        return False
    kind = first.annotation
    annotated = (isinstance(kind, type) and issubclass(kind, nn.Module)) or (
        isinstance(kind, str) and kind.rpartition(".")[2] == "Module"
    )
    return annotated or first.name in ("model", "net", "network", "module")


def _what(given: Any) -> str:
    """Say what something is, with what to do where that is plain."""
    if isinstance(given, type):
        hint = f"; pass an object of it, {given.__name__}(…)"
        return f"the class {given.__name__}" + (hint if issubclass(given, nn.Module) else "")
    if given is None:
        return "None"
    said = f"a{'n' if type(given).__name__[0] in 'aeiouAEIOU' else ''} {type(given).__name__}"
    if isinstance(given, Mapping) and any(isinstance(each, Tensor) for each in given.values()):
        return f"{said} of tensors; load it into the model with load_state_dict and pass that"
    if inspect.isfunction(given):
        return f"the function {given.__name__}; pass what it returns"
    return said
