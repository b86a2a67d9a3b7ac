"""Accuracy by whose statistics: each against the definition, and the model as it was."""

import copy

import pytest
import torch
from torch import nn

from livella.study import evaluate
from livella.study.models import Network, build
from livella.study.trial import run
from tests.study import worlds


def made() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 1, 4, 4, generator=g) * 2 + 1
    torch.manual_seed(0)
    model = build(Network(norm="batch", depth=2, width=8), (1, 4, 4), 3).model
    return model, (x, torch.randint(0, 3, (600,), generator=g))


def share(scores: torch.Tensor, y: torch.Tensor) -> float:
    return float((scores.argmax(1) == y).double().mean())


@torch.no_grad()
def test_population_and_mini_batch_statistics():
    model, (x, y) = made()
    before = copy.deepcopy(model.state_dict())
    found, half = evaluate.by_population(model, (x, y), (x, y), (x[:300], y[:300]))
    whole = copy.deepcopy(model).train()  # in one batch, its own statistics are the population's
    scores = whole(x)
    assert found == pytest.approx(share(scores, y), abs=2 / 600)
    assert half == pytest.approx(share(scores[:300], y[:300]), abs=2 / 300)
    by_batch = evaluate.by_mini_batch(model, (x, y), 100)
    scores = torch.cat([copy.deepcopy(model).train()(part) for part in x.split(100)])
    assert by_batch == pytest.approx(share(scores, y), abs=1 / 600)
    assert evaluate.by_mini_batch(model, (x[:101], y[:101]), 50) >= 0  # the odd one is left out
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_trial_records_them_at_every_point():
    one = worlds.trial(
        network=Network(width=8, depth=1, norm="batch", norm_momentum=0.01), probe="inference"
    )
    outcome = run(one)
    assert len(outcome.inference) == len(outcome.steps)
    assert all(0 <= value <= 1 for point in outcome.inference for value in point)
    assert outcome.inference[-1][0] > outcome.test[-1]  # the averages hardly moved in four steps
