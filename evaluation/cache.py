"""What takes long is made once, and again when the text of what made it changes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
FOLDER = HERE.parent / "build" / "evaluation"


def digest(*parts: str) -> str:
    """A short name for texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def text_of(files: Iterable[Path]) -> str:
    """The texts of files, in the order of their names."""
    return "\0".join(path.read_text("utf-8") for path in sorted(files))


def kept(kind: str, key: str, made_by: tuple[str, ...], make: Callable[[], Any]) -> Any:
    """Give what `make` gives, from the file of an earlier run where there is one.

    Args:
        kind: the folder it is kept in.
        key: what it is made of.
        made_by: the files of this package whose text decides what is made.
        make: makes it: tensors, numbers, texts, and lists, tuples and dicts of them.

    """
    made = text_of(HERE / f"{name}.py" for name in made_by)
    path = FOLDER / kind / f"{digest(key, made, torch.__version__)}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    torch.save(value, beside)
    beside.replace(path)  # whole or not at all: another process may want the same
    return value
