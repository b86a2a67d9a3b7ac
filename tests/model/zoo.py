"""Small networks as people write them, with the habits that matter to whoever rewrites them.

Shared and in-place activations, `out += identity`, activations as layers, functions and methods,
layers that take a tensor or a list of tensors, parts that may be None. `width` scales all of them.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn


def conv(inputs, outputs, kernel=3, stride=1, groups=1):
    padding = kernel // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


# ResNet


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs, planes, stride=1, downsample=None):
        super().__init__()
        self.conv1 = conv(inputs, planes, stride=stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 2

    def __init__(self, inputs, planes, stride=1, downsample=None):
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, stride=stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv(planes, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = downsample

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(shortcut + out)


class ResNet(nn.Module):
    def __init__(self, block=BasicBlock, layers=(2, 2), width=4, classes=5):
        super().__init__()
        self.inplanes = width
        self.conv1 = conv(3, width, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._make_layer(block, width, layers[0])
        self.layer2 = self._make_layer(block, 2 * width, layers[1], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2 * width * block.expansion, classes)

    def _make_layer(self, block, planes, blocks, stride=1):
        outputs, downsample = planes * block.expansion, None
        if stride != 1 or self.inplanes != outputs:
            downsample = nn.Sequential(
                conv(self.inplanes, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        made = [block(self.inplanes, planes, stride, downsample)]
        self.inplanes = outputs
        made += [block(outputs, planes) for _ in range(1, blocks)]
        return nn.Sequential(*made)

    def _forward_impl(self, x):
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)
        x = self.layer2(self.layer1(x))
        x = self.avgpool(x)
        return self.fc(torch.flatten(x, 1))

    def forward(self, x):
        return self._forward_impl(x)


# DenseNet


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth, size, drop_rate):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = conv(inputs, size * growth, 1)
        self.norm2 = nn.BatchNorm2d(size * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = conv(size * growth, growth)
        self.drop_rate = float(drop_rate)
        self.memory_efficient = False

    def bn_function(self, inputs):
        return self.conv1(self.relu1(self.norm1(torch.cat(inputs, 1))))

    def any_requires_grad(self, inputs):
        return any(tensor.requires_grad for tensor in inputs)

    def forward(self, input):  # noqa: A002
        previous = [input] if isinstance(input, Tensor) else input
        if self.memory_efficient and self.any_requires_grad(previous):
            if torch.jit.is_scripting():
                raise RuntimeError("not available in TorchScript")
            raise NotImplementedError
        made = self.conv2(self.relu2(self.norm2(self.bn_function(previous))))
        if self.drop_rate > 0:
            made = F.dropout(made, p=self.drop_rate, training=self.training)
        return made


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers, inputs, growth, size, drop_rate):
        super().__init__()
        for i in range(layers):
            layer = DenseLayer(inputs + i * growth, growth, size, drop_rate)
            self.add_module(f"denselayer{i + 1}", layer)

    def forward(self, init_features):
        features = [init_features]
        for _name, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class Transition(nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv = conv(inputs, outputs, 1)
        self.pool = nn.AvgPool2d(2, 2)


class DenseNet(nn.Module):
    def __init__(self, layers=(3, 2), width=4, classes=5, drop_rate=0.0):
        super().__init__()
        channels = 2 * width
        self.features = nn.Sequential()
        self.features.add_module("conv0", conv(3, channels, 7, 2))
        self.features.add_module("norm0", nn.BatchNorm2d(channels))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        for i, count in enumerate(layers):
            block = DenseBlock(count, channels, width, 2, drop_rate)
            self.features.add_module(f"denseblock{i + 1}", block)
            channels += count * width
            if i != len(layers) - 1:
                transition = Transition(channels, channels // 2)
                self.features.add_module(f"transition{i + 1}", transition)
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
        out = F.relu(self.features(x), inplace=True)
        out = torch.flatten(F.adaptive_avg_pool2d(out, (1, 1)), 1)
        return self.classifier(out)


# MobileNetV2


class ConvNormActivation(nn.Sequential):
    def __init__(self, inputs, outputs, kernel=3, stride=1, groups=1):
        super().__init__(
            conv(inputs, outputs, kernel, stride, groups),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )
        self.out_channels = outputs


class InvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        hidden = inputs * expand
        self.use_res_connect = stride == 1 and inputs == outputs
        layers = [] if expand == 1 else [ConvNormActivation(inputs, hidden, 1)]
        layers += [
            ConvNormActivation(hidden, hidden, stride=stride, groups=hidden),
            conv(hidden, outputs, 1),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    # expansion, channels, repeats, stride
    SETTINGS = ((1, 2, 1, 1), (3, 3, 2, 2), (3, 4, 2, 2))

    def __init__(self, settings=SETTINGS, width=2, classes=5):
        super().__init__()
        channels = 4 * width
        features = [ConvNormActivation(3, channels, stride=2)]
        for expand, planes, repeats, stride in settings:
            for i in range(repeats):
                outputs = planes * width
                block = InvertedResidual(channels, outputs, 1 if i else stride, expand)
                features.append(block)
                channels = outputs
        features.append(ConvNormActivation(channels, 8 * width, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(8 * width, classes))

    def forward(self, x):
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1)).reshape(x.shape[0], -1)
        return self.classifier(x)


# U-Net


class DoubleConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = conv(inputs, outputs)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = torch.relu_(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x)).relu()


class Up(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, 2)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU()
        self.conv = DoubleConv(2 * outputs, outputs)

    def forward(self, x1, x2):
        x1 = self.act(self.norm(self.up(x1)))
        return self.conv(torch.cat([x2, x1], dim=1))


class UNet(nn.Module):
    def __init__(self, width=4, depth=2, classes=2):
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.inc = DoubleConv(3, width)
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), DoubleConv(a, b)) for a, b in pairwise(widths)
        )
        self.up = nn.ModuleList(Up(b, a) for a, b in reversed(list(pairwise(widths))))
        self.outc = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = [self.inc(x)]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        return self.outc(x)


ZOO = {
    "ResNet": ResNet,
    "ResNet of bottlenecks": lambda **options: ResNet(Bottleneck, **options),
    "DenseNet": DenseNet,
    "MobileNetV2": MobileNetV2,
    "U-Net": UNet,
}


def shown_as_fused(model):
    """Give what `print(model)` shows: for each module with fusions, its path and their text."""
    shown = {}
    for path, module in model.named_modules():
        lines = [line for line in module.extra_repr().splitlines() if line.startswith("(fused)")]
        if lines:
            assert lines[0] in repr(model)
            shown[path] = lines[0].removeprefix("(fused): ")
    return shown
