"""Whether following a function once shows all that it does: no state but what its caller sees.

A trace records operations on tensors and nothing else. Python that also enters contexts, catches
exceptions, reads globals that may change, or asks in which mode torch is would be lost in it or
frozen in it. Such functions are refused here by their bytecode, before they run.
"""

from __future__ import annotations

import builtins
import dis
import gc
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import lru_cache, partial
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    GenericAlias,
    MethodType,
    ModuleType,
    UnionType,
)
from typing import Any, NamedTuple

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

AMBIENT = frozenset({
    "default_rng", "get_autocast_dtype", "get_default_dtype", "get_rank", "get_world_size",
    "is_autocast_cpu_enabled", "is_autocast_enabled", "is_compiling", "is_dynamo_compiling",
    "is_exporting", "is_grad_enabled", "is_in_onnx_export", "is_inference_mode_enabled",
    "is_initialized", "manual_seed", "perf_counter", "seed", "set_autocast_enabled",
    "set_default_dtype", "set_grad_enabled", "time", "urandom",
})
"""Names that read or change the surroundings of a call. The random generators of Python and NumPy
need no mention: their functions are bound to an object from outside, which may change."""

TRUSTED = frozenset({
    "collections", "functools", "itertools", "livella", "math", "operator", "torch", "typing",
})
"""Packages whose code is not looked into, and whose constants stay."""
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

CATCHING = frozenset({"PUSH_EXC_INFO", "SETUP_FINALLY", "SETUP_WITH", "SETUP_ASYNC_WITH"})
STORING = frozenset({"DELETE_ATTR", "DELETE_GLOBAL", "STORE_ATTR", "STORE_GLOBAL"})


class Refused(Exception):  # noqa: N818  no error: the model then runs as written
    """What a module does cannot be told from following it once; the text says why."""


def watch(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call it, looking at every Python function that comes to be called before it runs.

    Raises:
        Refused: one of them does what a trace does not show.

    """
    before = sys.getprofile()
    # A profiler written in C is no function, and must be told to go on.
    restore = getattr(before, "enable", lambda: sys.setprofile(before))
    if before is not None and not callable(before) and not hasattr(before, "enable"):
        raise Refused("is being profiled in a way that could not be taken up again")
    collecting = gc.isenabled()
    gc.disable()  # a collection would call functions of others in between
    sys.setprofile(_Watch())
    try:
        return function(*args, **kwargs)
    finally:
        sys.setprofile(None)
        if collecting:
            gc.enable()
        restore()


class _Watch:
    """Looks at each function as it is entered; those written inside one share its variables."""

    def __init__(self) -> None:
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
        facts = _look_at(frame.f_code)
        yield from facts.refusals
        for chain in facts.globals:
            yield from _refuse_global(chain, frame)
        if frame.f_code not in self.inner:
            for name in frame.f_code.co_freevars:
                yield from _refuse_outer(name, frame.f_locals.get(name))
        self.inner.update(facts.inner)


def _package(frame: FrameType) -> str:
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


def is_lasting(value: Any) -> bool:
    """Whether it is code: a function, a class or a package, which nobody changes."""
    if isinstance(value, BuiltinFunctionType | MethodType):
        return isinstance(value.__self__, ModuleType | type | None)
    if isinstance(value, partial):
        return is_lasting(value.func) and not (value.args or value.keywords)
    return type(value).__module__ == "typing" or isinstance(
        value, type | FunctionType | ModuleType | GenericAlias | UnionType | Enum
    )


def _refuse_global(chain: tuple[str, ...], frame: FrameType) -> Iterator[str]:
    """Refuse what is read by `a.b.c` if it, or anything on the way to it, may change."""
    name, *attributes = chain
    if name not in frame.f_globals:
        if hasattr(builtins, name) and name not in BUILTINS:
            yield f"calls {name}()"
        return
    value = frame.f_globals[name]
    yield from _refuse_outer(name, value)
    for attribute in attributes:
        if _origin(value).partition(".")[0] in TRUSTED:
            return
        name, value = f"{name}.{attribute}", getattr(value, attribute, None)
        yield from _refuse_outer(name, value)


def _origin(value: Any) -> str:
    return str(getattr(value, "__name__" if isinstance(value, ModuleType) else "__module__", ""))


def _refuse_outer(name: str, value: Any) -> Iterator[str]:
    if not is_lasting(value):
        yield f"reads {name}, a variable from outside, which may change"


class _Facts(NamedTuple):
    refusals: tuple[str, ...]
    globals: tuple[tuple[str, ...], ...]
    """Names of globals read, each with the attributes read from it."""
    inner: tuple[CodeType, ...]


@lru_cache(maxsize=1024)
def _look_at(code: CodeType) -> _Facts:
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "NOP")]
    return _Facts(
        tuple(_refusals(code, steps)),
        tuple(dict.fromkeys(_globals(steps))),
        tuple(constant for constant in code.co_consts if isinstance(constant, CodeType)),
    )


def _refusals(code: CodeType, steps: list[dis.Instruction]) -> Iterator[str]:
    names = {step.opname for step in steps}
    if names & CATCHING:
        yield "enters a context or catches exceptions"
    if names & STORING:
        yield "stores where others can see it"
    if "IMPORT_NAME" in names:
        yield "imports"
    for name in sorted(AMBIENT.intersection(code.co_names)):
        yield f"asks for or changes the surroundings: {name}"
    assigned: set[str] = set()
    for index, step in enumerate(steps):
        tested = _tested(steps, index)
        if tested is not None and not _is_known(tested, assigned):
            yield "asks whether a computed value is None or another object"
        assigned.update(_locals(step, "STORE"))


def _globals(steps: list[dis.Instruction]) -> Iterator[tuple[str, ...]]:
    chain: tuple[str, ...] = ()
    for step in steps:
        if step.opname == "LOAD_GLOBAL":
            if chain:
                yield chain
            chain = (step.argval,)
        elif chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = (*chain, step.argval)
        elif chain:
            yield chain
            chain = ()
    if chain:
        yield chain


def _tested(steps: list[dis.Instruction], index: int) -> dis.Instruction | None:
    """Give what pushed the value that this step compares by identity, if it does."""
    step = steps[index]
    if step.opname.endswith(("IF_NONE", "IF_NOT_NONE")):
        return steps[index - 1]
    if step.opname == "IS_OP":
        return steps[index - 2 if steps[index - 1].opname == "LOAD_CONST" else index]
    return None


def _is_known(pushed: dis.Instruction, assigned: set[str]) -> bool:
    """Whether it is an argument as given, or an attribute; nothing computed on the way."""
    arguments = _locals(pushed, "LOAD")
    if arguments:
        return arguments[-1] not in assigned
    return pushed.opname == "LOAD_ATTR"


def _locals(step: dis.Instruction, kind: str) -> list[str]:
    """Name the local variables that a step loads or stores; some steps do two at once."""
    if "_FAST" not in step.opname:
        return []
    kinds = [word for word in step.opname.split("_") if word in ("LOAD", "STORE")]
    names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
    return [name for word, name in zip(kinds, names, strict=False) if word == kind]
