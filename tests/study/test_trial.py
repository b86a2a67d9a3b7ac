"""One training: it is repeatable, says truly what it saw, and leaves no trace outside."""

import dataclasses
import itertools
import json
import math

import joblib
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livella.study import batches, runner, trial
from livella.study.models import Network
from livella.study.trial import Outcome, Trial
from tests.study import worlds
from tests.study.worlds import users

NOISY = Network(width=8, depth=2, norm="batch", dropout=0.2, noise=True)


@pytest.mark.parametrize("probe", ["", "shift", "gradients"])
def test_the_same_trial_gives_the_same_outcome(probe):
    one = worlds.trial(network=NOISY, probe=probe)
    torch.rand(3)
    assert trial.run(one) == trial.run(one)


def test_another_process_gives_the_same_outcome_whatever_it_ran_before():
    # The user's file draws random numbers where it is imported, and its loaders shuffle.
    model = Network(users("build"), norm="batch")
    ones = [worlds.trial(seed, data=users("loaders"), network=model) for seed in range(2)]
    ones += [worlds.trial(seed, data="digits", network=NOISY) for seed in range(2)]
    here = [trial.run(one) for one in ones]
    there = joblib.Parallel(n_jobs=2)(joblib.delayed(trial.run)(one) for one in reversed(ones))
    assert there[::-1] == here


def test_importing_the_users_file_does_not_change_the_first_trial(tmp_path):
    file = tmp_path / "seeds_itself.py"
    file.write_text(
        "import torch\nfrom torch import nn\ntorch.manual_seed(3)\n\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))\n"
    )
    one = worlds.trial(seed=1, network=Network(f"{file}:build", norm="batch"))
    first = trial.run(one)
    assert trial.run(one) == first


def test_shuffling_loaders_are_read_in_the_same_order_whatever_was_drawn_before(tmp_path):
    text = worlds.USERS.read_text()
    outcomes = []
    for name in ("one", "other"):
        (tmp_path / f"{name}.py").write_text(text)
        outcomes.append(trial.run(worlds.trial(data=f"{tmp_path / name}.py:loaders")))
        torch.rand(1)
    assert outcomes[0] == outcomes[1]


def test_seeds_differ():
    assert trial.run(worlds.trial(0)).train_loss != trial.run(worlds.trial(1)).train_loss


def changes():
    """Every field of a trial and of its network, each changed alone."""
    texts = {"kind": "cnn", "norm": "batch", "activation": "silu", "init": "normal:0.1"}
    texts |= {"data": "fashion-mnist", "probe": "shift", "version": "0123"}
    texts |= {"optimizer": "adam", "weights": "centred"}

    def each(record):
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if not isinstance(value, Network):
                new = texts[field.name] if isinstance(value, str) else value + 1
                yield field.name, dataclasses.replace(record, **{field.name: new})

    base = worlds.trial()
    changed = dict(each(base))
    for name, network in each(base.network):
        changed[f"network {name}"] = dataclasses.replace(base, network=network)
    return changed


each_change = pytest.mark.parametrize("changed", changes().values(), ids=changes())


@each_change
def test_a_trial_that_differs_anywhere_has_another_key(changed):
    assert changed != worlds.trial()
    assert changed.key() != worlds.trial().key()


def test_another_process_gives_the_same_keys():
    ones = list(changes().values())
    keys = joblib.Parallel(n_jobs=2)(joblib.delayed(Trial.key)(one) for one in ones)
    assert keys == [one.key() for one in ones]


@each_change
def test_a_trial_comes_back_from_json(changed):
    values = json.loads(json.dumps(dataclasses.asdict(changed)))
    assert Trial.from_dict(values) == changed
    assert Trial.from_dict(values).key() == changed.key()


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(),
        Outcome(error="RuntimeError: no"),
        worlds.climbing(at=300),
        Outcome((0,), (None,), (0.1,), (0.2,), True, ((), (0.5, 1.5)), ((0.1,), (0.2,))),
    ],
)
def test_an_outcome_comes_back_from_json(outcome):
    values = json.loads(json.dumps(dataclasses.asdict(outcome), allow_nan=False))
    assert Outcome.from_dict(values) == outcome


@pytest.mark.parametrize("network", [NOISY, Network(activation="none such")])
def test_random_state_and_thread_count_are_given_back_also_on_failure(network):
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    try:
        row = runner.run_trial(worlds.trial(network=network))
        assert bool(row.outcome.error) == (network is not NOISY)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failed_trial_says_why_in_one_line():
    outcome = runner.run_trial(worlds.trial(data=users("fails"))).outcome
    assert outcome == Outcome(error=outcome.error)
    assert outcome.error.endswith("fails raised RuntimeError: no such disk")


@pytest.mark.parametrize("rate", [1e10, 1e30])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("probe", ["", "shift", "gradients"])
def test_divergence_is_recorded_and_every_number_stays_finite(rate, norm, probe):
    network = Network(width=8, depth=2, norm=norm)
    row = runner.run_trial(
        worlds.trial(rate=rate, steps=12, evaluations=12, network=network, probe=probe)
    )
    outcome = row.outcome
    assert row.to_line(), "what is kept is JSON, which has no NaN"
    assert not outcome.error
    assert outcome.diverged or norm == "batch" or rate < 1e30
    assert all(loss is None or math.isfinite(loss) for loss in outcome.train_loss)
    assert len(outcome.steps) == len(outcome.test) == len(outcome.validation)
    if outcome.diverged:
        assert outcome.steps[-1] < 12


def test_a_smaller_batch_to_normalize_over_changes_the_training_of_batch_norm_alone():
    def losses(norm, norm_batch):
        network = Network(width=8, depth=2, norm=norm, norm_batch=norm_batch)
        return trial.run(worlds.trial(network=network)).train_loss[1:]

    assert losses("none", 4) == losses("none", 0)
    assert losses("group", 4) == losses("group", 0)
    assert losses("batch", 60) == pytest.approx(losses("batch", 0), rel=1e-4)
    assert losses("batch", 4) != pytest.approx(losses("batch", 0), rel=1e-3)


@given(steps=st.integers(0, 300), evaluations=st.integers(1, 60))
def test_the_curve_has_the_start_and_the_end_and_is_even_between(steps, evaluations):
    points = trial._points(worlds.trial(steps=steps, evaluations=evaluations))
    assert points[0] == 0
    assert points[-1] == steps
    assert len(points) == 1 + min(steps, evaluations)
    gaps = [b - a for a, b in itertools.pairwise(points)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_an_untrained_network_is_measured_once():
    outcome = trial.run(worlds.trial(steps=0, probe="gradients", network=Network(depth=4)))
    assert outcome.steps == (0,)
    assert outcome.train_loss == (None,)
    assert [len(layers) for layers in outcome.gradients] == [4]


@given(n=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 3))
def test_no_example_comes_twice_in_an_epoch(n, size, seed):
    part = (torch.arange(n), torch.arange(n) + 100)
    drawn = batches.shuffled(part, size, seed)
    width = min(size, n)
    for _epoch in range(3):
        seen = [next(drawn) for _ in range(n // width)]
        examples = torch.cat([x for x, _ in seen])
        assert len(examples.unique()) == len(examples) == width * (n // width)
        assert all(torch.equal(y, x + 100) for x, y in seen)


def test_batches_are_shuffled_anew_by_epoch_and_seed():
    part = (torch.arange(30), torch.arange(30))
    one, other = batches.shuffled(part, 30, seed=0), batches.shuffled(part, 30, seed=1)
    first, second = next(one)[0], next(one)[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, next(other)[0])


def test_a_seed_draws_the_examples_it_learns_from(monkeypatch):
    parts, cut = [], batches.shuffled

    def watched(part, size, seed):
        parts.append(part)
        return cut(part, size, seed)

    monkeypatch.setattr(batches, "shuffled", watched)
    for seed in (0, 0, 1):
        trial.run(worlds.trial(seed, examples=50))
    same, again, other = (x for x, _ in parts)
    assert len(same) == len(other) == 50
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_network_learns_digits_in_a_short_budget(kind):
    network = Network(kind, norm="batch", width=8 if kind == "cnn" else 50)
    outcome = trial.run(worlds.trial(rate=0.3, steps=150, network=network, evaluations=1))
    assert outcome.test[0] < 0.3
    assert outcome.test[-1] > 0.8
    assert outcome.validation[-1] > 0.8
    assert outcome.train_loss[-1] < math.log(10)
