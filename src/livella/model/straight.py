"""Whether following a function once shows all that it does: no state but what its caller sees.

A trace records operations on tensors and nothing else. Python that also enters contexts, catches
exceptions, reads globals that may change, or asks in which mode torch is would be lost in it or
frozen in it. Such functions are refused here by their bytecode, before they run.
"""

from __future__ import annotations

import builtins
import dis
import gc
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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

import torch

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
    "_C", "are_deterministic_algorithms_enabled", "backends", "current_accelerator",
    "current_device", "current_stream", "default_rng", "get_autocast_cpu_dtype",
    "get_autocast_dtype", "get_autocast_gpu_dtype", "get_default_device", "get_default_dtype",
    "get_deterministic_debug_mode", "get_float32_matmul_precision", "get_memory_info",
    "get_num_interop_threads", "get_num_threads", "get_rank", "get_rng_state", "get_worker_info",
    "get_world_size", "getpid", "initial_seed", "is_anomaly_check_nan_enabled",
    "is_anomaly_enabled", "is_autocast_cache_enabled", "is_autocast_cpu_enabled",
    "is_autocast_enabled", "is_compiling", "is_current_stream_capturing",
    "is_deterministic_algorithms_warn_only_enabled", "is_dynamo_compiling", "is_exporting",
    "is_fx_symbolic_tracing", "is_fx_tracing", "is_grad_enabled", "is_in_onnx_export",
    "is_inference_mode_enabled", "is_initialized", "is_multithreading_enabled",
    "is_view_replay_enabled", "is_warn_always_enabled", "manual_seed", "memory_allocated",
    "memory_reserved", "memory_stats", "monotonic", "monotonic_ns", "perf_counter",
    "perf_counter_ns", "process_time", "process_time_ns", "seed", "set_anomaly_enabled",
    "set_autocast_cache_enabled", "set_autocast_dtype", "set_autocast_enabled",
    "set_default_device", "set_default_dtype", "set_deterministic_debug_mode", "set_device",
    "set_float32_matmul_precision", "set_flush_denormal", "set_grad_enabled", "set_num_threads",
    "set_printoptions", "set_rng_state", "set_stream", "set_warn_always", "time", "time_ns",
    "urandom", "use_deterministic_algorithms",
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

UNTOLD = {
    frozenset({"PUSH_EXC_INFO", "SETUP_FINALLY", "SETUP_WITH", "SETUP_ASYNC_WITH"}): (
        "enters a context or catches exceptions"
    ),
    frozenset({"DELETE_ATTR", "DELETE_GLOBAL", "STORE_ATTR", "STORE_GLOBAL"}): (
        "stores where others can see it"
    ),
    frozenset({"IMPORT_NAME"}): "imports",
    frozenset({"MATCH_CLASS", "MATCH_KEYS", "MATCH_MAPPING", "MATCH_SEQUENCE"}): (
        "matches patterns, which no stand-in does"
    ),
}
"""Steps of bytecode that a trace does not tell of, and what they do."""

OPEN = frozenset({"__class__", "__dict__"})
"""Attributes that lead to state past whoever notes what is read. `super()` needs no name."""

CONSTANTS = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)


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
        facts = _look_at(frame.f_code)
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
            if not is_lasting(value) or _package_of(value) in TRUSTED:
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


def is_fixed(value: Any) -> bool:
    """Whether neither it nor anything that can be reached by it changes."""
    return is_constant(value) or (
        is_lasting(value) and not is_open(value) and not is_ambient(value)
    )


def is_constant(value: Any) -> bool:
    """Whether it is a plain value that cannot change in itself."""
    if type(value) in (tuple, frozenset, torch.Size):
        return all(map(is_constant, value))
    return value is None or value is ... or isinstance(value, Enum) or type(value) in CONSTANTS


def is_lasting(value: Any) -> bool:
    """Whether it is code: a function, a class or a package, which nobody changes."""
    kind = type(value)  # a stand-in would not say of which class it is
    if issubclass(kind, BuiltinFunctionType | MethodType):
        return isinstance(value.__self__, ModuleType | type | None)
    if issubclass(kind, partial):
        return is_lasting(value.func) and not (value.args or value.keywords)
    return kind.__module__ == "typing" or issubclass(
        kind, type | FunctionType | ModuleType | GenericAlias | UnionType | Enum
    )


def is_open(value: Any) -> bool:
    """Whether it is a class or a package whose attributes may change: one that is not trusted."""
    is_namespace = issubclass(type(value), type | ModuleType)
    return is_namespace and _package_of(value) not in TRUSTED | {"builtins"}


def is_ambient(value: Any) -> bool:
    """Whether it is called, under whatever name, like what tells or changes the surroundings."""
    named = issubclass(type(value), ModuleType | FunctionType | BuiltinFunctionType | MethodType)
    return named and not AMBIENT.isdisjoint(value.__name__.split("."))


def _package_of(value: Any) -> str:
    name = getattr(value, "__name__" if isinstance(value, ModuleType) else "__module__", "")
    return str(name).partition(".")[0]


class _Facts(NamedTuple):
    refusals: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]
    """Names of outer variables read, each with the attributes read from it."""
    inner: tuple[CodeType, ...]


@lru_cache(maxsize=1024)
def _look_at(code: CodeType) -> _Facts:
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "NOP")]
    return _Facts(
        tuple(_refusals(code, steps)),
        tuple(dict.fromkeys(_chains(steps))),
        tuple(constant for constant in code.co_consts if isinstance(constant, CodeType)),
    )


def _refusals(code: CodeType, steps: list[dis.Instruction]) -> Iterator[str]:
    names = {step.opname for step in steps}
    yield from (reason for codes, reason in UNTOLD.items() if names & codes)
    for name in sorted(OPEN.intersection((*code.co_names, *code.co_consts))):
        yield f"reads {name}, past whoever would notice a change"
    for name in sorted(AMBIENT.intersection(code.co_names)):
        yield f"asks for or changes the surroundings: {name}"
    assigned: set[str] = set()
    for index, step in enumerate(steps):
        tested = _tested(steps, index)
        if tested is not None and not _is_known(tested, assigned):
            yield "asks whether a computed value is None or another object"
        assigned.update(_locals(step, "STORE"))


def _chains(steps: list[dis.Instruction]) -> Iterator[tuple[str, ...]]:
    chain: tuple[str, ...] = ()
    for step in steps:
        if step.opname in ("LOAD_GLOBAL", "LOAD_DEREF"):
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
