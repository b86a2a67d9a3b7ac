"""What stays as it is while a model is used, and what tells of the surroundings of a call."""

from __future__ import annotations

from enum import Enum
from functools import partial
from types import (
    BuiltinFunctionType,
    FunctionType,
    GenericAlias,
    MethodType,
    ModuleType,
    UnionType,
)
from typing import Any

import torch

# fmt: off
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
    return is_namespace and package_of(value) not in TRUSTED | {"builtins"}


def is_ambient(value: Any) -> bool:
    """Whether it is called, under whatever name, like what tells or changes the surroundings."""
    named = issubclass(type(value), ModuleType | FunctionType | BuiltinFunctionType | MethodType)
    return named and not AMBIENT.isdisjoint(value.__name__.split("."))


def package_of(value: Any) -> str:
    """Name the package that a function or a class is of, or that a module is in."""
    name = getattr(value, "__name__" if isinstance(value, ModuleType) else "__module__", "")
    return str(name).partition(".")[0]
