"""Trials on disk: nothing is lost, nothing stands twice, and what is odd is set aside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from livella.study import store
from livella.study.errors import StudyError
from livella.study.store import TrialStore
from tests.study import worlds

ROWS = [worlds.row(seed) for seed in range(3)]
LINES = [row.to_line() for row in ROWS]
OUTCOME = json.loads(LINES[1])["outcome"]


def saved(folder, lines=LINES):
    (folder / store.TRIALS).write_bytes(b"".join(lines))
    return folder


def aside(folder):
    file = folder / store.ASIDE
    return file.read_bytes().splitlines() if file.exists() else []


def test_rows_come_back_as_they_were_saved(tmp_path):
    first = TrialStore(tmp_path)
    for row in ROWS:
        first.append(row)
    second = TrialStore(tmp_path)
    assert list(second.rows.items()) == [(row.trial, row) for row in ROWS]
    assert not second.notes
    assert not aside(tmp_path)


def test_a_row_is_on_disk_before_append_returns(tmp_path, monkeypatch):
    kept, synced = TrialStore(tmp_path), []

    def watched(descriptor):
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", watched)
    for row in ROWS:
        kept.append(row)
    sizes = [len(b"".join(LINES[: k + 1])) for k in range(3)]
    assert synced == sizes, "every row is synced, and after it was written"


def test_a_last_line_torn_at_any_byte_loses_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # for the sake of time
    last = LINES[2]
    for cut in range(len(last)):
        saved(tmp_path, [*LINES[:2], last[:cut]])
        kept = TrialStore(tmp_path)
        assert list(kept.rows) == [row.trial for row in ROWS[:2]]
        assert len(kept.notes) == (cut > 0)
        assert aside(tmp_path) == ([last[:cut]] if cut else [])
        kept.append(ROWS[2])
        assert (tmp_path / store.TRIALS).read_bytes() == b"".join(LINES)
        (tmp_path / store.ASIDE).unlink(missing_ok=True)


def changed(**values):
    return json.dumps({**json.loads(LINES[1]), **values}).encode()


FOREIGN = {
    "empty": b"",
    "no JSON": b"hello",
    "a number": b"7",
    "a list": b"[1]",
    "another shape": b'{"format": 2}',
    "not UTF-8": b"\xff\xfe" + LINES[1][:-1],
    "another format": changed(format=1),
    "another key": changed(key="0123456789abcdef"),
    "no seconds": changed(seconds=None),
    "endless seconds": LINES[1][:-1].replace(b'"seconds": 0.5', b'"seconds": ' + b"9" * 400),
    "NaN": LINES[1][:-1].replace(b'"seconds": 0.5', b'"seconds": NaN'),
    "an unknown field": changed(trial={**json.loads(LINES[1])["trial"], "colour": "red"}),
    "an unknown outcome": changed(outcome={"colour": "red"}),
    "an outcome that is none": changed(outcome=[]),
    "an empty outcome": changed(outcome={}),
    "words for accuracies": changed(outcome={**OUTCOME, "test": ["a", "b"]}),
    "fewer accuracies than steps": changed(outcome={**OUTCOME, "test": OUTCOME["test"][:-1]}),
    "a trial that failed": changed(outcome={"error": "RuntimeError: no"}),
    "a deep nest": b"[" * 100_000,
    "a list for a network": changed(trial={**json.loads(LINES[1])["trial"], "network": []}),
}


@pytest.mark.parametrize("line", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_line_is_set_aside_with_a_note_and_the_others_stay(tmp_path, line):
    saved(tmp_path, [LINES[0], line + b"\n", LINES[2]])
    kept = TrialStore(tmp_path)
    assert list(kept.rows.values()) == [ROWS[0], ROWS[2]]
    assert "1 line(s) of trials.jsonl set aside in trials.set-aside.jsonl: line 2" in kept.notes[0]
    assert aside(tmp_path) == [line]
    assert (tmp_path / store.TRIALS).read_bytes() == LINES[0] + LINES[2]
    assert TrialStore(tmp_path).notes == [], "and it is told once"


def test_of_a_repeated_trial_the_first_counts(tmp_path):
    again = changed(seconds=9.0)
    kept = TrialStore(saved(tmp_path, [*LINES, again + b"\n"]))
    assert list(kept.rows.values()) == ROWS
    assert "the same trial stands above" in kept.notes[0]
    assert aside(tmp_path) == [again]


def test_many_odd_lines_make_one_short_note(tmp_path):
    kept = TrialStore(saved(tmp_path, [b"odd %d\n" % k for k in range(50)]))
    (note,) = kept.notes
    assert note.startswith("50 line(s)")
    assert len(note) < 400
    assert len(aside(tmp_path)) == 50


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("times", [0, 1])
def test_a_crash_while_setting_aside_loses_nothing(tmp_path, monkeypatch, step, times):
    saved(tmp_path, [LINES[0], b"odd\n", *LINES[1:], b"torn"])
    target = os if step == "fsync" else Path
    intact, calls = getattr(target, step), []

    def crashes(*args):
        calls.append(args)
        if len(calls) > times:
            raise OSError("planted")
        return intact(*args)

    with monkeypatch.context() as patch:
        patch.setattr(target, step, crashes)
        if times < (2 if step == "fsync" else 1):
            with pytest.raises(OSError, match="planted"):
                TrialStore(tmp_path)
        else:
            TrialStore(tmp_path)
    kept = TrialStore(tmp_path)
    assert list(kept.rows.values()) == ROWS
    assert {b"odd", b"torn"} == set(aside(tmp_path))


def test_a_second_study_is_refused_the_folder_until_the_first_is_done(tmp_path):
    with (
        store.opened(tmp_path),
        pytest.raises(StudyError, match="another study is writing"),
        store.opened(tmp_path),
    ):
        pytest.fail("both had it open")
    with store.opened(tmp_path) as kept:
        assert kept.rows == {}


def test_another_process_is_refused_the_folder(tmp_path):
    code = (
        f"from pathlib import Path; from livella.study import store\n"
        f"with store.opened(Path({str(tmp_path)!r})): pass"
    )
    with store.opened(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "StudyError: another study is writing to" in other.stderr


def test_a_folder_is_made_where_it_is_missing(tmp_path):
    with store.opened(tmp_path / "new" / "folder") as kept:
        kept.append(ROWS[0])
    assert (tmp_path / "new" / "folder" / store.TRIALS).read_bytes() == LINES[0]


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_file_in_the_way_is_said_to_be_there(tmp_path, where):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StudyError, match="cannot write to"), store.opened(tmp_path / where):
        pytest.fail("it was opened")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_in_the_place_of_the_trials_is_said_to_be_there(tmp_path):
    (tmp_path / store.TRIALS).mkdir()
    with pytest.raises(StudyError, match="cannot write to"), store.opened(tmp_path):
        pytest.fail("it was opened")


def test_an_error_leaves_the_folder_free_for_the_next(tmp_path):
    with pytest.raises(RuntimeError, match="planted"), store.opened(tmp_path):
        raise RuntimeError("planted")
    with store.opened(tmp_path) as kept:
        assert kept.rows == {}
