"""Root-mean-square normalization over channels and space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from livella.moments import accumulation_dtype


class RMSNorm(nn.Module):
    """Scale each sample to a root mean square of one: y = x/√(mean(x²) + ε)·γ.

    Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", plus ε. The mean square is taken
    over channels and space of one sample, and γ is one number a channel: the kin of layer
    normalization as convolutional networks use it, without the centring and without β.
    (`torch.nn.RMSNorm` normalizes trailing dimensions, and has a γ for each of their elements.)
    Computed in float32, or float64 for float64; training and evaluation do not differ.

    Args:
        num_features: C, for input of shape (N, C) or (N, C, …).
        eps: ε, in the squared unit of the input. Default: 1e-5.
        affine: learn γ, from one. Default: true.
        device: where γ lives. Default: torch's.
        dtype: the dtype of γ. Default: torch's.

    """

    weight: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        weight = torch.ones(num_features, device=device, dtype=dtype) if affine else None
        self.register_parameter("weight", None if weight is None else nn.Parameter(weight))

    def reset_parameters(self) -> None:
        """Set γ to one again."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x`, of shape (N, C) or (N, C, …); the result has its shape and dtype.

        Raises:
            ValueError: the input has no channels, or another number of them.
            NotImplementedError: the input is not of a floating dtype.

        """
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"RMSNorm: expected an input of shape (N, {self.num_features}, ...), "
                f"got {tuple(x.shape)}; build the layer for this number of channels"
            )
        if not x.is_floating_point():
            raise NotImplementedError(
                f"RMSNorm: expected an input of a floating dtype, got {x.dtype}; "
                "convert it, for example with input.float()"
            )
        values = x.to(accumulation_dtype(x.dtype))
        mean_square = values.square().mean(list(range(1, x.dim())), keepdim=True)
        y = values * torch.rsqrt(mean_square + self.eps)
        if self.weight is not None:
            y = y * self.weight.to(y.dtype).view(-1, *[1] * (x.dim() - 2))
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """Describe the layer."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
