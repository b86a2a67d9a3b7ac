"""Work done by several processes that find each other over gloo."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 240
"""Seconds for starting, working and ending, after which the processes show where they are."""


def in_processes(
    work: Callable[[int, int], Any], world: int, folder: Path, timeout: int = 60
) -> list[Any]:
    """Run work(rank, world) in gloo processes; gives what each returned, or its error."""
    started = torch.multiprocessing.start_processes(
        _child, (work, world, folder, timeout), nprocs=world, start_method="spawn", join=False
    )
    deadline = time.monotonic() + PATIENCE + 30
    while not started.join(timeout=5):
        if time.monotonic() > deadline:
            for process in started.processes:
                process.kill()
            shown = [(folder / f"{rank}.stacks").read_text() for rank in range(world)]
            raise TimeoutError("\n\n".join(["the processes did not end", *shown]))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _child(
    rank: int, work: Callable[[int, int], Any], world: int, folder: Path, timeout: int
) -> None:
    stacks = (folder / f"{rank}.stacks").open("w")
    faulthandler.dump_traceback_later(PATIENCE, file=stacks)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", timedelta(seconds=timeout), world, rank
    )
    try:
        result = work(rank, world)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    torch.save(result, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Not by way of the interpreter's end, where threads of gloo and autograd may still be at work.
    os._exit(0)
