"""Writes the pages of docs/ that are drawn from the code: `python docs/generate.py`."""

from __future__ import annotations

from pathlib import Path

from livella.study import CLAIMS
from livella.study.claim import Claim, Scope

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


if __name__ == "__main__":
    CLAIMS_PAGE.write_text(claims_page())
