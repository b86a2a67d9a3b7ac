"""What is told of all cases."""

import json

from evaluation import __main__ as command
from evaluation import table


def row(key: str, worst: str | None, order: str = "shuffled", batch: int = 64) -> dict:
    """A network that lost 40 points, of which so much was said."""
    findings = [{"check": "stale_statistics", "level": worst, "layer": "a", "share": 1.0}]
    return {
        "key": key, "family": "mlp", "data": "digits", "fault": "polluted", "order": order,
        "batch": batch, "labels": True, "repaired": 0.9, "untouched": True,
        "said": {"worst": worst, "findings": findings if worst else [], "shares": {"a": 1.0}},
        "truth": {
            "running": [0.5, 0.5], "population": [0.9, 0.9], "differ": 0.5, "deployed": None,
            "distances": {"a": 1.0}, "shares": {"a": 1.0}, "unsure": 0.0,
        },
    }  # fmt: skip


ROWS = [row("0/polluted/1/x", "error"), row("0/polluted/1/y", None, "sorted", 4)]


def test_scores_are_shares_of_the_cases_they_apply_to():
    assert table.score(ROWS, "alarm") == (0.5, 2)
    assert table.score(ROWS, "quiet") == (1.0, 0)


def test_the_table_has_a_line_a_score_and_the_count_of_pairs():
    lines = list(table.lines(ROWS))
    assert lines[0].startswith("1 pairs")
    alarm = next(line for line in lines if line.startswith("alarm"))
    cells = alarm.split("(")
    assert len(cells) - 1 == 6  # all, shuffled, sorted, 4, 64, with labels


def test_misses_name_the_case_and_its_figures():
    missed = [line for line in table.misses(ROWS) if line.startswith("alarm")]
    assert len(missed) == 1
    assert "0/polluted/1/y" in missed[0]
    assert "50.0% → 90.0%" in missed[0]


def test_a_run_that_was_stopped_goes_on(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), json.dumps(ROWS[1])[:40]]), "utf-8")
    assert list(command._read(path)) == ["0/polluted/1/x"]
