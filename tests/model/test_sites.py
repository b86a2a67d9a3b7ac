"""Where a model's normalizations stand, found without a trace."""

import pytest
import torch
from torch import nn

import livella
from livella.model import sites


class Swapped(nn.Module):
    """Registers its norms in one order, calls them in the other, and one not at all."""

    def __init__(self):
        super().__init__()
        self.late = livella.nn.BatchNorm2d(3)
        self.unused = nn.BatchNorm2d(3)
        self.early = nn.ModuleDict({"norm": nn.GroupNorm(1, 3)})

    def forward(self, x):
        return self.late(self.early["norm"](x))


def test_sites_come_in_the_order_of_their_calls_with_their_names():
    model = Swapped()
    found = sites.find(model, torch.randn(2, 3, 4, 4))
    assert [(s.name, s.module, s.num_features, s.input_dim) for s in found] == [
        ("early.norm", model.early["norm"], 3, 4),
        ("late", model.late, 3, 4),
    ]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(3), (2, 3)),
        (nn.BatchNorm1d(3), (2, 3, 5)),
        (nn.BatchNorm2d(3), (2, 3, 5, 5)),
        (nn.BatchNorm3d(3), (2, 3, 2, 2, 2)),
        (nn.InstanceNorm2d(3), (2, 3, 5, 5)),
        (nn.GroupNorm(3, 3), (2, 3, 5)),
        (livella.nn.BatchNorm2d(3), (2, 3, 5, 5)),
        (livella.nn.BatchNormAct2d(3, activation="relu"), (2, 3, 5, 5)),
    ],
)
def test_normalizations_over_channels_are_found(norm, shape):
    (site,) = sites.find(nn.Sequential(norm), torch.randn(shape))
    assert (site.module, site.num_features, site.input_dim) == (norm, 3, len(shape))


def test_layer_norm_is_none_of_them():
    assert sites.find(nn.Sequential(nn.LayerNorm(3), nn.Flatten()), torch.randn(2, 3)) == ()


def test_a_module_called_twice_is_one_site():
    norm = nn.BatchNorm1d(3)
    assert len(sites.find(nn.Sequential(norm, nn.ReLU(), norm), torch.randn(2, 3))) == 1


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("planted")


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_it_was_also_on_failure(failing):
    norm, frozen = nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval()
    model = nn.Sequential(norm, frozen, Fails() if failing else nn.Identity())
    model[2].training = True
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sample = torch.randn(2, 3)
    if failing:
        with pytest.raises(RuntimeError, match="planted"):
            sites.find(model, sample)
    else:
        sites.find(model, sample)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_module_is_replaced_in_every_parent_that_holds_it():
    old, new = nn.BatchNorm1d(3), nn.GroupNorm(1, 3)
    model = nn.ModuleDict({"a": old, "b": nn.Sequential(old, nn.ReLU(), old)})
    sites.replace(model, old, new)
    assert [model["a"], model["b"][0], model["b"][2]] == [new] * 3
    assert old not in set(model.modules())
