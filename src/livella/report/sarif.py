"""Findings in the form that code hosts read: SARIF 2.1.0, the OASIS standard."""

from __future__ import annotations

import inspect
from typing import Any

from livella.diagnosis.records import Finding, Level, Record
from livella.report import files

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {Level.NOTE: "note", Level.WARNING: "warning", Level.ERROR: "error"}
_ACCEPTED = {"kind": "external", "justification": "ignored by --ignore, ignore= or [tool.livella]"}


def render(record: Record, file: str = "") -> str:
    """Give the findings as SARIF; `file` is where the model is defined.

    What is ignored is there too, suppressed, as the standard has it.
    """
    found = (*record.findings, *record.ignored)
    texts = {each.check: each.check for each in found} | dict(record.checks)
    driver = {
        "name": "livella",
        "version": record.provenance.get("livella", ""),
        "informationUri": "https://pypi.org/project/livella/",
        "rules": [_rule(name, text) for name, text in texts.items()],
    }
    rules = list(texts)
    results = [_result(record, each, rules, file) for each in record.findings]
    for each in record.ignored:
        results.append({**_result(record, each, rules, file), "suppressions": [_ACCEPTED]})
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
    return files.record({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]})


def _rule(name: str, text: str) -> dict[str, Any]:
    text = inspect.cleandoc(text)
    return {
        "id": name,
        "shortDescription": {"text": text.split("\n")[0]},
        "fullDescription": {"text": text},
    }


def _result(record: Record, finding: Finding, rules: list[str], file: str) -> dict[str, Any]:
    advice = record.remedies.get(finding.remedy)
    place: dict[str, Any] = {
        "logicalLocations": [
            {"fullyQualifiedName": finding.layer or record.seen.model, "kind": "member"}
        ]
    }
    if file:
        place["physicalLocation"] = {
            "artifactLocation": {"uri": file},
            "region": {"startLine": 1},
        }
    because = {"because": finding.because} if finding.because else {}
    # a check may call a figure of its own "share"
    numbers = {"numbers": dict(finding.numbers)} if finding.numbers else {}
    return {
        "ruleId": finding.check,
        "ruleIndex": rules.index(finding.check),
        "level": _LEVELS[finding.level],
        "message": {"text": " ".join([f"{finding.layer or 'The model'}: {finding.message}",
                                      *([] if advice is None else [advice.text])])},
        "locations": [place],
        "properties": {"share": finding.share, **because, **numbers},
    }  # fmt: skip
