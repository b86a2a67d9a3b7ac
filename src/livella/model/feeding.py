"""From what a loader yields to a call of the model: tensors, tuples, dicts, dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

LABELS = ("label", "labels", "target", "targets", "y", "class_labels")
"""Names under which a batch carries what is to be learnt; never given to the model."""
BESIDES = (
    "id", "ids", "idx", "index", "indices", "name", "names", "path", "paths", "filename", "meta",
    "metadata", "info", "weight", "weights", "mask", "masks", "length", "lengths",
)  # fmt: skip
"""Names of what else a batch carries, that is not the one thing a model looks at."""

Forward = Callable[[nn.Module, Any], object]


def unwrap(model: nn.Module) -> nn.Module:
    """Give the model inside `DistributedDataParallel` or `torch.compile`.

    The one would exchange buffers at each call, the other has a graph that knows no hooks.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def feed(model: nn.Module, batch: Any) -> object:
    """Call the model on a batch without its labels.

    A tensor is the one argument. Of a tuple or list the first items are, as many as the model's
    forward requires; labels stand behind them. Of ((image, meta), target) it is the image, where
    forward requires one argument and the rest cannot be one. A dict or a dataclass gives the
    arguments by name, those that forward knows and that are no labels. Where no name fits and
    forward requires one argument, that is the one entry that is no label and nothing besides, such
    as `image` in dict(image=…, label=…); of several, the batch itself.

    Raises:
        TypeError: the batch is something else, or has too few items.

    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, tuple | list):
        required = max(1, len(_required(model)))
        if len(batch) < required:
            raise _unusable(model, batch)
        return model(*batch[:required]) if required > 1 else _feed_one(model, batch[0])
    named = _fields(batch)
    if named is None:
        raise _unusable(model, batch)
    arguments = {name: value for name, value in named.items() if name in _names(model)}
    arguments = {name: value for name, value in arguments.items() if name not in LABELS}
    if arguments and set(_required(model)) <= arguments.keys():
        return model(**arguments)
    if len(_required(model)) != 1:
        raise _unusable(model, batch)
    only = _only_entry(named)
    return model(batch if only is None else only)


def _feed_one(model: nn.Module, item: Any) -> object:
    """Call the model on the first item of a tuple, which may be one again: (image, meta)."""
    if isinstance(item, tuple | list) and len(_required(model)) == 1 and _is_one_with_rest(item):
        return model(item[0])
    return feed(model, item)


def _is_one_with_rest(item: tuple[Any, ...] | list[Any]) -> bool:
    """Whether it is an example with what belongs to it, and no list of examples."""
    first, *rest = item
    return isinstance(first, Tensor) and all(
        not isinstance(each, Tensor) or not each.is_floating_point() for each in rest
    )


def _only_entry(named: Mapping[str, Any]) -> Tensor | None:
    """Give the one tensor that is neither a label nor something besides; none of several."""
    left = [
        value
        for name, value in named.items()
        if isinstance(value, Tensor) and name not in (*LABELS, *BESIDES)
    ]
    numbers = [value for value in left if value.is_floating_point()]
    found = numbers or left
    return found[0] if len(found) == 1 else None


def given_to(model: nn.Module, batch: Any) -> set[int]:
    """Give the ids of the tensors of a batch that `feed` gives to the model."""
    given: Any = batch
    if isinstance(batch, tuple | list):
        given = batch[: max(1, len(_required(model)))]
    elif (named := _fields(batch)) is not None:
        known = {name: value for name, value in named.items() if name not in LABELS}
        fitting = {name: value for name, value in known.items() if name in _names(model)}
        only = _only_entry(named)
        given = fitting or ([known] if only is None else [only])
    return {id(tensor) for tensor in tensors_in(given)}


def logits_in(output: object) -> Tensor:
    """Find the class scores, (N, K) or (N, K, ...), in what a model gives.

    A tensor, or the entry or attribute "logits", or the first tensor of floating point.

    Raises:
        TypeError: there is none.

    """
    named = output.get("logits") if isinstance(output, Mapping) else None
    found = named if isinstance(named, Tensor) else getattr(output, "logits", None)
    candidates = [found] if isinstance(found, Tensor) else list(tensors_in(output))
    for tensor in candidates:
        if tensor.is_floating_point() and tensor.dim() >= 2:
            return tensor
    raise TypeError(
        f"expected class scores of shape (N, K) in the model's output, got "
        f"{type(output).__name__}{[tuple(tensor.shape) for tensor in candidates]}; say where they "
        "are with logits=, for example logits=lambda output: output.scores"
    )


def samples_in(batch: Any) -> int:
    """Count the samples: the length of the first tensor that has one; one where there is none."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim() > 0), 1)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Every tensor of a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
        return
    named = _fields(batch)
    if isinstance(batch, tuple | list):
        items = list(batch)
    else:
        items = [] if named is None else list(named.values())
    for item in items:
        yield from tensors_in(item)


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model that lies on one; none for any other, which moves its own inputs."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return devices.pop() if len(devices) == 1 else None


def on_device(model: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """Give each batch where the model lies."""
    device = device_of(model)
    for batch in batches:
        yield to_device(batch, device)


def to_device(batch: Any, device: torch.device | None) -> Any:
    """Move what tensors a batch holds; everything else, its types included, stays."""
    if device is None or all(tensor.device == device for tensor in tensors_in(batch)):
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple | list):
        moved = [to_device(item, device) for item in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = _fields(batch) or {}
        moved_fields = {name: to_device(value, device) for name, value in fields.items()}
        return dataclasses.replace(batch, **moved_fields)
    return batch


def _fields(batch: Any) -> dict[str, Any] | None:
    """What a batch holds by name, if it does."""
    if isinstance(batch, Mapping):
        return {str(name): value for name, value in batch.items()}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return None


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    if isinstance(model, AveragedModel):  # hands all arguments to the model inside
        model = model.module
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # written in C, or wrapped beyond recognition
        return []


def _required(model: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in _parameters(model) if p.kind in kinds and p.default is p.empty]


def _names(model: nn.Module) -> set[str]:
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {p.name for p in _parameters(model) if p.kind in kinds}


def _unusable(model: nn.Module, batch: Any) -> TypeError:
    wanted = ", ".join(_required(model)) or "its input"
    got = sorted(named) if (named := _fields(batch)) is not None else type(batch).__name__
    return TypeError(
        f"expected a batch that {type(model).__name__} can be called with ({wanted}), got {got}; "
        "say how with forward=, for example forward=lambda model, batch: model(batch.images)"
    )
