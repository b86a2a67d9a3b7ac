"""What a report's page must do in a real browser, whichever study made it.

A page is opened from disk with the network off and used as a reader does. Each check
takes an open page and the study it shows; they may follow each other, in the order of `CHECKS`, on
one page, which is a large one to open.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from livella.study.results import Figure, StudyResult

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
PATIENCE = 300_000.0
"""Milliseconds after which what never comes fails the test: on a busy machine all takes long."""
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def chromium() -> str | None:
    """The path of an installed browser, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def browsing() -> Iterator[Browser]:
    """A headless browser.

    Raises:
        FileNotFoundError: If none is installed.
    """
    path = chromium()
    if path is None:
        raise FileNotFoundError("no chromium, chromium-browser or google-chrome on the PATH")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, **options: Any) -> Iterator[Page]:
    """The page from disk, with the network off; in the end it must have had no complaint."""
    context = browser.new_context(offline=True, **({"viewport": DESKTOP} | options))
    complaints: list[str] = []

    def gate(route: Route) -> None:
        if route.request.url.split("#")[0] == path.as_uri():
            route.continue_()
        else:
            complaints.append(f"asked for {route.request.url[:200]}")
            route.abort()

    context.set_default_timeout(PATIENCE)
    context.route("**/*", gate)
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(f"page error: {error}"))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None,
    )
    page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert complaints == []


def check_page(browser: Browser, path: Path, result: StudyResult) -> None:
    """The checks of what differs from study to study, on the page at this path."""
    with opened(browser, path) as page:
        for check in OF_A_STUDY:
            check(page, result)
    with opened(browser, path, viewport=PHONE, has_touch=True) as page:
        fits_a_phone(page, result)


def says_everything(page: Page, result: StudyResult) -> None:
    """Every claim has its section with its findings, verdicts, papers and plots."""
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.locator("section.claim")).to_have_count(len(result.claims))
    expect(page.locator(".glance > li")).to_have_count(len(result.claims))
    for index, claim in enumerate(result.claims):
        section = page.locator("section.claim").nth(index)
        expect(section.get_by_role("heading", level=2)).to_have_text(claim.title)
        expect(section.locator(".verdict")).to_contain_text(
            [finding.verdict.value for finding in claim.findings]
        )
        expect(section.locator(".finding h4")).to_have_text(
            [finding.question for finding in claim.findings]
        )
        expect(section.locator(".papers cite")).to_have_text([p.source for p in claim.papers])
        expect(section.locator(".plot")).to_have_count(len(claim.figures))


def leads_to_every_claim(page: Page, result: StudyResult) -> None:
    """The navigation, and the verdicts at a glance, jump to the claims; the keyboard can skip."""
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the verdicts")).to_be_focused()
    for links in (page.locator(".claims-nav a"), page.locator(".glance h3 a")):
        for link in links.all():
            link.click()
            target = page.locator(str(link.get_attribute("href")))
            expect(target.get_by_role("heading", level=2)).to_be_in_viewport()


def draws_every_plot(page: Page, result: StudyResult) -> None:
    """Each plot is drawn when it comes into view, hides and shows its series, and tells values."""
    for plot, figure in _plots(page, result):
        _drawn(plot, "light")
        for button in plot.locator("xpath=..").locator(".legend button").all():
            _hides_and_shows(plot, button, figure)
        _tells_its_values(page, plot)


def opens_the_data(page: Page, result: StudyResult) -> None:
    """Below each plot its data open as a table, with a column for each series."""
    for plot, figure in _plots(page, result):
        details = plot.locator("xpath=..").locator("details")
        expect(details.locator("table")).to_be_hidden()
        details.locator("summary").click()
        expect(details.locator("table")).to_be_visible()
        expect(details.locator("thead th")).to_have_count(1 + len(figure.series))
        places = {place for series in figure.series for place in series.x}
        expect(details.locator("tbody tr")).to_have_count(len(places))


def turns_dark(page: Page, result: StudyResult) -> None:
    """The page and its plots follow the reader's scheme while open; what was hidden stays so."""
    before = _background(page)
    plots = [plot for plot, _ in _plots(page, result)]
    for plot in plots:
        _drawn(plot, "light")
    inks = [_ink(plot) for plot in plots]
    buttons = page.locator(".legend button")
    if buttons.count():
        buttons.first.click()

    page.emulate_media(color_scheme="dark")

    for plot, ink in zip(plots, inks, strict=True):
        _drawn(plot, "dark")
        assert _ink(plot) != ink
    assert _background(page) != before
    if buttons.count():
        expect(buttons.first).to_have_attribute("aria-pressed", "false")
        hidden = page.locator(f"#{buttons.first.get_attribute('aria-controls')}")
        assert "legendonly" in _visible(hidden).values()
        buttons.first.click()
    page.emulate_media(color_scheme="light")


def prints_every_plot(page: Page, result: StudyResult) -> None:
    """On paper all plots are there and light, also those never scrolled to on a dark screen."""
    page.emulate_media(color_scheme="dark", media="print")
    for plot in page.locator(".plot").all():
        expect(plot).to_have_attribute("data-drawn", "light")
    assert page.pdf(format="A4")[:5] == b"%PDF-"
    page.emulate_media(color_scheme="dark", media="screen")
    for plot in page.locator(".plot").all():
        _drawn(plot, "dark")
        width = plot.evaluate("plot => plot.clientWidth")
        expect(plot.locator(".main-svg").first).to_have_js_property("clientWidth", width)
    page.emulate_media(color_scheme="light")


def fits_a_phone(page: Page, result: StudyResult) -> None:
    """At a phone's width nothing makes the page scroll sideways, however much is open."""
    for plot, _ in _plots(page, result):
        _drawn(plot, "light")
    for summary in page.locator("summary").all():
        summary.click()
    expect(page.locator("details:not([open])")).to_have_count(0)
    wide, room = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room


OF_A_STUDY: tuple[Callable[[Page, StudyResult], None], ...] = (
    says_everything,
    leads_to_every_claim,
    draws_every_plot,
    opens_the_data,
)
CHECKS = (*OF_A_STUDY, turns_dark, prints_every_plot)


def _plots(page: Page, result: StudyResult) -> Iterator[tuple[Locator, Figure]]:
    figures = [figure for claim in result.claims for figure in claim.figures]
    plots = page.locator(".plot")
    expect(plots).to_have_count(len(figures))
    for index, figure in enumerate(figures):
        plots.nth(index).scroll_into_view_if_needed()
        yield plots.nth(index), figure


def _drawn(plot: Locator, theme: str) -> None:
    expect(plot).to_have_attribute("data-drawn", theme)
    expect(plot.locator(".main-svg").first).to_be_visible()


def _visible(plot: Locator) -> dict[str, Any]:
    """For each trace, band or line, whether Plotly shows it."""
    shown: dict[str, Any] = plot.evaluate(
        "plot => Object.fromEntries(plot.data.map((t, i) => [`${i} ${t.legendgroup}`, t.visible]))"
    )
    return shown


def _hides_and_shows(plot: Locator, button: Locator, figure: Figure) -> None:
    """With the mouse off, with the keyboard on: a series goes with its band."""
    name = figure.series[int(str(button.get_attribute("data-series")))].name
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    own = [shown for trace, shown in _visible(plot).items() if trace.split(" ", 1)[1] == name]
    assert own == ["legendonly"] * len(own)
    button.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "true")
    assert set(_visible(plot).values()) == {True}


def _tells_its_values(page: Page, plot: Locator) -> None:
    plot.scroll_into_view_if_needed()
    marks = plot.locator(".scatterlayer path.point, .barlayer .point path")
    box = marks.first.bounding_box()
    assert box
    page.mouse.move(0, 0)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    expect(plot.locator(".hoverlayer text").first).to_be_visible()


def _background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def _ink(plot: Locator) -> str:
    return str(plot.evaluate("plot => plot.layout.font.color"))
