"""An inspection on the terminal, as a page, as JSON and as SARIF, from plain records."""

import dataclasses
import json
from html.parser import HTMLParser

import pytest

from livella.diagnosis.checks import CHECKS, findings_of
from livella.diagnosis.records import Advice, Record
from livella.report import files, inspection_html, inspection_text, sarif
from tests.diagnosis.seen import BROKEN, FAR, layer, measured, seen

MARKUP = "<img src=x onerror=alert(1)>&'\""


def record(*layers, **changed):
    what = seen(*layers, **changed)
    return Record(
        what,
        findings_of(what),
        checks={check.__name__: check.__doc__ for check in CHECKS},
        remedies={"measure_statistics": Advice("statistics", "Measure them again.")},
        provenance={"livella": "0.1.0", "torch": "2.13.0"},
    )


HEALTHY = record(layer("first"), layer("second"))
SICK = record(
    layer("first", running_var=(0.0, 1.0)),
    layer("second", off=FAR, share=0.9, running_mean=(5.0, float("nan"))),
    layer("third", met=measured(dropout=2.0)),
    layer("fourth", momentum=0.99),
    gap=BROKEN,
    dropout=("drop",),
)
HOSTILE = record(layer(MARKUP, kind=MARKUP, off=FAR, share=0.9), gap=BROKEN, model=MARKUP)


class Page(HTMLParser):
    """The elements and the words of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def test_the_terminal_says_what_matters_most_first():
    told = inspection_text.plain(SICK)
    lines = told.splitlines()
    assert lines[0].startswith("Wrong in use: 1 error, 2 warnings, 1 note")
    assert told.index("second: not_finite") < told.index("dropout_before")
    assert told.index("What matters most") < told.index("Also") < told.index("Layers")
    assert "→ Measure them again." in told
    assert "40.0 % right" in told
    assert inspection_text.plain(HEALTHY).startswith("Healthy: nothing was found.")


def test_without_data_it_says_so():
    nothing = layer("bn", measured=None, off=None, share=None)
    what = seen(nothing, samples=0, batch=0, gap=None)
    told = inspection_text.plain(Record(dataclasses.replace(what, layers=(
        dataclasses.replace(nothing, measured=None),)), ()))  # fmt: skip
    assert "nothing was measured" in told


def test_outputs_are_told_where_there_are_no_labels():
    gap = dataclasses.replace(BROKEN, unit="share of the outputs' variance", accuracy=None)
    assert "of their variance away" in inspection_text.plain(record(layer(), gap=gap))


@pytest.mark.parametrize("after", [None, HEALTHY])
def test_the_page_is_whole_and_needs_nothing_else(after):
    text = inspection_html.render(SICK, after)
    page = Page(text)
    assert "Wrong in use" in page.words
    assert ("After the repair" in page.words) is (after is not None)
    for tag, attrs in page.tags:
        assert tag not in ("script", "img", "iframe", "link")
        assert not str(attrs.get("href", "#")).startswith("http")
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert links == targets == {f"layer-{k}" for k in range(1, 5)}
    circles = [attrs["class"] for tag, attrs in page.tags if tag == "circle"]
    assert ("mended" in circles) is (after is not None)
    assert "1 not finite" in page.words


def test_a_share_colours_its_block():
    page = Page(inspection_html.render(SICK))
    shares = [a["style"] for tag, a in page.tags if tag == "a"]
    assert [float(style.split(":")[1]) for style in shares] == [0, 0.45, 0, 0]


def test_names_of_a_model_are_escaped():
    text = inspection_html.render(HOSTILE)
    assert "<img" not in text
    assert not [tag for tag, _ in Page(text).tags if tag == "img"]
    assert MARKUP in Page(text).words


def test_control_characters_do_not_reach_the_terminal():
    told = inspection_text.plain(record(layer("bn\x1b[31m"), gap=BROKEN))
    assert "\x1b" not in told


def test_the_record_as_json_has_nulls_for_what_is_not_finite():
    values = json.loads(files.record(SICK.to_dict()))
    assert values["seen"]["layers"][1]["running_mean"] == [5.0, None]
    assert values["findings"][0]["level"] == "error"


@pytest.mark.parametrize("found", [HEALTHY, SICK, HOSTILE])
def test_sarif_has_what_code_hosts_ask_for(found):
    log = json.loads(sarif.render(found, "mine.py"))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len(rules) == len(CHECKS)
    assert all(rule["id"] and rule["shortDescription"]["text"] for rule in rules)
    assert len(run["results"]) == len(found.findings)
    for result, finding in zip(run["results"], found.findings, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.check
        assert result["level"] in ("note", "warning", "error")
        assert result["message"]["text"].startswith(finding.layer)
        (place,) = result["locations"]
        assert place["logicalLocations"][0]["fullyQualifiedName"] == finding.layer
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "mine.py"


def test_a_plot_of_many_channels_is_thinned():
    many = tuple(float(k) for k in range(5000))
    wide = layer("wide", met=measured(mean=many, variance=many), running_mean=many,
                 running_var=many, features=5000, weight=None, bias=None)  # fmt: skip
    page = Page(inspection_html.render(record(wide)))
    circles = [tag for tag, _ in page.tags if tag == "circle"]
    assert 2 * 300 <= len(circles) <= 2 * inspection_html.MOST
