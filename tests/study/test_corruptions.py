"""Corruptions stay in the range of the data, and the probes leave the network as it was."""

import copy

import pytest
import torch
from torch import nn

from livella.study import corruptions, models, probes, trial
from livella.study.corruptions import (
    CORRUPTIONS,
    METHODS,
    SIZES,
    Corrupted,
    Corruption,
    Span,
    Streamed,
)
from livella.study.data import Dataset
from livella.study.models import Network
from tests.study import worlds

RANGES = [(0.0, 1.0), (-3.0, 5.0), (10_000.0, 10_001.0)]
each_corruption = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=str)


def images(low=0.0, high=1.0, count=12):
    drawn = torch.rand(count, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    drawn = (drawn - drawn.min()) / (drawn.max() - drawn.min())
    return low + (high - low) * drawn


@pytest.mark.parametrize("ends", RANGES)
@each_corruption
def test_the_result_is_other_data_in_the_same_range_and_the_same_each_time(corruption, ends):
    x = images(*ends)
    before = x.clone()
    y = Span.of(x).corrupt(x, corruption)
    assert y.shape == x.shape
    assert not torch.equal(y, x)
    assert float(y.min()) >= ends[0]
    assert float(y.max()) <= ends[1]
    assert torch.equal(y, Span.of(x).corrupt(x, corruption))
    assert torch.equal(x, before)


@each_corruption
def test_what_is_done_does_not_depend_on_the_unit_of_the_data(corruption):
    x = images()
    scaled = Span.of(-2 + 6 * x).corrupt(-2 + 6 * x, corruption)
    torch.testing.assert_close((scaled + 2) / 6, Span.of(x).corrupt(x, corruption))


@pytest.mark.parametrize("kind", ["contrast", "brightness", "noise", "blur"])
def test_a_higher_severity_goes_farther(kind):
    x = images()
    far = [
        float((Span(0, 1).corrupt(x, Corruption(kind, severity)) - x).square().mean())
        for severity in (1, 2, 3)
    ]
    assert far == sorted(far)


def test_contrast_and_inversion_by_hand():
    x = torch.tensor([[0.0, 0.5, 1.0]])
    span = Span(0.0, 1.0)
    contrast = span.corrupt(x, Corruption("contrast", 3))
    torch.testing.assert_close(contrast, torch.tensor([[0.375, 0.5, 0.625]]))
    torch.testing.assert_close(span.corrupt(x, Corruption("invert", 3)), 1 - x)
    torch.testing.assert_close(
        span.corrupt(x, Corruption("brightness", 2)), torch.tensor([[0.4, 0.9, 1.0]])
    )


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_a_blur_keeps_what_is_even_and_spreads_a_point(severity):
    span = Span(0.0, 1.0)
    even = torch.full((1, 2, 9, 9), 0.3)
    blurred = span.corrupt(even, Corruption("blur", severity))
    torch.testing.assert_close(blurred, even)
    point = torch.zeros(1, 1, 21, 21)
    point[0, 0, 10, 10] = 1.0
    spread = span.corrupt(point, Corruption("blur", severity))[0, 0]
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0))
    torch.testing.assert_close(spread, spread.T)
    place = torch.arange(21.0) - 10
    deviation = float((spread.sum(0) * place.square()).sum().sqrt())
    assert deviation == pytest.approx(0.5 * severity, rel=0.1)


def test_examples_without_space_or_of_one_value_are_taken_too():
    x = torch.rand(4, 5)
    assert torch.equal(Span(0, 1).corrupt(x, Corruption("blur", 2)), x)
    even = torch.full((3, 5), 7.0)
    assert torch.equal(Span.of(even).corrupt(even, Corruption("noise", 1)), even)


def test_accuracies_go_into_plain_numbers_and_back():
    count = 1 + len(CORRUPTIONS) * (1 + len(METHODS) * len(SIZES))
    values = tuple(range(count))
    found = Corrupted.from_tuple(values)
    assert found.to_tuple() == values
    assert found.clean == 0
    assert found.source[CORRUPTIONS[-1]] == len(CORRUPTIONS)
    with pytest.raises(ValueError, match="zip"):
        Corrupted.from_tuple(values[:-1])


def planted(count=300):
    """Three classes that are bright in another corner, with a network that knows them."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    x = 0.2 * torch.rand(count, 3, 8, 8, generator=generator)
    x[torch.arange(count), y] += 0.6
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].running_mean.copy_(x.mean((0, 2, 3)))
        model[0].running_var.copy_(x.var((0, 2, 3)))
        model[3].weight.copy_(torch.eye(3))
        model[3].bias.zero_()
    return model, Dataset("planted", (x, y), (x, y), (x, y))


@pytest.fixture
def few_batches(monkeypatch):
    monkeypatch.setattr(corruptions, "BATCHES", {1: 2, 4: 2, 16: 2, 64: 1})


@pytest.mark.usefixtures("few_batches")
def test_both_probes_leave_the_network_as_it_was():
    model, dataset = planted()
    before = copy.deepcopy(model.state_dict())
    built = models.Built(model.train(), ())
    for name, probe in probes.make("corrupted+streams", built, dataset).items():
        assert all(0 <= value <= 1 for value in probe()), name
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.usefixtures("few_batches")
def test_a_network_that_knows_the_data_is_seen_to():
    model, dataset = planted()
    found = Corrupted.measure(model, dataset)
    assert found.clean == 1
    assert found.adapted[Corruption("contrast", 1), "blended", 64] == 1


def test_a_stream_sorted_by_class_harms_a_trained_network_unless_it_is_guarded():
    network = Network("cnn", norm="batch", width=8)
    trained = worlds.trial(
        network=network, steps=250, batch=64, momentum=0.9, evaluations=1, probe="streams"
    )
    values = trial.run(trained).streams[-1]
    in_order, shifted = Streamed(*values[:3]), Streamed(*values[3:])
    assert in_order.unguarded < in_order.source - 0.05
    assert in_order.guarded > in_order.source - 0.02
    assert shifted.guarded - shifted.source > 0.8 * (shifted.unguarded - shifted.source) > 0.1


@pytest.mark.usefixtures("few_batches")
def test_a_network_of_the_study_is_measured():
    built = models.build(Network("cnn", norm="batch", width=2), (2, 9, 7), 3)
    part = (images(count=150), torch.arange(150) % 3)
    values = Corrupted.measure(built.model, Dataset("planted", part, part, part)).to_tuple()
    assert all(0 <= value <= 1 for value in values)
