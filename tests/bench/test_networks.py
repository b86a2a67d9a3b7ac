"""The networks are the published ones."""

import pytest
import torch
from torch import nn

from livella.bench.networks import NETWORKS

PARAMETERS = {"resnet-50": 25_557_032, "densenet-121": 7_978_856, "mobilenet-v2": 3_504_872}
BATCH_NORMS = {"resnet-50": 53, "densenet-121": 121, "mobilenet-v2": 52}
NAMES = {
    "resnet-50": ("conv1.weight", "layer3.5.bn3.running_var", "layer4.0.downsample.1.bias"),
    "densenet-121": (
        "features.conv0.weight",
        "features.denseblock3.denselayer24.norm2.weight",
        "features.transition3.norm.running_mean",
        "features.norm5.bias",
    ),
    "mobilenet-v2": (
        "features.0.1.weight",
        "features.1.conv.1.weight",
        "features.17.conv.3.running_var",
        "features.18.0.weight",
        "classifier.1.bias",
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def named(request):
    return request.param, NETWORKS[request.param]()


def test_parameters_and_layers_are_as_many_as_published(named):
    name, model = named
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == BATCH_NORMS[name]


def test_names_are_torchvisions(named):
    name, model = named
    assert set(NAMES[name]) <= set(model.state_dict())


@pytest.mark.parametrize("size", [32, 64])
def test_images_give_logits(named, size):
    _, model = named
    assert model(torch.randn(2, 3, size, size)).shape == (2, 1000)


def test_all_parameters_are_used(named):
    _, model = named
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
