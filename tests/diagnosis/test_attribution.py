"""Shares of the gap add up, whatever the layers do to each other, and are those of the formula."""

import itertools
import math

import pytest
import torch
from torch import nn

import livella
from tests.diagnosis import faults
from tests.diagnosis.test_inspection import damage, inspect

NEAR = {"abs": 1e-9}


class Branches(nn.Module):
    """Equal branches, each with a batch norm, whose outputs are added up."""

    def __init__(self, names):
        super().__init__()
        torch.manual_seed(0)
        self.names = sorted(names)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        for name in names:
            self.add_module(name, nn.BatchNorm1d(8))

    def forward(self, x):
        x = self.first(x)
        return self.last(sum(torch.tanh(self.get_submodule(name)(x)) for name in self.names))


def right(model, count=8):
    """A model whose statistics are those of the data, and whose labels are what it says."""
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(64, 6, generator=generator) for _ in range(count)]
    livella.estimate_population(model.eval(), batches, progress=False).apply()
    with torch.no_grad():
        return [(x, model(x).argmax(1)) for x in batches]


def shift(model, **by):
    for name, sigmas in by.items():
        norm = model.get_submodule(name)
        norm.running_mean += sigmas * norm.running_var.sqrt()


def shares(model, batches):
    return {layer.name: layer.share for layer in inspect(model, batches).measurements}


def test_they_are_shapley_values_counted_by_hand():
    """All subsets of three layers, in plain torch, over all examples."""
    model = Branches("abc")
    batches = right(model)
    good = {n: b.clone() for n, b in model.named_buffers()}
    shift(model, a=2.5, b=-1.5, c=0.8)
    bad = {n: b.clone() for n, b in model.named_buffers()}
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))

    def worth(mended):
        for name, buffer in model.named_buffers():
            buffer.copy_((good if name.split(".")[0] in mended else bad)[name])
        return float((model(x).argmax(1) == y).double().mean())

    value = dict.fromkeys("abc", 0.0)
    for order in itertools.permutations("abc"):
        for k, name in enumerate(order):
            value[name] += (worth(order[: k + 1]) - worth(order[:k])) / math.factorial(3)
    worth(())
    whole = sum(value.values())
    assert whole > 0.1
    found = inspect(model, batches).measurements
    for layer in found:
        assert layer.share == pytest.approx(value[layer.name] / whole, abs=layer.share_error + 0.05)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("layers", [2, 6, 9, 20])
def test_they_add_up_and_none_is_negative(layers, labels):
    model = Branches([f"n{k:02}" for k in range(layers)])
    batches = right(model)
    shift(model, **{f"n{k:02}": (-1) ** k * (1 + k % 3) for k in range(layers)})
    found = shares(model, batches if labels else [x for x, _ in batches])
    assert sum(found.values()) == pytest.approx(1, **NEAR)
    assert min(found.values()) >= 0


def test_a_layer_whose_statistics_are_right_gets_nothing():
    model = Branches("abcd")
    batches = right(model)
    shift(model, b=2.0, d=2.0)
    found = shares(model, batches)
    assert found["a"] == found["c"] == 0
    assert found["b"] > 0
    assert found["d"] > 0


def test_layers_that_change_places_change_shares():
    found = []
    for by in ({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 2.0}):
        model = Branches("ab")
        batches = right(model)
        shift(model, **by)
        found.append(shares(model, batches))
    assert found[0]["a"] == pytest.approx(found[1]["b"], **NEAR)
    assert found[0]["b"] == pytest.approx(found[1]["a"], **NEAR)
    assert found[0]["a"] > found[0]["b"]


@pytest.mark.parametrize("layers", [3, 8])
def test_the_order_of_naming_does_not_matter(layers):
    found = []
    names = [f"n{k}" for k in range(layers)]
    for order in (names, names[::-1]):
        model = Branches(order)
        batches = right(model)
        shift(model, **{name: 1.0 + k / 4 for k, name in enumerate(names)})
        found.append(shares(model, batches))
    assert found[0] == pytest.approx(found[1], **NEAR)


def test_in_a_deep_network_a_few_layers_get_the_gap():
    model, batches = faults.trained("deep"), faults.separable()
    damaged = damage(model, (3, 9, 15))
    found = inspect(model, batches).measurements
    assert sum(layer.share for layer in found if layer.name in damaged) > 0.9
    assert all(0 <= layer.share_error <= 1 for layer in found)


def test_without_a_gap_nothing_is_shared_out():
    model = Branches("ab")
    assert set(shares(model, right(model)).values()) == {None}
