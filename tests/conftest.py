"""What every test runs under: repeatable examples, one thread."""

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
