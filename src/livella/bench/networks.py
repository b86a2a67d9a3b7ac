"""The networks of whole training steps: ResNet-50, DenseNet-121 and MobileNetV2.

Built after their papers, with torchvision's module names, so that its weights fit and a reader of
a profile finds their way: He et al. 2015 (the stride in the 3×3 convolution), Huang et al. 2017,
Sandler et al. 2018. Images (N, 3, H, W) → logits (N, classes).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut; the output has 4·width channels."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            projection = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += shortcut
        out: Tensor = self.relu(y)
        return out


class ResNet50(nn.Module):
    """Four stages of 3, 4, 6 and 3 bottlenecks."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(64, width=64, blocks=3, stride=1)
        self.layer2 = _stage(256, width=128, blocks=4, stride=2)
        self.layer3 = _stage(512, width=256, blocks=6, stride=2)
        self.layer4 = _stage(1024, width=512, blocks=3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(y), 1))
        return logits


def _stage(channels: int, *, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels, width, stride)
    out = width * Bottleneck.expansion
    return nn.Sequential(first, *(Bottleneck(out, width, 1) for _ in range(blocks - 1)))


class DenseLayer(nn.Module):
    """BN, ReLU, 1×1 and BN, ReLU, 3×3 convolutions of all that the block holds so far."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        y = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        new: Tensor = self.conv2(self.relu2(self.norm2(y)))
        return new


class DenseBlock(nn.ModuleDict):
    """Layers that each add `growth` channels to what all before them gave."""

    def __init__(self, channels: int, layers: int, growth: int) -> None:
        super().__init__()
        for index in range(layers):
            self[f"denselayer{index + 1}"] = DenseLayer(channels + index * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet121(nn.Module):
    """Four dense blocks of 6, 12, 24 and 16 layers, growth 32, transitions that halve."""

    def __init__(self, classes: int = 1000, growth: int = 32) -> None:
        super().__init__()
        channels, depths = 2 * growth, (6, 12, 24, 16)
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, channels, 7, 2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(channels),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, 2, padding=1),
        )
        for number, layers in enumerate(depths, start=1):
            parts[f"denseblock{number}"] = DenseBlock(channels, layers, growth)
            channels += layers * growth
            if number < len(depths):
                parts[f"transition{number}"] = _transition(channels)
                channels //= 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.features(x), inplace=True)
        y = nn.functional.adaptive_avg_pool2d(y, 1)
        logits: Tensor = self.classifier(torch.flatten(y, 1))
        return logits


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


class InvertedResidual(nn.Module):
    """1×1 up, 3×3 depthwise, 1×1 down; added to its input where shapes allow."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        up = [] if expansion == 1 else [_conv_bn_relu6(channels, wide, kernel=1)]
        self.conv = nn.Sequential(
            *up,
            _conv_bn_relu6(wide, wide, kernel=3, stride=stride, groups=wide),
            nn.Conv2d(wide, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """Inverted residuals of width 1; its table 2 as (expansion, channels, blocks, stride)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        stages = (
            *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
            *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
        )
        channels, last = 32, 1280
        parts: list[nn.Module] = [_conv_bn_relu6(3, channels, kernel=3, stride=2)]
        for expansion, out, blocks, stride in stages:
            for block in range(blocks):
                parts.append(InvertedResidual(channels, out, 1 if block else stride, expansion))
                channels = out
        parts.append(_conv_bn_relu6(channels, last, kernel=1))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        logits: Tensor = self.classifier(torch.flatten(y, 1))
        return logits


def _conv_bn_relu6(
    channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel // 2
    conv = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet-v2": MobileNetV2,
    "densenet-121": DenseNet121,
    "resnet-50": ResNet50,
}
