"""The colours of a page and its plots: one look for each contender, wherever it appears."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from livella.study.results import Figure


@dataclass(frozen=True)
class Theme:
    """The colours of a page, light or dark, that its plots take up."""

    name: str
    ink: str
    muted: str
    grid: str
    surface: str
    series: tuple[str, ...]


# Apart from each other for colour-blind readers (after Okabe and Ito), each at least 3:1 on its
# surface. Three are kept: grey for "none", the accent for "batch", and the last for lone bars
# that are no contender of another plot.
LIGHT = Theme(
    name="light",
    ink="#1d2129",
    muted="#5c6370",
    grid="#e4e1d9",
    surface="#fdfcfa",
    series=(
        *("#777777", "#0a5fb4"),
        *("#cf4f0a", "#008564", "#b5508c", "#a97a00", "#24889c", "#7b4b26", "#5a49b0"),
        "#7f93ad",
    ),
)
DARK = Theme(
    name="dark",
    ink="#e9e7e2",
    muted="#a3a7b0",
    grid="#33373f",
    surface="#17191d",
    series=(
        *("#a2a2a2", "#5aaeff"),
        *("#ff8b52", "#3fcda3", "#ee96c8", "#e8bb3d", "#79dcea", "#cfa27c", "#ada1ff"),
        "#7488a3",
    ),
)
_RESERVED = {"none": 0, "batch": 1}
_FREE_SLOTS = range(len(_RESERVED), len(LIGHT.series) - 1)
_LONE_SLOT = len(LIGHT.series) - 1
_DASHES = ("dash", "solid", "dashdot", "dot", "longdash", "longdashdot", "dash", "solid", "dot")
_SYMBOLS = (
    *("circle-open", "circle", "square", "diamond", "triangle-up", "x", "triangle-down"),
    *("cross", "star"),
)


@dataclass(frozen=True)
class Style:
    """How one contender looks wherever it appears: a place in a theme's colours, and shapes."""

    slot: int
    dash: str
    symbol: str


def contender_styles(figures: Iterable[Figure]) -> dict[str, Style]:
    """One style for each series' name over all figures, different for those that share a plot.

    Colours are given where they are least used, so that two names rarely look alike even in
    different plots. The name of a lone set of bars is no contender: its labels may be.
    """
    neighbours: dict[str, set[str]] = defaultdict(set)
    lone: list[str] = []
    for figure in figures:
        names = [series.name for series in figure.series]
        if lone_bars(figure):
            lone += names
        else:
            for name in names:
                neighbours[name].update(names)
    styles = {name: _style(slot) for name, slot in _RESERVED.items()}
    used: Counter[int] = Counter()
    for name, others in neighbours.items():
        if name not in styles:
            styles[name] = _free_style({styles[other] for other in others & styles.keys()}, used)
            used[styles[name].slot] += 1
    return dict.fromkeys(lone, _style(_LONE_SLOT)) | styles


def lone_bars(figure: Figure) -> bool:
    """Whether the figure is one set of bars, so that its labels are what it compares."""
    return figure.kind == "bar" and len(figure.series) == 1


def _style(slot: int, cycle: int = 0) -> Style:
    # Past the last colour the shapes shift, so that colours return with other shapes.
    shape = (slot + 4 * cycle) % len(_SYMBOLS)
    return Style(slot, _DASHES[shape], _SYMBOLS[shape])


def _free_style(taken: set[Style], used: Counter[int]) -> Style:
    slots = sorted(_FREE_SLOTS, key=lambda slot: used[slot])
    return next(
        style
        for cycle in count()
        for style in (_style(slot, cycle) for slot in slots)
        if style not in taken
    )
