"""Where a row of numbers comes from: versions, commit, processor, date."""

from __future__ import annotations

import datetime
import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def of_run() -> dict[str, str]:
    """What is the same for all trials of a run, and the time now."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {**_of_machine(), "date": now.isoformat(timespec="seconds")}


@functools.lru_cache
def _of_machine() -> dict[str, str]:
    import torch

    return {
        "livella": metadata.version("livella"),
        "commit": _commit(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": "1",
    }


def _commit() -> str:
    """The commit of a source checkout, with "+" where files differ from it; empty elsewhere."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
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
