"""Work done by several processes that find each other over gloo."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def in_processes(
    work: Callable[[int, int], Any], world: int, folder: Path, timeout: int = 60
) -> list[Any]:
    """Run work(rank, world) in gloo processes; gives what each returned, or its error."""
    torch.multiprocessing.start_processes(
        _child, (work, world, folder, timeout), nprocs=world, start_method="spawn"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _child(
    rank: int, work: Callable[[int, int], Any], world: int, folder: Path, timeout: int
) -> None:
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
