"""One direction of a layer of an LSTM or GRU with batch norm, as its papers define it.

Written in differentiable operations, to be read beside the paper. Letters: x, the normalized input
part of a step; h, what the step before left; a ⊙ b is elementwise. Gates stand in torch's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor

from livella.nn.stepwise import Steps, normalize

State = tuple[Tensor, ...]


class LSTM(NamedTuple):
    """Cooijmans et al. 2017, "Recurrent Batch Normalization", section 3, equations 6 to 8.

    (i, f, g, o) = x + BN(W_h·h; γ_h)
    c′ = σ(f) ⊙ c + σ(i) ⊙ tanh(g)
    h′ = σ(o) ⊙ tanh(BN(c′; γ_c, β_c))
    """

    hidden: Steps
    cell: Steps
    weight: Tensor
    gamma_hidden: Tensor
    gamma_cell: Tensor
    beta_cell: Tensor | None

    def step(self, t: int, x: Tensor, state: State) -> State:
        """Give h and c after step t."""
        h, c = state
        product = F.linear(h, self.weight)
        gates = normalize(self.hidden.call(product, t, self.gamma_hidden, residual=x))
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        normalized = normalize(self.cell.call(c, t, self.gamma_cell, self.beta_cell))
        return o.sigmoid() * normalized.tanh(), c


class GRU(NamedTuple):
    """Cho et al. 2014 as torch has it, each of the two products normalized.

    (u_r, u_z, u_n) = BN(W_h·h; γ_h) + b_h
    r = σ(x_r + u_r)    z = σ(x_z + u_z)    n = tanh(x_n + r ⊙ u_n)
    h′ = (1 − z) ⊙ n + z ⊙ h
    """

    hidden: Steps
    weight: Tensor
    bias: Tensor | None
    gamma_hidden: Tensor

    def step(self, t: int, x: Tensor, state: State) -> State:
        """Give h after step t."""
        (h,) = state
        product = F.linear(h, self.weight)
        u_r, u_z, u_n = normalize(self.hidden.call(product, t, self.gamma_hidden, self.bias)).chunk(
            3, 1
        )
        x_r, x_z, x_n = x.chunk(3, 1)
        r, z = (x_r + u_r).sigmoid(), (x_z + u_z).sigmoid()
        n = (x_n + r * u_n).tanh()
        return (n + z * (h - n),)


Cell = LSTM | GRU


def unroll(
    step: Callable[[int, Tensor, State], State],
    inputs: Iterable[Tensor],
    sizes: Sequence[int],
    state: State,
) -> tuple[Tensor, State]:
    """Run the steps.

    Args:
        step: gives the state after step t from its rows and the state before.
        inputs: the rows of each step, its normalized input part.
        sizes: how many rows each step has.
        state: before the first step; h comes first.

    Returns:
        h of all steps as rows, and the state of each sequence after its own last step.

    """
    outputs, ended = [], []
    for t, part in enumerate(inputs):
        running = sizes[t]
        if running < len(state[0]):
            ended.append([each[running:] for each in state])
            state = tuple(each[:running] for each in state)
        state = step(t, part, state)
        outputs.append(state[0])
    ended.append(list(state))
    last = tuple(torch.cat(parts[::-1]) for parts in zip(*ended, strict=True))
    return torch.cat(outputs), last
