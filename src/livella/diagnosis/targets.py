"""Where the labels of a batch are: told by the user, or found by name, by place and by fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from livella.diagnosis.labels import ClassNumbers, Reading, readings
from livella.model import feeding

Target = str | int | Callable[[Any], Any] | None
"""Where labels are: a key, an index, a function of the batch; none: there are none."""


class Auto(Enum):
    """The labels are to be found."""

    AUTO = "auto"


AUTO = Auto.AUTO

MASKS = ("mask", "masks", "segmentation")
"""Names of labels of pixels, where they are that."""
WAY_OUT = "say where they are with target=, a key, an index or a function of the batch, or None"
FORMS = (
    "expected class numbers (N,), or (N, H, W) beside outputs (N, K, H, W), or labels or numbers "
    "of the outputs' shape"
)

Step = int | str


@dataclass(frozen=True)
class Place:
    """Where something is in a batch, step by step."""

    steps: tuple[Step, ...] = ()
    by_attribute: bool = False

    def __str__(self) -> str:
        """Say it as it is written."""
        if self.by_attribute:
            *before, last = self.steps
            return f"{Place(tuple(before))}.{last}"
        return "batch" + "".join(f"[{step!r}]" for step in self.steps)

    def of(self, batch: Any) -> Any:
        """Give what is there.

        Raises:
            LookupError: nothing is.

        """
        for step in self.steps:
            named = feeding.fields(batch)
            if named is not None and isinstance(step, str):
                batch = named[step]
            elif isinstance(batch, tuple | list) and isinstance(step, int):
                batch = batch[step]
            else:
                raise LookupError
        return batch


@dataclass(frozen=True)
class Found:
    """Labels that were found: where, beside which output, and how they are read."""

    place: Place | Callable[[Any], Any]
    output: Callable[[Any], Tensor]
    reading: Reading

    def __str__(self) -> str:
        """Say where."""
        return str(self.place) if isinstance(self.place, Place) else "target="


def tensors(batch: Any, place: Place | None = None) -> Iterator[tuple[Place, Tensor]]:
    """Every tensor of a batch and where it is; of a list of dicts those of the first."""
    place = place or Place()
    if isinstance(batch, Tensor):
        yield place, batch
        return
    named = feeding.fields(batch)
    items: list[tuple[Step, Any]] = list((named or {}).items())
    if named is None and isinstance(batch, tuple | list):
        items = list(enumerate(batch))
        keys = [item.keys() if isinstance(item, Mapping) else None for item in batch]
        if keys and keys[0] is not None and all(each == keys[0] for each in keys):
            items = items[:1]
    by_attribute = named is not None and not isinstance(batch, Mapping)
    for step, item in items:
        yield from tensors(item, Place((*place.steps, step), by_attribute))


def fed(model: nn.Module | None, batch: Any) -> set[int]:
    """Give the ids of the tensors that the model is given; what is named a label is none."""
    whole = {id(tensor) for place, tensor in tensors(batch) if _is_named(place)}
    first = next(feeding.tensors_in(batch), None)
    if model is None:
        return {id(first)} - whole
    try:
        args, named = feeding.arguments(model, batch)
    except TypeError:  # called by a forward= of the user's
        return {id(first)} - whole
    return {id(tensor) for tensor in feeding.tensors_in([*args, *named.values()])} - whole


def found(
    output: Any, batch: Any, target: Target | Auto, model: nn.Module | None
) -> tuple[Found | None, tuple[str, ...]]:
    """Find the labels, and say what else is there that nobody understood.

    Raises:
        ValueError: `target` names nothing, or what fits no output.

    """
    if target is None:
        return None, ()
    if target is not AUTO:
        return _told(output, batch, target), ()
    given = fed(model, batch)
    free = [(place, tensor) for place, tensor in tensors(batch) if id(tensor) not in given]
    chosen = _chosen(output, free)
    labels = chosen.place if chosen is not None else None
    unread = tuple(_in_words(place, tensor) for place, tensor in free if place != labels)
    return chosen, unread


def read(labels: Any, name: str) -> Tensor:
    """Give labels as a tensor.

    Raises:
        ValueError: they are none.

    """
    if isinstance(labels, Tensor):
        return labels
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"labels {name}: expected a tensor, got a {type(labels).__name__}; {WAY_OUT}"
        ) from error


def _chosen(output: Any, free: list[tuple[Place, Tensor]]) -> Found | None:
    """Choose among what is named a label, else masks, else the last items, else anything."""
    named = [each for each in free if _is_named(each[0])]
    if named:  # another tensor is not taken for the labels where some are there
        return _best(output, named)
    masks = [e for e in free if e[0].steps and e[0].steps[-1] in MASKS and e[1].dim() > 2]
    last = [e for e in free if len(e[0].steps) == 1 and isinstance(e[0].steps[0], int)][::-1]
    no_index = [[each for each in some if not _is_index(each[1])] for some in (last, free)]
    return (
        _best(output, masks)
        or _best(output, no_index[0])
        or _best(output, no_index[1], clean=True)
        or _best(output, last)  # labels in the order of the classes
    )


def _best(output: Any, among: Sequence[tuple[Place, Tensor]], clean: bool = False) -> Found | None:
    """Give the reading by which this output is best: of several that fit, that is the one meant.

    Class numbers have to be most of them some, as the others are errors then, and all of them
    where that is asked for; those that all are go first.
    """
    best, highest = None, (False, -1.0)
    for place, labels in among:
        for where, scores, reading in _fitting(output, labels):
            there = labels.to(scores.device)
            bad = float(reading.wrong(scores, there).float().mean())
            if isinstance(reading, ClassNumbers) and bad > (0.0 if clean else 0.5):
                continue
            merit = (bad == 0, float(reading.right(scores, there).nan_to_num(nan=0.0).mean()))
            if merit > highest:
                best, highest = Found(place, where, reading), merit
    return best


def _is_index(tensor: Tensor) -> bool:
    """Whether it counts the samples, as datasets that give an index do."""
    if tensor.dim() != 1 or len(tensor) < 3 or tensor.is_floating_point():
        return False
    return bool((tensor[1:].long() - tensor[:-1].long() == 1).all())


def _told(output: Any, batch: Any, target: str | int | Callable[[Any], Any]) -> Found:
    place = target if callable(target) else _place(batch, target)
    name = str(place) if isinstance(place, Place) else "target="
    labels = read(place.of(batch) if isinstance(place, Place) else place(batch), name)
    best = _best(output, [(Place(), labels)])
    if best is None:
        best = next((Found(place, w, r) for w, _, r in _fitting(output, labels)), None)
    if best is None:
        shapes = ", ".join(str(tuple(t.shape)) for t in feeding.tensors_in(output)) or "no tensor"
        raise ValueError(
            f"target={_called(target)}: got {_kind(labels)}, which fits no output of shape "
            f"{shapes}: {FORMS}; or pass target=None and a loss="
        )
    return Found(place, best.output, best.reading)


def _place(batch: Any, target: str | int) -> Place:
    by_attribute = not isinstance(batch, Mapping | tuple | list) or hasattr(batch, "_fields")
    if isinstance(batch, Mapping) and isinstance(target, int) and target in batch:
        target = str(target)  # by which name entries are known
    place = Place((target,), by_attribute and isinstance(target, str))
    if isinstance(target, str):
        deeper = (p for p, _ in tensors(batch) if p.steps and p.steps[-1] == target)
        place = place if target in (feeding.fields(batch) or {}) else next(deeper, place)
    try:
        place.of(batch)
    except LookupError:
        named = feeding.fields(batch)
        has = f"the entries {', '.join(named)}" if named else type(batch).__name__
        if named is None and isinstance(batch, tuple | list):
            has = f"a {type(batch).__name__} of {len(batch)}"
        raise ValueError(
            f"target={target!r}: the batch has no such entry, it is {has}; {WAY_OUT}"
        ) from None
    return place


def _fitting(
    output: Any, labels: Tensor
) -> Iterator[tuple[Callable[[Any], Tensor], Tensor, Reading]]:
    for where, scores in predictions(output):
        scores = scores.detach()
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        for reading in readings(scores, labels.to(scores.device)):
            if not (isinstance(reading, ClassNumbers) and is_embedding(scores)):
                yield where, scores, reading


def predictions(output: Any) -> Iterator[tuple[Callable[[Any], Tensor], Tensor]]:
    """Give what may be predictions in an output: "logits" or "out", else each direct tensor."""
    if isinstance(output, Tensor):
        yield _itself, output
        return
    named = feeding.fields(output) or {}
    places = [Place((name,)) for name in ("logits", "out") if isinstance(named.get(name), Tensor)]
    if not places:
        items: list[Step] = list(named) or list(range(len(output)) if _is_sequence(output) else ())
        places = [Place((step,)) for step in items]
    for place in places:
        if isinstance(tensor := place.of(output), Tensor) and tensor.is_floating_point():
            yield place.of, tensor


def is_embedding(scores: Tensor) -> bool:
    """Whether all rows have length 1, as embeddings are made to and class scores never are."""
    if scores.dim() != 2 or scores.shape[1] < 2:
        return False
    lengths = torch.linalg.vector_norm(scores.detach().float(), dim=1)
    one_class = (scores.detach().abs().amax(1) > 0.999).all()
    return bool(((lengths - 1).abs() < 1e-3).all()) and not bool(one_class)


def _itself(output: Any) -> Tensor:
    return output  # type: ignore[no-any-return]


def _is_sequence(output: Any) -> bool:
    return isinstance(output, tuple | list)


def _is_named(place: Place) -> bool:
    return any(isinstance(step, str) and step.lower() in feeding.LABELS for step in place.steps)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _in_words(place: Place, tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{place} of shape {tuple(tensor.shape)}, {dtype}"


def _called(target: object) -> str:
    return repr(target) if isinstance(target, str | int) else getattr(target, "__name__", "…")
