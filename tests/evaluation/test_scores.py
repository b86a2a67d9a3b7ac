"""The scores on answers whose worth is plain."""

import pytest

from evaluation import scores


def row(said: dict, fault: str = "polluted", labels: bool = True, **changed) -> dict:
    """A network of which b, 1 σ off, costs 40 points, and what was said of it."""
    truth = {
        "running": (0.5, 0.5),
        "population": (0.9, 0.9),
        "differ": 0.5,
        "deployed": None,
        "distances": {"a": 0.01, "b": 1.0, "c": 0.3},
        "shares": {"b": 1.0},
        "unsure": 0.0,
    }
    truth |= changed.pop("truth", {})
    given = {"fault": fault, "labels": labels, "truth": truth, "said": said}
    return {**given, "repaired": 0.9, "untouched": True, **changed}


def stale(layer: str, level: str = "error") -> dict:
    return {"check": "stale_statistics", "level": level, "layer": layer, "share": 1.0}


SMALL = {"check": "small_batch", "level": "warning", "layer": "a", "share": None}
RIGHT = {"worst": "error", "findings": [stale("b")], "shares": {"a": 0.0, "b": 1.0, "c": 0.0}}
SILENT = {"worst": None, "findings": [], "shares": {"a": 0.0, "b": 0.0, "c": 0.0}}
WELL = {"running": (0.9, 0.9), "differ": 0.0, "distances": {"a": 0.01}, "shares": {}}


def test_a_right_answer_is_right_in_all_that_applies():
    expected = dict.fromkeys(scores.SCORES, True) | {"quiet": None}
    assert scores.judge(row(RIGHT)) == expected


def test_silence_is_wrong_where_something_is_lost():
    judged = scores.judge(row(SILENT, repaired=0.5))
    wrong = dict.fromkeys(("alarm", "cause", "named", "shares", "repaired"), False)
    assert judged == wrong | {"quiet": None, "harmless": True}


@pytest.mark.parametrize(
    ("said", "labels", "right"),
    [
        ({**RIGHT, "worst": "warning"}, True, False),
        ({**RIGHT, "worst": "warning"}, False, True),
        ({**RIGHT, "worst": "note"}, False, False),
    ],
)
def test_an_alarm_is_an_error_with_labels_and_a_warning_without(said, labels, right):
    assert scores.alarm(row(said, labels=labels)) is right


def test_a_cause_is_first_or_at_the_top():
    note, warned = stale("b", "note"), stale("b", "warning")
    for findings, right in ([[SMALL, note], False], [[SMALL, warned], True], [[note], False]):
        said = {**RIGHT, "worst": "warning", "findings": findings}
        assert scores.cause(row(said)) is right


def test_layers_between_right_and_damaged_count_for_nothing():
    assert scores.named(row({**RIGHT, "findings": [stale("b"), stale("c", "note")]}))
    assert not scores.named(row({**RIGHT, "findings": [stale("b"), stale("a", "note")]}))


@pytest.mark.parametrize(
    ("shares", "right"),
    [
        ({"a": 0.1, "b": 0.9, "c": 0.0}, True),
        ({"a": 0.2, "b": 0.8, "c": 0.0}, False),
        ({"a": 0.0, "b": 0.9, "c": 0.0}, False),
        ({"a": -0.1, "b": 1.1, "c": 0.0}, False),
    ],
)
def test_shares_add_up_and_go_where_they_belong(shares, right):
    assert scores.shares(row({**RIGHT, "shares": shares})) is right


def test_shares_are_judged_as_far_as_they_can_be_known():
    said = {**RIGHT, "shares": {"a": 0.2, "b": 0.8, "c": 0.0}}
    assert scores.shares(row(said, truth={"unsure": 0.1}))
    assert scores.shares(row(said, truth={"unsure": 0.2})) is None


def test_quiet_where_nothing_is_lost():
    assert scores.quiet(row(SILENT, truth=WELL))
    assert scores.quiet(row({**SILENT, "findings": [SMALL, stale("a", "note")]}, truth=WELL))
    for level in ("warning", "error"):
        assert not scores.quiet(row({**SILENT, "findings": [stale("a", level)]}, truth=WELL))
    moved = {**WELL, "differ": 0.1}
    assert scores.quiet(row(SILENT, labels=False, truth=moved)) is None


def test_repairs_are_measured_on_what_is_held_out():
    assert not scores.repaired(row(RIGHT, repaired=0.87))
    assert not scores.harmless(row(RIGHT, repaired=0.48))
    assert not scores.harmless(row(RIGHT, untouched=False))


def test_no_answer_is_a_miss_of_all_that_applies():
    failed = {k: v for k, v in row(RIGHT).items() if k not in ("said", "repaired", "untouched")}
    judged = scores.judge({**failed, "error": "ValueError: no"})
    assert judged == dict.fromkeys(scores.SCORES, False) | {"quiet": None}
