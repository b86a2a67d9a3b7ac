"""What the classes of a stream cannot explain: the correction of layers by it."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from livella.model.caution import MEMORY, Caution, Past
from livella.model.measure import Record
from livella.moments import Moments


def caution(concentration, prior=0.0) -> Caution:
    layers = {"a": nn.BatchNorm1d(2), "b": nn.BatchNorm1d(2)}
    source = {name: (layer.running_mean, layer.running_var) for name, layer in layers.items()}
    made = Caution(layers, source, prior)
    made.begin(["a", "b"], concentration)
    return made


def record(*batches) -> Record:
    met = Record(Moments.empty(2), centre=torch.zeros(2, dtype=torch.float64))
    for batch in batches:
        met.add(batch, None)
    return met.settle()


def of_class(k, n=400, seed=0):
    """Of two classes, whose mixture has mean 0 and variance 1."""
    g = torch.Generator().manual_seed(seed)
    return (2 * k - 1) * 0.8 + 0.6 * torch.randn(n, 2, generator=g)


def test_one_class_moves_neither_mean_nor_variance():
    mean, variance = caution(1.0).of("a", Past.of(record(of_class(1))))
    torch.testing.assert_close(mean, torch.zeros(2))
    torch.testing.assert_close(variance, torch.ones(2), atol=0.12, rtol=0)


def test_of_all_classes_it_is_the_whole_data():
    x = 2 * torch.cat([of_class(0), of_class(1)]) + 3
    mean, variance = caution(0.0).of("a", Past.of(record(x)))
    torch.testing.assert_close(mean, x.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(variance, x.var(0), atol=0.1, rtol=0)


def test_another_world_is_corrected_though_one_class_came():
    mean, variance = caution(1.0).of("a", Past.of(record(of_class(1) + 5)))
    torch.testing.assert_close(mean, torch.full((2,), 5.8), atol=0.3, rtol=0)
    assert float(variance.max()) < 2
    _, variance = caution(1.0).of("a", Past.of(record(of_class(1) / 8)))
    assert float(variance.max()) < 0.1  # (0.8² + 0.6²)/64, and what is in doubt of it


def test_the_last_layers_stay():
    made = caution(0.0)
    mean, variance = made.of("b", Past.of(record(of_class(1) + 5)))
    assert mean.tolist() == [0, 0]
    assert variance.tolist() == [1, 1]
    made.begin(["a", "b", "c"], 0.0)
    assert made.first == {"a", "b"}


@settings(deadline=None)
@given(st.permutations(range(6)))
def test_the_order_of_a_set_does_not_matter(order):
    parts = [of_class(k % 2, 30, k) + 2 for k in range(6)]
    made = caution(0.4)
    past = Past.of(record(parts[order[0]]))
    for k in order[1:]:
        past = past.merge(Past.of(record(parts[k])))
    for one, other in itertools.chain(
        zip(made.of("a", past), made.of("a", Past.of(record(*parts))), strict=True)
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_what_lies_between_and_within_batches_adds_up():
    parts = [of_class(k % 2, 30, k) for k in range(4)]
    past = Past.of(record(*parts))
    x = torch.cat(parts).double()
    means = torch.stack([part.double().mean(0) for part in parts])
    between = 30 * (means - x.mean(0)).square().sum(0)
    torch.testing.assert_close(past.batches.m2, between, atol=1e-5, rtol=1e-5)
    within = (x - x.mean(0)).square().sum(0) - between
    torch.testing.assert_close(past.within, within, atol=1e-4, rtol=1e-5)


def test_the_memory_is_of_fixed_size():
    made = caution(0.0)
    for k in range(100):
        faded = made.faded(32)
        made.after(faded, {("a", 0): record(of_class(k % 2, 32, k))})
    assert float(made.past["a"].samples) == pytest.approx(MEMORY, rel=0.05)


def test_a_prior_without_end_changes_nothing():
    mean, variance = caution(0.0, float("inf")).of("a", Past.of(record(of_class(1) + 5)))
    assert mean.tolist() == [0, 0]
    assert variance.tolist() == [1, 1]
