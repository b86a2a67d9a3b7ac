"""A study's figures as Plotly figures: pure functions from the record."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from livella.report.colours import LIGHT, Style, Theme, contender_styles, lone_bars
from livella.report.wording import estimate, number
from livella.study.results import Axis, Estimate, Figure, Series

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_BAND_OPACITY = 0.16
_MARKERS_SHOWN = 14
_TICK_CHARACTERS, _TITLE_CHARACTERS = 20, 40
_HOVER_CHARACTERS = 28
_FEW_DECADES, _MOST_POWERS = 2, 7
_LINE_HEIGHT, _BAR_HEIGHT = 360, 24


def plotly_figure(
    figure: Figure, styles: Mapping[str, Style] | None = None, theme: Theme = LIGHT
) -> dict[str, Any]:
    """The figure as Plotly's `data` and `layout`, in JSON-ready values.

    Without `styles` the figure's own names are styled. A series' band, line and markers share a
    `legendgroup`, so that they are shown and hidden together.
    """
    styles = contender_styles([figure]) if styles is None else styles
    draw = _bars if figure.kind == "bar" else _lines
    return {"data": draw(figure, styles, theme), "layout": _layout(figure, theme)}


def values(series: Series) -> list[str]:
    """The points of a series in words: "9.2 [7.1, 12.0]", or a dash where there is none."""
    return [_point(*point) for point in zip(series.y, *_bounds(series), strict=True)]


# Traces.


def _lines(figure: Figure, styles: Mapping[str, Style], theme: Theme) -> list[dict[str, Any]]:
    bands = [
        _band(series, figure, theme.series[styles[series.name].slot])
        for series in figure.series
        if series.low and series.high
    ]
    lines = [_line(series, figure.y, styles[series.name], theme) for series in figure.series]
    return bands + lines  # no band covers a line


def _line(series: Series, axis: Axis, style: Style, theme: Theme) -> dict[str, Any]:
    colour = theme.series[style.slot]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        **_named(series),
        "x": _places(series.x),
        "y": [_drawable(value, axis) for value in series.y],
        "line": {"color": colour, "width": 2.25, "dash": style.dash},
        "marker": {
            "color": colour,
            "symbol": style.symbol,
            "size": 8,
            "maxdisplayed": _MARKERS_SHOWN,
        },
    }


def _band(series: Series, figure: Figure, colour: str) -> dict[str, Any]:
    """The area from low to high: one closed outline for each stretch without a gap."""
    x: list[float | str | None] = []
    y: list[float | None] = []
    floor = _floor(figure)
    for stretch in _stretches(series, figure.y, floor):
        places = _places([place for place, _, _ in stretch])
        x += [*places, *reversed(places), None]
        y += [low for _, low, _ in stretch] + [high for _, _, high in reversed(stretch)] + [None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _as_text(series.name),
        "legendgroup": series.name,
        "showlegend": False,
        "hoverinfo": "skip",
        "x": x[:-1],
        "y": y[:-1],
        "fill": "toself",
        "fillcolor": _transparent(colour, _BAND_OPACITY),
        "line": {"width": 0, "color": colour},
    }


def _bars(figure: Figure, styles: Mapping[str, Style], theme: Theme) -> list[dict[str, Any]]:
    return [_bar(series, figure, styles, theme) for series in figure.series]


def _bar(
    series: Series, figure: Figure, styles: Mapping[str, Style], theme: Theme
) -> dict[str, Any]:
    """Bars with error bars; on a log axis points, as a bar's length would mean nothing there."""
    lying = _lies(figure)
    across, along = ("y", "x") if lying else ("x", "y")
    own = styles[series.name]
    looks = [styles.get(str(label), own) for label in series.x] if lone_bars(figure) else [own]
    marker: dict[str, Any] = {"color": _one_or_each([theme.series[look.slot] for look in looks])}
    trace: dict[str, Any] = {
        "type": "bar",
        **_named(series),
        across: _places(series.x),
        along: [_drawable(value, figure.y) for value in series.y],
        "marker": marker,
    }
    if lone_bars(figure):
        trace["hovertemplate"] += "<extra></extra>"  # without a name that says nothing new
    if series.low and series.high:
        trace[f"error_{along}"] = _error_bars(series, figure, theme)
    if lying:
        trace["orientation"] = "h"
    if figure.y.log:
        marker |= {"symbol": _one_or_each([look.symbol for look in looks]), "size": 10}
        trace |= {"type": "scatter", "mode": "markers", "offsetgroup": series.name}
    return trace


def _one_or_each(looks: list[str]) -> str | list[str]:
    return looks if len(looks) > 1 else looks[0]


def _error_bars(series: Series, figure: Figure, theme: Theme) -> dict[str, Any]:
    floor = _floor(figure)
    up: list[float | None] = []
    down: list[float | None] = []
    for y, low, high in zip(series.y, *_bounds(series), strict=True):
        middle = _drawable(y, figure.y)
        bottom, top = _clipped(low, figure.y, floor), _clipped(high, figure.y, floor)
        known = middle is not None and bottom is not None and top is not None
        up.append(max(0.0, top - middle) if known else None)  # type: ignore[operator]
        down.append(max(0.0, middle - bottom) if known else None)  # type: ignore[operator]
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "color": theme.ink,
        "thickness": 1.25,
        "width": 4,
    }


def _named(series: Series) -> dict[str, Any]:
    # Plotly reads names as HTML, and "%{" in a template as a variable: so the name is escaped,
    # and the hover text comes in as data.
    return {
        "name": _folded(series.name, _HOVER_CHARACTERS),
        "legendgroup": series.name,
        "customdata": values(series),
        "hovertemplate": "%{customdata}",
    }


# Values.


def _bounds(series: Series) -> tuple[Sequence[float | None], Sequence[float | None]]:
    nothing = (None,) * len(series.y)
    return series.low or nothing, series.high or nothing


def _point(y: float | None, low: float | None, high: float | None) -> str:
    if y is None or low is None or high is None:
        return number(y)
    return str(estimate(Estimate(y, low, high, count=2)))


def _drawable(value: float | None, axis: Axis) -> float | None:
    if value is None or not math.isfinite(value) or (axis.log and value <= 0):
        return None
    return value


def _clipped(value: float | None, axis: Axis, floor: float) -> float | None:
    """A bound as far as a log axis reaches: nothing there is at zero or below."""
    if value is None or not math.isfinite(value):
        return None
    return max(value, floor) if axis.log else value


def _floor(figure: Figure) -> float:
    """The smallest value of the figure that a log axis can show."""
    shown = (
        value
        for series in figure.series
        for value in (*series.y, *series.low, *series.high)
        if value is not None and math.isfinite(value) and value > 0
    )
    return min(shown, default=1.0)


def _stretches(
    series: Series, axis: Axis, floor: float
) -> list[list[tuple[float | str, float, float]]]:
    stretches: list[list[tuple[float | str, float, float]]] = [[]]
    for place, y, low, high in zip(series.x, series.y, *_bounds(series), strict=True):
        bottom, top = _clipped(low, axis, floor), _clipped(high, axis, floor)
        if _drawable(y, axis) is None or bottom is None or top is None:
            stretches.append([])
        else:
            stretches[-1].append((place, bottom, top))
    return [stretch for stretch in stretches if stretch]


def _places(x: Sequence[float | str]) -> list[float | str]:
    return [_tick(place) if isinstance(place, str) else place for place in x]


def _tick(label: str) -> str:
    return _folded(label, _TICK_CHARACTERS)


def _folded(text: str, characters: int) -> str:
    return "<br>".join(_as_text(line) for line in textwrap.wrap(text, characters)) or " "


def _as_text(text: str) -> str:
    """The text as Plotly, which reads a little HTML, will show it."""
    return escape(text, quote=False)


def _transparent(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


# Layout.


def _layout(figure: Figure, theme: Theme) -> dict[str, Any]:
    across, along = _axis(figure.x, theme, _across(figure)), _axis(figure.y, theme, _along(figure))
    layout: dict[str, Any] = {
        "height": _height(figure),
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "font": {"family": _FONT, "size": 13, "color": theme.ink},
        "paper_bgcolor": theme.surface,
        "plot_bgcolor": theme.surface,
        "showlegend": False,
        "hovermode": "closest" if figure.kind == "bar" else "x unified",
        "hoverlabel": {
            "bgcolor": theme.surface,
            "bordercolor": theme.grid,
            "font": {"color": theme.ink, "size": 13},
            "namelength": -1,
        },
        "uirevision": "kept",  # a new theme leaves hidden series hidden
    }
    if figure.kind == "bar":
        layout |= {"barmode": "group", "scattermode": "group", "bargroupgap": 0.1}
        layout["bargap"] = max(0.32, 0.8 - 0.06 * _bar_count(figure))
    if _lies(figure):
        across |= {"autorange": "reversed", "showgrid": False}
        return layout | {"xaxis": along, "yaxis": across}
    across |= {"showgrid": False, "spikecolor": theme.muted, "spikethickness": 1}
    return layout | {"xaxis": across, "yaxis": along}


def _axis(axis: Axis, theme: Theme, shown: list[float | str]) -> dict[str, Any]:
    title = f"{axis.title} ({axis.unit})" if axis.unit else axis.title
    look: dict[str, Any] = {
        "title": {
            "text": _folded(title, _TITLE_CHARACTERS),
            "font": {"color": theme.muted, "size": 13},
            "standoff": 10,
        },
        "fixedrange": True,
        "automargin": True,
        "gridcolor": theme.grid,
        "linecolor": theme.muted,
        "tickfont": {"color": theme.muted},
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "ticklabelstandoff": 4,
    }
    if any(isinstance(value, str) for value in shown):
        return look | {"type": "category"}
    if axis.log:
        return look | {"type": "log"} | _log_ticks([float(value) for value in shown])
    return look | {"type": "linear", "nticks": 7, "separatethousands": True}


def _log_ticks(shown: list[float]) -> dict[str, Any]:
    """Round values: 1, 2 and 5 of each power of ten, or powers alone over several decades."""
    positive = [value for value in shown if value > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    step = math.ceil((last - first) / _MOST_POWERS) or 1
    leading = (1, 2, 5) if last - first <= _FEW_DECADES else (1,)
    powers = range(first, last + 1, step)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in leading]
    return {"tickvals": ticks, "ticktext": [number(tick, digits=1) for tick in ticks]}


def _across(figure: Figure) -> list[float | str]:
    return [place for series in figure.series for place in series.x]


def _along(figure: Figure) -> list[float | str]:
    every = (value for series in figure.series for value in (*series.y, *series.low, *series.high))
    return [value for value in every if value is not None and math.isfinite(value)]


def _lies(figure: Figure) -> bool:
    """Bars lie down where their labels would not fit side by side on a phone."""
    labels = dict.fromkeys(place for place in _across(figure) if isinstance(place, str))
    return figure.kind == "bar" and sum(len(label) + 2 for label in labels) > 2 * _TICK_CHARACTERS


def _height(figure: Figure) -> int:
    if not _lies(figure):
        return _LINE_HEIGHT
    labels = len(dict.fromkeys(_across(figure)))
    return 90 + _BAR_HEIGHT * max(_bar_count(figure), 2 * labels)


def _bar_count(figure: Figure) -> int:
    return len(dict.fromkeys(_across(figure))) * len(figure.series)
