"""Every normalization of a network as another kind."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from livella.model import adopt, feeding, given, kinds, stale, states
from livella.model.calibrate import Calibration, first_of
from livella.model.conversion import Conversion
from livella.model.feeding import Forward
from livella.model.kept import Kept
from livella.model.measure import Pass, unasked
from livella.model.states import LayerConversion, plan_of


def convert(
    model: nn.Module,
    to: str,
    *,
    calibrate: Iterable[Any] | None = None,
    layers: Iterable[str] | None = None,
    ndim: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Conversion:
    """Turn every normalization over channels into another kind, torch's and Livella's, in place.

    Each layer stays the same object, with its hooks, mode, name and every place that holds it, and
    changes its class. γ and β stay the same parameters, so an optimizer made before goes on with
    them; eps and momentum stay where they mean the same, and so do running averages. What has no
    place in the new kind is named in `.dropped`; the layer remembers it, and takes it up again when
    it is converted back, so that there and back gives the same network (without `calibrate`, and
    untrained meanwhile). Checkpoints do not hold that memory. What cannot be converted without loss
    is left and named, with a warning: layers of unknown classes or with methods, parameters or
    buffers of their own, those that `livella.freeze` froze, and an activation that the new kind has
    no place for.

    The new layers compute another function: of their own moments in evaluation instead of the
    running ones, for one. With `calibrate`, γ and β are fitted on data without labels, layer by
    layer in the order of the calls, with those before it converted and fitted: by least squares
    γ·x̂ + β comes closest to what the former layer gave in the former network, and layers that keep
    statistics are given those of the data. A few hundred samples suffice; they
    are read once or twice for each level of dependent layers. Should the fits make the output
    worse altogether, they are taken back.

    Args:
        model: any module, a normalization itself too; the one inside `DistributedDataParallel` or
            `torch.compile` is used.
        to: "torch" or "torch_sync" for torch's own batch norms, or a kind that `make_norm` knows.
        calibrate: batches in any form that `estimate_population` takes.
        layers: names of normalizations, or of modules all in which are meant. Default: all.
        ndim: 1, 2 or 3, as in `BatchNorm2d`, for layers whose class does not tell (group norm).
            Default: what the layer was before, or what `calibrate` shows.
        optimizer: one made before; parameters that are gone are taken out, new ones join.
        forward: called as forward(model, batch) for calibration, for other batches.
        progress: show a bar. Default: if standard error is a terminal.
        options: of the new layers, such as `num_groups`, `ghost_size`, `eps`; see `make_norm`.

    Returns:
        The conversion: `.layers` by name, `.left` and why, `.dropped`, `.gone` and `.new`
        parameters, `.change` of the output before and after the fit, `.revert()`; `print` it.

    Raises:
        ValueError: an unknown kind, no normalization that can be converted, a number of groups that
            does not divide a layer's channels, no `ndim` where it matters, no batches, NaN or
            infinity; layers are named. The model is then as before, as after any other exception.
        TypeError: no module, or a scripted one; an option that the layer does not have, an
            iterator to calibrate on, or an optimizer that cannot be told of parameters (LBFGS).

    Warns:
        UserWarning: layers left as they are, layers without statistics of the data, parameters
            that an optimizer may hold though the model no longer does, or does not hold yet,
            statistics laid aside before the model was trained, and running statistics that are no
            numbers or more than one σ from those of the data to calibrate on: what is imitated then
            is a network that does not do well itself.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> print(convert(model, "group", num_groups=2))
        Conversion to group: 1 layers
        layer  was          is         unexplained
        1      BatchNorm2d  GroupNorm
        no place for: 1: running_mean, running_var, num_batches_tracked

    """
    given.check_model(model, "convert", runs=calibrate is not None)
    if to not in kinds.KINDS:
        raise ValueError(f"convert: expected a kind of {', '.join(kinds.KINDS)}, got {to!r}")
    if isinstance(calibrate, Iterator):
        raise TypeError(
            "convert: got an iterator to calibrate on, which can be read once, where each level of "
            "layers reads the data; pass a loader or a list"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "convert: got an LBFGS optimizer, which keeps its parameters in a list of its own; "
            "make it anew after the conversion"
        )
    model = feeding.unwrap(model)
    forward = forward or feeding.feed
    chosen, left = _choose(model, layers, to)
    dims = dict.fromkeys(chosen, ndim)
    if ndim is None and calibrate is not None:
        dims |= _observed(model, chosen, calibrate, forward)
    trace = states.trace_of(model)
    plan = _plan(model, chosen, to, dims, options, trace)
    parameters = dict(model.named_parameters())
    conversion = Conversion(model, to, plan, left, Kept.of(_tensors(plan)))
    if calibrate is not None and plan:
        _warn_of_statistics(model, calibrate, forward, progress)
    try:
        with conversion.applied():
            if calibrate is not None and plan:
                Calibration(conversion, calibrate, forward, progress).run()
    except BaseException:
        conversion.kept.put_back()
        raise
    conversion.compare(parameters)
    if optimizer is not None:
        conversion.exchange_parameters(optimizer)
    _warn(conversion, calibrated=calibrate is not None, told=optimizer is not None)
    return conversion


def _choose(
    model: nn.Module, names: Iterable[str] | None, to: str
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers to convert, one at least, and the others, with the reason."""
    found = adopt.named_layers(model, names, kinds.is_normalization)
    left = {name: why for name, layer in found.items() if (why := kinds.why_not(layer, to))}
    chosen = {name: layer for name, layer in found.items() if name not in left}
    if not chosen:
        why = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        raise ValueError(
            f"convert: expected a model with normalizations to convert, got "
            f"{type(model).__name__} ({why or 'none in it'})"
        )
    return chosen, left


def _plan(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    to: str,
    dims: Mapping[str, int | None],
    options: dict[str, Any],
    trace: states.Trace,
) -> dict[str, LayerConversion]:
    """What each layer becomes; those of this kind already are left out."""
    spare = next(chain(model.parameters(), model.buffers()), torch.empty(0))
    every = {
        name: plan_of(name, layer, to, dims[name], options, spare, trace)
        for name, layer in layers.items()
    }
    return {name: each for name, each in every.items() if each is not None}


def _observed(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any], forward: Forward
) -> dict[str, int]:
    """For how many dimensions each layer works, as the first batch shows."""
    found: dict[str, int] = {}
    with ExitStack() as cleanup:
        for name, layer in layers.items():

            def look(_layer: nn.Module, args: Any, named: Any, name: str = name) -> None:
                found[name] = max(1, (args[0] if args else named["input"]).dim() - 2)

            handle = layer.register_forward_pre_hook(look, with_kwargs=True)
            cleanup.callback(handle.remove)
        batch = feeding.to_device(first_of(batches), feeding.device_of(model))
        with Pass(model, {}, unasked) as reading:
            reading.run(lambda: forward(model, batch))
    return found


def _tensors(plan: Mapping[str, LayerConversion]) -> Iterator[Tensor]:
    for each in plan.values():
        yield from each.before.tensors()


def _warn_of_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Forward, progress: bool | None
) -> None:
    """Tell of running statistics that the fit is going to imitate and that cannot be right."""
    broken = tuple(stale.not_numbers(model))
    far = () if broken else stale.far_off(model, batches, forward, progress)
    if not broken and not far:
        return
    what = (
        "hold NaN, infinity or a negative variance"
        if broken
        else "are more than 1 σ from those of the data to calibrate on"
    )
    warnings.warn(
        f"convert: the running statistics of {stale.in_short(broken or far)} {what}, and the "
        "converted network will imitate what eval() gives by them; put them right first: "
        "livella.estimate_population(model, batches).apply(), or livella.repair(model, batches)",
        stacklevel=3,
    )


def _warn(conversion: Conversion, *, calibrated: bool, told: bool) -> None:
    messages = []
    if conversion.left:
        these = "; ".join(f"{n or 'the model'}: {why}" for n, why in conversion.left.items())
        messages.append(f"left as they are: {these}")
    lacking = [name for name, each in conversion.layers.items() if each.lacks_statistics]
    if lacking and not calibrated:
        messages.append(
            f"no statistics of the data yet: {', '.join(lacking)}; train, pass calibrate=batches, "
            "or measure them: livella.estimate_population(model, batches).apply()"
        )
    stale = [name for name, each in conversion.layers.items() if each.trained_since]
    if stale and not calibrated:
        messages.append(
            f"the model was trained since the running statistics of {', '.join(stale)} were laid "
            "aside; measure them: livella.estimate_population(model, batches).apply()"
        )
    if conversion.new and not told:
        messages.append(
            f"new parameters: {', '.join(conversion.new)}, which no optimizer made before trains; "
            "pass optimizer= to the conversion, or make a new one"
        )
    if conversion.gone and not told:
        messages.append(
            f"no longer parameters: {', '.join(conversion.gone)}; pass optimizer= to the "
            "conversion, or make a new one"
        )
    for message in messages:
        warnings.warn(f"convert: {message}", stacklevel=3)
