"""Which tests are run again on the reference path."""

import json

import pytest
import torch

from livella import native
from tests.reached import CACHED

SUITE = """
import pytest, torch, livella
from livella.functional import batch_norm, contributions

X = torch.ones(4, 3)

def step(**options):
    return batch_norm(X, None, None, training=True, **options)

@pytest.fixture(scope="module")
def trained():
    return step()

def test_first_with_a_fixture(trained): pass
def test_second_with_a_fixture(trained): pass
def test_kernels(): step()
def test_mask(): step(mask=torch.ones(4, dtype=torch.bool))
def test_compiler(): torch.compile(torch.sin)
def test_measuring(): contributions(X, torch.ones(3).double())
def test_of_torch(): torch.nn.BatchNorm1d(3)(X)
"""
REACH = [
    "test_compiler", "test_first_with_a_fixture", "test_kernels", "test_measuring",
    "test_second_with_a_fixture",
]  # fmt: skip


@pytest.fixture
def run(pytester, monkeypatch):
    """Run such a suite; gives how its tests ended, and pytest's exit code."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    pytester.makepyfile(test_suite=SUITE)

    def run(*words):
        ran = pytester.runpytest_inprocess("-p", "tests.reached", "-p", "no:xdist", *words)
        return ran.parseoutcomes(), ran.ret

    return run


def noted(pytester):
    cached = json.loads((pytester.path / ".pytest_cache/v" / CACHED).read_text())
    return [name.removeprefix("test_suite.py::") for name in cached]


@pytest.mark.skipif(not native.loaded, reason="the kernels are not loaded here")
def test_those_that_reach_the_kernels_run_again_and_no_others(run, pytester):
    assert run() == ({"passed": 7}, 0)
    assert noted(pytester) == REACH
    assert run("--reached") == ({"passed": 5, "deselected": 2}, 0)
    run("-k", "test_kernels or test_mask")
    assert noted(pytester) == REACH, "what did not run is known from before"


@pytest.mark.skipif(not native.loaded, reason="the kernels are not loaded here")
def test_on_the_reference_path_nothing_is_noted(run, pytester, monkeypatch):
    run()
    monkeypatch.setattr(native, "loaded", False)
    assert run("--reached") == ({"passed": 5, "deselected": 2}, 0)
    assert noted(pytester) == REACH


def test_without_a_run_before_it_says_what_to_do(pytester):
    ran = pytester.runpytest_inprocess("-p", "tests.reached", "--reached")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines("*run the suite first*")


def test_after_a_run_on_the_reference_path_nothing_is_left_to_run(run, monkeypatch):
    monkeypatch.setattr(native, "loaded", False)
    run()
    assert run("--reached") == ({"deselected": 7}, 0)
