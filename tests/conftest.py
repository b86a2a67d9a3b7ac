"""What every test runs under: repeatable examples, one thread."""

import importlib.util
import os
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings

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

# Without kernels the suite is meant to run on the reference path: said here, or every process that
# a test starts would tell of it.
_package = importlib.util.find_spec("livella")
assert _package is not None
assert _package.origin is not None
if not Path(_package.origin).with_name("_kernels.so").exists():
    os.environ.setdefault("LIVELLA_KERNELS", "reference")
