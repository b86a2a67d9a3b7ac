"""Reads labelled sequences from .ts files, the text format of the UEA and UCR archives."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from livella.study.errors import StudyError

AEON = "1.6.0"
"""The version of the package `aeon` whose files are known here."""


def japanese_vowels() -> Path:
    """The folder of JapaneseVowels in the installed package `aeon`, which is not imported.

    Raises:
        StudyError: the package is not installed, or has no such files.
    """
    spec = importlib.util.find_spec("aeon")
    for place in (spec and spec.submodule_search_locations) or ():
        folder = Path(place) / "datasets" / "data" / "JapaneseVowels"
        if folder.is_dir():
            return folder
    raise StudyError(
        "japanese-vowels needs the files of the package aeon: "
        f"pip install --no-deps aeon=={AEON} (its dependencies are not needed)"
    )


def read(path: Path) -> tuple[list[Tensor], list[str]]:
    """The sequences of a .ts file, float32 of shape (C, T) each, and their labels as they stand.

    After lines of `#` comments and `@` headings and the line `@data`, each line is one example:
    its channels, each a list of numbers with commas, and last the label, with colons between.

    Raises:
        StudyError: no such file, or a line that is no example; it is named by its number.
    """
    try:
        lines = path.read_text("utf-8", errors="strict").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    sequences: list[Tensor] = []
    labels: list[str] = []
    for number, line in _examples(lines):
        try:
            sequence, label = _example(line)
            if sequences and len(sequence) != len(sequences[0]):
                raise ValueError(f"it has {len(sequence)} channels, not {len(sequences[0])}")
        except ValueError as error:
            raise StudyError(f"{path}, line {number} is no example: {error}") from error
        sequences.append(sequence)
        labels.append(label)
    if not sequences:
        raise StudyError(f"{path} is not a .ts file with examples: none stands below @data")
    return sequences, labels


def _examples(lines: list[str]) -> Iterator[tuple[int, str]]:
    """The lines below `@data` that are no comments, with their numbers."""
    below = False
    for number, line in enumerate(map(str.strip, lines), start=1):
        if below and line and not line.startswith("#"):
            yield number, line
        below = below or line.lower() == "@data"


def _example(line: str) -> tuple[Tensor, str]:
    *channels, label = line.split(":")
    if not channels or not label.strip():
        raise ValueError("expected channels and a label with colons between")
    values = [[float(value) for value in channel.split(",")] for channel in channels]
    lengths = {len(channel) for channel in values}
    if len(lengths) > 1:
        raise ValueError(f"its channels have {', '.join(map(str, sorted(lengths)))} values")
    sequence = torch.tensor(values, dtype=torch.float32)
    if not torch.isfinite(sequence).all():
        raise ValueError("it has NaN or infinity")
    return sequence, label.strip()


def pad(sequences: list[Tensor], length: int) -> Tensor:
    """(N, C, length), with NaN after the end of a sequence."""
    padded = torch.full((len(sequences), len(sequences[0]), length), torch.nan)
    for row, sequence in zip(padded, sequences, strict=True):
        row[:, : sequence.shape[1]] = sequence
    return padded


def lengths(x: Tensor) -> Tensor:
    """How many steps each of the sequences (N, C, T) has before its padding, int64 (N,)."""
    return x[:, 0].isfinite().sum(dim=1)
