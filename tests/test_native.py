"""Which path runs, and what is said about it: each case in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import livella
from livella import native

PACKAGE = Path(livella.__file__).parent
BATCH = "x = torch.randn(8, 3); y = livella.functional.batch_norm(x, None, None, training=True)"
WORKS = (
    "import torch, livella.functional; from livella import native\n"
    f"{BATCH}\n"
    "assert torch.allclose(y, torch.nn.functional.batch_norm(x, None, None, training=True), "
    "atol=1e-5)\n"
    "print(native.path())"
)
SETTINGS = ("LIVELLA_KERNELS", "LIVELLA_ISA", "LIVELLA_LIBRARY", "PYTHONPATH")


def run(code=WORKS, **settings):
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"OMP_NUM_THREADS": "1"} | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def without_kernels(tmp_path_factory):
    """The package as it is where no compiler was found: what PYTHONPATH has to be."""
    root = tmp_path_factory.mktemp("without_kernels")
    ignored = shutil.ignore_patterns("*.so", "csrc", "__pycache__")
    shutil.copytree(PACKAGE, root / "livella", ignore=ignored)
    return {"PYTHONPATH": str(root)}


def test_the_path_of_this_process_is_one_of_two():
    assert native.loaded == (native.missing is None)
    assert native.path().startswith("native (" if native.loaded else "reference (")


def test_the_reference_can_be_asked_for():
    result = run(LIVELLA_KERNELS="reference")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "reference (LIVELLA_KERNELS=reference)"
    assert result.stderr == "", "who asked for it need not be told"


def test_an_unknown_mode_is_refused():
    result = run(LIVELLA_KERNELS="nonsense")
    assert result.returncode != 0
    for part in ("ImportError", "LIVELLA_KERNELS", "'nonsense'", "auto, native, reference"):
        assert part in result.stderr


@pytest.mark.skipif(not native.loaded, reason="the kernels are not loaded here")
@pytest.mark.parametrize("mode", ["auto", "native"])
def test_the_kernels_are_taken_where_they_are(mode):
    result = run(LIVELLA_KERNELS=mode)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("native (")
    assert result.stderr == ""


@pytest.mark.skipif(not native.loaded, reason="the kernels are not loaded here")
def test_an_instruction_set_can_be_asked_for():
    result = run(LIVELLA_KERNELS="native", LIVELLA_ISA="portable")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "native (portable)"


@pytest.mark.skipif(not native.loaded, reason="the kernels are not loaded here")
@pytest.mark.parametrize("mode", ["auto", "native"])
def test_an_unknown_instruction_set_is_refused(mode):
    result = run(LIVELLA_KERNELS=mode, LIVELLA_ISA="nonsense")
    assert result.returncode != 0
    for part in ("ImportError", "LIVELLA_ISA=nonsense", "avx512, avx2 or portable"):
        assert part in result.stderr


def test_missing_kernels_are_told_once_and_the_reference_runs(without_kernels):
    result = run(LIVELLA_KERNELS="auto", **without_kernels)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("reference (the kernels cannot be used: they were not built")
    (line,) = result.stderr.splitlines()
    for part in ("livella", "not built", "slower reference path", "compiler", "LIVELLA_KERNELS"):
        assert part in line


def test_the_command_line_says_that_there_are_no_kernels(without_kernels):
    result = run("import sys; sys.argv[1:] = ['--version']; from livella.cli import main; main()",
                 **without_kernels)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("kernels: not built\n")
    assert result.stderr == "", "the path in use tells of it, and none is"


def test_missing_kernels_are_an_error_where_they_are_demanded(without_kernels):
    result = run(LIVELLA_KERNELS="native", **without_kernels)
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    for part in ("ImportError", "LIVELLA_KERNELS=native", "not built", "compiler"):
        assert part in last


def test_a_library_that_cannot_be_read_is_as_good_as_none(tmp_path):
    broken = tmp_path / "_kernels.so"
    broken.write_bytes(b"not a library")
    result = run(LIVELLA_LIBRARY=str(broken))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("reference (the kernels cannot be used: ")
    assert len(result.stderr.splitlines()) == 1
    assert run(LIVELLA_LIBRARY=str(broken), LIVELLA_KERNELS="native").returncode != 0
