"""What a trial measures besides accuracy: moving layer inputs, and gradients by depth.

A probe looks at one fixed batch in training mode and leaves the network as it found it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from livella.moments import Moments
from livella.study import evaluate
from livella.study.data import Part
from livella.study.models import Built

PROBE_EXAMPLES = 256

Probe = Callable[[], tuple[float, ...]]
T = TypeVar("T")


def make(
    kind: str, built: Built, part: Part, test: Part | None = None, batch: int = 1
) -> Probe | None:
    """The probe that a trial asks for by name, on the first examples of `part`.

    "inference" looks at all of it, and at the test part in batches of this size.
    """
    if not kind:
        return None
    if kind == "inference":
        assert test is not None, "a trial has one"
        return lambda: (
            evaluate.by_population(built.model, part, test),
            evaluate.by_mini_batch(built.model, test, batch),
        )
    makers: dict[str, Callable[[Built, Part], Probe]] = {"shift": _shift, "gradients": _gradients}
    return makers[kind](built, (part[0][:PROBE_EXAMPLES], part[1][:PROBE_EXAMPLES]))


def _shift(built: Built, part: Part) -> Probe:
    before: list[Moments] = []

    def probe() -> tuple[float, ...]:
        # Measured as they come out: an activation in place would overwrite them.
        with torch.no_grad(), _untouched(built.model), _outputs(built, Moments.of) as now:
            built.model(part[0])
        moved = tuple(distance(a, b) for a, b in zip(before, now, strict=True)) if before else ()
        before[:] = now
        return moved

    return probe


def distance(before: Moments, now: Moments) -> float:
    r"""How far a layer's input distribution moved, in standard deviations of where it was.

    For each unit the 2-Wasserstein distance of the two normal distributions with these moments,
    $\sqrt{(\mu-\mu')^2 + (\sigma-\sigma')^2} / \sigma$; the median over units.
    """
    sigma = before.variance(unbiased=False).sqrt()
    sigma_now = now.variance(unbiased=False).sqrt()
    moved = torch.hypot(now.mean - before.mean, sigma_now - sigma)
    return float((moved / sigma.clamp_min(1e-12)).median())


def _gradients(built: Built, part: Part) -> Probe:
    def probe() -> tuple[float, ...]:
        with _untouched(built.model), _outputs(built, lambda out: out) as outputs:
            loss = nn.functional.cross_entropy(built.model(part[0]), part[1])
            grads = torch.autograd.grad(loss, outputs)
        return tuple(float(grad.norm()) for grad in grads)

    return probe


@contextlib.contextmanager
def _outputs(built: Built, look: Callable[[Tensor], T]) -> Iterator[list[T]]:
    """Collect looks at what the sites give out while the context lasts, in order of the calls."""
    outputs: list[T] = []
    handles = [
        site.register_forward_hook(lambda _module, _args, out: outputs.append(look(out)))
        for site in built.sites
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Training mode for a while, with buffers, mode and random state given back."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        try:
            model.train()
            yield
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)
            for module, mode in modes:
                module.training = mode
