"""An inspection on the terminal, as a page, as JSON and as SARIF, from plain records."""

import dataclasses
import io
import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from rich.console import Console

from livella.diagnosis.checks import CHECKS, findings_of
from livella.diagnosis.records import Finding, Gap, Level, Record, Trio
from livella.report import cards, files, inspection_html, inspection_text, inspection_words, sarif
from tests.report.inspections import (
    BIAS,
    CAUSED,
    COMMAND,
    DEEP,
    GAP,
    HEALTHY,
    HOSTILE,
    IGNORING,
    LONG,
    LONG_NAMES,
    MARKUP,
    MOMENTUM,
    SHIFTED,
    SICK,
    SMALL,
    STORED,
    UNLABELLED,
    layer,
    measured,
    record,
    stale,
)

ALL = {"healthy": HEALTHY, "sick": SICK, "caused": CAUSED, "stored": STORED, "deep": DEEP,
       "hostile": HOSTILE, "ignoring": IGNORING}  # fmt: skip


def of_gap(found: Record, gap: Gap) -> Record:
    return dataclasses.replace(found, seen=dataclasses.replace(found.seen, gap=gap))


def on_a_terminal(found: Record, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    inspection_text.show(found, console, COMMAND)
    return console.file.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


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

    def having(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and wanted.items() <= a.items()]


HEADLINES = {
    "sick": (SICK, "Wrong in use: 30.4 % right by its running statistics, 99.7 % by those of the "
             "data: 3 errors, 1 warning, 2 notes."),
    "healthy": (HEALTHY, "Healthy: 99.7 % right by its running statistics, 99.7 % by those of the "
                "data: nothing was found."),
    "stored": (STORED, "Nothing wrong in what is stored: 2 notes; how the network does was not "
               "measured."),
    "ignoring": (IGNORING, "Wrong in use: 30.4 % right by its running statistics, 99.7 % by those "
                 "of the data: 3 errors. 2 findings are ignored."),
    "wrong in what is stored": (record([layer("bn")], [stale("bn", 1.0)], None), "Wrong in what is "
                                "stored: 1 error; how the network does was not measured."),
    "no labels": (of_gap(SICK, UNLABELLED), "Wrong in use: its outputs agree to 61.0 % with "
                  "those by the statistics of the data: 3 errors, 1 warning, 2 notes."),
    "deployment": (record([layer("bn")], [SHIFTED, BIAS]), "Wrong on the data of deployment, not "
                   "on those of training: 99.7 % right by its running statistics, 99.7 % by those "
                   "of the data: 1 error, 1 note."),
    "deployment too": (dataclasses.replace(SICK, findings=(SICK.findings[0], SHIFTED)), "Wrong "
                       "in use: 30.4 % right by its running statistics, 99.7 % by those of the "
                       "data: 2 errors."),
    "numbers": (of_gap(HEALTHY, Gap(Trio(0.31, 0.96, 0.9), 0.65, 0.1, 0, 64, "numbers")),
                "Healthy: score 0.310 by its running statistics, 0.960 by those of the data: "
                "nothing was found."),
}  # fmt: skip


def test_a_score_that_is_no_number_is_told_as_such():
    lost = dataclasses.replace(GAP, score=Trio(float("nan"), 0.997, 0.971))
    found = of_gap(SICK, lost)
    assert inspection_words.headline(found).startswith("Wrong in use: no number by its running")
    assert [round(bar.value, 3) for bar in inspection_words.bars(lost)] == [0, 0.997, 0.971]
    assert "no number" in Page(inspection_html.render(found)).words


@pytest.mark.parametrize(("found", "said"), HEADLINES.values(), ids=HEADLINES)
def test_the_headline_says_what_was_measured_and_what_was_not(found, said):
    assert inspection_words.headline(found) == said
    assert words(on_a_terminal(found, 80)).startswith(said)
    assert said in words(Page(inspection_html.render(found)).words)


def test_a_gap_that_is_ignored_is_not_called_healthy():
    ignored = dataclasses.replace(SICK, findings=(), ignored=SICK.findings)
    said = inspection_words.headline(ignored)
    assert said.startswith("Nothing wrong beside what is ignored: 30.4 % right")
    assert said.endswith("6 findings are ignored.")


def test_the_terminal_draws_each_score_as_long_as_it_is():
    lines = on_a_terminal(SICK, 80).splitlines()
    drawn = {line.split("  ")[0]: line.count("█") for line in lines if "░" in line or "█" in line}
    names = list(drawn)
    assert names == ["running statistics, eval()", "statistics of the data",
                     "of each batch, train()"]  # fmt: skip
    assert [drawn[name] for name in names] == [int(24 * s) for s in (0.304, 0.997, 0.971)]
    assert "loss 2.08" in next(line for line in lines if "running statistics, eval()" in line)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ALL)
def test_the_terminal_shows_whole_words_in_its_width(name, width):
    told = on_a_terminal(ALL[name], width)
    assert max(map(len, told.splitlines())) <= width
    for each in ALL[name].findings[:1]:
        assert each.check in told
    table = [line.split() for line in told.splitlines()][-len(ALL[name].seen.layers) - 1 :]
    if name not in ("hostile", "stored"):
        assert [row[-2:] for row in table if row] == [["0.05", "σ"]] * len(ALL[name].seen.layers)
    assert "…" not in told


def test_long_names_are_told_whole_on_a_narrow_terminal():
    told = "".join(on_a_terminal(LONG, 80).split())
    cards_told, table = told.split("Layersinmodel.backbone.features,")
    assert all(name in cards_told for name in LONG_NAMES[:5])
    assert "denseblock" in table
    assert "model.backbone" not in table
    for told in (on_a_terminal(DEEP, 80), on_a_terminal(HEALTHY, 80)):
        assert "Layers, each a BatchNorm2d" in told, "names that fit stay as they are"


def test_what_is_lost_is_told_in_the_unit_of_the_score():
    lost = {
        GAP: "69.3 ± 2.4 points by", UNLABELLED: "39 ± 3 points by",
        dataclasses.replace(GAP, counted="numbers"): "0.693 ± 0.024 of the score by",
        dataclasses.replace(GAP, lost=0.02): "nothing that shows (2 ± 2.4 points)",
        dataclasses.replace(GAP, lost=-0.0001): "nothing that shows (0 ± 2.4 points)",
    }  # fmt: skip
    for gap, said in lost.items():
        assert dict(inspection_words.summary(of_gap(SICK, gap)))["lost"].startswith(said)


def test_what_is_ignored_is_told_apart():
    told = inspection_text.plain(IGNORING)
    assert told.index("What matters most") < told.index("Ignored") < told.index("small_batch")
    assert "Ignored" not in inspection_text.plain(SICK)


def test_what_comes_of_something_ignored_names_it():
    ignored = dataclasses.replace(CAUSED, findings=CAUSED.findings[2:], ignored=tuple(MOMENTUM))
    said = "It comes of what is ignored: momentum@0.bn, momentum@1.bn."
    assert said in words(inspection_text.plain(ignored))
    assert said in words(Page(inspection_html.render(ignored)).words)


def test_control_characters_do_not_reach_the_terminal():
    assert "\x1b" not in inspection_text.plain(record([layer("bn\x1b[31m")], [stale("\x1bbn", 1)]))


def test_what_was_not_understood_is_named_with_the_way_out():
    found = of_gap(SICK, UNLABELLED)
    assert "batch['meta']: (64, 3) int64" in inspection_text.plain(found)
    assert "say which: target=" in inspection_text.plain(found)
    assert "say which: --target" in inspection_text.plain(found, COMMAND)
    assert "batch[1], read as class numbers" in inspection_text.plain(SICK)


def test_the_command_that_repairs_is_told_once_and_reads_as_one_command():
    told = inspection_text.plain(CAUSED, COMMAND)
    assert words(told.replace("\\\n", " ")).count(COMMAND) == 1
    assert "livella repair" not in inspection_text.plain(CAUSED)
    assert "Set momentum to one minus it" in told
    page = Page(inspection_html.render(CAUSED, command=COMMAND)).words
    assert words(page.replace("\\\n", " ")).count(COMMAND) == 1


@pytest.mark.parametrize("width", [20, 60, 200])
def test_a_folded_command_is_the_same_to_a_shell(width):
    command = COMMAND + " --ignore 'momentum@head.*' --weights 'my weights.pt'"
    folded = cards.folded(command, width)
    assert shlex.split(folded.replace("\\\n", "")) == shlex.split(command)
    if width == 60:
        assert max(map(len, folded.splitlines())) <= width


@pytest.mark.parametrize("after", [None, HEALTHY])
@pytest.mark.parametrize("name", ALL)
def test_the_page_is_whole_and_needs_nothing_else(name, after):
    found = ALL[name]
    page = Page(inspection_html.render(found, after))
    assert ("After the repair" in page.words) is (after is not None)
    for tag, attrs in page.tags:
        assert tag not in ("script", "img", "iframe", "link")
        assert not str(attrs.get("href", "#")).startswith("http")
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = {attrs["href"][1:] for attrs in page.having("a")}
    assert links == targets == {f"layer-{k + 1}" for k in range(len(found.seen.layers))}
    for each in (*found.findings, *found.ignored):
        assert each.check in page.words
        assert (each.layer or "the model") in page.words


def test_the_page_draws_the_scores_before_and_after_a_repair():
    page = Page(inspection_html.render(SICK, HEALTHY))
    bars = [a["style"] for a in page.having("span") if "width" in a.get("style", "")]
    widths = [float(re.search(r"width: ([\d.]+)%", style)[1]) for style in bars]
    assert widths == pytest.approx([30.4, 99.7, 99.7, 97.1])
    assert [a["class"] for a in page.having("tr") if "class" in a] == [
        "running", "after", "population", "batch",
    ]  # fmt: skip
    assert "loss 2.08" in page.words
    circles = [attrs["class"] for attrs in page.having("circle")]
    assert "mended" in circles
    assert "1 not finite" in page.words


def test_a_share_colours_its_block():
    page = Page(inspection_html.render(SICK))
    shares = [float(a["style"].split(":")[1]) for a in page.having("a")]
    assert shares == pytest.approx([0.275, 0.205, 0.02, 0], abs=1e-9)


def test_names_of_a_model_are_escaped():
    text = inspection_html.render(HOSTILE, HOSTILE, f"livella repair {shlex.quote(MARKUP)}")
    assert "<img" not in text
    names = [f"{k}{MARKUP}" for k in range(9)]
    made = [stale(name, 0.1, "momentum@" + MARKUP) for name in names]
    made += [stale(name, 0.0, level=Level.NOTE) for name in ("x" + MARKUP, "y" + MARKUP)]
    cause = Finding("momentum", Level.NOTE, MARKUP, MARKUP)
    gap = dataclasses.replace(GAP, labels=MARKUP, unread=(MARKUP,))
    many = record([layer(name) for name in names], made, gap, ignored=(cause,))
    assert "<img" not in inspection_html.render(many, many)
    assert MARKUP in Page(text).words


def test_the_record_as_json_has_nulls_for_what_is_not_finite():
    values = json.loads(files.record(IGNORING.to_dict()))
    assert values["seen"]["layers"][1]["running_mean"] == [5.0, None]
    assert values["findings"][0]["level"] == "error"
    assert values["findings"][2]["because"] == "stale_statistics@0.bn"
    assert [each["check"] for each in values["ignored"]] == ["small_batch", "redundant_bias"]


@pytest.mark.parametrize("name", ALL)
def test_sarif_has_what_code_hosts_ask_for(name):
    found = ALL[name]
    (run,) = json.loads(sarif.render(found, "mine.py"))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len(rules) == len(CHECKS)
    assert all(rule["id"] and rule["shortDescription"]["text"] for rule in rules)
    for result, finding in zip(run["results"], (*found.findings, *found.ignored), strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.check
        assert result["level"] == finding.level.value
        assert result["message"]["text"].startswith(finding.layer or "The model")
        properties = result["properties"]
        assert properties.get("because", "") == finding.because
        assert (properties["share"], properties.get("numbers", {})) == (
            finding.share, finding.numbers,
        )  # fmt: skip
        (place,) = result["locations"]
        logical = place["logicalLocations"][0]["fullyQualifiedName"]
        assert logical == finding.layer or found.seen.model
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "mine.py"
        kinds = [each["kind"] for each in result.get("suppressions", [])]
        assert kinds == (["external"] if finding in found.ignored else [])


@pytest.mark.parametrize("check", [*(check.__name__ for check in CHECKS), "of_a_later_version"])
def test_findings_of_every_check_can_be_told_in_every_form(check):
    finding = Finding(check, Level.WARNING, "bn", "It is so.", "no such remedy", None, {"n": 1.0})
    found = record([layer("bn")], [finding], GAP)
    (run,) = json.loads(sarif.render(found))["runs"]
    (result,) = run["results"]
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == check
    assert f"bn: {check}" in inspection_text.plain(found)
    assert f"bn: {check}" in Page(inspection_html.render(found)).words


@pytest.mark.parametrize("eps", [0.0, 10.0])
def test_a_large_eps_is_told_as_sarif(eps):
    found = record([layer("bn", eps=eps)])
    found = dataclasses.replace(found, findings=findings_of(found.seen))
    (run,) = json.loads(sarif.render(found))["runs"]
    assert "large_eps" in [result["ruleId"] for result in run["results"]]


def test_a_plot_of_many_channels_is_thinned():
    many = tuple(float(k) for k in range(5000))
    wide = layer("wide", measured=measured(many, many), running_mean=many, running_var=many,
                 features=5000, weight=None, bias=None)  # fmt: skip
    circles = Page(inspection_html.render(record([wide], [SMALL]))).having("circle")
    assert 2 * 300 <= len(circles) <= 2 * inspection_html.MOST
