"""Batch-normalized recurrent layers from their papers' formulae, one sequence and step at a time.

Sequences are a list of (length, features) tensors; there is neither padding nor packing. Written in
float64 operations that autograd follows, so that it is an oracle of gradients too.
"""

from typing import Any

import torch
from torch import Tensor

EPS = 1e-5


class Norm:
    """One normalization: in training by the values given, with their moments written down."""

    def __init__(self, layer: Any, name: str, by_batch: bool) -> None:
        self.by_batch, self.name, self.met = by_batch, name, []
        self.mean = getattr(layer, "running_mean_" + name).clone()
        self.var = getattr(layer, "running_var_" + name).clone()
        self.gamma = getattr(layer, "gamma_" + name)
        self.held: Any = None

    def __call__(self, t: int, values: list[Tensor]) -> list[Tensor]:
        if not self.by_batch:
            mean, var = (each[min(t, len(each) - 1)] for each in (self.mean, self.var))
        elif len(values) > 1:
            mean = sum(values) / len(values)
            var = sum((v - mean) ** 2 for v in values) / len(values)
            self.held = mean.detach(), var.detach()
            self.met.append([v.detach() for v in values])
        else:
            mean, var = self.held
        return [self.gamma * (v - mean) / torch.sqrt(var + EPS) for v in values]


def direction(
    layer: Any, suffix: str, sequences: list[Tensor], state: list[list[Tensor]], by_batch: bool
) -> tuple[list[Tensor], list[list[Tensor]], dict[str, Norm]]:
    """Give h of each sequence at each step, each sequence's last state, and the norms."""
    norms = {n: Norm(layer, n + suffix, by_batch) for n in layer.normalized}
    steps = max(len(s) for s in sequences)
    valid = [[i for i, s in enumerate(sequences) if len(s) > t] for t in range(steps)]
    w_x, w_h = (getattr(layer, n + suffix) for n in ("weight_ih", "weight_hh"))
    products = [[w_x @ x for x in s] for s in sequences]
    if layer.statistics == "shared":
        flat = iter(norms["ih"](0, [p for s in products for p in s]))
        inputs = [[next(flat) for _ in s] for s in sequences]
    else:
        inputs = [[] for _ in sequences]
        for t, running in enumerate(valid):
            for i, x in zip(
                running, norms["ih"](t, [products[i][t] for i in running]), strict=True
            ):
                inputs[i].append(x)
    outputs: list[list[Tensor]] = [[] for _ in sequences]
    state = [list(each) for each in state]
    for t, running in enumerate(valid):
        hidden = norms["hh"](t, [w_h @ state[i][0] for i in running])
        step = lstm if "c" in norms else gru
        new = step(layer, suffix, t, norms, [inputs[i][t] for i in running], hidden,
                   [state[i] for i in running])  # fmt: skip
        for i, each in zip(running, new, strict=True):
            state[i] = each
            outputs[i].append(each[0])
    return [torch.stack(o) for o in outputs], state, norms


def bias(layer: Any, name: str) -> Any:
    found = getattr(layer, name)
    return 0 if found is None else found


def lstm(layer, suffix, t, norms, inputs, hidden, state):
    b = bias(layer, "bias_ih" + suffix) + bias(layer, "bias_hh" + suffix)
    gates = [torch.chunk(u + x + b, 4) for u, x in zip(hidden, inputs, strict=True)]
    cells = [
        torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        for (i, f, g, _), (_, c) in zip(gates, state, strict=True)
    ]
    normalized = norms["c"](t, cells)
    beta = bias(layer, "beta_c" + suffix)
    return [
        [torch.sigmoid(o) * torch.tanh(n + beta), c]
        for (_, _, _, o), n, c in zip(gates, normalized, cells, strict=True)
    ]


def gru(layer, suffix, t, norms, inputs, hidden, state):
    new = []
    for u, x, (h,) in zip(hidden, inputs, state, strict=True):
        x_r, x_z, x_n = torch.chunk(x + bias(layer, "bias_ih" + suffix), 3)
        u_r, u_z, u_n = torch.chunk(u + bias(layer, "bias_hh" + suffix), 3)
        r, z = torch.sigmoid(x_r + u_r), torch.sigmoid(x_z + u_z)
        new.append([(1 - z) * torch.tanh(x_n + r * u_n) + z * h])
    return new


def run(layer: Any, sequences: list[Tensor], state: Any = None, by_batch: bool = True) -> Any:
    """Give outputs by sequence, last states (slots, N, H), and the norms of each direction."""
    zero = torch.zeros(layer.hidden_size, dtype=torch.float64)
    last, met, slot = [], {}, 0
    for k in range(layer.num_layers):
        found = []
        for end in ("", "_reverse") if layer.bidirectional else ("",):
            suffix = f"_l{k}{end}"
            start = [
                [zero] * len(layer.states) if state is None else [s[slot, i] for s in state]
                for i in range(len(sequences))
            ]
            given = [s.flip(0) for s in sequences] if end else sequences
            outputs, states, met[suffix] = direction(layer, suffix, given, start, by_batch)
            found.append([o.flip(0) for o in outputs] if end else outputs)
            last.append(states)
            slot += 1
        sequences = [torch.cat(each, 1) for each in zip(*found, strict=True)]
    final = [
        torch.stack([torch.stack([s[j] for s in states]) for states in last])
        for j in range(len(layer.states))
    ]
    return sequences, final, met


def running(norm: Norm, rows: int, momentum: float) -> tuple[Tensor, Tensor]:
    """Give the running statistics after one pass, of so many rows, by lists of values."""
    mean, var = list(norm.mean), list(norm.var)
    while len(mean) < rows:
        mean.append(mean[-1])
        var.append(var[-1])
    beyond = [value for values in norm.met[rows - 1 :] for value in values]
    sets = [*norm.met[: rows - 1], beyond]
    for t, values in enumerate(sets):
        if values:
            all_values = torch.stack(values)
            mean[t] = (1 - momentum) * mean[t] + momentum * all_values.mean(0)
            var[t] = (1 - momentum) * var[t] + momentum * all_values.var(0, unbiased=True)
    return torch.stack(mean), torch.stack(var)
