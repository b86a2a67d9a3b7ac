"""The recurrences of `cells` with their backward pass through time written out, for the CPU.

Autograd would record a dozen operations a step, and multiply by the recurrent weights' gradient at
each. Here a step keeps five tensors, and that gradient is one product at the end. What is to be
differentiated twice is computed again, as `cells` defines it.

`d` before a letter is the gradient of the loss with respect to it; letters are those of `cells`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from livella.functional import (
    _is_followed,
    backward_from_statistics,
    forward_with_statistics,
)
from livella.nn import cells
from livella.nn.cells import Cell, State, unroll
from livella.nn.packing import reversal, spans
from livella.nn.stepwise import BatchSteps


def run(cell: Cell, x: Tensor, sizes: Sequence[int], state: State) -> tuple[Tensor, State]:
    """Run a cell over packed rows: see `cells.unroll`."""
    own_moments = isinstance(cell.hidden, BatchSteps) and x.is_cpu
    if not own_moments or torch.compiler.is_compiling() or _is_followed(x):
        return unroll(cell.step, x, sizes, state)
    if isinstance(cell, cells.LSTM):
        rows, *last = LSTM.apply(*cell[:2], x, *state, *cell[2:])  # type: ignore[no-untyped-call]
    else:
        rows, *last = GRU.apply(cell.hidden, x, *state, *cell[1:])  # type: ignore[no-untyped-call]
    return rows, tuple(last)


Gradients = tuple[Tensor | None, ...]


class LSTM(torch.autograd.Function):
    """`cells.LSTM` by the moments of the batch, over all steps."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: BatchSteps,
        cell: BatchSteps,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        weight: Tensor,
        gamma_hidden: Tensor,
        gamma_cell: Tensor,
        beta_cell: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, kept = h.new_empty(len(x), h.shape[1]), []
        h_t, c_t, transposed = h, c, weight.t()
        for t, span in enumerate(spans(hidden.sizes)):
            n = hidden.sizes[t]
            product = h_t[:n] @ transposed
            gates, statistics = forward_with_statistics(
                hidden.call(product, t, gamma_hidden, residual=x[span])
            )
            i, f, g, o = _activated(gates)
            c_t = torch.addcmul(f * c_t[:n], i, g)
            squashed, of_cell = forward_with_statistics(cell.call(c_t, t, gamma_cell, beta_cell))
            h_t = torch.mul(o, squashed.tanh_(), out=rows[span])
            kept += [product, statistics, gates, c_t, of_cell, squashed]
        ctx.steps = hidden, cell
        ctx.save_for_backward(x, h, c, weight, gamma_hidden, gamma_cell, beta_cell, rows, *kept)
        ends = reversal(hidden.sizes, x.device)[: len(h)]
        return rows, rows[ends], torch.cat(kept[3::6])[ends]

    @staticmethod
    def backward(ctx: Any, drows: Tensor, dh: Tensor, dc: Tensor) -> Gradients:
        hidden, cell = ctx.steps
        x, h, c, weight, gamma_hidden, gamma_cell, beta_cell, rows, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            given = (weight, gamma_hidden, gamma_cell, beta_cell)
            plain = cells.LSTM(hidden.again(), cell.again(), *given)
            return None, None, *_again(ctx, plain, hidden.sizes, x, (h, c), given, (drows, dh, dc))
        dh, dc, dx, sums = dh.clone(), dc.clone(), torch.empty_like(x), []
        for t, span in reversed(list(enumerate(spans(hidden.sizes)))):
            n = hidden.sizes[t]
            product, statistics, gates, c_t, of_cell, squashed = kept[6 * t : 6 * t + 6]
            before = (kept[6 * t - 3] if t else c)[:n]
            dh[:n] += drows[span]
            through = _dtanh(squashed).mul_(gates[:, -h.shape[1] :]).mul_(dh[:n])
            dcell, dgamma_cell, dbeta_cell = backward_from_statistics(
                through, cell.call(c_t, t, gamma_cell, beta_cell), of_cell
            )
            dc[:n] += dcell
            _dgates(dx[span], gates, before, squashed, dh[:n], dc[:n])
            dproduct, dgamma_hidden, _ = backward_from_statistics(
                dx[span], hidden.call(product, t, gamma_hidden), statistics
            )
            torch.mm(dproduct, weight, out=dh[:n])
            sums.append((dproduct, dgamma_hidden, dgamma_cell, dbeta_cell))
        dproduct, *dgammas, dbeta = _joined(sums)
        dweight = dproduct.t() @ _before(rows, h, hidden.sizes)
        return None, None, dx, dh, dc, dweight, *dgammas, None if beta_cell is None else dbeta


class GRU(torch.autograd.Function):
    """`cells.GRU` by the moments of the batch, over all steps."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: BatchSteps,
        x: Tensor,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma_hidden: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows, kept, size = h.new_empty(len(x), h.shape[1]), [], h.shape[1]
        h_t, transposed = h, weight.t()
        for t, span in enumerate(spans(hidden.sizes)):
            before = h_t[: hidden.sizes[t]]
            product = before @ transposed
            gates, statistics = forward_with_statistics(
                hidden.call(product, t, gamma_hidden, bias)
            )  # r, z and u_n
            gates[:, : 2 * size].add_(x[span, : 2 * size]).sigmoid_()
            r, z, u = gates.chunk(3, 1)
            n = torch.addcmul(x[span, 2 * size :], r, u).tanh_()
            h_t = torch.lerp(n, before, z, out=rows[span])
            kept += [product, statistics, gates, n]
        ctx.hidden = hidden
        ctx.save_for_backward(x, h, weight, bias, gamma_hidden, rows, *kept)
        return rows, rows[reversal(hidden.sizes, x.device)[: len(h)]]

    @staticmethod
    def backward(ctx: Any, drows: Tensor, dh: Tensor) -> Gradients:
        hidden = ctx.hidden
        x, h, weight, bias, gamma_hidden, rows, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            given = (weight, bias, gamma_hidden)
            plain = cells.GRU(hidden.again(), *given)
            return None, *_again(ctx, plain, hidden.sizes, x, (h,), given, (drows, dh))
        dh, dx, sums = dh.clone(), torch.empty_like(x), []
        befores = _before(rows, h, hidden.sizes)
        for t, span in reversed(list(enumerate(spans(hidden.sizes)))):
            now = dh[: hidden.sizes[t]]
            product, statistics, gates, n = kept[4 * t : 4 * t + 4]
            now += drows[span]
            dhidden = _through_gru(dx[span], gates, n, befores[span], now)
            dproduct, dgamma, dbias = backward_from_statistics(
                dhidden, hidden.call(product, t, gamma_hidden, bias), statistics
            )
            torch.addmm(now * gates.chunk(3, 1)[1], dproduct, weight, out=now)
            sums.append((dproduct, dgamma, dbias))
        dproduct, dgamma, dbias = _joined(sums)
        return None, dx, dh, dproduct.t() @ befores, None if bias is None else dbias, dgamma


def _activated(gates: Tensor) -> tuple[Tensor, ...]:
    """Apply the activations of an LSTM's gates in place, and give i, f, g, o."""
    i, f, g, o = gates.chunk(4, 1)
    gates[:, : 2 * g.shape[1]].sigmoid_()
    g.tanh_()
    o.sigmoid_()
    return i, f, g, o


def _dtanh(y: Tensor) -> Tensor:
    """Give the derivative of tanh where it is y."""
    return torch.addcmul(torch.ones((), dtype=y.dtype, device=y.device), y, y, value=-1)


def _dgates(
    out: Tensor, gates: Tensor, before: Tensor, squashed: Tensor, dh: Tensor, dc: Tensor
) -> None:
    """Take the gradient back through the gates of an LSTM to before their activations.

    Overwrites `out` with it, and dc with the gradient of c before the step.
    """
    i, f, g, _ = gates.chunk(4, 1)
    di, df, dg, do = out.chunk(4, 1)
    torch.addcmul(gates, gates, gates, value=-1, out=out)  # σ′ = σ − σ²
    torch.mul(di, dc * g, out=di)
    torch.mul(df, dc * before, out=df)
    torch.mul(_dtanh(g), dc * i, out=dg)
    torch.mul(do, dh * squashed, out=do)
    dc *= f


def _through_gru(out: Tensor, gates: Tensor, n: Tensor, before: Tensor, dh: Tensor) -> Tensor:
    """Take the gradient of h back through a step of a GRU.

    Overwrites `out` with that of x, and returns that of u.
    """
    r, z, u = gates.chunk(3, 1)
    dr, dz, dn = out.chunk(3, 1)
    size = n.shape[1]
    torch.mul(_dtanh(n), dh - dh * z, out=dn)
    pair = gates[:, : 2 * size]
    torch.addcmul(pair, pair, pair, value=-1, out=out[:, : 2 * size])
    dr *= dn * u
    dz *= dh * (before - n)
    du = out.clone()
    du[:, 2 * size :] *= r
    return du


def _before(rows: Tensor, h: Tensor, sizes: Sequence[int]) -> Tensor:
    """Give what each row's step started from: h, then the rows of the step before that go on."""
    parts = rows.split(list(sizes))
    return torch.cat([h, *(part[:n] for part, n in zip(parts, sizes[1:], strict=False))])


def _joined(sums: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Join the steps, last first: the gradients of products as rows, of parameters as sums."""
    products, *parameters = zip(*reversed(sums), strict=True)
    return [torch.cat(products), *(torch.stack(each).sum(0) for each in parameters)]


def _again(
    ctx: Any,
    plain: Cell,
    sizes: Sequence[int],
    x: Tensor,
    state: State,
    given: Sequence[Tensor | None],
    gradients: tuple[Tensor, ...],
) -> Gradients:
    """Give the gradients as functions of everything, by running the steps as they are defined."""
    rows, last = unroll(plain.step, x, sizes, state)
    inputs = (x, *state, *given)
    needed = ctx.needs_input_grad[-len(inputs) :]
    wanted = [
        each for each, asked in zip(inputs, needed, strict=True) if asked and each is not None
    ]
    reached = [(y, dy) for y, dy in zip((rows, *last), gradients, strict=True) if y.requires_grad]
    ys, dys = zip(*reached, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, dys, create_graph=True))
    return tuple(next(found) if asked else None for asked in needed)
