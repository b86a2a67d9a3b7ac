"""Batch norm with its switches moved: which statistics normalize, which are kept, and when.

The layers come here only where a switch is not as torch has it, so that the usual call stays short.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from livella import functional
from livella.moments import Moments, accumulation_dtype

if TYPE_CHECKING:
    from livella.nn.batch import _Core

NORMALIZE_BY = (None, "batch", "running")
POLICIES = ("torch", "guarded")


class Switches(NamedTuple):
    """The switches of a layer; documented there."""

    normalize_by: str | None = None
    update_running: bool = True
    update_policy: str = "torch"

    def checked(self) -> Switches | None:
        """These switches, or none where all are as torch has them.

        Raises:
            ValueError: one has a value it cannot have.

        """
        for name, value, allowed in (
            ("normalize_by", self.normalize_by, NORMALIZE_BY),
            ("update_running", self.update_running, (True, False)),
            ("update_policy", self.update_policy, POLICIES),
        ):
            if value not in allowed:
                raise ValueError(f"expected {name} to be one of {allowed}, got {value!r}")
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
    mean, var = layer.running_mean, layer.running_var
    normalize = partial(
        functional.batch_norm,
        x,
        weight=layer.weight,
        bias=layer.bias,
        eps=layer.eps,
        activation=activation,
        residual=residual,
        mask=mask,
    )
    updates = layer.training and layer.track_running_stats and switches.update_running
    guarded = switches.update_policy == "guarded"
    updates = updates and mean is not None and (not guarded or is_first_pass())
    if not _by_batch(layer, switches):
        if updates:  # copies for the gradient, which needs them as they stood before
            assert mean is not None, "a condition of updates"
            assert var is not None
            mean, var = mean.clone(), var.clone()
        y = normalize(running_mean=mean, running_var=var)
        if updates:
            _take_in_all(layer, x, mask, guarded=guarded)
        return y
    beyond = layer._beyond()
    if not updates or (guarded and beyond):
        if "limits" in beyond and mean is not None and var is not None:  # read, and not changed
            mean, var = mean.clone(), var.clone()
        else:
            mean = var = None
        y = normalize(running_mean=mean, running_var=var, training=True, momentum=0.0, **beyond)
        if updates:
            _take_in_all(layer, x, mask, guarded=guarded)
        return y
    if not guarded:
        return normalize(
            running_mean=mean,
            running_var=var,
            training=True,
            momentum=layer.momentum,
            num_batches_tracked=layer.num_batches_tracked,
            **beyond,
        )
    # At momentum one the averages become the moments of the batch, and the counter says whether
    # there were enough values for them.
    dtype = accumulation_dtype(x.dtype)
    batch_mean, batch_var = torch.zeros((2, layer.num_features), dtype=dtype, device=x.device)
    counter = torch.zeros((), dtype=torch.long, device=x.device)
    y = normalize(
        running_mean=batch_mean,
        running_var=batch_var,
        training=True,
        momentum=1.0,
        num_batches_tracked=counter,
    )
    take_in(layer, batch_mean, batch_var, counter > 0, guarded=True)
    return y


def _by_batch(layer: _Core, switches: Switches) -> bool:
    kept = layer.running_mean is not None and layer.running_var is not None
    if switches.normalize_by == "running" and not kept:
        raise ValueError(
            f"{type(layer).__name__}: got normalize_by='running' and no running statistics; "
            "build the layer with track_running_stats=True, or set normalize_by to None"
        )
    if switches.normalize_by is None:
        return layer.training or not kept
    return switches.normalize_by == "batch"


def _take_in_all(layer: _Core, x: Tensor, mask: Tensor | None, *, guarded: bool) -> None:
    """Take a batch into the averages, its ghost batches one after the other."""
    size = layer._beyond().get("ghost_size")
    for part, _, valid in functional.ghost_batches(x, None, mask, size):
        take_in(layer, *_measured(part, valid), guarded=guarded)


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


_CHECKPOINT = ("forward", "backward", "unpack_hook")
