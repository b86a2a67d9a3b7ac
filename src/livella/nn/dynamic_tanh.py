"""Dynamic tanh: a squashing function in the place of a normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from livella.moments import accumulation_dtype, across


class DynamicTanh(nn.Module):
    """Squash each value: y = γ·tanh(α·x) + β.

    Zhu, Chen, He, LeCun & Liu 2025, "Transformers without Normalization", section 4. α is one
    learned number a layer; γ and β are one number a channel. It has no moments: no value sees
    another, and training and evaluation do not differ. In networks built for batch norm it
    falls behind, as the paper says among its limitations. Computed in float32, or float64 for
    float64.

    Args:
        num_features: C, for input of shape (N, C) or (N, C, …).
        alpha: what α starts from. Default: 0.5.
        affine: learn γ (from one) and β (from zero). Default: true.
        device: where the parameters live. Default: torch's.
        dtype: their dtype. Default: torch's.

    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        alpha: float = 0.5,
        affine: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.first_alpha, self.affine = num_features, alpha, affine
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        for name in ("weight", "bias"):
            vector = torch.empty(num_features, device=device, dtype=dtype) if affine else None
            self.register_parameter(name, None if vector is None else nn.Parameter(vector))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set α to what it was built with, γ to one and β to zero again."""
        self.alpha.fill_(self.first_alpha)
        if self.weight is not None and self.bias is not None:
            self.weight.fill_(1)
            self.bias.fill_(0)

    def forward(self, x: Tensor) -> Tensor:
        """Squash `x`, of shape (N, C) or (N, C, …); the result has its shape and dtype.

        Raises:
            ValueError: the input has no channels, or another number of them.
            NotImplementedError: the input is not of a floating dtype.

        """
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"DynamicTanh: expected an input of shape (N, {self.num_features}, ...), "
                f"got {tuple(x.shape)}; build the layer for this number of channels"
            )
        if not x.is_floating_point():
            raise NotImplementedError(
                f"DynamicTanh: expected an input of a floating dtype, got {x.dtype}; "
                "convert it, for example with input.float()"
            )
        dtype = accumulation_dtype(x.dtype)
        y = torch.tanh(self.alpha.to(dtype) * x.to(dtype))
        if self.weight is not None and self.bias is not None:
            weight, bias = (across(p.to(dtype), x.dim()) for p in (self.weight, self.bias))
            y = torch.addcmul(bias, y, weight)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """Describe the layer."""
        return f"{self.num_features}, alpha={self.first_alpha}, affine={self.affine}"
