"""What a layer is before and after a conversion, and what it remembers of what it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from livella.model import adopt, kinds
from livella.moments import Moments, accumulation_dtype
from livella.nn.batch import _Core
from livella.nn.moving_average import MovingAverageNorm

Memory = Mapping[str, "State"]
"""What a layer was, by kind, the last one last."""
Trace = Mapping[str, float]
"""What the parameters of a model are, in short."""


@dataclass(frozen=True)
class State:
    """All that makes a layer of its kind: its class, settings, parameters and buffers.

    What any module has besides, mode and hooks, and what a user put there, is no part of it.
    """

    kind: type[nn.Module]
    settings: dict[str, Any]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    passing: frozenset[str]
    """Buffers that are not saved."""
    dtypes: tuple[torch.dtype | None, torch.dtype | None] = (None, None)
    """Of its own numbers and of the model's, when it was read: a change since is made up for."""
    trace: Trace = field(default_factory=dict)
    """What the model's parameters were then, in short."""

    @classmethod
    def of(cls, layer: nn.Module, spare: Tensor | None = None) -> State:
        """Read it from a layer of a kind that can be converted, in a model with such numbers."""
        tensors = (*layer._parameters.values(), *layer._buffers.values())
        names = (*kinds.settings_of(type(layer)), "_switches")
        return cls(
            type(layer),
            {name: vars(layer)[name] for name in names if name in vars(layer)},
            dict(layer._parameters),
            dict(layer._buffers),
            frozenset(layer._non_persistent_buffers_set),
            (_number_type(tensors), None if spare is None else spare.dtype),
        )

    def put_into(
        self, layer: nn.Module, instead_of: State, spare: torch.dtype | None = None
    ) -> None:
        """Make the layer this; the object, its mode, its hooks and its user's things stay.

        Its numbers follow what became of the dtype of the layer, or of the model (`spare`), while
        they lay aside.
        """
        present = (*layer._parameters.values(), *layer._buffers.values())
        self.follow(_number_type(present), spare)
        for name in instead_of.settings:
            vars(layer).pop(name, None)
        adopt.change_class(layer, self.kind)
        vars(layer).update(self.settings)
        for place, found in (("_parameters", self.parameters), ("_buffers", self.buffers)):
            content = vars(layer)[place]
            content.clear()
            content.update(found)
        layer._non_persistent_buffers_set.clear()
        layer._non_persistent_buffers_set.update(self.passing)

    @torch.no_grad()
    def follow(self, own: torch.dtype | None, spare: torch.dtype | None) -> None:
        """Change the dtype of all numbers where that of the layer, or of the model, has changed."""
        pairs = ((self.dtypes[0], own), (self.dtypes[1], spare))
        before, now = next(((b, n) for b, n in pairs if b and n), (None, None))
        if now is None or before == now:
            return
        least = accumulation_dtype(now) if self._is_exact() else now
        for found, dtype in ((self.parameters, now), (self.buffers, least)):
            for name, tensor in found.items():
                if tensor is not None and tensor.is_floating_point() and tensor.dtype != dtype:
                    _changed(found, name, tensor, dtype)

    def _is_exact(self) -> bool:
        """Whether it keeps its averages in float32 or better whatever the model becomes."""
        switches = self.settings.get("_switches")
        guarded = switches is not None and switches.update_policy == "guarded"
        return guarded or issubclass(self.kind, MovingAverageNorm)

    def tensors(self) -> Iterator[Tensor]:
        """Every parameter and buffer."""
        for found in (self.parameters, self.buffers):
            yield from (tensor for tensor in found.values() if tensor is not None)


@dataclass(eq=False)
class LayerConversion:
    """One layer: what it was and what it is.

    Attributes:
        layer: the layer, the same object as before.
        former: the name of the class it was of, and `now` that it is of.
        dropped: what has no place in it now; it comes back with the former kind.
        lacks_statistics: whether it keeps averages and has none of the data yet.
        unexplained: with calibration, the share of the former output's variance that the new one
            leaves, with γ and β as they were carried over and as they were fitted.

    """

    layer: nn.Module
    before: State
    after: State
    remembered: tuple[Memory | None, Memory]
    """What the layer remembered before, and what it does now."""
    dropped: tuple[str, ...]
    lacks_statistics: bool
    trained_since: bool = False
    """Whether its averages were laid aside before the model's parameters changed."""
    unexplained: tuple[float, float] | None = None

    @property
    def former(self) -> str:
        return self.before.kind.__name__

    @property
    def now(self) -> str:
        return self.after.kind.__name__

    def apply(self) -> None:
        self.after.put_into(self.layer, self.before)
        vars(self.layer)[kinds.MEMORY] = self.remembered[1]

    def undo(self, spare: torch.dtype | None = None) -> None:
        self.before.put_into(self.layer, self.after, spare)
        vars(self.layer).pop(kinds.MEMORY)
        if self.remembered[0] is not None:
            vars(self.layer)[kinds.MEMORY] = self.remembered[0]


def plan_of(
    name: str,
    layer: nn.Module,
    to: str,
    ndim: int | None,
    options: dict[str, Any],
    spare: Tensor,
    trace: Trace,
) -> LayerConversion | None:
    """Plan what a layer becomes, and change nothing; none where it is of that kind already.

    The new tensors lie where its own do; where it has none, where `spare` does. `trace` tells
    whether the model was trained since the layer was something else.

    Raises:
        ValueError: the layer cannot be built; it is named.
        TypeError: it does not take an option.

    """
    before = replace(State.of(layer, spare), trace=trace)
    memory: Memory = vars(layer).get(kinds.MEMORY, {})
    known = _Known([*memory.values(), before])
    norm = known.norm()
    kind = "none" if isinstance(layer, nn.Identity) else norm.kind
    if kind == to and all(before.settings.get(k) == v for k, v in options.items()):
        return None
    now = next(before.tensors(), spare)
    like = next((t for t in before.tensors() if t.is_floating_point()), spare)
    for state in memory.values():
        state.follow(before.dtypes[0], spare.dtype)
    ndim = ndim or norm.ndim or known.ndim()
    try:
        after = known.again(to, options) or State.of(kinds.successor(norm, to, ndim, like, options))
    except (ValueError, TypeError) as error:
        raise type(error)(f"convert: layer {name!r} ({type(layer).__name__}): {error}") from error
    after, lacking = known.carried_into(after, to, now.device)
    memories = {k: state for k, state in memory.items() if k != kind} | {kind: before}
    remembered = (vars(layer).get(kinds.MEMORY), memories)
    dropped = _dropped(before, after)
    since = to in kinds.AVERAGED and not lacking and known.averaged_before(trace)
    return LayerConversion(layer, before, after, remembered, dropped, lacking, since)


@dataclass(frozen=True)
class _Known:
    """All that a layer was, and at the end what it is."""

    states: list[State]

    def norm(self) -> kinds.Norm:
        """The last normalization it was, with settings of earlier ones that the last has not."""
        norms = [kinds.read(s.kind, s.settings) for s in self.states if s.kind is not nn.Identity]
        settings = {name: value for norm in norms for name, value in norm.settings.items()}
        return replace(norms[-1], settings=settings)

    def ndim(self) -> int | None:
        """For how many dimensions it once worked."""
        dims = (kinds.ndim_of(state.kind) for state in reversed(self.states))
        return next((found for found in dims if found), None)

    def tensors(self) -> Iterator[Tensor]:
        for state in reversed(self.states):
            yield from state.tensors()

    def again(self, to: str, options: dict[str, Any]) -> State | None:
        """What it was when it was of this kind, if these options were the same."""
        for state in reversed(self.states[:-1]):
            same = all(state.settings.get(k) == v for k, v in options.items())
            if same and kinds.is_of(state.kind, state.settings, to):
                return state
        return None

    def carried_into(self, after: State, to: str, device: torch.device) -> tuple[State, bool]:
        """What it becomes with all that lives on, and whether it then lacks statistics."""
        parameters = self._live_on(after)
        buffers, lacking = self._statistics(after, to)
        settings, passing = dict(after.settings), after.passing
        before = self.states[-1]
        if issubclass(before.kind, _Core) and issubclass(after.kind, _Core):
            settings |= {k: v for k, v in before.settings.items() if k == "_switches"}
            buffers |= {k: before.buffers[k] for k in before.passing}
            passing = before.passing
        for tensor in (*parameters.values(), *buffers.values()):
            if tensor is not None and tensor.device != device:
                tensor.data = tensor.data.to(device)  # it lay aside while the model moved
        return State(after.kind, settings, parameters, buffers, passing, before.dtypes), lacking

    def _live_on(self, after: State) -> dict[str, nn.Parameter | None]:
        had = {
            name: p
            for state in self.states
            for name, p in state.parameters.items()
            if p is not None
        }
        found = {
            name: had[name] if p is not None and name in had and had[name].shape == p.shape else p
            for name, p in after.parameters.items()
        }
        if "weight" in had and "bias" not in had and "bias" in self.states[-1].parameters:
            found = {name: None if name == "bias" else p for name, p in found.items()}
        return found

    def _statistics(self, after: State, to: str) -> tuple[dict[str, Tensor | None], bool]:
        """The buffers it then has, and whether what they should keep is not known."""
        averages = self._averages()
        if to in kinds.AVERAGED:
            buffers = {n: b if b is None else averages.get(n, b) for n, b in after.buffers.items()}
            return buffers, buffers["running_mean"] is not None and not averages
        if to == "moving_average" and not any(after is state for state in self.states):
            return dict(after.buffers), not _square_into(after, averages)
        return dict(after.buffers), False

    def averaged_before(self, trace: Trace) -> bool:
        """Whether it last kept averages when parameters that the model still has were others."""
        averaged = [s for s in self.states if kinds.is_averaged(s.kind)]
        then = averaged[-1].trace if averaged else {}
        return any(trace.get(name, value) != value for name, value in then.items())

    def _averages(self) -> dict[str, Tensor]:
        """The running mean and variance, and their counter, of when it last kept some."""
        return {
            name: buffer
            for state in self.states
            if kinds.is_averaged(state.kind)
            for name, buffer in state.buffers.items()
            if buffer is not None and name not in state.passing
        }


def trace_of(model: nn.Module) -> Trace:
    """Give a number for each parameter, by name, that training would change."""
    there = {n: p for n, p in model.named_parameters() if not (is_lazy(p) or p.is_meta)}
    return {name: float(p.detach().double().sum()) for name, p in there.items()}


def _number_type(tensors: Iterable[Tensor | None]) -> torch.dtype | None:
    """The dtype of the first that holds real numbers."""
    return next((t.dtype for t in tensors if t is not None and t.is_floating_point()), None)


def _changed(found: dict[str, Any], name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Change a tensor's dtype: a parameter stays the same object, as it does under `Module.to`."""
    if isinstance(tensor, nn.Parameter):
        tensor.data = tensor.data.to(dtype)
    else:
        found[name] = tensor.to(dtype)


def _square_into(after: State, averages: dict[str, Tensor]) -> bool:
    """Store the mean square that mean and variance make; tells whether they are known."""
    square = after.buffers["running_square"]
    if square is None or not averages:
        return False
    mean, var = (averages[name].to(square) for name in ("running_mean", "running_var"))
    square.copy_(kinds.mean_square(Moments(1, mean, var)))
    return True


def _dropped(before: State, after: State) -> tuple[str, ...]:
    """What a layer had that it now has not: parameters, buffers, settings that were not usual."""
    usual = kinds.settings_of(before.kind)
    tensors = [
        name
        for had, has in ((before.parameters, after.parameters), (before.buffers, after.buffers))
        for name, tensor in had.items()
        if tensor is not None and has.get(name) is None
    ]
    settings = [
        f"{name}={value!r}"
        for name, value in before.settings.items()
        if name not in ("num_features", "num_channels", "affine")
        and value != usual.get(name)
        and after.settings.get(name, not value) != value
    ]
    return (*tensors, *settings)
