"""The evaluation of the guard: what it draws, how it judges, and a small part of it."""

import dataclasses

import pytest
import torch
from evaluation.guard import is_right
from evaluation.guard_cases import ORDERS, Case
from evaluation.guard_met import run, score_of

from evaluation import guard_cases

CNN, MLP = 8, 12


def test_the_same_seed_draws_the_same_and_a_key_says_all():
    cases = guard_cases.of(5)
    assert cases == guard_cases.of(5)
    assert cases != guard_cases.of(7)
    assert [Case.of(case.key) for case in cases] == cases


@pytest.mark.parametrize("order", ORDERS[1:])
def test_an_order_is_the_same_samples_otherwise(order):
    network = guard_cases.network(MLP)
    case = Case(MLP, "contrast", 0.5, order, 16, 0.9)
    x, y = guard_cases.stream(case, network)
    fair, _ = guard_cases.stream(dataclasses.replace(case, order="shuffled"), network)
    assert torch.equal(x.flatten(1).sum(1).sort().values, fair.flatten(1).sum(1).sort().values)
    changes = int((y[1:] != y[:-1]).sum())
    assert changes == network.classes - 1 if order == "sorted" else changes < len(y) * 0.6


def test_a_score_is_missed_by_more_than_two_points():
    row = {"source": 0.9, "unguarded": 0.5, "score": "both"}
    assert is_right({**row, "guarded": 0.881})
    assert not is_right({**row, "guarded": 0.879})
    row = {"source": 0.2, "unguarded": 0.7, "score": "kept"}
    assert is_right({**row, "guarded": 0.61})
    assert not is_right({**row, "guarded": 0.59})
    harms = {"source": 0.8, "unguarded": 0.5, "score": "kept"}
    assert not is_right({**harms, "guarded": 0.5})
    assert is_right({**harms, "guarded": 0.79})
    assert score_of(Case(0, "none", 0, "sorted", 16, 0.9), 10) == "harmless"
    assert score_of(Case(0, "blur", 0.5, "pairs", 16, 0.9), 2) == "kept"
    assert score_of(Case(0, "blur", 0.5, "pairs", 16, 0.9), 10) == "both"


@pytest.mark.parametrize("seed", [CNN, MLP])
@pytest.mark.parametrize(
    ("shift", "order"), [("none", "sorted"), ("brightness", "shuffled"), ("brightness", "sorted")]
)
def test_a_part_of_it(seed, shift, order):
    row = run(Case(seed, shift, 0.7, order, 64, 0.9))
    assert is_right(row), row
