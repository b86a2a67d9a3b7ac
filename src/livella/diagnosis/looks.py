"""What one batch shows besides: the effect of dropout, and the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella.diagnosis.measure import Data, Met, batch_pass
from livella.diagnosis.mixture import cut
from livella.diagnosis.scoring import Judge
from livella.model import feeding
from livella.model.randomness import random_kept
from livella.moments import Moments
from livella.study.probes import ratio


@contextmanager
def _dropping(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    modules = [model.get_submodule(name) for name in names]
    with random_kept():
        torch.manual_seed(0)
        for module in modules:
            module.training = True
        try:
            yield
        finally:
            for module in modules:
                module.training = False


def dropout_ratios(
    data: Data, batch: Any, layers: Mapping[str, _NormBase], names: Iterable[str]
) -> dict[str, float]:
    """The variance of each layer's input with dropout over that without, on one batch.

    Each layer normalizes by its batch both times, so that one shows the shift of the dropout before
    it and not that of the layers before (Li et al. 2019, "Understanding the Disharmony between
    Dropout and Batch Normalization by Variance Shift", section 3).
    """
    with_it, without = (_inputs(data, batch, layers, dropped) for dropped in (names, ()))
    return {name: ratio(with_it[name], without[name]) for name in without if name in with_it}


def _inputs(
    data: Data, batch: Any, layers: Mapping[str, _NormBase], dropped: Iterable[str]
) -> dict[str, Moments]:
    with batch_pass(data.model, layers) as reading, _dropping(data.model, dropped):
        data.output(reading, batch)
    return {site[0]: record.moments for site, record in reading.records.items()}


def gradients(data: Data, met: Met, layers: Mapping[str, _NormBase]) -> dict[str, float]:
    """Give the norm of the loss gradient at each layer's output, over the root of its size."""
    norms: dict[str, float] = {}
    judge = met.judge
    if not all(each.eps > 0 for each in layers.values()):
        return norms

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda g: norms.__setitem__(name, _size(g)))

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        with batch_pass(data.model, layers, wanted=()), torch.enable_grad():
            # No larger than a batch of training, whose gradients fit into memory.
            _backward(data, met.mixed[0] if met.whole else cut(met.mixed[0], met.usual)[0], judge)
    finally:
        for handle in handles:
            handle.remove()
    return norms


def _backward(data: Data, batch: Any, judge: Judge) -> None:
    batch = feeding.to_device(batch, feeding.device_of(data.model))
    loss = judge.loss_of(data.forward(data.model, batch), batch)
    trained = [p for p in data.model.parameters() if p.requires_grad]
    if loss is not None and loss.requires_grad and trained:
        torch.autograd.grad(loss, trained, allow_unused=True)


def _size(gradient: Tensor) -> float:
    norm = torch.linalg.vector_norm(gradient.double())
    return float(norm) / math.sqrt(max(1, gradient.numel()))
