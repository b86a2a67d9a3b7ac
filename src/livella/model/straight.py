"""Whether following a function once shows all that it does: no state but what its caller sees.

A trace records operations on tensors and nothing else. Python that also enters contexts, catches
exceptions, reads globals that may change, or asks in which mode torch is would be lost in it or
frozen in it. Such functions are refused here before they run: by their `bytecode`, by what they are
called with, and for what they read that is not `lasting`.
"""

from __future__ import annotations

import builtins
import gc
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

from livella.model.bytecode import look_at
from livella.model.lasting import TRUSTED, is_ambient, is_fixed, is_lasting, is_open, package_of

# fmt: off
BUILTINS = frozenset({
    "abs", "all", "any", "bool", "dict", "enumerate", "filter", "float", "frozenset", "getattr",
    "int", "isinstance", "iter", "len", "list", "map", "max", "min", "next", "range", "reversed",
    "round", "set", "slice", "sorted", "str", "sum", "super", "tuple", "zip",
    "AssertionError", "Exception", "IndexError", "KeyError", "NotImplementedError",
    "RuntimeError", "StopIteration", "TypeError", "ValueError",
})
"""Built-in names a followed function may use: their answers depend on their arguments alone. Not
`type`, `hasattr` or `callable`, to which a stand-in gives another answer than a tensor."""
# fmt: on

CHANGING = (
    "torch.amp",
    "torch.autograd",
    "torch.cpu.amp",
    "torch.cuda",
    "torch.random",
    "torch.utils._contextlib",
    "torch.utils.checkpoint",
)
"""Rooms of torch that change how operations run; a trace would not show it."""


class Refused(Exception):  # noqa: N818  no error: the model then runs as written
    """What a module does cannot be told from following it once; the text says why."""


@dataclass
class Outside:
    """What following came upon outside the modules, and what of it must stay as it is."""

    names: list[tuple[Mapping[str, Any], str, Any]] = field(default_factory=list)
    """In which namespace, which name, and the value: None for one of Python's own."""
    attributes: list[tuple[Any, str, Any]] = field(default_factory=list)
    """Of packages, classes and variables of enclosing functions."""
    functions: dict[CodeType, list[FunctionType]] = field(default_factory=dict)
    """Those that may come to be called, by their code: a frame does not name its function."""

    def meet(self, value: Any) -> None:
        """Keep a function to be known when it is called."""
        while isinstance(value, MethodType | partial | staticmethod | classmethod):
            value = value.func if isinstance(value, partial) else value.__func__
        if isinstance(value, FunctionType):
            functions = self.functions.setdefault(value.__code__, [])
            functions.extend([value] if value not in functions else [])


def watch(outside: Outside, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call it, looking at every Python function that comes to be called before it runs.

    Raises:
        Refused: one of them does what a trace does not show.

    """
    before = sys.getprofile()
    # A profiler written in C is no function, and must be told to go on.
    restore = getattr(before, "enable", lambda: sys.setprofile(before))
    if before is not None and not callable(before) and not hasattr(before, "enable"):
        raise Refused("is being profiled in a way that could not be taken up again")
    outside.meet(function)
    collecting = gc.isenabled()
    gc.disable()  # a collection would call functions of others in between
    sys.setprofile(_Watch(outside))
    try:
        return function(*args, **kwargs)
    finally:
        sys.setprofile(None)
        if collecting:
            gc.enable()
        restore()


class _Watch:
    """Looks at each function as it is entered; those written inside one share its variables."""

    def __init__(self, outside: Outside) -> None:
        self.outside = outside
        self.inner: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        refusal = next(self._refusals(frame), None)
        if refusal and not _is_importing(frame):
            raise Refused(f"{frame.f_code.co_name} {refusal}")

    def _refusals(self, frame: FrameType) -> Iterator[str]:
        if _package(frame) in TRUSTED:
            room = frame.f_globals["__name__"]
            if room.startswith(CHANGING):
                yield f"of {room} changes how operations run"
            return
        if _serves_the_trusted(frame):
            return
        facts = look_at(frame.f_code)
        yield from facts.refusals
        for chain in facts.chains:
            yield from self._refuse_chain(chain, frame)
        if frame.f_code not in self.inner:
            yield from self._refuse_function(frame)
        self.inner.update(facts.inner)

    def _refuse_function(self, frame: FrameType) -> Iterator[str]:
        """Refuse a function for what it brings along: arguments, defaults, outer variables."""
        arguments = _arguments(frame)
        if any(map(is_open, arguments)):
            yield "is given a class or a package, whose attributes may change"
        if arguments and frame.f_code not in self.outside.functions:
            self._meet_method(frame.f_code, type(arguments[0]))
        functions = self.outside.functions.get(frame.f_code)
        if not functions:
            yield "is called without having been read before"
        for function in functions or ():
            for value in (
                *(function.__defaults__ or ()),
                *(function.__kwdefaults__ or {}).values(),
            ):
                if not is_fixed(value):
                    yield f"has a {type(value).__name__} as a default, which may change"
            yield from self._refuse_outer_variables(function)

    def _refuse_outer_variables(self, function: FunctionType) -> Iterator[str]:
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            value = getattr(cell, "cell_contents", None)
            yield from self._refuse_outer(name, value)
            if name != "__class__":  # which is there for `super()`
                self.outside.attributes.append((cell, "cell_contents", value))

    def _meet_method(self, code: CodeType, kind: type) -> None:
        """Find the function in its class: special methods and those of `super()` are not read."""
        for base in kind.__mro__:
            for name, value in vars(base).items():
                method = value.fget if isinstance(value, property) else value
                method = getattr(method, "__func__", method)
                if isinstance(method, FunctionType) and method.__code__ is code:
                    self.outside.meet(method)
                    self.outside.names.append((vars(base), name, value))

    def _refuse_chain(self, chain: tuple[str, ...], frame: FrameType) -> Iterator[str]:
        """Refuse what is read by `a.b.c` if it, or anything on the way to it, may change."""
        name, *attributes = chain
        if name in frame.f_code.co_freevars:
            value = frame.f_locals.get(name)
        elif name in frame.f_globals:
            value = frame.f_globals[name]
            yield from self._refuse_outer(name, value)
            self.outside.names.append((frame.f_globals, name, value))
        else:
            if hasattr(builtins, name) and name not in BUILTINS:
                yield f"calls {name}()"
            self.outside.names.append((frame.f_globals, name, None))
            return
        yield from self._refuse_attributes(name, value, attributes)

    def _refuse_attributes(self, name: str, value: Any, attributes: list[str]) -> Iterator[str]:
        for attribute in attributes:
            if not is_lasting(value) or package_of(value) in TRUSTED:
                return
            owner, value = value, getattr(value, attribute, None)
            name = f"{name}.{attribute}"
            yield from self._refuse_outer(name, value)
            if not isinstance(value, MethodType):  # it is another object each time
                self.outside.attributes.append((owner, attribute, value))

    def _refuse_outer(self, name: str, value: Any) -> Iterator[str]:
        if not is_lasting(value):
            yield f"reads {name}, a variable from outside, which may change"
        if is_ambient(value):
            yield f"asks for or changes the surroundings: {value.__name__}"
        self.outside.meet(value)


def _arguments(frame: FrameType) -> list[Any]:
    code = frame.f_code
    more = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + more]
    return [frame.f_locals[name] for name in names if name in frame.f_locals]


def _package(frame: FrameType) -> str:
    if "_tuple_new" in frame.f_globals:  # a namedtuple is made, by code with globals of its own
        return "collections"
    name: str = frame.f_globals.get("__name__") or ""
    return name.partition(".")[0]


def _serves_the_trusted(frame: FrameType) -> bool:
    """Whether it is of the standard library, and torch came to call it."""
    caller: FrameType | None = frame
    while caller is not None and _package(caller) in sys.stdlib_module_names:
        caller = caller.f_back
    return caller is not frame and caller is not None and _package(caller) in TRUSTED


def _is_importing(frame: FrameType) -> bool:
    """Whether torch is importing a part of itself; nobody else's imports come this far."""
    above: FrameType | None = frame
    while above is not None and above.f_code is not watch.__code__:
        if _package(above) == "importlib":
            return True
        above = above.f_back
    return False
