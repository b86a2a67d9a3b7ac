"""The statistics of the whole training set for every batch norm of a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from livella.model import feeding, given, measurable
from livella.model.estimate import LayerEstimate, PopulationEstimate
from livella.model.feeding import Forward
from livella.model.passes import Estimator

METHODS = ("sequential", "single_pass")


def estimate_population(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: str = "sequential",
    forward: Forward | None = None,
    samples: int | None = None,
    tolerance: float | None = None,
    include_frozen: bool = False,
    group: dist.ProcessGroup | None = None,
    progress: bool | None = None,
) -> PopulationEstimate:
    """Measure the statistics of the training set for every batch norm, torch's and Livella's.

    With all values x of a channel at a layer's input, over all samples and positions: μ = Σx/n and
    σ² = Σ(x − μ)²/(n − 1), however the data are cut into batches. Each batch counts with its
    values, and what lies between the batches is part of the variance, so data in any order and a
    ragged last batch, even of one sample, give the exact answer. Ioffe & Szegedy 2015, Algorithm 2,
    lines 8 to 12, want this; Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3, show
    what a moving average loses. What the layers before a layer do meanwhile:

    - "sequential": they are in inference mode, with their own population statistics, as in use.
      Exact, and independent of the batches. Layers that do not depend on each other are measured
      together, so the data are read once for each level of dependent layers, each time only up to
      that level.
    - "single_pass": they normalize by the mini-batch, with frozen weights (PreciseBN, Wu & Johnson
      2021, section 3.1). One pass; depends on the batches, a little if they are large and mixed. A
      batch of one value a channel is normalized by what was measured so far.

    Only the statistics of batch norms are measured. Dropout is off, frozen layers stay as they are.
    A layer called several times gets the pooled statistics of all calls, and a warning if they
    differ; where its calls depend on each other each is measured with the earlier ones normalized
    by their own. The model is left as it was, whatever happens: see `PopulationEstimate.apply`.

    For averaged weights (EMA, SWA) pass the averaged model, `AveragedModel` for one.

    Args:
        model: any module; the one inside `DistributedDataParallel` or `torch.compile` is used.
        batches: a loader or a list, read several times unless `method` is "single_pass": tensors,
            tuples, dicts or dataclasses. Labels are left out.
        method: "sequential" (default) or "single_pass".
        forward: called as forward(model, batch) in place of all that, for other batches.
        samples: stop after as many samples, at the end of a batch; over all processes.
            Default: all.
        tolerance: stop when the 95 % interval of every layer's μ and σ reaches no further than
            this share of σ (root mean square over its channels). Data must come in random order:
            otherwise the intervals widen as the batches differ, and an order that the part read
            does not show cannot be known. An interval takes the statistics of the layers before
            as given. Default: all samples.
        include_frozen: measure frozen layers too. Default: false.
        group: processes that read different parts of the data, as many batches as they like, none
            too; all get the same result. Default: all, if `torch.distributed` is initialized.
        progress: show a bar. Default: if standard error is a terminal, in the first process.

    Returns:
        The estimate: `.layers[name]` with mean, variance, their 95 % intervals and the moments of
        each call; `.apply()` writes it into the model and `.revert()` takes it back.

    Raises:
        ValueError: no batch norm to measure, weights on the meta device, no batches, fewer than
            two values a channel, NaN or infinity in a layer's input, or an option out of its range;
            layers are named.
        TypeError: no module, or a scripted one; a batch of no known form, an iterator where
            several passes are needed.
        RuntimeError: another process failed.

    Warns:
        UserWarning: a layer whose calls differ, layers that the data did not reach, data whose
            order makes the intervals wider.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> loader = [(torch.randn(n, 4), torch.zeros(n)) for n in (32, 32, 1)]
        >>> _ = estimate_population(model, loader).apply()

    """
    given.check_model(model, "estimate_population", runs=True)
    _check(batches, method, samples, tolerance)
    model = feeding.unwrap(model)
    layers, left = measurable.choose(model, include_frozen, "estimate_population")
    estimator = Estimator(
        model,
        layers,
        batches,
        forward or feeding.feed,
        samples,
        tolerance,
        group,
        progress,
        settle=_of_population,
        caller="estimate_population",
    )
    measured = estimator.sequential() if method == "sequential" else estimator.single_pass()
    left |= {name: "no batch reached it" for name in layers if name not in measured}
    estimate = PopulationEstimate(measured, left, method, estimator.passes)
    _warn(estimate, early=samples is not None or tolerance is not None)
    return estimate


def update_bn(
    loader: Iterable[Any],
    model: nn.Module,
    device: Any = None,  # noqa: ARG001
) -> None:
    """Take the place of `torch.optim.swa_utils.update_bn`, with its signature: estimate and apply.

    Leaves mode, momentum, counters and frozen layers as they are; without a batch norm to measure
    it does nothing. What can be read only once is measured in a single pass. `device` has no use:
    batches are moved to where the model lies.
    """
    given.check_model(model, "update_bn", runs=True)
    if measurable.sorted_out(feeding.unwrap(model), include_frozen=False)[0]:
        method = "single_pass" if isinstance(loader, Iterator) else "sequential"
        estimate_population(model, loader, method=method).apply()


def _check(
    batches: Iterable[Any], method: str, samples: int | None, tolerance: float | None
) -> None:
    if method not in METHODS:
        raise ValueError(f"estimate_population: expected method of {METHODS}, got {method!r}")
    if samples is not None and samples < 1:
        raise ValueError(f"estimate_population: expected samples of one or more, got {samples}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(
            f"estimate_population: expected a tolerance above zero, got {tolerance}; "
            "0.05 asks for μ and σ to 5 % of σ"
        )
    if method == "sequential" and isinstance(batches, Iterator):
        raise TypeError(
            "estimate_population: got an iterator, which can be read once, where each level of "
            'layers reads the data; pass a loader or a list, or method="single_pass"'
        )


def _of_population(estimate: LayerEstimate) -> tuple[Tensor, Tensor]:
    """Give mean and unbiased variance of all that a layer was given."""
    if int(torch.as_tensor(estimate.moments.count).min()) < 2:
        raise ValueError(
            f"layer {estimate.name!r} met fewer than two values a channel in all, whose variance "
            "is undefined; pass more data"
        )
    return estimate.mean, estimate.variance


def _warn(estimate: PopulationEstimate, early: bool) -> None:
    differ = [e.name for e in estimate if e.calls_differ]
    if differ:
        warnings.warn(
            f"calls of one layer see different data: {', '.join(differ)}; one set of statistics "
            "fits none of them well (see .layers[name].calls), give each call its own layer",
            stacklevel=3,
        )
    unreached = [name for name, why in estimate.left.items() if why.startswith("no batch")]
    if unreached:
        warnings.warn(
            f"no batch reached {', '.join(unreached)}: they keep their running statistics",
            stacklevel=3,
        )
    ordered = [e.name for e in estimate if e.ordered] if early else []
    if ordered:
        warnings.warn(
            f"batches differ more than chance allows (first in {ordered[0]}): the data seem to be "
            "in an order, and a part of them does not stand for the whole; shuffle them",
            stacklevel=3,
        )
