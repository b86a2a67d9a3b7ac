"""Corruptions stay in the range of the data, and the probes leave the network as it was."""

import copy
import itertools

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


def planted(count=300, noise=0.0):
    """Three classes that are bright in another corner, with a network that knows them."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    x = 0.2 * torch.rand(count, 3, 8, 8, generator=generator)
    x += noise * torch.rand(count, 3, 1, 1, generator=generator)
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
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    for probe in probes.make("corrupted+streams", models.Built(model, ()), dataset).values():
        probe()
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters())


def test_every_number_is_that_of_its_own_method_corruption_and_size(monkeypatch):
    """Against each way written out anew: one condition, with what is known of the network."""
    monkeypatch.setattr(corruptions, "BATCHES", {1: 6, 4: 6, 16: 4, 64: 2})
    model, dataset = planted(noise=0.5)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.8, 1.2]))
    found = Corrupted.measure(model, dataset)
    x, y = corruptions._drawn(dataset.test, 128)
    span, norm = Span.of(dataset.train[0]), model[0]
    mean, var = norm.running_mean, norm.running_var

    def right(x, y, mean, var):
        z = (x - mean[:, None, None]) / (var + norm.eps).sqrt()[:, None, None]
        z = z * norm.weight[:, None, None] + norm.bias[:, None, None]
        return (model[3](z.mean((2, 3))).argmax(1) == y).float()

    assert found.clean == pytest.approx(float(right(x, y, mean, var).mean()))
    for corruption in (Corruption("contrast", 3), Corruption("brightness", 2)):
        shifted = span.corrupt(x, corruption)
        assert found.source[corruption] == pytest.approx(float(right(shifted, y, mean, var).mean()))
        for (method, prior), size in itertools.product((("adapted", 0), ("blended", 16)), SIZES):
            if prior + size == 1:  # one map by its own moments: every mean is the same
                continue
            parts = []
            for k in range(corruptions.BATCHES[size]):
                batch = slice(k * size, (k + 1) * size)
                part, s = shifted[batch], size / (prior + size)
                m = s * part.mean((0, 2, 3)) + (1 - s) * mean
                v = s * part.var((0, 2, 3), unbiased=False) + (1 - s) * var
                parts.append(right(part, y[batch], m, v))
            expected = float(torch.cat(parts).mean())
            seen = found.adapted[corruption, method, size]
            assert seen == pytest.approx(expected), (method, size)


def test_tuning_tunes(monkeypatch):
    monkeypatch.setattr(corruptions, "ENTROPY_RATE", 0.5)
    monkeypatch.setattr(corruptions, "BATCHES", {1: 2, 4: 8, 16: 6, 64: 2})
    model, dataset = planted(noise=0.5)
    found = Corrupted.measure(model, dataset)
    keys = [(c, size) for c in CORRUPTIONS for size in SIZES]
    assert any(found.adapted[c, "tuned", n] != found.adapted[c, "adapted", n] for c, n in keys)


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
