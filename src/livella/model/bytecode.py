"""What a function's bytecode says of it before it runs."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import NamedTuple

from livella.model.lasting import AMBIENT

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


class Facts(NamedTuple):
    refusals: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]
    """Names of outer variables read, each with the attributes read from it."""
    inner: tuple[CodeType, ...]


@lru_cache(maxsize=1024)
def look_at(code: CodeType) -> Facts:
    """Read what a trace would not tell of, the outer variables read, and the functions inside."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "NOP")]
    return Facts(
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
