"""The report's page in a real browser, opened from disk with the network off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Page

import livella
from livella import report
from livella.study import CLAIMS
from livella.study.results import StudyResult
from tests.end_to_end import page as pages
from tests.report.samples import study_result
from tests.study.worlds import users

pytestmark = pytest.mark.skipif(pages.chromium() is None, reason="no chromium is installed")

RESULT = study_result()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(RESULT, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(browser: Browser, path: Path) -> Iterator[Page]:
    with pages.opened(browser, path) as page:
        yield page


@pytest.mark.parametrize("check", pages.CHECKS, ids=lambda check: check.__name__)
def test_page(page: Page, check) -> None:
    check(page, RESULT)


def test_phone(browser: Browser, path: Path) -> None:
    with pages.opened(browser, path, viewport=pages.PHONE, has_touch=True) as page:
        pages.fits_a_phone(page, RESULT)


def test_a_page_without_claims(browser: Browser, tmp_path: Path) -> None:
    empty = StudyResult(data="data", model="model", seeds=3, claims=())

    with pages.opened(browser, report.write(empty, tmp_path)) as page:
        pages.says_everything(page, empty)


def test_the_page_of_a_real_study(browser: Browser, tmp_path: Path) -> None:
    """Of all claims, on data so small that a training takes a hundredth of a second."""
    result = livella.study(data=users("few"), seeds=1, steps=2, jobs=1, progress=False)
    assert [claim.name for claim in result.claims] == [claim.name for claim in CLAIMS]

    pages.check_page(browser, report.write(result, tmp_path), result)


@pytest.mark.parametrize(
    "spoiled",
    [
        "<img src='https://example.org/x.png'>",
        "<script>console.error('x')</script>",
        "<img src='beside.png'>",
    ],
)
def test_a_page_that_complains_does_not_pass(
    browser: Browser, tmp_path: Path, spoiled: str
) -> None:
    page = tmp_path / "spoiled.html"
    page.write_text(f"<!doctype html><title>x</title><link rel=icon href='data:,'>{spoiled}")

    with pytest.raises(AssertionError), pages.opened(browser, page) as opened:
        opened.wait_for_load_state("load")
