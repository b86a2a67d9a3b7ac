"""What `livella inspect` and `livella repair` are asked, in the words of the command line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livella.diagnosis import accepted
from livella.study import request
from livella.study.errors import StudyError

if TYPE_CHECKING:
    from torch import nn

_SOME_DATA = "FILE.py:FUNCTION"
"""Stands for the data of a repair where none were given."""
_MENDED = "mended.safetensors"


@dataclass(frozen=True)
class Asked:
    """The words of a command; torch is loaded only by `load`.

    Attributes:
        model: module:function or file.py:function, as all that follow but `target` and `ignore`.
        weights: a file to load into it.
        data: of training.
        deploy_data: met in use.
        loss: of an output and its batch.
        target: key, index, "none" or function of the labels in a batch.
        forward: that calls the model on a batch.
        ignore: what is accepted, beside the project's own list.

    """

    model: str
    weights: Path | None = None
    data: str | None = None
    deploy_data: str | None = None
    loss: str | None = None
    target: str | None = None
    forward: str | None = None
    ignore: tuple[str, ...] = ()

    def check(self, *written: Path | None) -> None:
        """Find what is wrong with the words themselves, and with the files to be written.

        Raises:
            StudyError: what was got, what was expected.

        """
        request.place_of(self.model, "a torch.nn.Module")
        for spec, expected in ((self.data, "a loader of batches"),
                               (self.deploy_data, "a loader of batches"),
                               (self.loss, "a loss"), (self.forward, "an output"),
                               (self.target if ":" in (self.target or "") else None, "labels"),
                               ):  # fmt: skip
            if spec is not None:
                request.place_of(spec, expected)
        if self.weights is not None and not self.weights.is_file():
            raise StudyError(f"no file {str(self.weights)!r} (looked in {Path.cwd()})")
        for path in filter(None, written):
            _can_be_written(path)
        try:
            accepted.check_names(self.accepted())
        except ValueError as error:
            raise StudyError(str(error)) from error

    def accepted(self) -> tuple[str, ...]:
        """Give what is ignored: of the command and of the project around the current folder."""
        return (*self.ignore, *accepted.of_project(Path.cwd()))

    def load(self) -> tuple[nn.Module, Iterable[Any] | None, dict[str, Any]]:
        """Give the model, without its weights, the batches, and the options of the call.

        Raises:
            LoadError: one of them cannot be used.
            StudyError: one of them is not there, or fails.

        """
        from livella.diagnosis import loading

        model = loading.model_of(self.model)
        batches = None if self.data is None else loading.batches_of(self.data)
        options: dict[str, Any] = {}
        if self.deploy_data is not None:
            options["deploy"] = loading.batches_of(self.deploy_data)
        if self.loss is not None:
            options["loss"] = loading.loss_of(self.loss)
        if self.target is not None:
            options["target"] = loading.target_of(self.target)
        if self.forward is not None:
            options["forward"] = loading.forward_of(self.forward)
        if self.accepted():
            options["ignore"] = self.accepted()
        return model, batches, options

    def repair(self) -> str:
        """Give the command that repairs what this one inspects."""
        return shlex.join(["livella", "repair", self.model, *self._options(), "--out", _MENDED])

    def _options(self) -> Iterator[str]:
        named = {
            "--weights": None if self.weights is None else str(self.weights),
            "--data": self.data or _SOME_DATA, "--deploy-data": self.deploy_data,
            "--loss": self.loss, "--target": self.target, "--forward": self.forward,
        }  # fmt: skip
        for name, said in named.items():
            yield from () if said is None else (name, said)
        for each in self.ignore:
            yield from ("--ignore", each)


def _can_be_written(path: Path) -> None:
    if path.is_dir():
        raise StudyError(f"{str(path)!r} is a folder: expected a file to write")
    if not path.parent.is_dir():
        raise StudyError(f"no folder {str(path.parent)!r} to write {path.name!r} in: make it first")
    if not os.access(path.parent, os.W_OK):
        raise StudyError(f"the folder {str(path.parent)!r} cannot be written to: choose another")
