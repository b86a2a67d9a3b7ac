"""The recurrent networks of the study: an LSTM of each kind, and a classifier at its end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from livella.nn import BatchNormLSTM
from livella.study import timeseries

LONGEST = 100
"""An image of more pixels is read row by row."""


def as_sequence(x: Tensor) -> Tensor:
    """Examples as sequences (N, T, F): (N, F) value by value, (N, C, T) step by step.

    An image (N, C, H, W) is read pixel by pixel, C features at each, in rows from the top; row by
    row, with W·C features, where it has more than 100 pixels.
    """
    if x.dim() == 2:
        return x.unsqueeze(2)
    if x.dim() > 3 and x[0, 0].numel() > LONGEST:
        return x.movedim(1, -1).flatten(2)
    return x.flatten(2).transpose(1, 2)


class SequenceClassifier(nn.Module):
    """One LSTM over the sequence, and class scores from its state after the last valid step.

    Args:
        shape: of an example; it is read as `as_sequence` says, up to its first NaN.
        units: of the LSTM.
        classes: how many.
        norm: "none", "per_step" or "shared" batch norm, or "layer".
        gamma: where γ starts, with batch norm; 0 stands for the layer's own.
    """

    def __init__(
        self, shape: tuple[int, ...], units: int, classes: int, norm: str, gamma: float = 0.0
    ) -> None:
        super().__init__()
        features = as_sequence(torch.empty(1, *shape)).shape[2]
        self.lstm = _lstm(norm, features, units, gamma)
        self.classifier = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, classes) of examples (N, *shape)."""
        steps = as_sequence(x)
        lengths = timeseries.lengths(steps.transpose(1, 2))
        scores: Tensor = self.classifier(_last_state(self.lstm, steps.nan_to_num(), lengths))
        return scores


def _lstm(norm: str, features: int, units: int, gamma: float) -> nn.Module:
    if norm == "none":
        return nn.LSTM(features, units, batch_first=True)
    if norm == "layer":
        return LayerNormLSTM(features, units)
    own: dict[str, Any] = {"gamma": gamma} if gamma else {}
    return BatchNormLSTM(features, units, batch_first=True, statistics=norm, **own)


def _last_state(lstm: nn.Module, steps: Tensor, lengths: Tensor) -> Tensor:
    if isinstance(lstm, nn.LSTM):
        if int(lengths.min()) < steps.shape[1]:
            packed = pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
            return lstm(packed)[1][0][0]  # type: ignore[no-any-return]
        return lstm(steps)[1][0][0]  # type: ignore[no-any-return]
    if isinstance(lstm, LayerNormLSTM):
        return lstm(steps, lengths)  # type: ignore[no-any-return]
    return lstm(steps, lengths=lengths)[1][0][0]  # type: ignore[no-any-return]


class LayerNormLSTM(nn.Module):
    """An LSTM with layer norm in the places of `BatchNormLSTM`; γ starts at 1, as is usual.

    (i, f, g, o) = LN(W_h·h) + LN(W_x·x) + b
    c′ = σ(f) ⊙ c + σ(i) ⊙ tanh(g)
    h′ = σ(o) ⊙ tanh(LN(c′))

    Ba, Kiros & Hinton 2016, "Layer Normalization", supplementary material, equations 20 to 22.
    Weights start as those of `torch.nn.LSTM`.
    """

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.units = units
        self.input = nn.Linear(features, 4 * units, bias=False)
        self.hidden = nn.Linear(units, 4 * units, bias=False)
        for layer in (self.input, self.hidden):
            nn.init.uniform_(layer.weight, -(units**-0.5), units**-0.5)
        self.norm_input = nn.LayerNorm(4 * units)
        self.norm_hidden = nn.LayerNorm(4 * units, bias=False)
        self.norm_cell = nn.LayerNorm(units)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """H (N, H) after the last valid step of each sequence of (N, T, F)."""
        h = c = x.new_zeros(len(x), self.units)
        ended = torch.arange(x.shape[1]) >= lengths.unsqueeze(1)
        unequal = bool(ended.any())
        for step, values in enumerate(self.norm_input(self.input(x)).unbind(1)):
            i, f, g, o = (values + self.norm_hidden(self.hidden(h))).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            new = torch.sigmoid(o) * torch.tanh(self.norm_cell(c))
            h = torch.where(ended[:, step : step + 1], h, new) if unequal else new
        return h
