"""The recurrences of `cells` with their backward pass through time written out, for the CPU.

Autograd would record a dozen operations a step, and multiply by the gradient of the recurrent
weights at each. Here that gradient is one product at the end. What is to be differentiated twice is
computed again, as `cells` defines it.

`d` before a letter is the gradient of the loss with respect to it; letters are those of `cells`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
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
from livella.nn.packing import reversal
from livella.nn.stepwise import BatchSteps

Gradients = tuple[Tensor | None, ...]


def run(
    cell: Cell, inputs: Iterable[Tensor], sizes: Sequence[int], state: State
) -> tuple[Tensor, State]:
    """Run a cell over all steps: see `cells.unroll`."""
    by_batch = isinstance(cell.hidden, BatchSteps)
    if not by_batch or torch.compiler.is_compiling() or not _is_plain(cell.weight):
        return unroll(cell.step, inputs, sizes, state)
    if isinstance(cell, cells.LSTM):
        rows, *last = LSTM.apply(*cell[:2], *state, *cell[2:], *inputs)  # type: ignore[no-untyped-call]
    else:
        rows, *last = GRU.apply(cell.hidden, *state, *cell[1:], *inputs)  # type: ignore[no-untyped-call]
    return rows, tuple(last)


def _is_plain(weight: Tensor) -> bool:
    return weight.is_cpu and not _is_followed(weight)


class LSTM(torch.autograd.Function):
    """`cells.LSTM` by the moments of the batch, over all steps."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: BatchSteps,
        cell: BatchSteps,
        h: Tensor,
        c: Tensor,
        weight: Tensor,
        gamma_hidden: Tensor,
        gamma_cell: Tensor,
        beta_cell: Tensor | None,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, kept = h.new_empty(sum(hidden.sizes), h.shape[1]), []
        h_t, c_t, transposed = h, c, weight.t()
        for t, out in enumerate(rows.split(list(hidden.sizes))):
            n = len(out)
            product = h_t[:n] @ transposed
            gates, statistics = forward_with_statistics(
                hidden.call(product, t, gamma_hidden, residual=inputs[t])
            )
            i, f, g, o = _activated(gates)
            c_t = torch.addcmul(f * c_t[:n], i, g)
            squashed, of_cell = forward_with_statistics(cell.call(c_t, t, gamma_cell, beta_cell))
            h_t = torch.mul(o, squashed.tanh_(), out=out)
            kept += [product, statistics, gates, c_t, of_cell, squashed]
        ctx.steps = hidden, cell
        given = (weight, gamma_hidden, gamma_cell, beta_cell)
        ctx.save_for_backward(h, c, *given, rows, *kept, *inputs)
        ends = reversal(hidden.sizes, h.device)[: len(h)]
        return rows, rows[ends], torch.cat(kept[3::6])[ends]

    @staticmethod
    def backward(ctx: Any, drows: Tensor, dh: Tensor, dc: Tensor) -> Gradients:
        hidden, cell = ctx.steps
        saved, sizes = ctx.saved_tensors, list(hidden.sizes)
        (h, c, *given, rows), kept = saved[:7], saved[7:]
        if torch.is_grad_enabled():
            plain = partial(cells.LSTM, hidden.again(), cell.again())
            inputs = kept[-len(sizes) :]
            return None, None, *_again(ctx, plain, (h, c), given, inputs, (drows, dh, dc))
        weight, gamma_hidden, gamma_cell, beta_cell = given
        dh, dc, sums, douts = dh.clone(), dc.clone(), [], drows.split(sizes)
        for t in reversed(range(len(sizes))):
            product, statistics, gates, c_t, of_cell, squashed = kept[6 * t : 6 * t + 6]
            dh_t, dc_t = dh[: sizes[t]], dc[: sizes[t]]
            dh_t += douts[t]
            dcell, *of_gamma_cell = backward_from_statistics(
                _through_tanh(dh_t * gates[:, -h.shape[1] :], squashed),
                cell.call(c_t, t, gamma_cell, beta_cell),
                of_cell,
            )
            dc_t += dcell
            before = kept[6 * t - 3][: sizes[t]] if t else c
            dgates = _through_lstm(gates, before, squashed, dh_t, dc_t)
            dproduct, dgamma_hidden, _ = backward_from_statistics(
                dgates, hidden.call(product, t, gamma_hidden), statistics
            )
            torch.mm(dproduct, weight, out=dh_t)
            sums.append((dgates, dproduct, dgamma_hidden, *of_gamma_cell))
        dinputs, dproducts, *parameters = zip(*reversed(sums), strict=True)
        dweight = torch.cat(dproducts).t() @ _before(rows, h, sizes)
        dgammas, dbeta = map(_total, parameters[:2]), _total(parameters[2])
        return (None, None, dh, dc, dweight, *dgammas, dbeta if ctx.needs_input_grad[7] else None,
                *dinputs)  # fmt: skip


class GRU(torch.autograd.Function):
    """`cells.GRU` by the moments of the batch, over all steps."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: BatchSteps,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma_hidden: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows, kept, units = h.new_empty(sum(hidden.sizes), h.shape[1]), [], h.shape[1]
        h_t, transposed = h, weight.t()
        for t, out in enumerate(rows.split(list(hidden.sizes))):
            before, x = h_t[: len(out)], inputs[t]
            product = before @ transposed
            gates, statistics = forward_with_statistics(
                hidden.call(product, t, gamma_hidden, bias)
            )  # r, z and u_n
            gates[:, : 2 * units].add_(x[:, : 2 * units]).sigmoid_()
            r, z, u = gates.chunk(3, 1)
            n = torch.addcmul(x[:, 2 * units :], r, u).tanh_()
            h_t = torch.addcmul(n, z, before - n, out=out)
            kept += [product, statistics, gates, n]
        ctx.hidden = hidden
        ctx.save_for_backward(h, weight, bias, gamma_hidden, rows, *kept, *inputs)
        return rows, rows[reversal(hidden.sizes, h.device)[: len(h)]]

    @staticmethod
    def backward(ctx: Any, drows: Tensor, dh: Tensor) -> Gradients:
        hidden = ctx.hidden
        saved, sizes = ctx.saved_tensors, list(hidden.sizes)
        (h, *given, rows), kept = saved[:5], saved[5:]
        if torch.is_grad_enabled():
            plain = partial(cells.GRU, hidden.again())
            return None, *_again(ctx, plain, (h,), given, kept[-len(sizes) :], (drows, dh))
        weight, bias, gamma_hidden = given
        dh, sums, douts = dh.clone(), [], drows.split(sizes)
        before = _before(rows, h, sizes)
        befores = before.split(sizes)
        for t in reversed(range(len(sizes))):
            product, statistics, gates, n = kept[4 * t : 4 * t + 4]
            dh_t = dh[: sizes[t]]
            dh_t += douts[t]
            dx, du = _through_gru(gates, n, befores[t], dh_t)
            dproduct, *of_parameters = backward_from_statistics(
                du, hidden.call(product, t, gamma_hidden, bias), statistics
            )
            torch.addmm(dh_t * gates.chunk(3, 1)[1], dproduct, weight, out=dh_t)
            sums.append((dx, dproduct, *of_parameters))
        dinputs, dproducts, *parameters = zip(*reversed(sums), strict=True)
        dgamma, dbias = map(_total, parameters)
        dweight = torch.cat(dproducts).t() @ before
        return None, dh, dweight, dbias if ctx.needs_input_grad[3] else None, dgamma, *dinputs


def _activated(gates: Tensor) -> tuple[Tensor, ...]:
    """Apply the activations of an LSTM's gates in place, and give i, f, g, o."""
    i, f, g, o = gates.chunk(4, 1)
    gates[:, : 2 * g.shape[1]].sigmoid_()
    g.tanh_()
    o.sigmoid_()
    return i, f, g, o


def _through_tanh(dy: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """Give dy·(1 − y²)."""
    return torch.addcmul(dy, dy * y, y, value=-1, out=out)


def _through_lstm(
    gates: Tensor, before: Tensor, squashed: Tensor, dh: Tensor, dc: Tensor
) -> Tensor:
    """Take the gradient back through a step of an LSTM to before the gates' activations.

    Overwrites dc with the gradient of c before the step.
    """
    i, f, g, _ = gates.chunk(4, 1)
    out = torch.addcmul(gates, gates, gates, value=-1)  # σ′ = σ − σ²
    di, df, dg, do = out.chunk(4, 1)
    di *= dc * g
    df *= dc * before
    do *= dh * squashed
    _through_tanh(dc * i, g, out=dg)
    dc *= f
    return out


def _through_gru(gates: Tensor, n: Tensor, before: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
    """Take the gradient of h back through a step of a GRU, to x and to u."""
    r, z, u = gates.chunk(3, 1)
    dx = torch.addcmul(gates, gates, gates, value=-1)  # σ′ = σ − σ², and dn in its place
    dr, dz, dn = dx.chunk(3, 1)
    _through_tanh(torch.addcmul(dh, dh, z, value=-1), n, out=dn)
    dr *= dn * u
    dz *= dh * (before - n)
    du = dx.clone()
    du[:, 2 * n.shape[1] :] *= r
    return dx, du


def _before(rows: Tensor, h: Tensor, sizes: Sequence[int]) -> Tensor:
    """Give what each row's step started from: h, then the rows of the step before that go on."""
    parts = rows.split(list(sizes))
    return torch.cat([h, *(part[:n] for part, n in zip(parts, sizes[1:], strict=False))])


def _total(each_step: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(each_step)).sum(0)


def _again(
    ctx: Any,
    plain: Callable[..., Cell],
    state: State,
    given: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    gradients: tuple[Tensor, ...],
) -> Gradients:
    """Give the gradients as functions of everything, by running the steps as they are defined."""
    # Of aliases: one of the originals may have made another, and that is no business of this call.
    of = [None if x is None else x.view_as(x) for x in (*state, *given, *inputs)]
    of_state, of_given = of[: len(state)], of[len(state) : -len(inputs)]
    steps: Any = of[-len(inputs) :]
    start: Any = tuple(of_state)
    rows, last = unroll(plain(*of_given).step, steps, [len(x) for x in inputs], start)
    needed = ctx.needs_input_grad[-len(of) :]
    wanted = [x for x, asked in zip(of, needed, strict=True) if asked and x is not None]
    reached = [(y, dy) for y, dy in zip((rows, *last), gradients, strict=True) if y.requires_grad]
    ys, dys = zip(*reached, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, dys, create_graph=True))
    return tuple(next(found) if asked else None for asked in needed)
