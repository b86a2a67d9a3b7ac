"""Plots keep the record's data, show nothing that is not there, and look alike by name."""

import json
import math

import plotly.graph_objects as go
import pytest

from livella.report.colours import DARK, LIGHT, contender_styles
from livella.report.figures import plotly_figure
from livella.study.results import Axis, Figure, Series
from tests.report.samples import HOSTILE, study_result

FIGURES = [figure for claim in study_result().claims for figure in claim.figures]


def line(*series: Series, log: bool = False) -> Figure:
    return Figure("t", "line", Axis("step"), Axis("error", "%", log=log), series, "text")


def bar(*series: Series, log: bool = False) -> Figure:
    return Figure("t", "bar", Axis("network"), Axis("error", "%", log=log), series, "text")


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("figure", FIGURES, ids=range(len(FIGURES)))
def test_plotly_knows_every_property_and_json_every_value(figure: Figure, theme) -> None:
    drawn = plotly_figure(figure, theme=theme)

    go.Figure(drawn)
    assert json.loads(json.dumps(drawn, allow_nan=False)) == drawn


def test_a_line_keeps_its_points_and_shares_a_group_with_its_band() -> None:
    series = Series("batch", (1.0, 2.0, 3.0), (5.0, 4.0, 3.0), (4.5, 3.5, 2.5), (5.5, 4.5, 3.5))

    band, drawn = plotly_figure(line(series))["data"]

    assert (drawn["x"], drawn["y"]) == ([1.0, 2.0, 3.0], [5.0, 4.0, 3.0])
    assert band["legendgroup"] == drawn["legendgroup"] == "batch"
    assert band["showlegend"] is False
    assert band["fill"] == "toself"
    assert band["x"] == [1.0, 2.0, 3.0, 3.0, 2.0, 1.0]
    assert band["y"] == [4.5, 3.5, 2.5, 3.5, 4.5, 5.5]


def test_a_gap_parts_the_band_and_the_line() -> None:
    series = Series("a", (1.0, 2.0, 3.0), (5.0, math.nan, 3.0), (4.0, None, 2.0), (6.0, None, 4.0))

    band, drawn = plotly_figure(line(series))["data"]

    assert drawn["y"] == [5.0, None, 3.0]
    assert band["x"] == [1.0, 1.0, None, 3.0, 3.0]
    assert band["y"] == [4.0, 6.0, None, 2.0, 4.0]


def test_a_series_without_bounds_has_no_band_and_no_error_bars() -> None:
    series = Series("a", ("x", "y"), (5.0, 3.0))

    (drawn,) = plotly_figure(line(series))["data"]
    (bars,) = plotly_figure(bar(series))["data"]

    assert drawn["mode"] == "lines+markers"
    assert "error_y" not in bars


def test_a_log_axis_shows_positive_values_only() -> None:
    series = Series("a", (1.0, 2.0), (5.0, 0.0), (0.0, 0.0), (6.0, 1.0))

    drawn = plotly_figure(line(series, log=True))
    band, points = drawn["data"]

    assert drawn["layout"]["yaxis"]["type"] == "log"
    assert points["y"] == [5.0, None]
    assert band["y"] == [1.0, 6.0]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(2.0, 88.0, ["1", "2", "5", "10", "20", "50", "100"]), (1e-3, 50.0, ["0.001", "0.01", "0.1"])],
)
def test_log_ticks_are_round(low: float, high: float, ticks: list[str]) -> None:
    axis = plotly_figure(line(Series("a", (1.0, 2.0), (low, high)), log=True))["layout"]["yaxis"]

    assert axis["ticktext"][: len(ticks)] == ticks


def test_log_ticks_stay_few_over_many_decades() -> None:
    axis = plotly_figure(line(Series("a", (1.0, 2.0), (1e-30, 1e38)), log=True))["layout"]["yaxis"]

    assert 4 <= len(axis["tickvals"]) <= 8


def test_bars_carry_their_error_bars() -> None:
    (drawn,) = plotly_figure(bar(Series("a", ("x", "y"), (5.0, 3.0), (4.0, 2.5), (7.0, 3.5))))[
        "data"
    ]

    assert drawn["type"] == "bar"
    assert drawn["error_y"]["array"] == [2.0, 0.5]
    assert drawn["error_y"]["arrayminus"] == [1.0, 0.5]


def test_bars_on_a_log_axis_are_points() -> None:
    (drawn,) = plotly_figure(bar(Series("a", ("x",), (5.0,), (0.0,), (7.0,)), log=True))["data"]

    assert (drawn["type"], drawn["mode"]) == ("scatter", "markers")
    assert drawn["error_y"]["arrayminus"] == [0.0]


def test_long_labels_lay_the_bars_down() -> None:
    names = tuple(f"a rather long label, {number}" for number in range(4))

    drawn = plotly_figure(bar(Series("a", names, (1.0, 2.0, 3.0, 4.0))))

    assert drawn["data"][0]["orientation"] == "h"
    assert drawn["data"][0]["x"] == [1.0, 2.0, 3.0, 4.0]
    assert drawn["layout"]["xaxis"]["title"]["text"] == "error (%)"


def test_axes_are_titled_with_units() -> None:
    layout = plotly_figure(line(Series("a", (1.0,), (1.0,))))["layout"]

    assert layout["xaxis"]["title"]["text"] == "step"
    assert layout["yaxis"]["title"]["text"] == "error (%)"


def test_names_are_only_text_to_plotly() -> None:
    series = Series(HOSTILE, (HOSTILE,), (1.0,))

    drawn = plotly_figure(line(series))
    (trace,) = drawn["data"]

    assert "<" not in trace["name"].replace("<br>", "")
    assert trace["hovertemplate"] == "%{customdata}"
    assert "<img" not in json.dumps(drawn["layout"])
    assert all("<" not in label.replace("<br>", "") for label in trace["x"])


def test_none_is_grey_and_batch_the_accent_on_every_plot() -> None:
    styles = contender_styles(FIGURES)

    for figure in FIGURES:
        for trace in plotly_figure(figure, styles)["data"]:
            if trace["legendgroup"] in ("none", "batch") and "line" in trace:
                slot = ("none", "batch").index(trace["legendgroup"])
                assert trace["line"]["color"] == LIGHT.series[slot]


def test_lone_bars_named_like_contenders_take_their_colours() -> None:
    figure = bar(Series("error", ("none", "batch", "other"), (3.0, 1.0, 2.0)))

    colours = plotly_figure(figure)["data"][0]["marker"]["color"]

    assert colours == [LIGHT.series[0], LIGHT.series[1], LIGHT.series[-1]]
