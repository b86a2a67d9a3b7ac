"""A small CNN on digits, and ten things that go wrong with its normalization.

The networks were trained by `train_faults.py`, which writes their weights beside this file.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from livella.study import data

WEIGHTS = Path(__file__).with_name("faults.safetensors")
Batches = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """Three convolutions with batch norm, dropout in front of the second one if asked."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.c3, self.b3 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(32, 10)

    def features(self, x: Tensor) -> Tensor:
        x = max_pool2d(relu(self.b1(self.c1(x))), 2)
        x = relu(self.b2(self.drop(self.c2(x))))
        return relu(self.b3(self.c3(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class TwoDomains(Net):
    """The same layers for an image and its negative, which is brighter."""

    def forward(self, x: Tensor) -> Tensor:
        both = self.features(x) + self.features(1.5 - x)
        return self.fc(both.mean((2, 3)))


class Deep(nn.Sequential):
    """Twenty layers with batch norm between a first and a last one."""

    def __init__(self, layers: int = 20, width: int = 24) -> None:
        blocks = [nn.Linear(6, width)]
        for _ in range(layers):
            blocks += [nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)]
        super().__init__(*blocks, nn.Linear(width, 5))


def separable() -> Batches:
    """Points in six dimensions, each of the class that one of five planes says."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(6, 5, generator=generator)
    examples = [torch.randn(128, 6, generator=generator) for _ in range(24)]
    return [(x, (x @ truth).argmax(1)) for x in examples]


@functools.lru_cache(maxsize=1)
def examples() -> tuple[Tensor, Tensor]:
    return data.load("digits").train


def batches(size: int = 64, order: Tensor | None = None, count: int | None = None) -> Batches:
    x, y = examples()
    if order is None:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    return [(x[part], y[part]) for part in order[:count].split(size) if len(part) == size]


def sorted_batches() -> Batches:
    return batches(order=examples()[1].argsort(stable=True))


def in_bfloat16(given: Batches) -> Batches:
    return [(x.bfloat16(), y) for x, y in given]


def built(name: str) -> nn.Module:
    """The network of this name before its training."""
    if name == "deep":
        return Deep()
    if name == "shared":
        return TwoDomains()
    model = Net(0.4 if name == "dropout" else 0.0)
    return model.to(torch.bfloat16) if name == "bfloat16" else model


def trained(name: str) -> nn.Module:
    """The network of this name, trained."""
    model, saved = built(name), load_file(WEIGHTS)
    own = {key: value for key, value in saved.items() if key.startswith(f"{name}/")}
    model.load_state_dict({key.removeprefix(f"{name}/"): value for key, value in own.items()})
    return model.eval()


def healthy() -> tuple[nn.Module, dict[str, Batches]]:
    return trained("healthy"), {"batches": batches()}


def stale() -> tuple[nn.Module, dict[str, Batches]]:
    model, given = healthy()
    model.b2.running_mean += 0.8 * model.b2.running_var.sqrt()
    model.b2.running_var *= 0.5
    return model, given


def momentum() -> tuple[nn.Module, dict[str, Batches]]:
    model = trained("momentum")
    model.b2.momentum = 0.99
    return model, {"batches": batches()}


def shared() -> tuple[nn.Module, dict[str, Batches]]:
    return trained("shared"), {"batches": batches()}


def sorted_by_class() -> tuple[nn.Module, dict[str, Batches]]:
    return trained("sorted by class"), {"batches": sorted_batches()}


def two_a_batch() -> tuple[nn.Module, dict[str, Batches]]:
    return trained("batch of 2"), {"batches": batches(2, count=128)}


def dropout() -> tuple[nn.Module, dict[str, Batches]]:
    return trained("dropout"), {"batches": batches()}


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
    return trained("bfloat16"), {"batches": in_bfloat16(batches())}


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
