"""Centred and standardized weights, output by output in numpy, and the way back."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from livella.nn import centre_weights, restore_weights, standardize_weights


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 1, groups=4),  # one weight an output
        nn.Flatten(),
        nn.Linear(4, 5),
        nn.Linear(5, 2),
    ).double()


def by_hand(weight, eps=None):
    w = weight.detach().numpy()
    rows = []
    for filt in w.reshape(len(w), -1):
        row = filt - filt.mean()
        rows.append(row if eps is None else row / np.sqrt((row**2).mean() + eps))
    return torch.from_numpy(np.array(rows)).view(weight.shape)


CHANGES = {"centre": (centre_weights, None), "standardize": (standardize_weights, 1e-5)}


@pytest.mark.parametrize("change", CHANGES)
def test_all_but_the_last_and_those_of_one_weight(change):
    function, eps = CHANGES[change]
    plain, model = network(), network()
    assert function(model) is model
    for k, (before, after) in enumerate(zip(plain, model, strict=True)):
        if k == 3:
            continue
        assert_close(after.weight, by_hand(before.weight, eps) if k in (0, 1, 4) else before.weight)


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(3, 4, 5), nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 2), nn.Linear(6, 4)]
)
def test_each_class_when_it_is_named(layer):
    before = layer.double().weight.detach().clone()
    assert_close(standardize_weights(layer, [""], eps=1e-3).weight, by_hand(before, 1e-3))


def test_the_weights_behind_them_train():
    model = centre_weights(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model[0].weight.clone()
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)
    assert_close(model[0].weight.mean(1), torch.zeros(2))
    assert "0.parametrizations.weight.original" in model.state_dict()


def test_a_shared_mean_of_the_inputs_does_not_show():
    model, x = centre_weights(network()), torch.randn(2, 2, 9, 9, dtype=torch.float64)
    first = nn.Sequential(model[0])
    assert_close(first(x + 100), first(x))


@pytest.mark.parametrize("change", CHANGES)
def test_gradients(change):
    layer = CHANGES[change][0](nn.Linear(3, 2).double(), "")
    x = torch.randn(2, 3, dtype=torch.float64)

    def call(weight):
        given = {"parametrizations.weight.original": weight}
        return torch.func.functional_call(layer, given, (x,))

    weight = layer.parametrizations.weight.original
    assert torch.autograd.gradcheck(call, (weight,))
    assert torch.autograd.gradgradcheck(call, (weight,))


@pytest.mark.parametrize("change", CHANGES)
def test_the_way_back_is_bit_for_bit(change):
    plain, model = network(), network()
    CHANGES[change][0](model)
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert_close(twin[0].weight, model[0].weight, rtol=0, atol=0)
    assert restore_weights(model) is model
    assert list(map(type, model)) == list(map(type, plain))
    assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert_close(restore_weights(plain).state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_averaged_in_float32(dtype):
    layer = nn.Linear(512, 4).to(dtype)
    nn.init.normal_(layer.weight, mean=200, std=50)  # their squares overflow float16
    before = layer.weight.detach().double()
    after = standardize_weights(layer, "").weight
    assert after.dtype == dtype
    assert_close(after.double(), by_hand(before, 1e-5), rtol=1e-2, atol=1e-2)


def test_equal_weights_become_zero():
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, 0.1)
    assert_close(standardize_weights(layer, "").weight, torch.zeros(2, 3), rtol=0, atol=1e-5)


def test_compiled_and_exported():
    torch.compiler.reset()
    model, x = standardize_weights(network()), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def refused(model, match, layers=None, function=centre_weights, **options):
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=match):
        function(model, layers, **options)
    assert list(map(type, model.modules())) == list(map(type, before.modules()))
    assert list(model.state_dict()) == list(before.state_dict())


def test_what_is_refused_and_leaves_the_model_as_it_was():
    model = network()
    refused(model, "expected names of Linear or Conv.*got '3'", ["0", "3"])
    refused(model, "'2' has one weight an output", ["0", "2"])
    refused(nn.Sequential(nn.LazyLinear(3)), "'0' is lazy", ["0"])
    refused(nn.Linear(3, 2), "got 1 in Linear; name the layers")
    refused(nn.Sequential(nn.ReLU()), "got 0 in Sequential")
    refused(model, "eps above zero", function=standardize_weights, eps=0)
    refused(centre_weights(model), "'0' has its weights changed already", ["5", "0"])
    parametrizations.orthogonal(model[0])
    with pytest.raises(ValueError, match="'0' has another parametrization"):
        restore_weights(model)
    assert hasattr(model[4], "parametrizations")


def test_parameters_are_in_their_old_order_again():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    before = [name for name, _ in model.named_parameters()]
    restore_weights(standardize_weights(model))
    assert [name for name, _ in model.named_parameters()] == before
