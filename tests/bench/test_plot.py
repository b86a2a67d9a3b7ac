"""The page of dots, from plain numbers."""

import math
import re
from html.parser import HTMLParser

import pytest

from livella.bench import plot
from livella.bench.cases import RELU, Case, Setting
from livella.bench.plot import Scale
from livella.bench.rows import Record
from tests.bench.records import PROVENANCE, record, rows_of

CASE = Case("forward", Setting((32, 64, 56, 56), "contiguous", "float32", RELU))


class Page(HTMLParser):
    """The tags of a page; raises where they do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def dots(page):
    return {
        attributes["class"]: float(attributes["style"].removeprefix("--at:"))
        for tag, attributes in page.tags
        if tag == "i" and "style" in attributes
    }


def test_the_page_needs_nothing_else_and_shows_everything():
    whole = record()
    text = plot.render(whole)
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe")]
    assert not re.search(r"https?://", text)
    rows = [attributes for tag, attributes in page.tags if attributes.get("class") == "row"]
    assert len(rows) == len({row.case for row in whole.rows})
    words = " ".join(page.words)
    assert "training step, resnet-50" in words
    assert all(value in words for value in PROVENANCE.values())


def test_names_are_escaped():
    text = plot.render(Record(PROVENANCE, list(rows_of(CASE))))
    assert "<fast>" not in text
    assert "A &lt;fast&gt; Processor" in text


def test_dots_stand_at_the_logarithm_of_their_distance():
    page = Page(
        plot.render(Record(PROVENANCE, list(rows_of(CASE, ours=2.0, eager=4.0, compiled=16.0))))
    )
    at = dots(page)
    assert at["ours"] < at["eager"] < at["compile"]
    assert at["compile"] - at["eager"] == pytest.approx(2 * (at["eager"] - at["ours"]), abs=0.05)


def test_a_scale_holds_its_ratios_and_the_limit():
    scale = Scale.over([1.3, 40.0])
    assert 0 < scale.at(1.0) < scale.at(1.3) < scale.at(40.0) < 100
    assert [tick["text"] for tick in scale.ticks()] == ["1", "2", "5", "10", "20"]
    assert all(0 < tick["at"] < 100 for tick in scale.ticks())


def test_a_wide_scale_has_powers_of_ten_alone():
    assert [tick["text"] for tick in Scale.over([0.5, 2000.0]).ticks()] == [
        "1",
        "10",
        "100",
        "1,000",
    ]


def test_a_scale_without_ratios_still_is_one():
    scale = Scale.over([])
    assert math.isfinite(scale.at(1.0))


def test_a_record_without_rows_has_a_page():
    Page(plot.render(Record(PROVENANCE)))


def test_the_page_is_written_whole(tmp_path):
    path = plot.write_page(record(), tmp_path / "new" / "page.html")
    assert path.read_text(encoding="utf-8") == plot.render(record())
    assert list(path.parent.iterdir()) == [path]
