"""Processes that hang or are killed fail their own test, show where they were, and are gone."""

import multiprocessing
import os
import signal
import time

import pytest
import torch.distributed as dist

from tests.processes import in_processes


def _names(rank, world):
    names = [None] * world
    dist.all_gather_object(names, os.getpid())
    return rank, names


def _hangs(rank, world):
    if rank == 1:
        time.sleep(3600)


def _is_killed(rank, world):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def _fails(rank, world):
    raise ValueError(f"rank {rank} of {world}")


def _same(folder):
    (one, names), (two, others) = in_processes(_names, 2, folder)
    assert (one, two) == (0, 1)
    assert names == others
    assert len({os.getpid(), *names}) == 3
    return names


@pytest.mark.parametrize(
    ("work", "patience", "told"),
    [(_hangs, 1, r"Timeout \(0:00:01\)"), (_is_killed, 240, "rank 1: -9")],
    ids=["hangs", "killed"],
)
def test_a_process_that_does_not_end_well_spoils_its_own_test_alone(tmp_path, work, patience, told):
    for name in ("before", "bad", "after"):
        (tmp_path / name).mkdir()
    _same(tmp_path / "before")
    others = set(multiprocessing.active_children())  # of other tests, which keep theirs
    with pytest.raises(RuntimeError, match=told):
        in_processes(work, 2, tmp_path / "bad", patience)
    assert set(multiprocessing.active_children()) <= others
    _same(tmp_path / "after")


def test_an_error_is_given_back_by_its_rank(tmp_path):
    wanted = ["ValueError: rank 0 of 2", "ValueError: rank 1 of 2"]
    assert in_processes(_fails, 2, tmp_path) == wanted


def test_no_process_is_left_behind(tmp_path):
    for name in _same(tmp_path):
        with pytest.raises(ProcessLookupError):
            os.kill(name, 0)
