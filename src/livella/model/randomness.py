"""Torch's random state, kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_kept() -> Iterator[None]:
    """Give torch's random state back at the end, that of the CPU and of every CUDA device."""
    started = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if started else []
    with torch.random.fork_rng(devices=devices):
        yield
