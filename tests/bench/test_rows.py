"""Rows on disk: the same when read again, whole however a run ends, and never another's."""

import json

import pytest

from livella.bench import BenchError, cases, memory, rows
from livella.bench.cases import Fusion, Setting
from livella.bench.rows import Record, Step
from tests.bench.records import PROVENANCE, record, rows_of, step_rows

STEP = Step("resnet-50", 16, 224)


def write(path, record):
    with rows.writing(path, record.provenance) as write_row:
        for row in (*record.rows, *record.steps):
            write_row(row)


def test_a_record_is_the_same_when_read_again(tmp_path):
    whole = record()
    write(tmp_path / "a.jsonl", whole)
    assert rows.read(tmp_path / "a.jsonl") == whole


@pytest.mark.parametrize(
    "row",
    [
        next(rows_of(cases.grid()[0])),
        next(
            rows_of(
                cases.Case(
                    "backward",
                    Setting((2, 3), "channels_last", "bfloat16", Fusion("silu", residual=True)),
                ),
                memory.FRESH,
            )
        ),
        next(step_rows(STEP)),
        next(step_rows(STEP, peaks=(None, None))),
    ],
    ids=["plain", "fused", "step", "step of unknown memory"],
)
def test_a_row_survives_json(row):
    assert rows.from_dict(json.loads(json.dumps(rows.to_dict(row)))) == row


def test_a_file_begins_with_its_format_and_where_it_comes_from(tmp_path):
    write(tmp_path / "a.jsonl", record())
    head, first = (tmp_path / "a.jsonl").read_text().splitlines()[:2]
    assert json.loads(head) == {"format": rows.FORMAT, "provenance": PROVENANCE}
    flat = json.loads(first)
    assert (flat["operation"], flat["shape"], flat["dtype"]) == (
        "forward",
        [32, 64, 56, 56],
        "float32",
    )
    assert (flat["contender"], flat["memory"], flat["rounds"]) == ("livella", "reused", 15)


def test_rows_are_on_disk_before_the_run_ends_and_kept_when_it_is_broken_off(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    written = list(rows_of(cases.grid()[0]))

    def broken_off():
        with rows.writing(path, PROVENANCE) as write_row:
            for row in written:
                write_row(row)
            (beside,) = path.parent.iterdir()
            assert len(beside.read_text().splitlines()) == 1 + len(written)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert rows.read(path) == Record(PROVENANCE, written)
    assert list(path.parent.iterdir()) == [path]


def test_a_run_without_rows_leaves_no_file(tmp_path):
    with rows.writing(tmp_path / "a.jsonl", PROVENANCE):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_name_says_day_and_machine_and_is_never_taken_twice(tmp_path):
    names = []
    for _ in range(3):
        path = rows.free_path(tmp_path, PROVENANCE)
        path.touch()
        names.append(path.name)
    first = "2026-01-31-a-fast-processor-2-threads"
    assert names == [f"{first}.jsonl", f"{first}-2.jsonl", f"{first}-3.jsonl"]


ROW = rows.to_dict(next(rows_of(cases.grid()[0])))
HEAD = {"format": rows.FORMAT, "provenance": PROVENANCE}
BAD = {
    "empty": [],
    "no JSON": ["# Results"],
    "no object": ["[1]"],
    "another's": [{"name": "x"}],
    "another format": [{**HEAD, "format": "livella-bench-0"}],
    "torn": [HEAD, json.dumps(ROW)[:-20]],
    "unknown kind": [HEAD, {**ROW, "kind": "flower"}],
    "a column too many": [HEAD, {**ROW, "colour": "red"}],
    "a column missing": [HEAD, {name: ROW[name] for name in ROW if name != "to_limit"}],
}


@pytest.mark.parametrize("lines", BAD.values(), ids=BAD)
def test_another_file_is_refused_by_name(tmp_path, lines):
    path = tmp_path / "other.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    with pytest.raises(BenchError, match=r"other\.jsonl.*no file of livella bench.*name a"):
        rows.read(path)
