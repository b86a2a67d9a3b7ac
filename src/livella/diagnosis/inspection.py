"""What is wrong with the normalization of a model, and which layer is to blame."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from livella import provenance
from livella.diagnosis import accepted, attribute, facts, gap, looks, measure, numbers
from livella.diagnosis.checks import CHECKS, findings_of
from livella.diagnosis.measure import Data, JudgeOf, Met
from livella.diagnosis.records import Advice, Layer, Record, Seen
from livella.diagnosis.remedies import REMEDIES
from livella.diagnosis.scoring import AUTO, Auto, Judge, Loss, Target
from livella.model import feeding, given
from livella.model.estimate import LayerEstimate
from livella.model.feeding import Forward
from livella.model.randomness import random_kept
from livella.report import files, inspection_html, inspection_text, sarif


@dataclasses.dataclass(frozen=True)
class Inspection(Record):
    """An inspection: what was seen, and what was found; `print` it."""

    @property
    def measurements(self) -> tuple[Layer, ...]:
        """Every layer with its figures, in the order of the calls."""
        return self.seen.layers

    def to_json(self) -> str:
        """Give all of it as JSON; numbers that are not finite are null."""
        return files.record(self.to_dict())

    def to_html(self) -> str:
        """Give a page that needs nothing else."""
        return inspection_html.render(self)

    def to_sarif(self, file: str = "") -> str:
        """Give the findings as SARIF 2.1.0, for code hosts; `file` is where the model is."""
        return sarif.render(self, file)

    def __str__(self) -> str:
        """Say what matters most first, then all layers in a table."""
        return inspection_text.plain(self)


def inspect(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    deploy: Iterable[Any] | None = None,
    loss: Loss | None = None,
    target: Target | Auto = AUTO,
    optimizer: torch.optim.Optimizer | None = None,
    forward: Forward | None = None,
    ignore: Sequence[str] = (),
    progress: bool | None = None,
) -> Inspection:
    """Look at every normalization of a model, say what is wrong with it and what it costs.

    Without batches, what is stored is read: values, settings, precision. With batches, how the
    model does is measured: by its running statistics, by those of the data, and by each batch's
    own. The verdict rests on that gap. Statistics of the data are measured on up to 2048 examples
    drawn evenly from all batches and mixed anew, so that neither their order nor their size
    matters. The gap is then shared out among the layers whose statistics differ, by their Shapley
    values: what mending each brings, averaged over all orders of mending them. The checks say what
    is wrong and why: see `livella.diagnosis.checks`.

    The score of an example is between 0 and 1: the share right, where there are labels (class
    numbers, one-hot, soft and multi-label rows, pixels), or v/(v + error²) for numbers of variance
    v; without labels, the agreement of the outputs with those by the statistics of the data.

    It takes about five evaluation passes over the batches. Where statistics are off, attribution
    takes up to three more beyond 16 layers, and up to 200 over the number of layers in a shallower
    network (of 1024 examples, where there are fewer), whose passes cost little. Memory grows
    by a few numbers a batch. The model is left bit for bit as it was, whatever happens:
    mode, statistics, counters, random state. It runs in evaluation mode but for two batches with
    dropout, if it has any.

    Args:
        model: any module; the one inside `DistributedDataParallel` or `torch.compile` is used.
        batches: those that training takes, of any form that `estimate_population` takes, in a form
            that can be read more than once; their size is part of what is judged.
        deploy: batches of the data met in use, likewise, to compare with those of training.
        loss: loss(output, batch), a scalar, the mean over the batch, which is told beside the
            score. Default: cross-entropy, binary cross-entropy or mean square, as labels are.
        target: where the labels of a batch are: a key, an index, a function of the batch, or none
            for no labels. Default: found by names such as "label", by place, shape and values; the
            report tells what was used.
        optimizer: to look for weight decay on γ and β.
        forward: called as forward(model, batch) instead of the model.
        ignore: findings that are accepted, as "check" or "check@layer", where * stands for any
            part of a layer's name. They are counted as ignored, and count for nothing.
        progress: show a bar. Default: if standard error is a terminal.

    Returns:
        The inspection: `.findings`, the worst first, `.measurements` by layer, `.to_html()`,
        `.to_json()`, `.to_sarif()`; `print` it.

    Raises:
        ValueError: no normalization over channels, no batches, NaN or infinity in a layer's input.
        TypeError: batches that can be read only once, or of no known form.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99))
        >>> [finding.check for finding in inspect(model).findings]
        ['never_updated', 'momentum']

    """
    given.check_model(model, "inspect", runs=True)
    given.check_optimizer(model, optimizer, "inspect")
    _check(batches, deploy)
    accepted.check_names(ignore)
    model = feeding.unwrap(model)
    layers = facts.layers_of(model, optimizer)
    if not layers:
        raise ValueError(
            f"inspect: expected a model with normalizations over channels, got a "
            f"{type(model).__name__} with none"
        )
    seen = Seen(
        model=type(model).__name__,
        layers=layers,
        training=model.training,
        processes=facts.processes(),
        unequal=facts.unequal(model),
        dropout=facts.active_dropout(model),
    )
    if batches is not None:
        data = Data(model, batches, forward or feeding.feed, progress)
        judge_of = functools.partial(Judge.of, loss=loss, target=target, model=model)
        with random_kept(), _broken_told(layers):  # loaders draw, and so may a model
            seen = _with_data(seen, data, judge_of)
            if deploy is not None:
                seen = _with_deployment(seen, dataclasses.replace(data, batches=deploy))
    findings, ignored = accepted.sort_out(findings_of(seen), ignore)
    return Inspection(
        seen,
        findings,
        checks={check.__name__: check.__doc__ or "" for check in CHECKS},
        remedies={f.remedy: _advice(f.remedy) for f in (*findings, *ignored) if f.remedy},
        provenance=provenance.of_run(torch.get_num_threads()),
        ignored=ignored,
    )


@contextmanager
def _broken_told(layers: Sequence[Layer]) -> Iterator[None]:
    """Name the layers whose γ or β make NaN of what the next ones meet."""
    try:
        yield
    except ValueError as error:
        broken = [
            repr(layer.name)
            for layer in layers
            if not all(map(math.isfinite, (*(layer.weight or ()), *(layer.bias or ()))))
        ]
        if not broken:
            raise
        raise ValueError(
            f"{error}; γ or β of {', '.join(broken)} hold NaN or infinity, which can only be "
            "trained again; inspect the model without data for the rest"
        ) from error


def _check(batches: Iterable[Any] | None, deploy: Iterable[Any] | None) -> None:
    for name, value in (("batches", batches), ("deploy", deploy)):
        if isinstance(value, Iterator):
            raise TypeError(
                f"inspect: got an iterator as {name}, which can be read once, where it is read "
                "several times; pass a loader or a list"
            )
    if deploy is not None and batches is None:
        raise ValueError("inspect: deployment data are compared with those of training; pass both")


def _advice(remedy: str) -> Advice:
    return Advice(REMEDIES[remedy].safety.value, REMEDIES[remedy].advice)


def _with_data(seen: Seen, data: Data, judge_of: JudgeOf) -> Seen:
    norms = measure.batch_norms(data.model)
    met = measure.meet(data, norms, judge_of, "what layers meet")
    found = gap.measured(data, met)
    shares = {}
    if found is not None and found.lost > found.error:
        shares = attribute.shares(data, met, attribute.suspects(met))
    layers = [numbers.told(layer, met, data.model) for layer in seen.layers]
    order = list(met.callers.calls)
    layers.sort(key=lambda each: order.index(each.name) if each.name in order else len(order))
    looked = _looked_at(data, met, norms, seen.dropout)
    return dataclasses.replace(
        seen,
        layers=tuple(_with_share(_with_looks(layer, looked), shares) for layer in layers),
        samples=sum(met.sizes),
        batch=met.usual,
        unreached=tuple(name for name in norms if name not in met.estimates),
        gap=found,
    )


Looks = tuple[dict[str, float], dict[str, float]]
"""By layer: the variance with dropout over that without, and the size of the gradient."""


def _looked_at(
    data: Data, met: Met, norms: dict[str, _NormBase], dropout: tuple[str, ...]
) -> Looks:
    ratios = looks.dropout_ratios(data, met.mixed[0], norms, dropout) if dropout else {}
    return ratios, looks.gradients(data, met, norms)


def _with_looks(layer: Layer, looked: Looks) -> Layer:
    if layer.measured is None:
        return layer
    dropout, gradient = (each.get(layer.name) for each in looked)
    more = dataclasses.replace(layer.measured, dropout=dropout, gradient=gradient)
    return dataclasses.replace(layer, measured=more)


def _with_share(layer: Layer, shares: dict[str, attribute.Share]) -> Layer:
    """Add its share: none where there is no gap to share out, nothing where it is right."""
    if not shares or layer.measured is None:
        return layer
    share = shares.get(layer.name, attribute.Share(0.0, 0.0))
    return dataclasses.replace(layer, share=share.of_gap, share_error=share.error)


def _with_deployment(seen: Seen, data: Data) -> Seen:
    no_labels = functools.partial(Judge.of, target=None)
    met = measure.meet(data, measure.batch_norms(data.model), no_labels, "deployment")
    layers = [_against(layer, met.estimates.get(layer.name)) for layer in seen.layers]
    return dataclasses.replace(seen, layers=tuple(layers), deployed=sum(met.sizes))


def _against(layer: Layer, deployed: LayerEstimate | None) -> Layer:
    """How far the deployment data are from those of training, in σ of training."""
    if layer.measured is None or deployed is None:
        return layer
    shifted = numbers.between(layer.measured, deployed.moments, layer.eps)
    return dataclasses.replace(layer, shifted=shifted)
