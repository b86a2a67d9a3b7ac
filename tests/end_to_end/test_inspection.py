"""The page of an inspection in a real browser: names with markup stay text, and it fits a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser

from livella.diagnosis.records import Record
from livella.report import inspection_html
from tests.end_to_end import page as pages
from tests.report.inspections import COMMAND, HEALTHY, HOSTILE, LONG, MARKUP, SICK

pytestmark = pytest.mark.skipif(pages.chromium() is None, reason="no chromium is installed")


def written(folder: Path, record: Record) -> Path:
    path = folder / "page.html"
    path.write_text(inspection_html.render(record, HEALTHY, COMMAND), encoding="utf-8")
    return path


def test_names_with_markup_are_words(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    page.set_default_timeout(pages.PATIENCE)
    spoke = []
    page.on("dialog", lambda dialog: (spoke.append(dialog.message), dialog.dismiss()))
    page.goto(written(tmp_path, HOSTILE).as_uri())
    assert MARKUP in page.locator("body").inner_text()
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 0
    assert spoke == []
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_its_map_leads_to_the_layers(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(pages.PATIENCE)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(written(tmp_path, SICK).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".map a").nth(1).click()
    assert page.url.endswith("#layer-2")
    assert page.locator("#layer-2 svg").first.is_visible()
    colours = [
        page.locator(".map a").nth(k).evaluate("e => getComputedStyle(e).backgroundImage")
        for k in (0, 1)
    ]
    assert colours[0] != colours[1]
    assert said == []
    page.close()


def test_long_names_do_not_make_the_page_wider_than_a_phone(
    browser: Browser, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_default_timeout(pages.PATIENCE)
    page.goto(written(tmp_path, LONG).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
