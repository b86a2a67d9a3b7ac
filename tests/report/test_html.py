"""The page says everything, asks nothing of any server, and trusts no name."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from livella.report.html import render
from livella.study.results import StudyResult
from tests.report.samples import HOSTILE, study_result


class Page(HTMLParser):
    """The elements of a page with their attributes, its ids, and the texts of its scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._in: str | None = None
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in = None

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def having(self, attribute: str) -> list[str | None]:
        return [attrs[attribute] for _, attrs in self.elements if attribute in attrs]


@pytest.fixture(scope="module")
def source() -> str:
    return render(study_result())


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def plain(text: str) -> str:
    return " ".join(text.split())


def test_every_claim_verdict_and_number_is_there(page: Page) -> None:
    for claim in study_result().claims:
        for text in (claim.title, claim.question, claim.method, claim.against):
            assert plain(text) in page.text
        for finding in claim.findings:
            for text in (finding.question, finding.effect_name, finding.rule, finding.summary):
                assert plain(text) in page.text
        for paper in claim.papers:
            assert plain(paper.finding) in page.text
            assert plain(paper.source) in page.text
        for figure in claim.figures:
            assert plain(figure.text) in page.text
    assert page.text.count("✗ contradicted") == 2 * 2 + 1  # twice each, and in the tally
    assert "9.2× [7.1, 12.0]" in page.text
    assert "≥ 1,500 [1,500, ∞)" in page.text


def test_the_run_is_told(page: Page) -> None:
    result = study_result()

    for text in (result.data, result.model, *result.notes, *result.provenance.values()):
        assert plain(text) in page.text
    for claim in result.left_out:
        assert f"{claim.name} {claim.reason}" in page.text
    assert "268 run, 144 reused" in page.text


def test_links_lead_to_something_and_ids_are_unique(page: Page) -> None:
    ids = page.having("id")
    assert len(ids) == len(set(ids))

    for link in page.having("href"):
        assert link == "data:," or link.removeprefix("#") in ids
    for attribute in ("aria-labelledby", "aria-describedby", "aria-controls"):
        assert set(page.having(attribute)) <= set(ids)


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert page.having("src") == []
    assert {tag for tag, _ in page.elements} & {"img", "iframe", "object", "embed", "base"} == set()
    links = [attrs["href"] for tag, attrs in page.elements if tag == "link"]
    assert links == ["data:,"]


def test_the_style_loads_nothing(source: str) -> None:
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)

    assert style
    assert not re.search(r"url\(|@import|@font-face|https?:", style[1])


def test_only_the_pages_own_scripts_may_run(page: Page) -> None:
    policy = page.having("content")[0]
    data, *scripts = page.scripts

    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert json.loads(data)


def test_names_are_only_names(source: str, page: Page) -> None:
    assert page.text.count("<img src=x onerror=") > 10  # as text
    assert all(tag != "img" for tag, _ in page.elements)
    assert not any("onerror" in attrs for _, attrs in page.elements)
    assert source.lower().count("</script") == len(page.scripts) == 3


def test_the_drawings_are_the_records_in_both_themes(page: Page) -> None:
    drawings = json.loads(page.scripts[0])
    figures = [figure for claim in study_result().claims for figure in claim.figures]

    assert len(drawings) == len(figures)
    for themes, figure in zip(drawings.values(), figures, strict=True):
        assert set(themes) == {"light", "dark"}
        names = {trace["legendgroup"] for trace in themes["dark"]["data"]}
        assert names == {series.name for series in figure.series}
    assert HOSTILE in {trace["legendgroup"] for trace in themes["light"]["data"]}


def test_the_data_of_a_plot_are_a_table(page: Page) -> None:
    assert "50 20 [14, 26]" in page.text  # the first point of the first line
    assert page.text.count("The data as a table") == 8


def test_claims_of_one_name_have_anchors_of_their_own() -> None:
    claim = study_result().claims[0]
    result = StudyResult("data", "model", 3, (claim, claim))

    ids = Page(render(result)).having("id")

    assert "claim-convergence" in ids
    assert "claim-convergence-2" in ids
    assert len(ids) == len(set(ids))


def test_a_study_without_claims() -> None:
    page = Page(render(StudyResult("data", "model", 3, ())))

    assert "No claim was run." in page.text


def test_headings_descend_one_level_at_a_time(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]

    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
