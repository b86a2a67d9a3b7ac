"""Batch renormalization: the batch's moments, corrected towards the running averages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from livella import functional
from livella.nn.batch import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d, _Core
from livella.nn.switched import refuse_repetition


class _Renorm(_Core):
    """What the layers here share."""

    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_steps: int = 0,
        r_max_steps: int = 0,
        d_max_steps: int = 0,
        activation: str | None = None,
        bias: bool = True,
        example_weight: float = 0.0,
        single_value: str = "error",
    ) -> None:
        functional.check_limits(r_max, d_max)
        _check_schedule(warmup_steps=warmup_steps, r_max_steps=r_max_steps, d_max_steps=d_max_steps)
        if not track_running_stats:
            raise ValueError(
                f"{type(self).__name__}: expected track_running_stats=True, got False; it corrects "
                "each batch towards the running averages; without them take a batch norm"
            )
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            activation=activation, bias=bias, example_weight=example_weight,
            single_value=single_value,
        )  # fmt: skip
        self.r_max, self.d_max = r_max, d_max
        self.warmup_steps = warmup_steps
        self.r_max_steps, self.d_max_steps = r_max_steps, d_max_steps

    @property
    def limits(self) -> tuple[float, float]:
        """The r_max and d_max of the next batch in training, by the schedule."""
        r_max, d_max = self._limits().tolist()
        return r_max, d_max

    def _beyond(self) -> dict[str, Any]:
        refuse_repetition(self, guarded=self.update_policy == "guarded")
        return {"limits": self._limits()}

    def _limits(self) -> Tensor:
        counter, full = self.num_batches_tracked, (self.r_max, self.d_max)
        if self.warmup_steps or self.r_max_steps or self.d_max_steps:
            # A number is quicker, where there is one to be had: not while a graph is being made.
            real = type(counter) is Tensor and counter.is_cpu and not torch.compiler.is_compiling()
            step = int(counter) if real else counter.double()
            r = _between(1.0, self.r_max, _ramp(step, self.warmup_steps, self.r_max_steps))
            d = _between(0.0, self.d_max, _ramp(step, self.warmup_steps, self.d_max_steps))
            if isinstance(r, Tensor):
                return torch.stack([r, d])
            full = r, d
        return torch.tensor(full, dtype=torch.float64, device=counter.device)

    def extra_repr(self) -> str:
        """Describe the layer as batch norm is, then the limits and their schedule."""
        described = f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"
        for name in ("warmup_steps", "r_max_steps", "d_max_steps"):
            steps = getattr(self, name)
            described += f", {name}={steps}" if steps else ""
        return described


class BatchRenorm1d(_Renorm):
    """Batch renormalization of (N, C) or (N, C, L). See `BatchRenorm2d`."""

    input_dims = BatchNormAct1d.input_dims


class BatchRenorm2d(_Renorm):
    """Batch renormalization of (N, C, H, W), for small batches and such that are no fair sample.

    In training x̂ = (x − μ_B)/σ_B·r + d, with μ_B and σ_B = √(σ_B² + ε) of the batch,
    r = clip(σ_B/σ, 1/r_max, r_max) and d = clip((μ_B − μ)/σ, −d_max, d_max), with μ and
    σ = √(σ² + ε) of the running averages as they were before this batch; then
    y = act(γ·x̂ + β + residual). r and d count as constants for the gradient. Within the limits x̂ is
    (x − μ)/σ, what evaluation makes of it, yet the gradient knows that the batch normalizes. Ioffe
    2017, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
    Algorithm 1. Evaluation is that of batch norm.

    The limits grow with the batches that `num_batches_tracked` counts, so a resumed checkpoint
    goes on where it was: r_max = 1 and d_max = 0, which is batch norm, bit for bit, for
    `warmup_steps`; from there linearly, to their full values at step `r_max_steps` and
    `d_max_steps`, both counted from the start of training (at once where these lie no later than
    the warm-up's end). Published: warm-up of 5000 steps, r_max to 3 by step 40000, d_max to 5 by
    step 25000, momentum 0.01. By default the full limits hold from the first step, as a
    schedule for long trainings would leave a short one with batch norm. `limits` tells the current
    ones.

    The paper averages σ. Here the running averages are those of batch norm, the unbiased
    variance, so that state dicts are the same; r and d refer to what evaluation uses.

    Activation checkpoints call a layer twice, and r and d would come out otherwise: inside one it
    raises, but for the reentrant kind with the "guarded" policy (`livella.set_update_policy`),
    which updates in the second call alone.

    No instance of torch's `_BatchNorm`, whose converters would put a plain layer in its place:
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` leaves it as it is and
    `torch.optim.swa_utils.update_bn` does not refresh its averages; `livella.estimate_population`
    does.

    Args:
        num_features: C.
        eps: ε, in the squared unit of the input. Default: 1e-5.
        momentum: the share of each batch in the running averages; none averages all batches
            equally. Default: 0.1.
        affine: learn γ (from one) and β (from zero). Default: true.
        track_running_stats: must be true.
        device: where parameters and averages live. Default: torch's.
        dtype: their dtype, float32 or that of the input. Default: torch's.
        r_max: the largest r, and 1/r_max the smallest; one or more. Default: 3.
        d_max: the largest |d|, in standard deviations; not below zero. Default: 5.
        warmup_steps: batches normalized as by batch norm. Default: 0.
        r_max_steps: the step from which r_max is in full force. Default: 0.
        d_max_steps: the step from which d_max is. Default: 0.
        activation: "relu", "relu6", "leaky_relu", "silu" or "hardswish". Default: none.
        bias: learn β as well as γ. Default: true.
        example_weight: as of `BatchNorm2d`. Default: 0.
        single_value: as of `BatchNorm2d`. Default: "error".

    Raises:
        RuntimeError: at the call, repeated by an activation checkpoint.
        ValueError: limits out of range, steps below zero, `track_running_stats=False`, an unknown
            activation.

    Example:
        >>> norm = BatchRenorm2d(64, warmup_steps=5000, r_max_steps=40000, d_max_steps=25000)
        >>> norm.limits
        (1.0, 0.0)

    """

    input_dims = BatchNormAct2d.input_dims


class BatchRenorm3d(_Renorm):
    """Batch renormalization of (N, C, D, H, W). See `BatchRenorm2d`."""

    input_dims = BatchNormAct3d.input_dims


def _ramp(step: int | Tensor, start: int, end: int) -> Any:
    """Rise from zero at `start` to one at `end`, or, where that is no later, in the step before."""
    if end <= start:
        start, end = start - 1, start
    share = (step - start) / (end - start)
    return share.clamp(0, 1) if isinstance(share, Tensor) else min(max(share, 0.0), 1.0)


def _between(start: float, end: float, share: Any) -> Any:
    """Go the share of the way from start to end, which may be infinite."""
    if isinstance(share, Tensor):
        return torch.where(share > 0, start + (end - start) * share, start)
    return start + (end - start) * share if share > 0 else start


def _check_schedule(**steps: int) -> None:
    for name, count in steps.items():
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"expected {name} as a number of steps, got {count!r}")
