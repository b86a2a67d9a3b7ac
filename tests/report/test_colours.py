"""One look for each name, and colours that can be seen."""

import pytest

from livella.report import colours, html
from livella.report.colours import DARK, LIGHT, contender_styles
from livella.report.figures import plotly_figure
from livella.study.results import Axis, Figure, Series


def line(*series: Series) -> Figure:
    return Figure("t", "line", Axis("step"), Axis("error", "%"), series, "text")


def test_names_that_share_a_plot_differ_in_look() -> None:
    many = line(*(Series(f"network {number}", (1.0,), (1.0,)) for number in range(30)))

    styles = contender_styles([many])

    assert len(set(styles.values())) == len(styles)


def test_one_name_has_one_look_over_all_plots() -> None:
    first = line(Series("a", (1.0,), (1.0,)), Series("b", (1.0,), (1.0,)))
    second = line(Series("b", (1.0,), (1.0,)), Series("c", (1.0,), (1.0,)))

    styles = contender_styles([first, second])
    colours = [
        trace["line"]["color"]
        for figure in (first, second)
        for trace in plotly_figure(figure, styles)["data"]
        if trace["legendgroup"] == "b"
    ]

    assert colours[0] == colours[1]


def contrast(colour: str, surface: str) -> float:
    def luminance(code: str) -> float:
        channels = [int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(colour), luminance(surface)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_from_the_surface(theme) -> None:
    assert min(contrast(colour, theme.surface) for colour in theme.series) >= 3
    assert min(contrast(colour, theme.surface) for colour in (theme.ink, theme.muted)) >= 4.5


def test_every_symbol_and_dash_has_a_swatch() -> None:
    assert {symbol.removesuffix("-open") for symbol in colours._SYMBOLS} <= set(html._SHAPES)
    assert set(colours._DASHES) <= set(html._STROKES)
