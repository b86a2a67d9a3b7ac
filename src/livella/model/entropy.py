"""Tuning γ and β of batch norms until predictions are more certain (TENT)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella.model.freeze import free_parameters


class EntropyTuner:
    """Steps of Adam on γ and β, down the mean entropy of the predictions.

    H = −Σₖ pₖ log pₖ with p the softmax of a sample's class scores (Wang et al. 2021, "Tent: Fully
    Test-Time Adaptation by Entropy Minimization", section 3). The statistics are taken as given:
    no gradient flows through them.

    Args:
        layers: batch norms; those without γ and β have no part in it.
        rate: Adam's.

    Raises:
        ValueError: no layer has γ or β, or the rate is not above zero.

    """

    def __init__(self, layers: Mapping[str, _NormBase], rate: float) -> None:
        if not rate > 0:
            raise ValueError(f"adapt: expected an entropy_rate above zero, got {rate}; take 1e-3")
        self.parameters = affine_parts(layers)
        if not self.parameters:
            raise ValueError("adapt: entropy_rate asks to tune γ and β, but no batch norm has them")
        self._optimizer = torch.optim.Adam(self.parameters, lr=rate)

    def step(self, model: nn.Module, call: Callable[[], tuple[Any, Tensor]]) -> Any:
        """Call the model once for its output and class scores, and make them more certain.

        Gives the output, as it was before. Gradients that the user's parameters hold, and whether
        they want any, stay as they are.
        """
        with _only(self.parameters, model), torch.enable_grad():
            output, scores = call()
            if not scores.requires_grad:
                raise ValueError(
                    "adapt: expected class scores that depend on γ and β, got none that do; does "
                    "forward run under torch.no_grad or detach its output? Leave out entropy_rate"
                )
            loss = mean_entropy(scores)
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        if all(g is None or bool(g.isfinite().all()) for g in gradients):
            self._descend(gradients)
        return output

    def kept(self) -> dict[str, Any]:
        """Give the optimizer's state, copied."""
        return copy.deepcopy(self._optimizer.state_dict())

    def put_back(self, kept: dict[str, Any]) -> None:
        """Make the optimizer's state what it was."""
        self._optimizer.load_state_dict(kept)

    def _descend(self, gradients: tuple[Tensor | None, ...]) -> None:
        before = [p.grad for p in self.parameters]
        try:
            for p, gradient in zip(self.parameters, gradients, strict=True):
                p.grad = gradient
            self._optimizer.step()
        finally:
            for p, gradient in zip(self.parameters, before, strict=True):
                p.grad = gradient


def affine_parts(layers: Mapping[str, _NormBase]) -> list[Tensor]:
    """Every γ and β, each once, but those that `livella.freeze` froze."""
    parts = (p for layer in layers.values() for p in free_parameters(layer))
    return list({id(p): p for p in parts}.values())


def mean_entropy(scores: Tensor) -> Tensor:
    """H = −Σₖ pₖ log pₖ in nats, over dimension 1, mean over all others."""
    logarithms = scores.float().log_softmax(1)
    return -(logarithms.exp() * logarithms).sum(1).mean()


@contextmanager
def _only(parameters: list[Tensor], model: nn.Module) -> Iterator[None]:
    """Let these ask for a gradient, and no others."""
    wanted = {id(p) for p in parameters}
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in before:
            p.requires_grad_(id(p) in wanted)
        yield
    finally:
        for p, asked in before:
            p.requires_grad_(asked)
