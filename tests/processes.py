"""Work done by several processes that find each other over gloo.

They are forked from a server that has loaded torch and livella, computed nothing and started no
thread: a process then costs tenths of a second. The server begins with the first use, with the
environment of that moment, and ends with the session.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 240
"""Seconds after which processes that still work hang: they show where, and end."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "pytest",
        "hypothesis",
        "torch.distributed",
        "torch._dynamo",
        "livella.nn",
        "livella.model",
        "livella.diagnosis",
    ]
)


def in_processes(
    work: Callable[[int, int], Any], world: int, folder: Path, patience: float = PATIENCE
) -> list[Any]:
    """Run work(rank, world) in gloo processes; gives what each returned, or its error."""
    processes = [
        _server.Process(target=_child, args=(work, rank, world, folder, patience))
        for rank in range(world)
    ]
    try:
        for process in processes:
            process.start()
        _wait(processes, patience + 30)
        if any(process.exitcode != 0 for process in processes):
            ends = [f"rank {k}: {p.exitcode}" for k, p in enumerate(processes)]
            shown = [path.read_text() for path in sorted(folder.glob("*.stacks"))]
            raise RuntimeError("\n".join([f"exit codes, None where it hung: {ends}", *shown]))
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _wait(processes: list[Any], patience: float) -> None:
    """Until all have ended, or one has failed: the others would wait for it."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not any(process.exitcode for process in processes):
        working = [process.sentinel for process in processes if process.exitcode is None]
        if not working:
            break
        wait(working, timeout=1)


def _child(
    work: Callable[[int, int], Any], rank: int, world: int, folder: Path, patience: float
) -> None:
    stacks = (folder / f"{rank}.stacks").open("w")
    faulthandler.enable(stacks)
    faulthandler.dump_traceback_later(patience, exit=True, file=stacks)
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    dist.init_process_group("gloo", meeting, timedelta(seconds=PATIENCE / 2), world, rank)
    try:
        result = work(rank, world)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    torch.save(result, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Not by way of the interpreter's end, where threads of gloo and autograd may still be at work.
    os._exit(0)
