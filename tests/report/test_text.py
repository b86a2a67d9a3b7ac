"""The terminal report says everything, at any width, with or without colour."""

import io
import re

import pytest
from rich.console import Console

from livella.report import text, wording
from livella.study.results import StudyResult
from tests.report.samples import HOSTILE, study_result


def shown(width: int = 100, **options) -> str:
    stream = io.StringIO()
    text.show(study_result(), Console(file=stream, width=width, **options))
    return stream.getvalue()


def words(printed: str) -> str:
    """The text without its line breaks and frames."""
    return re.sub(r"[\s\N{NO-BREAK SPACE}─]+", " ", printed)


@pytest.mark.parametrize("width", [80, 120])
def test_everything_is_said(width: int) -> None:
    printed = words(shown(width))

    for claim in study_result().claims[:-1]:
        assert claim.title in printed
        assert claim.question in printed
        for finding in claim.findings:
            assert f"{wording.SYMBOLS[finding.verdict]} {finding.verdict.value}" in printed
        for paper in claim.papers:
            assert f"{paper.finding} ({paper.source})" in printed


def test_summaries_and_effects_stand_side_by_side_with_the_verdict() -> None:
    printed = shown(120).replace("\N{NO-BREAK SPACE}", " ")

    assert re.search(r"✓ confirmed +\S.* +9\.2× \[7\.1, 12\.0\]", printed)
    assert re.search(r"✗ contradicted +\S.* +1\.04× \[0\.93, 1\.18\]", printed)
    assert re.search(r"\? inconclusive +\S.* +no number", printed)
    for claim in study_result().claims[:-1]:
        for finding in claim.findings:
            assert finding.summary in printed


def test_tables_show_censored_and_missing_cells() -> None:
    printed = words(shown(120))

    assert "none, rate 3 3 ≥ 1,500 [1,500, ∞) –" in printed
    assert "none 0.3 1,100 [900, 1,250] 97.2 [96.6, 97.8]" in printed


def test_the_run_is_told() -> None:
    printed = words(shown())

    assert "268 run, 144 reused" in printed
    assert "1 min 37 s here, 1 h 06 min of computing in all" in printed
    assert "recurrent the data have no sequence axis" in printed
    assert "2 of 412 trials ended in NaN" in printed
    assert "torch 2.13.0+cpu" in printed


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line) for line in shown(width).splitlines()) <= width


def test_a_pipe_gets_plain_text() -> None:
    assert "\x1b" not in shown()


def test_a_terminal_gets_colour_and_no_sequence_from_a_name() -> None:
    coloured = shown(force_terminal=True, color_system="standard")

    assert "\x1b[1;32m" in coloured
    assert "\ufffd[31m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).count("\x1b") == 0


def test_markup_in_names_is_shown_as_it_is() -> None:
    assert "[red]%{x}[/red]" in words(shown(120))
    assert HOSTILE.replace("\x1b", "\ufffd") in words(shown(120))


def test_a_study_without_claims() -> None:
    stream = io.StringIO()

    text.show(StudyResult("data", "model", 3, ()), Console(file=stream, width=80))

    assert "No claim was run." in stream.getvalue()
