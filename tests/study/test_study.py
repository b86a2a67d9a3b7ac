"""The study as one call: what it gives, what it keeps, and what it refuses."""

import dataclasses
import json

import pytest

import livella
from livella import provenance
from livella.report import files
from livella.study import CLAIMS, StudyError
from livella.study import study as run_study
from livella.study.claims import batch_size
from livella.study.results import Verdict
from tests.study.worlds import USERS, users

NAMES = [claim.name for claim in CLAIMS]


def study(*claims, **settings):
    usual = {"steps": 20, "seeds": 3, "jobs": 1, "progress": False}
    return run_study(claims, **{**usual, **settings})


def test_the_public_call_is_this_one():
    assert livella.study is run_study


def test_a_study_says_what_it_saw_and_a_second_call_runs_nothing(tmp_path):
    first = study("batch_size", out=tmp_path, steps=5)
    assert [claim.name for claim in first.claims] == ["batch_size"]
    assert (first.seeds, first.left_out) == (3, ())
    assert not any("failed" in note for note in first.notes)
    assert first.data.startswith("digits: ")
    (claim,) = first.claims
    assert first.trials_run == claim.trials == 9 * (2 * len(batch_size.RATES) + 1)
    assert first.trials_reused == 0
    assert claim.seconds > 0
    assert {f.effect.count for f in claim.findings} == {3}
    json.dumps(first.to_dict(), allow_nan=False)

    second = study("batch_size", out=tmp_path, steps=5)
    assert (second.trials_run, second.trials_reused) == (0, first.trials_run)
    assert second.claims == first.claims
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "trials.jsonl"}


def test_more_seeds_reuse_the_trials_of_fewer(tmp_path):
    fewer = study("regularization", out=tmp_path, steps=2, seeds=2)
    assert {f.verdict for c in fewer.claims for f in c.findings} == {Verdict.INCONCLUSIVE}
    assert "2 seed(s) are too few for a verdict" in fewer.notes[0]
    more = study("regularization", out=tmp_path, steps=2, seeds=3)
    assert more.trials_reused == fewer.trials_run
    assert more.trials_run == 5


def test_nothing_is_kept_where_no_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study("batch_size", steps=1, seeds=1)
    assert list(tmp_path.iterdir()) == []


def test_claims_come_in_the_order_of_their_list_and_once():
    result = study("batch_size", "regularization", "batch_size", steps=1, seeds=1)
    assert [claim.name for claim in result.claims] == ["regularization", "batch_size"]


def test_claims_that_make_no_sense_for_a_users_network_are_left_out_with_a_reason(tmp_path):
    result = study(
        "gradient_flow",
        "regularization",
        "batch_size",
        model=users("dense"),
        data=users("loaders"),
        steps=1,
        seeds=1,
    )
    assert [claim.name for claim in result.claims] == ["batch_size"]
    assert [claim.name for claim in result.left_out] == ["gradient_flow", "regularization"]
    assert all(claim.reason for claim in result.left_out)
    assert users("dense") in result.model


def test_an_edited_file_makes_new_trials(tmp_path):
    file, out = tmp_path / "nets.py", tmp_path / "out"
    file.write_text(USERS.read_text())
    settings = {"model": f"{file}:dense", "data": users("loaders")}
    settings |= {"steps": 1, "seeds": 1, "out": out}
    first = study("batch_size", **settings)
    file.write_text(file.read_text() + "\n# edited\n")
    edited = study("batch_size", **settings)
    assert edited.trials_run == first.trials_run
    assert edited.trials_reused == 0


def test_failed_trials_are_noted_and_tried_again(tmp_path):
    # Maps of 1 × 1 have no space for instance norm, which then refuses to train.
    settings = {"model": users("small_maps"), "data": users("loaders"), "steps": 2, "out": tmp_path}
    first = study("alternatives", seeds=1, **settings)
    failed = [note for note in first.notes if "trials failed" in note]
    assert failed
    assert "7 of 63 trials failed, the first with ValueError" in failed[0]
    again = study("alternatives", seeds=1, **settings)
    assert again.trials_run == 7
    assert [c.findings for c in again.claims] == [c.findings for c in first.claims]


def test_a_study_whose_trials_all_fail_is_an_error():
    settings = {"model": users("fails_in_training"), "data": users("loaders"), "steps": 1}
    with pytest.raises(StudyError, match=r"all \d+ trials failed, the first with RuntimeError: pl"):
        study("batch_size", seeds=1, **settings)


@pytest.mark.parametrize(
    ("claims", "settings", "said"),
    [
        (["speed"], {}, f"unknown claim 'speed': the claims are {', '.join(NAMES)}"),
        (["batch_size"], {"seeds": 0}, "seeds is 0: expected a whole number from 1"),
        (["batch_size"], {"jobs": 0}, "jobs is 0"),
        (["batch_size"], {"steps": 0}, "steps is 0"),
        (["batch_size"], {"jobs": -1}, "jobs is -1"),
        ([], {"data": "cifar"}, "unknown data 'cifar'"),
        ([], {"data": users("one_class")}, "one class only"),
        ([], {"data": users("nan")}, "NaN"),
        ([], {"model": users("no_norm_for_digits")}, "no normalization to swap"),
        ([], {"model": users("other_input")}, "failed on examples of shape (1, 8, 8)"),
        ([], {"model": "nowhere_at_all:f"}, "no module 'nowhere_at_all'"),
        (
            ["gradient_flow"],
            {"model": users("build"), "data": users("loaders")},
            "gradient_flow cannot be tried: it compares",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, claims, settings, said):
    with pytest.raises(StudyError) as caught:
        study(*claims, out=tmp_path / "out", **settings)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StudyError, match="cannot write to"):
        study("batch_size", out=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_the_result_can_be_written_as_a_report(tmp_path):
    result = study("batch_size", steps=1, seeds=1)
    assert files.write(result, tmp_path).is_file()
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["claims"][0]["name"] == "batch_size"


def test_provenance_names_versions_and_the_time():
    known = provenance.of_run(threads=1)
    assert known["torch"]
    assert known["threads"] == "1"
    assert known["date"].endswith("+00:00")
    assert all(isinstance(value, str) for value in known.values())


def test_a_result_is_a_record_of_plain_values():
    result = study("batch_size", steps=1, seeds=1)
    assert dataclasses.replace(result) == result
    assert json.loads(json.dumps(result.to_dict()))["claims"][0]["findings"][0]["verdict"] in {
        verdict.value for verdict in Verdict
    }
