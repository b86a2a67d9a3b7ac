"""The record on a terminal, from plain numbers."""

import io

import pytest
from rich.console import Console

from livella.bench import cases, table
from livella.bench.cases import RELU, Case, Setting
from livella.bench.rows import Record, Step
from tests.bench.records import PROVENANCE, record, rows_of, step_rows


def shown(record, width=120):
    out = io.StringIO()
    table.show(record, Console(file=out, width=width))
    return out.getvalue()


def lines_of(record, text):
    return [line for line in shown(record).splitlines() if text in line]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    assert max(map(len, shown(record(), width).splitlines())) <= width


def test_every_case_has_its_figures():
    whole = record(steps=False, ours=1.25, eager=5.0)
    text = shown(whole)
    for case in cases.grid():
        assert case.kind in text
    (line,) = lines_of(Record(PROVENANCE, list(rows_of(cases.grid()[0]))), "1.25 ms")
    assert line.split() == ["32x64x56x56", "1.25", "ms", "1.25×", "4.00×", "–", "–"]


def test_torch_compile_has_a_column_where_it_took_part():
    case = Case("forward", Setting((32, 64, 56, 56), "contiguous", "float32", RELU))
    (line,) = lines_of(Record(PROVENANCE, list(rows_of(case, ours=2.0, compiled=13.0))), "2 ms")
    assert "6.50×" in line
    assert "compile" in shown(Record(PROVENANCE, list(rows_of(case)))).partition("targets")[0]


def test_targets_show_bound_median_worst_and_verdict():
    rows = [
        row
        for shape, eager in (((32, 64, 56, 56), 5.0), ((16, 96, 112, 112), 3.5))
        for row in rows_of(
            Case("backward", Setting(shape, "contiguous", "float32", RELU)), ours=1.0, eager=eager
        )
    ]
    whole = Record(PROVENANCE, rows)
    (line,) = [x for x in lines_of(whole, "bn+relu backward, NCHW") if "eager" in x]
    assert line.split()[:2] == ["◐", "median"]
    assert line.split()[-6:] == ["eager", "≥", "4×", "4.25×", "3.50×", "–"]
    assert lines_of(whole, "2 cases, worst at 16x96x112x112")
    assert lines_of(whole, "2 of 3 met in every case; 41 more not measured")


def test_what_was_not_measured_is_named_in_the_end():
    text = " ".join(shown(Record(PROVENANCE)).split())
    assert "0 of 0 met in every case; 44 more not measured" in text
    assert "? not measured: forward, NCHW, maps ≥ 14×14 (eager, copy); forward, " in text


def test_steps_show_time_speed_and_memory():
    step = Step("resnet-50", 16, 224)
    rows = list(step_rows(step, ours=(2.0, 1.0), eager=(3.0, 1.5), peaks=(1234.5, None)))
    ours, best, _, theirs = lines_of(Record(PROVENANCE, [], rows), "resnet-50, 16 × 224²")
    assert ours.split()[-5:] == ["2", "s", "0.75×", "1,234", "MB"]
    assert best.split()[-5:] == ["1", "s", "1.50×", "1,234", "MB"]
    assert theirs.split()[-4:] == ["1.5", "s", "1.00×", "–"]


def test_provenance_is_shown():
    text = shown(record())
    assert all(value in text for value in PROVENANCE.values())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (4.12e-7, "0.412 µs"),
        (4.12e-4, "412 µs"),
        (9.9996e-4, "1 ms"),
        (7.312e-3, "7.31 ms"),
        (2.149, "2.15 s"),
    ],
)
def test_durations_have_the_unit_that_suits(seconds, words):
    assert table.duration(seconds) == words
