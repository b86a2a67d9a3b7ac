"""Batch normalization layers: torch's own, with an activation, a residual and a mask.

Each number of dimensions has two classes. `BatchNorm2d` is also a `torch.nn.BatchNorm2d`, and
whatever treats torch's layers specially (synchronization, folding, freezing) does so with it.
`BatchNormAct2d` has an activation fused in and is deliberately no `torch.nn.BatchNorm2d`: such
tools replace a layer by a plain one, and would drop the activation without a word. They pass such
a layer over instead: `torch.optim.swa_utils.update_bn` does not refresh its averages, and
`convert_sync_batchnorm` leaves it as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella import functional
from livella.nn import switched
from livella.nn.precision import keep_precision
from livella.nn.switched import Switches


class _Core(_NormBase):
    """What all batch normalization layers here share: parameters, running averages, the call."""

    input_dims: ClassVar[tuple[int, ...]]
    activation: str | None = None
    skipped_batches: Tensor
    _switches: Switches | None = None

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
        activation: str | None = None,
        bias: bool = True,
        example_weight: float = 0.0,
        single_value: str = "error",
    ) -> None:
        functional.check_activation(activation)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.activation = activation
        if not bias:  # dropped here, as older versions of torch do not take it
            self.register_parameter("bias", None)
        if (example_weight, single_value) != (0.0, "error"):
            self._switch(example_weight=example_weight, single_value=single_value)

    def forward(
        self,
        input: Tensor,  # noqa: A002  torch's name
        *,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """Normalize `input`, add `residual`, apply the activation, all where `mask` is true.

        See `livella.functional.batch_norm` for shapes, formula and errors. `activation` is that of
        this call alone, for a layer that has none of its own: the layer stays a plain batch norm.
        A batch that leaves the running averages alone, having fewer than two valid elements, is
        not counted either.
        """
        if input.dim() not in self.input_dims:
            raise self._wrong_dimensions(input)
        if self._switches is not None:
            activation = self.activation if activation is None else self._only(activation)
            return switched.forward(self, input, self._switches, residual, mask, activation)
        training, parameters, buffers = self.training, self._parameters, self._buffers
        try:  # out of their dictionaries, as a module's attributes are slow to read
            weight, bias = parameters["weight"], parameters["bias"]
            mean, var = buffers["running_mean"], buffers["running_var"]
        except KeyError:  # something else provides them, a parametrization for one
            weight, bias = self.weight, self.bias
            mean, var = self.running_mean, self.running_var
        batch = training or (mean is None and var is None)
        tracking = training and self.track_running_stats
        if training and not tracking:
            mean = var = None
        counter = self.num_batches_tracked if tracking else None
        momentum = self.momentum
        beyond = self._beyond() if training else {}
        return functional.batch_norm(
            input,
            mean,
            var,
            weight,
            bias,
            batch,
            0.0 if momentum is None and counter is None else momentum,
            self.eps,
            activation=self.activation if activation is None else self._only(activation),
            residual=residual,
            mask=mask,
            num_batches_tracked=counter,
            **beyond,
        )

    def _beyond(self) -> dict[str, Any]:
        """Give what `functional.batch_norm` is asked for beyond batch norm where a batch counts."""
        return {}

    @property
    def normalize_by(self) -> str | None:
        """Which statistics normalize: "batch", "running", or none for torch's rule.

        That is those of the batch in training and the running ones in evaluation. Running ones
        normalize as they stood before the batch at hand.
        """
        return (self._switches or Switches()).normalize_by

    @normalize_by.setter
    def normalize_by(self, value: str | None) -> None:
        self._switch(normalize_by=value)

    @property
    def update_running(self) -> bool:
        """Whether the running statistics take in the batches of training. Default: true."""
        return (self._switches or Switches()).update_running

    @update_running.setter
    def update_running(self, value: bool) -> None:
        self._switch(update_running=value)

    @property
    def update_policy(self) -> str:
        """When they do: "torch", as torch does, or "guarded", see `livella.set_update_policy`."""
        return (self._switches or Switches()).update_policy

    @update_policy.setter
    def update_policy(self, value: str) -> None:
        self._switch(update_policy=value)
        if value == "guarded" and "skipped_batches" not in self._buffers:
            tensors = (self.running_mean, self.weight)
            device = next((t.device for t in tensors if t is not None), None)
            zero = torch.zeros((), dtype=torch.long, device=device)
            self.register_buffer("skipped_batches", zero, persistent=False)
            self._keep_precision({})
        elif value != "guarded" and "skipped_batches" in self._buffers:
            del self.skipped_batches

    @property
    def example_weight(self) -> float:
        """α, the share of each example's own moments in evaluation, from 0, none, to 1.

        Where the running statistics μ and σ² normalize, an example with mean m and
        biased variance s² in a channel is normalized by the moments of the mixture of both,
        (1 − α)·μ + α·m and (1 − α)·σ² + α·s² + α(1 − α)(m − μ)², as first and second moments are
        averaged: Summers & Dinneen 2020, "Four Things Everyone Should Know to Improve Batch
        Normalization", under "Inference example weighing". It may be set after training; α is
        chosen on validation. With a mask m and s² are of the example's valid elements, and an
        example without any is normalized by μ and σ² alone. On (N, C) inputs m is the value itself
        and s² zero. Gradients flow through m and s². Torch's own tools, which fold or convert batch
        norms, know nothing of it and drop it. Default: 0.
        """
        return (self._switches or Switches()).example_weight

    @example_weight.setter
    def example_weight(self, value: float) -> None:
        self._switch(example_weight=value)

    @property
    def single_value(self) -> str:
        """What to do with a training batch of one value a channel, which has no variance.

        "error" raises; "running" normalizes it by the running statistics and updates nothing.
        With a mask the batch is what is valid. Default: "error".
        """
        return (self._switches or Switches()).single_value

    @single_value.setter
    def single_value(self, value: str) -> None:
        self._switch(single_value=value)

    def _switch(self, **changed: Any) -> None:
        self._switches = (self._switches or Switches())._replace(**changed).checked()

    @property
    def train_affine(self) -> bool:
        """Whether γ and β train: whether either asks for a gradient."""
        return any(p.requires_grad for p in (self.weight, self.bias) if p is not None)

    @train_affine.setter
    def train_affine(self, value: bool) -> None:
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Core:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.update_policy == "guarded":
            self._keep_precision(before)
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self.update_policy == "guarded":  # assigned, tensors bring their dtype along
            self._keep_precision({})

    def _keep_precision(self, before: dict[str, Tensor | None]) -> None:
        keep_precision(self._buffers, before, ("running_mean", "running_var"))

    def _only(self, activation: str) -> str:
        if self.activation is not None:
            raise ValueError(
                f"{type(self).__name__}: got activation={activation!r} for a layer built with "
                f"activation={self.activation!r}; give one of them"
            )
        return activation

    def _wrong_dimensions(self, input: Tensor) -> ValueError:  # noqa: A002  torch's name
        expected = " or ".join(f"{dims}D" for dims in self.input_dims)
        return ValueError(
            f"{type(self).__name__}: expected {expected} input, got {input.dim()}D input of "
            f"shape {tuple(input.shape)}; use the class for that number of dimensions, "
            "or add or remove a dimension"
        )

    def extra_repr(self) -> str:
        """Describe the layer as torch does, then the activation."""
        described: str = super().extra_repr()  # type: ignore[no-untyped-call]
        if self.activation is not None:
            described += f", activation={self.activation}"
        return described if self._switches is None else f"{described}, {self._switches}"


class BatchNormAct1d(_Core):
    """`BatchNorm1d` with an activation fused in; no instance of `torch.nn.BatchNorm1d`."""

    input_dims = (2, 3)


class BatchNormAct2d(_Core):
    """`BatchNorm2d` with an activation fused in; no instance of `torch.nn.BatchNorm2d`."""

    input_dims = (4,)


class BatchNormAct3d(_Core):
    """`BatchNorm3d` with an activation fused in; no instance of `torch.nn.BatchNorm3d`."""

    input_dims = (5,)


def _signature(layer: type[_Core]) -> inspect.Signature:
    signature = inspect.signature(layer.__init__)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


class _Plain(_Core):
    """A layer without an activation; asked for one, the class hands over to its sibling."""

    with_activation: ClassVar[type[_Core]]
    # What tools and editors see, `torch.nn.utils.skip_init` for one, in place of `*arguments`.
    __signature__: ClassVar[inspect.Signature] = _signature(_Core)

    def __new__(cls, *arguments: Any, activation: str | None = None, **options: Any) -> Any:
        if activation is not None and "with_activation" in vars(cls):
            return cls.with_activation(*arguments, activation=activation, **options)
        return super().__new__(cls)

    def __init__(self, *arguments: Any, activation: str | None = None, **options: Any) -> None:
        if activation is not None:
            raise TypeError(
                f"{type(self).__name__} cannot take activation={activation!r}: it is a torch batch "
                "norm, which torch's tools may replace by one without an activation; "
                f"derive it from livella.nn.{self.with_activation.__name__} instead"
            )
        super().__init__(*arguments, **options)


class BatchNorm1d(_Plain, nn.BatchNorm1d):
    """Batch normalization of (N, C) or (N, C, L), over all but C. See `BatchNorm2d`."""

    input_dims = BatchNormAct1d.input_dims
    with_activation = BatchNormAct1d


class BatchNorm2d(_Plain, nn.BatchNorm2d):
    """Batch normalization of (N, C, H, W), over all but C.

    y = act((x − μ)/√(σ² + ε)·γ + β + residual), Ioffe & Szegedy 2015, Algorithm 1 and section 3.2.
    Takes the place of `torch.nn.BatchNorm2d`: same results, same `state_dict` keys, and an instance
    of it. In training μ and σ² are the mean and the biased variance of the batch; the running
    averages store its mean and its unbiased variance, and are what evaluation uses.

    Args:
        num_features: C.
        eps: ε, in the squared unit of the input. Default: 1e-5.
        momentum: the share of each batch in the running averages; none averages all batches
            equally. Default: 0.1.
        affine: learn γ (from one) and β (from zero). Default: true.
        track_running_stats: keep running averages; without them evaluation too uses the batch.
            Default: true.
        device: where parameters and averages live. Default: torch's.
        dtype: their dtype, float32 or that of the input. Default: torch's.
        activation: "relu", "relu6", "leaky_relu", "silu" or "hardswish". With one, the result is a
            `BatchNormAct2d`, no `torch.nn.BatchNorm2d`, so that no tool can drop the activation in
            silence. Default: none.
        bias: learn β as well as γ. Default: true.
        example_weight: the share of each example's own moments in evaluation, see the property of
            this name. Default: 0.
        single_value: "error" or "running", what to do with a training batch of one value a
            channel, see the property of this name. Default: "error".

    Raises:
        TypeError: an activation given to a subclass; derive from `BatchNormAct2d` for that.
        ValueError: an unknown activation or `single_value`, an `example_weight` outside [0, 1];
            at the call, one value a channel in training.

    Example:
        >>> norm = BatchNorm2d(64, activation="relu")
        >>> norm(torch.randn(8, 64, 7, 7), residual=torch.randn(8, 64, 7, 7)).shape
        torch.Size([8, 64, 7, 7])

    """

    input_dims = BatchNormAct2d.input_dims
    with_activation = BatchNormAct2d


class BatchNorm3d(_Plain, nn.BatchNorm3d):
    """Batch normalization of (N, C, D, H, W), over all but C. See `BatchNorm2d`."""

    input_dims = BatchNormAct3d.input_dims
    with_activation = BatchNormAct3d


OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
"""The layer that takes the place of each of torch's."""
