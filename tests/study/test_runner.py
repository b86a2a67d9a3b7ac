"""Running what is missing: each trial once, failed ones told, nothing run that is known."""

import dataclasses
import os
import signal

import pytest
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from livella.study import CLAIMS, runner
from livella.study.claim import Claim
from livella.study.errors import StudyError
from livella.study.store import Row, TrialStore
from livella.study.trial import Outcome
from tests.study import worlds
from tests.study.worlds import users


def claim(plan, name="planted"):
    words = dict.fromkeys(("title", "question", "against"), "")
    return Claim(name, papers=(), plan=plan, assess=None, method=None, **words)


def run(claims, kept):
    return runner.run(claims, worlds.scope(), kept.rows, kept.append, 1, progress=False)


def test_each_missing_trial_runs_once_and_is_saved(tmp_path):
    ones = [worlds.trial(seed) for seed in range(4)]
    twice = [claim(lambda _scope, _done: ones), claim(lambda _scope, _done: ones[::-1])]
    kept = TrialStore(tmp_path)
    kept.append(first := runner.run_trial(ones[0]))
    kept.rows[ones[0]] = first
    assert run(twice, kept) == 3
    assert set(kept.rows) == set(ones)
    again = TrialStore(tmp_path)
    assert again.rows == kept.rows
    assert not again.notes
    assert run(twice, again) == 0


def test_a_plan_is_asked_again_until_it_wants_nothing_new(tmp_path):
    def plan(_scope, done):
        ones = [worlds.trial(seed) for seed in range(3)]
        return ones[: 1 + sum(one in done for one in ones)]

    kept = TrialStore(tmp_path)
    assert run([claim(plan)], kept) == 3
    assert [row.trial.seed for row in kept.rows.values()] == [0, 1, 2]


def test_the_longest_trials_run_first(tmp_path):
    ones = [worlds.trial(steps=steps) for steps in (2, 8, 4)]
    kept = TrialStore(tmp_path)
    run([claim(lambda _scope, _done: ones)], kept)
    assert [trial.steps for trial in kept.rows] == [8, 4, 2]


def test_a_failed_trial_is_told_but_not_saved_and_the_others_go_on(tmp_path):
    ones = [worlds.trial(0, data=users("fails")), worlds.trial(1)]
    failing = claim(lambda _scope, _done: ones)
    kept = TrialStore(tmp_path)
    assert run([failing], kept) == 2
    assert "no such disk" in kept.rows[ones[0]].outcome.error
    again = TrialStore(tmp_path)
    assert list(again.rows) == [ones[1]]
    assert run([failing], again) == 1, "the failed one is tried again, the other is not"


def test_a_row_says_where_it_comes_from():
    row = runner.run_trial(worlds.trial())
    assert row.seconds > 0
    assert {"livella", "torch", "processor", "threads", "date"} <= set(row.provenance)


@pytest.mark.parametrize("planned", CLAIMS, ids=lambda c: c.name)
@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_the_number_of_trials_foretold_is_the_number_run(monkeypatch, planned, seeds):
    def instead(one):
        return dataclasses.replace(
            worlds.row(), trial=one, outcome=worlds.PAPER[planned.name](one, 1)
        )

    monkeypatch.setattr(runner, "run_trial", instead)
    scope = worlds.scope(seeds)
    foretold = runner.wanted([planned], scope, runner._AnyOutcome())
    ran = runner.run([planned], scope, {}, lambda _row: None, 1, progress=False)
    assert ran == len(foretold)


def test_workers_leave_ctrl_c_to_the_study(monkeypatch):
    def instead(one):
        quiet = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        quiet = quiet and "ignore:resource_tracker" in os.environ["PYTHONWARNINGS"]
        return Row(one, Outcome(), 0.0, {"quiet": quiet, "process": os.getpid()})

    monkeypatch.setattr(runner, "run_trial", instead)
    get_reusable_executor().shutdown(wait=True)  # of an earlier test
    before, filters = signal.getsignal(signal.SIGINT), os.environ.get("PYTHONWARNINGS")
    ones = [worlds.trial(seed) for seed in range(3)]
    rows = list(runner._in_parallel(ones, jobs=2))
    assert {row.trial for row in rows} == set(ones)
    assert all(row.provenance["quiet"] for row in rows)
    assert os.getpid() not in {row.provenance["process"] for row in rows}
    assert signal.getsignal(signal.SIGINT) is before
    assert os.environ.get("PYTHONWARNINGS") == filters


def test_a_killed_worker_is_told_in_words(monkeypatch):
    def killed(one):
        raise TerminatedWorkerError("a worker was killed")

    monkeypatch.setattr(runner, "run_trial", killed)
    planned = claim(lambda _scope, _done: [worlds.trial()])
    with pytest.raises(StudyError, match=r"fewer --jobs; finished trials are kept"):
        runner.run([planned], worlds.scope(), {}, lambda _row: None, 1, progress=False)


def test_a_file_changed_while_the_study_runs_is_no_trial_of_the_old_one(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(worlds.USERS.read_text())
    one = worlds.trial(data=f"{file}:loaders")
    assert not runner.run_trial(one).outcome.failed
    file.write_text(worlds.USERS.read_text() + "\nX += 1\n")
    assert "was changed while it ran" in runner.run_trial(one).outcome.error
