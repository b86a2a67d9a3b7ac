"""Finding the user's functions: `module:function` or `file.py:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from livella.study import request
from livella.study.errors import StudyError

Source = Callable[..., Any]


def load_function(spec: str, expected: str) -> Source:
    """The function that `spec` names; `expected` says in words what it is to return.

    Raises:
        StudyError: the file, module or function is not there, or its module fails on import.
    """
    place, name = request.place_of(spec, expected)
    module = _load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        functions = inspect.getmembers(module, inspect.isfunction)
        own = [n for n, f in functions if f.__module__ == module.__name__]
        raise StudyError(f"no function {name!r} in {place}: it has {', '.join(own) or 'none'}")
    return function  # type: ignore[no-any-return]


def call(spec: str, expected: str) -> Any:
    """Call the user's function; what it raises becomes a `StudyError` that names it."""
    function = load_function(spec, expected)
    try:
        return function()
    except Exception as error:
        raise StudyError(f"{spec} raised {in_words(error)}") from error


def _load_module(place: str) -> ModuleType:
    try:
        # What the user's file draws or seeds on import must not reach the first trial alone.
        with torch.random.fork_rng(devices=[]):
            return _from_file(Path(place)) if place.endswith(".py") else _by_name(place)
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"importing {place} raised {in_words(error)}") from error


def _from_file(path: Path) -> ModuleType:
    # Named by its text as well: a file edited during a session is another module.
    identity = str(path.resolve()).encode() + path.read_bytes()
    name = f"livella_user_{hashlib.sha256(identity).hexdigest()[:12]}"
    if name in sys.modules:  # --model and --data often name the same file
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StudyError(f"{str(path)!r} cannot be imported as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _see_folder(path.resolve().parent)
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _by_name(name: str) -> ModuleType:
    # What `python -m` would see: the folder one stands in comes first.
    try:
        _see_folder(Path.cwd())
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise
        raise StudyError(f"no module {name!r}: is it installed, or in {Path.cwd()}?") from error


def _see_folder(folder: Path) -> None:
    """Let the user's file import its neighbours, now and whenever it does so later."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def is_function(spec: str) -> bool:
    """Whether it names a function of the user's, and not data that the study knows."""
    return ":" in spec and not spec.startswith("idx:")


def digest(spec: str) -> str:
    """A short digest of the file in which a user's function stands, to notice that it changed.

    Of all files for a folder of IDX files; empty for what comes with the study. What a user's
    function reads or imports is not covered.
    """
    if spec.startswith("idx:"):
        contents = hashlib.sha256()
        for path in sorted(Path(spec.removeprefix("idx:")).glob("*-ubyte*")):
            contents.update(path.name.encode() + path.read_bytes())
        return contents.hexdigest()[:12]
    if not is_function(spec):
        return ""
    function = inspect.unwrap(load_function(spec, "a value"))
    if not hasattr(function, "__code__") and not inspect.isclass(function):  # a partial, say
        function = _load_module(spec.rpartition(":")[0])
    file = inspect.getsourcefile(function)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else ""


def version(data: str, model: str | None) -> str:
    """The digests of all that is the user's in a trial."""
    return " ".join(filter(None, (digest(spec) for spec in (data, model) if spec)))


def in_words(error: BaseException) -> str:
    """An exception on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
