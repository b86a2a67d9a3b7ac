"""What batch norm may be called with: errors say what was got, what was expected, what to do."""

from __future__ import annotations

import sys
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from livella import reference
from livella.moments import accumulation_dtype, count_elements


class Call(NamedTuple):
    """The arguments of `livella.functional.batch_norm`, where they are documented."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    momentum: float | Tensor | None
    eps: float
    activation: str | None
    residual: Tensor | None
    mask: Tensor | None
    num_batches_tracked: Tensor | None
    ghost_size: int | None = None
    limits: Tensor | None = None


def check(call: Call) -> None:
    """Raise what `livella.functional.batch_norm` documents."""
    _check_input(call.input)
    _check_training(call)
    _check_per_channel(call)
    if call.training:
        _check_averages(call)
        _check_limits(call)
    _check_extras(call.input, call.activation, call.residual, call.mask)


def _check_input(x: Tensor) -> None:
    if x.dim() < 2:
        raise RuntimeError(
            f"batch_norm: expected an input of shape (N, C) or (N, C, ...), got {tuple(x.shape)}; "
            "add the missing dimension with unsqueeze"
        )
    if not x.is_floating_point():
        raise NotImplementedError(
            f"batch_norm: expected an input of a floating dtype, got {x.dtype}; "
            "convert it, for example with input.float()"
        )


def _check_training(call: Call) -> None:
    x, training, eps = call.input, call.training, call.eps
    running_mean, running_var = call.running_mean, call.running_var
    if call.ghost_size is not None:
        check_ghost_size(call.ghost_size)
        _check_ghost_batches(x, call.ghost_size, call.mask)
    if training and call.mask is None and count_elements(x.shape) == 1:
        raise single_value(f"an input of shape {tuple(x.shape)}")
    if eps < 0 or (training and eps == 0):
        raise ValueError(
            f"batch_norm: expected eps above zero (zero is allowed in evaluation), got {eps}; "
            "the usual value is 1e-5"
        )
    if training and (running_mean is None) != (running_var is None):
        raise ValueError(
            "batch_norm: got one of running_mean and running_var and not the other; "
            "pass both, or None for both"
        )
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError(
            "batch_norm: expected running_mean and running_var in evaluation, got None; "
            "pass both, or training=True to normalize by the batch"
        )


def single_value(got: str) -> ValueError:
    """Give the error of a batch of one value a channel: in which layer, and the ways out."""
    return ValueError(
        f"{_caller()}: expected more than one value per channel in training, got {got}, whose "
        "variance is zero by construction; use larger batches and drop a last batch of one "
        "(drop_last=True), put group norm or batch renormalization in its place, freeze the layer "
        '(livella.freeze), or set its single_value to "running"'
    )


def _caller() -> str:
    """Name the innermost module whose method runs, by the name the outermost one has for it."""
    modules = [] if torch.compiler.is_compiling() else _running_modules()
    if not modules:
        return "batch_norm"
    layer = modules[0]
    size = getattr(layer, "num_features", None)
    described = type(layer).__name__ if size is None else f"{type(layer).__name__}({size})"
    for model in reversed(modules):
        for name, module in model.named_modules():
            if module is layer:
                return f"{described} {name!r} of {type(model).__name__}" if name else described
    return described


def _running_modules() -> list[nn.Module]:
    """The modules whose methods are being run, the innermost first."""
    found: list[nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            found.append(owner)
        frame = frame.f_back
    return found


def _check_per_channel(call: Call) -> None:
    x = call.input
    channels, accepted = x.shape[1], (x.dtype, accumulation_dtype(x.dtype))
    named = (
        ("running_mean", call.running_mean),
        ("running_var", call.running_var),
        ("weight", call.weight),
        ("bias", call.bias),
    )
    for name, tensor in named:
        if tensor is None:
            continue
        if tensor.dim() != 1 or tensor.shape[0] != channels:
            raise RuntimeError(
                f"batch_norm: expected {name} of shape ({channels},) for an input of shape "
                f"{tuple(x.shape)}, whose dimension 1 holds the channels, "
                f"got {tuple(tensor.shape)}; build the layer for this number of channels"
            )
        if tensor.device != x.device:
            raise RuntimeError(
                f"batch_norm: expected {name} on the input's device {x.device}, "
                f"got {tensor.device}; move one of them with .to(...)"
            )
        if tensor.dtype not in accepted:
            raise RuntimeError(
                f"batch_norm: expected {name} in {' or '.join(map(str, dict.fromkeys(accepted)))} "
                f"for an input in {x.dtype}, got {tensor.dtype}; convert one of them"
            )


def _check_averages(call: Call) -> None:
    running_mean, running_var = call.running_mean, call.running_var
    if running_mean is None or running_var is None:
        return
    if call.momentum is None and call.num_batches_tracked is None:
        raise ValueError(
            "batch_norm: got momentum=None, which averages all batches equally, and no "
            "num_batches_tracked to count them; pass the counter, or a number as momentum"
        )
    for name, tensor in (("running_mean", running_mean), ("running_var", running_var)):
        if tensor.numel() > 1 and tensor.stride(0) == 0:
            raise RuntimeError(
                f"batch_norm: expected {name} with memory of its own for each channel, got an "
                "expanded tensor, whose elements overlap; call .clone() on it first"
            )
    if _share_memory(running_mean, running_var):
        raise RuntimeError(
            "batch_norm: got running_mean and running_var in the same memory, where each "
            "would overwrite the other; give each its own tensor"
        )


def check_ghost_size(size: int) -> None:
    """Raise TypeError for what is no whole number, and ValueError for one below one."""
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(
            f"expected ghost_size as a whole number of samples, got {size!r}; "
            "the usual one is 32, and None is for a batch in one part"
        )
    if size < 1:
        raise ValueError(f"expected a ghost_size of one sample or more, got {size}")


def _check_ghost_batches(x: Tensor, size: int, mask: Tensor | None) -> None:
    if mask is None and size == 1 and x.shape[0] > 1 and count_elements(x[:1].shape) == 1:
        raise ValueError(
            "batch_norm: expected more than one value per channel in each ghost batch, got "
            f"ghost_size=1 for an input of shape {tuple(x.shape)}; use a ghost_size of two or more"
        )


def check_limits(r_max: float, d_max: float) -> None:
    """Raise ValueError for limits between which r = 1 and d = 0 do not lie."""
    if not (r_max >= 1 and d_max >= 0):
        raise ValueError(
            "expected limits r_max of one or more and d_max not below zero, "
            f"got r_max={r_max} and d_max={d_max}; r_max=1 with d_max=0 is batch norm"
        )


def _check_limits(call: Call) -> None:
    if call.limits is None:
        return
    if call.running_mean is None or call.ghost_size is not None:
        got = "no running averages" if call.running_mean is None else "ghost batches"
        raise ValueError(
            f"batch_norm: expected limits with running averages and a batch in one part, got {got}"
        )
    if call.limits.shape != (2,):
        shape = tuple(call.limits.shape)
        raise ValueError(f"batch_norm: expected limits (r_max, d_max), got a tensor of {shape}")
    if not torch.compiler.is_compiling() and _has_memory(call.limits):
        check_limits(*call.limits.tolist())


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether any element of both is the same one; a compiler's tensors have none to compare."""
    if a is b:
        return True
    if torch.compiler.is_compiling() or not (_has_memory(a) and _has_memory(b)):
        return False
    one, other = _addresses(a), _addresses(b)
    apart = not one or not other or one[-1] < other[0] or other[-1] < one[0]
    return not apart and not set(one).isdisjoint(other)


def _has_memory(t: Tensor) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(t)
    return type(t) is Tensor and not t.is_meta and not wrapped


def _addresses(t: Tensor) -> range:
    step = max(1, t.stride(0) * t.element_size())
    return range(t.data_ptr(), t.data_ptr() + t.numel() * step, step)


def _check_extras(
    x: Tensor, activation: str | None, residual: Tensor | None, mask: Tensor | None
) -> None:
    check_activation(activation)
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"batch_norm: expected a residual of the input's shape {tuple(x.shape)}, "
            f"got {tuple(residual.shape)}; broadcast it first, with expand_as"
        )
    for name, tensor in (("residual", residual), ("mask", mask)):
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(
                f"batch_norm: expected the {name} on the input's device {x.device}, "
                f"got {tensor.device}; move one of them with .to(...)"
            )
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(
            f"batch_norm: expected a boolean mask, true where valid, got {mask.dtype}; "
            "compare first, for example mask != 0"
        )
    wanted = (x.shape[0], *x.shape[2:])
    sizes = zip(reversed(mask.shape), reversed(wanted), strict=False)
    if mask.dim() > len(wanted) or any(got not in (1, size) for got, size in sizes):
        raise ValueError(
            f"batch_norm: expected a mask of shape {wanted} (the input's without its channels) or "
            f"broadcastable to it, got {tuple(mask.shape)}; a mask of whole samples of shape (N,) "
            "needs its missing dimensions, for example mask[:, None]"
        )


def check_activation(activation: str | None) -> None:
    """Raise ValueError for a name that is not an activation known here."""
    if activation is not None and activation not in reference.ACTIVATIONS:
        raise ValueError(
            f"unknown activation {activation!r}; "
            f"expected None or one of {', '.join(map(repr, reference.ACTIVATIONS))}"
        )
