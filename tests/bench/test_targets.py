"""The rule from ratios to verdicts, target by target."""

import dataclasses

import pytest

from livella.bench import cases, memory
from livella.bench.cases import ADD_RELU, PLAIN, RELU, Case, Setting
from livella.bench.rows import Record, Step
from livella.bench.targets import TARGETS, Verdict, assess, best_layout
from tests.bench.records import PROVENANCE, record, rows_of, step_rows

MAP, SEVEN, FLAT, TINY = (32, 64, 56, 56), (32, 2048, 7, 7), (8192, 128), (4, 4, 2, 2)


def case(operation, fusion=PLAIN, shape=MAP, layout="contiguous", dtype="float32"):
    return Case(operation, Setting(shape, layout, dtype, fusion))


def found(rows, what, rival="eager"):
    """The assessment of one target by rows alone."""
    (one,) = [
        each
        for each in assess(Record(PROVENANCE, list(rows)))
        if (each.target.what, each.target.rival) == (what, rival)
    ]
    return one


FORWARD = "forward, NCHW, maps ≥ 14×14"


@pytest.mark.parametrize(
    ("eager", "verdict"),
    [
        ([4.0, 5.0, 6.0], Verdict.MET),
        ([3.996, 5.0, 6.0], Verdict.MET),  # 4.00 as printed
        ([3.994, 5.0, 6.0], Verdict.MEDIAN),
        ([3.0, 3.9, 9.0], Verdict.MISSED),
    ],
)
def test_a_speed_is_met_where_the_slowest_case_meets_it(eager, verdict):
    shapes = [MAP, (32, 256, 56, 56), (32, 512, 28, 28)]
    rows = [
        row
        for shape, multiple in zip(shapes, eager, strict=True)
        for row in rows_of(case("forward", shape=shape), ours=1.0, eager=multiple)
    ]
    one = found(rows, FORWARD)
    assert one.verdict is verdict
    assert (one.count, one.worst, one.median) == (3, eager[0], eager[1])
    assert one.worst_case == "32x64x56x56"


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([1.2, 1.4, 1.5], Verdict.MET),
        ([1.2, 1.4, 1.51], Verdict.MEDIAN),
        ([1.2, 1.6, 1.7], Verdict.MISSED),
    ],
)
def test_a_distance_is_met_where_the_farthest_case_meets_it(ours, verdict):
    shapes = [MAP, (32, 256, 56, 56), (32, 512, 28, 28)]
    rows = [
        row
        for shape, multiple in zip(shapes, ours, strict=True)
        for row in rows_of(case("forward", shape=shape), ours=multiple)
    ]
    one = found(rows, FORWARD, "copy")
    assert (one.verdict, one.worst, one.worst_case) == (verdict, ours[2], "32x512x28x28")


def test_what_was_not_measured_is_said_so():
    everything = assess(Record(PROVENANCE))
    assert {each.verdict for each in everything} == {Verdict.UNKNOWN}
    assert len(everything) == len(TARGETS)


def test_the_verdict_is_of_used_memory_and_fresh_stands_beside_it():
    one_case = case("forward")
    rows = [*rows_of(one_case, eager=6.25), *rows_of(one_case, memory.FRESH, eager=2.5)]
    one = found(rows, FORWARD)
    assert (one.median, one.fresh, one.verdict) == (5.0, 2.0, Verdict.MET)
    assert found(rows[:3], FORWARD).fresh is None


def test_memory_as_it_comes_counts_as_used():
    assert found(rows_of(case("forward"), memory.UNTOLD, eager=6.25), FORWARD).median == 5.0


COVERED = {
    FORWARD: case("forward"),
    "forward, NCHW, 7×7": case("forward", shape=SEVEN),
    "forward, (N, C)": case("forward", shape=FLAT),
    "forward, channels_last": case("forward", layout="channels_last"),
    "backward, NCHW": case("backward", shape=SEVEN),
    "backward, channels_last": case("backward", layout="channels_last"),
    "bn+relu forward, NCHW": case("forward", RELU),
    "bn+relu backward, channels_last": case("backward", RELU, layout="channels_last"),
    "bn+add+relu forward, channels_last": case("forward", ADD_RELU, layout="channels_last"),
    "bn+add+relu backward, NCHW": case("backward", ADD_RELU),
    "evaluation with relu": case("evaluation", RELU),
    "bfloat16, bn forward": case("forward", dtype="bfloat16"),
    "bfloat16, bn+add+relu backward": case("backward", ADD_RELU, dtype="bfloat16"),
    "bfloat16, evaluation with relu": case("evaluation", RELU, dtype="bfloat16"),
    "any case of the grid": case("forward", shape=TINY, dtype="float16"),
}


@pytest.mark.parametrize("what", COVERED)
def test_a_target_covers_its_cases_and_no_others(what):
    rows = list(rows_of(COVERED[what]))
    measured = {
        each.target.what
        for each in assess(Record(PROVENANCE, rows))
        if each.verdict is not Verdict.UNKNOWN
    }
    assert measured == {what, "any case of the grid"}


def test_small_tensors_count_for_one_target_only():
    rows = [
        row for each in cases.grid() if not each.setting.bound_by_memory for row in rows_of(each)
    ]
    measured = {
        each.target.what
        for each in assess(Record(PROVENANCE, rows))
        if each.verdict is not Verdict.UNKNOWN
    }
    assert measured == {"any case of the grid"}


def test_torch_compile_has_a_bound_of_its_own():
    rows = list(rows_of(case("forward", RELU), ours=1.0, eager=4.0, compiled=4.9))
    assert found(rows, "bn+relu forward, NCHW").verdict is Verdict.MET
    assert found(rows, "bn+relu forward, NCHW", "compile").verdict is Verdict.MISSED


def test_steps_are_compared_in_the_better_layout_of_each():
    step = Step("resnet-50", 16, 224)
    rows = list(step_rows(step, ours=(1.0, 2.0), eager=(3.0, 1.2), peaks=(990.0, 1000.0)))
    whole = Record(PROVENANCE, [], rows)
    assert best_layout(whole, step, "livella").layout == "contiguous"
    assert best_layout(whole, step, "eager").layout == "channels_last"
    speed, peak = (each for each in assess(whole) if "resnet-50" in each.target.what)
    assert (speed.median, speed.verdict) == (pytest.approx(1.2), Verdict.MET)
    assert (peak.median, peak.verdict) == (0.99, Verdict.MET)
    assert speed.worst_case == "contiguous against channels_last"


def test_more_memory_than_torch_misses_and_unknown_memory_is_not_judged():
    step = Step("densenet-121", 16, 224)

    def memory_of(peaks):
        whole = Record(PROVENANCE, [], list(step_rows(step, peaks=peaks)))
        return next(
            e for e in assess(whole) if e.target.what == "training step, densenet-121, memory"
        )

    assert memory_of((1011.0, 1000.0)).verdict is Verdict.MISSED
    assert memory_of((None, 1000.0)).verdict is Verdict.UNKNOWN


def test_small_steps_of_a_quick_run_are_not_judged():
    whole = Record(PROVENANCE, [], list(step_rows(Step("resnet-50", 4, 96))))
    assert {each.verdict for each in assess(whole)} == {Verdict.UNKNOWN}


def test_the_order_of_rows_does_not_matter():
    whole = record()
    turned = dataclasses.replace(whole, rows=whole.rows[::-1], steps=whole.steps[::-1])
    assert [e.verdict for e in assess(whole)] == [e.verdict for e in assess(turned)]
    assert [e.median for e in assess(whole)] == [e.median for e in assess(turned)]
