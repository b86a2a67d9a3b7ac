"""What a conversion did to a model, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from livella.model.kept import Kept
from livella.model.states import LayerConversion


@dataclass(eq=False)
class Conversion:
    """What `convert` did.

    Attributes:
        model: the model, the same object.
        to: the kind.
        layers: those converted, by name.
        left: the normalizations that stay as they were, and why.
        gone: names of parameters that the model no longer has; `new` those it has since.
        change: with calibration, the mean squared change of the model's output, as a share of its
            variance, with γ and β as they were carried over and as they are now.
        kept: what the layers' tensors held before.

    """

    model: nn.Module
    to: str
    layers: Mapping[str, LayerConversion]
    left: Mapping[str, str]
    kept: Kept
    gone: Mapping[str, nn.Parameter] = field(default_factory=dict)
    new: Mapping[str, nn.Parameter] = field(default_factory=dict)
    change: tuple[float, float] | None = None
    _optimizer: _OptimizerKept | None = None
    _reverted: bool = False

    @property
    def dropped(self) -> dict[str, tuple[str, ...]]:
        """What has no place in the new kind, by layer."""
        return {name: layer.dropped for name, layer in self.layers.items() if layer.dropped}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Convert the layers; should what follows fail, convert none."""
        done: list[LayerConversion] = []
        try:
            for each in self.layers.values():
                each.apply()
                done.append(each)
            yield
        except BaseException:
            for each in reversed(done):
                each.undo()
            raise

    @contextmanager
    def formerly(self) -> Iterator[None]:
        """Let the layers be what they were, for a while."""
        with ExitStack() as cleanup:
            for each in self.layers.values():
                each.undo()
                cleanup.callback(each.apply)
            with self.kept.in_place():
                yield

    def revert(self) -> Conversion:
        """Make the layers what they were, bit for bit, and the optimizer too if it was given.

        What was trained in these layers since is lost; convert back instead to keep it. Groups that
        the optimizer was given since stay. Again it does nothing.
        """
        if self._reverted:
            return self
        spare = next(chain(self.model.parameters(), self.model.buffers()), None)
        for each in reversed(list(self.layers.values())):
            each.undo(None if spare is None else spare.dtype)
        self.kept.put_back()
        if self._optimizer is not None:
            self._optimizer.put_back()
        self._reverted = True
        return self

    def __str__(self) -> str:
        """Say what became what, what has no place, and how much the function changed."""
        rows = [("layer", "was", "is", "unexplained")]
        rows += [(name, e.former, e.now, _told(e.unexplained)) for name, e in self.layers.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
                 for row in rows]  # fmt: skip
        lines += [f"no place for: {name}: {', '.join(d)}" for name, d in self.dropped.items()]
        lines += [f"left: {name or 'the model itself'}: {why}" for name, why in self.left.items()]
        lines += [f"no longer a parameter: {name}" for name in self.gone]
        lines += [f"a new parameter: {name}" for name in self.new]
        if self.change is not None:
            lines.append(f"change of the output, share of its variance: {_told(self.change)}")
        return "\n".join([f"Conversion to {self.to}: {len(self.layers)} layers", *lines])

    def compare(self, former: Mapping[str, nn.Parameter]) -> None:
        """Note which parameters are gone, and which are new, by their names."""
        now = dict(self.model.named_parameters())
        before, after = ({id(p) for p in each.values()} for each in (former, now))
        self.gone = {name: p for name, p in former.items() if id(p) not in after}
        self.new = {name: p for name, p in now.items() if id(p) not in before}

    def exchange_parameters(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer made before know: parameters that live on keep their state.

        Those gone are taken out, with their state; those new join the group of the layer's others,
        or the first group.
        """
        self._optimizer = _OptimizerKept.of(optimizer)
        place = {id(p): n for n, g in enumerate(optimizer.param_groups) for p in g["params"]}
        gone = {id(p) for p in self.gone.values()}
        for group in optimizer.param_groups:
            _keep(group, [id(p) not in gone for p in group["params"]])
        for p in self.gone.values():
            optimizer.state.pop(p, None)
        for name, p in self.new.items():
            if id(p) not in place:
                former = self.layers[name.rpartition(".")[0]].before.parameters.values()
                at = next((place[id(o)] for o in former if o is not None and id(o) in place), 0)
                group = optimizer.param_groups[at]
                group["params"].append(p)
                if "param_names" in group:
                    group["param_names"].append(name)


_LISTS = ("params", "param_names")


def _keep(group: dict[str, Any], wanted: list[bool]) -> None:
    """Leave only some parameters in an optimizer's group, with their names if it has any."""
    for key in _LISTS:
        if key in group:
            group[key] = [each for each, keep in zip(group[key], wanted, strict=True) if keep]


@dataclass(frozen=True, eq=False)
class _OptimizerKept:
    """An optimizer, its groups' parameters, and what it remembered of each."""

    optimizer: torch.optim.Optimizer
    groups: tuple[dict[str, list[Any]], ...]
    state: dict[Any, dict[str, Any]]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> _OptimizerKept:
        groups = ({key: list(group[key]) for key in _LISTS if key in group}
                  for group in optimizer.param_groups)  # fmt: skip
        state = {
            p: {k: v.clone() if isinstance(v, Tensor) else v for k, v in each.items()}
            for p, each in optimizer.state.items()
        }
        return cls(optimizer, tuple(groups), state)

    def put_back(self) -> None:
        known = {id(p) for group in self.groups for p in group["params"]}
        later = {p: each for p, each in self.optimizer.state.items() if id(p) not in known}
        # Of groups added since nothing is known: they stay.
        for group, lists in zip(self.optimizer.param_groups, self.groups, strict=False):
            group.update({key: list(each) for key, each in lists.items()})
        now = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        self.optimizer.state.clear()
        self.optimizer.state.update(self.state)
        self.optimizer.state.update({p: each for p, each in later.items() if id(p) in now})


def _told(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.3g} → {pair[1]:.3g}"
