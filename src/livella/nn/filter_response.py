"""Filter response normalization: each channel of each sample by itself, without a mean."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from livella import functional
from livella.moments import accumulation_dtype, across


class _FilterResponseNorm(nn.Module):
    """What the layers for one to three dimensions share; see `FilterResponseNorm2d`."""

    input_dims: ClassVar[tuple[int, ...]]
    eps: float | nn.Parameter
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    threshold: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        thresholded: bool = True,
        learn_eps: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not eps > 0:
            raise ValueError(
                f"{type(self).__name__}: expected eps above zero, got {eps}; "
                "the usual value is 1e-6, or 1e-4 where it is learned"
            )
        self.num_features, self.affine, self.first_eps = num_features, affine, eps
        for name, wanted in (("weight", affine), ("bias", affine), ("threshold", thresholded)):
            vector = torch.empty(num_features, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if vector is None else nn.Parameter(vector))
        self.eps = nn.Parameter(torch.empty(1, device=device, dtype=dtype)) if learn_eps else eps
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set γ to one, β and τ to zero, and an ε that is learned to what it was built with."""
        firsts = {"weight": 1.0, "bias": 0.0, "threshold": 0.0, "eps": self.first_eps}
        for name, parameter in self.named_parameters():
            parameter.fill_(firsts[name])

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x`; the result has its shape and dtype.

        Raises:
            ValueError: the input has other dimensions, or another number of channels.
            NotImplementedError: the input is not of a floating dtype.

        """
        self._check(x)
        values = x.to(accumulation_dtype(x.dtype))
        y = self._of_maps(values) if x.dim() > 2 and x.numel() else self._of_values(values)
        return y.to(x.dtype).contiguous(memory_format=functional._memory_format(x))

    def _of_maps(self, x: Tensor) -> Tensor:
        samples, maps = x.shape[0], x.flatten(0, 1).unsqueeze(0)  # each map is a channel
        space = list(range(2, x.dim()))
        mean_square = torch.linalg.vector_norm(maps, dim=space).square() / maps[0, 0].numel()
        scale = self._inverse(mean_square).flatten()
        shift = None if self.bias is None else self.bias.to(x.dtype)
        if self.weight is not None:
            scale = scale * self.weight.to(x.dtype).repeat(samples)
        if self.threshold is None:
            shift = None if shift is None else shift.repeat(samples)
            return functional.scale_channels(maps, scale, shift).view(x.shape)
        threshold = self.threshold.to(x.dtype)  # max(z, τ) = relu(z − τ) + τ
        shift = (-threshold if shift is None else shift - threshold).repeat(samples)
        above = functional.scale_channels(maps, scale, shift, "relu").view(x.shape)
        return above + across(threshold, x.dim())

    def _of_values(self, x: Tensor) -> Tensor:
        y = x * self._inverse(x.square())
        if self.weight is not None and self.bias is not None:
            y = y * self._across(self.weight, y) + self._across(self.bias, y)
        return y if self.threshold is None else torch.maximum(y, self._across(self.threshold, y))

    def _inverse(self, mean_square: Tensor) -> Tensor:
        eps = self.eps.abs().to(mean_square.dtype) if isinstance(self.eps, Tensor) else self.eps
        return torch.rsqrt(mean_square + eps)

    def _across(self, parameter: Tensor, y: Tensor) -> Tensor:
        return across(parameter.to(y.dtype), y.dim())

    def _check(self, x: Tensor) -> None:
        kind = type(self).__name__
        if x.dim() not in self.input_dims or x.shape[1] != self.num_features:
            shapes = (
                f"(N, {self.num_features}{', ...' if dims > 2 else ''}) of {dims} dimensions"
                for dims in self.input_dims
            )
            raise ValueError(
                f"{kind}: expected an input of shape {' or '.join(shapes)}, got {tuple(x.shape)}; "
                "build the layer for this number of channels, or use the class for that number of "
                "dimensions"
            )
        if not x.is_floating_point():
            raise NotImplementedError(
                f"{kind}: expected an input of a floating dtype, got {x.dtype}; "
                "convert it, for example with input.float()"
            )

    def extra_repr(self) -> str:
        """Describe the layer."""
        learned = isinstance(self.eps, Tensor)
        return (
            f"{self.num_features}, eps={self.first_eps}, affine={self.affine}, "
            f"thresholded={self.threshold is not None}, learn_eps={learned}"
        )


class FilterResponseNorm1d(_FilterResponseNorm):
    """Filter response normalization of (N, C) or (N, C, L), over L. See `FilterResponseNorm2d`."""

    input_dims = (2, 3)


class FilterResponseNorm2d(_FilterResponseNorm):
    """Filter response normalization of (N, C, H, W), over H and W, with its threshold.

    ν² = mean(x²) over the positions of one channel of one sample, ŷ = γ·x/√(ν² + |ε|) + β, and
    y = max(ŷ, τ), the thresholded linear unit with one learned τ a channel: Singh & Krishnan 2020,
    "Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of Deep
    Neural Networks", section 3. The unit is the activation: no other follows it, and
    it takes the place of batch norm and ReLU together. No sample sees another; training and
    evaluation do not differ. Computed in float32, or float64 for float64.

    Where a map has one position (1×1, or (N, C) inputs) ν² is the value's own square, and with a
    small ε nothing but its sign is left: the paper then learns ε, here one number a layer,
    from 1e-4 on.

    Args:
        num_features: C.
        eps: ε, in the squared unit of the input. Default: 1e-6.
        affine: learn γ (from one) and β (from zero). Default: true.
        thresholded: learn τ (from zero, which is ReLU); without it y = ŷ. Default: true.
        learn_eps: learn ε, from `eps` on; its absolute value is used. Default: false.
        device: where the parameters live. Default: torch's.
        dtype: their dtype. Default: torch's.

    Raises:
        ValueError: `eps` not above zero.

    """

    input_dims = (4,)


class FilterResponseNorm3d(_FilterResponseNorm):
    """Filter response normalization of (N, C, D, H, W). See `FilterResponseNorm2d`."""

    input_dims = (5,)
