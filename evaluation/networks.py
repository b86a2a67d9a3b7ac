"""Nine families of small classifiers with batch norm, each of any width and depth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

Shape = tuple[int, ...]


def norms_of(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """The batch norms of a network by name, in the order of their registration."""
    kind = (nn.BatchNorm1d, nn.BatchNorm2d)
    return {name: each for name, each in model.named_modules() if isinstance(each, kind)}


def _conv(into: int, out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and its norm."""
    return nn.Sequential(
        nn.Conv2d(into, out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    )


def _head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def plain(shape: Shape, classes: int, width: int, depth: int) -> nn.Module:
    """Convolution, norm, ReLU, again and again; pooled once."""
    layers: list[nn.Module] = []
    widths = [shape[0], *[width] * 2, *[2 * width] * depth]
    for k in range(len(widths) - 1):
        layers += [_conv(widths[k], widths[k + 1]), nn.ReLU()]
        if k == 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *_head(widths[-1], classes))


class Residual(nn.Module):
    """A block of two convolutions beside the identity, or beside a projection with a norm."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        stride = 1 if into == out else 2
        self.first, self.second = _conv(into, out, 3, stride), _conv(out, out)
        self.shortcut = nn.Identity() if into == out else _conv(into, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.shortcut(x) + self.second(relu(self.first(x))))


def residual(shape: Shape, classes: int, width: int, depth: int) -> nn.Module:
    """A ResNet: a stem, blocks, a wider block, blocks."""
    widths = [width] * (1 + (depth + 1) // 2) + [2 * width] * (1 + depth // 2)
    blocks = [Residual(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(_conv(shape[0], width), nn.ReLU(), *blocks, *_head(widths[-1], classes))


class PreActivation(nn.Module):
    """Norm and ReLU before each of two convolutions, beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(relu(self.norm2(self.conv1(relu(self.norm1(x))))))


def preactivation(shape: Shape, classes: int, width: int, depth: int) -> nn.Module:
    """A residual network whose sums no norm stands behind but the last."""
    stem = nn.Conv2d(shape[0], width, 3, stride=shape[1] // 7, padding=1)
    blocks = [PreActivation(width) for _ in range(depth)]
    return nn.Sequential(stem, *blocks, nn.BatchNorm2d(width), nn.ReLU(), *_head(width, classes))


class Inverted(nn.Module):
    """Widen, filter each channel by itself, narrow: three norms, and the identity beside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 3 * width
        self.body = nn.Sequential(
            *(_conv(width, wide, 1), nn.ReLU6()),
            *(_conv(wide, wide, 3, groups=wide), nn.ReLU6()),
            _conv(wide, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def depthwise(shape: Shape, classes: int, width: int, depth: int) -> nn.Module:
    """A MobileNet of the second kind."""
    stem = _conv(shape[0], width, 3, stride=2)
    blocks = [Inverted(width) for _ in range(depth)]
    return nn.Sequential(stem, nn.ReLU6(), *blocks, *_head(width, classes))


def vgg(shape: Shape, classes: int, width: int, depth: int) -> nn.Module:
    """Stages of convolutions with biases, pooled, and two linear layers with a norm between."""
    layers: list[nn.Module] = []
    into, size = shape[0], shape[1]
    for out in (width, 2 * width):
        for _ in range((depth + 2) // 2):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            into = out
        layers.append(nn.MaxPool2d(2))
        size //= 2
    hidden = 4 * width
    layers += [nn.Flatten(), nn.Linear(into * size * size, hidden), nn.BatchNorm1d(hidden)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(hidden, classes))


def mlp(shape: Shape, classes: int, width: int, depth: int) -> nn.Module:
    """Linear, norm, ReLU or GELU (by the parity of its width), again and again."""
    into, layers = math.prod(shape), list[nn.Module]([nn.Flatten()])
    for _ in range(2 + depth):
        act = nn.ReLU() if width % 16 else nn.GELU()
        layers += [nn.Linear(into, 4 * width), nn.BatchNorm1d(4 * width), act]
        into = 4 * width
    return nn.Sequential(*layers, nn.Linear(into, classes))


def sequence(shape: Shape, classes: int, width: int, depth: int) -> nn.Module:
    """Convolutions along time that see ever further."""
    layers: list[nn.Module] = []
    into = shape[0]
    for k in range(2 + depth):
        reach = 2 ** (k % 3)
        layers += [nn.Conv1d(into, 2 * width, 3, padding=reach, dilation=reach, bias=False)]
        layers += [nn.BatchNorm1d(2 * width), nn.ReLU()]
        into = 2 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(into, classes))


class UNet(nn.Module):
    """Down, down, up and up again beside what was seen on the way down; a class at the end."""

    def __init__(self, shape: Shape, classes: int, width: int, depth: int) -> None:
        super().__init__()
        w, v = width, 2 * width
        self.down = nn.ModuleList([self._stage(shape[0], w, depth), self._stage(w, v, depth)])
        self.bottom = self._stage(v, v, depth)
        self.up = nn.ModuleList([self._stage(2 * v, w, depth), self._stage(2 * w, w, depth)])
        self.head = nn.Linear(w, classes)

    @staticmethod
    def _stage(into: int, out: int, depth: int) -> nn.Sequential:
        steps = [into] + [out] * ((depth + 2) // 2)
        pairs = itertools.pairwise(steps)
        return nn.Sequential(*(part for a, b in pairs for part in (_conv(a, b), nn.ReLU())))

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for stage in self.down:
            seen.append(stage(x))
            x = nn.functional.max_pool2d(seen[-1], 2)
        x = self.bottom(x)
        for stage in self.up:
            beside = seen.pop()
            x = stage(torch.cat([interpolate(x, beside.shape[2:]), beside], 1))
        return self.head(x.mean((2, 3)))


class ConvGRU(nn.Module):
    """Convolutions along time, a GRU, and a norm on its last state."""

    def __init__(self, shape: Shape, classes: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [shape[-2], *[2 * width] * (1 + depth)]
        self.convs = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv1d(a, b, 3, padding=1, bias=False), nn.BatchNorm1d(b), nn.ReLU()
                )
                for a, b in itertools.pairwise(widths)
            )
        )
        self.gru = nn.GRU(2 * width, 2 * width, batch_first=True)
        self.norm = nn.BatchNorm1d(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x.squeeze(1))  # an image as its rows, one after the other
        _, state = self.gru(x.transpose(1, 2))
        return self.head(self.norm(state[-1]))


Family = Callable[[Shape, int, int, int], nn.Module]
IMAGE: dict[str, Family] = {
    "plain": plain, "residual": residual, "preactivation": preactivation, "depthwise": depthwise,
    "vgg": vgg, "unet": UNet,
}  # fmt: skip
FAMILIES: dict[str, Family] = {**IMAGE, "mlp": mlp, "sequence": sequence, "conv_gru": ConvGRU}
"""By name: made of the shape of an example, the number of classes, a width, a depth of 1 to 4."""


def put_dropout(model: nn.Module, place: int, share: float) -> None:
    """Set dropout in front of the norm at this place among the norms."""
    names = list(norms_of(model))
    name = names[place % len(names)]
    parent, _, own = name.rpartition(".")
    norm = model.get_submodule(name)
    setattr(model.get_submodule(parent), own, nn.Sequential(nn.Dropout(share), norm))
