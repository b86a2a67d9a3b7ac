"""A user's model, weights, data, loss, forward and labels, by name: `module:function`, files."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from livella.diagnosis.scoring import Loss, Target
from livella.model import given
from livella.model.feeding import Forward
from livella.study import sources

NESTED = ("state_dict", "model_state_dict", "model", "net", "ema")
"""Where checkpoints keep the weights among other things."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers put before every name."""


class LoadError(ValueError):
    """A model, its weights or its data cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Account:
    """What became of a checkpoint's entries.

    Attributes:
        loaded: how many found their place.
        missing: what the model has and the checkpoint has not.
        unexpected: what the checkpoint has and the model has not.

    """

    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in a line."""
        told = [f"{self.loaded} tensors loaded"]
        for names, what in ((self.missing, "missing"), (self.unexpected, "unexpected")):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                told.append(f"{len(names)} {what} ({', '.join(names[:3])}{more})")
        return "; ".join(told)


def model_of(spec: str) -> nn.Module:
    """Call the user's function.

    Raises:
        LoadError: it gives no module.
        StudyError: it is not there, or fails.

    """
    model = sources.call(spec, "a torch.nn.Module")
    if not isinstance(model, nn.Module):
        raise LoadError(f"{spec} returned a {type(model).__name__}: expected a torch.nn.Module")
    return model


def batches_of(spec: str) -> Iterable[Any]:
    """Call the user's function for a loader; of several, (train, …, test), the first is taken.

    Raises:
        LoadError: it gives nothing that can be read, or what can be read only once.
        StudyError: it is not there, or fails.

    """
    found = sources.call(spec, "a loader of batches")
    if isinstance(found, tuple) and found and not isinstance(found[0], Tensor):
        found = found[0]
    if isinstance(found, Iterator):
        raise LoadError(f"{spec} returned an iterator, which can be read once: return a loader")
    if not isinstance(found, Iterable):
        raise LoadError(f"{spec} returned a {type(found).__name__}: expected a loader of batches")
    return found


def loss_of(spec: str) -> Loss:
    """Find the user's loss(output, batch); it is not called.

    Raises:
        LoadError: it is called otherwise.
        StudyError: it is not there.

    """
    loss: Any = sources.load_function(spec, "the loss of (output, batch), a scalar")
    try:
        given.check_loss(loss, f"--loss {spec}")
    except TypeError as error:
        raise LoadError(str(error)) from error
    return loss  # type: ignore[no-any-return]


def forward_of(spec: str) -> Forward:
    """Find the user's forward(model, batch); it is not called.

    Raises:
        StudyError: it is not there.

    """
    forward: Any = sources.load_function(spec, "the output for (model, batch)")
    return forward  # type: ignore[no-any-return]


def target_of(text: str) -> Target:
    """Read where labels are: "none", an index, a function of the batch by name, else a key.

    Raises:
        StudyError: a function that is not there.

    """
    if text.lower() == "none":
        return None
    if text.removeprefix("-").isdecimal():
        return int(text)
    if ":" in text:
        function: Any = sources.load_function(text, "the labels of a batch")
        return function  # type: ignore[no-any-return]
    return text


@contextmanager
def failures_told(what: str) -> Iterator[None]:
    """Make what a user's model or loader raises an error that says so.

    Raises:
        LoadError: anything went wrong.

    """
    try:
        yield
    except Exception as error:
        raise LoadError(f"{what}: {sources.in_words(error)}") from error


def load_weights(model: nn.Module, file: Path) -> Account:
    """Load safetensors, or a checkpoint of tensors alone, into a model.

    No code of the file's is run. Names are matched as they are, then without the prefixes of
    wrappers. What is missing or unexpected is told, not refused, as long as anything fits.

    Raises:
        LoadError: the file is not there, damaged, holds code, or has tensors of other shapes;
            nothing fits. The model is then as before.

    """
    tensors = _unwrapped(_read(file), model)
    own = model.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in own}
    wrong = [
        f"{name}: the file has {tuple(value.shape)}, the model {tuple(own[name].shape)}"
        for name, value in fitting.items()
        if value.shape != own[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise LoadError(f"{file} is of another model: {'; '.join(wrong[:3])}{more}")
    if not fitting:
        has = ", ".join(list(tensors)[:3]) or "no tensor"
        raise LoadError(
            f"{file} fits nothing of the model: it has {has}, the model {', '.join(list(own)[:3])}"
        )
    model.load_state_dict(fitting, strict=False)
    missing = tuple(name for name in own if name not in fitting)
    return Account(len(fitting), missing, tuple(n for n in tensors if n not in own))


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise LoadError(f"no file {str(file)!r} (looked in {Path.cwd()})")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise LoadError(f"{file} cannot be read as safetensors: {error}") from error
    try:
        with warnings.catch_warnings():  # of a protocol that it then refuses
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"{file} holds more than tensors, or is damaged, and was not opened, as that could run "
            "its code: save model.state_dict(), best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise LoadError(f"{file} cannot be read: {sources.in_words(error)}") from error
    return _tensors(file, found)


def _tensors(file: Path, found: object) -> dict[str, Tensor]:
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping):
        raise LoadError(f"{file} holds a {type(found).__name__}: expected a state_dict")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def _unwrapped(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    own = model.state_dict().keys()
    for prefix in PREFIXES:
        shorter = {name.removeprefix(prefix): value for name, value in tensors.items()}
        if len(own & shorter.keys()) > len(own & tensors.keys()):
            tensors = shorter
    return tensors
