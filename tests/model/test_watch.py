"""The guard of an adaptation: what it objects to, and what it lets pass."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from livella.model.measure import Record
from livella.model.watch import ENOUGH, WINDOW, Look, Watch, unevenness, votes_of
from livella.moments import Moments


def watch() -> Watch:
    return Watch.of({"bn": nn.BatchNorm1d(3)})


def look(votes, x=None, adapted=None) -> Look:
    """A look at a batch with these votes, which the layer saw as x."""
    n = sum(votes)
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) if x is None else x
    record = Record(Moments.empty(3), centre=torch.zeros(3, dtype=torch.float64))
    record.add(x, None)
    told = None if adapted is None else torch.tensor(adapted)
    return Look(n, torch.tensor(votes), told, {("bn", 0): record.settle()})


def test_unevenness_by_hand():
    assert unevenness(torch.tensor([5, 5])) == pytest.approx(0)
    assert unevenness(torch.tensor([9, 0, 0])) == 1
    assert unevenness(torch.tensor([8, 8, 0, 0])) == pytest.approx(0.5)
    assert unevenness(torch.tensor([1] * 4 + [0] * 996)) == pytest.approx(0)  # 4 votes, 4 classes
    assert unevenness(torch.tensor([0, 0])) == 0
    assert unevenness(torch.tensor([0, 1])) == 0  # one vote tells nothing


@given(st.lists(st.integers(0, 50), min_size=2, max_size=20))
def test_unevenness_is_a_share_whatever_the_order(votes):
    found = unevenness(torch.tensor(votes))
    assert -1e-9 <= found <= 1 + 1e-9
    assert unevenness(torch.tensor(votes[::-1])) == pytest.approx(found)


def test_votes_count_the_likeliest_classes_of_samples_and_of_pixels():
    scores = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    assert votes_of(scores).tolist() == [1, 2]
    assert votes_of(scores[:, :, None, None].expand(3, 2, 4, 5)).tolist() == [20, 40]


def test_nothing_is_judged_by_few_samples():
    seen = watch()
    seen.see(look([ENOUGH - 1, 0, 0]))
    assert not seen.may_judge
    seen.see(look([1, 0, 0]))
    assert seen.may_judge


def test_the_window_holds_the_last_samples_only():
    seen = watch()
    for _ in range(3 * WINDOW // 16):
        seen.see(look([8, 8]))
    assert WINDOW <= seen.samples < WINDOW + 16


def test_few_classes_of_data_that_it_knows_are_declined():
    seen = watch()
    seen.see(look([60, 2, 2, 0]))
    reason = seen.objection(in_order=True)
    assert reason is not None
    assert reason.startswith("few classes: 94% of the predictions are class 0")


def test_few_classes_of_shifted_data_pass():
    seen = watch()
    seen.see(look([60, 2, 2, 0], 1 + torch.randn(64, 3)))
    assert seen.objection(in_order=True) is None


def test_even_predictions_pass():
    seen = watch()
    seen.see(look([16, 16, 16, 16]))
    assert seen.objection(in_order=True) is None


def test_batches_that_differ_more_than_chance_allows_are_declined_where_order_matters():
    seen, g = watch(), torch.Generator().manual_seed(0)
    for batch in range(8):
        seen.see(look([8, 8, 8, 8], torch.randn(32, 3, generator=g) + (batch % 2)))
    reason = seen.objection(in_order=True)
    assert reason is not None
    assert reason.startswith("correlated: batches differ")
    assert seen.objection(in_order=False) is None


@pytest.mark.parametrize("seed", range(20))
def test_batches_that_differ_by_chance_pass(seed):
    seen, g = watch(), torch.Generator().manual_seed(seed)
    for _ in range(8):
        seen.see(look([8, 8, 8, 8], torch.randn(32, 3, generator=g)))
    assert seen.objection(in_order=True) is None


def test_predictions_that_collapse_are_declined_and_those_that_were_collapsed_pass():
    seen = watch()
    seen.see(look([16, 16, 16, 16], adapted=[64, 0, 0, 0]))
    reason = seen.objection(in_order=True)
    assert reason is not None
    assert reason.startswith("collapse: 100% of the predictions are class 0")
    seen = watch()
    seen.see(look([64, 0, 0, 0], 1 + torch.randn(64, 3), adapted=[0, 64, 0, 0]))
    assert seen.objection(in_order=True) is None


def test_the_divergence_is_that_of_normal_distributions():
    p, q = torch.distributions.Normal(2.0, 3.0), torch.distributions.Normal(0.0, 1.0)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=g, dtype=torch.float64)
    x = 2 + 3 * (x - x.mean(0)) / x.std(0, correction=0)
    seen = watch()
    seen.see(look([4000, 0], x.float()))
    wanted = float(torch.distributions.kl_divergence(p, q))
    assert seen.divergence() == pytest.approx(wanted, rel=1e-3)
