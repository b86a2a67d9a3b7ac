"""What every test runs under: repeatable examples, one thread, a folder for what is compiled."""

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester", "tests.reached"]

# Derandomized: a failure in one run is a failure in all, and none comes and goes.
settings.register_profile(
    "livella",
    deadline=None,
    derandomize=True,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("livella")

torch.set_num_threads(1)
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no processes beside the tests' own

# Without kernels the suite is meant to run on the reference path: said here, or every process that
# a test starts would tell of it.
_package = importlib.util.find_spec("livella")
assert _package is not None
assert _package.origin is not None
if not Path(_package.origin).with_name("_kernels.so").exists():
    os.environ.setdefault("LIVELLA_KERNELS", "reference")


def pytest_configure(config: pytest.Config) -> None:
    """Give the compiler's files a folder that goes with the session; its processes share it."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        compiled = tempfile.TemporaryDirectory(prefix="livella-compiled-")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled.name
        config.add_cleanup(compiled.cleanup)
        config.add_cleanup(lambda: os.environ.pop("TORCHINDUCTOR_CACHE_DIR"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Draw the same in each test, whichever ran before it."""
    torch.manual_seed(0)
