"""A small CNN on Fashion-MNIST, and ten things that go wrong with its normalization."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d, relu

from livella.study import data

EXAMPLES = 4000
Batches = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """Three convolutions with batch norm, dropout in front of the second one if asked."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.c2, self.b2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.c3, self.b3 = nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        x = max_pool2d(relu(self.b1(self.c1(x))), 2)
        x = max_pool2d(relu(self.b2(self.drop(self.c2(x)))), 2)
        return relu(self.b3(self.c3(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class TwoDomains(Net):
    """The same layers for an image and its negative."""

    def forward(self, x: Tensor) -> Tensor:
        both = self.features(x) + self.features(1 - x)
        return self.fc(both.mean((2, 3)))


@functools.lru_cache(maxsize=1)
def examples() -> tuple[Tensor, Tensor]:
    x, y = data.load("fashion-mnist").train
    return x[:EXAMPLES], y[:EXAMPLES]


def batches(size: int = 64, order: Tensor | None = None, count: int | None = None) -> Batches:
    x, y = examples()
    if order is None:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    return [(x[part], y[part]) for part in order[:count].split(size)]


def looked_at() -> Batches:
    return batches()[:32]


def train(model: nn.Module, over: Batches, rate: float = 0.05, epochs: int = 2) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * len(over))
    model.train()
    for _ in range(epochs):
        for x, y in over:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def built(model: type[Net] = Net, **options: float) -> Net:
    torch.manual_seed(0)
    return model(**options)


@functools.lru_cache(maxsize=1)
def _healthy() -> nn.Module:
    return train(built(), batches())


def healthy() -> tuple[nn.Module, dict[str, Batches]]:
    return copy.deepcopy(_healthy()), {"batches": looked_at()}


def stale() -> tuple[nn.Module, dict[str, Batches]]:
    model, given = healthy()
    model.b2.running_mean += 0.8 * model.b2.running_var.sqrt()
    model.b2.running_var *= 0.5
    return model, given


def momentum() -> tuple[nn.Module, dict[str, Batches]]:
    model = built()
    model.b2.momentum = 0.99
    return train(model, batches()), {"batches": looked_at()}


def shared() -> tuple[nn.Module, dict[str, Batches]]:
    return train(built(TwoDomains), batches()), {"batches": looked_at()}


def sorted_by_class() -> tuple[nn.Module, dict[str, Batches]]:
    over = batches(order=examples()[1].argsort(stable=True))
    return train(built(), over), {"batches": over[::3]}


def two_a_batch() -> tuple[nn.Module, dict[str, Batches]]:
    model = train(built(), batches(2, count=1600), rate=0.005)
    return model, {"batches": batches(2, count=128)}


def dropout() -> tuple[nn.Module, dict[str, Batches]]:
    return train(built(dropout=0.4), batches()), {"batches": looked_at()}


def not_a_number() -> tuple[nn.Module, dict[str, Batches]]:
    model, given = healthy()
    model.b3.running_mean[5] = float("nan")
    return model, given


def deployment() -> tuple[nn.Module, dict[str, Batches]]:
    model, given = healthy()
    return model, {**given, "deploy": [(0.25 * x + 0.4, y) for x, y in given["batches"]]}


def frozen_in_name() -> tuple[nn.Module, dict[str, Batches]]:
    model, given = healthy()
    model.train()
    for parameter in model.b2.parameters():
        parameter.requires_grad_(False)
    return model, given


def low_precision() -> tuple[nn.Module, dict[str, Batches]]:
    model = built().to(torch.bfloat16)
    train(model, [(x.bfloat16(), y) for x, y in batches()])
    return model, {"batches": [(x.bfloat16(), y) for x, y in looked_at()]}


ALL = ("b1", "b2", "b3")
PLANTED = {
    "stale": (stale, "stale_statistics", ("b2",)),
    "momentum": (momentum, "momentum", ("b2",)),
    "shared": (shared, "shared_layer", ("b1",)),
    "sorted by class": (sorted_by_class, "ordered_data", ALL),
    "batch of 2": (two_a_batch, "small_batch", ALL),
    "dropout": (dropout, "dropout_before", ("b2",)),
    "NaN": (not_a_number, "not_finite", ("b3",)),
    "deployment": (deployment, "deployment_shift", ("b1",)),
    "frozen in name": (frozen_in_name, "frozen_in_name_only", ("b2",)),
    "bfloat16": (low_precision, "low_precision", ALL),
}
"""By name: what is planted, the check that is to be first, and the layers that are right."""
