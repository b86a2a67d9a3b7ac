"""A user's file: networks and loaders, good ones and bad ones.

The study finds it by its path and imports nothing else of the tests.
"""

import functools
import time
from pathlib import Path

import torch
from torch import nn

import livella

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(90, 1, 6, 6, generator=GENERATOR), torch.arange(90) % 3
X += Y.view(-1, 1, 1, 1)


def _loader(x=X, y=Y):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 30, shuffle=True)


def loaders():
    return _loader(X[:60], Y[:60]), _loader(X[60:], Y[60:])


def few():
    return _loader(X[:30], Y[:30]), _loader(X[30:39], Y[30:39])


def three_loaders():
    return _loader(X[:40], Y[:40]), _loader(X[40:60], Y[40:60]), _loader(X[60:], Y[60:])


def fails():
    raise RuntimeError("no such\ndisk")


def no_loaders():
    return 7


def one_loader():
    return [_loader()]


def a_dictionary():
    return {"train": _loader(), "test": _loader()}


def empty():
    return _loader(), []


def no_iterable():
    return _loader(), 7


def no_pairs():
    return _loader(), [(X, Y, Y)]


def bare_tensors():
    return _loader(), [X]


def breaks_off():
    def batches():
        yield X, Y
        raise OSError("unplugged")

    return _loader(), batches()


def nan():
    x = X.clone()
    x[3, 0, 2, 2] = torch.nan
    return _loader(x), _loader()


def infinite():
    x = X.clone()
    x[:2] = torch.inf
    return _loader(), _loader(x)


def one_class():
    return _loader(y=torch.zeros_like(Y)), _loader()


def float_labels():
    return _loader(y=Y.float()), _loader()


def one_hot_labels():
    return _loader(y=nn.functional.one_hot(Y)), _loader()


def negative_labels():
    return _loader(y=Y - 1), _loader()


def too_few_labels():
    return [(X, Y[:-1])], _loader()


def other_shape():
    return _loader(), _loader(X[..., :5])


def build():
    """Batch norm as its author set it up, registered in another order than it is called."""
    second = nn.BatchNorm2d(8, momentum=0.3)
    first = nn.BatchNorm2d(6)
    for norm, gamma, beta in ((first, 2.0, 0.5), (second, 3.0, 0.25)):
        nn.init.constant_(norm.weight, gamma)
        nn.init.constant_(norm.bias, beta)
    return _Cnn(second, first)


def held():
    """The same, but the eighth one and those after it wait for a file `go` in this folder."""
    with Path("built").open("ab") as file:
        file.write(b".")
    end = time.monotonic() + 1200  # longer than any test waits for it
    while Path("built").stat().st_size >= 8 and not Path("go").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    return build()


class _Cnn(nn.Module):
    def __init__(self, second, first):
        super().__init__()
        self.second, self.first = second, first
        self.enter = nn.Conv2d(1, 6, 3)
        self.widen = nn.Conv2d(6, 8, 3)
        self.score = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(self.enter(x)).relu_()
        x = self.second(self.widen(x)).relu_()
        return self.score(x.mean((2, 3)))


def shared():
    """One normalization in two places."""
    norm = nn.BatchNorm2d(4)
    body = (nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 3), norm, nn.ReLU())
    return nn.Sequential(nn.Sequential(*body), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *_head(4))


def grouped():
    norms = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)
    return nn.Sequential(nn.Conv2d(1, 4, 3), *norms, nn.ReLU(), nn.Flatten(), *_head(64))


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), *_head(8))


def fused():
    """Batch norm with its activation fused in."""
    norm = livella.nn.BatchNormAct2d(4, activation="relu")
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), *_head(64))


def small_maps():
    pooled = nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(1, 4, 3), *pooled, nn.ReLU(), nn.Flatten(), *_head(4))


class _FailsInTraining(nn.Module):
    def forward(self, x):
        if self.training:
            raise RuntimeError("planted")
        return x


def fails_in_training():
    return nn.Sequential(_FailsInTraining(), *dense())


def _head(width):
    return (nn.Linear(width, 3),)


build_partially = functools.partial(grouped)


def no_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def no_norm_for_digits():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def no_model():
    return "a network"


def other_input():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 8), nn.BatchNorm1d(8), *_head(8))


def too_few_scores():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 2))


def maps_for_scores():
    return nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 3, 3))


not_callable = 3


class Residual(nn.Module):
    """A block that calls Livella's layer with a residual, and one with a mask if asked."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = livella.nn.BatchNorm2d(4, activation="relu")
        self.head = nn.Linear(4, 3)
        self.masked = masked

    def forward(self, x):
        z = self.conv(x)
        mask = torch.ones(len(x), *x.shape[2:], dtype=torch.bool) if self.masked else None
        return self.head(self.norm(z, residual=z, mask=mask).mean((2, 3)))


def residual():
    return Residual(masked=False)


def masked():
    return Residual(masked=True)
