"""`make_norm`: which layer each name gives, and whose moments it uses."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import livella.nn as lnn
from livella.nn import KINDS, make_norm

INPUTS = {1: [(6, 8), (6, 8, 5)], 2: [(6, 8, 4, 5)], 3: [(6, 8, 2, 3, 4)]}


def draw(shape):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 2


@pytest.mark.parametrize("ndim", INPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_shape_in_every_dimension(kind, ndim):
    layer = make_norm(kind, 8, ndim)
    for shape in INPUTS[ndim]:
        if kind == "instance" and len(shape) == 2:
            continue
        assert layer(draw(shape)).shape == shape


# For each kind, the parts of an input (N, C, H, W) that come out with mean zero and variance one.
NORMALIZED = {
    "batch": lambda y: y.movedim(1, 0).flatten(1),
    "layer": lambda y: y.flatten(1),
    "instance": lambda y: y.flatten(2).flatten(0, 1),
    "group": lambda y: y.unflatten(1, (4, 2)).flatten(2).flatten(0, 1),
}


@pytest.mark.parametrize("kind", NORMALIZED)
def test_each_kind_normalizes_its_own_parts(kind):
    parts = NORMALIZED[kind](make_norm(kind, 8, 2, eps=1e-12)(draw((6, 8, 4, 5))))
    assert_close(parts.mean(1), torch.zeros(len(parts)), rtol=0, atol=1e-5)
    assert_close(parts.var(1, unbiased=False), torch.ones(len(parts)), rtol=1e-4, atol=0)


def test_none_does_nothing():
    x = draw((6, 8))
    assert make_norm("none", 8, 1, eps=1.0)(x) is x


@pytest.mark.parametrize("ndim", INPUTS)
def test_the_classes(ndim):
    assert type(make_norm("batch", 8, ndim)) is getattr(lnn, f"BatchNorm{ndim}d")
    assert isinstance(make_norm("instance", 8, ndim), getattr(nn, f"InstanceNorm{ndim}d"))
    assert make_norm("layer", 8, ndim).num_groups == 1
    assert type(make_norm("rms", 8, ndim)) is lnn.RMSNorm
    assert type(make_norm("dynamic_tanh", 8, ndim, alpha=0.2)) is lnn.DynamicTanh
    ours = getattr(lnn, f"FilterResponseNorm{ndim}d")
    assert type(make_norm("filter_response", 8, ndim)) is ours
    ours = getattr(lnn, f"MovingAverageBatchNorm{ndim}d")
    assert type(make_norm("moving_average", 8, ndim, window=4)) is ours


# What they learn besides the affine part.
LEARNED = {"filter_response": ["threshold"], "dynamic_tanh": ["alpha"]}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_all_are_affine_unless_told(kind):
    assert make_norm(kind, 8, 2).weight.shape == (8,)
    bare = make_norm(kind, 8, 2, affine=False)
    assert [name for name, _ in bare.named_parameters()] == LEARNED.get(kind, [])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("none", "dynamic_tanh")])
def test_options_pass_through(kind):
    layer = make_norm(kind, 8, 2, eps=0.25, device="meta", dtype=torch.float64)
    assert layer.eps == 0.25
    assert (layer.weight.device.type, layer.weight.dtype) == ("meta", torch.float64)


def test_only_batch_norms_take_an_activation():
    for kind in ("batch", "sync", "moving_average"):
        assert make_norm(kind, 8, 2, activation="relu").activation == "relu"
    for kind in ("layer", "instance", "group", "rms", "filter_response", "dynamic_tanh"):
        with pytest.raises(TypeError, match="activation"):
            make_norm(kind, 8, 2, activation="relu")


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (2, 1), (3, 1), (4, 2), (7, 1), (8, 4), (48, 24), (64, 32), (100, 25), (256, 32)],
)
def test_default_groups(channels, groups):
    assert make_norm("group", channels, 2).num_groups == groups


def test_groups_can_be_chosen():
    assert make_norm("group", 8, 1, num_groups=2).num_groups == 2
    with pytest.raises(ValueError, match="divisible"):
        make_norm("group", 8, 1, num_groups=3)


def test_instance_refuses_inputs_without_space():
    layer = make_norm("instance", 8, 1)
    for shape in ((8, 8), (6, 8)):
        with pytest.raises(ValueError, match=r"\(N, C, L\)"):
            layer(draw(shape))


def test_unknown_names_and_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"'bach'.*'batch'.*'rms'"):
        make_norm("bach", 8, 2)
    for ndim in (0, 4):
        with pytest.raises(ValueError, match="ndim of 1, 2 or 3"):
            make_norm("batch", 8, ndim)
