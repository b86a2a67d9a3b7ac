"""A study as one page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from livella.report import wording
from livella.report.colours import DARK, LIGHT, Style, contender_styles
from livella.report.figures import plotly_figure, values
from livella.study.results import ClaimResult, Estimate, Figure, Series, StudyResult, Verdict

_HERE = Path(__file__).parent
# A swatch's outline around its middle, (20, 8); Plotly draws its symbols the same way.
_SHAPES = {
    "circle": "M24 8a4 4 0 1 1-8 0a4 4 0 1 1 8 0z",
    "square": "M16.5 4.5h7v7h-7z",
    "diamond": "M20 3l5 5-5 5-5-5z",
    "triangle-up": "M20 3.5l4.5 8h-9z",
    "triangle-down": "M20 12.5l4.5-8h-9z",
    "x": "M16 5.5l1.5-1.5 2.5 2.5 2.5-2.5 1.5 1.5-2.5 2.5 2.5 2.5-1.5 1.5-2.5-2.5-2.5 2.5-1.5-1.5 "
    "2.5-2.5z",
    "cross": "M18.7 4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
    "star": "M20 2.5l1.5 3.7 4 .3-3 2.6.9 3.9-3.4-2.1-3.4 2.1.9-3.9-3-2.6 4-.3z",
}
_STROKES = {
    "solid": "none",
    "dash": "7 4",
    "dot": "2 3",
    "dashdot": "7 3 2 3",
    "longdash": "11 4",
    "longdashdot": "11 3 2 3",
}


@dataclass(frozen=True)
class _Plot:
    """A figure on the page: its place there, its legend, and its data as a table."""

    id: str
    figure: Figure
    height: int
    legend: tuple[tuple[str, Style], ...]
    swatch: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class _Claim:
    """A claim on the page."""

    id: str
    result: ClaimResult
    plots: tuple[_Plot, ...]


def render(result: StudyResult) -> str:
    """The study as one HTML page, self-contained: it works from disk and without a network."""
    figures = [figure for claim in result.claims for figure in claim.figures]
    styles = contender_styles(figures)
    claims = tuple(_placed(result.claims, styles))
    plots = [plot for claim in claims for plot in claim.plots]
    plotly, page = Markup(_plotly()), Markup(_read("page.js"))  # noqa: S704 - ours, not the model's
    return (
        _environment()
        .get_template("template.html")
        .render(
            result=result,
            claims=claims,
            tally=_tally(result),
            drawings={plot.id: _drawing(plot.figure, styles) for plot in plots},
            computing=result.computed,
            themes={"light": LIGHT, "dark": DARK},
            css=Markup(_read("style.css")),  # noqa: S704
            plotly=plotly,
            page=page,
            policy=_policy(plotly, page),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_kept_together,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {
        "estimate": wording.estimate,
        "duration": wording.duration,
        "counted": wording.counted,
    }
    environment.tests["estimate"] = lambda cell: isinstance(cell, Estimate)
    environment.globals |= {
        "symbols": wording.SYMBOLS,
        "missing": wording.MISSING,
        "shapes": _SHAPES,
        "strokes": _STROKES,
    }
    return environment


def _kept_together(value: object) -> object:
    """No line breaks between a number and its percent sign."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", value)
    return value


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """What the page may do: run these scripts and no other, and fetch nothing."""
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _tally(result: StudyResult) -> list[tuple[Verdict, int]]:
    counts = Counter(finding.verdict for claim in result.claims for finding in claim.findings)
    return [(verdict, counts[verdict]) for verdict in Verdict if counts[verdict]]


def _placed(claims: Sequence[ClaimResult], styles: dict[str, Style]) -> Iterator[_Claim]:
    """The claims with their anchors: from their names, and numbered where two agree."""
    seen: Counter[str] = Counter()
    for claim in claims:
        anchor = "claim-" + re.sub(r"[^a-z0-9]+", "-", claim.name.lower()).strip("-")
        seen[anchor] += 1
        place = anchor if seen[anchor] == 1 else f"{anchor}-{seen[anchor]}"
        plots = (
            _plot(f"{place}-plot-{number}", figure, styles)
            for number, figure in enumerate(claim.figures, start=1)
        )
        yield _Claim(place, claim, tuple(plots))


def _plot(place: str, figure: Figure, styles: dict[str, Style]) -> _Plot:
    height: int = plotly_figure(figure, styles)["layout"]["height"]
    legend = tuple((series.name, styles[series.name]) for series in figure.series)
    kind = "point" if figure.kind == "bar" and figure.y.log else figure.kind
    return _Plot(place, figure, height, legend, kind, tuple(_rows(figure)))


def _drawing(figure: Figure, styles: dict[str, Style]) -> dict[str, Any]:
    return {theme.name: plotly_figure(figure, styles, theme) for theme in (LIGHT, DARK)}


def _rows(figure: Figure) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The figure's data, a row for each place on its x axis."""
    columns = [dict(zip(series.x, values(series), strict=True)) for series in figure.series]
    for place in _every_place(figure.series):
        name = place if isinstance(place, str) else wording.number(place, digits=6)
        yield name, tuple(column.get(place, wording.MISSING) for column in columns)


def _every_place(series: Sequence[Series]) -> list[float | str]:
    places = list(dict.fromkeys(place for each in series for place in each.x))
    if any(isinstance(place, str) for place in places):
        return places
    return sorted(places, key=float)
