"""Every check finds its fault in plain numbers, where it is, and none in a healthy network."""

import dataclasses
import inspect
import math

import pytest

from livella.diagnosis.checks import CHECKS, findings_of
from livella.diagnosis.records import Distance, Level
from livella.diagnosis.remedies import REMEDIES
from tests.diagnosis.seen import BROKEN, FAR, gap, layer, measured, seen

NAN = float("nan")
NOTE, WARNING, ERROR = Level
HEALTHY = layer("first")


def bad(**changed):
    return seen(HEALTHY, layer("bad", **changed))


def met(**changed):
    return bad(met=measured(**changed))


POSITIVE = {
    "not_finite": (bad(running_mean=(NAN, 0.0)), ERROR),
    "negative_variance": (bad(running_var=(-1.0, 1.0)), ERROR),
    "instance_of_one": (bad(family="instance", positions=1), ERROR),
    "one_value": (met(values=1.0), WARNING),
    "deployment_shift": (bad(shifted=FAR), WARNING),
    "never_updated": (
        dataclasses.replace(
            bad(running_mean=(0.0, 0.0), running_var=(1.0, 1.0), measured=None, off=None), gap=None
        ), WARNING,
    ),
    "momentum": (bad(momentum=0.99), WARNING),
    "low_precision": (bad(statistics_dtype="bfloat16"), WARNING),
    "shared_layer": (met(calls=2, apart=1.0), WARNING),
    "dropout_before": (dataclasses.replace(met(dropout=1.8), dropout=("drop",)), WARNING),
    "ordered_data": (met(excess=20.0), WARNING),
    "small_batch": (met(noise=0.6, effective=2.8), WARNING),
    "unequal_processes": (dataclasses.replace(bad(), unequal=("bad",), processes=2), WARNING),
    "stale_statistics": (dataclasses.replace(bad(off=FAR, share=0.9), gap=BROKEN), ERROR),
    "frozen_in_name_only": (
        seen(layer("first", mode="train"), layer("bad", mode="train", trains=False),
             training=True), WARNING,
    ),
    "unsynchronized": (
        dataclasses.replace(
            seen(layer("first", frozen=True), layer("bad")), processes=4, batch=6
        ), WARNING,
    ),
    "batch_statistics_in_evaluation": (
        bad(running_mean=None, running_var=None, tracks=False, off=None), WARNING,
    ),
    "counters": (seen(HEALTHY, layer("second"), layer("bad", counter=7)), NOTE),
    "weight_decay": (bad(decay=1e-4), NOTE),
    "reused_layer": (met(calls=2, apart=0.1), NOTE),
    "unreached": (dataclasses.replace(bad(), unreached=("bad",)), NOTE),
    "redundant_bias": (bad(source="conv", source_kind="Conv2d", source_bias=True), NOTE),
    "gradient_flow": (
        seen(HEALTHY, layer("second"), layer("bad", met=measured(gradient=100.0))), NOTE,
    ),
    "large_eps": (bad(eps=10.0), NOTE),
    "constant_channels": (bad(running_var=(0.0, 1.0)), NOTE),
    "silent_channels": (bad(weight=(0.0, 1.0)), NOTE),
}  # fmt: skip
OF_THE_MODEL = {
    "not_of_the_statistics": (
        seen(gap=gap(0.6, 0.6, 0.9)), WARNING,
    ),
    "statistics_gap": (seen(gap=BROKEN), ERROR),
}  # fmt: skip
BY_NAME = {check.__name__: check for check in CHECKS}


def test_every_check_is_tried():
    assert set(BY_NAME) == set(POSITIVE) | set(OF_THE_MODEL)
    assert len(BY_NAME) == len(CHECKS) >= 25


@pytest.mark.parametrize("name", POSITIVE)
def test_a_fault_is_found_at_its_layer(name):
    record, level = POSITIVE[name]
    (finding,) = BY_NAME[name](record)
    assert (finding.layer, finding.level) == ("bad", level)
    assert finding.message.endswith((".", "%"))
    assert all(math.isfinite(value) for value in finding.numbers.values())


@pytest.mark.parametrize("name", OF_THE_MODEL)
def test_a_fault_of_the_model_is_found(name):
    record, level = OF_THE_MODEL[name]
    (finding,) = BY_NAME[name](record)
    assert (finding.layer, finding.level) == ("", level)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_nothing_is_found_in_a_healthy_network(check):
    assert list(check(seen(HEALTHY, layer("second"), layer("third")))) == []


@pytest.mark.parametrize("name", {**POSITIVE, **OF_THE_MODEL})
def test_a_fault_is_told_by_its_check_alone_or_with_what_comes_of_it(name):
    record, level = {**POSITIVE, **OF_THE_MODEL}[name]
    found = findings_of(record)
    assert name in {f.check for f in found}
    assert all(f.level.rank <= level.rank for f in found)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_documents_itself(check):
    text = inspect.getdoc(check)
    assert "Remedy" in text
    assert len(text.split("\n\n")) >= 2


def test_every_remedy_that_is_named_is_in_the_table():
    for record, _ in (*POSITIVE.values(), *OF_THE_MODEL.values()):
        for finding in findings_of(record):
            assert not finding.remedy or finding.remedy in REMEDIES


@pytest.mark.parametrize(
    "cause",
    [
        {"momentum": 0.99},
        {"statistics_dtype": "float16"},
        {"running_mean": (0.0, 0.0), "running_var": (1.0, 1.0)},
        {"met": measured(calls=2, apart=1.0)},
    ],
)
def test_a_cause_comes_first_with_the_level_of_what_comes_of_it_which_is_told_too(cause):
    record = dataclasses.replace(bad(off=FAR, share=0.9, **cause), gap=BROKEN)
    first, *rest = findings_of(record)
    assert (first.layer, first.level, first.share) == ("bad", ERROR, 0.9)
    because = {f.key: f.because for f in rest}
    assert because["stale_statistics@bad"] == first.key
    assert because["statistics_gap"] == first.key
    assert first.because == ""


def test_dropout_answers_for_its_layer_and_those_behind_it():
    layers = [
        layer("before", off=FAR, share=0.3),
        layer("at", met=measured(dropout=2.0), off=FAR, share=0.5),
        layer("behind", off=FAR, share=0.2),
    ]
    found = findings_of(seen(*layers, dropout=("drop",), gap=BROKEN))
    told = {(f.check, f.layer): f.share for f in found}
    assert told["dropout_before", "at"] == pytest.approx(0.7)
    because = {f.key: f.because for f in found}
    assert because["stale_statistics@before"] == ""
    assert because["stale_statistics@at"] == "dropout_before@at"
    assert because["stale_statistics@behind"] == "dropout_before@at"


def test_the_worst_comes_first_and_larger_shares_before_smaller():
    layers = [
        layer("small", off=FAR, share=0.2),
        layer("large", off=FAR, share=0.7),
        layer("noted", running_var=(0.0, 1.0)),
    ]
    found = findings_of(seen(*layers, gap=BROKEN))
    assert [f.layer for f in found] == ["large", "small", "", "noted"]


@pytest.mark.parametrize(
    ("running", "error", "level"),
    [(0.895, 0.004, NOTE), (0.875, 0.004, WARNING), (0.4, 0.004, ERROR), (0.4, 0.6, NOTE)],
)
def test_the_level_is_that_of_the_damage(running, error, level):
    record = dataclasses.replace(bad(off=FAR, share=0.9), gap=gap(running, 0.9, 0.9, error=error))
    stale, *rest = findings_of(record)
    assert (stale.check, stale.level) == ("stale_statistics", level)
    assert [f.level for f in rest] == ([] if level is NOTE else [level])


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.9, 0.1), (None, None)])
def test_the_verdict_rests_on_what_was_measured_however_it_is_shared_out(shares):
    layers = [layer(name, off=FAR, share=share) for name, share in zip("ab", shares, strict=True)]
    found = findings_of(seen(*layers, gap=BROKEN))
    assert [f.level for f in found if f.check == "statistics_gap"] == [ERROR]


@pytest.mark.parametrize(
    ("off", "levels"),
    [
        (Distance(0.2, 1.0, 0.02), [WARNING, WARNING]),
        (FAR, [WARNING, WARNING]),
        (Distance(1.5, 1.0, 1.1), [ERROR, ERROR]),
    ],
)
def test_without_labels_nothing_is_wrong_but_what_is_far(off, levels):
    unlabelled = gap(0.3, 1.0, 1.0, counted="", labels="")
    layers = [HEALTHY, layer("second"), layer("bad", off=off, share=0.9)]
    assert [finding.level for finding in findings_of(seen(*layers, gap=unlabelled))] == levels


def test_without_labels_a_layer_that_is_near_is_not_named_beside_one_that_is_far():
    unlabelled = gap(0.3, 1.0, 1.0, counted="", labels="")
    near = layer("near", off=Distance(0.2, 1.0, 0.02), share=0.6)
    found = findings_of(seen(HEALTHY, near, layer("far", off=FAR, share=0.4), gap=unlabelled))
    assert [f.key for f in found] == ["stale_statistics@far", "statistics_gap"]


@pytest.mark.parametrize("cause", [{"noise": 0.6, "effective": 2.8}, {"excess": 20.0}])
def test_small_or_ordered_batches_explain_what_their_averages_are_off_by_and_no_more(cause):
    """In an order averages are off by all that batches are, at random by √(m/(2 − m)) of it."""
    explained = {}
    for offset in (0.1, 5.0):
        far = Distance(offset, 2.0, 0.1)
        record = dataclasses.replace(bad(met=measured(**cause), off=far, share=1.0), gap=BROKEN)
        found = {f.check: f for f in findings_of(record)}
        explained[offset] = found["stale_statistics"].because
        batches = found.get("small_batch") or found["ordered_data"]
        assert batches.level is (ERROR if offset == 0.1 else WARNING)
    assert explained[0.1] in ("small_batch@bad", "ordered_data@bad")
    assert explained[5.0] == ""


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0, "costs nothing that shows on these data"), (0.03, "answers for 3 % of the gap")],
)
def test_a_layer_that_is_off_and_costs_little_is_a_note_that_says_how_much(share, said):
    (finding,) = findings_of(bad(off=FAR, share=share))
    assert finding.level is NOTE
    assert said in finding.message


def test_a_layer_that_is_hardly_off_is_not_blamed():
    slight = dataclasses.replace(FAR, offset=0.02, ratio=1.02)
    found = findings_of(dataclasses.replace(bad(off=slight, share=0.5), gap=BROKEN))
    assert [f.check for f in found] == ["statistics_gap"]


# What a finding says: its remedy and its numbers


def found_by(check, record):
    return list(BY_NAME[check](record))


@pytest.mark.parametrize(
    ("changed", "remedy", "numbers"),
    [
        ({"running_var": (NAN, math.inf)}, "measure_statistics", {"running_var": 2}),
        ({"bias": (NAN, 0.0)}, "train_again", {"bias": 1}),
        (
            {"weight": (1.0, NAN), "running_mean": (NAN, NAN)},
            "train_again", {"weight": 1, "running_mean": 2},
        ),
    ],
)  # fmt: skip
def test_what_is_lost_can_be_measured_again_unless_it_was_learnt(changed, remedy, numbers):
    (finding,) = found_by("not_finite", bad(**changed))
    assert (finding.remedy, finding.numbers) == (remedy, numbers)


@pytest.mark.parametrize("counter", [None, 0, 7])
def test_statistics_never_updated_tell_what_was_counted(counter):
    made = {"running_mean": (0.0, 0.0), "running_var": (1.0, 1.0), "share": 0.25}
    (finding,) = found_by("never_updated", bad(**made, counter=counter))
    assert finding.numbers == {"counter": counter or 0}
    assert finding.share == 0.25
    assert ("counted batches" in finding.message) == (counter is not None)
    assert found_by("never_updated", bad(**made, frozen=True)) == []


def test_channels_that_never_vary_are_counted_and_negative_variances_are_not():
    record = bad(features=5, running_var=(0.0, 1e-13, -1.0, 1e-12, 1.0))
    (finding,) = found_by("constant_channels", record)
    assert finding.numbers == {"channels": 2, "share": 0.4}
    assert finding.remedy == "prune"


@pytest.mark.parametrize("family", ["group", "instance"])
def test_a_bias_is_taken_away_again_by_batch_norms_alone(family):
    given = {"source": "conv", "source_kind": "Conv2d", "source_bias": True}
    assert len(found_by("redundant_bias", bad(**given))) == 1
    assert found_by("redundant_bias", bad(**given, family=family)) == []


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("changed", [{"family": "instance"}, {"frozen": True}, {"tracks": False}])
def test_what_is_frozen_or_has_nothing_to_freeze_is_not_frozen_in_name_only(changed, mode):
    held = {"mode": mode, "trains": False}
    assert len(found_by("frozen_in_name_only", seen(layer(**held), training=True))) == 1
    assert found_by("frozen_in_name_only", seen(layer(**held, **changed), training=True)) == []
