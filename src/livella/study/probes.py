"""What a trial measures besides accuracy: layer inputs, gradients, other statistics.

A probe looks at one fixed batch in training mode and leaves the network as it found it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from livella.model.kept import Kept
from livella.model.modes import modes_kept
from livella.moments import Moments
from livella.study import evaluate
from livella.study.corruptions import Corrupted, sorted_and_shifted
from livella.study.data import Dataset, Part
from livella.study.models import Built

PROBE_EXAMPLES = 256

AT_THE_END = ("variance", "population", "corrupted", "streams")
"""Measured once, when the training is over; the others at every point of the curve."""

Probe = Callable[[], tuple[float, ...]]
T = TypeVar("T")


def make(kinds: str, built: Built, dataset: Dataset, batch: int = 1) -> dict[str, Probe]:
    """The probes that a trial asks for by name, joined by "+"; `batch` is its batch size.

    - "shift", "gradients" and "variance" look at the first training examples;
    - "inference" at the test part, by the statistics of the training part and by those of test
      batches of this size;
    - "population" at the validation and the test part by the statistics of the training part;
    - "corrupted" and "streams" at the test part as it is not, see `corruptions`.
    """
    train, validation, test = dataset.train, dataset.validation, dataset.test
    first = (train[0][:PROBE_EXAMPLES], train[1][:PROBE_EXAMPLES])
    makers: dict[str, Callable[[], Probe]] = {
        "shift": lambda: _shift(built, first),
        "gradients": lambda: _gradients(built, first),
        "variance": lambda: _variance(built, first),
        "inference": lambda: (
            lambda: (
                *evaluate.by_population(built.model, train, test),
                evaluate.by_mini_batch(built.model, test, batch),
            )
        ),
        "population": lambda: lambda: evaluate.by_population(built.model, train, validation, test),
        "corrupted": lambda: lambda: Corrupted.measure(built.model, dataset).to_tuple(),
        "streams": lambda: (
            lambda: tuple(itertools.chain(*sorted_and_shifted(built.model, dataset)))
        ),
    }
    return {kind: makers[kind]() for kind in kinds.split("+") if kind}


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


def _variance(built: Built, part: Part) -> Probe:
    r"""The variance of each normalization's input with dropout over that without, as in inference.

    For each unit $\mathrm{Var}_{train}(x) / \mathrm{Var}_{test}(x)$ on the same examples; the
    median over units that vary. All else is as in training both times, so that a layer shows
    the shift of the dropout before it and not also that of the layers before.
    """

    @torch.no_grad()
    def probe() -> tuple[float, ...]:
        with _untouched(built.model), _inputs(built, Moments.of) as seen:
            built.model(part[0])
            for module in built.model.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
            built.model(part[0])
        layers = len(built.sites)
        return tuple(map(ratio, seen[:layers], seen[layers:]))

    return probe


def ratio(dropped: Moments, whole: Moments) -> float:
    """The variance of one over that of the other: the median over units that vary."""
    above, below = dropped.variance(unbiased=False), whole.variance(unbiased=False)
    varies = below > 0
    return float((above[varies] / below[varies]).median()) if varies.any() else 1.0


@contextlib.contextmanager
def _inputs(built: Built, look: Callable[[Tensor], T]) -> Iterator[list[T]]:
    """Collect looks at what the sites are given while the context lasts, in order of the calls."""
    inputs: list[T] = []
    handles = [
        site.register_forward_pre_hook(lambda _module, args: inputs.append(look(args[0])))
        for site in built.sites
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


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
    buffers = Kept.of(model.buffers())
    with torch.random.fork_rng(devices=[]), modes_kept(model):
        try:
            model.train()
            yield
        finally:
            buffers.put_back()
