"""Which path runs, and what is said about it: each case in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import livella
from livella import native

PACKAGE = Path(livella.__file__).parent
BUILT = (PACKAGE / "_kernels.so").exists()
WORKS = """
import torch, livella.functional
from livella import native
x = torch.randn(8, 3)
y = livella.functional.batch_norm(x, None, None, training=True)
assert torch.allclose(y, torch.nn.functional.batch_norm(x, None, None, training=True), atol=1e-5)
print(native.path())
"""
# Livella decides when it is imported. For each case a child is forked that has torch, not livella.
FORKS = """
import json, os, sys, torch
for case, settings in json.load(sys.stdin).items():
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    for stream, name in (1, "out"), (2, "err"):
        os.dup2(os.open(f"{case}.{name}", os.O_CREAT | os.O_WRONLY), stream)
    os.environ.update(settings)
    sys.path[:0] = settings.get("PYTHONPATH", "").split(os.pathsep)
    torch.set_num_threads(1)
    try:
        exec(open("works.py").read(), {})
    except BaseException:
        sys.excepthook(*sys.exc_info())
    else:
        open(f"{case}.worked", "w").close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
"""
SETTINGS = ("LIVELLA_KERNELS", "LIVELLA_ISA", "LIVELLA_LIBRARY", "PYTHONPATH")
CASES = {
    "reference": {"LIVELLA_KERNELS": "reference"},
    "native": {"LIVELLA_KERNELS": "native"},
    "unknown": {"LIVELLA_KERNELS": "nonsense"},
    "portable": {"LIVELLA_KERNELS": "native", "LIVELLA_ISA": "portable"},
    "unknown set": {"LIVELLA_KERNELS": "auto", "LIVELLA_ISA": "nonsense"},
    "unknown set demanded": {"LIVELLA_KERNELS": "native", "LIVELLA_ISA": "nonsense"},
    "missing": {"LIVELLA_KERNELS": "auto", "PYTHONPATH": "without_kernels"},
    "missing demanded": {"LIVELLA_KERNELS": "native", "PYTHONPATH": "without_kernels"},
    "broken": {"LIVELLA_LIBRARY": "broken.so"},
    "broken demanded": {"LIVELLA_LIBRARY": "broken.so", "LIVELLA_KERNELS": "native"},
}
Answer = namedtuple("Answer", "worked out err")


def run(code, **options):
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept, capture_output=True, text=True, **options
    )


@pytest.fixture(scope="session")
def without_kernels(tmp_path_factory):
    """A folder, and in it `without_kernels`: the package where no compiler was found."""
    root = tmp_path_factory.mktemp("cases")
    ignored = shutil.ignore_patterns("*.so", "csrc", "__pycache__")
    shutil.copytree(PACKAGE, root / "without_kernels" / "livella", ignore=ignored)
    return root


@pytest.fixture(scope="session")
def answers(without_kernels):
    """What each case answered."""
    root = without_kernels
    (root / "broken.so").write_bytes(b"not a library")
    (root / "works.py").write_text(WORKS)
    forked = run(FORKS, input=json.dumps(CASES), cwd=root)
    assert forked.returncode == 0, forked.stderr
    return {
        case: Answer(
            (root / f"{case}.worked").exists(),
            *((root / f"{case}.{name}").read_text() for name in ("out", "err")),
        )
        for case in CASES
    }


def test_the_path_of_this_process_is_one_of_two():
    assert native.loaded == (native.missing is None)
    assert native.path().startswith("native (" if native.loaded else "reference (")


def test_a_process_without_settings_takes_the_kernels_where_they_are():
    found = run(WORKS)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("native (" if BUILT else "reference (")
    assert len(found.stderr.splitlines()) == (not BUILT)


def test_the_reference_can_be_asked_for(answers):
    found = answers["reference"]
    assert found.worked, found.err
    assert found.out.strip() == "reference (LIVELLA_KERNELS=reference)"
    assert found.err == "", "who asked for it need not be told"


def test_an_unknown_mode_is_refused(answers):
    found = answers["unknown"]
    assert not found.worked
    for part in ("ImportError", "LIVELLA_KERNELS", "'nonsense'", "auto, native, reference"):
        assert part in found.err


needs_kernels = pytest.mark.skipif(not BUILT, reason="the kernels were not built")


@needs_kernels
def test_the_kernels_can_be_asked_for(answers):
    found = answers["native"]
    assert found.worked, found.err
    assert found.out.startswith("native (")
    assert found.err == ""


@needs_kernels
def test_an_instruction_set_can_be_asked_for(answers):
    found = answers["portable"]
    assert found.worked, found.err
    assert found.out.strip() == "native (portable)"


@needs_kernels
@pytest.mark.parametrize("case", ["unknown set", "unknown set demanded"])
def test_an_unknown_instruction_set_is_refused(answers, case):
    found = answers[case]
    assert not found.worked
    for part in ("ImportError", "LIVELLA_ISA=nonsense", "avx512, avx2 or portable"):
        assert part in found.err


def test_missing_kernels_are_told_once_and_the_reference_runs(answers):
    found = answers["missing"]
    assert found.worked, found.err
    assert found.out.startswith("reference (the kernels cannot be used: they were not built")
    (line,) = found.err.splitlines()
    for part in ("livella", "not built", "slower reference path", "compiler", "LIVELLA_KERNELS"):
        assert part in line


def test_the_command_line_says_that_there_are_no_kernels(without_kernels):
    version = "import sys; sys.argv[1:] = ['--version']; from livella.cli import main; main()"
    shown = run(version, cwd=without_kernels / "without_kernels")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.endswith("kernels: not built\n")
    assert shown.stderr == "", "the path in use tells of it, and none is"


def test_missing_kernels_are_an_error_where_they_are_demanded(answers):
    found = answers["missing demanded"]
    assert not found.worked
    last = found.err.splitlines()[-1]
    for part in ("ImportError", "LIVELLA_KERNELS=native", "not built", "compiler"):
        assert part in last


def test_a_library_that_cannot_be_read_is_as_good_as_none(answers):
    found = answers["broken"]
    assert found.worked, found.err
    assert found.out.startswith("reference (the kernels cannot be used: ")
    assert len(found.err.splitlines()) == 1
    assert not answers["broken demanded"].worked
    assert "ImportError" in answers["broken demanded"].err
