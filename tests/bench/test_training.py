"""Whole training steps: the contenders train alike, and memory is that of a process alone."""

import shutil

import pytest
import torch
from torch.testing import assert_close

from livella.bench import training
from livella.bench.rows import Step
from livella.bench.training import Contender

SMALL = Step("mobilenet-v2", 2, 32)


def losses(monkeypatch, contender, steps=2):
    """The losses of some steps, on images large enough that rounding does not grow."""
    seen = []
    cross_entropy = torch.nn.functional.cross_entropy

    def recorded(logits, labels):
        seen.append(cross_entropy(logits, labels))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(training.F, "cross_entropy", recorded)
        call = training.build(Step("mobilenet-v2", 4, 64), contender)
        for _ in range(steps):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)  # for dropout
                call()
    return torch.stack(seen).detach()


def test_all_contenders_train_alike(monkeypatch):
    first, *others = (losses(monkeypatch, who) for who in training.contenders(compiled=False))
    assert len(others) == 3
    for other in others:
        assert_close(other[0], first[0], rtol=1e-4, atol=0)
        # A step later rounding has grown, to a fifth on one processor: this much on none.
        assert_close(other[1] - other[0], first[1] - first[0], rtol=0.5, atol=0)
    assert first[1] < first[0]


def test_building_leaves_the_random_state_alone():
    torch.manual_seed(5)
    training.build(SMALL, Contender("eager", "contiguous"))
    found = torch.rand(3)
    torch.manual_seed(5)
    assert_close(found, torch.rand(3), rtol=0, atol=0)


def test_rows_have_a_time_for_each_round_and_everyone_their_own(monkeypatch):
    monkeypatch.setattr(training, "peak_of", lambda step, contender: None)
    who = (Contender("eager", "contiguous"), Contender("eager", "channels_last"))
    rows = list(training.measure(SMALL, who, 2))
    assert [(row.contender, row.layout) for row in rows] == [(w.name, w.layout) for w in who]
    assert [len(row.seconds) for row in rows] == [2, 2]
    assert len({row.seconds for row in rows}) == 2


def test_memory_is_that_of_a_process_of_its_own():
    """It is far below what this process holds meanwhile."""
    ballast = torch.zeros(2**28)
    here = training.peak_so_far()
    peak = training.peak_of(SMALL, Contender("eager", "contiguous"))
    if here is None:
        pytest.skip("memory is not counted here")
    assert ballast.nbytes / 2**20 < here
    assert 100 < peak < here - 256


def test_a_process_that_fails_has_no_peak(monkeypatch):
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    assert training.peak_of(SMALL, Contender("eager", "contiguous")) is None


def test_quick_steps_are_smaller():
    for usual, quick in zip(training.steps(), training.steps(quick=True), strict=True):
        assert usual.network == quick.network
        assert (usual.batch, usual.size) == (16, 224)
        assert quick.size < usual.size
