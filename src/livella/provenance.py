"""Where a row of numbers comes from: versions, commit, processor, date."""

from __future__ import annotations

import datetime
import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def of_run(threads: int) -> dict[str, str]:
    """What is the same for all rows of a run on so many threads, and the time now."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        **_of_machine(),
        "threads": str(threads),
        "date": now.isoformat(timespec="seconds"),
    }


def checkout() -> Path | None:
    """The source checkout this runs from, if it is one."""
    root = Path(__file__).parents[2]
    return root if (root / ".git").exists() else None


@functools.lru_cache
def _of_machine() -> dict[str, str]:
    import torch

    return {
        "livella": metadata.version("livella"),
        "commit": _commit(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "processor": _processor(),
    }


def _commit() -> str:
    """The commit of a source checkout, with "+" where files differ from it; empty elsewhere."""
    root = checkout()
    if root is None:
        return ""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
