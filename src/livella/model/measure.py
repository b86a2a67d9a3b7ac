"""The pass that measures: a model in inference mode, its batch norms watched and told what to use.

The model's own tensors are never written. Mode and buffers are set aside for the pass and put back
whatever happens; a layer meets other statistics by having other tensors in the buffers' place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from livella.functional import contributions
from livella.model import sites
from livella.model.domains import pinned
from livella.model.levels import Site
from livella.model.scatter import Scatter
from livella.moments import Moments

Statistics = tuple[Tensor | None, Tensor | None]
"""Mean and variance to normalize by; none for those of the batch itself."""


TOGETHER = 64
"""Batches whose contributions are merged at a time."""


class Enough(BaseException):
    """Ends a forward pass from which nothing more is wanted; no `except Exception` stops it."""


@dataclass
class Record:
    """What one call of a layer was given, over all batches so far.

    What a batch contributes is merged with some others at a time, by `settle`.
    """

    moments: Moments
    scatter: Scatter | None = None
    centre: Tensor | None = None
    parts: list[Tensor] = field(default_factory=list)
    """Of batches not merged yet, as `livella.functional.contributions` gives them."""
    samples: list[int] = field(default_factory=list)

    def add(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Take in the input of one more call; gives what it contributes."""
        if self.centre is None:
            self.centre = contributions(x, Moments.empty(x.shape[1], x.device).mean, mask)[1]
        part = contributions(x, self.centre, mask)
        self.parts.append(part)
        self.samples.append(len(x))
        if len(self.parts) >= TOGETHER:
            self.settle()
        return part

    def settle(self) -> Record:
        """Merge all that was taken in."""
        if self.centre is None or not self.parts:
            return self
        parts = torch.stack(self.parts)
        scatter = Scatter.of(parts, self.samples, self.centre)
        self.moments = self.moments.merge(_merged(parts))
        self.scatter = scatter if self.scatter is None else self.scatter.merge(scatter)
        self.parts, self.samples = [], []
        return self

    def cpu(self) -> Record:
        """Give the same on the CPU, where processes exchange it."""
        count = self.moments.count
        moments = Moments(
            count.cpu() if isinstance(count, Tensor) else count,
            self.moments.mean.cpu(),
            self.moments.m2.cpu(),
        )
        return Record(moments, None if self.scatter is None else self.scatter.cpu())

    def merge(self, other: Record) -> Record:
        """Give what both saw together."""
        scatter = self.scatter or other.scatter
        if self.scatter is not None and other.scatter is not None:
            scatter = self.scatter.merge(other.scatter)
        return Record(self.moments.merge(other.moments), scatter)


@dataclass
class Pass:
    """A context in which the model may be called; what was seen is in `records`.

    Args:
        model: any module.
        layers: the batch norms to watch, by name.
        statistics: what a layer is to normalize by in a call; asked after the call was measured.
        wanted: the calls to measure; none for all.
        enough: whether a forward pass that made these calls so far has nothing more to give.
        centres: values near the mean of a layer's input, by name, where they are known; (C,),
            float64. Otherwise the first batch is looked at twice.

    """

    model: nn.Module
    layers: Mapping[str, nn.Module]
    statistics: Callable[[Site, int], Statistics]
    wanted: Collection[Site] | None = None
    enough: Callable[[tuple[Site, ...]], bool] = lambda _calls: False
    centres: Mapping[str, Tensor] = field(default_factory=dict)
    records: dict[Site, Record] = field(default_factory=dict)
    calls: tuple[Site, ...] = ()
    """Those of the forward pass at hand, in order."""
    met: Tensor | None = None
    """What the call at hand contributes, if it was measured."""
    originals: dict[str, Statistics] = field(default_factory=dict)
    """The layers' own statistics, while others stand in their place."""
    paused: bool = False
    """Whether the model is called for another reason, and nothing is to be measured."""

    def __enter__(self) -> Pass:
        self.originals = {
            name: (layer._buffers.get("running_mean"), layer._buffers.get("running_var"))
            for name, layer in self.layers.items()
        }
        self._cleanup = ExitStack()
        with ExitStack() as cleanup:
            cleanup.callback(self._give_back, self._set_aside())
            cleanup.enter_context(pinned(self.layers.values(), "while statistics are measured"))
            for module in self.model.modules():
                module.training = False
            for name, layer in self.layers.items():
                hook = layer.register_forward_pre_hook(self._hook(name), with_kwargs=True)
                cleanup.callback(hook.remove)
            cleanup.enter_context(torch.no_grad())
            # A compiled part would not know of the hooks.
            cleanup.enter_context(torch.compiler.set_stance("force_eager"))
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *reason: object) -> None:
        self._cleanup.close()
        for record in self.records.values():
            record.settle()

    def run(self, forward: Callable[[], object]) -> None:
        """Call the model once."""
        self.calls = ()
        with suppress(Enough):
            forward()

    def _set_aside(self) -> list[tuple[nn.Module, dict[str, Any]]]:
        modes = [(module, {"training": module.training}) for module in self.model.modules()]
        switches = [
            (layer, {"_buffers": dict(layer._buffers), **_switch(layer)})
            for layer in self.layers.values()
        ]
        for layer, switch in switches:
            if "_switches" in switch:
                vars(layer)["_switches"] = None
        return modes + switches

    def _give_back(self, before: list[tuple[nn.Module, dict[str, Any]]]) -> None:
        for module, state in before:
            for name, value in state.items():
                if name == "_buffers":
                    module._buffers.update(value)
                else:
                    vars(module)[name] = value

    def _hook(self, name: str) -> Callable[..., None]:
        features = sites.channels(self.layers[name])

        @sites.looks_on
        def look(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self.paused:
                return
            site = (name, sum(other == name for other, _ in self.calls))
            self.calls = (*self.calls, site)
            x: Tensor = args[0] if args else named["input"]
            mask = named.get("mask")
            sites.check_channels(name, layer, x, features)
            if self.wanted is None or site in self.wanted:
                self._record(site, layer, x, mask)
                if self.enough(self.calls):
                    raise Enough
            values = math.prod(x.shape[:1] + x.shape[2:]) if mask is None else int(mask.sum())
            mean, variance = self.statistics(site, values)
            layer._buffers["running_mean"], layer._buffers["running_var"] = mean, variance

        return look

    def _record(self, site: Site, layer: nn.Module, x: Tensor, mask: Tensor | None) -> None:
        self.met = None
        if not len(x):
            return
        if site not in self.records:
            empty = Moments.empty(x.shape[1], x.device)
            self.records[site] = Record(empty, centre=self.centres.get(site[0]))
        self.met = self.records[site].add(x, mask)
        if not math.isfinite(float(self.met[1:3].sum())):
            raise ValueError(
                f"layer {site[0]!r} ({type(layer).__name__}) met NaN or infinity in its input; "
                "look at this batch, and at the layers before"
            )


def unasked(_site: Site, _values: int) -> Statistics:
    """Stand for the statistics where no layer is watched."""
    raise AssertionError("no layer is watched")


def _merged(parts: Tensor) -> Moments:
    """The moments of all parts together: M₂ = Σ M₂ᵢ + Σ kᵢ(mᵢ − μ)²."""
    count, means, m2 = parts[:, 0], parts[:, 1], parts[:, 2]
    total = count.sum(0)
    mean = (count * means).sum(0) / total.clamp(min=1)
    return Moments(total[0], mean, m2.sum(0) + (count * (means - mean).square()).sum(0))


def _switch(layer: nn.Module) -> dict[str, Any]:
    """The switches of a Livella layer, where one was moved."""
    return {name: value for name, value in vars(layer).items() if name == "_switches"}
