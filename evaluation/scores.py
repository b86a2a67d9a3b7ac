"""What an answer is worth by the truth: true, false, or none where it does not apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.faults import FAULTS

LOST, NOTHING = 0.05, 0.01
"""Accuracy that statistics bring back, to be an error; and under which there is nothing to tell."""
NEAR, FAR = 0.2, 0.45
"""Up to here a layer's statistics are right, from here on they are damaged, in σ."""
PART = 0.05
"""A layer with less than this share of the loss is not to blame."""
ALIKE = 0.8
"""The Jaccard index of the layers named and those damaged, to have named them."""
APART = 0.15
"""How much of the shares may be given to other layers, beyond what two halves of the data differ
by; where they differ by more than this, nobody knows the shares."""
BACK = 0.95
"""How much of what was lost a repair is to bring back."""

BLAMES = frozenset({
    "stale_statistics", "never_updated", "not_finite", "negative_variance", "momentum",
    "low_precision", "shared_layer", "dropout_before", "statistics_gap",
})  # fmt: skip
"""Checks that blame running statistics for what a network does."""
VALUES = frozenset({"not_finite", "negative_variance", "one_value", "instance_of_one"})
"""Checks of what is wrong by itself, whatever it costs."""
HEADLINES = frozenset({"statistics_gap"})
"""Checks that say that there is a loss, and not why."""
RANK = {None: -1, "note": 0, "warning": 1, "error": 2}

Row = Mapping[str, Any]


def alarm(row: Row) -> bool | None:
    """A loss that statistics recover is an error; without labels at least a warning."""
    if _least(row) <= LOST:
        return None
    return RANK[row["said"]["worst"]] >= (2 if row["labels"] else 1)


def quiet(row: Row) -> bool | None:
    """Where nothing is lost there is no error, and no warning that blames statistics.

    What is the case all the same may be told: a momentum of 0.99, statistics in bfloat16. Without
    labels nothing is lost where no more than one example in a hundred changes its class.
    """
    if _most(row) >= NOTHING or (not row["labels"] and row["truth"]["differ"] > NOTHING):
        return None
    told = FAULTS[row["fault"]].told
    return not any(
        (finding["level"] == "error" and finding["check"] not in VALUES | told)
        or (finding["level"] == "warning" and finding["check"] in BLAMES - VALUES - told)
        for finding in row["said"]["findings"]
    )


def cause(row: Row) -> bool | None:
    """What is said first, or at the highest level, is why it is so."""
    deployed = row["truth"]["deployed"]
    on_others = deployed is not None and row["truth"]["running"][1] - deployed > LOST
    if _least(row) <= LOST and not on_others:
        return None
    said = [f for f in row["said"]["findings"] if f["check"] not in HEADLINES]
    told = [f for f in said if RANK[f["level"]] >= 1]
    top = max((RANK[f["level"]] for f in told), default=None)
    first = {f["check"] for f in told if RANK[f["level"]] == top} | {f["check"] for f in told[:1]}
    # A network that was never quite well is told of as such, whatever was planted besides.
    return bool(first & (FAULTS[row["fault"]].causes or {"stale_statistics"}))


def named(row: Row) -> bool | None:
    """The layers whose statistics are blamed, at any level, are those that are damaged."""
    distances = row["truth"]["distances"]
    damaged = {name for name, far in distances.items() if far >= FAR}
    # A layer that is near the data and answers for a part of the loss all the same is neither.
    right = row["truth"]["shares"]
    near = {name for name, far in distances.items() if far <= NEAR}
    clear = damaged | {name for name in near if right.get(name, 0.0) < PART}
    if not damaged:
        return None
    told = FAULTS[row["fault"]].told
    found = [f for f in row["said"]["findings"] if f["check"] in BLAMES and f["layer"] in clear]
    blamed = {f["layer"] for f in found}
    # Of a layer that was never updated this may be said, however near the data it lies by chance.
    wrong = {f["layer"] for f in found if f["check"] not in told} - damaged
    return len(damaged & blamed) >= ALIKE * len(damaged | wrong)


def shares(row: Row) -> bool | None:
    """The loss is shared out among layers as it should be."""
    right = row["truth"]["shares"]
    unsure = row["truth"]["unsure"]
    if not row["labels"] or _least(row) <= LOST or not right or unsure > APART:
        return None
    said = row["said"]["shares"]
    if min(said.values()) < 0 or abs(sum(said.values()) - 1) > 0.01:
        return False
    return apart(row) <= APART + unsure


def apart(row: Row) -> float:
    """How much of the shares is given to other layers."""
    right, said = row["truth"]["shares"], row["said"]["shares"]
    names = set(right) | set(said)
    return 0.5 * sum(abs(right.get(name, 0.0) - said.get(name, 0.0)) for name in names)


def repaired(row: Row) -> bool | None:
    """A repair brings back what was lost, on examples it has not seen, but for a point."""
    running, population = row["truth"]["running"][1], row["truth"]["population"][1]
    lost = population - running
    if _least(row) <= LOST:
        return None
    return row["repaired"] >= population - max((1 - BACK) * lost, NOTHING)


def harmless(row: Row) -> bool | None:
    """A repair costs no more than a point, and the model given is bit for bit as it was."""
    return row["untouched"] and row["repaired"] >= row["truth"]["running"][1] - NOTHING


SCORES = {each.__name__: each for each in (alarm, quiet, cause, named, shares, repaired, harmless)}


def judge(row: Row) -> dict[str, bool | None]:
    """Give every score of a case; one that could not be asked fails in all that apply."""
    if "error" not in row:
        return {name: score(row) for name, score in SCORES.items()}
    said = {"worst": None, "findings": (), "shares": {"": 0.0}}
    silent = {**row, "said": said, "repaired": 0.0, "untouched": False}
    found = {name: score(silent) for name, score in SCORES.items()}
    return {name: None if each is None else False for name, each in found.items()}


def _least(row: Row) -> float:
    """What statistics bring back, on the part of the data where it is less."""
    return min(_back(row))


def _most(row: Row) -> float:
    return max(_back(row))


def _back(row: Row) -> list[float]:
    pairs = zip(row["truth"]["running"], row["truth"]["population"], strict=True)
    return [population - running for running, population in pairs]
