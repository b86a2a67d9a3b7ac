"""How the model does by which statistics: the gap that the verdict rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from livella.diagnosis.measure import GONE, Data, Met, batch_norms, by_itself, output_by
from livella.diagnosis.records import Gap
from livella.diagnosis.scores import Judged, Scores, judged

ALL = 1024
"""Examples up to which the model is tried on all batches, and on half of them beyond."""


def measured(data: Data, met: Met) -> Gap | None:
    """Try the model by its running statistics, those of the data, and each batch's own.

    On half of the batches, drawn at random, as they come; on all where examples are few.
    """
    if not met.estimates:
        return None
    scores, own, chosen = Scores(met.judge), list[Judged](), _drawn(met.sizes)
    population, layers = met.population, batch_norms(data.model)
    with data.bar(len(chosen)) as bar:
        bar.begin("by statistics")
        for number, batch in enumerate(data):
            if number not in chosen:
                continue
            good = output_by(data, batch, population)
            scores.add(batch, output_by(data, batch, {}), good, good)
            if met.own:
                own.append(met.own[number])
            else:
                own.append(judged(met.judge, by_itself(data, layers, batch), batch, good))
            bar.advance()
    if not own:
        raise ValueError(GONE)
    found = scores.gap(own)
    if found.counted or found.lost <= found.error:
        return found
    # Halves are from each other twice as far as the whole is from the truth: √(1/½ + 1/½) = 2.
    return dataclasses.replace(found, error=found.error + 0.5 * _chance(data, met))


def _drawn(sizes: Sequence[int]) -> set[int]:
    """Choose the batches to score: all, or a half that no order of the data can favour."""
    count = len(sizes)
    if sum(sizes) <= ALL:
        return set(range(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return set(order[: -(-count // 2)].tolist())


def _chance(data: Data, met: Met) -> float:
    """How far outputs by the statistics of two halves of the data are apart.

    So far, labels aside, are those by any statistics of so few examples.
    """
    one, other = (output_by(data, met.sample, half) for half in met.halves)
    return 1 - float(met.judge.merit(one, met.sample, other).mean())
