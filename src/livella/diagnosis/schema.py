"""The JSON Schema of an inspection's record, read off the records themselves."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

from livella.diagnosis import records

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: dict[object, list[str]] = {
    str: ["string"],
    bool: ["boolean"],
    int: ["integer"],
    float: ["number", "null"],  # NaN and infinity have no number in JSON
    type(None): ["null"],
}


def schema() -> dict[str, Any]:
    """Give the schema of what `Inspection.to_json` writes."""
    return {"$schema": DIALECT, "title": "An inspection by Livella", **_of(records.Record)}


def _of(kind: Any) -> dict[str, Any]:
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        named = {field.name: _of(hints[field.name]) for field in dataclasses.fields(kind)}
        return {"type": "object", "properties": named, "required": list(named),
                "additionalProperties": False}  # fmt: skip
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    return _of_many(typing.get_origin(kind), typing.get_args(kind))


def _of_many(origin: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(each) for each in arguments]}
    if origin is tuple and arguments[-1] is not Ellipsis:
        items = [_of(each) for each in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    assert origin is Mapping, origin
    return {"type": "object", "additionalProperties": _of(arguments[1])}
