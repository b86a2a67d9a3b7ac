"""A run through the command line: rows, page and summary; what ends it early; what it refuses."""

import itertools
import json
import os

import pytest
import torch
from typer.testing import CliRunner

from livella import bench as benchmark
from livella import cli
from livella.bench import contenders, measure, memory, rows, training
from tests.bench.records import record

TINY = ("--only", "4x4x2x2 contiguous float32 bn+relu", "--runs", "2", "--no-compile")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(cli.app, ["bench", *words])


def test_a_small_run_writes_rows_with_their_provenance_and_a_page(folder):
    threads = torch.get_num_threads()
    result = invoke(*TINY, "--out", "here", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert "measuring 3 cases on 2 threads" in result.stderr
    (path,) = folder.glob("here/*.jsonl")
    assert str(path.relative_to(folder)) in result.stdout
    assert path.with_suffix(".html").is_file()
    read = rows.read(path)
    assert {row.case.operation for row in read.rows} == {"forward", "backward", "evaluation"}
    assert {row.contender for row in read.rows} == {"livella", "eager", "limit"}
    assert {row.memory for row in read.rows} == {memory.kinds()[0]}
    assert all(row.p20 <= row.seconds <= row.p80 for row in read.rows)
    assert all(row.to_limit == 1 for row in read.rows if row.contender == "limit")
    assert all(row.to_ours == 1 for row in read.rows if row.contender == "livella")
    assert all(row.rounds == 2 for row in read.rows)
    known = {"livella", "commit", "torch", "python", "processor", "threads", "platform", "date"}
    assert known | {"kernels", "limit"} <= set(read.provenance)
    assert read.provenance["threads"] == "2"
    assert torch.get_num_threads() == threads


def test_saved_rows_are_shown_again_without_measuring(folder, monkeypatch):
    with rows.writing(folder / "a.jsonl", record().provenance) as write:
        for row in (*record().rows, *record().steps):
            write(row)
    monkeypatch.setattr(measure, "interleaved", None)
    result = invoke("--render", "a.jsonl")
    assert result.exit_code == 0, result.output
    assert "of 44 met in every case" in result.stdout
    assert (folder / "a.html").is_file()


def test_large_results_are_measured_in_both_kinds_of_memory(folder):
    result = invoke("--only", "forward bn+relu 1024x256", "--runs", "1", "--out", ".")
    assert result.exit_code == 0, result.output
    (path,) = folder.glob("*.jsonl")
    faults = {(row.contender, row.memory): row.faults for row in rows.read(path).rows}
    assert {kind for _, kind in faults} == set(memory.kinds())
    if memory.FRESH in memory.kinds():
        assert faults["eager", memory.FRESH] > 0


def test_an_interrupted_run_keeps_its_rows(folder, monkeypatch):
    interleaved, turn = measure.interleaved, itertools.count()

    def interrupted(*given, **options):
        if next(turn) == 2:
            raise KeyboardInterrupt
        return interleaved(*given, **options)

    monkeypatch.setattr(measure, "interleaved", interrupted)
    result = invoke(*TINY, "--out", ".")
    assert result.exit_code == 130
    assert "interrupted; the rows so far are in" in result.stderr
    (path,) = folder.glob("*.jsonl")
    assert {row.case.operation for row in rows.read(path).rows} == {"forward", "backward"}
    assert "forward bn+relu" in result.stdout


def test_a_run_interrupted_at_once_leaves_nothing(folder, monkeypatch):
    def interrupted(*_given, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "interleaved", interrupted)
    result = invoke(*TINY, "--out", "here")
    assert result.exit_code == 130
    assert "interrupted; no row yet" in result.stderr
    assert list((folder / "here").iterdir()) == []


def test_steps_come_with_models_and_go_without():
    assert benchmark.plan().steps == ()
    asked = benchmark.plan(models=True, only="step mobilenet")
    assert (asked.cases, [step.network for step in asked.steps]) == ((), ["mobilenet-v2"])
    assert "measuring 1 training step on" in asked.describe()


def test_training_steps_are_written_like_the_cases(folder, monkeypatch):
    step = rows.Step("mobilenet-v2", 2, 32)
    monkeypatch.setattr(training, "steps", lambda **_: (step,))
    monkeypatch.setattr(training, "peak_of", lambda *_: None)
    result = invoke("--models", "--only", "step", "--runs", "1", "--out", ".")
    assert result.exit_code == 0, result.output
    (path,) = folder.glob("*.jsonl")
    assert [(row.contender, row.layout) for row in rows.read(path).steps] == [
        (who.name, who.layout) for who in training.contenders(compiled=False)
    ]
    assert "no peak memory of livella contiguous" in result.stdout


def test_torch_compile_that_cannot_be_built_is_told_and_left_out(folder, monkeypatch):
    def fails(*_):
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nand more")

    monkeypatch.setattr(contenders, "compiled", fails)
    monkeypatch.setattr("livella.bench.cases.COMPILED_SHAPES", ((4, 4, 2, 2),))
    result = invoke(*TINY[:-1], "--out", ".")
    assert result.exit_code == 0, result.output
    assert "note: torch.compile cannot build bn+relu 4x4x2x2 contiguous float32: no compiler\n" in (
        result.stdout
    )
    (path,) = folder.glob("*.jsonl")
    assert {row.contender for row in rows.read(path).rows} == {"livella", "eager", "limit"}


BAD = {
    "no such case": (["--only", "sideways"], "nothing to measure is named by --only 'sideways'"),
    "no rounds": (["--runs", "0"], "runs is 0: expected a whole number from 1"),
    "no threads": (["--threads", "-1"], "threads is -1: expected a whole number from 1"),
    "no file": (["--render", "nowhere.jsonl"], "nowhere.jsonl"),
    "another's file": (["--render", "other.jsonl"], "is no file of livella bench"),
    "a file for a folder": ([*TINY, "--out", "other.jsonl"], "other.jsonl"),
}


@pytest.mark.parametrize(("words", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_line(folder, words, said):
    (folder / "other.jsonl").write_text(json.dumps({"name": "x"}))
    result = invoke(*words)
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("livella: ")
    assert [path.name for path in folder.iterdir()] == ["other.jsonl"]


def test_rows_go_to_the_project_inside_its_checkout_and_to_a_folder_elsewhere(folder, monkeypatch):
    from livella.bench.bench import default_directory

    assert str(default_directory()) == "livella-bench"
    (folder / "src").mkdir()
    monkeypatch.setattr("livella.provenance.checkout", lambda: folder)
    monkeypatch.chdir(folder / "src")
    assert default_directory() == folder / "benchmarks" / "results"


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.75, 0.0, 0.0), raising=False)
    assert "note: the load here was 1.75" in invoke(*TINY, "--out", ".").stdout
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0), raising=False)
    assert "load here" not in invoke(*TINY, "--out", ".").stdout
