"""What an inspection says before its findings, on the terminal and the page alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from livella.diagnosis.records import Gap, Layer, Level, Record
from livella.report import wording

COLUMNS = ("layer", "kind", "channels", "mean off by", "variance ×", "share", "batch worth",
           "noise")  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A score to draw.

    Attributes:
        name: by which statistics.
        value: from 0 to 1.
        said: the score in words.
        loss: the loss beside it; empty without.
        kind: "running", "population", "batch", or "after" a repair.

    """

    name: str
    value: float
    said: str
    loss: str
    kind: str


def headline(record: Record) -> str:
    """Say in one line how the model is, from what was measured and the worst that was found."""
    found = _counts(record)
    ignored = len(record.ignored)
    more = f" {wording.counted(ignored, 'finding is', 'findings are')} ignored." if ignored else ""
    gap = record.seen.gap
    if gap is None:
        return f"{_how(record)}{found}; how the network does was not measured.{more}"
    return f"{_how(record)}: {_in_short(gap)}{found or ': nothing was found'}.{more}"


def _how(record: Record) -> str:
    gap = record.seen.gap
    measured = gap is not None
    if record.worst is Level.ERROR and _is_of_deployment(record):
        return "Wrong on the data of deployment, not on those of training"
    if record.worst is Level.ERROR:
        return "Wrong in use" if measured else "Wrong in what is stored"
    if record.worst is Level.WARNING:
        return "In use, with reservations" if measured else "No error in what is stored"
    beside = any(each.level is not Level.NOTE for each in record.ignored)
    if measured:
        if beside:
            return "Nothing wrong beside what is ignored"
        return "Nothing surely wrong" if gap is not None and gap.is_open else "Healthy"
    return f"Nothing wrong in what is stored{' beside what is ignored' if beside else ''}"


def _is_of_deployment(record: Record) -> bool:
    """Whether what is wrong shows on the data of deployment alone, which no score is of."""
    errors = {each.check for each in record.findings if each.level is Level.ERROR}
    return errors == {"deployment_shift"}


def first_title(record: Record) -> str:
    """Give the title of the cards: notes alone are nothing that matters."""
    return "Worth knowing" if record.worst is Level.NOTE else "What matters most"


def _counts(record: Record) -> str:
    counts = [
        wording.counted(n, level.value)
        for level in reversed(Level)
        if (n := sum(finding.level is level for finding in record.findings))
    ]
    return f": {', '.join(counts)}" if counts else ""


def _in_short(gap: Gap) -> str:
    if not gap.counted:
        if not math.isfinite(gap.score.running):
            return "its outputs by its running statistics are no numbers"
        agree = percent(gap.score.running)
        return f"its outputs agree to {agree} with those by the statistics of the data"
    running = scored(gap, gap.score.running)
    population = scored(gap, gap.score.population).removesuffix(" right").removeprefix("score ")
    return f"{running} by its running statistics, {population} by those of the data"


def scored(gap: Gap, value: float) -> str:
    """Say a score: so much right, in agreement, or of the highest."""
    if not math.isfinite(value):
        return "no number"
    if gap.is_of_numbers:
        return f"score {value:.3f}"
    return f"{percent(value)} {'right' if gap.counted else 'agreement'}"


def percent(share: float) -> str:
    """Say a share in percent: 30.4 %."""
    return f"{round(100 * share, 1) + 0.0:.1f} %"


def caption(gap: Gap) -> str:
    """Say what the bars are of."""
    over = f"over {wording.counted(gap.examples, 'example')}"
    if gap.is_of_numbers:
        return f"Score of the predicted numbers, 1 where none is off, {over}"
    if gap.counted:
        return f"Share right ({gap.counted}), {over}"
    return f"Agreement of the outputs with those by the statistics of the data, {over}, no labels"


def bars(gap: Gap, after: Gap | None = None) -> Iterator[Bar]:
    """Give the scores by each kind of statistics; after a repair also that of the repaired."""
    yield _bar("running statistics, eval()", gap, "running")
    if after is not None:
        yield _bar("repaired, eval()", after, "after", "running")
    yield _bar("statistics of the data", gap, "population")
    yield _bar("of each batch, train()", gap, "batch")


def _bar(name: str, gap: Gap, kind: str, which: str = "") -> Bar:
    value = getattr(gap.score, which or kind)
    loss = "" if gap.loss is None else f"loss {wording.number(getattr(gap.loss, which or kind))}"
    inside = min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0
    return Bar(name, inside, scored(gap, value), loss, kind)


def summary(record: Record, command: str = "") -> Iterator[tuple[str, str]]:
    """Give what was looked at, what was used as labels, and what was not understood."""
    seen = record.seen
    yield "model", f"{seen.model}, {wording.counted(len(seen.layers), 'normalization')}"
    if seen.samples:
        deployed = f", {seen.deployed:,} of deployment" if seen.deployed else ""
        yield "data", f"{seen.samples:,} samples in batches of {seen.batch}{deployed}"
    else:
        yield "data", "none: what is stored was read, nothing was measured"
    if seen.gap is not None:
        yield "lost", _lost(seen.gap)
        yield from _labels(seen.gap, "--target" if command else "target=")


def _lost(gap: Gap) -> str:
    if gap.is_of_numbers:
        figures = f"{_thousandths(gap.lost)} ± {_thousandths(gap.error)} of the score"
    else:
        figures = f"{_points(gap.lost)} ± {_points(gap.error)} points"
    if not gap.lost > gap.error:
        return f"nothing that shows ({figures})"
    return f"{figures} by the running statistics, against those of the data"


def _thousandths(score: float) -> str:
    return wording.number(round(score, 3))


def _points(share: float) -> str:
    return wording.number(round(100 * share, 1))


def _labels(gap: Gap, option: str) -> Iterator[tuple[str, str]]:
    if gap.labels:
        yield "labels", f"{gap.labels}, read as {gap.counted}" if gap.counted else gap.labels
    else:
        yield "labels", "none"
    if gap.unread:
        out = f"if it holds the labels, say which: {option}"
        yield "not read", f"{'; '.join(gap.unread)} ({out})"


def table(record: Record) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Give the layers as a table: columns, and rows of what at least one layer has."""
    rows = [_row(layer) for layer in record.seen.layers]
    kept = [k for k in range(len(COLUMNS)) if any(row[k] != wording.MISSING for row in rows)]
    return tuple(COLUMNS[k] for k in kept), [tuple(row[k] for k in kept) for row in rows]


def _row(layer: Layer) -> tuple[str, ...]:
    """Give a layer's figures as the table has them."""
    off, met = layer.off, layer.measured
    missing = wording.MISSING
    return (
        layer.name or "(the model)",
        layer.kind,
        f"{layer.features:,}",
        missing if off is None else f"{wording.number(off.offset, 2)} σ",
        missing if off is None else wording.number(off.ratio, 3),
        missing if layer.share is None else wording.share(layer.share, layer.share_error),
        missing if met is None else wording.number(met.effective, 2),
        missing if met is None else f"{wording.number(met.noise, 2)} σ",
    )
