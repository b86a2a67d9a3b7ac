"""Ratios, percentiles and rounds from given numbers; what a call costs is never asserted."""

import gc

import pytest

from livella.bench import measure


def test_ratio_is_the_median_of_the_rounds_not_the_ratio_of_the_medians():
    # The middle round was slow for both: their ratio there is that of any other round.
    assert measure.ratio([2.0, 200.0, 6.0], [1.0, 100.0, 2.0]) == 2.0
    assert measure.ratio([1.0, 9.0, 9.0], [2.0, 3.0, 1.0]) == 3.0


def test_percentiles_lie_between_the_values():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert measure.percentile(values, 50) == 3.0
    assert measure.percentile(values, 20) == pytest.approx(1.8)
    assert measure.percentile(values, 80) == pytest.approx(4.2)
    assert measure.percentile([7.0], 80) == 7.0
    assert measure.percentile([1.0, 2.0], 50) == 1.5


def test_rounds_are_many_for_short_samples_and_never_too_few():
    assert measure.rounds_for(1.0) == 15
    assert measure.rounds_for(0.01) == 30
    assert measure.rounds_for(1e-6) == 301


def test_each_round_starts_with_another():
    assert list(measure.rotating("abc", 4)) == list("abcbcacababc")
    seen = list(measure.rotating(("a", "b"), 10))
    assert seen.count("a") == seen.count("b") == 10


def test_calls_are_interleaved_and_counted():
    called = []
    timings = measure.interleaved(
        {name: lambda name=name: called.append(name) for name in "ab"}, rounds=4, renew=lambda: None
    )
    assert called == list("abbaab") + list("abbaabba")  # to warm up, then measured
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 4, "b": 4}
    assert all(second > 0 for timing in timings.values() for second in timing.seconds)


def test_short_calls_are_timed_many_at_once_unless_memory_is_renewed():
    def calls_in(renew):
        count = 0

        def call():
            nonlocal count
            count += 1

        measure.interleaved({"a": call}, rounds=2, renew=renew)
        return count - measure.WARM_UPS

    assert calls_in(None) > 100
    assert calls_in(lambda: None) == 2


def test_memory_is_renewed_before_every_sample():
    events = []
    calls = {"a": lambda: events.append("call")}
    measure.interleaved(calls, rounds=3, renew=lambda: events.append("renew"))
    assert events[measure.WARM_UPS :] == ["renew", "call"] * 3


def test_the_collector_rests_meanwhile_and_goes_on_after_a_failure():
    def fails():
        assert not gc.isenabled()
        raise RuntimeError("no")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="no"):
        measure.interleaved({"a": fails})
    assert gc.isenabled()
