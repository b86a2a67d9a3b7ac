"""Verdicts from plain numbers: the rule at its margins, and the interval behind it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livella.study.claims.learning_rate import highest
from livella.study.claims.speed import Race
from livella.study.results import Estimate, Verdict
from livella.study.verdict import (
    DRAWS,
    Bounded,
    estimate,
    estimate_bounded,
    judge,
    judge_ratio,
    paired,
    ratio,
)

CONFIRMED, NOT_SEEN = Verdict.CONFIRMED, Verdict.NOT_SEEN
CONTRADICTED, INCONCLUSIVE = Verdict.CONTRADICTED, Verdict.INCONCLUSIVE

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8)


def between(low, high, count=5):
    return Estimate((low + high) / 2, low, high, count)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.6, 3.0, CONFIRMED),
        (0.5, 3.0, INCONCLUSIVE),  # an interval that ends on the margin is not above it
        (-0.5, 0.5, NOT_SEEN),
        (0.1, 0.2, NOT_SEEN),
        (-0.4, 0.6, INCONCLUSIVE),
        (-0.6, 0.4, INCONCLUSIVE),
        (-0.6, 0.6, INCONCLUSIVE),
        (-3.0, -0.5, INCONCLUSIVE),
        (-3.0, -0.6, CONTRADICTED),
        (float("nan"), float("nan"), INCONCLUSIVE),
    ],
)
def test_the_verdict_is_where_the_interval_lies_against_the_margin(low, high, verdict):
    assert judge(between(low, high), margin=0.5) is verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (2.1, 9.0, CONFIRMED),
        (1.9, 9.0, INCONCLUSIVE),
        (0.6, 1.9, NOT_SEEN),
        (0.1, 0.6, INCONCLUSIVE),
        (0.1, 0.4, CONTRADICTED),
        (0.0, 0.4, CONTRADICTED),
        (3.0, float("inf"), CONFIRMED),
    ],
)
def test_a_ratio_is_judged_by_its_factor_from_one(low, high, verdict):
    assert judge_ratio(between(low, high), margin=2.0) is verdict


@given(st.integers(-8, 8), st.integers(0, 6))
def test_turning_a_ratio_round_turns_its_verdict_round(low, width):
    opposite = {CONFIRMED: CONTRADICTED, CONTRADICTED: CONFIRMED}
    low, high = 2 ** (low / 4), 2 ** ((low + width) / 4)
    verdict = judge_ratio(between(low, high), margin=1.3)
    assert judge_ratio(between(1 / high, 1 / low), margin=1.3) is opposite.get(verdict, verdict)


@pytest.mark.parametrize("rule", [judge, judge_ratio])
@pytest.mark.parametrize("effect", [None, between(8, 9, count=2), between(8, 9, count=1)])
def test_fewer_than_three_seeds_give_no_verdict(rule, effect):
    assert rule(effect, 2.0) is INCONCLUSIVE


def test_three_seeds_are_enough():
    assert judge(between(8, 9, count=3), 2.0) is CONFIRMED


@given(VALUES)
def test_the_interval_holds_the_median_and_stays_inside_the_seeds_range(values):
    found = estimate(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found.count == len(values)


@given(VALUES, st.randoms(use_true_random=False))
def test_an_estimate_does_not_depend_on_the_order_of_the_seeds(values, rng):
    shuffled = rng.sample(values, len(values))
    assert estimate(shuffled) == estimate(values)


@given(VALUES)
def test_an_estimate_is_repeatable(values):
    assert estimate(values) == estimate(values)


def test_the_interval_of_five_seeds_leaves_a_fortieth_on_either_side():
    # A resampled median is below the second smallest of five if three or more of five draws are
    # the smallest: with probability 0.058; all intervals at 95 % thus end on the smallest.
    assert estimate([1.0, 2.0, 3.0, 4.0, 5.0]) == Estimate(3.0, 1.0, 5.0, 5)


def test_the_interval_of_many_seeds_narrows():
    values = [float(v) for v in range(101)]
    found = estimate(values)
    # The normal approximation of the median's order statistics: 50 ± 1.96 · √101 / 2.
    assert found.low == pytest.approx(40, abs=2)
    assert found.high == pytest.approx(60, abs=2)
    assert DRAWS >= 1000


def test_no_values_give_no_estimate():
    assert estimate([]) is None


def test_a_lower_bound_is_marked_as_one():
    assert estimate([1.0], censored=True).censored


def test_pairs_are_taken_seed_by_seed_and_only_where_both_have_a_number():
    assert paired(lambda a, b: a - b, [1.0, None, 5.0, 7.0], [0.5, 1.0, None, 9.0]) == [0.5, -2.0]


def test_pairs_of_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="zip"):
        paired(lambda a, b: a - b, [1.0], [1.0, 2.0])


def race(none, batch):
    return Race(0.9, 1000, {"none": list(none), "batch": list(batch)}).ratio("none", "batch")


FAILED = math.nan
ARRIVED = [100, 120, 90, 100, 110]


@pytest.mark.parametrize(
    ("none", "batch", "verdict"),
    [
        ([1000] * 5, ARRIVED, CONFIRMED),
        ([None] * 5, ARRIVED, CONFIRMED),  # a lower bound, well above the margin
        ([None] * 5, [900] * 5, INCONCLUSIVE),  # a lower bound near 1 says nothing against
        (ARRIVED, [None] * 5, CONTRADICTED),  # an upper bound, well below
        ([950] * 5, [None] * 5, INCONCLUSIVE),
        ([None] * 5, [None] * 5, INCONCLUSIVE),  # nothing bounds their ratio
        ([800] * 5, [200, 200, None, None, None], INCONCLUSIVE),
        ([FAILED] * 5, ARRIVED, INCONCLUSIVE),  # what failed is no evidence
        ([FAILED, FAILED, FAILED, 1000, 1000], ARRIVED, INCONCLUSIVE),  # too few that did not
        (ARRIVED, ARRIVED, NOT_SEEN),
    ],
)
def test_what_a_race_shows_where_some_never_arrive(none, batch, verdict):
    assert judge_ratio(race(none, batch), 1.25) is verdict


def test_a_ratio_of_bounds_is_a_bound_or_nothing():
    six, two = Bounded(6.0), Bounded(2.0)
    over, under = Bounded(6.0, at_least=True), Bounded(2.0, at_most=True)
    assert ratio(six, two) == Bounded(3.0)
    assert ratio(over, two) == ratio(six, under) == Bounded(3.0, at_least=True)
    assert ratio(two, over) == ratio(under, six) == Bounded(1 / 3, at_most=True)
    assert ratio(over, over) is ratio(under, under) is ratio(None, two) is ratio(two, None) is None
    found = estimate_bounded([Bounded(1.0, at_least=True), None, two])
    assert found is not None
    assert (found.count, found.censored, found.capped) == (2, True, False)


def test_the_highest_usable_rate_is_a_bound_at_both_ends_of_the_grid():
    final = {
        0.1: [0.9, 0.9, 0.1, 0.9],
        1.0: [0.9, 0.9, 0.1, FAILED],
        10.0: [0.9, 0.1, 0.1, 0.9],
    }
    top, within, none, failed = highest(final, 0.8)
    assert top == Bounded(10.0, at_least=True)
    assert within == Bounded(1.0)
    assert none == Bounded(0.1, at_most=True)
    assert failed is None
