"""The data of a study: digits, Fashion-MNIST, spoken vowels, or the user's own."""

from __future__ import annotations

import functools
import gzip
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livella.study import sources, timeseries
from livella.study.errors import StudyError

Part = tuple[Tensor, Tensor]
"""Examples, float32 of shape (n, *shape), and their labels, int64 of shape (n,)."""

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package `dataset-fashion-mnist` puts its files."""

LOADERS = "(train, test) or (train, validation, test) loaders of (examples, labels) batches"


@dataclass(frozen=True)
class Dataset:
    """Three parts that share no example: rates are chosen on validation, results read on test."""

    name: str
    train: Part
    validation: Part
    test: Part
    sequences: bool = False
    """Examples are sequences (C, T) of unequal lengths, with NaN after the end of each."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train[0].shape[1:])

    @property
    def classes(self) -> int:
        return 1 + max(int(y.max()) for _, y in (self.train, self.validation, self.test))

    def describe(self) -> str:
        sizes = " / ".join(f"{len(part[1]):,}" for part in (self.train, self.validation, self.test))
        shape = "×".join(map(str, self.shape))
        if self.sequences:
            steps = torch.cat([timeseries.lengths(x) for x, _ in (self.train, self.test)])
            shape = f"{steps.min()} to {steps.max()} steps of {self.shape[0]} channels"
        return (
            f"{self.name}: {sizes} examples (train / validation / test) of {shape}, "
            f"{self.classes} classes"
        )


def load(spec: str) -> Dataset:
    """Load `digits`, `fashion-mnist`, `japanese-vowels`, `idx:DIR`, or a user's `module:function`.

    Raises:
        StudyError: nothing of that name, files missing or damaged, an empty part, one class,
            NaN or infinity among the examples, labels that are not class numbers.
    """
    return _load(spec, sources.digest(spec))


@functools.lru_cache(maxsize=2)
def _load(spec: str, _digest: str) -> Dataset:
    if spec == "digits":
        dataset = _digits()
    elif spec == "fashion-mnist":
        dataset = _idx(FASHION_MNIST, "Fashion-MNIST")
    elif spec == "japanese-vowels":
        dataset = _japanese_vowels()
    elif spec.startswith("idx:"):
        folder = Path(spec.removeprefix("idx:"))
        dataset = _idx(folder, folder.name)
    elif sources.is_function(spec):
        dataset = _from_loaders(spec)
    else:
        raise StudyError(
            f"unknown data {spec!r}: expected digits, fashion-mnist, japanese-vowels, "
            "idx:DIR, module:function or file.py:function"
        )
    _check(dataset)
    return dataset


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)
    rest, test = _split((x, y), share=0.3)
    train, validation = _split(rest, share=0.2)
    return Dataset("digits", train, validation, test)


def _split(part: Part, share: float) -> tuple[Part, Part]:
    """The part shuffled, always the same way, and cut in two; the second takes the share."""
    x, y = part
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cut = len(x) - round(share * len(x))
    return (x[order[:cut]], y[order[:cut]]), (x[order[cut:]], y[order[cut:]])


def _idx(folder: Path, name: str) -> Dataset:
    if not folder.is_dir():
        raise StudyError(
            f"no folder {str(folder)!r} with IDX files: install the Debian package "
            "dataset-fashion-mnist, or name a folder with idx:DIR"
        )
    parts = [
        (
            _read_idx(folder, f"{kind}-images-idx3-ubyte"),
            _read_idx(folder, f"{kind}-labels-idx1-ubyte"),
        )
        for kind in ("train", "t10k")
    ]
    for images, labels in parts:
        if images.dim() != 3 or labels.shape != (len(images),):
            raise StudyError(
                f"{folder}: expected images (n, height, width) with n labels, "
                f"got {tuple(images.shape)} and {tuple(labels.shape)}"
            )
    scaled = [(x.unsqueeze(1).float() / 255, y.long()) for x, y in parts]
    train, validation = _split(scaled[0], share=1 / 6)
    return Dataset(name, train, validation, scaled[1])


def _read_idx(folder: Path, name: str) -> Tensor:
    """Read an IDX file of unsigned bytes: magic 0 0 8 rank, big-endian sizes, then the bytes."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise StudyError(f"no file {name} or {name}.gz in {str(folder)!r}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise StudyError(f"{path} is not an IDX file of unsigned bytes")
    sizes = struct.unpack_from(f">{raw[3]}I", raw, 4)
    body = torch.frombuffer(bytearray(raw), dtype=torch.uint8)[4 + 4 * raw[3] :]
    if body.numel() != torch.Size(sizes).numel():
        raise StudyError(f"{path} holds {body.numel()} values where its header says {sizes}")
    return body.reshape(sizes)


def _japanese_vowels() -> Dataset:
    """Nine speakers by their vowels: 12 coefficients a frame, 7 to 29 frames (Kudo et al. 1999)."""
    folder = timeseries.japanese_vowels()
    files = [timeseries.read(folder / f"JapaneseVowels_{kind}.ts") for kind in ("TRAIN", "TEST")]
    names = sorted({label for _, labels in files for label in labels})
    longest = max(sequence.shape[1] for sequences, _ in files for sequence in sequences)
    known, test = (
        (timeseries.pad(sequences, longest), torch.tensor([names.index(name) for name in labels]))
        for sequences, labels in files
    )
    train, validation = _split(known, share=0.2)
    return Dataset("JapaneseVowels", train, validation, test, sequences=True)


def _from_loaders(spec: str) -> Dataset:
    # Seeded, so that loaders that shuffle give every process the same order and split.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _read_loaders(spec, sources.call(spec, LOADERS))


def _read_loaders(spec: str, loaders: Any) -> Dataset:
    if (
        isinstance(loaders, Mapping)
        or not isinstance(loaders, Sequence)
        or len(loaders) not in (2, 3)
    ):
        raise StudyError(f"{spec} returned {_describe(loaders)}: expected {LOADERS}")
    names = ("train", "test") if len(loaders) == 2 else ("train", "validation", "test")
    parts = {name: _read(spec, name, loader) for name, loader in zip(names, loaders, strict=True)}
    if "validation" not in parts:
        parts["train"], parts["validation"] = _split(parts["train"], share=0.2)
    return Dataset(spec, parts["train"], parts["validation"], parts["test"])


def _read(spec: str, name: str, loader: Iterable[Any]) -> Part:
    """Go through a loader once; the study then cuts its own batches."""
    xs, ys = [], []
    where = f"the {name} loader of {spec}"
    try:
        for batch in loader:
            if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
                raise StudyError(f"{where} gave {_describe(batch)}: expected (examples, labels)")
            xs.append(torch.as_tensor(batch[0]).detach())
            ys.append(torch.as_tensor(batch[1]).detach())
        if not xs:
            raise StudyError(f"{where} is empty: expected (examples, labels) batches")
        x, y = torch.cat(xs), torch.cat(ys)
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"{where} failed: {sources.in_words(error)}") from error
    if y.is_floating_point() or y.is_complex() or y.shape != (len(x),):
        raise StudyError(
            f"{where} gave labels of shape {tuple(y.shape)} and type {y.dtype} for {len(x)} "
            "examples: expected one class number (an integer) each"
        )
    return x.float(), y.long()


def _check(dataset: Dataset) -> None:
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    for name, (x, y) in parts.items():
        where = f"the {name} part of {dataset.name}"
        if not len(x):
            raise StudyError(f"{where} is empty: the study needs examples to train and to judge on")
        if not dataset.sequences and not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).flatten(1).any(dim=1).sum())
            raise StudyError(
                f"{where} has NaN or infinity in {bad} of {len(x)} examples: clean them first"
            )
        if int(y.min()) < 0:
            raise StudyError(f"{where} has the label {int(y.min())}: expected class numbers from 0")
        if tuple(x.shape[1:]) != dataset.shape:
            raise StudyError(
                f"{where} has examples of shape {tuple(x.shape[1:])}, training has {dataset.shape}"
            )
    if len(dataset.train[1].unique()) < 2:
        raise StudyError(
            f"the train part of {dataset.name} has one class only: there is nothing to learn"
        )


def _describe(value: Any) -> str:
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, (Sequence, Mapping)) else f"a {kind}"
