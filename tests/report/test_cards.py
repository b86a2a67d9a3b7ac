"""Findings as cards: nothing is dropped, nothing is told twice, causes hold what comes of them."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livella.diagnosis.records import Advice, Finding, Level
from livella.report import cards
from tests.report.inspections import CAUSED, COMMAND, DEEP, GAP, IGNORING, SICK, dead, layer, record
from tests.report.inspections import stale as stale_of

LEVELS = st.sampled_from(Level)
KEYS = [f"{check}@{name}" for check in ("a", "b", "c") for name in ("1", "2", "3")]


def told(many):
    return [f for card in many for one in (card, *card.comes) for f in one.findings]


@st.composite
def findings(draw):
    made = []
    for key in draw(st.lists(st.sampled_from(KEYS), unique=True)):
        check, name = key.split("@")
        because = draw(st.sampled_from(["", "gone@9", *KEYS]))
        made.append(Finding(check, draw(LEVELS), name, f"It is {key}.", because=because))
    return made


@given(findings())
def test_each_finding_is_told_once_whatever_comes_of_what(found):
    many = cards.of(record([layer("1"), layer("2"), layer("3")], found, GAP))
    assert Counter(f.key for f in told(many)) == Counter(f.key for f in found)
    ranks = [card.worst.rank for card in many]
    assert ranks == sorted(ranks, reverse=True)
    for card in many:
        assert len({f.check for f in card.findings}) == 1


def test_a_cause_holds_what_comes_of_it():
    (card,) = cards.of(CAUSED)
    assert [f.key for f in card.findings] == ["momentum@0.bn", "momentum@1.bn"]
    assert [one.first.check for one in card.comes] == ["stale_statistics", "statistics_gap"]


def test_what_comes_of_something_ignored_stands_by_itself():
    kept = tuple(f for f in CAUSED.findings if f.check != "momentum")
    ignored = tuple(f for f in CAUSED.findings if f.check == "momentum")
    many = cards.of(dataclasses.replace(CAUSED, findings=kept, ignored=ignored))
    assert {card.first.check for card in many} == {"stale_statistics", "statistics_gap"}
    said = {card.first.check: card.accepted for card in many}
    assert said["stale_statistics"] == (
        "It comes of what is ignored: momentum@0.bn, momentum@1.bn."
    )
    assert {card.accepted for card in cards.of(CAUSED)} == {""}
    gone = dataclasses.replace(CAUSED, findings=kept)
    assert {card.accepted for card in cards.of(gone)} == {""}, "a cause that is not there at all"


def test_many_layers_are_one_card_with_the_total_of_the_network():
    first, second = cards.of(DEEP)
    assert first.title == "31 of 52 layers: stale_statistics"
    assert first.total == "Together they answer for 93 % of the gap."
    assert first.likewise.endswith("(3 %) and 26 more.")
    dead_channels = sum(f.numbers["channels"] for f in DEEP.findings if f.remedy == "prune")
    assert second.total.startswith(
        f"{dead_channels:.0f} of {52 * 328:,} channels in 40 of 52 layers are dead"
    )
    assert second.line == second.total


def test_of_layers_that_matter_alike_the_one_with_most_channels_is_told():
    made = [dead("0", 1, 8), dead("1", 7, 8), dead("2", 3, 8)]
    (card,) = cards.of(record([layer(f"{k}", features=8) for k in range(3)], made))
    assert card.message.startswith("1: 7 of 8 channels")
    assert card.likewise == "Likewise 2 (3 of 8), 0 (1 of 8)."
    assert card.total.startswith("11 of 24 channels in 3 of 3 layers")


def test_of_cards_that_matter_alike_the_one_with_most_of_the_gap_comes_first():
    ordered = Finding("ordered_data", Level.WARNING, "1", "So.", "shuffle", 0.2)
    made = [ordered, *(stale_of(f"{k}", 0.4, level=Level.WARNING) for k in range(2))]
    found = record([layer("0"), layer("1")], [*made, dead("0", 1, 2)], GAP)
    assert [card.first.check for card in cards.of(found)] == [
        "stale_statistics", "ordered_data", "constant_channels",
    ]  # fmt: skip


def test_silent_channels_count_both_kinds():
    made = [Finding("silent_channels", Level.NOTE, name, "", "", None, {"off": 2.0, "low": 3.0})
            for name in ("0", "1")]  # fmt: skip
    (card,) = cards.of(record([layer("0", features=8), layer("1", features=8), layer("2")], made))
    assert card.total.startswith("10 of 18 channels in 2 of 3 layers are silent")


def test_layers_where_it_matters_less_do_not_count_as_much():
    made = [stale_of("0", 0.9), *(stale_of(f"{k}", 0.02, level=Level.NOTE) for k in range(1, 7))]
    (card,) = cards.of(record([layer(f"{k}") for k in range(7)], made, GAP))
    assert card.level is Level.ERROR
    assert card.title == "0: stale_statistics"
    assert (card.total, card.likewise) == ("", "")
    said = "As a note also in 6 layers: 1 (2 %), 2 (2 %), 3 (2 %), 4 (2 %) and 2 more."
    assert card.lesser == said


def test_layers_are_named_with_their_shares_and_intervals():
    (card, *_) = cards.of(SICK)
    assert card.likewise == "Likewise 1.bn (41 ± 4 %)."
    assert card.total == "Together they answer for 96 % of the gap."


def test_other_figures_are_another_card():
    made = [dataclasses.replace(dead("0", 1, 2), numbers={}), dead("1", 1, 2)]
    assert len(cards.of(record([layer("0"), layer("1")], made))) == 2


def test_what_is_ignored_is_shown_apart():
    assert [c.first.check for c in cards.accepted(IGNORING)] == ["small_batch", "redundant_bias"]
    assert "small_batch" not in {f.check for f in told(cards.of(IGNORING))}


SAFETIES = {"statistics": True, "exact": False, "changing": False, "advice": False}


@pytest.mark.parametrize(("safety", "does"), SAFETIES.items())
def test_the_command_is_told_only_where_it_does_it(safety, does):
    found = dataclasses.replace(SICK, remedies={"measure_statistics": Advice(safety, "In words.")})
    (way, *_) = cards.ways(cards.of(found), found, COMMAND)
    assert way.command == (COMMAND if does else "")
    assert way.text == ("" if does else "In words.")
    (way, *_) = cards.ways(cards.of(found), found, "")
    assert way == cards.Way("In words.")


def test_the_command_is_not_told_of_what_it_leaves_as_it_is():
    made = [stale_of("0", 0.0, level=Level.NOTE)]
    found = record([layer("0")], made)
    (way,) = cards.ways(cards.of(found), found, COMMAND)
    assert way == cards.Way(found.remedies["measure_statistics"].text)


def test_a_command_is_told_once():
    remedies = {name: Advice("statistics", "In words.") for name in ("x", "measure_statistics")}
    made = [Finding(c, Level.ERROR, "0", "", r) for c, r in zip("ab", remedies, strict=True)]
    found = dataclasses.replace(record([layer("0")], made), remedies=remedies)
    first, second = cards.ways(cards.of(found), found, COMMAND)
    assert first == cards.Way("In words.", COMMAND)
    assert second == cards.Way(cards.SAME)
