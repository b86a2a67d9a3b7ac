"""Batch normalization of sequences, over batch and time."""

from __future__ import annotations

import torch
from torch import nn

from livella.nn.batch import BatchNorm1d
from livella.nn.packing import Data, Lengths, pack


class SequenceBatchNorm(nn.Module):
    """Sequence-wise batch normalization: moments of each feature over batch *and* time.

    y = act((x − μ)/√(σ² + ε)·γ + β), Amodei et al. 2016, "Deep Speech 2", section 3.2, and Laurent
    et al. 2016, "Batch Normalized Recurrent Neural Networks", section 3.2. Both normalize the input
    part of a recurrent layer, f(BN(W·x) + U·h), and leave the recurrent part alone: put this layer
    behind the linear map whose result enters the recurrence, or before a recurrent layer of torch.
    Only valid elements count, so neither results nor statistics depend on the padding, bit for bit.

    It holds one `BatchNorm1d`, as `norm`, which sees the valid elements as rows: whatever treats
    batch norms specially (`livella.freeze`, `livella.estimate_population`, torch's own tools)
    meets a plain one.

    Args:
        num_features: F.
        eps: ε, in the squared unit of the input. Default: 1e-5.
        momentum: the share of each batch in the running averages; none averages all batches
            equally. Default: 0.1.
        affine: learn γ (from one) and β (from zero). Default: true.
        track_running_stats: keep running averages; without them evaluation too uses the batch.
            Default: true.
        device: where parameters and averages live. Default: torch's.
        dtype: their dtype. Default: torch's.
        batch_first: take and give (N, T, F) instead of (T, N, F). Default: false.
        activation: as in `BatchNorm2d`. Default: none.

    Example:
        >>> norm = SequenceBatchNorm(12, batch_first=True)
        >>> norm(torch.randn(2, 5, 12), lengths=[5, 3]).shape
        torch.Size([2, 5, 12])

    """

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
        batch_first: bool = False,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.batch_first = num_features, batch_first
        self.norm = BatchNorm1d(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            activation=activation,
        )  # fmt: skip

    def forward(self, input: Data, *, lengths: Lengths | None = None) -> Data:  # noqa: A002  torch's name
        """Normalize sequences.

        Args:
            input: (T, N, F), or (N, T, F) if `batch_first`, or (T, F) for one sequence, or a
                `PackedSequence`.
            lengths: of each sequence, from 1 to T, in any order; what lies past an end comes out
                as zero and gets no gradient, whatever it holds. Default: all are T.

        Returns:
            y, in the form of the input.

        Raises:
            TypeError: the input is of no floating dtype, or lengths are no integers.
            ValueError: a wrong shape, wrong lengths, or, in training, one valid element in all.

        """
        packed = pack(
            input, lengths, self.num_features, batch_first=self.batch_first,
            layer=type(self).__name__,
        )  # fmt: skip
        return packed.restore(self.norm(packed.rows))

    def extra_repr(self) -> str:
        """Describe what the norm inside does not say."""
        return "batch_first=True" if self.batch_first else ""
