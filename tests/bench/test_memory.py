"""Used memory has no page faults, fresh memory one for each page."""

import gc
import resource

import pytest
import torch

from livella.bench import memory
from livella.bench.measure import page_faults

PAGES = 2048
glibc = pytest.mark.skipif(memory.kinds() == (memory.UNTOLD,), reason="needs glibc")


def faults_of(kind, calls=12):
    """Page faults of each call that makes a result of so many pages."""
    x = torch.ones(PAGES * resource.getpagesize() // 4)
    with memory.of_kind(kind) as renew:
        torch.neg(x)
        counts = []
        for _ in range(calls):
            if renew:
                renew()
            before = page_faults()
            torch.neg(x)
            counts.append(page_faults() - before)
    return counts


@glibc
def test_used_memory_is_given_out_again():
    gc.collect()
    settled = faults_of(memory.REUSED)[-4:]  # the heap may try some places before
    assert max(settled) < PAGES / 20


@glibc
def test_fresh_memory_faults_at_every_call_also_after_memory_was_used():
    huge = 512  # of the pages at least, where the system gives huge ones
    for _ in range(2):
        faults_of(memory.REUSED)
        assert min(faults_of(memory.FRESH)) > PAGES / huge


@glibc
def test_both_kinds_are_measured_in_this_order():
    assert memory.kinds() == (memory.REUSED, memory.FRESH)


def test_without_glibc_memory_is_as_it_comes(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    assert memory.kinds() == (memory.UNTOLD,)
    with memory.of_kind(memory.UNTOLD) as renew:
        assert renew is None


@glibc
def test_the_initial_thresholds_return_after_a_failure(monkeypatch):
    chosen = []
    monkeypatch.setattr(memory, "_set", lambda libc, options: chosen.append(options))
    with pytest.raises(RuntimeError), memory.of_kind(memory.REUSED):
        raise RuntimeError
    assert chosen == [memory._OPTIONS[memory.REUSED], memory._DEFAULTS]
