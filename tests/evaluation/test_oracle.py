"""The oracle by what is known without it."""

import math

import pytest
import torch
from evaluation.networks import norms_of
from torch import nn

from evaluation import oracle


def three_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3),
    )  # fmt: skip


def test_population_is_that_of_all_values_level_by_level():
    model, x = three_layers(), 3 + 2 * torch.randn(500, 6)
    found = oracle.population(model, x)
    with torch.no_grad():
        value = x.double()
        for name, layer in model.double().named_children():
            if name in found:
                mean, variance = value.mean(0), value.var(0)
                torch.testing.assert_close(found[name][0].double(), mean, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(found[name][1].double(), variance, rtol=1e-4, atol=1e-5)
                value = (value - mean) / (value.var(0, unbiased=False) + layer.eps).sqrt()
            else:
                value = layer(value)


def test_population_leaves_the_model_and_dropout_alone():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(6)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(400, 6)
    torch.testing.assert_close(oracle.population(model, x)["1"][1], x.var(0))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_two_players_share_by_hand():
    # Together 1.0, alone 0.2 and 0.6: ½ (0.2 + 0.4) and ½ (0.6 + 0.8).
    worth = {"": 0.0, "a": 0.2, "b": 0.6, "ab": 1.0}
    found = oracle.shapley(["a", "b"], lambda of, _sample: worth["".join(sorted(of))])
    assert found == pytest.approx({"a": 0.3, "b": 0.7})


def test_orders_come_near_to_what_all_coalitions_give():
    players = [str(k) for k in range(12)]

    def worth(of: frozenset[str], _sample: int) -> float:
        """Each brings its number, and the first two that much again together."""
        return sum(map(float, of)) / 66 + 0.5 * ({"0", "1"} <= of)

    found = oracle.shapley(players, worth)
    assert sum(found.values()) == pytest.approx(1.5)
    for k, name in enumerate(players):
        assert found[name] == pytest.approx(k / 66 + 0.25 * (k < 2), abs=0.06)


def test_distance_is_in_standard_deviations_of_the_data():
    model = nn.Sequential(nn.BatchNorm1d(4, eps=0.0))
    data = (torch.full((4,), 3.0), torch.full((4,), 4.0))
    norm = norms_of(model)["0"]
    norm.running_mean.fill_(4.0)
    norm.running_var.fill_(4.0)
    assert oracle.distance(model, "0", data) == pytest.approx(0.5)
    norm.running_var.fill_(4.0 * math.e**4)
    assert oracle.distance(model, "0", data) == pytest.approx(2.0)
    norm.running_var[2] = math.nan
    assert oracle.distance(model, "0", data) == math.inf


def test_what_is_not_finite_is_wrong():
    model = nn.Linear(3, 3)
    x, y = torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
        assert oracle.accuracy(model, (x, y)) == 1
        model.bias[1] = math.nan
    assert oracle.accuracy(model, (x, y)) == 0


def test_the_layer_that_is_wrong_has_the_loss():
    model, x = three_layers(), torch.randn(600, 6)
    data = oracle.population(model, x)
    right = oracle.with_statistics(model, data)
    y = oracle.classes(right, x)
    norms_of(right)["4"].running_mean += 3 * norms_of(right)["4"].running_var.sqrt()
    found = oracle.truth(right, (x, y), (x, y), None, enough=0.05)
    assert found.population == (1.0, 1.0)
    assert found.least > 0.05
    assert found.shares == pytest.approx({"4": 1.0})
    assert found.unsure == 0


def test_what_two_halves_of_the_data_say_differs_by_chance():
    """Two layers equally wrong, on few examples: nobody can tell which has how much of it."""
    model, x = three_layers(), torch.randn(40, 6)
    data = oracle.population(model, x)
    right = oracle.with_statistics(model, data)
    y = oracle.classes(right, x)
    for name in ("1", "4", "7"):
        norms_of(right)[name].running_mean += 0.5 * norms_of(right)[name].running_var.sqrt()
    shared, unsure = oracle.shares(right, data, (x, y))
    assert sum(shared.values()) == pytest.approx(1)
    assert 0 < unsure < 1
