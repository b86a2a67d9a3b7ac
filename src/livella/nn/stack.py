"""A stack of recurrent layers with batch norm: what `BatchNormLSTM` and `BatchNormGRU` share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn

from livella.moments import accumulation_dtype
from livella.nn import through_time
from livella.nn.cells import Cell, State
from livella.nn.packing import Data, Lengths, Packed, pack, reversal
from livella.nn.stepwise import BatchSteps, RunningSteps, Steps, normalize, normalize_steps, take_in
from livella.nn.switched import NORMALIZE_BY

STATISTICS = ("per_step", "shared")


class Own(NamedTuple):
    """The parameters of one direction of one layer, as it computes with them."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    gamma_ih: Tensor
    gamma_hh: Tensor
    gamma_c: Tensor | None
    beta_c: Tensor | None


class BatchNormRNN(nn.Module):
    """Parameters as torch names them, running statistics, layers and directions.

    What is normalized are the two products, "ih" and "hh", and an LSTM's cell, "c".
    """

    gates: ClassVar[int]
    normalized: ClassVar[dict[str, int]]
    """What is normalized, and how many values of it there are for each unit."""
    states: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        statistics: str = "per_step",
        max_length: int | None = None,
        gamma: float = 0.1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.dropout, self.gamma, self.eps, self.momentum = float(dropout), gamma, eps, momentum
        self.statistics, self.max_length = statistics, max_length
        self.normalize_by: str | None = None
        self.update_running = True
        self._check_options()
        for name in self._suffixes():
            first = name.startswith("_l0")
            width = input_size if first else hidden_size * (1 + bidirectional)
            self._register(name, width, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def _check_options(self) -> None:
        name = type(self).__name__
        for what in ("input_size", "hidden_size", "num_layers"):
            value = getattr(self, what)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected {what} of one or more, got {value!r}")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"{name}: expected a dropout between 0 and 1, got {self.dropout}")
        if self.statistics not in STATISTICS:
            raise ValueError(
                f"{name}: expected statistics to be one of {STATISTICS}, got {self.statistics!r}"
            )
        if self.max_length is not None and (self.statistics == "shared" or self.max_length < 1):
            raise ValueError(
                f"{name}: expected max_length of one or more steps, with statistics='per_step', "
                f"got {self.max_length} with {self.statistics!r}"
            )
        if not self.eps > 0:
            raise ValueError(f"{name}: expected eps above zero, got {self.eps}")
        if self.momentum is not None and not 0 <= self.momentum <= 1:
            raise ValueError(f"{name}: expected momentum from 0 to 1 or none, got {self.momentum}")
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"{name}: dropout acts between layers, so {self.dropout} does nothing in a single "
                "one; use num_layers=2 or more, or leave it out",
                stacklevel=4,
            )

    def _suffixes(self) -> list[str]:
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{k}{direction}" for k in range(self.num_layers) for direction in directions]

    def _register(self, suffix: str, width: int, made: dict[str, Any]) -> None:
        rows = self.gates * self.hidden_size
        self._add(f"weight_ih{suffix}", (rows, width), made)
        self._add(f"weight_hh{suffix}", (rows, self.hidden_size), made)
        for name in ("bias_ih", "bias_hh"):
            self._add(f"{name}{suffix}", (rows,) if self.bias else None, made)
        for name, times in self.normalized.items():
            self._add(f"gamma_{name}{suffix}", (times * self.hidden_size,), made)
        if "c" in self.normalized:
            self._add(f"beta_c{suffix}", (self.hidden_size,) if self.bias else None, made)
        steps = self.max_length or 1
        for name, times in self.normalized.items():
            for moment in ("mean", "var"):
                values = torch.empty((steps, times * self.hidden_size), **made)
                self.register_buffer(f"running_{moment}_{name}{suffix}", values)
        counter = torch.zeros(steps, dtype=torch.long, device=made["device"])
        self.register_buffer(f"num_batches_tracked{suffix}", counter)

    def _add(self, name: str, shape: tuple[int, ...] | None, made: dict[str, Any]) -> None:
        parameter = None if shape is None else nn.Parameter(torch.empty(shape, **made))
        self.register_parameter(name, parameter)

    def reset_running_stats(self) -> None:
        """Forget all batches: mean zero and variance one, for as many steps as at first."""
        steps = self.max_length or 1
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.shape[0] != steps:
                buffer = buffer.new_empty((steps, *buffer.shape[1:]))
                setattr(self, name, buffer)
            buffer.fill_(1 if name.startswith("running_var") else 0)

    def reset_parameters(self) -> None:
        """Draw weights and biases from U(−1/√H, 1/√H) as torch does; set γ to `gamma`, β_c to 0."""
        self.reset_running_stats()
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("gamma"):
                nn.init.constant_(parameter, self.gamma)
            elif name.startswith("beta"):
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing; torch's layers have it, for one library's sake."""

    def _run(self, given: Data, state: State | None, lengths: Lengths | None) -> tuple[Data, State]:
        """Give the output in the form of the input, and the last states of all layers."""
        packed = pack(
            given, lengths, self.input_size, batch_first=self.batch_first, layer=type(self).__name__
        )
        rows = packed.rows
        dtype = self._dtype(rows)
        by_batch = self._by_batch(packed)
        states = self._states(state, packed, dtype)
        kind = rows.device.type
        with torch.autocast(kind, enabled=False) if _autocasts(rows) else nullcontext():
            rows, last, batches = self._stack(rows.to(dtype), packed, states, by_batch)
        if by_batch and self.training and self.update_running:
            for suffix, batch in batches.items():
                self._take_in(suffix, batch)
        return packed.restore(rows), self._given_back(last, packed)

    def _dtype(self, rows: Tensor) -> torch.dtype:
        """Give the dtype to compute in: that of autocast, where it is on, or of the weights."""
        own = cast("torch.dtype", self.weight_ih_l0.dtype)
        if own != torch.float64 and _autocasts(rows):
            return torch.get_autocast_dtype(rows.device.type)
        if rows.dtype != own:
            raise ValueError(
                f"{type(self).__name__}: expected an input in {own}, the dtype of the weights, got "
                f"{rows.dtype}; convert one of them"
            )
        return own

    def _by_batch(self, packed: Packed) -> bool:
        """Whether the batch normalizes; a batch of nothing has no moments."""
        if self.normalize_by not in NORMALIZE_BY:
            raise ValueError(
                f"{type(self).__name__}: expected normalize_by to be one of {NORMALIZE_BY}, got "
                f"{self.normalize_by!r}"
            )
        asked = self.training if self.normalize_by is None else self.normalize_by == "batch"
        if asked and packed.sequences == 1:
            raise ValueError(
                f"{type(self).__name__}: expected two sequences or more in training, got one, "
                "whose variance at each step is zero by construction; use a larger batch, drop a "
                "last batch of one (drop_last=True), put the layer in evaluation mode, or let its "
                "running statistics normalize: layer.normalize_by = 'running'"
            )
        return asked and packed.sequences > 0

    def _states(self, state: State | None, packed: Packed, dtype: torch.dtype) -> list[State]:
        """Give the initial state of each layer and direction, in the order of the rows."""
        shape = (len(self._suffixes()), packed.sequences, self.hidden_size)
        if state is None:
            state = (packed.rows.new_zeros(shape, dtype=dtype),) * len(self.states)
        else:
            if len(state) != len(self.states):
                raise ValueError(
                    f"{type(self).__name__}: expected {' and '.join(self.states)} as the initial "
                    f"state, got {len(state)} values"
                )
            self._check_state(state, shape if packed.batched else (shape[0], shape[2]), dtype)
            if not packed.batched:
                state = tuple(each.unsqueeze(1) for each in state)
            if packed.order is not None:
                state = tuple(each.index_select(1, packed.order) for each in state)
        return list(zip(*(each.to(dtype).unbind(0) for each in state), strict=True))

    def _check_state(self, state: State, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        own, name = self.weight_hh_l0, type(self).__name__
        for each in state:
            if not isinstance(each, Tensor) or each.shape != shape:
                got = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
                raise ValueError(
                    f"{name}: expected an initial state of shape {shape}, which is (layers times "
                    f"directions, sequences, hidden_size), got {got}"
                )
            if each.device != own.device or each.dtype not in (own.dtype, dtype):
                raise ValueError(
                    f"{name}: expected an initial state in {own.dtype} on {own.device}, got "
                    f"{each.dtype} on {each.device}; convert it with .to(...)"
                )

    def _stack(
        self, rows: Tensor, packed: Packed, states: list[State], by_batch: bool
    ) -> tuple[Tensor, list[State], dict[str, dict[str, BatchSteps]]]:
        """Run all layers; give rows, last states, and the moments met in each direction."""
        last, met, suffixes = [], {}, self._suffixes()
        backwards = reversal(packed.sizes, rows.device) if self.bidirectional else None
        directions = 1 + self.bidirectional
        for layer in range(self.num_layers):
            if layer:
                rows = F.dropout(rows, self.dropout, self.training)
            outputs = []
            for d in range(directions):
                slot = layer * directions + d
                steps = self._steps(suffixes[slot], packed.sizes, rows, by_batch)
                order = backwards if d else None
                found, state = self._direct(
                    suffixes[slot], steps, rows if order is None else rows[order], packed.sizes,
                    states[slot],
                )  # fmt: skip
                outputs.append(found if order is None else found[order])
                last.append(state)
                if by_batch:
                    met[suffixes[slot]] = steps
            rows = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
        return rows, last, met

    def _direct(
        self, suffix: str, steps: dict[str, Any], rows: Tensor, sizes: tuple[int, ...], state: State
    ) -> tuple[Tensor, State]:
        """Run one direction of one layer: the input part of all steps, then the recurrence."""
        own = self._own(suffix, rows.dtype)
        x, bias = F.linear(rows, own.weight_ih), self._input_bias(own)
        if self.statistics == "shared":
            x = normalize(steps["ih"].call(x, 0, own.gamma_ih, bias))
            parts: Iterable[Tensor] = x.split(list(sizes))
        else:
            parts = normalize_steps(x.split(list(sizes)), steps["ih"], own.gamma_ih, bias)
        return through_time.run(self._cell(own, steps), parts, sizes, state)

    def _own(self, suffix: str, dtype: torch.dtype) -> Own:
        """Give the parameters: weights in the dtype of the data, the rest as sums are taken."""
        wide = accumulation_dtype(dtype)
        found: dict[str, Any] = {n: getattr(self, f"{n}{suffix}", None) for n in Own._fields}
        for name, parameter in found.items():
            if parameter is not None:
                found[name] = parameter.to(dtype if name.startswith("weight") else wide)
        return Own(**found)

    def _input_bias(self, own: Own) -> Tensor | None:
        """Give what is added to the normalized input part."""
        raise NotImplementedError

    def _cell(self, own: Own, steps: dict[str, Any]) -> Cell:
        raise NotImplementedError

    def _steps(
        self, suffix: str, sizes: tuple[int, ...], rows: Tensor, by_batch: bool
    ) -> dict[str, Any]:
        """Give the statistics that normalize in one direction of one layer."""
        found: dict[str, Steps] = {}
        for name, times in self.normalized.items():
            if by_batch:
                whole = name == "ih" and self.statistics == "shared"
                channels = times * self.hidden_size
                found[name] = BatchSteps((len(rows),) if whole else sizes, channels, rows, self.eps)
            else:
                mean, var = (getattr(self, f"running_{m}_{name}{suffix}") for m in ("mean", "var"))
                found[name] = RunningSteps(mean, var, self.eps)
        return found

    def _take_in(self, suffix: str, met: dict[str, BatchSteps]) -> None:
        """Take the moments of one pass into the running statistics of one direction."""
        steps = met["hh"].known
        if self.statistics == "per_step" and self.max_length is None:
            self._grow(suffix, steps)
        counter = getattr(self, f"num_batches_tracked{suffix}")[:steps]
        share: float | Tensor | None = self.momentum
        if share is None:
            share = (counter + 1).to(met["hh"].means.dtype).reciprocal()[:, None]
        for name, batch in met.items():
            mean, var = (getattr(self, f"running_{m}_{name}{suffix}") for m in ("mean", "var"))
            take_in(mean, var, batch, share)
        counter.add_(1)

    def _grow(self, suffix: str, steps: int) -> None:
        """Make room for so many steps; a new one starts as the last one, which stood in for it."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            more = steps - len(buffer)
            if name.endswith(suffix) and more > 0:
                fresh = buffer[-1:].expand(more, *buffer.shape[1:])
                if name.startswith("num_batches"):
                    fresh = torch.zeros_like(fresh)
                setattr(self, name, torch.cat([buffer, fresh]))

    def _given_back(self, last: list[State], packed: Packed) -> State:
        """Give the last states as torch does, in the order of the batch."""
        state = tuple(torch.stack(each) for each in zip(*last, strict=True))
        if packed.inverse is not None:
            state = tuple(each.index_select(1, packed.inverse) for each in state)
        return state if packed.batched else tuple(each.squeeze(1) for each in state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take over how many steps were seen in training, before torch compares shapes."""
        buffers = dict(self.named_buffers(recurse=False))
        saved = [state_dict.get(prefix + name) for name in buffers]
        pairs = list(zip(saved, buffers.values(), strict=True))
        fit = all(isinstance(s, Tensor) and s.shape[1:] == b.shape[1:] for s, b in pairs)
        if self.statistics == "per_step" and self.max_length is None and fit:
            steps = {len(s) for s in saved if s is not None}
            if len(steps) == 1 and 0 not in steps:  # else torch says what does not fit
                for name, buffer in buffers.items():
                    setattr(self, name, buffer.new_empty((*steps, *buffer.shape[1:])))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Describe the layer as torch does, then the statistics."""
        usual = {
            "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
            "bidirectional": False, "statistics": "per_step", "max_length": None, "gamma": 0.1,
            "eps": 1e-5, "momentum": 0.1, "normalize_by": None, "update_running": True,
        }  # fmt: skip
        moved = (
            f"{name}={getattr(self, name)}" for name in usual if getattr(self, name) != usual[name]
        )
        return ", ".join([str(self.input_size), str(self.hidden_size), *moved])


def _autocasts(rows: Tensor) -> bool:
    kind = rows.device.type  # "meta" has no autocast, and asking raises
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
