"""When running statistics take in a batch: policies, steps taken back, micro-batches pooled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella.model import adopt, given, sites
from livella.model.domains import Statistics, pinned
from livella.model.freeze import is_frozen, keep_class
from livella.moments import Moments
from livella.nn import SyncBatchNorm, SyncBatchNormAct, switched
from livella.nn.batch import _Core
from livella.nn.switched import is_first_pass

Model = TypeVar("Model", bound=nn.Module)


def set_update_policy(model: Model, policy: str, layers: Iterable[str] | None = None) -> Model:
    """Say when running statistics take in a batch.

    - "torch": at every call in training mode, as torch does, to the bit.
    - "guarded": once for each batch of a step, under activation checkpointing of either kind too;
      never in a pass without gradients; never from a batch with NaN or infinity, which is counted
      instead (`skipped_updates`) and told once; and the averages stay in float32 or better
      whatever the model's dtype, as in bfloat16 they come to rest before they arrive.

    Torch's own `BatchNorm1d/2d/3d` become the Livella layers of the same name, in place.

    Args:
        model: any module.
        policy: "torch" or "guarded".
        layers: names of batch norms, or of modules that hold them. Default: all.

    Returns:
        The model.

    Raises:
        ValueError: an unknown policy, a name without batch norms.

    Warns:
        UserWarning: names batch norms of other classes, which keep updating as they did.

    """
    given.check_model(model, "set_update_policy")
    if policy not in ("torch", "guarded"):
        raise ValueError(f'set_update_policy: expected "torch" or "guarded", got {policy!r}')
    others = {}
    for name, layer in adopt.named_layers(model, layers).items():
        if adopt.can_be_adopted(layer):
            adopt.change_class(layer, adopt.OURS[type(layer)])
        if isinstance(layer, _Core):
            keep_class(layer)
            layer.update_policy = policy
        else:
            others[name] = layer
    if others and policy != "torch":
        warnings.warn(
            f"set_update_policy: left alone, being of another class: {sites.in_words(others)}; "
            "they update as before",
            stacklevel=2,
        )
    return model


def skipped_updates(model: nn.Module) -> dict[str, int]:
    """Give, for each guarded layer, how many batches with NaN or infinity it kept out."""
    given.check_model(model, "skipped_updates")
    return {
        name: int(layer.skipped_batches)
        for name, layer in model.named_modules()
        if isinstance(layer, _Core) and layer.update_policy == "guarded"
    }


class Step:
    """The running statistics of a model as they were before a step of training."""

    def __init__(
        self, model: nn.Module, holds: Callable[[nn.Module], bool] = sites.keeps_averages
    ) -> None:
        self._before = [
            (layer, name, buffer, buffer.detach().clone())
            for layer in model.modules()
            if holds(layer) or isinstance(layer, Statistics)
            for name, buffer in layer.named_buffers(recurse=False)
            if name != "skipped_batches"  # what was kept out stays counted
        ]

    @torch.no_grad()
    def take_back(self) -> None:
        """Make running statistics and their counters what they were, bit for bit."""
        for layer, name, buffer, value in self._before:
            buffer.copy_(value)
            now = layer._buffers[name]
            if now is not None and now.shape != value.shape:  # it has grown by time steps
                layer._buffers[name] = buffer


@contextmanager
def step(model: nn.Module, scaler: torch.amp.GradScaler | None = None) -> Iterator[Step]:
    """Run one step of training so that its updates of the running statistics can be taken back.

    With a loss scaler they are taken back by themselves where it skipped the step: where
    `scaler.update()`, called inside, lowered the scale. After an exception they are taken back too.

    Args:
        model: any module, with torch's batch norms or Livella's.
        scaler: the one that runs the optimizer's step. Default: none.

    Yields:
        The step, to call `take_back()` on.

    Example:
        >>> with step(model, scaler):
        ...     scaler.scale(loss(model(x), y)).backward()
        ...     scaler.step(optimizer)
        ...     scaler.update()

    """
    given.check_model(model, "step")
    scale = None if scaler is None else scaler.get_scale()
    begun = Step(model)
    try:
        yield begun
    except BaseException:
        begun.take_back()
        raise
    if scaler is not None and scale is not None and scaler.get_scale() < scale:
        begun.take_back()


@contextmanager
def pooled_updates(model: nn.Module) -> Iterator[None]:
    """Let the running statistics take in all micro-batches of a step as the one batch they are.

    For gradient accumulation: each micro-batch is still normalized by itself (`accumulate` is
    exact in that too), but at the end of the block every layer in training takes in once the
    merged moments of all that it was given, the variance between micro-batches included, by
    torch's rule; synchronized layers merge those of all their processes. Inside the block the model
    runs uncompiled, as a compiled one would not be seen. Call `backward` inside too. After an
    exception nothing is taken in.

    Moving averages and recurrent layers take in each micro-batch as a batch.

    Passes without gradients, and repeated ones under activation checkpointing, do not count.

    Example:
        >>> with pooled_updates(model):
        ...     for x, y in micro_batches:
        ...         (loss(model(x), y) / len(micro_batches)).backward()
        >>> optimizer.step()

    """
    given.check_model(model, "pooled_updates")
    layers = [m for m in model.modules() if sites.is_batch_norm(m) and not is_frozen(m)]
    seen: dict[_NormBase, Moments] = {}

    def look(layer: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not (layer.training and layer.track_running_stats and is_first_pass()):
            return
        x: Tensor = args[0] if args else named["input"]
        part = Moments.of(x.detach(), mask=named.get("mask"))
        seen[layer] = seen[layer].merge(part) if layer in seen else part

    before = Step(model, sites.is_batch_norm)
    with ExitStack() as cleanup:
        cleanup.enter_context(pinned(layers, "inside pooled_updates"))
        for layer in layers:
            hook = layer.register_forward_pre_hook(look, with_kwargs=True)
            cleanup.callback(hook.remove)
        cleanup.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            before.take_back()
    for layer in layers:  # in the order of the model, so that processes meet at the same layer
        moments = seen.get(layer)
        if isinstance(layer, SyncBatchNorm | SyncBatchNormAct | nn.SyncBatchNorm):
            moments = moments or Moments.empty(layer.num_features, _device(layer))
            moments = moments.all_reduce(layer.process_group)
        if moments is not None:
            take_in(layer, moments)


def _device(layer: _NormBase) -> torch.device | None:
    return None if layer.running_mean is None else layer.running_mean.device


@torch.no_grad()
def take_in(layer: _NormBase, moments: Moments) -> None:
    """Take a batch into the running statistics of a layer in training, where it has any.

    By torch's rule: momentum, the unbiased variance, one batch more; as its switches and its policy
    say, where it is one of Livella's.
    """
    updates = layer.track_running_stats and getattr(layer, "update_running", True)
    counted = layer.momentum is not None or layer.num_batches_tracked is not None
    if not (updates and counted) or layer.running_mean is None or layer.running_var is None:
        return
    enough = torch.as_tensor(moments.count).min() >= 2
    guarded = isinstance(layer, _Core) and layer.update_policy == "guarded"
    variance = moments.variance(unbiased=True)
    switched.take_in(layer, moments.mean, variance, enough, guarded=guarded)
