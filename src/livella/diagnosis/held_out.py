"""What statistics measured on a part of the data bring on the rest, which they have not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch.nn.modules.batchnorm import _NormBase

from livella.diagnosis import mixture
from livella.diagnosis.measure import (
    Data,
    JudgeOf,
    Means,
    batch_norms,
    can_be_mixed,
    means_of,
    of_mixture,
    of_rounds,
    output_by,
)
from livella.diagnosis.mixture import Mixture
from livella.diagnosis.records import Gap
from livella.diagnosis.scores import Scores
from livella.model import feeding
from livella.model.freeze import is_frozen

PARTS = 4
"""One of so many parts is held out."""


def gap(data: Data, judge_of: JudgeOf) -> Gap:
    """Measure statistics on three quarters of the data, and try them on the last one.

    Examples are parted, or batches where these cannot be taken apart. Without labels, the outputs
    to be trusted are those by the statistics of the part held out.
    """
    layers = batch_norms(data.model)
    mixed, held = _mixed(data, layers), data.batches
    if mixed:
        quarters = [mixture.cut(batch, _quarter(batch)) for batch in mixed]
        held = [parts[0] for parts in quarters]
        seen = [part for parts in quarters for part in parts[1:]] or held
        found, right = (of_mixture(data, layers, part)[0] for part in (seen, held))
    else:
        held_data = dataclasses.replace(data, batches=_Part(data.batches, held=True))
        seen_data = dataclasses.replace(data, batches=_Part(data.batches, held=False))
        found, right = of_rounds(seen_data, layers), of_rounds(held_data, layers)
        held = held_data.batches
    free = {name: means for name, means in means_of(found).items() if not is_frozen(layers[name])}
    return _tried(data, judge_of, held, free, means_of(right))


def _tried(
    data: Data,
    judge_of: JudgeOf,
    held: Iterable[Any],
    found: Means,
    right: Means,
) -> Gap:
    scores: Scores | None = None
    for batch in feeding.on_device(data.model, held):
        beside = output_by(data, batch, right)
        scores = scores or Scores(judge_of(beside, batch))
        scores.add(batch, output_by(data, batch, {}), output_by(data, batch, found), beside)
    assert scores is not None, "there is a part to hold out where there are data"
    return scores.gap()


def _mixed(data: Data, layers: Mapping[str, _NormBase]) -> list[Any]:
    if not can_be_mixed(data, layers):
        return []
    shown = Mixture()
    for batch in data:
        shown.show(batch)
    return shown.batches()


def _quarter(batch: Any) -> int:
    return -(-feeding.samples_in(batch) // PARTS)


class _Part:
    """Every fourth batch, or the others; all of them where there are fewer than two."""

    def __init__(self, batches: Iterable[Any], *, held: bool) -> None:
        self._batches, self._held = batches, held
        self._few = len(list(islice(batches, 2))) < 2

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._batches):
            if self._few or (number % PARTS == 0) is self._held:
                yield batch
