"""Sequences of unequal lengths as packed rows: step by step, those that still run.

Rows of a step are its valid elements and nothing else, so what works on them needs no mask, and
padding has no way to matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Data = Tensor | PackedSequence
Lengths = Tensor | Sequence[int]


class Packed(NamedTuple):
    """Sequences as rows, and the way back to the form they came in.

    Attributes:
        rows: (Σ sizes, F): those of step 0, then of step 1, the longest sequence first in each.
        sizes: how many sequences run at each step; never more than at the step before.
        order: which sequence of the batch is the i-th of a step; none where it is the i-th.
        inverse: where in a step each sequence of the batch stands; none as `order`.
        restore: makes rows into what came in: padded, with zeros past the ends, or packed.
        batched: whether there was a dimension for the batch.

    """

    rows: Tensor
    sizes: tuple[int, ...]
    order: Tensor | None
    inverse: Tensor | None
    restore: Callable[[Tensor], Data]
    batched: bool = True

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        return self.sizes[0]


def pack(
    given: Data, lengths: Lengths | None, features: int, *, batch_first: bool, layer: str
) -> Packed:
    """Pack (T, N, F), or (N, T, F) if batch first, or (T, F), or take what is packed already.

    Raises:
        TypeError: data that are neither, lengths that are no integers.
        ValueError: another number of features or of dimensions, no step, lengths of another
            number than the sequences, below one or beyond T, or beside packed data or one sequence
            without a batch.

    """
    if isinstance(given, PackedSequence):
        return _packed(given, lengths, features, layer)
    if not isinstance(given, Tensor):
        raise TypeError(
            f"{layer}: expected a tensor or a PackedSequence, got {type(given).__name__}"
        )
    _check_shape(given, features, batch_first, layer)
    batched = given.dim() == 3
    steps_first = given if batched else given.unsqueeze(1)
    if batched and batch_first:
        steps_first = given.transpose(0, 1)
    steps, count = steps_first.shape[:2]
    if lengths is None:
        rows = steps_first.reshape(steps * count, features)
        restore = partial(_even, steps, batch_first=batch_first, batched=batched)
        return Packed(rows, (count,) * steps, None, None, restore, batched)
    checked = _checked(lengths, count if batched else None, steps, layer)
    packed = pack_padded_sequence(steps_first, checked, enforce_sorted=False)
    return _of(packed, partial(_padded, packed, steps, batch_first=batch_first))


def reversal(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Give for each row the row of the same sequence, counted from its end; its own inverse."""
    running = torch.tensor(sizes)
    starts = running.cumsum(0) - running
    steps = torch.repeat_interleave(torch.arange(len(sizes)), running)
    places = torch.arange(len(steps)) - starts[steps]
    lengths = (running[:, None] > torch.arange(sizes[0])).sum(0)
    return (starts[lengths[places] - 1 - steps] + places).to(device)


def _packed(given: PackedSequence, lengths: Lengths | None, features: int, layer: str) -> Packed:
    if lengths is not None:
        raise ValueError(
            f"{layer}: got lengths beside a PackedSequence, which has its own; leave them out"
        )
    if given.data.dim() != 2 or given.data.shape[1] != features:
        raise ValueError(
            f"{layer}: expected packed data of {features} features, got data of shape "
            f"{tuple(given.data.shape)}; build the layer for this number of features"
        )
    _check_dtype(given.data, layer)
    return _of(given, partial(_repacked, given))


def _of(packed: PackedSequence, restore: Callable[[Tensor], Data]) -> Packed:
    sizes = tuple(packed.batch_sizes.tolist())
    return Packed(packed.data, sizes, packed.sorted_indices, packed.unsorted_indices, restore)


def _even(steps: int, rows: Tensor, *, batch_first: bool, batched: bool) -> Tensor:
    padded = (
        rows.reshape(steps, -1, rows.shape[1]) if len(rows) else rows[None].expand(steps, 0, -1)
    )
    if not batched:
        return padded[:, 0]
    return padded.transpose(0, 1) if batch_first else padded


def _padded(packed: PackedSequence, steps: int, rows: Tensor, *, batch_first: bool) -> Tensor:
    padded: Tensor = pad_packed_sequence(_repacked(packed, rows), batch_first, total_length=steps)[
        0
    ]
    return padded


def _repacked(packed: PackedSequence, rows: Tensor) -> PackedSequence:
    return PackedSequence(rows, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def _check_dtype(x: Tensor, layer: str) -> None:
    if not x.is_floating_point():
        raise TypeError(
            f"{layer}: expected data of a floating dtype, got {x.dtype}; "
            "convert them, for example with input.float()"
        )


def _check_shape(x: Tensor, features: int, batch_first: bool, layer: str) -> None:
    _check_dtype(x, layer)
    form = f"(N, T, {features})" if batch_first else f"(T, N, {features})"
    if x.dim() not in (2, 3) or x.shape[-1] != features:
        raise ValueError(
            f"{layer}: expected data of shape {form} or, for one sequence, (T, {features}), got "
            f"{tuple(x.shape)}; batch_first={not batch_first} swaps N and T"
        )
    if x.shape[1 if batch_first and x.dim() == 3 else 0] == 0:
        raise ValueError(
            f"{layer}: expected sequences of one step or more, got T = 0 in {tuple(x.shape)}"
        )


def _checked(lengths: Lengths, count: int | None, steps: int, layer: str) -> Tensor:
    """Give the lengths as integers on the CPU."""
    if count is None:
        raise ValueError(
            f"{layer}: got lengths for data without a batch, which are one sequence; cut it instead"
        )
    found = torch.as_tensor(lengths, device="cpu")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(
            f"{layer}: expected lengths as integers, got {found.dtype}; convert them with .long()"
        )
    if found.shape != (count,):
        raise ValueError(
            f"{layer}: expected one length for each of {count} sequences, got lengths of shape "
            f"{tuple(found.shape)}"
        )
    if count and not (found.min() >= 1 and found.max() <= steps):
        raise ValueError(
            f"{layer}: expected lengths from 1 to the {steps} steps there are, got "
            f"{found.tolist()}; leave out empty sequences and pad the data to the longest"
        )
    return found.long()
