"""Writing is all or nothing, and the JSON is strict."""

import json
import math
from pathlib import Path

import pytest

from livella import report
from livella.report import files
from livella.study.results import StudyResult
from tests.report.samples import study_result


def strict(constant: str) -> None:
    raise AssertionError(f"not JSON: {constant}")


def test_the_record_comes_back_from_json(tmp_path: Path) -> None:
    result = study_result()

    report.write(result, tmp_path)

    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    back = json.loads(text, parse_constant=strict)
    expected = json.loads(json.dumps(result.to_dict()), parse_constant=lambda constant: None)
    assert back == expected
    finding = back["claims"][0]["findings"][0]
    assert finding["verdict"] == "confirmed"
    assert finding["effect"]["median"] == result.claims[0].findings[0].effect.median


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    hostile = study_result().claims[-1]
    assert math.isnan(hostile.findings[0].effect.median)

    report.write(study_result(), tmp_path)

    effect = json.loads((tmp_path / "report.json").read_text())["claims"][-1]["findings"][0][
        "effect"
    ]
    assert effect == {
        "median": None,
        "low": None,
        "high": None,
        "count": 1,
        "censored": False,
        "capped": False,
    }


def test_the_page_is_returned_in_a_directory_made_for_it(tmp_path: Path) -> None:
    path = report.write(study_result(), tmp_path / "a" / "b")

    assert path == tmp_path / "a" / "b" / "report.html"
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert sorted(each.name for each in path.parent.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_failure_leaves_the_earlier_report_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    report.write(study_result(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(step, fail)
    other = StudyResult(data="other", model="other", seeds=1, claims=())
    with pytest.raises(OSError, match="no space left"):
        report.write(other, tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_is_written_where_the_page_cannot_be_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(result: StudyResult) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr(files, "render", fail)
    with pytest.raises(RuntimeError, match="no page"):
        report.write(study_result(), tmp_path / "new")

    assert not (tmp_path / "new").exists()


def test_half_a_surrogate_pair_does_not_stop_the_report(tmp_path: Path) -> None:
    result = StudyResult(data="digits\udcff", model="m", seeds=1, claims=())

    path = report.write(result, tmp_path)

    assert "digits?" in path.read_text(encoding="utf-8")
