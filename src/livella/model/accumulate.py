"""Batch norm over the whole batch though it is run in micro-batches: exact, by recomputation.

Take the moments s = (μ, σ²) that each batch norm call normalizes by as numbers of their own. Given
them, micro-batches have nothing to do with each other. The moments of a level of calls follow from
a pass over all micro-batches, once those of the levels before are known. The total loss depends on
s too, and s on the weights, so backward each level has an adjoint λ = dL/ds: the gradient with
respect to s of Σᵢ Lᵢ + Σ λ·S over the levels after it, where S = (Σx/n, Σ(x − μ)²/n) are the
moments as functions of the micro-batches' values. Once all λ are known, the gradient of that sum
with s held is the gradient of the whole batch (the method of Lagrange multipliers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from livella import reference
from livella.model import given, sites
from livella.model.domains import pinned
from livella.model.feeding import Forward, device_of, feed, tensors_in, to_device
from livella.model.freeze import is_frozen
from livella.model.levels import Dependencies, Site, levels, observe
from livella.model.measure import Enough
from livella.model.updates import take_in
from livella.moments import Moments, across, at_least, only, spread
from livella.nn.batch import _Core
from livella.nn.switched import checkpoint_frame

Loss = Callable[[Any, Any], Tensor]
"""loss(output, batch): the share of a micro-batch in the total."""


def accumulate(
    model: nn.Module, batches: Iterable[Any], loss: Loss, *, forward: Forward | None = None
) -> Tensor:
    """Do what one big batch would do, in micro-batches: same outputs, gradients and statistics.

    Every batch norm in training normalizes by the moments of all micro-batches together, and the
    gradient flows through them. For K levels of batch norms that depend on each other this takes
    K passes forward, each only up to its level, and K + 1 forward and backward: memory of one
    micro-batch, paid for in time. Where it is enough that the running statistics are right,
    `livella.pooled_updates` costs nothing.

    Activation checkpoints inside the model must be of the non-reentrant kind. Under
    `DistributedDataParallel` every process needs as many micro-batches.

    Args:
        model: any module. Batch norms in evaluation mode, or frozen, stay out of it.
        batches: the micro-batches, of any sizes; one sample will do. Of any form that
            `estimate_population` takes; they are moved to where the model lies.
        loss: called as loss(output, batch), with what the model gave: the share of this micro-batch
            in the total, such as cross_entropy(output, batch[1], reduction="sum") /
            examples_in_all. Model and loss are called once in each pass, with the random numbers
            of the first, so that dropout drops the same.
        forward: called as forward(model, batch) instead of the model.

    Returns:
        The total loss, detached. Gradients were added to `.grad`, and the running statistics took
        in the whole batch once, as after `total.backward()` of the one big batch.

    Raises:
        ValueError: no micro-batches, fewer than two values a channel in all, a loss that is not one
            number. Model, gradients and random state are then as before, as after any exception.
        TypeError: no module, or a scripted one; a loss that is called otherwise, such as
            loss(model, batch) or torch's on labels; a batch norm with a forward of its own, which
            cannot be given its moments.

    Example:
        >>> def share(output, batch):
        ...     return nn.functional.cross_entropy(output, batch[1], reduction="sum") / 1024
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> micro = [(torch.randn(256, 4), torch.randint(8, (256,))) for _ in range(4)]
        >>> total = accumulate(model, micro, share)

    """
    given.check_model(model, "accumulate", runs=True)
    given.check_loss(loss, "accumulate")
    micro = list(batches)
    if not micro:
        raise ValueError("accumulate: got no micro-batches; pass one or more")
    layers = _layers(model)
    whole = _Whole(model, layers, micro, loss, forward or feed)
    before = {parameter: parameter.grad for parameter in model.parameters()}
    kept = {p: None if g is None else g.clone() for p, g in before.items()}
    rng = _random_state(model)
    try:
        with pinned(layers.values(), "inside accumulate"), whole.replaced():
            total = whole.run()
    except BaseException:
        for parameter, gradient in kept.items():
            parameter.grad = gradient
        _set_random_state(rng)
        raise
    for site, moments in sorted(whole.moments.items(), key=lambda item: item[0]):
        take_in(layers[site[0]], moments)
    return total


def _layers(model: nn.Module) -> dict[str, _NormBase]:
    """The batch norms that would normalize by the batch now."""
    found: dict[str, _NormBase] = {}
    for name, layer in model.named_modules():
        if sites.averages_otherwise(layer) and layer.training and not is_frozen(layer):
            raise TypeError(
                f"accumulate: layer {name!r} ({type(layer).__name__}) takes in each micro-batch by "
                "itself, at every pass; freeze it, or accumulate gradients without this function"
            )
        if not sites.is_batch_norm(layer) or not layer.training:
            continue
        if getattr(layer, "normalize_by", None) == "running":
            continue
        forward = type(layer).forward
        if forward not in (_BatchNorm.forward, _Core.forward) or "forward" in vars(layer):
            raise TypeError(
                f"accumulate: layer {name!r} ({type(layer).__name__}) has a forward of its own; "
                "expected torch's BatchNorm1d/2d/3d or Livella's; freeze it, or use "
                "livella.pooled_updates"
            )
        if isinstance(layer, _Core) and layer._beyond():
            raise TypeError(
                f"accumulate: layer {name!r} ({type(layer).__name__}) normalizes by more than the "
                "moments of the whole batch; freeze it, or use livella.pooled_updates"
            )
        found[name] = layer
    return found


@dataclass
class _Given:
    """The moments that a call normalizes by, as leaves of the graph where gradients are wanted."""

    count: int
    mean: Tensor
    variance: Tensor


@dataclass
class _Whole:
    """All micro-batches through the model, again and again."""

    model: nn.Module
    layers: dict[str, _NormBase]
    micro: list[Any]
    loss: Loss
    call: Forward
    moments: dict[Site, Moments] = field(default_factory=dict)
    adjoints: dict[Site, tuple[Tensor, Tensor]] = field(default_factory=dict)
    given: dict[Site, _Given] = field(default_factory=dict)
    calls: list[Site] = field(default_factory=list)
    measuring: dict[Site, Moments] = field(default_factory=dict)
    dtypes: dict[Site, torch.dtype] = field(default_factory=dict)
    """What each call computes in."""
    wanted: set[Site] = field(default_factory=set)
    last: Site | None = None
    """The call after which a pass has nothing more to give."""
    surrogate: list[Tensor] = field(default_factory=list)
    random: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = device_of(self.model)

    def run(self) -> Tensor:
        by_level = self._by_level()
        for level in by_level:
            self._measure(level)
        for level in reversed(by_level):
            self._find_adjoints(level)
        total = torch.zeros(())
        for value, _ in self._passes():
            value.backward()
            total = total.to(self._own.device) + self._own
        return total

    # Levels

    def _by_level(self) -> list[list[Site]]:
        union: Dependencies = {}
        for k, batch in enumerate(self.micro):
            self.random.append(_random_state(self.model))
            found = self._observed(batch)
            if k and found.keys() != union.keys():
                odd = sorted(found.keys() ^ union.keys())[0][0]
                raise ValueError(
                    f"accumulate: expected the same calls in every micro-batch, layer {odd!r} is "
                    "called more often in some; use livella.pooled_updates"
                )
            union = {site: union.get(site, frozenset()) | found[site] for site in found}
        self._after = _random_state(self.model)
        self.order = list(union)
        of = levels(union)
        return [[s for s in union if of[s] == k] for k in range(max(of.values(), default=-1) + 1)]

    def _observed(self, batch: Any) -> Dependencies:
        batch = to_device(batch, self.device)
        known = [*self.model.parameters(), *self.model.buffers(), *tensors_in(batch)]
        self.calls = []
        with torch.no_grad():
            return observe(lambda: self._share(batch), self.layers, known)

    def _share(self, batch: Any) -> Tensor:
        batch = to_device(batch, self.device)
        output = self.call(self.model, batch)
        try:
            value = self.loss(output, batch)
        except TypeError as error:
            if f"'{type(output).__name__}' object is not callable" in str(error):
                raise given.former_loss("accumulate") from error
            raise
        return given.number(
            value, "accumulate", "sum over the examples and divide by how many there are in all"
        )

    # Passes

    def _passes(self) -> Iterator[tuple[Tensor, Any]]:
        """Every micro-batch once more, with the random numbers of the first time."""
        for batch, state in zip(self.micro, self.random, strict=True):
            _set_random_state(state)
            self.calls, self.surrogate = [], []
            value = self._share(batch)
            self._own = value.detach()
            yield torch.stack([value, *self.surrogate]).sum(), batch
        _set_random_state(self._after)

    def _measure(self, level: list[Site]) -> None:
        self.wanted, self.measuring = set(level), {}
        self.last = max(level, key=self.order.index)
        with torch.no_grad():
            for batch, state in zip(self.micro, self.random, strict=True):
                _set_random_state(state)
                self.calls = []
                with suppress(Enough):
                    self._share(batch)
        self.wanted, self.last = set(), None
        for site, moments in self.measuring.items():
            count = int(torch.as_tensor(moments.count))
            if count < 2:
                raise ValueError(
                    f"accumulate: layer {site[0]!r} expected more than one value per channel over "
                    f"all micro-batches, got {count}; use more examples"
                )
            dtype = self.dtypes[site]
            variance = moments.variance(unbiased=False)
            self.given[site] = _Given(count, moments.mean.to(dtype), variance.to(dtype))
            self.moments[site] = moments

    def _find_adjoints(self, level: list[Site]) -> None:
        leaves = []
        for site in level:
            given = self.given[site]
            leaves += [given.mean.requires_grad_(), given.variance.requires_grad_()]
        sums = [torch.zeros_like(leaf) for leaf in leaves]
        for value, _ in self._passes():
            found = torch.autograd.grad(value, leaves, allow_unused=True)
            for total, part in zip(sums, found, strict=True):
                if part is not None:
                    total.add_(part)
        for k, site in enumerate(level):
            self.given[site].mean = leaves[2 * k].detach()
            self.given[site].variance = leaves[2 * k + 1].detach()
            self.adjoints[site] = (sums[2 * k], sums[2 * k + 1])

    # The layers

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Let the layers normalize by the moments of the whole, for a while."""
        with ExitStack() as cleanup:
            for name, layer in self.layers.items():
                had = vars(layer).get("forward")
                cleanup.callback(_put_back, layer, had)
                vars(layer)["forward"] = self._forward(name, layer)
            yield

    def _site(self, name: str, again: bool) -> Site:
        """Which call of the layer this is; one made again by a checkpoint is the one it was."""
        made = sum(other == name for other, _ in self.calls)
        if again:
            if made > 1:
                raise RuntimeError(
                    f"accumulate: layer {name!r} is called {made} times, and under activation "
                    "checkpointing its calls cannot be told apart; leave it out of the checkpoint"
                )
            return name, 0
        if not torch.is_grad_enabled() and checkpoint_frame() == "forward":
            raise RuntimeError(
                f"accumulate: layer {name!r} is in an activation checkpoint of the reentrant kind, "
                "which hides its gradient; pass use_reentrant=False to checkpoint"
            )
        self.calls.append((name, made))
        return name, made

    def _forward(self, name: str, layer: _NormBase) -> Callable[..., Tensor]:
        def forward(
            input: Tensor,  # noqa: A002  torch's name
            *,
            residual: Tensor | None = None,
            mask: Tensor | None = None,
            activation: str | None = None,
        ) -> Tensor:
            again = torch._C._current_graph_task_id() != -1  # a checkpoint runs it once more
            site = self._site(name, again)
            if site in self.wanted:
                part = Moments.of(input.detach(), mask=mask)
                self.dtypes[site] = part.mean.dtype
                seen = self.measuring.get(site, Moments.empty(input.shape[1], input.device))
                self.measuring[site] = seen.merge(part)
                if site == self.last:
                    raise Enough
            known = self.given.get(site)
            if known is None:  # not known yet, and what comes of it is not used
                return input.clone() if residual is None else input + residual
            if site in self.adjoints:
                term = _adjoint(input, mask, known, self.adjoints[site])
                if not again:
                    self.surrogate.append(term)
            own = getattr(layer, "activation", None)
            inverse = torch.rsqrt(known.variance + layer.eps)
            return reference.forward(
                input, known.mean, inverse, layer.weight, layer.bias, residual, mask,
                own if activation is None else activation,
            )  # fmt: skip

        return forward


def _adjoint(
    x: Tensor, mask: Tensor | None, given: _Given, adjoint: tuple[Tensor, Tensor]
) -> Tensor:
    """Give λ_μ·Σx/n + λ_σ²·Σ(x − μ)²/n of one micro-batch."""
    valid = None if mask is None else spread(mask, x.shape)
    dims = [d for d in range(x.dim()) if d != 1]
    centred = only(valid, x.to(given.mean.dtype) - across(given.mean, x.dim()))
    of_mean, of_variance = adjoint
    sums = of_mean * centred.sum(dims) + of_variance * centred.square().sum(dims)
    return sums.sum() / at_least(1, given.count)


def _put_back(layer: nn.Module, forward: Any) -> None:
    if forward is None:
        vars(layer).pop("forward", None)
    else:
        vars(layer)["forward"] = forward


def _random_state(model: nn.Module) -> list[tuple[torch.device, Tensor]]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    states = [(torch.device("cpu"), torch.get_rng_state())]
    return states + [(device, torch.cuda.get_rng_state(device)) for device in devices]


def _set_random_state(states: list[tuple[torch.device, Tensor]]) -> None:
    for device, state in states:
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
