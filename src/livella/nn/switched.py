"""Batch norm with its switches moved: which statistics normalize, which are kept, and when.

The layers come here only where a switch is not as torch has it, so that the usual call stays short.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella import functional
from livella.moments import Moments, accumulation_dtype, count_elements
from livella.nn import example

if TYPE_CHECKING:
    from livella.nn.batch import _Core

NORMALIZE_BY = (None, "batch", "running")
POLICIES = ("torch", "guarded")
SINGLE_VALUE = ("error", "running")


class Switches(NamedTuple):
    """The switches of a layer; documented there."""

    normalize_by: str | None = None
    update_running: bool = True
    update_policy: str = "torch"
    example_weight: float = 0.0
    single_value: str = "error"

    def checked(self) -> Switches | None:
        """These switches, or none where all are as torch has them.

        Raises:
            ValueError: one has a value it cannot have.

        """
        for name, value, allowed in (
            ("normalize_by", self.normalize_by, NORMALIZE_BY),
            ("update_running", self.update_running, (True, False)),
            ("update_policy", self.update_policy, POLICIES),
            ("single_value", self.single_value, SINGLE_VALUE),
        ):
            if value not in allowed:
                raise ValueError(f"expected {name} to be one of {allowed}, got {value!r}")
        if not 0 <= self.example_weight <= 1:
            raise ValueError(
                f"expected example_weight between 0 and 1, got {self.example_weight!r}; "
                "0 leaves the example's own moments out"
            )
        return None if self == Switches() else self

    def __str__(self) -> str:
        usual = Switches()._asdict()
        changed = ((k, v) for k, v in self._asdict().items() if v != usual[k])
        return ", ".join(f"{name}={value}" for name, value in changed)


def forward(
    layer: _Core,
    x: Tensor,
    switches: Switches,
    residual: Tensor | None,
    mask: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Normalize as the switches say."""
    if switches.single_value == "running" and _by_batch(layer, switches):
        return _unless_single(layer, x, switches, residual, mask, activation)
    given: dict[str, Any] = {
        "weight": layer.weight,
        "bias": layer.bias,
        "eps": layer.eps,
        "activation": activation,
        "residual": residual,
        "mask": mask,
    }
    guarded = switches.update_policy == "guarded"
    updates = layer.training and layer.track_running_stats and switches.update_running
    updates = updates and layer.running_mean is not None and (not guarded or is_first_pass())
    beyond = layer._beyond()
    by_batch = partial(functional.batch_norm, x, training=True, **given)
    if not _by_batch(layer, switches):
        y = _by_averages(layer, x, switches, updates, given)
    elif updates and not guarded:
        return _as_torch(layer, by_batch, beyond)
    elif updates and not beyond:
        return _guarded(layer, x, by_batch)
    else:
        y = by_batch(**_averages_to_read(layer, beyond), momentum=0.0, **beyond)
    if updates:
        _take_in_all(layer, x, mask, guarded=guarded)
    return y


def _by_averages(
    layer: _Core, x: Tensor, switches: Switches, updates: bool, given: dict[str, Any]
) -> Tensor:
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None, "asked in _by_batch"
    assert var is not None
    if switches.example_weight:
        return example.batch_norm(x, mean, var, share=switches.example_weight, **given)
    if updates:  # copies for the gradient, which needs them as they stood before
        mean, var = mean.clone(), var.clone()
    return functional.batch_norm(x, mean, var, **given)


def _averages_to_read(layer: _Core, beyond: dict[str, Any]) -> dict[str, Any]:
    """What normalization by a batch needs to know of the averages, safe from being changed."""
    mean, var = layer.running_mean, layer.running_var
    if "limits" not in beyond or mean is None or var is None:
        return {"running_mean": None, "running_var": None}
    return {"running_mean": mean.clone(), "running_var": var.clone()}


def _as_torch(layer: _Core, by_batch: Callable[..., Tensor], beyond: dict[str, Any]) -> Tensor:
    return by_batch(
        running_mean=layer.running_mean,
        running_var=layer.running_var,
        momentum=layer.momentum,
        num_batches_tracked=layer.num_batches_tracked,
        **beyond,
    )


def _guarded(layer: _Core, x: Tensor, by_batch: Callable[..., Tensor]) -> Tensor:
    # At momentum one the averages become the moments of the batch, and the counter says whether
    # there were enough values for them.
    dtype = accumulation_dtype(x.dtype)
    batch_mean, batch_var = torch.zeros((2, layer.num_features), dtype=dtype, device=x.device)
    counter = torch.zeros((), dtype=torch.long, device=x.device)
    y = by_batch(
        running_mean=batch_mean,
        running_var=batch_var,
        momentum=1.0,
        num_batches_tracked=counter,
    )
    take_in(layer, batch_mean, batch_var, counter > 0, guarded=True)
    return y


def _unless_single(
    layer: _Core,
    x: Tensor,
    switches: Switches,
    residual: Tensor | None,
    mask: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Normalize by the batch; one of a single value a channel as `by_running` does."""
    _check_kept(layer, "single_value")
    if mask is None and count_elements(x.shape) == 1:
        return by_running(layer, x, residual, mask, activation)
    y = forward(layer, x, switches._replace(single_value="error"), residual, mask, activation)
    if mask is None:
        return y
    # A single valid element updated nothing: the statistics still stand as they were.
    single = torch.as_tensor(count_elements(x.shape, mask=mask) == 1, device=x.device)
    return torch.where(single, by_running(layer, x, residual, mask, activation), y)


def by_running(
    layer: _Core,
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Normalize by the running statistics, whatever the layer's switches, and update nothing."""
    switches = Switches(normalize_by="running", update_running=False)
    return forward(layer, x, switches, residual, mask, activation)


def _by_batch(layer: _Core, switches: Switches) -> bool:
    if switches.normalize_by == "running":
        _check_kept(layer, "normalize_by")
    if switches.normalize_by is None:
        return layer.training or layer.running_mean is None or layer.running_var is None
    return switches.normalize_by == "batch"


def _take_in_all(layer: _Core, x: Tensor, mask: Tensor | None, *, guarded: bool) -> None:
    """Take a batch into the averages, its ghost batches one after the other."""
    size = layer._beyond().get("ghost_size")
    for part, _, valid in functional.ghost_batches(x, None, mask, size):
        take_in(layer, *_measured(part, valid), guarded=guarded)


def _check_kept(layer: _Core, switch: str) -> None:
    if layer.running_mean is None or layer.running_var is None:
        usual = Switches()._asdict()[switch]
        raise ValueError(
            f"{type(layer).__name__}: got {switch}='running' and no running statistics; "
            f"build the layer with track_running_stats=True, or set {switch} to {usual!r}"
        )


def _measured(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    moments = Moments.of(x.detach(), mask=mask)
    enough = torch.as_tensor(moments.count, device=x.device) >= 2
    return moments.mean, moments.variance(unbiased=True), enough


@torch.no_grad()
def take_in(layer: _NormBase, mean: Tensor, var: Tensor, enough: Tensor, *, guarded: bool) -> None:
    """Take a batch into the averages, where it had two values or more; if guarded, finite ones."""
    counter = layer.num_batches_tracked
    taken = enough
    if guarded:
        taken = enough & mean.isfinite().all() & var.isfinite().all()
        count_skipped(layer, enough & ~taken)
    share: float | Tensor | None = layer.momentum
    if share is None:
        assert counter is not None, "an average over all batches counts them"
        share = (counter + 1).to(mean.dtype).reciprocal()
    for running, new in ((layer.running_mean, mean), (layer.running_var, var)):
        assert running is not None, "checked by the caller"
        average = torch.lerp(running.to(new.dtype), new, share).to(running.dtype)
        running.copy_(torch.where(taken, average, running))
    if counter is not None:
        counter.add_(taken)


def count_skipped(layer: _NormBase, skipped: Tensor) -> None:
    """Count a batch that was kept out of the averages of a guarded layer, and tell the first."""
    assert isinstance(layer.skipped_batches, Tensor), "guarded layers have it"
    layer.skipped_batches.add_(skipped)
    if torch.compiler.is_compiling() or not skipped.is_cpu:  # asking a GPU would wait for it
        return
    if bool(skipped) and int(layer.skipped_batches) == 1:
        warnings.warn(
            f"{type(layer).__name__}({layer.num_features}) met NaN or infinity and kept its "
            "running statistics as they were; further batches are counted in silence, see "
            "livella.skipped_updates(model)",
            stacklevel=4,
        )


def is_first_pass() -> bool:
    """Whether this pass of a batch is the one that counts, under activation checkpointing too.

    A pass without gradients never is. A checkpoint of the reentrant kind runs a segment without
    gradients, then once more, with them, in its own backward: that second pass counts. The other
    kind runs it with gradients, and again when a saved tensor is asked for: that one does not.
    Inside a compiled segment it cannot be told, and each pass counts: compile what is around the
    checkpoint instead.
    """
    if not torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return True
    return checkpoint_frame() != "unpack_hook"


def checkpoint_frame() -> str | None:
    """Which function of an activation checkpoint this call is made in, the innermost, if in any.

    "forward" is the first pass of the reentrant kind, "backward" its second; "unpack_hook" is the
    second pass of the other kind.
    """
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint" and name in _CHECKPOINT:
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return None


def refuse_repetition(layer: nn.Module, *, guarded: bool = False) -> None:
    """Raise where an activation checkpoint repeats a call by averages that have moved on since.

    Only the reentrant kind leaves those of a guarded layer alone in the first pass.

    Raises:
        RuntimeError: the gradient would not be that of what was computed in the first pass.

    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return
    frame = checkpoint_frame()
    if frame == "unpack_hook" or (frame == "backward" and not guarded):
        raise RuntimeError(
            f"{type(layer).__name__}: an activation checkpoint calls it again, and what it does "
            "depends on averages that the first call has moved, so that the gradient would be "
            "wrong; leave the layer out of the checkpoint"
        )


_CHECKPOINT = ("forward", "backward", "unpack_hook")
