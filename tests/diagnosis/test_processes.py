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
