"""What mends what was found: one table, each remedy with how safe it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from livella.diagnosis.records import Finding, Layer
from livella.model.adapt import adapt
from livella.model.feeding import Forward
from livella.model.freeze import freeze
from livella.model.modes import modes_kept
from livella.model.population import estimate_population


class Safety(str, Enum):
    """What a remedy may change."""

    EXACT = "exact"
    """The function in use is kept, up to rounding: settings of training, or a proven rewriting."""
    STATISTICS = "statistics"
    """Running statistics alone, which are measured."""
    CHANGING = "changing"
    """The function, by intent; it is asked for by name."""
    ADVICE = "advice"
    """Nothing is done; it says what to do."""


@dataclass(frozen=True)
class Means:
    """What remedies may use.

    Attributes:
        batches: of training, as `inspect` was given them.
        deploy: of the data met in use, if there are any.
        forward: how the model is called on a batch.
        progress: whether to show a bar.

    """

    batches: Iterable[Any]
    deploy: Iterable[Any] | None
    forward: Forward
    progress: bool | None


MEASURE = "measure_statistics"
"""The remedy that most of what is wrong with statistics needs."""
Act = Callable[[nn.Module, tuple[Layer, ...], Means], None]


@dataclass(frozen=True)
class Remedy:
    """One way to mend something.

    Attributes:
        safety: what it may change.
        advice: what to do, as one would tell a colleague.
        act: does it to a model, for these layers; none for advice.
        also: remedies that go with it, done once however many ask for them.

    """

    safety: Safety
    advice: str
    act: Act | None = None
    also: tuple[str, ...] = ()


def _module(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name) if name else model


def _measure(model: nn.Module, _layers: tuple[Layer, ...], means: Means) -> None:
    with modes_kept(model):
        model.eval()  # in training mode, a layer in eval() is taken for frozen
        estimate_population(
            model, means.batches, forward=means.forward, progress=means.progress
        ).apply()


@torch.no_grad()
def _keep_in_float32(model: nn.Module, layers: tuple[Layer, ...], _means: Means) -> None:
    for layer in layers:
        module = _module(model, layer.name)
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = tensor.data.float()


def _momentum(model: nn.Module, layers: tuple[Layer, ...], _means: Means) -> None:
    for layer in layers:
        module = _module(model, layer.name)
        assert isinstance(module, _NormBase)
        module.momentum = round(1 - layer.momentum, 12) if layer.momentum else 0.1


def _freeze(model: nn.Module, layers: tuple[Layer, ...], _means: Means) -> None:
    for layer in layers:
        module = _module(model, layer.name)
        module.train(model.training)
        freeze(model, [layer.name] if layer.name else None, affine=not layer.trains)


def _adapt(model: nn.Module, _layers: tuple[Layer, ...], means: Means) -> None:
    if means.deploy is not None:
        adapt(model, means.deploy, forward=means.forward, progress=means.progress)


REMEDIES: dict[str, Remedy] = {
    "keep_in_float32": Remedy(
        Safety.EXACT,
        "Keep its parameters and statistics in float32: norm.float(), or "
        'livella.set_update_policy(model, "guarded") before training.',
        _keep_in_float32,
    ),
    "measure_in_float32": Remedy(
        Safety.STATISTICS,
        "Keep its parameters and statistics in float32: norm.float(), or "
        'livella.set_update_policy(model, "guarded") before training; and measure them again.',
        _keep_in_float32,
        also=(MEASURE,),
    ),
    "momentum": Remedy(
        Safety.STATISTICS,
        "Set momentum to one minus it (0.01 for 0.99), and measure the statistics again.",
        _momentum,
        also=(MEASURE,),
    ),
    "no_momentum": Remedy(
        Safety.STATISTICS,
        "Set momentum to 0.1, torch's default, and measure the statistics again.",
        _momentum,
        also=(MEASURE,),
    ),
    MEASURE: Remedy(
        Safety.STATISTICS,
        "Measure them again: livella.estimate_population(model, loader).apply(), a few hundred "
        "samples of training data, no labels, no training.",
        _measure,
    ),
    "freeze": Remedy(
        Safety.EXACT,
        "livella.freeze(model, [layer]): it holds through model.train(), copies and checkpoints.",
        _freeze,
    ),
    "unfreeze": Remedy(
        Safety.ADVICE,
        "It is frozen: livella.unfreeze(model, [layer]), measure again, and freeze it again.",
    ),
    "adapt": Remedy(
        Safety.CHANGING,
        "Scale the input as in training; else livella.adapt(model, deployment_batches).",
        _adapt,
    ),
    "no_bias": Remedy(
        Safety.ADVICE, "Build the layer before it with bias=False when you next train."
    ),
    "domains": Remedy(
        Safety.ADVICE,
        "Give each of its uses a layer of its own, or named statistics: livella.add_domains(model, "
        '[…]) and with livella.domain(model, "…"): around each call.',
    ),
    "recurrent": Remedy(
        Safety.ADVICE, "Use livella.nn.BatchNormLSTM or GRU, which keep statistics by time step."
    ),
    "shuffle": Remedy(
        Safety.ADVICE,
        "Shuffle the training data. Where that cannot be, train with livella.nn.BatchRenorm or "
        'convert to group norm: livella.convert(model, "group", calibrate=loader).',
    ),
    "larger_batch": Remedy(
        Safety.ADVICE,
        "Train with larger batches, livella.accumulate or SyncBatchNorm; or with kinds that do "
        "not depend on it: MovingAverageBatchNorm, BatchRenorm, group norm (livella.convert).",
    ),
    "synchronize": Remedy(
        Safety.ADVICE,
        "livella.nn.SyncBatchNorm.convert(model) before DistributedDataParallel.",
    ),
    "track_statistics": Remedy(
        Safety.ADVICE,
        "Build it with track_running_stats=True and measure them: livella.estimate_population.",
    ),
    "more_values": Remedy(
        Safety.ADVICE,
        'Leave ragged batches out (drop_last=True), or build it with single_value="running".',
    ),
    "another_kind": Remedy(Safety.ADVICE, "Use another normalization there, or none."),
    "no_decay": Remedy(
        Safety.ADVICE, "Put γ and β into a parameter group of their own with weight_decay=0."
    ),
    "train_again": Remedy(
        Safety.ADVICE, "Go back to a checkpoint before the NaN; γ and β cannot be measured."
    ),
    "prune": Remedy(Safety.ADVICE, "Prune the channels, with what feeds and reads them."),
    "eps": Remedy(
        Safety.ADVICE,
        "Check ε against the framework the weights come from; it is part of what was trained.",
    ),
}
"""By id, in the order in which they are applied."""


def wanted(findings: Iterable[Finding], changing: bool) -> dict[str, list[str]]:
    """Give the remedies to apply, in order, with the layers that each is for."""
    allowed = {Safety.EXACT, Safety.STATISTICS} | ({Safety.CHANGING} if changing else set())
    found: dict[str, list[str]] = {}
    for finding in findings:
        remedy = REMEDIES.get(finding.remedy)
        if remedy is None or remedy.act is None or remedy.safety not in allowed:
            continue
        for name in (finding.remedy, *remedy.also):
            found.setdefault(name, []).append(finding.layer)
    return {name: found[name] for name in REMEDIES if name in found}
