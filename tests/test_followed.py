"""Calls that something follows which knows torch's own operators only: they go to torch's."""

import io
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import nn
from torch.autograd import forward_ad
from torch.testing import assert_close

import livella
import livella.nn
from livella.functional import batch_norm


def layers(**options):
    """Torch's layer and ours with the same numbers in them."""
    torch.manual_seed(0)
    theirs = nn.BatchNorm1d(3, **options)
    with torch.no_grad():
        theirs.weight.uniform_(0.5, 2)
        theirs.bias.normal_()
        theirs.running_var.uniform_(0.5, 2)
    ours = livella.nn.BatchNorm1d(3, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_a_traced_layer_is_saved_and_runs_without_livella(training, momentum):
    ours, theirs = (layer.train(training) for layer in layers(momentum=momentum))
    x, file = normal(6, 3, 4), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        warnings.filterwarnings(
            "ignore", "Converting a tensor to a Python", torch.jit.TracerWarning
        )
        traced = torch.jit.trace(ours, x, check_trace=False)
        torch.jit.save(traced, file)
        loaded = torch.jit.load(io.BytesIO(file.getvalue()))
    assert_close(loaded(x), theirs(x))


def test_a_traced_network_is_accelerated_no_more_but_right():
    model = nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.ReLU()).eval()
    x = normal(6, 3, 4)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        traced = torch.jit.trace(livella.accelerate(model), x)
        torch.jit.save(traced, io.BytesIO())
    assert_close(traced(x), expected)


# Torch builds some of its forward-mode rules with what it calls deprecated.
builds_rules = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@builds_rules
def test_transformations_of_torch_func():
    ours, theirs = (layer.eval() for layer in layers())
    x, direction = normal(6, 3, 4), normal(6, 3, 4) ** 2
    results = []
    for layer in (ours, theirs):
        parameters = dict(layer.named_parameters())

        def loss(parameters, x, layer=layer):
            return torch.func.functional_call(layer, parameters, (x,)).square().sum()

        results.append(
            (
                torch.func.vmap(layer)(x.view(2, 3, 3, 4)),
                torch.func.grad(loss)(parameters, x),
                torch.func.jvp(layer, (x,), (direction,)),
            )
        )
    assert_close(*results)


def test_gradients_of_each_sample():
    ours, theirs = (layer.eval() for layer in layers())
    samples = normal(4, 1, 3, 5)
    results = []
    for layer in (ours, theirs):
        parameters = {k: v.detach() for k, v in layer.named_parameters()}

        def loss(parameters, x, layer=layer):
            return torch.func.functional_call(layer, parameters, (x,)).square().sum()

        results.append(torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, samples))
    assert_close(*results)


@builds_rules
@pytest.mark.parametrize("training", [False, True])
def test_forward_mode(training):
    ours, theirs = (layer.train(training) for layer in layers())
    tangents = []
    for layer in (ours, theirs):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(normal(6, 3, 4), normal(6, 3, 4).exp())
            tangents.append(forward_ad.unpack_dual(layer(x)).tangent)
    assert tangents[0] is not None
    assert_close(*tangents)


class Picture(torch.Tensor):
    """A tensor of a user's own class."""


@pytest.mark.parametrize("training", [False, True])
def test_a_tensor_of_another_class_stays_one(training):
    ours, theirs = (layer.train(training) for layer in layers())
    x = normal(6, 3, 4).as_subclass(Picture)
    y = ours(x)
    assert type(y) is Picture
    assert_close(F.relu(y, inplace=True), theirs(x).relu())


@pytest.mark.parametrize("name", ["input", "residual"])
def test_bad_input_is_told_here_too(name):
    given = {"input": normal(6, 3, 4), "residual": normal(6, 3, 4)}
    given[name] = given[name][:, :, :1, None]
    with forward_ad.dual_level(), pytest.raises(ValueError, match="residual of the input's shape"):
        batch_norm(running_mean=None, running_var=None, training=True, **given)
