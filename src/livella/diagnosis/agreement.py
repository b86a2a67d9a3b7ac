"""How far outputs agree with others that are trusted, example by example, from 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from livella.diagnosis.label_kinds import probabilities
from livella.model import feeding

SURE = 0.3
"""How far the mean largest probability of class scores is above chance, of what is above it."""


@dataclass(frozen=True)
class Agreement:
    """How outputs are compared.

    Of class scores (N, K, …), 1 − (p[k] − p[j]), with p the probabilities of the trusted output, k
    its likeliest class and j that of the other: if p is believed, the share right against that of
    the trusted one. Of other tensors v/(v + d²), with d² the mean square of the difference of an
    example and v the variance of the trusted outputs; the mean over the tensors. Of a list with an
    entry an example, as detectors give, tensor by tensor as far as both go, times the share of the
    entries that both have.

    Attributes:
        of_classes: whether outputs are class scores.
        variances: v, of each tensor in its order.

    """

    of_classes: bool
    variances: tuple[float, ...]

    def of(self, output: Any, beside: Any) -> Tensor:
        """Give the agreement of each example, float64."""
        if self.of_classes:
            return _of_scores(next(_numbers(output)), next(_numbers(beside)))
        if _is_by_example(output) and _is_by_example(beside) and len(output) == len(beside):
            pairs = zip(output, beside, strict=True)
            return torch.tensor([self._of_example(a, b) for a, b in pairs], dtype=torch.float64)
        found = [
            _of_tensors(a, b, v)
            for a, b, v in zip(_numbers(output), _numbers(beside), self.variances, strict=False)
        ]
        if not found:
            return torch.ones(1, dtype=torch.float64)
        longest = max(map(len, found))
        return torch.stack([each for each in found if len(each) == longest]).mean(0)

    def _of_example(self, output: Any, beside: Any) -> float:
        found = []
        for a, b, v in zip(_numbers(output), _numbers(beside), self.variances, strict=False):
            a, b = (each.reshape(1) if not each.dim() else each for each in (a, b))
            shared, most = min(len(a), len(b)), max(len(a), len(b))
            both = _of_tensors(a[:shared], b[:shared], v)
            found.append(float(both.sum()) / most if most else 1.0)
        return sum(found) / len(found) if found else 1.0


def like(output: Any) -> Agreement:
    """Decide by trusted outputs how others are compared with them."""
    tensors = list(_numbers(output))
    if not _is_by_example(output):
        of_classes = bool(tensors) and _are_scores(tensors[0])
        return Agreement(of_classes, tuple(_variance(tensor) for tensor in tensors))
    columns = zip(*(list(_numbers(example)) for example in output), strict=False)
    return Agreement(False, tuple(_variance(torch.cat([t.flatten() for t in c])) for c in columns))


def _are_scores(tensor: Tensor) -> bool:
    """Whether a tensor looks like class scores: surer of a class than chance, not always the same.

    Rows of one length are embeddings.
    """
    if tensor.dim() < 2 or tensor.shape[1] < 2 or not bool(tensor.isfinite().all()):
        return False
    tensor = tensor.double()
    likely = probabilities(tensor)
    chance = 1 / tensor.shape[1]
    if tensor.dim() == 2 and bool(((tensor.norm(dim=1) - 1).abs() < 1e-3).all()):
        return False
    several = len(likely.argmax(1).unique()) > 1 or len(tensor) == 1
    return several and float(likely.max(1).values.mean()) > chance + SURE * (1 - chance)


def _of_scores(output: Tensor, beside: Tensor) -> Tensor:
    output, likely = output.double(), probabilities(beside.double())
    lost = (
        likely.max(1).values - likely.gather(1, output.nan_to_num().argmax(1, keepdim=True))[:, 0]
    )
    lost = lost.where(
        output.isfinite().all(1), torch.ones((), dtype=torch.float64, device=lost.device)
    )
    return (1 - lost).nan_to_num().reshape(len(output), -1).mean(1).cpu()


def _of_tensors(output: Tensor, beside: Tensor, variance: float) -> Tensor:
    """v/(v + d²) an example; what has another shape does not agree at all."""
    if output.shape != beside.shape:
        return torch.zeros(len(beside) if beside.dim() else 1, dtype=torch.float64)
    if not output.numel():
        return torch.ones(len(output), dtype=torch.float64)
    apart = (output.double() - beside.double()).square()
    apart = apart.reshape(len(apart), -1).mean(1) if apart.dim() else apart.reshape(1)
    return (variance / (variance + apart)).nan_to_num(0.0).cpu()


def _variance(tensor: Tensor) -> float:
    """Over the examples, mean over the rest; of one example, over all its values."""
    values = tensor.double().nan_to_num()
    if not values.numel():
        return 1.0
    spread = (
        values.var(0, unbiased=False).mean()
        if values.dim() and len(values) > 1
        else values.var(unbiased=False)
    )
    return max(float(spread), 1e-12)


def _is_by_example(output: Any) -> bool:
    """Whether it is a list with an entry, not a tensor, for each example."""
    return isinstance(output, list) and bool(output) and isinstance(output[0], Mapping)


def _numbers(output: Any) -> Any:
    return (tensor for tensor in feeding.tensors_in(output) if tensor.is_floating_point())
