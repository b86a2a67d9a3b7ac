"""Layers that differ among processes, or normalize small batches apart, are found by all."""

import torch
from torch import nn

import livella
from tests.processes import in_processes


def _inspected(rank, _world):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    model[1].running_mean += rank
    batches = [torch.randn(4, 4) for _ in range(4)]
    found = livella.inspect(model, batches, progress=False)
    return sorted((f.check, f.layer) for f in found.findings)


def test_processes_that_differ_are_told_of_by_all(tmp_path):
    for found in in_processes(_inspected, 2, tmp_path):
        assert ("unequal_processes", "1") in found
        assert ("unequal_processes", "0") not in found
        assert {("unsynchronized", "0"), ("unsynchronized", "1")} <= set(found)


def _repaired(rank, _world):
    """Only what the first process reads speaks for measuring."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    batches = [torch.randn(32, 4, generator=torch.Generator().manual_seed(k)) for k in range(8)]
    livella.estimate_population(model, batches, progress=False).apply()
    own = [5 + 3 * x for x in batches] if rank == 0 else batches
    done = livella.repair(model, own, progress=False)
    return sorted(done.applied), done.model[1].running_mean.tolist()


def test_processes_mend_together_what_one_of_them_finds(tmp_path):
    (first, mean), (second, other) = in_processes(_repaired, 2, tmp_path)
    assert "measure_statistics" in first
    assert first == second
    assert mean == other
