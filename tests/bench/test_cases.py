"""The grid has what the targets speak of, and --only finds it."""

import itertools

import pytest

from livella.bench import BenchError, cases
from livella.bench.cases import ADD_RELU, PLAIN, RELU, Case, Fusion, Setting
from livella.bench.rows import Record
from livella.bench.targets import TARGETS
from tests.bench.records import PROVENANCE, record, rows_of

GRID = cases.grid()


def test_every_target_has_cases_and_the_steps_have_theirs():
    whole = record()
    assert all(list(target.figures(whole, False)) for target in TARGETS)


@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_every_shape_is_measured_in_float32_plain_and_fused(shape):
    wanted = itertools.product(
        ("forward", "backward"), (PLAIN, RELU, ADD_RELU), cases.layouts(shape)
    )
    for operation, fusion, layout in wanted:
        assert Case(operation, Setting(shape, layout, "float32", fusion)) in GRID
    assert Case("evaluation", Setting(shape, "contiguous", "float32", RELU)) in GRID


def test_the_grid_goes_from_tiny_to_large_and_over_all_types():
    assert {case.setting.dtype for case in GRID} == set(cases.BYTES)
    assert {len(case.setting.shape) for case in GRID} == {2, 3, 4, 5}
    assert (4, 4, 2, 2) in cases.SHAPES
    assert max(case.setting.bytes for case in GRID) > 100e6
    activations = {case.setting.fusion.activation for case in GRID}
    assert activations == {None, "relu", "relu6", "leaky_relu", "silu", "hardswish"}


def test_no_case_is_there_twice_and_those_of_a_setting_stand_together():
    assert len(set(map(str, GRID))) == len(GRID)
    settings = [setting for setting, _ in itertools.groupby(GRID, lambda case: case.setting)]
    assert len(settings) == len(set(settings))


def test_quick_is_a_small_part_of_the_whole_with_the_same_targets_of_speed():
    quick = cases.grid(quick=True)
    assert set(quick) < set(GRID)
    assert len(quick) < len(GRID) / 5
    rows = [row for case in quick for row in rows_of(case)]
    measured = [t for t in TARGETS if list(t.figures(Record(PROVENANCE, rows), False))]
    assert {"forward, NCHW, maps ≥ 14×14", "forward, NCHW, 7×7", "forward, (N, C)"} <= {
        target.what for target in measured
    }


def test_torch_compile_takes_part_in_few_settings():
    settings = {case.setting for case in GRID if case.setting.compiled}
    assert 4 <= len(settings) <= 8
    assert {setting.fusion for setting in settings} == {RELU, ADD_RELU}
    assert {setting.layout for setting in settings} == {"contiguous", "channels_last"}


def test_names_say_what_a_case_is():
    setting = Setting((4, 3, 2), "channels_last", "bfloat16", ADD_RELU)
    assert str(Case("forward", setting)) == "forward bn+add+relu 4x3x2 channels_last bfloat16"
    usual = Setting((4, 3, 2), "contiguous", "float32", Fusion("silu"))
    assert (usual.short, str(usual.fusion)) == ("4x3x2", "bn+silu")
    assert (setting.size, setting.bytes) == (24, 48)


def test_only_takes_cases_that_hold_every_word():
    names = ["forward bn 4x4", "backward bn 4x4", "forward bn+relu 8x8"]
    assert cases.choose(names, "") == [True, True, True]
    assert cases.choose(names, "forward 4x4") == [True, False, False]
    assert cases.choose(names, "relu") == [False, False, True]
    with pytest.raises(BenchError, match=r"'sideways'.*'forward bn 4x4'"):
        cases.choose(names, "sideways")
