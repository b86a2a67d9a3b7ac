"""What came of all cases: scores by kinds of loaders, and the misses with their figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from evaluation import scores
from evaluation.scores import Row

KINDS: dict[str, Callable[[Row], bool]] = {
    "all": lambda row: True,  # noqa: ARG005
    "shuffled": lambda row: row["order"] == "shuffled",
    "stored": lambda row: row["order"] == "stored",
    "sorted": lambda row: row["order"] == "sorted",
    "4": lambda row: row["batch"] == 4,
    "16": lambda row: row["batch"] == 16,
    "64": lambda row: row["batch"] == 64,
    "128": lambda row: row["batch"] == 128,
    "labels": lambda row: row["labels"],
    "bare": lambda row: not row["labels"],
}


def score(rows: Sequence[Row], name: str) -> tuple[float, int]:
    """The share of cases that are right in this score, and of how many; 1 of none."""
    judged = [scores.judge(row)[name] for row in rows]
    counted = [each for each in judged if each is not None]
    return (sum(counted) / len(counted) if counted else 1.0), len(counted)


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The table: per cent right, and of how many cases."""
    pairs = {row["key"].rpartition("/")[0] for row in rows}
    yield f"{len(pairs)} pairs of a network and a fault, {len(rows)} cases"
    yield f"{'':10}" + "".join(f"{kind:>14}" for kind in KINDS)
    for name in scores.SCORES:
        cells = []
        for of in KINDS.values():
            share, count = score([row for row in rows if of(row)], name)
            cells.append(f"{share:7.1%} ({count:4})" if count else f"{'–':>14}")
        yield f"{name:10}" + "".join(cells)


def by(rows: Sequence[Row], what: str) -> Iterator[str]:
    """Right of how many, by fault, by family or by data."""
    yield f"{what:27}" + "".join(f"{name:>11}" for name in scores.SCORES)
    for one in dict.fromkeys(row[what] for row in rows):
        own = [row for row in rows if row[what] == one]
        cells = []
        for name in scores.SCORES:
            share, count = score(own, name)
            cells.append(f"{round(share * count):4} of {count:3}" if count else f"{'–':>11}")
        yield f"{one:27}" + "".join(cells)


def misses(rows: Sequence[Row]) -> Iterator[str]:
    """Each score that was missed, with the case and its figures."""
    for name in scores.SCORES:
        for row in rows:
            if scores.judge(row)[name] is False:
                yield f"{name:9} {row['key']}  {figures(row)}"


def figures(row: Row) -> str:
    """The truth of a case and what was said, in a line."""
    truth = row["truth"]
    (given, held), (given_by, held_by) = truth["running"], truth["population"]
    told = (
        f"{row['family']} on {row['data']}: {given:.1%} → {given_by:.1%} given, "
        f"{held:.1%} → {held_by:.1%} held out"
    )
    if "error" in row:
        return f"{told}; {row['error'][:120]}"
    worst = [f for f in row["said"]["findings"] if f["level"] == row["said"]["worst"]]
    found = dict.fromkeys(f"{f['check']}" for f in worst)
    shared = f", shares {scores.apart(row):.2f} apart" if truth["shares"] else ""
    return (
        f"{told}; {row['said']['worst']}: {', '.join(found)}; "
        f"repaired {row['repaired']:.1%}{shared}"
    )
