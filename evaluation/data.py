"""The data: images, tables and sequences that come inside packages, standardized by their training
part. That part stays in the order in which it is stored.
"""

from __future__ import annotations

import functools
import gzip
from dataclasses import dataclass

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from livella.study import timeseries
from livella.study.data import FASHION_MNIST

Part = tuple[Tensor, Tensor]
"""Examples (n, *shape) and their class numbers (n,)."""
STEPS = 16
"""To how many steps spoken vowels are stretched."""


@dataclass(frozen=True)
class Data:
    """Two parts that share no example, and what they were standardized by."""

    name: str
    train: Part
    held_out: Part
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train[0].shape[1:])

    @property
    def classes(self) -> int:
        return 1 + int(self.train[1].max())


def _digits() -> Part:
    x, y = datasets.load_digits(return_X_y=True)
    return torch.tensor(x).reshape(-1, 1, 8, 8) / 16, torch.tensor(y)


def _fashion() -> Part:
    """The first of the test file, at a quarter of the size."""
    raw = [
        gzip.decompress((FASHION_MNIST / f"t10k-{name}-ubyte.gz").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    ]
    x = np.frombuffer(raw[0], np.uint8, offset=16).reshape(-1, 1, 28, 28)[:2700]
    y = np.frombuffer(raw[1], np.uint8, offset=8)[:2700]
    return avg_pool2d(torch.tensor(x.copy()) / 255, 2), torch.tensor(y.copy())


def _table(name: str) -> Part:
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return torch.tensor(x), torch.tensor(y)


def _vowels() -> Part:
    folder = timeseries.japanese_vowels()
    read = [timeseries.read(folder / f"JapaneseVowels_{kind}.ts") for kind in ("TRAIN", "TEST")]
    x = [interpolate(each[None], STEPS, mode="linear")[0] for part, _ in read for each in part]
    labels = [label for _, part in read for label in part]
    names = sorted(set(labels))
    return torch.stack(x), torch.tensor([names.index(label) for label in labels])


SOURCES = {
    "digits": _digits,
    "fashion": _fashion,
    "wine": functools.partial(_table, "wine"),
    "breast_cancer": functools.partial(_table, "breast_cancer"),
    "vowels": _vowels,
}
IMAGES, TABLES, SEQUENCES = ("digits", "fashion"), ("wine", "breast_cancer"), ("vowels",)


@functools.cache
def load(name: str) -> Data:
    """Give the data of this name: three examples of five for training, the others held out."""
    x, y = (
        each.to(kind)
        for each, kind in zip(SOURCES[name](), (torch.float32, torch.int64), strict=True)
    )
    drawn = torch.rand(len(x), generator=torch.Generator().manual_seed(0))
    first = drawn.argsort() < 0.6 * len(x)
    axes = [0, *range(2, x.dim())] if name not in IMAGES else list(range(x.dim()))
    mean, std = x[first].mean(axes, keepdim=True), x[first].std(axes, keepdim=True)
    x = (x - mean) / std
    return Data(name, (x[first], y[first]), (x[~first], y[~first]), mean, std)
