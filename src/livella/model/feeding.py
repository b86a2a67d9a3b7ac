"""From what a loader yields to a call of the model: tensors, tuples, dicts, dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim.swa_utils import AveragedModel

LABELS = ("label", "labels", "target", "targets", "y", "class_labels")
"""Names under which a batch carries what is to be learnt; never given to the model."""
INPUTS = ("image", "images", "img", "x", "input", "inputs", "pixel_values", "input_values",
          "features", "data", "audio", "waveform", "signal", "input_ids")  # fmt: skip
"""Names under which a batch carries what the model is given."""
METADATA = ("id", "ids", "idx", "index", "indices", "image_id", "meta", "metadata", "mask", "masks",
            "segmentation", "attention_mask", "weight", "weights", "length", "lengths", "boxes",
            "bbox", "bboxes")  # fmt: skip
"""Names of what stands beside, and is no model's only input."""

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
    forward requires; labels stand behind them. The first item may hold them together, as in
    ((image, meta), target). A list with an image a sample, beside one with a dict a sample, is
    itself the argument, as detectors take it.

    A dict, a dataclass or a named tuple gives the arguments by name, those that forward knows and
    that are no labels. Where its names do not fit and forward requires one argument, that is the
    batch itself if forward names its entries, else the one entry that is neither label nor
    metadata: a tensor, of floating point first.

    Raises:
        TypeError: the batch is something else, has too few items, or several that it might be.

    """
    args, named = arguments(model, batch)
    return model(*args, **named)


def arguments(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give what `feed` calls the model with.

    Raises:
        TypeError: as `feed`.

    """
    if isinstance(batch, Tensor | PackedSequence):
        return (batch,), {}
    named = fields(batch)
    if named is not None:
        return _by_name(model, batch, named)
    if not isinstance(batch, tuple | list):
        raise _unusable(model, batch)
    names = _required(model)
    required = max(1, len(names))
    if a_sample_each(batch) and required == 1:
        return (batch[0],), {}
    if batch and (required == 1 or _together(batch, names)):
        return arguments(model, batch[0])
    if len(batch) < required:
        raise _unusable(model, batch)
    return tuple(batch[:required]), {}


def _by_name(
    model: nn.Module, batch: Any, named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = {name: value for name, value in named.items() if name not in LABELS}
    fitting = {name: value for name, value in inputs.items() if name in _names(model)}
    required = _required(model)
    if fitting and set(required) <= fitting.keys():
        return (), fitting
    if isinstance(batch, tuple) and len(inputs) >= len(required) > 1:  # by position
        return tuple(inputs.values())[: len(required)], {}
    if len(required) != 1:
        raise _unusable(model, batch)
    found = None if _takes_whole(model, batch, named) else _the_input(model, inputs)
    return (batch if found is None else found,), {}


def _the_input(model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    """Find the one entry that is no metadata: floating point first, then of a usual name."""
    tensors = {
        name: value
        for name, value in inputs.items()
        if isinstance(value, Tensor) and name.lower() not in METADATA
    }
    floating = {name: value for name, value in tensors.items() if value.is_floating_point()}
    found = floating or tensors
    if len(found) > 1:
        usual = {name: value for name, value in found.items() if name.lower() in INPUTS}
        found = usual if len(usual) == 1 else found
    if len(found) > 1:
        raise TypeError(
            f"expected a batch with one input for {type(model).__name__}, got several that it may "
            f"be, {', '.join(found)}; say which with forward=, for example "
            f"forward=lambda model, batch: model(batch[{next(iter(found))!r}])"
        )
    return next(iter(found.values()), None)


def _takes_whole(model: nn.Module, batch: Any, named: dict[str, Any]) -> bool:
    """Whether forward takes a batch apart itself: by its argument's name, or by entries' names."""
    if _required(model)[0] in ("batch", "sample"):
        return True
    by_key = isinstance(batch, Mapping)
    for module in model.modules():
        code = getattr(getattr(module, "forward", None), "__code__", None)
        if code is None:
            continue
        read = _texts(code) if by_key else set(code.co_names)
        own = () if by_key else (Tensor, module)
        if any(not any(hasattr(each, name) for each in own) for name in read.intersection(named)):
            return True
    return False


def _texts(code: CodeType) -> set[str]:
    """Every text that stands in code, functions inside it included."""
    texts = {each for each in code.co_consts if isinstance(each, str)}
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return texts.union(*map(_texts, inner))


def _together(batch: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether a first item holds all arguments and labels follow: ((image, meta), target)."""
    first = batch[0]
    named = fields(first)
    if named is not None and set(names) <= named.keys():
        return True
    if len(batch) != 2 or not isinstance(first, tuple | list) or len(first) != len(names):
        return False
    return len({len(each) for each in tensors_in(batch) if each.dim()}) == 1


def a_sample_each(batch: Any) -> bool:
    """Whether a batch is (images, targets): a list of tensors and one of dicts, one a sample."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        return False
    images, targets = batch[0], batch[1]
    if not isinstance(images, tuple | list) or not isinstance(targets, tuple | list):
        return False
    alike = len(images) == len(targets) > 0
    return (
        alike
        and all(isinstance(image, Tensor) for image in images)
        and all(isinstance(target, Mapping) for target in targets)
    )


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
    """Count the samples: the length of the first tensor that has one; one where there is none.

    A list with an image a sample, beside one with a dict a sample, has as many as that.
    """
    if a_sample_each(batch):
        return len(batch[0])
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim() > 0), 1)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Every tensor of a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
        return
    named = fields(batch)
    items = batch if isinstance(batch, tuple | list) else (named or {}).values()
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
    if isinstance(batch, PackedSequence):  # whose sizes stay on the CPU
        return batch.to(device)  # type: ignore[arg-type]  # torch's stub knows dtypes alone
    if isinstance(batch, tuple | list):
        moved = [to_device(item, device) for item in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved_fields = {n: to_device(value, device) for n, value in (fields(batch) or {}).items()}
        return dataclasses.replace(batch, **moved_fields)
    return batch


def fields(batch: Any) -> dict[str, Any] | None:
    """What a batch holds by name, if it does."""
    if isinstance(batch, Mapping):
        return {str(name): value for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return None


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    model = unwrap(model)
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
    got = sorted(named) if (named := fields(batch)) is not None else type(batch).__name__
    return TypeError(
        f"expected a batch that {type(model).__name__} can be called with ({wanted}), got {got}; "
        "say how with forward=, for example forward=lambda model, batch: model(batch.images)"
    )
