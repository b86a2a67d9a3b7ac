"""Studies as a user runs them: real processes, killed, interrupted and taken up again."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import livella
from livella.study import CLAIMS, runner, sources
from livella.study.store import ASIDE, TRIALS, TrialStore
from tests.study import worlds
from tests.study.worlds import users

LIVELLA = str(Path(sys.executable).with_name("livella"))
PATIENCE = 600.0
"""Seconds after which what never comes fails the test: a hang, however busy the machine is."""


class Process:
    """A study in a terminal of its own: one process group with its workers."""

    def __init__(self, *words, folder):
        self._streams = [(folder / name).open("w+") for name in ("stdout.txt", "stderr.txt")]
        out, err = self._streams
        # As from a terminal: what a shell starts in the background ignores Ctrl-C, its heirs too.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(
                [LIVELLA, "study", *words],
                cwd=folder,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in self._streams:
            stream.close()

    def members(self):
        """The processes of the group that still run."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _parent, group = stat.read_text().rpartition(")")[2].split()[:3]
            except OSError:  # ended meanwhile
                continue
            if int(group) == self.process.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found

    def end(self):
        """Wait for the end; returns the exit code and the lines on stderr."""
        code = self.process.wait(PATIENCE)
        self._streams[1].seek(0)
        return code, self._streams[1].read().splitlines()


def until(seen):
    """Wait until something is seen."""
    deadline = time.monotonic() + PATIENCE
    while not (value := seen()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
    return value


def rows(folder):
    file = folder / TRIALS
    return file.read_bytes().count(b"\n") if file.exists() else 0


def finish(*words, folder):
    with Process(*words, folder=folder) as study:
        code, errors = study.end()
    assert (code, errors) == (0, [])
    return json.loads((folder / "out" / "report.json").read_text())


HELD = ("inference", "--model", users("held"), "--data", users("few"), "--steps", "2")
"""A study that stands still after some trials, with both workers at one, until a file `go` is."""


def wanted(seeds, rows):
    data, model = users("few"), users("held")
    scope = worlds.scope(seeds, data=data, model=model, shape=(1, 6, 6), steps=2)
    scope = dataclasses.replace(scope, version=sources.version(data, model))
    claims = [claim for claim in CLAIMS if claim.name == "inference"]
    return runner.wanted(claims, scope, runner.outcomes(rows))


def test_a_killed_study_goes_on_where_it_was_and_a_third_call_runs_nothing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = (*HELD, "--seeds", "2", "--jobs", "2", "--out", "out")
    with Process(*words, folder=tmp_path) as study:
        until(lambda: rows(out) >= 3)
        study.process.kill()
        assert study.process.wait() == -signal.SIGKILL
        kept = rows(out)
        assert not (out / "report.json").exists()
        with (out / TRIALS).open("ab") as file:  # as if it had been killed while it wrote
            file.write(b'{"format": 2, "key": "0')
        # Its workers may still be there, waiting for more; they are in nobody's way.
        (tmp_path / "go").touch()
        again = finish(*words, folder=tmp_path)
    assert again["trials_reused"] == kept
    store = TrialStore(out)
    whole = wanted(2, store.rows)
    assert set(store.rows) == set(whole)
    assert rows(out) == len(whole) == again["trials_run"] + again["trials_reused"]
    assert (out / ASIDE).exists()

    monkeypatch.chdir(tmp_path)  # where the network looks for `go`
    options = {"model": users("held"), "data": users("few"), "steps": 2, "seeds": 2}
    third = livella.study(["inference"], **options, out=out, progress=False)
    assert (third.trials_run, third.trials_reused) == (0, len(whole))
    assert json.loads(json.dumps(third.to_dict()))["claims"] == again["claims"]


def test_ctrl_c_ends_a_study_at_once_with_one_line_and_no_process_left(tmp_path):
    words = (*HELD, "--seeds", "2", "--jobs", "2", "--out", "out")
    with Process(*words, folder=tmp_path) as study:
        until(lambda: rows(tmp_path / "out") >= 2)
        os.killpg(study.process.pid, signal.SIGINT)
        code, errors = study.end()
        assert code == 130
        assert errors == [
            "livella: interrupted; finished trials are kept, and the same command goes on"
        ]
        until(lambda: not study.members())
    kept = TrialStore(tmp_path / "out").rows
    assert 0 < len(kept) < len(wanted(2, kept))


def test_a_users_network_and_loaders_go_through_all_claims_that_make_sense(tmp_path):
    words = ("--model", users("build"), "--data", users("few"), "--jobs", "1")
    record = finish(*words, "--seeds", "1", "--steps", "2", "--out", "out", folder=tmp_path)
    left_out = {claim["name"]: claim["reason"] for claim in record["left_out"]}
    tried = [claim["name"] for claim in record["claims"]]
    assert set(left_out) == {"gradient_flow", "regularization", "dropout", "recurrent"}
    assert all(left_out.values())
    assert tried == [claim.name for claim in CLAIMS if claim.name not in left_out]
    assert not any("failed" in note for note in record["notes"])
    assert users("build") in record["model"]
    assert "(train / validation / test) of 1×6×6, 3 classes" in record["data"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 0


@pytest.mark.parametrize("words", [["--data", users("nan")], ["--model", users("no_norm")]])
def test_bad_input_ends_with_one_line(tmp_path, words):
    with Process(*words, folder=tmp_path) as study:
        code, errors = study.end()
    assert code == 2
    assert len(errors) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"stdout.txt", "stderr.txt"}
