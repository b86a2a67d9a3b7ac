"""The guard of an adaptation: how far it goes along with a stream, and why no further."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from livella.model.measure import Record
from livella.model.watch import (
    ENOUGH,
    PATIENCE,
    WINDOW,
    Look,
    Votes,
    Watch,
    Way,
    concentration,
    excess,
    votes_of,
)
from livella.moments import Moments


def watch(window=WINDOW) -> Watch:
    return Watch.of({"bn": nn.BatchNorm1d(3)}, window)


def record(x) -> Record:
    met = Record(Moments.empty(3), centre=torch.zeros(3, dtype=torch.float64))
    met.add(x, None)
    return met.settle()


def look(votes, x=None, seed=0) -> Look:
    """A look at a batch with these votes, which the layer saw as x."""
    n = sum(votes)
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) if x is None else x
    return Look(n, Votes(torch.tensor(votes).double()), {("bn", 0): record(x)})


def after(*looks: Look, window=WINDOW) -> Watch:
    seen = watch(window)
    for each in looks:
        seen = seen.with_look(each)
    return seen


# Votes


def test_concentration_by_hand():
    assert concentration(torch.tensor([500, 500])) == pytest.approx(0, abs=1e-2)
    assert concentration(torch.tensor([9, 0, 0])) == 1
    assert concentration(torch.tensor([4000, 4000, 0, 0])) == pytest.approx(1 / 3, abs=1e-3)
    assert concentration(torch.tensor([1] * 4 + [0] * 996)) == 0  # no two agree
    assert concentration(torch.tensor([0, 1])) == 1  # one vote tells nothing


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(20, 40))
def test_concentration_does_not_depend_on_how_many_votes_there_are(shares, n):
    """Without bias: the mean over draws of n votes is that of very many."""
    p = torch.tensor(shares).double() / sum(shares)
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [torch.multinomial(p, n, True, generator=g).bincount(minlength=len(p)) for _ in range(300)]
    )
    agree = [float((v * (v - 1)).sum()) / (n * (n - 1)) for v in drawn]
    k = len(p)
    wanted = (float((p * p).sum()) - 1 / k) / (1 - 1 / k)
    found = (sum(agree) / 300 - 1 / k) / (1 - 1 / k)
    assert found == pytest.approx(wanted, abs=0.05)
    one = concentration(drawn[0].double())
    assert one == pytest.approx(max(0, (agree[0] - 1 / k) / (1 - 1 / k)), abs=1e-9)


def test_a_sample_of_many_positions_has_one_vote():
    scores = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    assert votes_of(scores).counts.tolist() == [1, 2]
    maps = scores[:, :, None, None].repeat(1, 1, 4, 5)
    maps[:, 0, 0] = 9  # a row of five positions, of twenty
    assert votes_of(maps).counts.tolist() == [1, 2]


# What is remembered


def test_nothing_is_judged_by_few_samples():
    seen = after(look([ENOUGH - 1, 0, 0]))
    assert "too few" in seen.verdict(in_order=True).reason
    assert "too few" not in (after(look([ENOUGH, 0, 0])).verdict(in_order=True).reason or "")


@pytest.mark.parametrize("size", [1, 16, 100, 2000])
def test_the_window_holds_the_last_samples_and_few_looks(size):
    seen = after(*[look([size, 0], seed=k) for k in range(1 + 2000 // size)])
    held = sum(each.samples for each in seen.looks)
    assert min(WINDOW, seen.samples) <= held <= max(WINDOW + 2 * size + 64, 2 * size)
    assert len(seen.looks) <= 18


def test_a_whole_set_is_one_look():
    assert len(after(*[look([8, 8], seed=k) for k in range(50)], window=None).looks) == 1


# How far it goes along


def way(seen, in_order=True) -> Way:
    return seen.verdict(in_order=in_order).way


def test_many_classes_in_no_order_pass_whatever_comes_in():
    for x in (None, 1 + torch.randn(64, 3)):
        assert way(after(look([16, 16, 16, 16], x))) is Way.WHOLE


def test_few_classes_of_data_as_in_training_are_declined():
    verdict = after(look([60, 2, 2, 0])).verdict(in_order=True)
    assert verdict.way is Way.SOURCE
    assert verdict.reason.startswith("few classes: 94% of the predictions are class 0")


def classes(n, k, g):
    """Samples of class k of two, whose mixture has mean 0 and variance 1 in every channel."""
    return (2 * k - 1) * 0.8 + 0.6 * torch.randn(n, 3, generator=g)


def test_a_class_far_from_the_mean_is_told_from_a_world_that_moved_as_far():
    g = torch.Generator().manual_seed(0)
    of_one = classes(256, 1, g)
    both = torch.cat([classes(128, 0, g), classes(128, 1, g)]) + 1.2
    assert way(after(look([256, 0], of_one))) is Way.SOURCE
    assert way(after(look([250, 6], both[torch.randperm(256, generator=g)]))) is not Way.SOURCE


def test_a_class_may_vary_more_than_all_of_them_and_no_more_than_that():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, 3, generator=g)
    assert way(after(look([256, 0], 1.2 * x))) is Way.SOURCE
    assert way(after(look([256, 0], 1.6 * x))) is not Way.SOURCE
    assert way(after(look([256, 0], x / 1.6))) is not Way.SOURCE


def test_few_classes_of_a_world_that_moved_are_gone_along_with_by_halves_and_later_whole():
    moved = [look([30, 2, 0, 0], 2 + torch.randn(32, 3), seed=k) for k in range(PATIENCE // 32)]
    verdict = after(*moved[:4]).verdict(in_order=True)
    assert verdict.way is Way.FIRST
    assert verdict.reason.startswith("few classes")
    assert way(after(*moved)) is Way.WHOLE
    # not where the correction leaves a single class
    still = after(*moved).with_adapted(Votes(torch.tensor([200.0, 2, 0, 0])), Way.FIRST, 32)
    assert way(still) is Way.FIRST
    assert way(still, in_order=False) is Way.SOURCE


def test_batches_in_an_order_are_declined_or_gone_along_with_by_halves_where_order_matters():
    g = torch.Generator().manual_seed(0)

    def alternating(offset):
        return after(*[look([8, 8, 8, 8], offset + classes(32, k % 2, g)) for k in range(8)])

    verdict = alternating(0).verdict(in_order=True)
    assert verdict.way is Way.SOURCE
    assert verdict.reason.startswith("ordered: batches differ")
    assert way(alternating(2)) is Way.FIRST
    assert way(alternating(0), in_order=False) is Way.WHOLE


def test_without_scores_the_layers_alone_decide():
    def seen(offset, batches):
        return after(*[
            Look(32, None, {("bn", 0): record(offset + torch.randn(32, 3))}) for _ in range(batches)
        ])  # fmt: skip

    assert way(seen(0, 4)) is Way.SOURCE
    assert way(seen(2, 4)) is Way.FIRST
    assert way(seen(2, PATIENCE // 32)) is Way.WHOLE


@pytest.mark.parametrize("batches", [2, 3, 8, 32])
def test_batches_that_differ_by_chance_are_in_no_order(batches):
    g = torch.Generator().manual_seed(batches)
    for _ in range(50):
        met = Record(Moments.empty(3), centre=torch.ones(3, dtype=torch.float64))
        for _ in range(batches):
            met.add(torch.randn(16, 3, generator=g), None)
        assert excess(met.settle()) == 1


def test_the_excess_is_the_ratio_of_mean_squares():
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(16, 3, generator=g) + 3 * (k % 2) for k in range(6)]
    met = Record(Moments.empty(3), centre=torch.ones(3, dtype=torch.float64))
    for part in parts:
        met.add(part, None)
    means = torch.stack([part.mean(0) for part in parts]).double()
    between = 16 * means.var(0)
    within = torch.stack([part.double().var(0) for part in parts]).mean(0)
    assert excess(met.settle()) == pytest.approx(float((between / within).mean()), rel=1e-5)


def test_predictions_that_collapse_are_told_and_those_that_were_collapsed_pass():
    alike = Votes(torch.tensor([64.0, 0, 0, 0]))
    seen = after(look([16, 16, 16, 16])).with_adapted(alike, Way.WHOLE, 64)
    assert seen.collapse().startswith("collapse: 100% of the predictions are class 0")
    assert after(look([64, 0, 0, 0])).with_adapted(alike, Way.WHOLE, 64).collapse() is None
    assert after(look([16, 16, 16, 16])).collapse() is None


def test_the_second_moment_is_about_the_mean_of_training():
    bn = nn.BatchNorm1d(3)
    bn.running_mean.fill_(2)
    bn.running_var.fill_(4)
    g = torch.Generator().manual_seed(0)
    x = 5 + torch.randn(400, 3, generator=g)
    seen = Watch.of({"bn": bn}).with_look(look([200, 200], x))
    logarithm, error = seen.second_moment()
    wanted = float(((x.double() - 2).square().mean(0) / 4).mean())
    assert logarithm == pytest.approx(math.log(wanted), rel=1e-4)
    halves = [float(((h.double() - 2).square().mean(0) / 4).mean()) for h in x.split(20)]
    spread = torch.tensor(halves).log().std() / len(halves) ** 0.5
    assert float(spread) / 3 < error < 6 * float(spread)


def test_where_a_correction_costs_certainty_it_stays_as_it_was():
    moved = after(*[look([30, 2, 0, 0], 2 + torch.randn(32, 3), seed=k) for k in range(4)])
    sure, unsure = (Votes(torch.tensor([120.0, 8, 0, 0]), entropy) for entropy in (0.0, 60.0))
    assert way(moved.with_adapted(sure, Way.FIRST, 32)) is Way.FIRST
    verdict = moved.with_adapted(unsure, Way.FIRST, 32).verdict(in_order=True)
    assert verdict.way is Way.SOURCE
    assert "surer as it was trained" in verdict.reason
    spread = Votes(torch.tensor([50.0, 50, 20, 8]), 60.0)  # they had fallen on few
    assert way(moved.with_adapted(spread, Way.FIRST, 32)) is Way.FIRST


def test_the_entropy_is_that_of_the_softmax():
    scores = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    wanted = torch.distributions.Categorical(logits=scores).entropy().sum()
    assert votes_of(scores).entropy == pytest.approx(float(wanted), rel=1e-5)
