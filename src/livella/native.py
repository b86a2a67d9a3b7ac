"""Loads the kernels, or says why not.

`LIVELLA_KERNELS` decides: `auto` (the default) takes the kernels where they were built and says
once where not, `native` fails without them, `reference` leaves them alone. `LIVELLA_ISA` forces an
instruction set: `avx512`, `avx2` or `portable`. `LIVELLA_LIBRARY` names another build of them.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

LIBRARY = Path(os.environ.get("LIVELLA_LIBRARY") or Path(__file__).with_name("_kernels.so"))
MODES = ("auto", "native", "reference")


def _load(mode: str) -> str | None:
    """Load the library and give none, or the reason why it is not used."""
    if mode not in MODES:
        raise ImportError(f"LIVELLA_KERNELS: expected one of {', '.join(MODES)}, got {mode!r}")
    if mode == "reference":
        return "LIVELLA_KERNELS=reference"
    try:
        if not LIBRARY.exists():
            raise ImportError("they were not built when the package was installed")
        torch.ops.load_library(str(LIBRARY))
    except (ImportError, OSError, RuntimeError) as error:
        advice = "Install a C++20 compiler (g++ or clang++) and install livella again"
        reason = f"the kernels cannot be used: {error.__cause__ or error}"
        if mode == "native":
            raise ImportError(f"LIVELLA_KERNELS=native, but {reason}. {advice}") from error
        logging.getLogger("livella").warning(
            "livella: %s; the slower reference path runs. %s, or set LIVELLA_KERNELS=reference "
            "to say that this is meant",
            reason,
            advice,
        )
        return reason
    try:
        torch.ops.livella.instruction_set()
    except RuntimeError as error:
        raise ImportError(f"LIVELLA_ISA={os.environ.get('LIVELLA_ISA')}: {error}") from error
    return None


missing: str | None = _load(os.environ.get("LIVELLA_KERNELS", "auto"))
"""Why the kernels are not used; none where they are."""

loaded = missing is None


def path() -> str:
    """Name the path in use: `native (avx512)`, for example, or `reference` and the reason."""
    if missing is not None:
        return f"reference ({missing})"
    return f"native ({torch.ops.livella.instruction_set()})"
