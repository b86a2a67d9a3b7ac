"""A network with all that makes statistics hard, and the truth about it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import livella
from livella.model.estimate import PopulationEstimate
from livella.model.population import estimate_population

MEASURED = ("b1", "b2", "b3", "shared", "last")


class Hard(nn.Module):
    """Two branches, dropout, a layer called twice, a frozen one, torch's layers and ours."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=0.0)
        self.c2, self.b2 = nn.Conv2d(8, 8, 3, padding=1), livella.nn.BatchNorm2d(8, momentum=None)
        self.c3, self.b3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(8, 8)
        self.shared, self.frozen, self.last = (nn.BatchNorm1d(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.b1(self.c1(x)).tanh()
        h = (self.b2(self.c2(h)) + self.b3(self.c3(h))).tanh()
        h = self.drop(h.mean((2, 3)))
        h = self.shared(self.linear(self.shared(h).tanh()))
        out: Tensor = self.last(self.linear(self.frozen(h)))
        return out


def hard() -> Hard:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Hard().train()
    model.frozen.eval()
    return model


def data(n: int = 401) -> Tensor:
    """Images sorted by their mean: every batch another part of the distribution."""
    g = torch.Generator().manual_seed(1)
    scale, offset = torch.rand(2, n, 1, 1, 1, generator=g)
    x = torch.randn(n, 1, 8, 8, generator=g) * scale * 3 + offset
    return x[x.mean((1, 2, 3)).argsort()]


def estimate(model: nn.Module, batches: Any, **options: Any) -> PopulationEstimate:
    """The estimate, without the warning that the calls of the shared layer differ."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "calls of one layer")
        return estimate_population(model, batches, **options)


@torch.no_grad()
def truth(model: Hard, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of every layer, in float64, all data at once."""
    o, found = copy.deepcopy(model).double().eval(), {}

    def normal(layer: nn.Module, h: Tensor, name: str) -> Tensor:
        mean, var = found[name]
        shape = (1, -1) + (1,) * (h.dim() - 2)
        return (h - mean.view(shape)) / (var + layer.eps).sqrt().view(shape)

    def see(name: str, h: Tensor) -> None:
        values = h.movedim(1, 0).flatten(1)
        found[name] = values.mean(1), values.var(1)

    h = o.c1(x.double())
    see("b1", h)
    h = normal(o.b1, h, "b1").tanh()
    see("b2", o.c2(h))
    see("b3", o.c3(h))
    h = normal(o.b2, o.c2(h), "b2") + normal(o.b3, o.c3(h), "b3")
    h = h.tanh().mean((2, 3))
    see("shared", h)  # by itself, for its second call
    second = o.linear(normal(o.shared, h, "shared").tanh())
    see("shared", torch.cat([h, second]))
    h = normal(o.shared, o.linear(normal(o.shared, h, "shared").tanh()), "shared")
    see("last", o.linear(o.frozen(h)))
    return found


def furthest(found: PopulationEstimate, wanted: dict[str, tuple[Tensor, Tensor]]) -> float:
    """The largest relative error of a variance over all layers and channels."""
    assert set(found.layers) == set(wanted)
    return max(
        float(((found.layers[name].variance - var) / var).abs().max())
        for name, (_, var) in wanted.items()
    )
