"""Fitting γ and β of converted layers on data, so that the network's function changes least."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from livella.model import feeding, kinds
from livella.model.conversion import Conversion
from livella.model.feeding import Forward
from livella.model.joint import Joint
from livella.model.kept import Kept
from livella.model.levels import Dependencies, levels, observe
from livella.model.measure import Enough, Pass, unasked
from livella.model.progress import Bar, length_of
from livella.model.states import LayerConversion
from livella.moments import Moments

Seen = dict[str, list[Tensor]]
"""What each call of a layer made of its input, in one pass."""
Look = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None]


@dataclass(eq=False)
class Calibration:
    """A converted model, and the batches to fit it on."""

    conversion: Conversion
    batches: Iterable[Any]
    forward: Forward
    progress: bool | None
    calls: dict[str, int] = field(default_factory=dict)
    """How often a pass calls each layer."""

    @property
    def layers(self) -> Mapping[str, LayerConversion]:
        return self.conversion.layers

    def run(self) -> None:
        """Fit layer by layer, in the order of the calls; what that makes worse is taken back."""
        lacking = {n for n, e in self.layers.items() if e.lacks_statistics or e.trained_since}
        order = self._order()
        before = self._change()
        carried = Kept.of(t for each in self.layers.values() for t in each.after.tensors())
        total = length_of(self.batches)
        with Bar("convert", self.progress, total) as bar:
            for number, names in enumerate(order, 1):
                bar.begin(f"level {number} of {len(order)}")
                self._settle([name for name in names if name in lacking])
                self._fit(names, bar)
        after = self._change()
        if not after <= before and not lacking:
            carried.put_back()
            after = before
        self.conversion.change = (before, after)

    def _order(self) -> list[list[str]]:
        """The layers that the first batch reaches: those that depend on none, then on those."""
        batch = feeding.to_device(first_of(self.batches), feeding.device_of(self._model))
        known = [*self._model.parameters(), *self._model.buffers(), *feeding.tensors_in(batch)]
        layers = {name: each.layer for name, each in self.layers.items()}
        seen: list[Dependencies] = []
        with self.conversion.formerly():
            self._run(
                lambda: seen.append(
                    observe(lambda: self.forward(self._model, batch), layers, known)
                )
            )
        found = levels(seen[0])
        for name, _ in found:
            self.calls[name] = self.calls.get(name, 0) + 1
        first = {name: level for (name, call), level in found.items() if call == 0}
        return [
            [name for name, level in first.items() if level == wanted]
            for wanted in sorted(set(first.values()))
        ]

    # One level of layers

    def _settle(self, names: list[str]) -> None:
        """Measure what these layers are given, where they keep statistics and have none yet."""
        met: dict[str, Moments] = {}

        def look(name: str, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = _input(args, named)
            moments = Moments.of(x.double(), mask=named.get("mask"))
            _check(name, layer, moments.mean, moments.m2)
            met[name] = met[name].merge(moments) if name in met else moments

        for batch in self._on_device() if names else ():
            self._until(names, batch, look)
        for name, moments in met.items():
            kinds.take_statistics(self.layers[name].layer, moments)

    def _fit(self, names: list[str], bar: Bar) -> None:
        pairs: dict[str, Joint] = {}
        for batch in self._on_device():
            with self.conversion.formerly():
                wanted = self._outputs(names, batch, bare=False)
            found = self._outputs(names, batch, bare=True)
            for name in found:
                for x, y in zip(found[name], wanted.get(name, ()), strict=False):
                    pair = Joint.of(x, y)
                    _check(name, self.layers[name].layer, pair.means, pair.products)
                    pairs[name] = pairs[name].merge(pair) if name in pairs else pair
            bar.advance()
        for name, pair in pairs.items():
            self.layers[name].unexplained = _fit_line(self.layers[name].layer, pair)

    def _outputs(self, names: list[str], batch: Any, bare: bool) -> Seen:
        """What layers make of their input, without activation, and bare of γ and β if asked."""
        seen: Seen = {}

        def look(name: str, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.setdefault(name, []).append(_normalized(layer, args, named, bare))

        self._until(names, batch, look)
        return seen

    def _until(self, names: list[str], batch: Any, look: Look) -> None:
        """Call the model until each of these layers was called as often as it is."""
        left = {name: self.calls[name] for name in names}
        inside = [False]

        def hook(name: str) -> Callable[..., None]:
            def before(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
                if inside[0]:  # the layer is called by the look itself
                    return
                inside[0] = True
                try:
                    look(name, layer, args, named)
                finally:
                    inside[0] = False
                left[name] -= 1
                if all(more <= 0 for more in left.values()):
                    raise Enough

            return before

        with ExitStack() as cleanup:
            for name in names:
                layer = self.layers[name].layer
                handle = layer.register_forward_pre_hook(hook(name), with_kwargs=True)
                cleanup.callback(handle.remove)
            self._run(lambda: self.forward(self._model, batch))

    # The whole model

    def _change(self) -> float:
        """Σ‖y − y_former‖² over the outputs, as a share of their variance."""
        squares, spread, samples = 0.0, 0.0, 0
        whole: list[Moments] = []
        for batch in self._on_device():
            samples += feeding.samples_in(batch)
            with self.conversion.formerly():
                wanted = self._answers(batch)
            found = self._answers(batch)
            squares += sum(
                float((y.double() - z.double()).square().sum())
                for y, z in zip(found, wanted, strict=True)
            )
            moments = [
                Moments.of(z.double() if z.dim() > 1 else z.double()[:, None]) for z in wanted
            ]
            if any(len(a.mean) != len(b.mean) for a, b in zip(whole, moments, strict=False)):
                spread += sum(float(each.m2.sum()) for each in whole)  # lengths that vary
                whole = []
            whole = [a.merge(b) for a, b in zip(whole, moments, strict=True)] if whole else moments
        if not samples:
            raise ValueError(
                "convert: got no samples to calibrate on, or batches that can be read only once; "
                "pass a loader or a list that yields some each time"
            )
        spread += sum(float(each.m2.sum()) for each in whole)
        return squares / spread if spread > 0 else squares

    def _answers(self, batch: Any) -> list[Tensor]:
        outputs: list[Tensor] = []
        self._run(lambda: outputs.extend(feeding.tensors_in(self.forward(self._model, batch))))
        return [y for y in outputs if y.is_floating_point() and y.dim()]

    @property
    def _model(self) -> nn.Module:
        return self.conversion.model

    def _run(self, call: Callable[[], object]) -> None:
        with Pass(self._model, {}, unasked) as reading:
            reading.run(call)

    def _on_device(self) -> Iterator[Any]:
        return feeding.on_device(self._model, self.batches)


def first_of(batches: Iterable[Any]) -> Any:
    """Give the first batch.

    Raises:
        ValueError: there is none.

    """
    for batch in batches:
        return batch
    raise ValueError("convert: got no batches to calibrate on; pass a loader that yields some")


def _input(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    x = args[0] if args else named["input"]
    assert isinstance(x, Tensor), "a normalization is given a tensor"
    return x


def _normalized(
    layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], bare: bool
) -> Tensor:
    """Call a layer without its activation and residual, and with γ = 1 and β = 0 if bare."""
    named = {name: value for name, value in named.items() if name != "residual"}
    plain = {"weight": 1.0, "bias": 0.0}
    instead = {
        name: torch.full_like(parameter, plain[name])
        for name, parameter in layer.named_parameters(recurse=False)
        if bare and name in plain
    }
    with _without_activation(layer), _without_hooks(layer):
        out: Tensor = functional_call(layer, instead, args, named)
    return out


@contextmanager
def _without_hooks(layer: nn.Module) -> Iterator[None]:
    """The user's have seen this call already."""
    names = ("_forward_pre_hooks", "_forward_hooks")
    before = {name: vars(layer)[name] for name in names}
    vars(layer).update({name: OrderedDict() for name in names})
    try:
        yield
    finally:
        vars(layer).update(before)


@contextmanager
def _without_activation(layer: nn.Module) -> Iterator[None]:
    own = vars(layer)
    activation = own.get("activation")
    if activation is not None:
        own["activation"] = None
    try:
        yield
    finally:
        if activation is not None:
            own["activation"] = activation


@torch.no_grad()
def _fit_line(layer: nn.Module, pair: Joint) -> tuple[float, float] | None:
    """Store the fit; gives what γ and β left unexplained before and what they leave now."""
    weight, bias = (layer._parameters.get(name) for name in ("weight", "bias"))
    if weight is None:
        return None
    zero = torch.zeros_like(pair.means[0])
    before = pair.unexplained(weight.double(), zero if bias is None else bias.double())
    slope, intercept = (pair.ray(), zero) if bias is None else pair.line()
    weight.copy_(slope)
    if bias is not None:
        bias.copy_(intercept)
    return before, pair.unexplained(slope, intercept)


def _check(name: str, layer: nn.Module, *numbers: Tensor) -> None:
    if not all(bool(each.isfinite().all()) for each in numbers):
        raise ValueError(
            f"layer {name!r} ({type(layer).__name__}) met NaN or infinity in calibration; look at "
            "the batches, and at the layers before"
        )
