"""The schema describes what an inspection writes, and nothing else."""

import json
from pathlib import Path

import pytest

from livella.diagnosis.schema import schema
from livella.report import files
from tests.report.inspections import DEEP, HEALTHY, HOSTILE, IGNORING, SICK, STORED

TYPES = {
    "string": str, "boolean": bool, "integer": int, "number": (int, float), "null": type(None),
    "array": list, "object": dict,
}  # fmt: skip


def fits(value, rule):
    """Whether a value is as a schema of ours says: the words that it uses, and no others."""
    if rule is False:
        return False
    if "anyOf" in rule:
        return any(fits(value, each) for each in rule["anyOf"])
    if "enum" in rule:
        return value in rule["enum"]
    kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    if not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return False
    if isinstance(value, list):
        first = rule.get("prefixItems", [])
        rest = [rule["items"]] * (len(value) - len(first))
        enough = len(value) >= rule.get("minItems", 0)
        return enough and all(map(fits, value, [*first, *rest]))
    if isinstance(value, dict):
        named = rule.get("properties", {})
        others = rule["additionalProperties"]
        return set(rule.get("required", ())) <= set(value) and all(
            fits(each, named.get(name, others)) for name, each in value.items()
        )
    return True


@pytest.mark.parametrize("record", [HEALTHY, SICK, HOSTILE, STORED, DEEP, IGNORING])
def test_a_record_fits(record):
    assert fits(json.loads(files.record(record.to_dict())), schema())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.pop("findings"),
        lambda r: r.update(more=1),
        lambda r: r["findings"][0].update(level="awful"),
        lambda r: r["seen"]["layers"][0].update(name=3),
        lambda r: r["seen"]["gap"].update(accuracy=[0.5, 0.5]),
        lambda r: r["seen"]["gap"]["score"].pop("batch"),
        lambda r: r["findings"][0].update(because=None),
    ],
)
def test_another_does_not(spoil):
    values = json.loads(files.record(SICK.to_dict()))
    spoil(values)
    assert not fits(values, schema())


def test_the_schema_on_disk_is_current():
    path = Path(__file__).parents[2] / "docs/inspection.schema.json"
    assert json.loads(path.read_text()) == schema(), "run .venv/bin/python docs/generate.py"
