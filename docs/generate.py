"""Writes the pages of docs/ that are drawn from the code: `python docs/generate.py`."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from livella.diagnosis.checks import CHECKS, Check
from livella.diagnosis.remedies import REMEDIES
from livella.diagnosis.schema import schema
from livella.study import CLAIMS
from livella.study.claim import Claim, Scope

SCHEMA = Path(__file__).with_name("inspection.schema.json")
CHECKS_PAGE = Path(__file__).with_name("checks.md")
CLAIMS_PAGE = Path(__file__).with_name("claims.md")


def claims_page() -> str:
    """docs/claims.md: what each claim asks, how it is tried on the digits, and its limits."""
    head = "# The claims\n\nGenerated from `src/livella/study/claims/` by `docs/generate.py`.\n"
    return head + "".join(map(_section, CLAIMS))


def _section(claim: Claim) -> str:
    scope = Scope("digits", (1, 8, 8), None, instance_possible=True, seeds=tuple(range(5)))
    papers = "".join(f"- {paper.finding} ({paper.source})\n" for paper in claim.papers)
    return (
        f"\n## {claim.title} (`{claim.name}`)\n\n{claim.question}\n\n"
        f"**What the papers found**\n\n{papers}\n"
        f"**How it is tried on the digits**\n\n{claim.method(scope)}\n\n"
        f"**What would speak against it**\n\n{claim.against}\n"
    )


def checks_page() -> str:
    """docs/checks.md: what each check finds, why it is bad, its limits and its remedy."""
    head = (
        "# The checks\n\nGenerated from `src/livella/diagnosis/checks/` by `docs/generate.py`. "
        "Causes stand before what may come of them.\n"
    )
    remedies = "".join(
        f"| `{name}` | {remedy.safety.value} | {remedy.advice.replace('|', '')} |\n"
        for name, remedy in REMEDIES.items()
    )
    table = f"\n## The remedies\n\n| remedy | may change | what to do |\n|---|---|---|\n{remedies}"
    return head + "".join(map(_check, CHECKS)) + table


def _check(check: Check) -> str:
    return f"\n## `{check.__name__}`\n\n{inspect.getdoc(check)}\n"


if __name__ == "__main__":
    CHECKS_PAGE.write_text(checks_page())
    SCHEMA.write_text(json.dumps(schema(), indent=2) + "\n")
    CLAIMS_PAGE.write_text(claims_page())
