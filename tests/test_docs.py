"""The generated pages say what the code says, and the README names every claim."""

import runpy
from pathlib import Path

from livella.study import CLAIMS

ROOT = Path(__file__).parents[1]


def test_claims_page_is_current():
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    assert (ROOT / "docs/claims.md").read_text() == generate["claims_page"](), (
        "docs/claims.md is out of date: run .venv/bin/python docs/generate.py"
    )


def test_checks_page_is_current():
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    assert (ROOT / "docs/checks.md").read_text() == generate["checks_page"](), (
        "docs/checks.md is out of date: run .venv/bin/python docs/generate.py"
    )


def test_readme_names_every_claim():
    readme = (ROOT / "README.md").read_text()
    assert [claim.name for claim in CLAIMS if f"`{claim.name}`" not in readme] == []
